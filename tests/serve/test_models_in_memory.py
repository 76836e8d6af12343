"""Several runs at once: loaded on first use, reloaded when there is a better checkpoint, given up to make room."""

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from serve.conftest import Served, serving
from serve.test_streams import Reader, eventually

import rhapsode
from rhapsode.run import Run
from rhapsode.serve.models import named


@pytest.fixture
def runs(tiny_run: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two runs that may be changed."""
    copies = tmp_path / "one", tmp_path / "two"
    for copy in copies:
        shutil.copytree(tiny_run, copy)
    return copies


def better(path: Path, scale: float) -> None:
    """What training does when it has found better weights."""
    run = Run.open(path)
    network = run.load_model()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(scale)
    run.save_best(network, {"step": 1})


def text_of(served: Served, model: str, **fields: Any) -> str:
    return served.complete(model=model, prompt="Once", max_tokens=12, temperature=0, **fields)["choices"][0]["text"]


def loaded(served: Served, name: str) -> Any:
    return served.server.models.runs[name].loaded


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server looks for a newer checkpoint at every request."""
    monkeypatch.setattr("rhapsode.serve.models.CHECKPOINT_LOOK_SECONDS", 0.0)


def test_loaded_on_first_use(runs: tuple[Path, Path]) -> None:
    """Would catch a server that reads all runs before it answers, and one that answers with another's."""
    with serving(*runs) as served:
        assert loaded(served, "one") is loaded(served, "two") is None
        names = [entry["id"] for entry in served.api.get("/v1/models").json()["data"]]
        assert names == ["one", "two"]
        served.api.get("/api/runs/one")
        assert "rhapsode_models_in_memory 0.0" in served.api.get("/metrics").text
        assert text_of(served, "one") == rhapsode.load(runs[0]).generate("Once", max_tokens=12, temperature=0)[0].text
        assert loaded(served, "one") is not None
        assert loaded(served, "two") is None
        error = served.refused(400, prompt="a")
        assert error["message"] == "model must be one of one, two"


def test_a_better_checkpoint(runs: tuple[Path, Path], impatient: None) -> None:
    """The next request is answered by it; one that runs ends on what it began with. Would catch a state of one model
    that goes on with the weights of another."""
    with serving(runs[0], max_context=1_000_000) as served:
        before = text_of(served, "one", logprobs=1)
        running = Reader(served, prompt="Once", temperature=0, max_tokens=600, logprobs=0)
        running.until(b"data: ")
        first = loaded(served, "one")
        better(runs[0], 0.5)
        assert loaded(served, "one") is first
        after = served.complete(prompt="Once", max_tokens=12, temperature=0)
        assert loaded(served, "one") is not first
        expected = rhapsode.load(runs[0])
        assert after["choices"][0]["text"] == expected.generate("Once", max_tokens=12, temperature=0)[0].text
        assert after["system_fingerprint"] == f"fp_{expected.fingerprint[:12]}"
        seen = running.until(b"[DONE]").decode()
        running.leave()
        chunks = [json.loads(line[6:]) for line in seen.splitlines() if line.startswith("data: {")]
        assert {chunk["system_fingerprint"] for chunk in chunks} == {f"fp_{first.model.fingerprint[:12]}"}
        values = [v for chunk in chunks for c in chunk["choices"] for v in c["logprobs"]["token_logprobs"]]
        config: dict[str, Any] = {"max_tokens": 600, "temperature": 0, "logit_bias": {"1": -100}, "logprobs": 0}
        assert len(values) == 600
        assert before == first.model.generate("Once", max_tokens=12, temperature=0)[0].text
        whole = served.complete(prompt="Once", **config)["choices"][0]["logprobs"]["token_logprobs"]
        assert values != whole  # the new weights say something else
        eventually(lambda: first.texts == 0)


def test_a_damaged_checkpoint_is_not_taken(
    runs: tuple[Path, Path], impatient: None, capfd: pytest.CaptureFixture
) -> None:
    """Would catch a server that stops answering because a file was half written by something else."""
    with serving(runs[0]) as served:
        before = text_of(served, "one")
        (runs[0] / "best.safetensors").write_bytes(b"damaged")
        assert text_of(served, "one") == before
        assert "keeps its earlier checkpoint" in capfd.readouterr().err


def test_a_directory_that_vanishes(runs: tuple[Path, Path], impatient: None) -> None:
    """What is in memory is served on; what is not cannot be, and the answer says why."""
    with serving(*runs) as served:
        before = text_of(served, "one")
        for path in runs:
            shutil.rmtree(path)
        assert text_of(served, "one") == before
        error = served.refused(404, model="two", prompt="a")
        assert error["code"] == "model_not_found"
        assert str(runs[1]) in error["message"]
        assert served.api.get("/v1/models").status_code == 200
        assert served.api.get("/api/runs").status_code == 200
        assert served.api.get("/api/runs/two").json()["metrics"] == []


def test_memory_is_made_room_in(runs: tuple[Path, Path], tmp_path: Path) -> None:
    """The one that was not used for longest goes, but none that has work; and it comes back when it is used."""
    third = tmp_path / "three"
    shutil.copytree(runs[0], third)
    with serving(*runs, third, memory=1e-9, max_context=2_000_000) as served:
        text_of(served, "one")
        text_of(served, "two")
        assert loaded(served, "one") is None
        assert loaded(served, "two") is not None
        busy = Reader(served, model="two")
        busy.until(b"data: ")
        text_of(served, "three")
        assert loaded(served, "two") is not None
        busy.leave()
        eventually(lambda: not served.server.driver.jobs)
        text_of(served, "one")
        assert loaded(served, "two") is loaded(served, "three") is None
        assert "rhapsode_models_in_memory 1.0" in served.api.get("/metrics").text
    with serving(*runs, memory=1.0) as roomy:
        text_of(roomy, "one")
        text_of(roomy, "two")
        assert loaded(roomy, "one") is not None


def test_two_who_come_first_at_once_load_once(runs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a model that is loaded once for each of those who wait for it."""
    with serving(runs[0]) as served:
        models, count = served.server.models, []
        load = models._load

        def counted(run: Any) -> Any:
            count.append(run)
            return load(run)

        monkeypatch.setattr(models, "_load", counted)
        threads = [threading.Thread(target=served.complete, kwargs={"prompt": "a"}) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(count) == 1


def test_a_run_without_a_checkpoint_yet(runs: tuple[Path, Path]) -> None:
    """A run that has just begun to train is served as soon as it has one."""
    for name in ("best", "last"):
        (runs[0] / f"{name}.safetensors").rename(runs[0] / f"{name}.later")
    Run.open(runs[0]).update(checkpoints=[])
    with serving(runs[0]) as served:
        assert "no checkpoint yet" in served.refused(404, prompt="a")["message"]
        (runs[0] / "best.later").rename(runs[0] / "best.safetensors")
        assert served.complete(prompt="a")["choices"]


def test_names_of_runs(tmp_path: Path) -> None:
    """The directory's name, or the whole path where two have the same; the same run twice is refused."""
    a, b = tmp_path / "x" / "run", tmp_path / "y" / "run"
    assert named([a, tmp_path / "other"]) == {"run": a, "other": tmp_path / "other"}
    assert named([a, b]) == {str(a): a, str(b): b}
    with pytest.raises(ValueError, match="given twice"):
        named([a, a])
