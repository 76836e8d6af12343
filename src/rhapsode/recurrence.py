"""The one hand-written kernel: h_t = phi(x_t + W h_{t-1}) for all t, and its gradient.

    forward    h_t = phi(x_t + W h_{t-1}),                      t = 1 .. T, h_0 given (zero if None)
    backward   g_t = phi'(h_t) * (dL/dh_t + W^T g_{t+1}),       t = T .. 1, g_{T+1} = 0
               dL/dx_t = g_t      dL/dW = sum_t g_t h_{t-1}^T    dL/dh_0 = W^T g_1

B batch, T tokens in this call, H hidden. Everything is time-major, (T, B, H), so that each step reads and writes one
contiguous slab of a buffer allocated once, and dL/dW is a single matrix product after the loop instead of T small
ones. phi' is a function of h itself for both activations, so the pre-activations are never stored. Backpropagation
through time as in Werbos, "Backpropagation through time: what it does and how to do it", 1990.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

ACTIVATIONS = ("relu", "tanh")


def recurrence(x: Tensor, weight: Tensor, initial: Tensor | None = None, activation: str = "relu") -> Tensor:
    """All hidden states of an Elman recurrence whose input projections are already made.

    x (T, B, H): input projections, biases included; weight (H, H); initial (B, H), or None for zero.
    Returns the hidden states (T, B, H). Differentiable once in x, weight and initial.
    Raises ValueError for an activation other than 'relu' and 'tanh'.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    return _Recurrence.apply(x.contiguous(), weight, initial, activation)


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, initial: Tensor | None, activation: str) -> Tensor:
        activate = torch.relu_ if activation == "relu" else torch.tanh_
        transposed = weight.t()
        hidden = torch.empty_like(x)
        steps = hidden.unbind(0)  # views of the buffer; one call instead of T slicings
        inputs = x.unbind(0)
        if initial is None:
            activate(steps[0].copy_(inputs[0]))
        else:
            activate(torch.addmm(inputs[0], initial, transposed, out=steps[0]))
        for t in range(1, len(steps)):
            activate(torch.addmm(inputs[t], steps[t - 1], transposed, out=steps[t]))
        ctx.save_for_backward(hidden, weight, initial)
        ctx.activation = activation
        return hidden

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, hidden_grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        hidden, weight, initial = ctx.saved_tensors
        through_activation = (
            torch.ops.aten.threshold_backward.grad_input
            if ctx.activation == "relu"
            else torch.ops.aten.tanh_backward.grad_input
        )
        # threshold_backward passes the gradient where h > 0, which for relu is where its input was > 0.
        threshold = (0.0,) if ctx.activation == "relu" else ()
        incoming = hidden_grad.contiguous().unbind(0)
        states = hidden.unbind(0)
        grad = torch.empty_like(hidden)
        steps = grad.unbind(0)
        last = len(steps) - 1
        through_activation(incoming[last], states[last], *threshold, grad_input=steps[last])
        for t in range(last - 1, -1, -1):
            g = torch.addmm(incoming[t], steps[t + 1], weight, out=steps[t])
            through_activation(g, states[t], *threshold, grad_input=g)

        weight_grad = initial_grad = None
        if ctx.needs_input_grad[1]:
            weight_grad = grad[1:].flatten(0, 1).t() @ hidden[:-1].flatten(0, 1)
            if initial is not None:
                weight_grad.addmm_(grad[0].t(), initial)
        if initial is not None and ctx.needs_input_grad[2]:
            initial_grad = grad[0] @ weight
        return grad, weight_grad, initial_grad, None
