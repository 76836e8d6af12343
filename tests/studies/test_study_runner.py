"""Studies that are run: finished, killed, stopped, failing, and begun anew."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from typer.testing import CliRunner

from rhapsode.cli import app
from rhapsode.evaluation import score
from rhapsode.model import ModelConfig, build_model
from rhapsode.sources import open_source
from rhapsode.studies import cell as cell_process
from rhapsode.studies import whole
from rhapsode.studies.data import valid_view
from rhapsode.studies.directory import Study
from rhapsode.studies.whole import run_study
from rhapsode.tokens import IGNORED, BatchConfig, Batcher, TokenStore, prepare, tokenizer_for

SMALL = ("window=16", "embed_dim=8", "key_dim=8", "value_dim=8", "batch_size=16", "validations=2", "sequences=320")
SECONDS = 300  # of a wait: to end a hang, not to measure a machine


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@dataclass(frozen=True)
class Ended:
    """What a command came to, in this process or in one of its own."""

    code: int
    stdout: str
    stderr: str


def command(out: Path, *more: str, sets: tuple[str, ...] = SMALL) -> list[str]:
    fixed = [word for text in sets for word in ("--set", text)]
    data = ["storyworld:120", "--valid", "storyworld:20:valid", "--tokenizer", "characters"]
    return ["study", "grid", *data, "--threads", "2", "--out", str(out), *fixed, *more]


def run(cache: Path, words: list[str]) -> Ended:
    """The command in this process, which has imported torch already; cells have processes of their own."""
    threads = torch.get_num_threads()
    result = CliRunner().invoke(app, words, env={"RHAPSODE_CACHE": str(cache)})
    torch.set_num_threads(threads)
    if isinstance(result.exception, ValueError | OSError):  # what `main` makes one line and exit code 2 of
        return Ended(2, result.stdout, f"{result.stderr}{result.exception}\n")
    return Ended(result.exit_code, result.stdout, result.stderr)


def begin(cache: Path, words: list[str]) -> subprocess.Popen:
    environment = {**os.environ, "RHAPSODE_CACHE": str(cache)}
    whole = [sys.executable, "-m", "rhapsode", *words]
    return subprocess.Popen(whole, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def wait_until(condition, what: str, process: subprocess.Popen | None = None) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for: {what}"
        assert process is None or process.poll() is None, f"ended before: {what}"
        time.sleep(0.05)


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def losses(out: Path) -> dict[str, list[float]]:
    return {
        path.parent.name: [point["valid_loss"] for point in json.loads(path.read_text())["points"]]
        for path in out.glob("cells/*/result.json")
    }


@pytest.fixture(scope="module")
def finished(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of two good cells and one that cannot be trained, two at once."""
    out = tmp_path_factory.mktemp("studies") / "rates"
    result = run(cache, command(out, "--vary", "learning_rate=0.001,0.01,1e30", "--jobs", "2"))
    assert result.code == 1, result.stderr
    assert result.stdout == f"{out}/report.html\n"
    assert "grid-learning-rate-1e-30 failed: the loss became nan at step" in result.stderr
    assert "Traceback" not in result.stderr
    return out


def test_a_failed_cell_is_reported_and_the_others_end(finished: Path) -> None:
    assert sorted(losses(finished)) == ["grid-learning-rate-0.001", "grid-learning-rate-0.01"]
    report = (finished / "report.md").read_text()
    assert "1 of 3 cells failed" in report
    assert "finished, at most 2 at once" in report
    for points in losses(finished).values():
        assert f"| {points[-1]:.4f} |" in report


def test_finished_cells_are_left_alone(finished: Path, cache: Path) -> None:
    """A cell that is trained twice costs its time twice, and may end elsewhere."""
    before = contents(finished / "cells" / "grid-learning-rate-0.01")
    result = run(cache, command(finished, "--vary", "learning_rate=0.001,0.01,1e30", "--jobs", "2"))
    assert result.code == 1
    assert "2 of 3 cells are finished already" in result.stderr
    assert contents(finished / "cells" / "grid-learning-rate-0.01") == before


