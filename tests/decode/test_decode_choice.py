"""How a token is chosen: the filters against those of transformers, the C kernel against the plain form."""

import functools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rhapsode.decode import SampleConfig
from rhapsode.decode.choice import Chooser, score_tokens
from rhapsode.decode.compiled import kernel_library
from rhapsode.decode.filters import keep_min_p, keep_top_k, keep_top_p, penalise_repetition
from rhapsode.decode.kernel import Packed, usable_kernel
from rhapsode.decode.texts import Texts
from rhapsode.model import ModelConfig, build_model


def filtered(logits: torch.Tensor, config: SampleConfig, seen: torch.Tensor) -> torch.Tensor:
    """What is drawn from, as transformers' processors make it."""
    from transformers import (
        LogitsProcessorList,
        MinPLogitsWarper,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    steps = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(config.repetition_penalty)])
    steps.append(TemperatureLogitsWarper(config.temperature))
    if config.top_k:
        steps.append(TopKLogitsWarper(config.top_k))
    steps.append(TopPLogitsWarper(config.top_p))
    steps.append(MinPLogitsWarper(config.min_p))
    return steps(seen[None], logits[None])[0].softmax(0)


FILTERS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.3},
    {"temperature": 2.5},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 1000},
    {"top_p": 0.05},
    {"top_p": 0.6},
    {"top_p": 0.999},
    {"min_p": 0.01},
    {"min_p": 0.5},
    {"min_p": 1.0},
    {"repetition_penalty": 1.7},
    {"repetition_penalty": 0.6},
    {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "min_p": 0.05, "repetition_penalty": 1.3},
    {"temperature": 1.6, "top_k": 30, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 0.8},
]
OTHERS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.0, "repetition_penalty": 3.0, "logit_bias": {4: 9.0}},
    {"logit_bias": {0: -100.0, 3: 5.0, 49: 1.5}},
    {"frequency_penalty": 1.3},
    {"presence_penalty": -0.7},
    {
        "frequency_penalty": 0.4,
        "presence_penalty": 1.1,
        "repetition_penalty": 1.2,
        "logit_bias": {2: 3.0},
        "top_p": 0.7,
    },
]


@pytest.mark.parametrize("options", FILTERS, ids=str)
def test_filters_are_those_of_transformers(options: dict[str, Any]) -> None:
    """Would catch filters in another order, a cut one token off, and negative logits that a penalty favours."""
    config = SampleConfig(**{"temperature": 1.0, **options})
    for seed in range(5):
        random = torch.Generator().manual_seed(seed)
        logits = 3 * torch.randn(50, generator=random, dtype=torch.float64)
        seen = torch.randint(50, (12,), generator=random)
        found = Chooser(config, 50, seen).probabilities(logits)
        torch.testing.assert_close(found, filtered(logits, config, seen), rtol=1e-12, atol=1e-15)


def test_penalties_by_count_and_bias() -> None:
    """Would catch a penalty for tokens of the prompt, one that does not grow, and a bias after the temperature."""
    config = SampleConfig(temperature=0.5, frequency_penalty=0.3, presence_penalty=0.2, logit_bias={1: 2.0})
    chooser = Chooser(config, 4, torch.tensor([0]))
    chooser.written += torch.tensor([0, 0, 1, 2])
    expected = (torch.tensor([1.0, 1.0 + 2.0, 1.0 - 0.5, 1.0 - 0.8], dtype=torch.float64) / 0.5).softmax(0)
    torch.testing.assert_close(chooser.probabilities(torch.ones(4)), expected)
    assert chooser.take(torch.tensor([0.0, 0.0, 50.0, 0.0])) == 2
    assert chooser.written.tolist() == [0, 0, 2, 2]


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=20), st.floats(0.01, 1.0), st.integers(0, 25))
def test_some_token_is_always_left(logits: list[float], p: float, k: int) -> None:
    """Would catch a filter that forbids everything, above all among equal logits."""
    values = torch.tensor(logits, dtype=torch.float64)
    for kept in (keep_top_k(values, k), keep_top_p(values, p), keep_min_p(values, p)):
        assert kept.max() == values.max()
        assert torch.equal(kept[kept > -torch.inf], values[kept > -torch.inf])


def test_seen_twice_is_penalised_once() -> None:
    """Would catch a penalty that grows with each occurrence."""
    logits = torch.tensor([2.0, -2.0, 1.0])
    penalised = penalise_repetition(logits, torch.tensor([0, 1, 0, 0, 1]), 2.0)
    assert penalised.tolist() == [1.0, -4.0, 1.0]
    assert logits.tolist() == [2.0, -2.0, 1.0]


NOTHING = torch.tensor([], dtype=torch.long)


SOME = [-30.0, -1.0, 0.0, 1.0, 1.5, 40.0]


class Kernels:
    """The C kernel's choice for logits of any size."""

    def __init__(self, vocab_size: int) -> None:
        if kernel_library() is None:
            pytest.skip("there is no compiler")
        kernel = usable_kernel()
        assert kernel is not None
        config = ModelConfig(vocab_size, embed_dim=2, hidden_dim=2, key_dim=2, value_dim=2)
        self.texts = Texts(Packed(build_model(config, 0), *kernel))

    def take(self, config: SampleConfig, logits: torch.Tensor, seen: torch.Tensor = NOTHING, count: int = 1) -> Any:
        slot = self.texts.open(config, 3, seen.tolist())
        found = [self.texts.choose(slot, logits[None]) for _ in range(count)]
        self.texts.close(slot)
        return found


