"""benchmarks/gpu.py without a card: each path of it is gone once at tiny sizes, so that a card finds no typo."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "benchmarks"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="needs benchmarks/ beside the package")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setenv("RHAPSODE_CACHE", str(tmp_path / "cache"))
    module = importlib.import_module("gpu")
    monkeypatch.setattr(module, "BURST_SECONDS", 1e-3)
    return module


def test_without_a_card_it_says_so(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch a traceback, or figures of a CPU that are taken for a card's."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    captured = capsys.readouterr()
    assert captured.err.strip() == (
        "benchmarks/gpu.py: PyTorch finds no CUDA GPU on this machine; --cpu tries the script"
    )
    assert captured.out == ""


def test_the_whole_script_on_a_cpu(gpu: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Would catch a script that ends after four of its five minutes on a card, and a bar that nothing measures."""
    assert gpu.main(["--cpu", "--out", str(tmp_path / "found.json")]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found == json.loads((tmp_path / "found.json").read_text())
    assert found["device"] == "cpu"
    assert set(found["bars"]) == set(gpu.BARS)
    assert all(bar["figures"] for bar in found["bars"].values())
    assert set(found["steps_ms"][0]) >= {"ours", "ours, graph", "nn.RNN", "nn.RNN, graph", "stepwise"}
    assert set(found["runs"]) == {"large, float32", "coffee, float32", "coffee, bfloat16", "eight seeds"}
    assert [entry["texts"] for entry in found["decoding_tokens_per_second"]] == [1, 4]
    assert max(found["differences"].values()) < 1e-3
    assert found["differences"]["coffee: resumed, of captured"] == 0
