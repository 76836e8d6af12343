"""A CUDA graph on a CPU: every operation that PyTorch dispatches is written down, and done again on the same memory.

As on a GPU, a replay runs no Python: a number that stood in an operation is the same in every replay, a tensor is what
lies at its place by then, and whatever waits for a value (`.item()`, `nonzero`) cannot be captured.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITS = ("aten._local_scalar_dense", "aten.nonzero", "aten.is_nonzero", "aten.masked_select", "aten.unique")


class Recording(TorchDispatchMode):
    """What was dispatched within the block."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if name.startswith(WAITS):
            raise RuntimeError(f"{name}: operation not permitted when stream is capturing")
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not name.startswith("profiler"):
            self.operations.append((func, args, kwargs, result))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, result in self.operations:
            again = func(*args, **kwargs)
            for old, new in zip(_tensors(result), _tensors(again), strict=True):
                if old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                    old.copy_(new)


class DeviceOnly(TorchDispatchMode):
    """Raises where an operation within the block reads, makes or changes a tensor that is not on this kind of device.

    A number of the host that goes to a GPU, or comes from one, ends a capture. On `meta`, which has no numbers, nothing
    is computed; what waits for a value fails there by itself.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device, self.count = device, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        fused = "_fused_adam" in str(func)  # it has no form on meta
        result = None if fused else func(*args, **(kwargs or {}))
        devices = {tensor.device.type for tensor in _tensors((args, kwargs, result))}
        if devices - {self.device}:
            raise RuntimeError(f"{func}: tensors on {', '.join(sorted(devices))}")
        self.count += 1
        return result


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def capture(function: Callable[[], None]) -> Callable[[], None]:
    """In place of `graph.cuda_graph`; unlike there, the function also runs while it is written down."""
    with Recording() as recording:
        function()
    return recording.replay


class SecondFails:
    """A `capture` that captures once; what was captured may not be replayed once the second one has failed."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        self.asked += 1
        if self.asked > 1:
            raise RuntimeError("not this one")
        replay = capture(function)

        def first() -> None:
            assert self.asked == 1
            replay()

        return first
