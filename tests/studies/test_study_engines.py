"""Cells that other machines train, by a command or by Ray, their files in a storage: the losses are those of here."""

import threading
import time
from pathlib import Path

import pytest
from test_study_runner import cache, command, losses, run, wait_until  # noqa: F401 (cache is a fixture)

from rhapsode.studies.engines import engine_named

RATES = ("--vary", "learning_rate=0.001,0.01")


@pytest.fixture(scope="module")
def here(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:  # noqa: F811
    """The losses of both cells, trained by processes of this machine."""
    out = tmp_path_factory.mktemp("studies") / "here"
    result = run(cache, command(out, *RATES))
    assert result.code == 0, result.stderr
    return losses(out)


def assert_same_ends(found: dict[str, list[float]], expected: dict[str, list[float]]) -> None:
    ends = {name: values[-1] for name, values in found.items()}
    assert ends == pytest.approx({name: values[-1] for name, values in expected.items()}, rel=1e-4)


def test_by_a_command_with_a_storage(here: dict[str, list[float]], cache: Path, tmp_path: Path) -> None:  # noqa: F811
    """Would catch a cell that needs the study's own disk, and files that are not brought back."""
    out, storage = tmp_path / "out", f"file://{tmp_path}/storage"
    more = ("--engine", "command nice -n 1", "--storage", storage, "--threads", "1")
    result = run(cache, command(out, *RATES, *more))
    assert result.code == 0, result.stderr
    assert_same_ends(losses(out), here)
    report = (out / "report.md").read_text()
    assert "finished" in report
    kept = {path.name for path in (tmp_path / "storage" / "cells" / "grid-learning-rate-0.01").iterdir()}
    assert {"result.json", "last.safetensors", "metrics.jsonl", "run.json"} <= kept


@pytest.mark.parametrize(
    ("engine", "more", "message"),
    [
        ("slurm", {}, "--engine must be local, ray, or command"),
        ("command", {}, "--engine must be local, ray, or command"),
        ("local", {"address": "auto"}, "use it with --engine ray, not 'local'"),
        ("local", {"storage": "s3://a/b"}, "with --engine local they are in --out"),
    ],
)
def test_wrong_engines(engine: str, more: dict[str, str], message: str) -> None:
    """Would catch a word that is taken for another engine, and an option that does nothing."""
    with pytest.raises(ValueError, match=message):
        engine_named(engine, **more)


def test_on_ray_with_a_worker_killed(here: dict[str, list[float]], cache: Path, tmp_path: Path) -> None:  # noqa: F811
    """Would catch a cell that is lost with the worker that trained it, or trained from its beginning twice."""
    ray = pytest.importorskip("ray", reason="needs the extra [cluster]: make cluster")
    import psutil

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        out = tmp_path / "out"
        killed: list[str] = []

        def kill_one() -> None:
            cell = out / "cells" / "grid-learning-rate-0.01"
            wait_until((cell / "last.safetensors").exists, "a checkpoint")
            for process in psutil.process_iter(["cmdline"]):
                name = " ".join(process.info["cmdline"] or [])
                if name.startswith("ray::") and cell.name in " ".join(
                    word for child in process.children() for word in child.cmdline()
                ):
                    process.kill()
                    killed.append(name)

        killer = threading.Thread(target=kill_one)
        killer.start()
        slow = ("--set", "checkpoint_seconds=0", "--set", "validations=40")
        result = run(cache, command(out, *RATES, *slow, "--engine", "ray", "--threads", "1"))
        killer.join()
        assert result.code == 0, result.stderr
        assert killed
        assert_same_ends(losses(out), here)
        logs = (out / "cells" / "grid-learning-rate-0.01" / "log.txt").read_text()
        assert "resumed at step" in logs
    finally:
        ray.shutdown()
        time.sleep(0.1)
