"""One cell of a study, in a process of its own, so that whatever happens to it happens to it alone.

    python -m rhapsode.studies.cell STUDY_DIRECTORY CELL[,CELL...] THREADS [STORAGE]

Several cells are trained side by side, and what one of them fails of is told in its log alone. With a storage, the
study is found there, and the cell works in a folder of this machine (storage.py).

Trains the cell's run directory to its end, from its checkpoint if it has one, and writes result.json last. Exit code
0: finished; 130: stopped and saved; 2: one line on stderr says what went wrong.
"""

import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from rhapsode.decode import Engine, SampleConfig, write
from rhapsode.machine import device_name, eager, graph_capture
from rhapsode.recipe import Recipe
from rhapsode.run import Run
from rhapsode.studies.data import valid_view
from rhapsode.studies.directory import Study
from rhapsode.studies.engines import STUDY_PROCESS
from rhapsode.studies.plans import Cell
from rhapsode.studies.statistics import distinct, repetition
from rhapsode.studies.storage import get_cell, get_study, put_cell
from rhapsode.studies.tasks import TASKS
from rhapsode.studies.tracking import REFERENCE_STORIES, answers_right, references_right, task_stores
from rhapsode.terminal import EXIT_STOPPED
from rhapsode.tokenizer import Tokenizer
from rhapsode.tokens import BatchConfig, Batcher, TokenStore
from rhapsode.training import Event, Outcome, Saved, train_run
from rhapsode.training.start import create_run
from rhapsode.training.together import OF_ONE_RUN, Trainee, train_together

_Found = TypeVar("_Found")

PROMPT = "Once upon a time there was a"
TEMPERATURES = (0.0, 0.3, 0.8)
COMPLETIONS = 32  # that are counted, for each temperature above 0
SHOWN = 3
COMPLETION_TOKENS = 112  # with the prompt and </s>, about the 128 that training reads of a story
SECONDS_FOR_ANOTHER = 60.0  # to save and go, after the study that it belonged to was killed


class _Opened(NamedTuple):
    """A cell's run, and what it trains on and is validated on."""

    run: Run
    train: TokenStore
    valid: TokenStore


def run_cell(study: Study, cell: Cell, threads: int, storage: str | None = None) -> str:
    """Trains the cell and writes its result; returns how training ended, as in `Outcome.ended`.

    storage: where it was continued from, and what is saved is copied to.
    """
    torch.set_num_threads(threads)
    opened = _open(study, cell, threads)
    capture = graph_capture(study.device, study.cuda_graph)

    def train() -> Outcome:
        copy = _copying(study, cell, storage)
        return train_run(*opened, study.device, show=False, on_event=copy, capture=capture)

    outcome = _train_when_free(train)
    _close(study, cell, opened, outcome, threads, storage)
    return outcome.ended


def run_beside(study: Study, cells: Sequence[Cell], threads: int, storage: str | None = None) -> dict[str, str]:
    """Trains cells of one shape side by side and writes their results; returns how each ended, by its name.

    What a cell fails of is told in its own log, and is `failed`.
    """
    torch.set_num_threads(threads)
    capture = graph_capture(study.device, study.cuda_graph) or eager
    ended: dict[str, str] = {}

    def failed(cell: Cell, error: Exception) -> None:
        study.log_path(cell).parent.mkdir(exist_ok=True)
        with study.log_path(cell).open("a", encoding="utf-8") as log:
            log.write(f"{one_line(error)}\n")
        ended[cell.name] = "failed"

    opened: list[tuple[Cell, _Opened]] = []
    for cell in cells:
        try:
            opened.append((cell, _open(study, cell, threads)))
        except OF_ONE_RUN as error:
            failed(cell, error)
    trainees = [Trainee(*parts, _copying(study, cell, storage)) for cell, parts in opened]
    outcomes = _train_when_free(lambda: train_together(trainees, study.device, capture))
    for (cell, parts), outcome in zip(opened, outcomes, strict=True):
        try:
            if isinstance(outcome, Exception):
                raise outcome
            _close(study, cell, parts, outcome, threads, storage)
            ended[cell.name] = outcome.ended
        except OF_ONE_RUN as error:
            failed(cell, error)
    return ended


def _open(study: Study, cell: Cell, threads: int) -> _Opened:
    about, path = study.about, study.cell_path(cell)
    tokenizer: Tokenizer | None = None
    if cell.task in TASKS:
        train_store, view = task_stores(cell.task, cell.sections)
    else:
        tokenizer = study.tokenizer()
        train_store, valid_store = study.stores()
        view = valid_view(valid_store, about["valid_stories"], study.plan.valid_tokens, study.request.seed)
    if (path / "run.json").exists():
        run = Run.open(path)
    else:
        recipe = Recipe.from_sections(cell.sections, train_store.vocab_size)
        more = {"study": study.identity(cell), "threads": threads, "device": device_name(study.device)}
        more |= {"task": cell.task} if cell.task in TASKS else {}
        run = create_run(path, recipe, tokenizer, more)
    if run.about.get("study") != study.identity(cell):
        raise ValueError(f"{path} holds a run with a different plan; remove it to start this cell again")
    return _Opened(run, train_store, view)


