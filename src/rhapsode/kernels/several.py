"""Several models of one shape side by side: their recurrences as one, a model being one more dimension of each product.

    with models_at_once():
        losses = torch.vmap(loss_of_one)(weights, tokens, targets)      # weights (K, ...), tokens and targets (K, B, T)

What a model is made of is vectorised by PyTorch, from the plain forms of the kernels; the recurrences have forms of
their own here, so that a step is one batched product for all the models. Windows begin with an empty state.

K models, T tokens, B rows of a batch, H hidden.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rhapsode.kernels.forms import form
from rhapsode.kernels.gated import gated_recurrence

_active = False


@contextmanager
def models_at_once() -> Iterator[None]:
    """Within the block, models are called under `torch.vmap`, and their kernels have forms that it can vectorise."""
    global _active
    outer, _active = _active, True
    try:
        with form("plain"):
            yield
    finally:
        _active = outer


def are_models_at_once() -> bool:
    """Whether models are called under `torch.vmap`."""
    return _active


def recurrences(x: Tensor, weight: Tensor, initial: Tensor | None, activation: str) -> Tensor:
    """As `recurrence`, of each of the models that `torch.vmap` goes over; ValueError for a state before the window."""
    _check_empty(initial)
    return _Several.apply(x, weight, activation)


def gated_recurrences(x: Tensor, initial: Tensor | None) -> Tensor:
    """As `gated_recurrence`, of each of the models that `torch.vmap` goes over; ValueError as above."""
    _check_empty(initial)
    return _SeveralGated.apply(x)


def _check_empty(initial: Tensor | None) -> None:
    if initial is not None:
        raise ValueError("models side by side begin each window with an empty state")


class _Several(torch.autograd.Function):
    """Stands for all the models' recurrences; outside of `torch.vmap`, for one."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, activation: str) -> Tensor:
        return _Stacked.apply(x[:, None], weight[None], activation)[:, 0]

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept: `_Stacked` has the gradient."""

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, weight: Tensor, activation: str) -> tuple[Tensor, int]:
        return _Stacked.apply(x.movedim(in_dims[0], 1), weight.movedim(in_dims[1], 0), activation), 1


class _SeveralGated(torch.autograd.Function):
    """Entries meet no others, so models are as rows of a batch."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        with form("fast"):
            return gated_recurrence(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept: the recurrence itself has the gradient."""

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor) -> tuple[Tensor, int]:
        rows = x.movedim(in_dims[0], 1)  # (T, K, B, 2 H)
        with form("fast"):
            h = gated_recurrence(rows.flatten(1, 2), overwrite=True)
        return h.unflatten(1, rows.shape[1:3]), 1


class _Stacked(torch.autograd.Function):
    """x (T, K, B, H) and weights (K, H, H) -> hidden states (T, K, B, H); kernels/recurrence.py has the equations."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, activation: str) -> Tensor:
        activate = torch.relu_ if activation == "relu" else torch.tanh_
        hidden, transposed = x.detach().clone(memory_format=torch.contiguous_format), weight.mT.contiguous()
        previous: Tensor | None = None
        for h in hidden.unbind(0):
            activate(h if previous is None else h.baddbmm_(previous, transposed))
            previous = h
        ctx.save_for_backward(hidden, weight)
        ctx.activation = activation
        return hidden

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, hidden_grad: Tensor) -> tuple[Tensor, Tensor, None]:
        hidden, weight = ctx.saved_tensors
        slope = hidden.sign() if ctx.activation == "relu" else 1 - hidden.square()
        grad = hidden_grad.clone(memory_format=torch.contiguous_format)
        following: Tensor | None = None
        for g, s in zip(reversed(grad.unbind(0)), reversed(slope.unbind(0)), strict=True):
            if following is not None:
                g.baddbmm_(following, weight)
            following = g.mul_(s)
        after, before = (part.transpose(0, 1).flatten(1, 2) for part in (grad[1:], hidden[:-1]))  # (K, (T - 1) B, H)
        return grad, after.mT @ before, None
