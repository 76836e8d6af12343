"""The kernel of the gated recurrence, h_t = a_t h_{t-1} + (1 - a_t) c_t with a_t = sigmoid(s_t), and its gradient.

    forward    h_t = a_t h_{t-1} + (1 - a_t) c_t,               t = 1 .. T, h_0 given (zero if None)
    backward   G_t = dL/dh_t + a_{t+1} G_{t+1},                 t = T .. 1, G_{T+1} = 0
               dL/dc_t = (1 - a_t) G_t      dL/ds_t = (h_t - c_t) dL/dc_t      dL/dh_0 = a_1 G_1

since a_t (h_{t-1} - c_t) = h_t - c_t. B batch, T tokens in this call, H hidden; everything is time-major, (T, B, ...).
All products are entry by entry, so that what counts is how often memory is passed over: a step is one operation in
place, and the rest is done for a block of steps while they are in the cache. A scan in log-space or with cumulative
products would need no loop, but exp(-sum of logs) overflows where a gate forgets.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rhapsode.kernels.forms import side_by_side_models
from rhapsode.kernels.recurrence_forms import recurrence_form

BLOCK_ENTRIES = 2**15  # of the states, for each thread: five such arrays stay in a core's cache


def gated_recurrence(x: Tensor, initial: Tensor | None = None, overwrite: bool = False) -> Tensor:
    """All hidden states (T, B, H) of the recurrence: x (T, B, 2 H) are s and c side by side, initial (B, H) or None.

    Differentiable once in x and initial. overwrite=True uses x's memory: for a caller who made x and needs it no more.
    """
    kind = recurrence_form("gated", x.shape[-1] // 2, x.dtype, x.device).kind
    if kind == "plain":
        return gated_stepwise(x, initial)
    return _Gated.apply(x.contiguous() if overwrite else x.clone(memory_format=torch.contiguous_format), initial, kind)


def gated_stepwise(x: Tensor, initial: Tensor | None = None) -> Tensor:
    """The same, one step after the other as the equation says it: the plain form."""
    s, c = x.chunk(2, dim=-1)
    h = torch.zeros_like(c[0]) if initial is None else initial
    states = []
    for a_t, c_t in zip(s.sigmoid().unbind(0), c.unbind(0), strict=True):
        h = a_t * h + (1 - a_t) * c_t
        states.append(h)
    return torch.stack(states)


def gated_states(x: Tensor, initial: Tensor | None) -> Tensor:
    """Hidden states (T, B, H) of x (T, B, 2 H), s and c side by side; a_t is then in the place of s_t."""
    a, c = x.chunk(2, dim=-1)
    hidden = torch.empty(c.shape, dtype=x.dtype, device=x.device)
    previous = initial
    for now in _blocks(hidden):
        a[now].sigmoid_()
        torch.addcmul(c[now], a[now], c[now], value=-1, out=hidden[now])  # (1 - a) c
        for h, a_t in zip(hidden[now].unbind(0), a[now].unbind(0), strict=True):
            if previous is not None:
                h.addcmul_(a_t, previous)
            previous = h
    return hidden


def gated_deltas(x: Tensor, hidden: Tensor, hidden_grad: Tensor) -> tuple[Tensor, Tensor]:
    """dL/dx (T, B, 2 H) and dL/dh_0 (B, H): x (T, B, 2 H) are a and c side by side, the other two (T, B, H)."""
    a, c = x.chunk(2, dim=-1)
    grad = torch.empty((*hidden.shape[:2], 2 * hidden.shape[2]), dtype=hidden.dtype, device=hidden.device)
    s_grad, c_grad = grad.chunk(2, dim=-1)
    carried: Tensor | None = None  # a_{t+1} G_{t+1} of the first step of the block behind
    for now in reversed(_blocks(hidden)):
        keeps, total = a[now], c_grad[now]  # total becomes G, and then dL/dc
        following: tuple[Tensor, Tensor] | None = None
        for g, a_t, G in zip(*(reversed(part.unbind(0)) for part in (hidden_grad[now], keeps, total)), strict=True):
            if following is not None:
                torch.addcmul(g, *following, out=G)
            elif carried is not None:
                torch.add(g, carried, out=G)
            else:
                G.copy_(g)
            following = a_t, G
        carried = keeps[0] * total[0]
        total.addcmul_(keeps, total, value=-1)
        torch.sub(hidden[now], c[now], out=s_grad[now]).mul_(total)
    assert carried is not None  # T >= 1
    return grad, carried


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, initial: Tensor | None, kind: str) -> Tensor:
        if kind == "triton":
            from rhapsode.kernels import one_launch

            return one_launch.gated_states(x.detach(), initial)
        return gated_states(x.detach(), initial)  # detached: see kernels/recurrence.py

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, initial, ctx.kind = inputs
        ctx.began = initial is not None
        ctx.save_for_backward(x.detach(), output)  # a is where s was

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, hidden_grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, hidden = ctx.saved_tensors
        if ctx.kind == "triton":
            from rhapsode.kernels import one_launch

            grad, carried = one_launch.gated_deltas(x, hidden, hidden_grad)
        else:
            grad, carried = gated_deltas(x, hidden, hidden_grad)
        return grad, carried if ctx.began else None, None

    @staticmethod
    def vmap(
        info: Any, dims: tuple[int | None, ...], x: Tensor, initial: Tensor | None, kind: str
    ) -> tuple[Tensor, int]:
        """M models side by side are M B rows, since no row has weights."""
        models = info.batch_size
        began = None if initial is None else side_by_side_models(initial, dims[1], 0, models).flatten(0, 1)
        hidden = _Gated.apply(side_by_side_models(x, dims[0], 1, models).flatten(1, 2), began, kind)
        return hidden.unflatten(1, (models, -1)), 1


def _blocks(hidden: Tensor) -> list[slice]:
    """The steps of a (T, B, H) tensor in blocks of BLOCK_ENTRIES a thread: PyTorch does not divide fewer."""
    entries = BLOCK_ENTRIES * torch.get_num_threads() if hidden.device.type == "cpu" else hidden.numel()
    steps = max(1, entries // hidden[0].numel())
    return [slice(begin, begin + steps) for begin in range(0, len(hidden), steps)]