def _close(study: Study, cell: Cell, opened: _Opened, outcome: Outcome, threads: int, storage: str | None) -> None:
    """Writes the result of a cell that was trained to its end."""
    if outcome.ended != "interrupted":
        result = _result(opened.run, outcome, cell, opened.train, threads, study.device)
        asked = min(REFERENCE_STORIES, study.about["valid_stories"] or REFERENCE_STORIES)
        study.finish(cell, result | ({"tracking": _tracking(opened.run, cell, asked)} if cell.task else {}))
    if storage is not None:
        put_cell(study.cell_path(cell), storage)


def _copying(study: Study, cell: Cell, storage: str | None) -> Callable[[Event], None]:
    """Copies what a cell saves to the storage, where there is one."""

    def copy(event: Event) -> None:
        if storage is not None and isinstance(event, Saved):
            put_cell(study.cell_path(cell), storage)

    return copy


def _train_when_free(train: Callable[[], _Found]) -> _Found:
    """Trains; waits first for the process of a killed study, which saves and goes when it finds itself alone."""
    deadline = time.monotonic() + SECONDS_FOR_ANOTHER
    while True:
        try:
            return train()
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def _result(
    run: Run, outcome: Outcome, cell: Cell, train_store: TokenStore, threads: int, device: str
) -> dict[str, Any]:
    """What the report needs. Losses are nats per token; seconds are of training, without validation.

    Completions are written on the CPU whatever the device: one token at a time there is nothing to win elsewhere.
    """
    keys = ("step", "sequences", "tokens", "seconds", "train_loss", "valid_loss")
    if changed := run.changed_metrics():
        raise ValueError(f"{changed}; remove {run.path} to train this cell again")
    points = [{key: event[key] for key in keys} for event in run.metrics() if event["event"] == "valid"]
    progress = outcome.progress
    model = run.load_model("last")
    engines = [Engine(model, run.tokenizer)] if cell.completions else []  # a task has no tokenizer
    batches_per_epoch = Batcher(train_store, run.config("batch", BatchConfig), cell.seed).batches_per_epoch
    return {
        "ended": outcome.ended,
        "points": points,
        "seconds": progress.seconds,
        "epochs": progress.step / batches_per_epoch,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "threads": threads,
        "threads_begun": run.about["threads"],
        "device": device_name(device),
        "device_begun": run.about.get("device", "cpu"),
        "completions": [_completions(engine, t, cell.seed) for engine in engines for t in TEMPERATURES],
    }


def _tracking(run: Run, cell: Cell, asked: int) -> dict[str, Any]:
    """How many of the task's answers are right, and how far; asked: of how many stories the references are."""
    model = run.load_model("last")
    if cell.task in TASKS:
        return answers_right(model, cell.task, cell.seed) | {"trained": cell.sections["batch"]["window"]}
    return references_right(model, run.tokenizer, asked, cell.sections["batch"]["window"])


def _completions(engine: Engine, temperature: float, seed: int) -> dict[str, Any]:
    """Completions of PROMPT at a temperature: the first texts, and the numbers of each of them all.

    At temperature 0 nothing is drawn: all completions are one, so one is made.
    """
    count = COMPLETIONS if temperature else 1
    config = SampleConfig(COMPLETION_TOKENS, temperature, seed=seed)
    texts = [""] * count
    ids: list[list[int]] = [[] for _ in range(count)]
    log_probabilities: list[list[float]] = [[] for _ in range(count)]
    for sample, written in write(engine, PROMPT, config, count):
        texts[sample] += written.text
        log_probabilities[sample].append(written.log_probability)
        if written.id != engine.tokenizer.eos_id:
            ids[sample].append(written.id)
    return {
        "temperature": temperature,
        "texts": texts[:SHOWN],
        "distinct": {str(n): [distinct(sample, n) for sample in ids] for n in (1, 2, 3)},
        "repetition": [repetition(sample) for sample in ids],
        "log_probability": [sum(sample) / len(sample) for sample in log_probabilities],
    }


def _leave_with_parent() -> None:
    """Asks this process to save and stop once the study that started it is gone, perhaps while this one began."""
    parent = int(os.environ.get(STUDY_PROCESS) or os.getppid())

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _from_storage(storage: str, names: Sequence[str], folder: Path) -> Study:
    get_study(storage, folder)
    study = Study.open(folder)
    for name in names:
        get_cell(storage, study.cell_path(study.plan.cells[name]))
    return study


def one_line(error: Exception) -> str:
    """What went wrong, for the report."""
    return str(error).strip().replace("\n", " ") or type(error).__name__


def main(arguments: list[str]) -> int:
    """The process: (study directory, cell or cells, threads, storage or nothing) -> exit code."""
    path, joined, threads, *storage = arguments
    names = joined.split(",")
    _leave_with_parent()
    try:
        with tempfile.TemporaryDirectory(prefix="rhapsode-cell-") if storage else nullcontext(path) as folder:
            study = _from_storage(storage[0], names, Path(folder)) if storage else Study.open(Path(folder))
            cells, where = [study.plan.cells[name] for name in names], (storage[0] if storage else None)
            if len(cells) == 1:
                ended = {names[0]: run_cell(study, cells[0], int(threads), where)}
            else:
                ended = run_beside(study, cells, int(threads), where)
    except (*OF_ONE_RUN, MemoryError, RuntimeError) as error:
        print(one_line(error), file=sys.stderr)
        return 2
    if "failed" in ended.values():
        return 2
    return EXIT_STOPPED if "interrupted" in ended.values() else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
