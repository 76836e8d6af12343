"""Runs the cells of a study: each in a process of its own, one after another or several at once.

A finished cell is left alone, one that was cut off goes on from its checkpoint, one that fails is told of and the
others go on. The first Ctrl-C lets the cells save; a second one stops them at once.
"""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from rich.live import Live
from rich.table import Table

from rhapsode.model import ModelConfig, build_model
from rhapsode.progress import SECONDS_BETWEEN_LINES, console, say
from rhapsode.studies.directory import Study
from rhapsode.studies.engines import CellAtWork, CellEngine
from rhapsode.studies.groups import groups_of
from rhapsode.studies.plans import Cell
from rhapsode.studies.storage import get_cell
from rhapsode.studies.tasks import TASKS
from rhapsode.training import Interrupted

SECONDS_BETWEEN_LOOKS = 0.25
LAST_BYTES = 4096  # of metrics.jsonl: more than its longest line
OVERHEAD_PARAMETERS = 300_000  # what a token costs beside the parameters' share, in parameters; for the ETA alone


@dataclass
class _Job:
    """A cell and how far it is. share: of its training, in [0, 1]. work: in parameters times tokens, roughly."""

    cell: Cell
    work: float
    state: str = "waiting"
    share: float = 0.0
    loss: float | None = None
    seconds: float = 0.0
    process: CellAtWork | None = None
    log: IO[bytes] | None = None
    started: float = 0.0
    share_before: float = 0.0


@dataclass
class _Stop:
    """How often the user asked to stop."""

    asked: int = 0
    event: threading.Event = field(default_factory=threading.Event)


def run_cells(
    study: Study, jobs: int, threads: int, engine: CellEngine, storage: str | None = None, together: bool = False
) -> dict[str, str]:
    """Runs all cells that are not finished, `jobs` at once with `threads` CPU threads each.

    engine: what starts them; storage: where they keep their files, if not in the study's directory. together: cells of
    one shape are trained side by side, and count as one of the jobs.

    Returns what went wrong, by the name of the cell. Raises Interrupted after Ctrl-C or SIGTERM.
    """
    all_jobs = [_job(study, cell) for cell in study.plan.cells.values()]
    waiting = [job for job in all_jobs if job.state == "waiting"]
    if jobs > 1:
        waiting.sort(key=lambda job: -job.work)  # a long one that begins last would run alone at the end
    if len(waiting) < len(all_jobs):
        say(f"{len(all_jobs) - len(waiting)} of {len(all_jobs)} cells are finished already")
    failed: dict[str, str] = {}
    by_name = {job.cell.name: job for job in waiting}
    groups = [[by_name[cell.name] for cell in group] for group in groups_of([j.cell for j in waiting], together)]
    running: list[_Job] = []
    began = told = time.monotonic()
    live = Live(console=console, refresh_per_second=4) if console.is_terminal and waiting else None
    with _interruptible() as stop, live or nullcontext():
        try:
            while running or (groups and not stop.asked):
                while groups and len({id(job.process) for job in running}) < jobs and not stop.asked:
                    _start(study, groups[0], threads, engine)
                    running += groups.pop(0)
                for job in list(running):
                    if _look(study, job):
                        running.remove(job)
                        if storage is not None:
                            get_cell(storage, study.cell_path(job.cell))
                        _end(study, job, failed, bool(stop.asked), silent=live is not None)
                if live:
                    live.update(_table(all_jobs, began))
                elif running and time.monotonic() - told > SECONDS_BETWEEN_LINES:
                    told = time.monotonic()
                    shares = ", ".join(f"{job.cell.name} {job.share:.0%}" for job in running)
                    done = sum(job.share == 1 for job in all_jobs)
                    say(f"{shares}; {done} of {len(all_jobs)} done; {_left(all_jobs)}")
                if stop.event.wait(SECONDS_BETWEEN_LOOKS):
                    stop.event.clear()
                    for process in {id(job.process): job.process for job in running if job.process}.values():
                        process.kill() if stop.asked > 1 else process.terminate()
        finally:
            for job in running:
                if job.process and job.process.poll() is None:
                    job.process.terminate()
                    job.process.wait()
    if stop.asked:
        raise Interrupted
    return failed


def _job(study: Study, cell: Cell) -> _Job:
    train, batch = cell.sections["train"], cell.sections["batch"]
    vocab_size = TASKS[cell.task].vocab_size if cell.task in TASKS else study.about["vocab_size"]
    model = build_model(ModelConfig(**{**cell.sections["model"], "vocab_size": vocab_size}), seed=0)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    sequences = train.get("sequences") or train.get("tokens", 0) / batch["window"]
    sequences = sequences or train.get("epochs", 0.0) * study.about["data"]["num_stories"] or 1
    validation = train["validations"] * study.about["valid_sequences"] / 3  # no gradient: a third of the work
    job = _Job(cell, (parameters + OVERHEAD_PARAMETERS) * batch["window"] * (sequences + validation))
    result = study.result(cell)
    if result is not None:
        job.state, job.share, job.loss = "finished before", 1.0, result["points"][-1]["valid_loss"]
        job.seconds = result["seconds"]
    return job


