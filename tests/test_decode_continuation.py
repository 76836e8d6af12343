"""Writing: the filters against those of transformers, decoding against re-reading, text against its tokens."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rhapsode.decode import SampleConfig, Written, write, write_texts
from rhapsode.decode.continuation import PIECE, choose_token
from rhapsode.decode.filters import keep_min_p, keep_top_k, keep_top_p, penalise_repetition
from rhapsode.model import LanguageModel, ModelConfig, build_model
from rhapsode.tokenizer import Tokenizer, train_tokenizer


def filtered(logits: torch.Tensor, config: SampleConfig, seen: torch.Tensor) -> torch.Tensor:
    """What `choose_token` draws from, as transformers' processors make it."""
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


def drawn_from(monkeypatch: pytest.MonkeyPatch, logits: torch.Tensor, config: SampleConfig, seen: torch.Tensor) -> Any:
    """The probabilities that `choose_token` hands to the draw."""
    found: list[torch.Tensor] = []
    multinomial = torch.multinomial

    def spy(probabilities: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        found.append(probabilities)
        return multinomial(probabilities, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "multinomial", spy)
        choose_token(logits, config, seen, torch.Generator())
    return found[0]


FILTERS: list[dict[str, float]] = [
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


@pytest.mark.parametrize("options", FILTERS, ids=str)
def test_filters_are_those_of_transformers(monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    """Would catch filters in another order, a cut one token off, and negative logits that a penalty favours."""
    config = SampleConfig(**{"temperature": 1.0, **options})
    for seed in range(5):
        random = torch.Generator().manual_seed(seed)
        logits = 3 * torch.randn(50, generator=random, dtype=torch.float64)
        seen = torch.randint(50, (12,), generator=random)
        found = drawn_from(monkeypatch, logits, config, seen)
        torch.testing.assert_close(found, filtered(logits, config, seen), rtol=1e-12, atol=1e-15)


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=20), st.floats(0.01, 1.0), st.integers(0, 25))
@settings(deadline=None)
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


def test_temperature_zero_and_nearly_zero() -> None:
    """Would catch a division by zero, an overflow, and a greedy choice that draws."""
    logits, nothing = torch.tensor([1.0, 900.0, 899.0]), torch.tensor([], dtype=torch.long)
    generator = torch.Generator()
    before = generator.get_state()
    assert choose_token(logits, SampleConfig(temperature=0), nothing, generator) == 1
    assert torch.equal(generator.get_state(), before)
    for temperature in (1e-310, 1e-30, 1e-3):
        assert choose_token(logits, SampleConfig(temperature=temperature), nothing, generator) == 1
    with pytest.raises(FloatingPointError, match="not finite"):
        choose_token(torch.tensor([0.0, torch.nan]), SampleConfig(), nothing, generator)


def test_draws_follow_the_probabilities() -> None:
    """Would catch a draw from something else than the softmax: 10,000 draws are within four standard deviations."""
    logits, nothing = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([], dtype=torch.long)
    generator = torch.Generator().manual_seed(0)
    config = SampleConfig(temperature=1.0)
    draws = torch.tensor([choose_token(logits, config, nothing, generator) for _ in range(10_000)])
    expected = logits.softmax(0)
    found = torch.bincount(draws, minlength=3) / 10_000
    assert ((found - expected).abs() < 4 * (expected * (1 - expected) / 10_000).sqrt()).all()


# Writing


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["once upon a time there was a dog. the dog was 🎉 happy."] * 3, "bpe", 280)


@pytest.fixture(scope="module", params=["plain", "stacked"])
def model(request: pytest.FixtureRequest, tokenizer: Tokenizer) -> LanguageModel:
    options = {"num_layers": 2, "attention": "last", "pair_embeddings": 60} if request.param == "stacked" else {}
    made = build_model(ModelConfig(tokenizer.vocab_size, request.param, 12, 14, 6, 10, **options), seed=0)
    with torch.no_grad():
        for p in made.parameters():
            p.mul_(1.5)
    return made.eval()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_writing_is_re_reading(model: LanguageModel, tokenizer: Tokenizer, temperature: float) -> None:
    """Would catch a state that is not kept, a cache that slips, and rows that swap when another one ends.

    The oracle reads the whole prefix again at each step, each sample by itself.
    """
    config = SampleConfig(max_tokens=25, temperature=temperature, repetition_penalty=1.2, top_k=40, seed=7)
    written: list[list[Written]] = [[], [], []]
    for step in write(model, tokenizer, "the dog", config, count=3):
        written[step.sample].append(step)
    for i, steps in enumerate(written):
        ids = tokenizer.encode("the dog")
        generator = torch.Generator().manual_seed(7 + i)
        for step in steps:
            with torch.no_grad():
                logits = model(torch.tensor([[tokenizer.eos_id, *ids]]))[0][0, -1]
            assert step.id == choose_token(logits, config, torch.tensor(ids), generator)
            assert step.log_probability == pytest.approx(float(logits.log_softmax(0)[step.id]), abs=1e-4)
            ids.append(step.id)
        assert steps[-1].ended == ("end of text" if ids[-1] == tokenizer.eos_id else "length")
        assert [step.ended for step in steps[:-1]] == [None] * (len(steps) - 1)
        assert len(steps) == 25 or ids[-1] == tokenizer.eos_id


