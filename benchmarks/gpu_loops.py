"""The recurrences alone, for `gpu.py`: each form that runs here, its error against float64 and its time in a graph.

The table `ON_CHIP` in kernels/recurrence_forms.py is to be what this measures: where `triton` is not the faster form on
a card, its entry has to go.
"""

from collections.abc import Callable
from typing import Any

import torch
from gpu_sizes import Loop, Setup
from gpu_timing import exactly, graph_of, milliseconds
from torch import Tensor

from rhapsode.kernels import form, recurrence_form
from rhapsode.kernels.gated import gated_recurrence
from rhapsode.kernels.recurrence import recurrence
from rhapsode.progress import say

LARGEST_ERROR = {"float32": 1e-5, "tf32": 5e-3, "bfloat16": 5e-2}  # of states and gradients, relative to their length


def check_and_time_loops(how: Setup) -> list[dict[str, Any]]:
    """Of each loop the form that runs and why; by form, the largest error and the milliseconds forward and backward.

    A form that is wrong is not timed: it stands under what failed.
    """
    found: list[dict[str, Any]] = []
    for loop in how.loops:
        with exactly(loop.precision):
            dtype = torch.bfloat16 if loop.precision == "bfloat16" else torch.float32
            runs, reason = recurrence_form(loop.cell, loop.hidden, dtype, how.device, "tanh")
        entry: dict[str, Any] = {"loop": loop.name, "precision": loop.precision, "runs": runs, "reason": reason}
        for kind in dict.fromkeys(("fast", runs)):
            if not how.left(5):
                return found
            with how.trying(f"{loop.name}, {loop.precision}, {kind}"), exactly(loop.precision), form(kind):
                entry[f"{kind}: error"] = error = largest_error(loop, kind, dtype, how.device)
                if not error <= LARGEST_ERROR[loop.precision]:
                    raise ValueError(f"differs from float64 by {error:.1e}; no time is taken of wrong numbers")
                entry[f"{kind}: ms"] = milliseconds(graph_of(step_of(loop, dtype, how.device), how), how.device)
        found.append(entry)
        say(", ".join(f"{key} {value:.3g}" if isinstance(value, float) else str(value) for key, value in entry.items()))
    return found


def parts(loop: Loop, dtype: torch.dtype, device: str) -> list[Tensor]:
    """x, weight and initial state, and what the states' gradient is."""
    T, B, H = loop.length, loop.batch, loop.hidden
    generator = torch.Generator().manual_seed(0)
    shapes = [(T, B, H if loop.cell == "elman" else 2 * H), (H, H), (B, H), (T, B, H)]
    made = [torch.randn(shape, generator=generator) for shape in shapes]
    made[1] /= (3 * H) ** 0.5  # as it is initialised
    return [part.to(device, dtype) for part in made]


def states_of(loop: Loop, x: Tensor, weight: Tensor, initial: Tensor) -> Tensor:
    return recurrence(x, weight, initial, "tanh") if loop.cell == "elman" else gated_recurrence(x, initial)


def largest_error(loop: Loop, kind: str, dtype: torch.dtype, device: str) -> float:
    """The largest error of the states and of each gradient, relative to its length; the oracle is float64."""
    *leaves, upstream = parts(loop, dtype, device)
    for leaf in leaves:
        leaf.requires_grad_()
    used = leaves if loop.cell == "elman" else [leaves[0], leaves[2]]

    def all_of(kind: str, dtype: torch.dtype) -> list[Tensor]:
        with form(kind):
            states = states_of(loop, leaves[0].to(dtype), leaves[1].to(dtype), leaves[2].to(dtype))
        gradients = torch.autograd.grad(states, used, upstream.to(dtype))
        return [part.detach().double() for part in (states, *gradients)]

    pairs = zip(all_of(kind, dtype), all_of("plain", torch.float64), strict=True)
    return max(float((ours - exact).norm() / exact.norm()) for ours, exact in pairs)


def step_of(loop: Loop, dtype: torch.dtype, device: str) -> Callable[[], None]:
    """Forward and backward of a loop, all gradients included."""
    *leaves, upstream = parts(loop, dtype, device)
    for leaf in leaves:
        leaf.requires_grad_()

    def step() -> None:
        for leaf in leaves:
            leaf.grad = None
        states_of(loop, leaves[0], leaves[1], leaves[2]).backward(upstream)

    return step