def test_another_plan_in_the_same_directory_is_refused(finished: Path, cache: Path) -> None:
    before = contents(finished)
    result = run(cache, command(finished, "--vary", "learning_rate=0.001,0.02"))
    assert result.code == 2
    assert result.stderr.count("\n") == 1, result.stderr
    assert "holds a study with vary" in result.stderr
    assert contents(finished) == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--vary", "hidden_dim=8", "--valid", "nowhere.jsonl"), "nowhere.jsonl"),
        (("--vary", "batch_sizes=8"), "unknown field 'batch_sizes'"),
        (("--vary", "hidden_dim=8", "--seeds", "0"), "--seeds must be >= 1"),
        (("--vary", "hidden_dim=8", "--device", "gpu"), "--device must be one of auto, cpu, cuda, mps, got 'gpu'"),
    ],
)
def test_wrong_input_is_told_before_anything_is_made(
    tmp_path: Path, cache: Path, more: tuple[str, ...], message: str
) -> None:
    result = run(cache, command(tmp_path / "study", *more))
    assert result.code == 2
    assert message in result.stderr.splitlines()[-1]
    assert not (tmp_path / "study").exists()


RATES = ("--vary", "learning_rate=0.001,0.01,1e30", "--jobs", "2")


@pytest.fixture
def a_gpu_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as choosing goes; nothing may be put on it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def test_cells_train_where_the_study_says(finished: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """A cell that always trained on the CPU would report the CPU's times as the GPU's."""
    monkeypatch.setenv("RHAPSODE_CACHE", str(cache))
    monkeypatch.setattr(cell_process, "device_name", lambda device: f"{device} (a)")
    study = Study.open(finished)
    assert study.device == "cpu"
    assert [result["device"] for result in study.results()] == ["cpu", "cpu"]
    assert "| device | cpu |" in (finished / "report.md").read_text()
    study.about["device"] = "cuda"
    found = []
    monkeypatch.setattr(cell_process, "train_run", lambda *arguments, **_: found.append(arguments[3]) or 1 / 0)
    failed = study.plan.cells["grid-learning-rate-1e-30"]
    with pytest.raises(ZeroDivisionError):
        cell_process.run_cell(study, failed, threads=torch.get_num_threads())
    assert found == ["cuda"]


@pytest.fixture
def no_cell_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole, "run_cells", lambda *_: {})


def test_a_study_stays_on_its_device(finished: Path, cache: Path, a_gpu_is_there: None, no_cell_runs: None) -> None:
    """Half of a table from one device and half from another would compare machines, not settings."""
    result = run(cache, command(finished, *RATES, "--device", "cuda"))
    assert result.code == 2
    assert "holds a study on cpu, not cuda" in result.stderr
    assert "use --device cpu or choose another directory" in result.stderr.splitlines()[-1]
    result = run(cache, command(finished, *RATES, "--device", "auto"))
    assert result.code == 0, result.stderr
    assert "continuing on cpu, where the study was started; cuda is available too" in result.stderr
    assert "cells, 2 at once on cpu with 1 threads each" in result.stderr


def test_a_study_whose_device_is_gone_is_refused(finished: Path, cache: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "moved")
    about = json.loads((tmp_path / "moved" / "study.json").read_text())
    del about["sha256"]
    (tmp_path / "moved" / "study.json").write_text(json.dumps(about | {"device": "cuda"}))
    result = run(cache, command(tmp_path / "moved", *RATES))
    assert result.code == 2
    told = "holds a study that was started on cuda, which is not on this machine; it has cpu."
    assert told in result.stderr.splitlines()[-1]


def test_another_gpu_of_the_same_kind_is_told(finished: Path, cache: Path, tmp_path: Path, no_cell_runs: None) -> None:
    """Finished cells keep the name of what they ran on, and the report has both."""
    shutil.copytree(finished, tmp_path / "moved")
    file = tmp_path / "moved" / "cells" / "grid-learning-rate-0.01" / "result.json"
    edited = json.loads(file.read_text()) | {"device": "a faster cpu"}
    del edited["sha256"]
    file.write_text(json.dumps(edited))
    result = run(cache, command(tmp_path / "moved", *RATES))
    assert result.code == 0, result.stderr
    assert "finished cells ran on a faster cpu, the others will run on cpu" in result.stderr
    assert "| device | a faster cpu, cpu |" in (tmp_path / "moved" / "report.md").read_text()