def _start(study: Study, group: list[_Job], threads: int, engine: CellEngine) -> None:
    """Starts the process of a cell, or of several that are trained side by side; it writes to the log of the first."""
    path = study.log_path(group[0].cell)
    path.parent.mkdir(exist_ok=True)
    for job in group[1:]:
        study.log_path(job.cell).unlink(missing_ok=True)
    group[0].log = path.open("wb")
    process = engine.start(study, [job.cell for job in group], threads, group[0].log)
    for job in group:
        job.process, job.state, job.started = process, "running", time.monotonic()
        job.share_before = job.share = _share(study.cell_path(job.cell))[0]
        if not console.is_terminal:
            beside = f", beside {len(group) - 1} others" if len(group) > 1 else ""
            say(f"{job.cell.name}: {'resumed' if job.share else 'started'}{beside}")


def _look(study: Study, job: _Job) -> bool:
    """Reads how far the job is; True once its process has ended."""
    assert job.process is not None
    ended = job.process.poll() is not None
    share, loss, seconds = _share(study.cell_path(job.cell))
    job.share, job.loss, job.seconds = min(share, 0.999), loss, seconds
    return ended


def _share(path: Path) -> tuple[float, float | None, float]:
    """(share of the steps, last loss told, seconds of training) of a run directory, from outside."""
    try:
        with (path / "metrics.jsonl").open("rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - LAST_BYTES))
            last = json.loads(stream.read().split(b"\n")[-2])
        run: dict[str, Any] = json.loads((path / "run.json").read_text(encoding="utf-8"))
        total = _total_steps(run)
        return (last["step"] / total if total else 0.0), last.get("valid_loss", last["train_loss"]), last["seconds"]
    except (OSError, ValueError, IndexError, KeyError, TypeError):
        return 0.0, None, 0.0


def _total_steps(run: dict[str, Any]) -> int:
    if run.get("plan"):
        return int(run["plan"][-1][1])
    return -(-run["train"]["sequences"] // run["batch"]["batch_size"])


def _end(study: Study, job: _Job, failed: dict[str, str], stopping: bool, silent: bool) -> None:
    """Notes how the job's process ended."""
    assert job.process is not None
    if job.log is not None:
        job.log.close()
    name, code = job.cell.name, job.process.returncode
    result = study.result(job.cell)
    if result is not None:
        last = result["points"][-1]
        job.state, job.share, job.loss = "finished", 1.0, last["valid_loss"]
        job.seconds = result["seconds"]
        if not silent:
            losses = f"training {last['train_loss']:.3f}, validation {last['valid_loss']:.3f}"
            say(f"{name}: {losses}; {result['seconds']:,.1f} s of training")
        return
    if stopping:
        job.state = "stopped"
        return
    path = study.log_path(job.cell)  # of several side by side, only one that fails by itself has its own
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines() if path.exists() else []
    if code < 0:
        reason = f"killed by {signal.Signals(-code).name}"
        if -code == signal.SIGKILL:
            reason += ", perhaps because memory ran out"
    else:
        reason = lines[-1] if lines else f"exit code {code}"
    job.state, failed[name] = "failed", reason
    say(f"{name} failed: {reason} ({study.log_path(job.cell)}); the other cells continue")


def _left(jobs: list[_Job]) -> str:
    """The time left, from the work done in this process and the time it took."""
    now = time.monotonic()
    begun = [job for job in jobs if job.started]
    done = sum((job.share - job.share_before) * job.work for job in begun)
    work = sum((1 - job.share) * job.work for job in jobs if job.state in ("waiting", "running"))
    if not begun or done <= 0:
        return "time left not known yet"
    seconds = work / done * (now - min(job.started for job in begun))
    return f"about {_clock(seconds)} left"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


def _table(jobs: list[_Job], began: float) -> Table:
    """All cells: how far each is, its last loss, its seconds of training."""
    done = sum(job.state.startswith("finished") for job in jobs)
    title = f"{done} of {len(jobs)} cells, {_clock(time.monotonic() - began)} so far, {_left(jobs)}"
    table = Table(title=title, title_justify="left")
    for name in ("cell", "state", "done", "loss", "s"):
        table.add_column(name, no_wrap=name != "cell", justify="right" if name in ("loss", "s") else "left")
    shown = _on_the_screen(jobs, max(3, console.height - 8))
    for job in shown:
        width = int(12 * job.share)
        bar = "━" * width + "─" * (12 - width)
        loss = "" if job.loss is None else f"{job.loss:.3f}"
        table.add_row(job.cell.name, job.state, f"{bar} {job.share:4.0%}", loss, f"{job.seconds:,.1f}")
    if len(shown) < len(jobs):
        table.caption = f"and {len(jobs) - len(shown)} more"
    return table


def _on_the_screen(jobs: list[_Job], most: int) -> list[_Job]:
    """The jobs that fit: those that run, then those that failed, then the others; in their order."""
    rank = {"running": 0, "failed": 1, "waiting": 2}
    kept = sorted(range(len(jobs)), key=lambda i: (rank.get(jobs[i].state, 3), i))[:most]
    return [jobs[i] for i in sorted(kept)]


@contextmanager
def _interruptible() -> Iterator[_Stop]:
    """Yields what Ctrl-C and SIGTERM are noted in."""
    stop = _Stop()

    def ask(number: int, _: Any) -> None:
        stop.asked += 1
        stop.event.set()
        if stop.asked == 1:
            say("stopping: the cells save their progress; press Ctrl-C again to stop them immediately")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
