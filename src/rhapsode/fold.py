"""The algebra of linear maps that follow each other: the same model, in fewer products.

    W_2 (W_1 x + b_1) + b_2 = (W_2 W_1) x + (W_2 b_1 + b_2)

In the plain model, y_t = W_out h_t + b_out is read by nothing but the projections to queries, keys and values, and W_o
by nothing but the head; and what a token adds to the recurrence depends on the token alone, so that the whole table of
embeddings can be projected instead of every token. `fold` multiplies such maps together: under autograd, where each
gets its own gradient, for the tokens of one call; or once for all tokens to come, when a model writes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rhapsode.state import BlockState, State

if TYPE_CHECKING:
    from rhapsode.model import PlainModel


class Affine(NamedTuple):
    """A linear map: weight (out, in), bias (out,) or None."""

    weight: Tensor
    bias: Tensor | None


def side_by_side(layers: Sequence[nn.Linear]) -> Affine:
    """One map that gives what all the layers give, one behind the other in the last dimension."""
    return Affine(torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers]))


def in_a_row(first: nn.Linear, then: Affine, rows: int | None) -> tuple[Affine, ...]:
    """`first`, then `then`: as one map where that takes fewer multiplications for `rows` inputs, else as two.

    rows None: for any number of them, so that multiplying the two together costs nothing.
    """
    (wide, middle), narrow = then.weight.shape, first.in_features
    together, apart = wide * narrow, middle * narrow + wide * middle
    if rows is None or wide * middle * narrow + rows * together < rows * apart:
        moved = then.weight @ first.bias
        return (Affine(then.weight @ first.weight, moved if then.bias is None else moved + then.bias),)
    return (Affine(first.weight, first.bias), then)


def through(maps: Sequence[Affine], x: Tensor) -> Tensor:
    """x (..., in) through all the maps, one after the other."""
    for weight, bias in maps:
        x = F.linear(x, weight, bias)
    return x


@dataclass(frozen=True)
class Folded:
    """A plain model with its maps multiplied together; `model(tokens, state)` and `folded(tokens, state)` are equal.

    inputs: (V, H), what each token adds to the recurrence; None where the tokens are fewer than the table's rows.
    looks: from hidden states to queries, keys and values side by side. scores: from what attention gives to logits.
    """

    model: "PlainModel"
    inputs: Tensor | None
    looks: tuple[Affine, ...]
    scores: tuple[Affine, ...]

    def before_logits(self, tokens: Tensor, state: State | None) -> tuple[Tensor, Affine, State]:
        """tokens (B, T) -> (x (B, T, width), the map that makes the logits of x, the state after the tokens)."""
        model, block = self.model, state.blocks[0] if state else None
        ids = tokens.t()  # time-major, as the recurrence wants it
        x = model.rnn.cell.project(model.embeddings(ids)) if self.inputs is None else F.embedding(ids, self.inputs)
        h = model.rnn.cell.recur(x, block and block.hidden).transpose(0, 1)  # (B, T, H)
        sizes = [layer.out_features for layer in model.attention.transforms]
        q, k, v = map(model.attention.heads, through(self.looks, h.contiguous()).split(sizes, dim=-1))
        a, cache = model.attention.look(q, k, v, block and block.cache)
        *before, head = self.scores
        return through(before, a), head, State((BlockState(h[:, -1], cache),))

    def __call__(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """tokens (B, T), the state before them or None -> (logits (B, T, V), the state after them)."""
        x, head, state = self.before_logits(tokens, state)
        return F.linear(x, *head), state


def fold(model: "PlainModel", rows: int | None = None) -> Folded:
    """A plain model folded for one call of `rows` tokens; rows None: once, for all tokens to come.

    What it returns computes with the weights as they are now, and under autograd gives each its gradient.
    """
    inputs = None
    if rows is None or rows > model.embeddings.num_embeddings:
        inputs = model.rnn.cell.project(model.embeddings.weight)
    attention, head = model.attention, model.lm_head
    return Folded(
        model,
        inputs,
        in_a_row(model.rnn.out, side_by_side(attention.transforms), rows),
        in_a_row(attention.output_transform, Affine(head.weight, head.bias), rows),
    )