def test_from_python_a_study_neither_prints_nor_exits(
    finished: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A notebook that a failed cell ends by SystemExit would lose what is there."""
    monkeypatch.setenv("RHAPSODE_CACHE", str(cache))
    threads = torch.get_num_threads()
    done = run_study(Study.open(finished).request, finished, jobs=2, threads=2)
    assert capsys.readouterr().out == ""
    assert list(done.failed) == ["grid-learning-rate-1e-30"]
    assert done.page == finished / "report.html"
    assert done.study.plan == Study.open(finished).plan
    assert torch.get_num_threads() == threads


# A cell that is to be stopped half-way must not be at its end while the test is kept waiting, on a fast machine either.
LONGER = (*(text for text in SMALL if not text.startswith("sequences")), "checkpoint_seconds=0.2")


@pytest.mark.slow
def test_a_killed_study_goes_on_where_it_stopped(tmp_path: Path, cache: Path) -> None:
    """SIGKILL to the study while its second cell trains; the cell's process saves and leaves, and the same command
    ends with what an uncut study has, having left the first cell alone."""
    words = ("--vary", "sequences=800,24000", "--threads", "1")
    out = tmp_path / "killed"
    process = begin(cache, command(out, *words, sets=LONGER))
    second = out / "cells" / "grid-sequences-24-000" / "last.safetensors"
    wait_until(second.exists, "a checkpoint of the second cell", process)
    children = psutil.Process(process.pid).children()
    process.kill()
    process.wait()
    assert not (second.parent / "result.json").exists()
    psutil.wait_procs(children, timeout=SECONDS)
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)
    before = contents(out / "cells" / "grid-sequences-800")
    result = run(cache, command(out, *words, sets=LONGER))
    assert result.code == 0, result.stderr
    assert "1 of 2 cells are finished already" in result.stderr
    assert "grid-sequences-24-000: resumed" in result.stderr
    assert contents(out / "cells" / "grid-sequences-800") == before
    uncut = tmp_path / "uncut"
    assert run(cache, command(uncut, *words, sets=LONGER)).code == 0
    assert losses(out) == losses(uncut)


def test_a_study_that_is_killed_while_its_cell_begins(tmp_path: Path, cache: Path) -> None:
    """Would catch a cell that trains on for nobody, for hours, since its study was gone before it looked for it."""
    process = begin(cache, command(tmp_path / "study", "--vary", "sequences=1000000", sets=LONGER))

    def cells() -> list[psutil.Process]:
        with suppress(psutil.Error):  # a process that has ended meanwhile
            all_of_it = psutil.Process(process.pid).children()
            return [child for child in all_of_it if "rhapsode.studies.cell" in child.cmdline()]
        return []

    wait_until(cells, "a cell", process)
    begun = cells()
    process.kill()
    process.wait()
    _, going_on = psutil.wait_procs(begun, timeout=SECONDS)
    assert begun
    assert not any(child.status() != psutil.STATUS_ZOMBIE for child in going_on)


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Path, cache: Path) -> None:
    words = command(tmp_path / "study", "--vary", "sequences=1000000", sets=LONGER)
    process = begin(cache, words)
    cell = tmp_path / "study" / "cells" / "grid-sequences-1-000-000"
    wait_until((cell / "last.safetensors").exists, "a checkpoint", process)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=SECONDS)
    assert process.returncode == 130
    assert "resume it with: rhapsode study grid storyworld:120 --valid" in told
    assert "stopped and saved" in (cell / "log.txt").read_text()
    assert not (cell / "result.json").exists()


@pytest.mark.slow
def test_a_killed_cell_does_not_stop_the_others(tmp_path: Path, cache: Path) -> None:
    """What the system does to a process that takes too much memory."""
    out = tmp_path / "study"
    process = begin(cache, command(out, "--vary", "sequences=1000000,800", sets=LONGER))
    wait_until((out / "cells" / "grid-sequences-1-000-000" / "run.json").exists, "the first cell", process)
    psutil.Process(process.pid).children()[0].kill()
    _, told = process.communicate(timeout=SECONDS)
    assert process.returncode == 1, told
    assert "grid-sequences-1-000-000 failed: killed by SIGKILL" in told
    assert list(losses(out)) == ["grid-sequences-800"]


def seconds_of_cores() -> float:
    """What the processes that were begun here, and have ended, took of the cores."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.slow
def test_minutes_choose_a_scale_that_is_kept(tmp_path: Path, cache: Path) -> None:
    """The whole must end in about the time that was given, and going on must not choose again.

    What it takes is counted by the cores, which hear nothing of the programs beside it that come and go; a busy machine
    gets more minutes, since a cell's start may take all of one.
    """
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", "import rhapsode.studies.cell"], check=True)
    minutes = max(1.0, round(12 * (time.monotonic() - started) / 60, 1))
    sets = (*SMALL[:-1], "sequences=100000000")
    words = command(tmp_path / "study", "--vary", "hidden_dim=8,16", "--minutes", f"{minutes:g}", sets=sets)
    before = seconds_of_cores()
    result = run(cache, words)
    took = seconds_of_cores() - before
    assert result.code == 0, result.stderr
    about = json.loads((tmp_path / "study" / "study.json").read_text())
    assert 0 < about["scale"] < 0.1
    assert 5 < took < 2 * 120 * minutes  # of two threads
    assert run(cache, words).code == 0
    assert json.loads((tmp_path / "study" / "study.json").read_text()) == about
    assert f"chosen to fit into {minutes:g} minutes" in (tmp_path / "study" / "report.md").read_text()


def test_too_few_minutes_are_told(tmp_path: Path, cache: Path) -> None:
    result = run(cache, command(tmp_path / "study", "--vary", "hidden_dim=8,16", "--minutes", "0.01"))
    assert result.code == 2
    assert "give more minutes" in result.stderr.splitlines()[-1]
    assert not (tmp_path / "study").exists()


@pytest.mark.slow
def test_all_four_of_the_course_in_one_page(tmp_path: Path, cache: Path) -> None:
    words = ["study", "all", "storyworld:300", "--scale", "0.0005"]
    out = tmp_path / "all"
    result = run(cache, [*words, "--valid", "storyworld:20:valid", "--out", str(out), "--publish", str(tmp_path)])
    assert result.code == 0, result.stderr
    assert len(losses(out)) == 11
    large = Study.open(out).plan.cells["temperature-large"]
    completions = Study.open(out).result(large)["completions"]  # type: ignore[index]
    assert [entry["temperature"] for entry in completions] == [0.0, 0.3, 0.8]
    assert [len(entry["texts"]) for entry in completions] == [1, 3, 3]
    assert (tmp_path / "all.md").is_file()


@pytest.fixture(scope="module")
def store(cache: Path) -> TokenStore:
    source = open_source(["storyworld:40"])
    return prepare(source, tokenizer_for(source, "characters", cache_dir=cache), cache)


def test_validation_scores_what_training_scores(store: TokenStore) -> None:
    """The view's loss is that of the batches that training draws from the same stories, token for token."""
    length = 33
    view = valid_view(store, 0, length, seed=0)
    model = build_model(ModelConfig(store.vocab_size, embed_dim=7, hidden_dim=9, key_dim=5, value_dim=3), seed=1)
    batch = Batcher(store, BatchConfig(length - 1, store.num_stories, "first", shuffle=False), 0).next()
    with torch.inference_mode():
        loss, _ = model.loss(batch.inputs, batch.targets)
    found = score(model, view)
    assert found.num_tokens == int((batch.targets != IGNORED).sum())
    assert found.nats_per_token == pytest.approx(loss.item(), rel=1e-5)


def test_the_view_is_a_seeded_draw_of_whole_or_cut_stories(store: TokenStore) -> None:
    whole = valid_view(store, 10, None, seed=3)
    cut = valid_view(store, 10, 20, seed=3)
    assert whole.num_stories == cut.num_stories == 10
    for i in range(10):
        np.testing.assert_array_equal(cut.story(i), whole.story(i)[:20])
    assert valid_view(store, 10, 20, seed=3).fingerprint == cut.fingerprint
    assert valid_view(store, 10, 20, seed=4).fingerprint != cut.fingerprint
    assert valid_view(store, 0, None, seed=3) is store


def test_seeds_side_by_side_get_what_they_get_alone(cache: Path, tmp_path: Path) -> None:
    """Would catch seeds that mix in one process, a result that is missing, and a report that does not say so.

    Two shapes of two seeds are two processes; one cell fails by itself, and the same command retries it alone.
    """
    widths = ("--vary", "hidden_dim=6,8", "--seeds", "2")
    alone, beside = tmp_path / "alone", tmp_path / "beside"
    assert run(cache, command(alone, *widths)).code == 0
    blocked = beside / "cells" / "grid-hidden-dim-8-seed1"
    blocked.mkdir(parents=True)
    (blocked / "run.json").write_text("{")
    (study_begun := beside / "begun").touch()  # a study begins in an empty folder only
    shutil.rmtree(beside)
    ended = run(cache, command(beside, *widths, "--together"))
    assert ended.code == 0, ended.stderr
    assert "grid-hidden-dim-6-seed0: started, beside 1 others" in ended.stderr
    assert not study_begun.exists()
    for name in (cell.name for cell in Study.open(alone).plan.cells.values()):
        found, wanted = (json.loads((out / "cells" / name / "result.json").read_text()) for out in (beside, alone))
        assert [p["step"] for p in found["points"]] == [p["step"] for p in wanted["points"]]
        for loss in ("train_loss", "valid_loss"):
            got, expected = ([point[loss] for point in each["points"]] for each in (found, wanted))
            np.testing.assert_allclose(got, expected, rtol=1e-4)
    study = Study.open(beside)
    study.note(cuda_graph=False)  # what the cells read; sealed like all of it
    assert Study.open(beside).cuda_graph is False
    assert Study.open(alone).cuda_graph is None
    assert "those of one shape side by side, at most 1 such groups at once" in (beside / "report.md").read_text()
