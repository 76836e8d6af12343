"""How batches reach a GPU while it works: by pinned pages, a few ahead."""

from collections.abc import Callable

import torch

from rhapsode.tokens import Batch, BatchConfig
from rhapsode.training import graph


class Gpu:
    """A GPU that copies what it was told to copy as late as it may: when somebody waits for it."""

    def __init__(self) -> None:
        self.todo: list[Callable[[], object]] = []
        self.told = 0  # in all

    def catch_up(self, until: int) -> None:
        while len(self.todo) > until:
            self.todo.pop(0)()


class Place:
    """A tensor of the GPU, which takes over a page of pinned memory when the copy is made."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self.seen: list[torch.Tensor] = []

    def copy_(self, page: torch.Tensor, non_blocking: bool = False) -> None:
        assert non_blocking  # else the CPU waits at each of them
        self.gpu.todo.append(lambda: self.seen.append(page.clone()))
        self.gpu.told += 1


class Sent:
    """An event: whoever waits for it, waits for all that the GPU had been told before it."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu, self.after = gpu, 0

    def record(self) -> None:
        self.after = self.gpu.told

    def synchronize(self) -> None:
        self.gpu.catch_up(self.gpu.told - self.after)


def test_batches_arrive_however_late_the_gpu_copies_them() -> None:
    """Would catch a page of pinned memory that is filled again before its copy has left it, so that a step is made with
    the batch of a later one; and a CPU that waits for a copy that it need not wait for."""
    memory, gpu = graph.Memory(BatchConfig(3, 2), torch.device("cpu")), Gpu()
    pages = [[torch.empty(2, 3, dtype=torch.long) for _ in range(2)] + [torch.empty(2).double()] for _ in range(2)]
    memory._slots = [(page, Sent(gpu)) for page in pages]
    memory.inputs, memory.targets, memory.numbers = places = [Place(gpu) for _ in range(3)]  # type: ignore[assignment]
    for number in range(7):
        batch = Batch(torch.full((2, 3), number), torch.full((2, 3), number + 100), True, number)
        memory.put(batch, number / 8)
        assert len(gpu.todo) == 3 * min(number + 1, graph.SLOTS)
    gpu.catch_up(0)
    for place, wanted in zip(places, (0, 100), strict=False):
        assert [int(seen[1, 2]) for seen in place.seen] == [number + wanted for number in range(7)]
    assert [seen.tolist() for seen in places[2].seen] == [[number, number / 8] for number in range(7)]