def test_a_sample_depends_on_its_seed_alone(model: LanguageModel, tokenizer: Tokenizer) -> None:
    """Would catch samples that share a generator: then the third of three is none that can be had alone."""
    config = SampleConfig(max_tokens=30, temperature=1.5, seed=3)
    together = write_texts(model, tokenizer, "once", config, count=4)
    for i, text in enumerate(together):
        alone = SampleConfig(max_tokens=30, temperature=1.5, seed=3 + i)
        assert write_texts(model, tokenizer, "once", alone) == [text]
    assert len(set(together)) == 4
    assert len(set(write_texts(model, tokenizer, "once", SampleConfig(max_tokens=30, temperature=0), count=3))) == 1


def test_writing_draws_from_no_other_generator(model: LanguageModel, tokenizer: Tokenizer) -> None:
    """Would catch a training run that is another one because it showed samples."""
    before = torch.get_rng_state()
    write_texts(model, tokenizer, "", SampleConfig(max_tokens=5))
    assert torch.equal(torch.get_rng_state(), before)


class Parrot(LanguageModel):
    """A model that says the given ids, whatever it has read."""

    def __init__(self, ids: list[int], vocab_size: int, prompt_tokens: int) -> None:
        super().__init__()
        self.inner = build_model(ModelConfig(vocab_size, embed_dim=2, hidden_dim=2, key_dim=2, value_dim=2), 0)
        self.ids = ids
        self.read = -prompt_tokens

    def forward(self, tokens: torch.Tensor, state: Any = None) -> Any:
        logits, state = self.inner(tokens, state)
        self.read += tokens.shape[1]
        logits = torch.zeros_like(logits)
        logits[:, -1, self.ids[self.read]] = 100.0
        return logits, state


def said(tokenizer: Tokenizer, ids: list[int], stop: tuple[str, ...] = (), most: int = 0) -> list[Written]:
    config = SampleConfig(max_tokens=most or len(ids), temperature=0, stop=stop)
    return list(write(Parrot(ids, tokenizer.vocab_size, 1), tokenizer, "", config))


def pieces(steps: list[Written]) -> Iterator[str]:
    return (step.text for step in steps)


def test_stop_text_over_token_borders(tokenizer: Tokenizer) -> None:
    """Would catch a stop text that is found within one token only, or whose beginning is out already."""
    ids = tokenizer.encode("once upon a time there")
    for stop in ("upon", "n a t", "e", "once", " there", "time there"):
        steps = said(tokenizer, ids, (stop,))
        assert "".join(pieces(steps)) == "once upon a time there".partition(stop)[0]
        assert steps[-1].ended == "stop"
        grown = list(itertools.accumulate(pieces(steps)))
        assert all("once upon a time there".partition(stop)[0].startswith(text) for text in grown)
    steps = said(tokenizer, ids, ("time flies", "a tim", "pon a"))
    assert "".join(pieces(steps)) == "once u"


def test_what_only_began_like_a_stop_text_comes_out(tokenizer: Tokenizer) -> None:
    """Would catch text that is held back for ever, in the middle or at the end."""
    ids = tokenizer.encode("once upon a time there")
    steps = said(tokenizer, ids, ("a timer", "there was", "aab"))
    assert "".join(pieces(steps)) == "once upon a time there"
    assert steps[-1].ended == "length"
    assert said(tokenizer, [*ids, tokenizer.eos_id], ("there was",))[-1].ended == "end of text"


