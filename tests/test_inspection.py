"""Inspection: what is told of a model must be what the model does."""

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from rhapsode.inspection import as_text, flops_per_token, read
from rhapsode.inspection.cost import parameters_by_part
from rhapsode.inspection.reading import weights
from rhapsode.model import ModelConfig, SelfAttention, build_model
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
]  # fmt: skip


@pytest.mark.parametrize("config", CONFIGS, ids=["plain", "all", "last", "none"])
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
    assert flops_per_token(config, seen) == layers + attention


@pytest.mark.parametrize("config", CONFIGS, ids=["plain", "all", "last", "none"])
def test_every_parameter_belongs_to_one_part(config: ModelConfig) -> None:
    model = build_model(config, seed=0)
    parts = parameters_by_part(model)
    assert sum(parts.values()) == sum(p.numel() for p in model.parameters())
    assert (parts["head"] == 0) == config.tie_embeddings
    assert (parts["feed-forward"] > 0) == (config.feed_forward > 0)


def test_the_weights_shown_are_the_weights_used() -> None:
    """Applied to the values, they must give the attention's own output; a wrong scale or mask would not."""
    torch.manual_seed(0)
    attention = SelfAttention(6, 3, 5, num_heads=2)
    y = torch.randn(2, 7, 6)
    q, k, v = attention.project(y)
    shown = weights(q, k)
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
    torch.testing.assert_close(reading.attention["attention"], weights(*model.attention.project(y)[:2])[0])
    with pytest.raises(ValueError, match="must not be empty"):
        read(model, tokenizer, "")


def test_the_map_in_characters_is_darkest_where_the_weight_is_largest() -> None:
    text = as_text(["a", "bcd"], torch.tensor([[1.0, 0.0], [0.2, 0.8]]))
    assert text.splitlines() == ["  a █", "bcd ░█"]
