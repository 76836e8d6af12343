"""The kernel of the recurrence: h_t = phi(x_t + W h_{t-1}) for all t, and its gradient.

    forward    h_t = phi(x_t + W h_{t-1}),                      t = 1 .. T, h_0 given (zero if None)
    backward   g_t = phi'(h_t) * (dL/dh_t + W^T g_{t+1}),       t = T .. 1, g_{T+1} = 0
               dL/dx_t = g_t      dL/dW = sum_t g_t h_{t-1}^T    dL/dh_0 = W^T g_1

B batch, T tokens in this call, H hidden. Everything is time-major, (T, B, H), so that each step reads and writes one
contiguous slab of one buffer, and dL/dW is a single matrix product after the loop instead of T small
ones. phi' is a function of h itself for both activations: the pre-activations are never stored, and the slopes of all
steps are made at once. Backpropagation through time as in Werbos, "Backpropagation through time: what it does and
how to do it", 1990.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rhapsode.kernels.forms import side_by_side_models
from rhapsode.kernels.recurrence_forms import recurrence_form

ACTIVATIONS = ("relu", "tanh")
ALIGNED = 64  # bytes; where PyTorch's own tensors begin


def recurrence(
    x: Tensor, weight: Tensor, initial: Tensor | None = None, activation: str = "relu", overwrite: bool = False
) -> Tensor:
    """All hidden states of an Elman recurrence whose input projections are already made.

    x (T, B, H): input projections, biases included; weight (H, H); initial (B, H), or None for zero.
    Returns the hidden states (T, B, H). Differentiable once in x, weight and initial.
    overwrite=True puts the states where x was, if x is contiguous: for a caller who made x and needs it no more.
    Raises ValueError for an activation other than 'relu' and 'tanh'.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    kind = recurrence_form("elman", x.shape[-1], x.dtype, x.device, activation).kind
    if kind == "plain":
        return stepwise(x, weight, initial, activation)
    states = x.contiguous() if overwrite else x.clone(memory_format=torch.contiguous_format)
    return _Recurrence.apply(states, weight, initial, activation, kind)


def stepwise(x: Tensor, weight: Tensor, initial: Tensor | None = None, activation: str = "relu") -> Tensor:
    """The same, one step after the other as the equation says it: the plain form."""
    phi = torch.relu if activation == "relu" else torch.tanh
    h, states = initial, []
    for x_t in x.unbind(0):
        h = phi(x_t if h is None else x_t + h @ weight.t())
        states.append(h)
    return torch.stack(states)


def elman_states(hidden: Tensor, weight: Tensor, initial: Tensor | None, activation: str) -> None:
    """h_t in the place of x_t: a step is a product added to its slab, then the activation on it.

    hidden (T, B, H), weight (H, H), initial (B, H); of M models side by side (T, M, B, H), (M, H, H), (M, B, H).
    """
    activate = torch.relu_ if activation == "relu" else torch.tanh_
    # Few rows times a transposed view run at a third of the speed; for a single step the copy costs as much.
    transposed = weight.mT if len(hidden) == 1 else weight.mT.contiguous()
    if initial is not None and initial.device.type == "cpu" and initial.data_ptr() % ALIGNED:
        initial = initial.clone()  # on some processors the last digits of a product depend on where its factors begin
    previous = initial
    for h in hidden.unbind(0):  # x_t, and h_t from here on; one call instead of T slicings
        activate(h if previous is None else _add_product(h, previous, transposed))
        previous = h


def elman_deltas(grad: Tensor, hidden: Tensor, weight: Tensor, activation: str) -> None:
    """g_t in the place of dL/dh_t, of one model or of several as above."""
    slope = hidden.sign() if activation == "relu" else 1 - hidden.square()  # phi', for relu 0 or 1
    following = None
    for g, s in zip(reversed(grad.unbind(0)), reversed(slope.unbind(0)), strict=True):
        if following is not None:
            _add_product(g, following, weight)
        following = g.mul_(s)


class _Recurrence(torch.autograd.Function):
    """Both loops work in place on one buffer, in the form that `kind` names; torch.vmap puts models side by side."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, initial: Tensor | None, activation: str, kind: str) -> Tensor:
        # The states are a tensor of their own in x's memory: x marked as changed in place would, where x is a view of
        # a linear layer's output, cost two more copies in the backward pass.
        hidden = x.detach()
        if kind == "triton":
            from rhapsode.kernels import one_launch

            one_launch.elman_states(hidden, weight, initial, activation)
        else:
            elman_states(hidden, weight, initial, activation)
        return hidden

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, weight, initial, ctx.activation, ctx.kind = inputs
        ctx.save_for_backward(output, weight, initial)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, hidden_grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        hidden, weight, initial = ctx.saved_tensors
        grad = hidden_grad.clone(memory_format=torch.contiguous_format)
        if ctx.kind == "triton":
            from rhapsode.kernels import one_launch

            one_launch.elman_deltas(grad, hidden, weight, ctx.activation)
        else:
            elman_deltas(grad, hidden, weight, ctx.activation)

        weight_grad = initial_grad = None
        if ctx.needs_input_grad[1]:
            weight_grad = _over_all_steps(grad[1:], hidden[:-1])
            if initial is not None:
                _add_product(weight_grad, grad[0].mT, initial)
        if initial is not None and ctx.needs_input_grad[2]:
            initial_grad = grad[0] @ weight
        return grad, weight_grad, initial_grad, None, None

    @staticmethod
    def vmap(
        info: Any, dims: tuple[int | None, ...], x: Tensor, weight: Tensor, initial: Tensor | None, *others: str
    ) -> tuple[Tensor, int]:
        """M models side by side: x (T, M, B, H), weight (M, H, H), initial (M, B, H)."""
        models = info.batch_size
        began = None if initial is None else side_by_side_models(initial, dims[2], 0, models)
        inputs = side_by_side_models(x, dims[0], 1, models)
        return _Recurrence.apply(inputs, side_by_side_models(weight, dims[1], 0, models), began, *others), 1


def _add_product(to: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """to + left right, in place, of one model or of M."""
    return to.addmm_(left, right) if to.ndim == 2 else to.baddbmm_(left, right)


def _over_all_steps(grad: Tensor, before: Tensor) -> Tensor:
    """sum_t g_t h_{t-1}^T as one product, of one model or of M."""
    if grad.ndim == 3:
        return grad.flatten(0, 1).t() @ before.flatten(0, 1)
    return torch.einsum("tmbi,tmbj->mij", grad, before)
