"""Which form of a recurrence runs: its equation, a loop of PyTorch's operations, or one launch in Triton; and why."""

import warnings
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from rhapsode.kernels.forms import FORMS, TRITON_MISSING, chosen_form, has_triton

# The largest hidden size whose weights stay on the chip, by compute capability and precision of the products. Where the
# Elman recurrence is wider, and on other cards, a loop of products runs, which a CUDA graph can hold. With the width a
# power of two, width * (width + 16) numbers lie in shared memory, twice as many for tf32x3, of which a block may have
# 99 KB (_SMALL), 163 or 227 (_LARGE): tests/test_one_launch.py compiles the entries. Those of 9.0 were timed, on an
# H200: docs/kernels.md.
_LARGE = {"tf32x3": 128, "tf32": 128, "bfloat16": 256}
_SMALL = {"tf32x3": 64, "tf32": 128, "bfloat16": 128}
ON_CHIP: dict[tuple[int, int], dict[str, int]] = {
    (8, 0): _LARGE,  # A100
    (8, 6): _SMALL,  # RTX 30, A10, A40
    (8, 9): _SMALL,  # RTX 40, L4, L40
    (9, 0): _LARGE,  # H100, H200
    (10, 0): _LARGE,  # B200
    (12, 0): _SMALL,  # RTX 50
}
LARGEST_ERROR = {"tf32x3": 1e-4, "tf32": 2e-2, "bfloat16": 1e-1}  # in a trial, relative to the largest entry
_trials: dict[tuple[object, ...], str | None] = {}


class RecurrenceForm(NamedTuple):
    """kind: plain (the equation), fast (a loop of operations) or triton (one launch); reason: why this one."""

    kind: str
    reason: str


def recurrence_form(
    cell: str,
    hidden_dim: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cuda",
    activation: str = "relu",
) -> RecurrenceForm:
    """The form in which a recurrence of this size runs here: cell `elman` or `gated`, its hidden size and tensors.

    `recurrence` and `gated_recurrence` ask this at each call. Before Triton is the answer for the first time, its
    kernels are tried on a few rows; where they fail, a warning says why, and the loop of operations runs.
    """
    chosen, device = chosen_form(), torch.device(device)
    if chosen is not None and chosen != "vmap":
        return RecurrenceForm(chosen, "chosen by `with form(...)`")
    if device.type != "cuda":
        return RecurrenceForm(FORMS.get(device.type, "plain"), f"what every kernel is on {device.type}")
    precision = precision_of(dtype)
    against = _why_not(cell, hidden_dim, precision, device)
    if against is None:
        asked = (cell, hidden_dim, dtype, precision, device, activation)
        if asked not in _trials:
            if torch.cuda.is_current_stream_capturing():  # no time for a trial, which waits for its results
                return RecurrenceForm("fast", "the kernels had not been tried before the graph was captured")
            _trials[asked] = _why_it_failed(cell, hidden_dim, dtype, device, activation)
            if _trials[asked] is not None:
                warnings.warn(f"the {cell} recurrence runs without Triton: {_trials[asked]}", stacklevel=2)
        against = _trials[asked]
    if against is not None:
        return RecurrenceForm("fast", against)
    where = "weights on the chip" if cell == "elman" else "it has no weights"
    return RecurrenceForm("triton", f"one launch: hidden size {hidden_dim}, {where}")


def precision_of(dtype: torch.dtype) -> str:
    """How a kernel on tensor cores multiplies numbers of this type; float32 as PyTorch is told to multiply its own.

    tf32x3: three products of TF32 in place of one of float32, relative error about 1e-6; tf32: one, 1e-3.
    """
    if dtype == torch.float32:
        return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "tf32x3"
    return str(dtype).removeprefix("torch.")


@cache
def _why_not(cell: str, hidden_dim: int, precision: str, device: torch.device) -> str | None:
    """What speaks against Triton; None where nothing does."""
    if not has_triton():
        return TRITON_MISSING
    if torch.version.hip is not None:
        return "the kernels are for NVIDIA's cards"
    capability = torch.cuda.get_device_capability(device)
    name = ".".join(map(str, capability))
    if capability not in ON_CHIP:
        return f"ON_CHIP in kernels/recurrence_forms.py has no entry for cards of compute capability {name}"
    largest = ON_CHIP[capability].get(precision, 0)
    if cell == "elman" and hidden_dim > largest:
        if not largest:
            return f"there is no kernel for {precision}"
        return f"hidden size {hidden_dim} is above {largest}, the most that fits on a chip of {name} in {precision}"
    return None


def _why_it_failed(cell: str, hidden_dim: int, dtype: torch.dtype, device: torch.device, activation: str) -> str | None:
    """What went wrong when the kernels ran on two blocks of rows, one not full, for three steps; None if nothing did.

    The states are compared with the equation, the gradients with the loop of operations, both in float64.
    """
    try:
        return _difference(cell, hidden_dim, dtype, device, activation)
    except Exception as error:  # whatever a compiler, a driver or a missing tool may raise
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _difference(cell: str, hidden_dim: int, dtype: torch.dtype, device: torch.device, activation: str) -> str | None:
    from rhapsode.kernels import gated, one_launch, recurrence

    T, B, H = 3, one_launch.ROWS + 1, hidden_dim

    def numbers(*shape: int) -> Tensor:  # no generator is touched
        count = torch.Size(shape).numel()
        return torch.arange(count, device=device, dtype=torch.float64).mul_(2.4).cos_().view(shape).to(dtype)

    with torch.no_grad():
        initial, upstream = numbers(B, H), numbers(T, B, H)
        pairs: list[tuple[str, Tensor, Tensor]] = []
        if cell == "elman":
            weight = numbers(H, H) / H**0.5
            wanted = recurrence.stepwise(numbers(T, B, H).double(), weight.double(), initial.double(), activation)
            for by_rows in (False, True) if one_launch.width_of(H) <= one_launch.WIDEST_ROW else (False,):
                states, deltas, wanted_deltas = numbers(T, B, H), upstream.clone(), upstream.double()
                one_launch.elman_states(states, weight, initial, activation, by_rows)
                one_launch.elman_deltas(deltas, states, weight, activation, by_rows)
                recurrence.elman_deltas(wanted_deltas, states.double(), weight.double(), activation)
                pairs += [("states", states, wanted), ("gradients", deltas, wanted_deltas)]
        else:
            x = numbers(T, B, 2 * H)
            wanted = gated.gated_stepwise(x.double(), initial.double())
            states = one_launch.gated_states(x, initial)
            deltas, _ = one_launch.gated_deltas(x, states, upstream)
            wanted_deltas, _ = gated.gated_deltas(x.double(), states.double(), upstream.double())
            pairs = [("states", states, wanted), ("gradients", deltas, wanted_deltas)]
    within = LARGEST_ERROR.get(precision_of(dtype), 1e-4)
    for what, ours, theirs in pairs:
        error = float((ours - theirs).abs().max() / theirs.abs().max())
        if not error <= within:
            return f"its {what} differ from the equation's by {error:.1e}, more than {within:.0e}"
    return None
