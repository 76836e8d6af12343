"""benchmarks/gpu.py without a card: each path of it is gone once at tiny sizes, so that a card finds no typo."""

import importlib
import json
import sys
import time
from dataclasses import replace
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
    monkeypatch.setattr(sys.modules["gpu_timing"], "BURST_SECONDS", 1e-3)
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
    assert found["failed"] == []
    for name, bar in gpu.BARS.items():
        (value,) = found["bars"][name]["figures"]
        held = bar.get("at_least", 0) <= value <= bar.get("at_most", value)
        assert found["bars"][name] == {**bar, "figures": [value], "verdict": "met" if held else "missed"}
    assert set(found["steps_ms"][0]) >= {"ours", "ours, graph", "nn.RNN", "nn.RNN, graph", "stepwise"}
    assert set(found["runs"]) == {"large, float32", "coffee, float32", "coffee, bfloat16", "eight seeds"}
    assert all(entry["bits_per_byte"] > 0 for name, entry in found["runs"].items() if name != "eight seeds")
    assert found["runs"]["eight seeds"]["few steps apart"] < 1e-3
    assert [entry["texts"] for entry in found["decoding_tokens_per_second"]] == [1, 4]
    assert [(entry["loop"], entry["runs"]) for entry in found["loops"]] == [
        ("elman, hidden 12, batch 4", "fast"),
        ("gated, hidden 5, batch 4", "fast"),
    ]
    assert all(entry["fast: ms"] > 0 and 0 < entry["fast: error"] < 5e-2 for entry in found["loops"])
    assert set(found["muon_ms"]) == {"ours, float32", "ours, tf32", "PyTorch's"}
    assert max(found["differences"].values()) < 1e-3
    assert found["differences"]["coffee: resumed, of captured"] == 0


def test_what_fails_does_not_take_the_rest_with_it(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch a lent card's five minutes without a line of JSON because a rival, a run or a kernel failed."""

    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(gpu, "compare_runs", lambda *_: None)
    monkeypatch.setattr(gpu, "graph_of", fails)  # of the rival and of Muon
    monkeypatch.setattr(sys.modules["gpu_loops"], "graph_of", fails)
    monkeypatch.setattr(gpu, "captured", fails)
    monkeypatch.setattr(gpu, "Engine", fails)
    assert gpu.main(["--cpu"]) == 1
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    whose = [line.split(": ")[0] for line in found["failed"]]
    assert whose[0] == "8, 12, 6, 4, T 16, float32, nn.RNN, graph"
    assert whose[1:6] == ["large, float32", "coffee, float32", "coffee, bfloat16", "eight seeds", "decoding"]
    assert [line for line in found["failed"] if "CUDA error: out of memory" not in line] == []
    assert found["steps_ms"][0]["ours, graph"] > 0
    assert {bar["verdict"] for bar in found["bars"].values()} == {"not measured"}
    assert all("fast: error" in entry for entry in found["loops"])


def test_no_time_is_taken_of_wrong_numbers(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch figures of a step that computes something else."""
    monkeypatch.setattr(gpu, "compare_runs", lambda name, *others: others[-1].update({f"{name}: captured": 2e-3}))
    assert gpu.main(["--cpu"]) == 1
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["failed"] == [
        "numbers: ValueError: course: captured: differs by 2.0e-03; no time is taken of wrong numbers"
    ]
    assert found["differences"]["course: captured"] == 2e-3
    assert [found["steps_ms"], found["runs"], found["loops"]] == [[], {}, []]


def test_nothing_is_begun_that_would_not_end_in_time(gpu: Any) -> None:
    """Would catch a sixth minute, and a bar that holds by the rows that there was time for."""
    how = replace(gpu.setup(True), deadline=time.monotonic() + 4)
    assert gpu.time_rows(how) == []
    assert gpu.time_muon(how) == {}
    assert gpu.check_and_time_loops(how) == []
    how = replace(how, rows=how.rows * 2)
    for ratios, verdict in (([0.5, 0.9], "met"), ([0.5], "not measured"), ([1.1], "missed"), ([], "not measured")):
        bars = gpu.verdicts(how, [{"of nn.RNN, graph": ratio} for ratio in ratios], {})
        assert bars["step of nn.RNN under a graph"]["verdict"] == verdict


def test_the_tables_of_the_docs_are_what_was_measured(gpu: Any) -> None:
    """Would catch a figure that was typed, and a page that shows an earlier run than results/gpu.json."""
    tables = importlib.import_module("gpu_tables").tables()
    assert list(tables) == ["bars", "steps", "runs", "decoding", "loops"]
    for name, table in tables.items():
        page = FOLDER.parent / "docs" / ("kernels.md" if name == "loops" else "gpu.md")
        assert f"\n\n{table}\n\n" in page.read_text(encoding="utf-8"), f"{page.name}: {name}"


def test_a_table_says_what_was_not_measured(gpu: Any) -> None:
    """Would catch a table that another card cannot have, where time was up or a rival failed."""
    tables = importlib.import_module("gpu_tables")
    found = {"steps_ms": [{"row": "8, 8, 8, 8", "precision": "tf32", "ours": 12.34, "nn.RNN": 1234.5}], "runs": {}}
    assert tables.steps(found)[2:] == ["| 8, 8, 8, 8 | TF32 | 12.3 | | 1,234 | | | |"]
    assert tables.runs(found)[3] == "| its bits per byte | | | |"
    bar = {"at_most": 8.0, "figures": [], "verdict": "not measured"}
    assert tables.bars({"bars": {"seconds": bar}})[2:] == ["| seconds | at most 8 | | not measured |"]
