"""Inspection: what is told of a model must be what the model does."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from rhapsode.inspection import Reading, as_text, draw_reading, flops_per_token, next_token_tables, read
from rhapsode.inspection.cost import parameters_by_part
from rhapsode.inspection.reading import MOST_CELLS
from rhapsode.kernels.attention import attention_weights
from rhapsode.model import ModelConfig, SelfAttention, build_model
from rhapsode.progress import LiteralConsole
from rhapsode.terminal import literal
from rhapsode.tokenizer import train_tokenizer

CONFIGS = [
    ModelConfig(vocab_size=23, embed_dim=5, hidden_dim=7, key_dim=3, value_dim=4),
    ModelConfig(
        vocab_size=29, kind="stacked", embed_dim=6, hidden_dim=7, key_dim=3, value_dim=5, num_layers=3, num_heads=2,
        gate=True, feed_forward=2,
    ),
    ModelConfig(vocab_size=31, kind="stacked", embed_dim=6, hidden_dim=9, num_layers=2, attention="last",
                feed_forward=1),
    ModelConfig(vocab_size=31, kind="stacked", embed_dim=6, hidden_dim=9, attention="none", tie_embeddings=True),
    ModelConfig(vocab_size=31, kind="stacked", embed_dim=6, hidden_dim=9, cell="gated", gate=True, copy_dim=4),
]  # fmt: skip


@pytest.mark.parametrize("config", CONFIGS, ids=["plain", "all", "last", "none", "copying"])
def test_flops_are_those_of_the_matrices_and_of_attention(config: ModelConfig) -> None:
    """Oracles: each linear layer is applied once a token; PyTorch's counter tells what attention's products cost."""
    model, seen = build_model(config, seed=0), 11
    layers = sum(2 * part.weight.numel() for part in model.modules() if isinstance(part, torch.nn.Linear))
    attention = 0
    for part in model.modules():
        if isinstance(part, SelfAttention):
            q, k, v = part.project(torch.randn(1, seen, part.query_transform.in_features))
            with FlopCounterMode(display=False) as counter:
                (q[:, :, -1:] @ k.mT).softmax(-1) @ v
            attention += counter.get_total_flops()
    copying = 2 * config.copy_dim * seen  # a query and the keys; what the weights are summed for is no product
    assert flops_per_token(config, seen) == layers + attention + copying


@pytest.mark.parametrize("config", CONFIGS, ids=["plain", "all", "last", "none", "copying"])
def test_every_parameter_belongs_to_one_part(config: ModelConfig) -> None:
    model = build_model(config, seed=0)
    parts = parameters_by_part(model)
    assert sum(parts.values()) == sum(p.numel() for p in model.parameters())
    assert (parts["head"] == 0) == config.tie_embeddings
    assert (parts["feed-forward"] > 0) == (config.feed_forward > 0)
    assert (parts["copy head"] > 0) == (config.copy_dim > 0)


def test_the_weights_shown_are_the_weights_used() -> None:
    """Applied to the values, they must give the attention's own output; a wrong scale or mask would not."""
    torch.manual_seed(0)
    attention = SelfAttention(6, 3, 5, num_heads=2)
    y = torch.randn(2, 7, 6)
    q, k, v = attention.project(y)
    shown = attention_weights(q, k)
    torch.testing.assert_close(shown.sum(-1), torch.ones(2, 2, 7))
    torch.testing.assert_close(attention.output_transform((shown @ v).transpose(1, 2).flatten(2)), attention(y)[0])


def test_a_reading_agrees_with_the_model() -> None:
    """Log-probabilities belong to the token that came; off by one place they would not."""
    tokenizer = train_tokenizer(["a cat sat on a mat and a cat ate"], "characters", 40)
    model = build_model(ModelConfig(vocab_size=tokenizer.vocab_size, embed_dim=5, hidden_dim=6), seed=1)
    reading = read(model, tokenizer, "cats", top=3)
    ids = [tokenizer.eos_id, *tokenizer.encode("cats")]
    expected = model(torch.tensor([ids]))[0][0].log_softmax(-1)
    for i, id in enumerate(ids[1:]):
        assert reading.log_probabilities[i] == pytest.approx(expected[i, id].item(), abs=1e-6)
    assert reading.tokens == ["</s>", "c", "a", "t", "s"]
    assert len(reading.expected) == 5
    best = expected[-1].max().item()
    assert reading.expected[-1][0][1] == pytest.approx(math.exp(best), abs=1e-6)
    assert list(reading.attention) == ["attention"]
    _, y = model.rnn(model.embeddings(torch.tensor([ids])))
    torch.testing.assert_close(reading.attention["attention"], attention_weights(*model.attention.project(y)[:2])[0])
    with pytest.raises(ValueError, match="must not be empty"):
        read(model, tokenizer, "")


def test_the_map_in_characters_is_darkest_where_the_weight_is_largest() -> None:
    text = as_text(["a", "bcd"], torch.tensor([[1.0, 0.0], [0.2, 0.8]]))
    assert text.splitlines() == ["  a █", "bcd ░█"]