def test_characters_split_over_tokens_come_out_whole(tokenizer: Tokenizer) -> None:
    """Would catch a replacement character within an emoji whose bytes are several tokens."""
    text = "a 🐲 ☂ dragon"
    ids = tokenizer.encode(text)
    assert len(tokenizer.encode("🐲")) > 1
    steps = said(tokenizer, ids)
    assert "".join(pieces(steps)) == text
    assert not any("�" in piece for piece in pieces(steps))
    # Cut off within the dragon: what is left of it is one replacement character, at the very end.
    cut = said(tokenizer, ids, most=len(tokenizer.encode("a 🐲")) - 1)
    assert "".join(pieces(cut)) == "a �"
    assert said(tokenizer, ids, ("🐲",))[-1].ended == "stop"


def test_end_of_text_ends_and_is_no_text(tokenizer: Tokenizer) -> None:
    """Would catch "</s>" in the text, or writing that goes on after it."""
    steps = said(tokenizer, [*tokenizer.encode("a dog"), tokenizer.eos_id, *tokenizer.encode("more")])
    assert "".join(pieces(steps)) == "a dog"
    assert (steps[-1].id, steps[-1].ended) == (tokenizer.eos_id, "end of text")


def test_text_goes_on_from_the_prompt() -> None:
    """Would catch a lost space: unigram pieces spell one only where something stands before them."""
    tokenizer = train_tokenizer(["once upon a time there was a dog. the dog was happy."] * 5, "unigram", 40)
    whole = tokenizer.encode("the dog was")
    before = tokenizer.encode("the dog")
    assert whole[: len(before)] == before
    model = Parrot(whole[len(before) :], tokenizer.vocab_size, len(before) + 1)
    config = SampleConfig(max_tokens=len(whole) - len(before), temperature=0)
    assert write_texts(model, tokenizer, "the dog", config) == [" was"]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("max_tokens", 0, "max_tokens must be >= 1, got 0"),
        ("temperature", -1.0, "temperature must be >= 0, got -1.0"),
        ("temperature", float("nan"), "temperature must be >= 0, got nan"),
        ("top_k", -1, r"top_k must be >= 0 \(0 for all\), got -1"),
        ("top_p", 0.0, r"top_p must be in \(0, 1\], got 0.0"),
        ("min_p", 1.1, r"min_p must be in \[0, 1\], got 1.1"),
        ("repetition_penalty", 0.0, "repetition_penalty must be > 0, got 0.0"),
        ("seed", -1, r"seed must be from 0 to 2\^64 - 1, got -1"),
        ("stop", ("",), "stop must not be an empty text"),
    ],
)
def test_config_names_field_and_value(field: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SampleConfig(**{field: value})


def test_number_of_samples(model: LanguageModel, tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="number of samples must be >= 1, got 0"):
        next(write(model, tokenizer, "", count=0))


def test_a_long_prompt_has_logits_where_they_are_needed(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the prompt in one call. Would catch logits of another place, and T V of them at once."""
    config = ModelConfig(tokenizer.vocab_size, "stacked", embed_dim=8, hidden_dim=8, pair_embeddings=30, num_layers=2)
    model = build_model(config, seed=3).eval()
    prompt = "Once upon a time there was a cat. " * 90
    places: list[int] = []
    logits_of = model.logits

    def spy(x: torch.Tensor, *copies: Any) -> Any:
        places.append(x[..., 0].numel())
        return logits_of(x, *copies)

    monkeypatch.setattr(model, "logits", spy)
    written = next(write(model, tokenizer, prompt, SampleConfig(temperature=0)))
    assert len(tokenizer.encode(prompt)) > PIECE
    assert max(places) <= PIECE
    logits, _ = model(torch.tensor([[tokenizer.eos_id, *tokenizer.encode(prompt)]]))
    assert written.id == int(logits[0, -1].argmax())
    expected = logits[0, -1].double().log_softmax(-1)[written.id].item()
    assert written.log_probability == pytest.approx(expected, abs=1e-5)


def test_no_sample_is_drawn_with_a_seed_that_there_is_not(model: LanguageModel, tokenizer: Tokenizer) -> None:
    """Would catch sample 1 of the largest seed that is drawn with seed 0."""
    largest = SampleConfig(seed=2**64 - 1, max_tokens=2)
    assert len(write_texts(model, tokenizer, "once", largest)) == 1
    with pytest.raises(ValueError, match="2 of them starting at 18446744073709551615 go beyond that"):
        next(write(model, tokenizer, "once", largest, count=2))


def test_seeds_that_differ_by_2_to_the_32_write_different_texts(model: LanguageModel, tokenizer: Tokenizer) -> None:
    """Would catch a seed of which only the low 32 bits count."""
    config = SampleConfig(max_tokens=30)
    texts = {write_texts(model, tokenizer, "once", replace(config, seed=3 + high * 2**32))[0] for high in range(4)}
    assert len(texts) == 4
