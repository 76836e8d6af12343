"""The algebra of linear maps in a row, against one after the other and against the model's own equations."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rhapsode.fold import Affine, fold, in_a_row, side_by_side, through
from rhapsode.model import ModelConfig, PlainModel, build_model

SIZES = {"embed_dim": 5, "hidden_dim": 7, "key_dim": 3, "value_dim": 4}


@pytest.mark.parametrize("rows", [3, 4, None], ids=["one after the other", "multiplied", "for any number"])
def test_linear_maps_in_a_row(rows: int | None) -> None:
    """Oracle: one applied after the other; a lost bias, or a product the wrong way round, would show."""
    torch.manual_seed(0)
    first, then = nn.Linear(4, 7, dtype=torch.float64), nn.Linear(7, 5, dtype=torch.float64)
    x = torch.randn(1, rows or 2, 4, dtype=torch.float64, requires_grad=True)
    parameters = (x, *first.parameters(), *then.parameters())
    maps = in_a_row(first, Affine(then.weight, then.bias), rows)
    assert len(maps) == (2 if rows == 3 else 1)
    expected, value = then(first(x)), through(maps, x)
    upstream = torch.randn_like(value)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(
        torch.autograd.grad(value, parameters, upstream), torch.autograd.grad(expected, parameters, upstream)
    )
    without = through(in_a_row(first, Affine(then.weight, None), rows), x)
    torch.testing.assert_close(without, F.linear(first(x), then.weight))


def test_side_by_side() -> None:
    """Would catch biases in another order than the weights."""
    layers = [nn.Linear(4, n) for n in (2, 5)]
    x = torch.randn(3, 4)
    torch.testing.assert_close(through([side_by_side(layers)], x), torch.cat([layer(x) for layer in layers], dim=-1))


@pytest.mark.parametrize("vocab_size", [9, 400], ids=["the table is projected", "the tokens are"])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_the_folded_model_is_the_model(vocab_size: int, activation: str) -> None:
    """Logits, states, cuts, loss and every gradient: the equations against what training computes."""
    model = build_model(ModelConfig(vocab_size=vocab_size, activation=activation, **SIZES), seed=1).double()
    assert isinstance(model, PlainModel)
    tokens = torch.randint(vocab_size, (3, 12), generator=torch.Generator().manual_seed(2))
    whole, after = model(tokens)
    for folded in (model.folded(), fold(model, rows=36), fold(model, rows=2)):
        with torch.no_grad():
            logits, state = folded(tokens[:, :5])
            rest, state = folded(tokens[:, 5:], state)
        torch.testing.assert_close(torch.cat((logits, rest), dim=1), whole, rtol=0, atol=1e-12)
        for name, tensor in after.tensors().items():
            torch.testing.assert_close(state.tensors()[name], tensor, rtol=0, atol=1e-12)
    parameters = list(model.parameters())
    loss, _ = model.loss(tokens[:, :-1], tokens[:, 1:])
    plain = F.cross_entropy(whole[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(loss, plain, rtol=1e-12, atol=0)
    for ours, theirs in zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(plain, parameters), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_a_stacked_model_is_its_own_fold() -> None:
    model = build_model(ModelConfig(vocab_size=9, kind="stacked", **SIZES), seed=0)
    assert model.folded() is model
