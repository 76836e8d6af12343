"""The package's own work, timed piece by piece, in processes that wait for their turns (see neighbour.py)."""

import contextlib
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from race import core_seconds

from rhapsode.data import DataRequest, open_data
from rhapsode.decode import Engine, SampleConfig, write
from rhapsode.evaluation import score
from rhapsode.machine import keep_freed_memory
from rhapsode.model import build_model
from rhapsode.recipe import Recipe
from rhapsode.recipe.changes import merge
from rhapsode.recipe.presets import PRESETS
from rhapsode.studies.cell import run_cell
from rhapsode.studies.directory import Study
from rhapsode.studies.plans import StudyRequest
from rhapsode.studies.whole import run_study
from rhapsode.threads import fixed_threads
from rhapsode.training import train_run
from rhapsode.training.events import Event, Step
from rhapsode.training.start import create_run

DATA = ("storyworld:20000",)
VALID = ("storyworld:200:valid",)
SAMPLES = 8


class Pace(NamedTuple):
    """What a turn gave: (seconds of the monotonic clock, units done until then) after each piece of work, the first
    of them where the measurement begins; and the core-seconds that the process used."""

    marks: list[tuple[float, float]]
    core_seconds: float

    def per_second(self, since: float = 0.0) -> float:
        """Units per second from the first mark that is not before `since` to the last."""
        marks = [mark for mark in self.marks if mark[0] >= since]
        if len(marks) < 2:  # not even one piece: all that is known is the piece that it was busy with
            marks = self.marks[-2:]
        (begun, before), (ended, after) = marks[0], marks[-1]
        return (after - before) / (ended - begun)


class Enough(Exception):
    """The turn is over."""


class Clock:
    """Marks the pieces of a turn, and ends it by raising Enough after `seconds`, once two pieces are done."""

    def __init__(self, seconds: float) -> None:
        self.ends = time.monotonic() + seconds
        self.marks: list[tuple[float, float]] = []
        self.units = 0.0

    def done(self, units: float) -> None:
        """So many units more are done. The first piece is not timed: it fills caches and begins what is kept."""
        self.units += units
        self.marks.append((time.monotonic(), self.units))
        if self.marks[-1][0] >= self.ends and len(self.marks) > 2:
            raise Enough


class Works:
    """The works, each a function that does its work until the clock ends it; what they need is made before."""

    def __init__(self, names: list[str], folder: Path, quick: bool) -> None:
        self.folder, self.runs = folder, 0
        sections = merge(PRESETS["minute"], {"train": {"minutes": 60.0}})
        self.data = open_data(DataRequest(DATA, VALID), seed=0)
        self.recipe = Recipe.from_sections(sections, self.data.tokenizer.vocab_size)
        self.model = build_model(self.recipe.model, seed=0).eval()
        self.engine = Engine(self.model, self.data.tokenizer)
        if "study" in names:
            sequences = 128 if quick else 640
            assignments = (f"sequences={sequences}", "validations=1")
            request = StudyRequest("grid", DATA, VALID[0], vary=("hidden_dim=128",), assignments=assignments)
            self.study: Study = run_study(request, folder / "study", threads=torch.get_num_threads()).study

    def train(self, clock: Clock) -> None:
        self.runs += 1
        run = create_run(self.folder / f"run-{self.runs}", self.recipe, self.data.tokenizer, {})
        tokens = 0

        def on_event(event: Event) -> None:
            nonlocal tokens
            if isinstance(event, Step):
                clock.done(event.tokens - tokens)
                tokens = event.tokens

        try:
            train_run(run, self.data.train, self.data.valid, show=False, on_event=on_event)
        finally:
            shutil.rmtree(run.path)

    def generate(self, clock: Clock) -> None:
        for seed in range(10**6):
            for _ in write(self.engine, "Once", SampleConfig(seed=seed), SAMPLES):
                clock.done(1)

    def evaluate(self, clock: Clock) -> None:
        while True:
            score(self.model, self.data.valid, clock.done)

    def study_cell(self, clock: Clock) -> None:
        (cell,) = self.study.plan.cells.values()
        shutil.rmtree(self.study.cell_path(cell), ignore_errors=True)
        clock.marks.append((time.monotonic(), 0.0))
        run_cell(self.study, cell, torch.get_num_threads())
        clock.done(1)


def serve(connection: Any, names: list[str], threads: int, fixed: bool, quick: bool) -> None:
    """A contender's process: says when it is ready; then for each (work, seconds) that it receives sends a Pace."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere), tempfile.TemporaryDirectory() as folder:
        torch.set_num_threads(threads)
        keep_freed_memory()
        with fixed_threads(threads) if fixed else contextlib.nullcontext():
            works = Works(names, Path(folder), quick)
            kinds: dict[str, Callable[[Clock], None]] = {
                "train": works.train,
                "generate": works.generate,
                "evaluate": works.evaluate,
                "study": works.study_cell,
            }
            connection.send(None)
            while True:
                name, seconds = connection.recv()
                used, clock = core_seconds(), Clock(seconds)
                with contextlib.suppress(Enough):
                    kinds[name](clock)
                connection.send(Pace(clock.marks, core_seconds() - used))


@contextlib.contextmanager
def contender(names: list[str], threads: int, fixed: bool, quick: bool) -> Iterator[Any]:
    """A connection to a contender in a new process, over which it says when it is ready; ends with the block."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, names, threads, fixed, quick), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        process.kill()
        process.join()
