"""How `gpu.py` times a step: in a graph or not, in bursts, the GPU waited for, products as precise as is said."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from gpu_sizes import Setup

from rhapsode.machine import on_own_stream, synchronize
from rhapsode.training.precision import products

BURSTS, BURST_SECONDS, FIRST_STEPS = 5, 0.12, 5


@contextmanager
def exactly(precision: str = "float32") -> Iterator[None]:
    """Within the block products are in this precision, cuDNN's too, which would else be TF32 unasked."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        with products(precision):
            yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def graph_of(step: Callable[[], None], how: Setup) -> Callable[[], None]:
    """A step as one launch, after some that make its moments and choose its kernels."""
    for _ in range(3):
        on_own_stream(torch.device(how.device), step)
    return how.capture(step)


def milliseconds(step: Callable[[], None], device: str) -> float:
    """The median over bursts of steps, the GPU waited for at the end of each."""
    for _ in range(FIRST_STEPS):
        step()
    synchronize(device)
    began = time.monotonic()
    step()
    synchronize(device)
    count = max(1, int(BURST_SECONDS / max(1e-6, time.monotonic() - began)))
    times = []
    for _ in range(BURSTS):
        began = time.monotonic()
        for _ in range(count):
            step()
        synchronize(device)
        times.append((time.monotonic() - began) / count)
    return 1e3 * statistics.median(times)
