"""What is told of the machine, and which device is taken."""

import gc
import subprocess
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from rhapsode import machine


@pytest.mark.parametrize(
    ("cuda", "mps", "best"), [(True, True, "cuda"), (False, True, "mps"), (True, False, "cuda"), (False, False, "cpu")]
)
def test_auto_is_the_best_there_is(monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, best: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert machine.choose_device("auto") == best
    assert machine.choose_device("cpu") == "cpu"
    if not cuda:
        with pytest.raises(
            ValueError, match=f"--device cuda: PyTorch finds no CUDA device on this machine; available: {best}"
        ):
            machine.choose_device("cuda")
    with pytest.raises(ValueError, match="--device must be one of auto, cpu, cuda, mps, got 'gpu'"):
        machine.choose_device("gpu")


def test_a_gpu_is_named_and_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that is read before the GPU has finished would make every step look free."""
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA T4")
    for device in ("cpu", "cuda"):
        machine.synchronize(device)
    assert waited == ["cuda"]
    assert [machine.device_name(device) for device in ("cpu", "mps", "cuda")] == ["cpu", "mps", "cuda (NVIDIA T4)"]


def test_the_commit_is_that_of_the_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A report with the commit of another repository, the one that the user stands in, could not be made again."""
    root = Path(__file__).resolve().parents[1]
    git = ["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"]
    there = subprocess.run(git, capture_output=True, text=True, check=False)
    monkeypatch.chdir(tmp_path)
    found = machine.commit()
    if there.returncode == 0 and found is not None:
        assert found.split(" ")[0] == there.stdout.strip()
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "site-packages" / "machine.py"))
    (tmp_path / "site-packages").mkdir()
    assert machine.commit() is None


class FailingCuda:
    """What PyTorch 2.11 is like around a capture: one that was spoilt raises as it ends, and nothing is put back."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stream, self.spoilt, self.underway, self.collects = "default", False, [], True
        self.generator = SimpleNamespace(capturing=False)
        self.generator.clone_state = lambda: SimpleNamespace(capturing=self.generator.capturing)
        self.generator.graphsafe_set_state = lambda state: setattr(self.generator, "capturing", state.capturing)
        stubs = {"CUDAGraph": Graph, "graph": self.capturing, "graph_pool_handle": lambda: (0, 7)}
        stubs |= {"current_device": lambda: 0, "default_generators": (self.generator,)}
        stubs |= {"current_stream": lambda: self.stream, "set_stream": lambda stream: setattr(self, "stream", stream)}
        for name, stub in stubs.items():
            monkeypatch.setattr(torch.cuda, name, stub)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", self.end_pool, raising=False)

    @contextmanager
    def capturing(self, graph: object, pool: tuple[int, int] = (0, 1)) -> Iterator[None]:
        outer, self.stream, self.collects = self.stream, "capture", gc.isenabled()
        self.generator.capturing = True
        self.underway.append(pool)
        try:
            yield
        finally:
            if self.spoilt:
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
            self.end_pool(0, pool)
            self.generator.capturing, self.stream = False, outer

    def end_pool(self, device: int, pool: tuple[int, int]) -> None:
        if pool not in self.underway:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.underway.remove(pool)


class Graph:
    """A graph of nothing."""

    def replay(self) -> None:
        """Nothing."""


@pytest.mark.parametrize("spoilt", [True, False])
def test_what_a_failed_capture_leaves_is_put_back(monkeypatch: pytest.MonkeyPatch, spoilt: bool) -> None:
    """Would catch work that goes on in the stream of the capture, a generator that refuses to draw outside of one, an
    allocator that believes in it for good and asks a graph that is gone, and a reason that is not the first one."""
    cuda = FailingCuda(monkeypatch)
    kept: list[object] = []
    monkeypatch.setattr(machine, "_failed", kept)

    def waits() -> None:
        cuda.spoilt = spoilt
        raise ValueError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match=r"^operation not permitted when stream is capturing$"):
        machine.cuda_graph(waits)
    assert (cuda.stream, cuda.generator.capturing, cuda.underway) == ("default", False, [])
    assert [type(graph) for graph in kept] == [Graph]
    assert gc.isenabled()


def test_nothing_is_collected_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch an older graph, in a cycle, that is freed in the middle of a capture, which CUDA forbids."""
    cuda = FailingCuda(monkeypatch)
    machine.cuda_graph(lambda: None)
    assert not cuda.collects
    assert gc.isenabled()


def test_a_graph_keeps_what_it_was_captured_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch weights that are freed behind a graph, whose replays then read and write what others put there."""
    FailingCuda(monkeypatch)
    weights = Graph()
    gone = weakref.ref(weights)
    replay = machine.cuda_graph(lambda weights=weights: None)  # type: ignore[misc]
    del weights
    gc.collect()
    replay()
    assert gone() is not None
    del replay
    gc.collect()
    assert gone() is None


def test_where_a_step_is_one_launch() -> None:
    """Would catch a GPU that waits for launches unless it is told otherwise, and a CPU that is asked for a graph."""
    assert machine.graph_capture("cuda") is machine.cuda_graph
    assert machine.graph_capture("cuda", True) is machine.cuda_graph
    assert machine.graph_capture("cuda", False) is None
    for device in ("cpu", "mps"):
        assert machine.graph_capture(device) is None
        assert machine.graph_capture(device, False) is None
    with pytest.raises(ValueError, match="--cuda-graph needs --device cuda, this is mps: leave it out"):
        machine.graph_capture("mps", True)
