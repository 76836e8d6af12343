"""What a computation runs on: device, processor, memory, and the commit of the code; and a GPU's work as one launch."""

import ctypes
import gc
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's names and numbers, malloc.h
NEVER = 2**31 - 1


def choose_device(wanted: str) -> str:
    """`auto` is the best there is of cuda, mps, cpu; ValueError for one that this machine lacks."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return next(name for name, is_there in there.items() if is_there)
    if wanted not in there:
        raise ValueError(f"--device must be one of auto, cpu, cuda, mps, got {wanted!r}")
    if not there[wanted]:
        available = ", ".join(name for name, is_there in there.items() if is_there)
        raise ValueError(
            f"--device {wanted}: PyTorch finds no {wanted.upper()} device on this machine; available: {available}"
        )
    return wanted


def device_name(device: str) -> str:
    """The device, for people: `cpu`, `mps`, `cuda (NVIDIA H100 80GB HBM3)`."""
    return f"{device} ({torch.cuda.get_device_name()})" if device == "cuda" else device


def synchronize(device: str) -> None:
    """Waits until the device has done what it was given; a clock that is read before that times only the asking."""
    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


def processor() -> str:
    """The model of the CPU, as the system names it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as stream:
            names = [line.partition(":")[2].strip() for line in stream if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or "unknown processor"


def processor_features() -> str:
    """What the CPU can do, as the system lists it; its name where the system lists nothing."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as stream:
            return next(line for line in stream if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return processor()


def memory_bytes() -> int | None:
    """The memory of this machine in bytes; None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def commit() -> str | None:
    """The commit of the checkout that the package runs from; None where it is installed from elsewhere."""
    here = Path(__file__).resolve()

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", str(here))
        changed = " with uncommitted changes" if git("status", "--porcelain", "--", str(here.parent)) else ""
        return git("rev-parse", "--short=12", "HEAD") + changed
    except (OSError, subprocess.CalledProcessError):
        return None


def keep_freed_memory() -> None:
    """Tells glibc not to give freed memory back to the system; does nothing where there is another C library.

    A training step frees what the next one asks for again. glibc by itself returns the larger pieces in between,
    and the system hands them out anew page by page, each filled with zeros first.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, NEVER)
        mallopt(M_MMAP_MAX, 0)  # large pieces come from the heap too, which is not trimmed


# Captures a function: what it returns does to the same memory again what the function did.
Capture = Callable[[Callable[[], None]], Callable[[], None]]


_failed: list[object] = []  # captures that failed: PyTorch's allocator may ask them still, so that they must not go


def cuda_graph(function: Callable[[], None]) -> Callable[[], None]:
    """Captures a function of the GPU as a CUDA graph, without running it; returns what replays it.

    PyTorch's own generator goes with it: a replay draws what the function would draw. Raises RuntimeError with the
    first reason where it cannot be captured; the GPU can then be used as before.
    """
    graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
    device, stream = torch.cuda.current_device(), torch.cuda.current_stream()
    generator = torch.cuda.default_generators[device]
    untouched = generator.clone_state()
    reasons: list[Exception] = []

    def watched() -> None:
        try:
            function()
        except Exception as error:
            reasons.append(error)
            raise

    try:
        with _no_collection(), torch.cuda.graph(graph, pool=pool):
            watched()
    except Exception as error:
        # A capture that was spoilt raises again as it ends, and PyTorch up to 2.11 then puts nothing back: neither the
        # stream, nor the generator, which would refuse to draw, nor the allocator.
        _failed.append(graph)
        torch.cuda.set_stream(stream)
        generator.graphsafe_set_state(untouched)
        with suppress(RuntimeError, AttributeError):  # where it has ended, or another PyTorch has another name
            torch._C._cuda_endAllocateToPool(device, pool)
        raise RuntimeError(str((reasons or [error])[0])) from error

    def replay(_: Callable[[], None] = function) -> None:  # which stays, and with it the memory that it works on
        graph.replay()

    return replay


@contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage is collected within the block, but before: an older graph that is freed in a capture would end it."""
    gc.collect()
    collected = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collected:
            gc.enable()


def eager(function: Callable[[], None]) -> Callable[[], None]:
    """No capture: the function itself."""
    return function


def graph_capture(device: str, wanted: bool | None = None) -> Capture | None:
    """What makes a step one launch on this device; None where it is launched piece by piece.

    wanted None: one launch wherever that can be. Raises ValueError with one line where it is wanted and cannot be.
    """
    if wanted and device != "cuda":
        raise ValueError(f"--cuda-graph needs --device cuda, this is {device}: leave it out")
    return cuda_graph if device == "cuda" and wanted is not False else None


def on_own_stream(device: torch.device, function: Callable[[], None]) -> None:
    """Runs a function on a stream of its own, as PyTorch wants it before a capture."""
    if device.type != "cuda":
        function()
        return
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function()
    torch.cuda.current_stream().wait_stream(stream)