kernels_of = functools.cache(Kernels)


@pytest.mark.parametrize("options", [*FILTERS, *OTHERS], ids=str)
def test_the_kernel_chooses_what_the_plain_form_chooses(options: dict[str, Any]) -> None:
    """The same numbers are drawn, so the same tokens, but where a number falls between float32 and float64.

    Would catch a filter of the kernel in another order or off by one, a token that it counts twice, another generator.
    """
    kernels, config = kernels_of(50), SampleConfig(**{"temperature": 1.0, "seed": 2**63 + 5, **options})
    for seed in range(5):
        random = torch.Generator().manual_seed(seed)
        logits = (3 * torch.randn(50, generator=random, dtype=torch.float64)).float()
        seen = torch.randint(50, (12,), generator=random)
        chooser = Chooser(config, 50, seen)
        found = kernels.take(config, logits, seen, count=40)
        assert [each.ids[0] for each in found] == [chooser.take(logits) for _ in range(40)]
        expected = score_tokens([found[0].ids[0]], logits[None], 3)
        assert found[0].log_probabilities == pytest.approx(expected.log_probabilities, abs=1e-6)
        assert found[0].likeliest[0][0] == expected.likeliest[0][0]
        assert found[0].likeliest[0][1] == pytest.approx(expected.likeliest[0][1], abs=1e-6)


@given(
    st.sampled_from([1, 15, 16, 17, 70]).flatmap(lambda n: st.lists(st.sampled_from(SOME), min_size=n, max_size=n)),
    st.sampled_from([0.0, 1e-310, 0.01, 1.0, 30.0]),
    st.sampled_from([0, 1, 2, 5, 100]),
    st.sampled_from([0.01, 0.5, 0.99, 1.0]),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from([1.0, 1000.0]),
)
def test_the_kernel_takes_only_what_the_filters_leave(
    values: list[float], temperature: float, top_k: int, top_p: float, min_p: float, penalty: float
) -> None:
    """Among many equal logits, too; would catch a token of probability 0, and padding that is drawn."""
    logits = torch.tensor(values)
    config = SampleConfig(1, temperature, top_k, top_p, min_p, penalty)
    seen = torch.arange(0, len(values), 2)
    allowed = Chooser(config, len(values), seen).probabilities(logits) > 0
    for found in kernels_of(len(values)).take(config, logits, seen, count=5)[:1]:
        assert allowed[found.ids[0]]


@pytest.mark.parametrize("vocab_size", [3, 16, 17, 63, 64, 65, 130])
def test_the_likeliest_are_in_order_and_equal_ones_by_id(vocab_size: int) -> None:
    """Would catch a heap that forgets one, and a greedy choice that is not the first of the likeliest."""
    logits = torch.randint(4, (vocab_size,), generator=torch.Generator().manual_seed(1)).float()
    (found,) = kernels_of(vocab_size).take(SampleConfig(temperature=0), logits)
    expected = logits.sort(descending=True, stable=True).indices[:3].tolist()
    assert found.likeliest[0][0] == expected
    assert found.ids == [expected[0]]
    assert found.log_probabilities[0] == found.likeliest[0][1][0]  # equal, not only close: clients compare them


def test_temperature_zero_and_nearly_zero() -> None:
    """Would catch a division by zero, an overflow, and a greedy choice that draws."""
    logits = torch.tensor([1.0, 900.0, 899.0])
    chooser = Chooser(SampleConfig(temperature=0), 3, NOTHING)
    assert chooser.take(logits) == 1
    assert chooser.random.random() == np.random.Generator(np.random.Philox(key=0)).random()
    kernels = kernels_of(3)
    for temperature in (0.0, 1e-310, 1e-30, 1e-3):
        config = SampleConfig(temperature=temperature)
        assert Chooser(config, 3, NOTHING).take(logits) == 1
        assert kernels.take(config, logits)[0].ids == [1]
    for spoilt in (torch.nan, torch.inf, -torch.inf):
        with pytest.raises(FloatingPointError, match="not finite"):
            Chooser(SampleConfig(), 3, NOTHING).take(torch.tensor([0.0, spoilt, 0.0]))
        assert kernels.take(SampleConfig(), torch.tensor([0.0, 0.0, spoilt]))[0].ids == [-1]


def test_draws_follow_the_probabilities() -> None:
    """Would catch a draw from something else than the softmax: 10,000 draws are within four standard deviations."""
    logits = torch.tensor([0.0, 1.0, 2.0])
    expected = logits.softmax(0)
    chooser = Chooser(SampleConfig(temperature=1.0), 3, NOTHING)
    for draws in (
        [chooser.take(logits) for _ in range(10_000)],
        [each.ids[0] for each in kernels_of(3).take(SampleConfig(temperature=1.0, seed=1), logits, count=10_000)],
    ):
        found = torch.bincount(torch.tensor(draws), minlength=3) / 10_000
        assert ((found - expected).abs() < 4 * (expected * (1 - expected) / 10_000).sqrt()).all()
