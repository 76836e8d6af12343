"""The loops over time of recurrence.py and gated.py, each in one launch, in Triton; imported only where that is.

A GPU takes microseconds to start an operation, and a loop of T steps starts two or three a step. Here a program takes a
few rows of the batch through all steps; rows do not meet, so that no program waits for another. For the Elman
recurrence it reads the weights once and keeps them on the chip; the gated one has none. Each step asks for the next
step's numbers before it computes. The products over all steps at once stay outside.

The Elman recurrence is there twice. `_row_*`: one row a program, its weights in registers, products one by one; as soon
as each multiprocessor has its row, nothing is faster. `_elman_*`: ROWS rows a program on tensor cores, for which the
weights lie in shared memory too; a step takes longer, and many rows take no longer than few.

B rows, T tokens in this call, H hidden, M models side by side; all tensors time-major and contiguous. Blocks are powers
of two wide, as Triton wants them: what lies beyond B and H is read as 0, stays 0, and is never written.
"""

# mypy: disable-error-code="no-untyped-def"

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from rhapsode.kernels.recurrence_forms import precision_of

ROWS = 16  # of the batch that a program takes: the fewest for which tensor cores are used
ENTRIES = 128  # of a step (B, H) that a program of the gated recurrence takes
WIDE = 128  # from this width on the weights need the registers of eight warps, below it those of four
WIDEST_ROW = 128  # of which a program holds the weights in registers
WIDEST_FASTER = {torch.bfloat16: 64}  # beyond, products of 16 bits on tensor cores are faster
WEIGHTS_OF_A_THREAD = 128  # half as many take twice the time, since more warps wait for each other
ENTRIES_OF_A_PROCESSOR = 512  # of a step, up to which a row a program is faster, on an H200: docs/kernels.md


def elman_states(
    states: Tensor, weight: Tensor, initial: Tensor | None, activation: str, by_rows: bool | None = None
) -> None:
    """h_t in the place of x_t: states (T, B, H), weight (H, H), initial (B, H) or None for zero.

    Of M models side by side: (T, M, B, H), (M, H, H), (M, B, H). by_rows: a row a program, or ROWS; None: the faster.
    """
    began = None if initial is None else initial.contiguous()
    with torch.cuda.device_of(states):
        if _takes_rows(states) if by_rows is None else by_rows:
            transposed = weight.mT.contiguous()  # so that neighbours in memory are neighbours in a row of threads
            arguments = (states, transposed, began, *_sizes(states))
            _row_states[_programs(states, 1)](*arguments, **_of_a_row(states, activation))
        else:
            arguments = (states, weight.contiguous(), began, *_sizes(states))
            _elman_states[_programs(states, ROWS)](*arguments, **_of_a_block(states, activation))


def elman_deltas(grad: Tensor, hidden: Tensor, weight: Tensor, activation: str, by_rows: bool | None = None) -> None:
    """g_t in the place of dL/dh_t: grad and hidden (T, B, H), weight (H, H); or (T, M, B, H) and (M, H, H)."""
    arguments = (grad[-1], hidden[-1], weight.contiguous(), *_sizes(grad))
    with torch.cuda.device_of(grad):
        if _takes_rows(grad) if by_rows is None else by_rows:
            _row_deltas[_programs(grad, 1)](*arguments, **_of_a_row(grad, activation))
        else:
            _elman_deltas[_programs(grad, ROWS)](*arguments, **_of_a_block(grad, activation))


def gated_states(x: Tensor, initial: Tensor | None) -> Tensor:
    """Hidden states (T, B, H) of x (T, B, 2 H), s and c side by side; a_t is then in the place of s_t."""
    T, B, H = x.shape[0], x.shape[1], x.shape[2] // 2
    hidden = x.new_empty(T, B, H)
    began = None if initial is None else initial.contiguous()
    with torch.cuda.device_of(x):
        _gated_states[(triton.cdiv(B * H, ENTRIES),)](x, began, hidden, *_sizes(hidden), _sums(x), ENTRIES)
    return hidden


