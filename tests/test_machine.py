"""What is told of the machine, and which device is taken."""

import subprocess
from pathlib import Path

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