@pytest.mark.parametrize("length", [MOST_CELLS - 1, MOST_CELLS, 600])
def test_a_long_text_is_read_as_in_one_call(length: int) -> None:
    """Oracle: the model and all weights in one call, summed by group. Would catch a piece that is read from a fresh
    state, keys that are left out, and a mean over a last group as if it were full.
    """
    tokenizer = train_tokenizer(["a cat sat on a mat and a cat ate"], "characters", 40)
    config = ModelConfig(
        tokenizer.vocab_size, "stacked", embed_dim=6, hidden_dim=7, key_dim=3, value_dim=5, num_layers=2, num_heads=2
    )
    model = build_model(config, seed=1)
    text = ("a cat sat on a mat " * 60)[:length]
    reading = read(model, tokenizer, text, top=3)
    ids = torch.tensor([[tokenizer.eos_id, *tokenizer.encode(text)]])
    assert len(reading.tokens) == ids.shape[1] == length + 1
    seen: dict[str, torch.Tensor] = {}
    for i, block in enumerate(model.blocks):
        block.attention.register_forward_pre_hook(
            lambda part, inputs, i=i: seen.update(
                {f"blocks.{i}.attention": attention_weights(*part.project(inputs[0])[:2])[0]}
            )
        )
    with torch.inference_mode():
        expected = model(ids)[0][0].log_softmax(-1)
    came = expected[:-1].gather(1, ids[0, 1:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(reading.log_probabilities), came, rtol=1e-4, atol=1e-4)
    assert len(reading.expected) == length + 1
    group = -(-(length + 1) // MOST_CELLS)
    assert reading.group == group
    assert reading.attention.keys() == seen.keys()
    assert len(seen) == 2
    for name, full in seen.items():
        cells = torch.arange(length + 1) // group
        member = torch.nn.functional.one_hot(cells).float()  # (T, M)
        by_group = member.T @ full @ member / member.sum(0)[:, None]
        torch.testing.assert_close(reading.attention[name], by_group, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(reading.attention[name].sum(-1), torch.ones(2, len(reading.labels)))
    assert reading.labels == (
        reading.tokens if group == 1 else [f"{i + 1:,} {reading.tokens[i]}" for i in range(0, length + 1, group)]
    )


class LargestTensor(TorchDispatchMode):
    """Notes how many elements the largest tensor has that is made."""

    elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else (result,):
            if isinstance(each, torch.Tensor):
                self.elements = max(self.elements, each.numel())
        return result


def test_a_long_text_takes_memory_by_its_length_alone(tmp_path: Path) -> None:
    """Would catch weights of all tokens at once (100 million), and a picture that grows with the text."""
    tokenizer = train_tokenizer(["a cat sat on a mat and a cat ate"], "characters", 40)
    model = build_model(ModelConfig(tokenizer.vocab_size, embed_dim=4, hidden_dim=4, key_dim=4, value_dim=4), seed=1)
    with LargestTensor() as seen:
        reading = read(model, tokenizer, "a cat " * 1667, top=2)
    assert seen.elements < 600 * 10_003
    assert reading.attention["attention"].numel() <= MOST_CELLS**2
    from matplotlib.image import imread

    short = read(model, tokenizer, "a cat " * (MOST_CELLS // 6), top=2)
    sizes = [[imread(file).shape for file in draw_reading(each, tmp_path)] for each in (short, reading)]
    for short_size, long_size in zip(*sizes, strict=True):
        assert max(long_size[:2]) <= 1.1 * max(short_size[:2])
        assert max(long_size[:2]) <= 3_000  # 200 MB of memory while it is drawn


NASTY = ["[v2]", "[/x]", ":cat:", "$$", "a$b^$", "\x1b[31m", "&<b>", "`|`", "\u202e", "tab\there"]


def test_tokens_are_shown_as_they_are(tmp_path: Path) -> None:
    """Would catch a token that vanishes as markup, becomes an emoji, colours the terminal, or breaks a picture."""
    tokens = [*NASTY, "end"]
    nothing = torch.full((1, len(tokens), len(tokens)), 1 / len(tokens))
    expected = [[(token, 0.6), (tokens[i - 1], 0.3)] for i, token in enumerate(tokens)]
    reading = Reading(tokens, 1, {"attention": nothing}, [-1.0] * len(NASTY), expected)
    (table,) = next_token_tables(reading)
    with (tmp_path / "out.txt").open("w+", encoding="utf-8") as file:
        LiteralConsole(file=file, width=120, force_terminal=True, no_color=True).print(table)
        file.seek(0)
        shown = file.read()
    for token in NASTY:
        assert f" {literal(token)} " in shown
    assert "\x1b[31m" not in shown
    for file in draw_reading(reading, tmp_path):
        assert file.stat().st_size > 1000


def test_a_long_table_comes_in_parts() -> None:
    """Would catch the place at a boundary left out or twice, and the last place compared with nothing."""
    count = 2_345
    tokens = [str(i) for i in range(count)]
    expected = [[(str(i + 1), 1.0)] for i in range(count)]
    reading = Reading(tokens, 19, {}, [0.0] * (count - 1), expected)
    tables = list(next_token_tables(reading))
    assert [table.row_count for table in tables] == [1000, 1000, 345]
    assert "positions 2,001 to 2,345 of 2,345" in str(tables[-1].title)
    places = [cell for table in tables for cell in table.columns[0].cells]
    assert places == tokens