def gated_deltas(x: Tensor, hidden: Tensor, hidden_grad: Tensor) -> tuple[Tensor, Tensor]:
    """dL/dx (T, B, 2 H) and dL/dh_0 (B, H): x (T, B, 2 H) are a and c side by side, the other two (T, B, H)."""
    hidden_grad, grad, carried = hidden_grad.contiguous(), torch.empty_like(x), torch.empty_like(hidden[0])
    steps = (x[-1], hidden[-1], hidden_grad[-1], grad[-1])
    with torch.cuda.device_of(x):
        grid = (triton.cdiv(carried.numel(), ENTRIES),)
        _gated_deltas[grid](*steps, carried, *_sizes(hidden), _sums(x), ENTRIES)
    return grad, carried


def width_of(hidden_dim: int) -> int:
    """The power of two that a block of H entries is wide: at least 16, the least that tensor cores add over."""
    return max(16, int(triton.next_power_of_2(hidden_dim)))


def warps_of(width: int) -> int:
    """How many warps a program of the Elman recurrence has."""
    return 8 if width >= WIDE else 4


def warps_of_a_row(width: int) -> int:
    """How many warps a program has that takes one row."""
    return max(1, width * width // (32 * WEIGHTS_OF_A_THREAD))


def _takes_rows(states: Tensor) -> bool:
    """Whether a row a program is the faster way, and possible."""
    width = width_of(states.shape[-1])
    if width > WIDEST_FASTER.get(states.dtype, WIDEST_ROW) or not states.is_cuda:
        return False
    processors = torch.cuda.get_device_properties(states.device).multi_processor_count
    return states.shape[1:-1].numel() * width <= ENTRIES_OF_A_PROCESSOR * processors


def _programs(states: Tensor, rows: int) -> tuple[int, int]:
    """How many programs take so many rows each, and of how many models."""
    return triton.cdiv(states.shape[-2], rows), states.shape[1] if states.ndim == 4 else 1


def _sizes(states: Tensor) -> tuple[int, int, int]:
    return states.shape[0], states.shape[-2], states.shape[-1]


def _sums(x: Tensor) -> Any:
    return tl.float64 if x.dtype == torch.float64 else tl.float32


def _of_a_row(states: Tensor, activation: str) -> dict[str, Any]:
    width = width_of(states.shape[-1])
    return {"relu": activation == "relu", "sums": _sums(states), "width": width, "num_warps": warps_of_a_row(width)}


def _of_a_block(states: Tensor, activation: str) -> dict[str, Any]:
    settings = _of_a_row(states, activation)
    precision = precision_of(states.dtype) if states.dtype == torch.float32 else "ieee"
    return {**settings, "precision": precision, "rows": ROWS, "num_warps": warps_of(settings["width"])}


@triton.jit(do_not_specialize=["T", "B"])
def _elman_states(
    states,
    weight,
    initial,
    T,
    B,
    H,
    relu: tl.constexpr,
    precision: tl.constexpr,
    sums: tl.constexpr,
    rows: tl.constexpr,
    width: tl.constexpr,
):
    row = (tl.program_id(0) * rows + tl.arange(0, rows))[:, None]
    column = tl.arange(0, width)
    model, step = tl.program_id(1), tl.num_programs(1) * B * H
    here = (model * B + row) * H + column[None, :]
    inside = (row < B) & (column < H)[None, :]
    square = (column < H)[:, None] & (column < H)[None, :]
    transposed = tl.load(weight + model * H * H + column[None, :] * H + column[:, None], mask=square, other=0.0)
    h = tl.full((rows, width), 0.0, states.dtype.element_ty)
    if initial is not None:
        h = tl.load(initial + here, mask=inside, other=0.0)
    now = states + here
    x = tl.load(now, mask=inside, other=0.0)
    for t in range(T):
        next_x = tl.load(now + step, mask=inside & (t + 1 < T), other=0.0)
        total = tl.dot(h, transposed, acc=x.to(sums), input_precision=precision, out_dtype=sums)
        # What is not a number stays that. The other is tanh, to 1e-7 in float32: where exp overflows, it is 1.
        h = (tl.where(total <= 0, 0.0, total) if relu else 1 - 2 / (tl.exp(2 * total) + 1)).to(h.dtype)
        tl.store(now, h, mask=inside)
        now += step
        x = next_x


@triton.jit(do_not_specialize=["T", "B"])
def _elman_deltas(
    grad,  # of the last step, and so is hidden
    hidden,
    weight,
    T,
    B,
    H,
    relu: tl.constexpr,
    precision: tl.constexpr,
    sums: tl.constexpr,
    rows: tl.constexpr,
    width: tl.constexpr,
):
    row = (tl.program_id(0) * rows + tl.arange(0, rows))[:, None]
    column = tl.arange(0, width)
    model, step = tl.program_id(1), tl.num_programs(1) * B * H
    here = (model * B + row) * H + column[None, :]
    inside = (row < B) & (column < H)[None, :]
    square = (column < H)[:, None] & (column < H)[None, :]
    on_chip = tl.load(weight + model * H * H + column[:, None] * H + column[None, :], mask=square, other=0.0)
    now, state = grad + here, hidden + here
    g = tl.full((rows, width), 0.0, grad.dtype.element_ty)  # of the step behind
    direct = tl.load(now, mask=inside, other=0.0)
    h = tl.load(state, mask=inside, other=0.0).to(sums)
    for t in range(T):
        more = inside & (t + 1 < T)
        next_direct = tl.load(now - step, mask=more, other=0.0)
        next_h = tl.load(state - step, mask=more, other=0.0).to(sums)
        total = tl.dot(g, on_chip, acc=direct.to(sums), input_precision=precision, out_dtype=sums)
        g = (total * tl.where(h == 0, 0.0, 1.0) if relu else total * (1 - h * h)).to(g.dtype)
        tl.store(now, g, mask=inside)
        now -= step
        state -= step
        direct, h = next_direct, next_h


@triton.jit(do_not_specialize=["T", "B"])
def _row_states(
    states,
    transposed,
    initial,
    T,
    B,
    H,
    relu: tl.constexpr,
    sums: tl.constexpr,
    width: tl.constexpr,
):
    model, step = tl.program_id(1), tl.num_programs(1) * B * H
    column = tl.arange(0, width)
    inside = column < H
    square = inside[:, None] & inside[None, :]
    on_chip = tl.load(transposed + model * H * H + column[:, None] * H + column[None, :], mask=square, other=0.0)
    weights = on_chip.to(sums)
    here = (model * B + tl.program_id(0)) * H + column
    h = tl.full((width,), 0.0, states.dtype.element_ty)
    if initial is not None:
        h = tl.load(initial + here, mask=inside, other=0.0)
    now = states + here
    x = tl.load(now, mask=inside, other=0.0)
    for t in range(T):
        next_x = tl.load(now + step, mask=inside & (t + 1 < T), other=0.0)
        total = tl.sum(h.to(sums)[:, None] * weights, axis=0) + x.to(sums)
        h = (tl.where(total <= 0, 0.0, total) if relu else 1 - 2 / (tl.exp(2 * total) + 1)).to(h.dtype)
        tl.store(now, h, mask=inside)
        now += step
        x = next_x


@triton.jit(do_not_specialize=["T", "B"])
def _row_deltas(
    grad,  # of the last step, and so is hidden
    hidden,
    weight,
    T,
    B,
    H,
    relu: tl.constexpr,
    sums: tl.constexpr,
    width: tl.constexpr,
):
    model, step = tl.program_id(1), tl.num_programs(1) * B * H
    column = tl.arange(0, width)
    inside = column < H
    square = inside[:, None] & inside[None, :]
    on_chip = tl.load(weight + model * H * H + column[:, None] * H + column[None, :], mask=square, other=0.0)
    weights = on_chip.to(sums)
    here = (model * B + tl.program_id(0)) * H + column
    now, state = grad + here, hidden + here
    g = tl.full((width,), 0.0, grad.dtype.element_ty)  # of the step behind
    direct = tl.load(now, mask=inside, other=0.0)
    h = tl.load(state, mask=inside, other=0.0).to(sums)
    for t in range(T):
        more = inside & (t + 1 < T)
        next_direct = tl.load(now - step, mask=more, other=0.0)
        next_h = tl.load(state - step, mask=more, other=0.0).to(sums)
        total = tl.sum(g.to(sums)[:, None] * weights, axis=0) + direct.to(sums)
        g = (total * tl.where(h == 0, 0.0, 1.0) if relu else total * (1 - h * h)).to(g.dtype)
        tl.store(now, g, mask=inside)
        now -= step
        state -= step
        direct, h = next_direct, next_h


@triton.jit(do_not_specialize=["T", "B"])
def _gated_states(x, initial, hidden, T, B, H, sums: tl.constexpr, entries: tl.constexpr):
    entry = tl.program_id(0) * entries + tl.arange(0, entries)
    inside = entry < B * H
    keep = x + (entry // H) * 2 * H + entry % H
    now = hidden + entry
    h = tl.full((entries,), 0.0, sums)
    if initial is not None:
        h = tl.load(initial + entry, mask=inside, other=0.0).to(sums)
    s, c = tl.load(keep, mask=inside, other=0.0), tl.load(keep + H, mask=inside, other=0.0)
    for t in range(T):
        more = inside & (t + 1 < T)
        next_s = tl.load(keep + 2 * B * H, mask=more, other=0.0)
        next_c = tl.load(keep + 2 * B * H + H, mask=more, other=0.0)
        a = (1 / (1 + tl.exp(-s.to(sums)))).to(s.dtype).to(sums)  # rounded as the backward pass will read it
        h = (a * h + (1 - a) * c.to(sums)).to(s.dtype).to(sums)
        tl.store(keep, a, mask=inside)
        tl.store(now, h, mask=inside)
        keep += 2 * B * H
        now += B * H
        s, c = next_s, next_c


@triton.jit(do_not_specialize=["T", "B"])
def _gated_deltas(
    x,  # of the last step, and so are the next three
    hidden,
    hidden_grad,
    grad,
    carried,
    T,
    B,
    H,
    sums: tl.constexpr,
    entries: tl.constexpr,
):
    entry = tl.program_id(0) * entries + tl.arange(0, entries)
    inside = entry < B * H
    side = (entry // H) * 2 * H + entry % H
    keep, out = x + side, grad + side
    state, direct = hidden + entry, hidden_grad + entry
    behind = tl.full((entries,), 0.0, sums)  # a_{t+1} G_{t+1}
    a, c = tl.load(keep, mask=inside, other=0.0), tl.load(keep + H, mask=inside, other=0.0)
    h, g = tl.load(state, mask=inside, other=0.0), tl.load(direct, mask=inside, other=0.0)
    for t in range(T):
        keep -= 2 * B * H
        state -= B * H
        direct -= B * H
        more = inside & (t + 1 < T)
        next_a, next_c = tl.load(keep, mask=more, other=0.0), tl.load(keep + H, mask=more, other=0.0)
        next_h, next_g = tl.load(state, mask=more, other=0.0), tl.load(direct, mask=more, other=0.0)
        G = g.to(sums) + behind
        c_grad = (1 - a.to(sums)) * G
        tl.store(out, (h.to(sums) - c.to(sums)) * c_grad, mask=inside)
        tl.store(out + H, c_grad, mask=inside)
        out -= 2 * B * H
        behind = a.to(sums) * G
        a, c, h, g = next_a, next_c, next_h, next_g
    tl.store(carried + entry, behind, mask=inside)
