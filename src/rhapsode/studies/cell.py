"""One cell of a study, in a process of its own, so that whatever happens to it happens to it alone.

    python -m rhapsode.studies.cell STUDY_DIRECTORY CELL THREADS [STORAGE]

With a storage, the study is found there, and the cell works in a folder of this machine (storage.py).

Trains the cell's run directory to its end, from its checkpoint if it has one, and writes result.json last. Exit code
0: finished; 130: stopped and saved; 2: one line on stderr says what went wrong.
"""

import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from rhapsode.decode import Engine, SampleConfig, write
from rhapsode.machine import device_name
from rhapsode.recipe import Recipe
from rhapsode.run import Run
from rhapsode.studies.data import valid_view
from rhapsode.studies.directory import Study
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

PROMPT = "Once upon a time there was a"
TEMPERATURES = (0.0, 0.3, 0.8)
COMPLETIONS = 32  # that are counted, for each temperature above 0
SHOWN = 3
COMPLETION_TOKENS = 112  # with the prompt and </s>, about the 128 that training reads of a story
SECONDS_FOR_ANOTHER = 60.0  # to save and go, after the study that it belonged to was killed


def run_cell(study: Study, cell: Cell, threads: int, storage: str | None = None) -> str:
    """Trains the cell and writes its result; returns how training ended, as in `Outcome.ended`.

    storage: where it was continued from, and what is saved is copied to.
    """
    torch.set_num_threads(threads)
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

    def copy(event: Event) -> None:
        if storage is not None and isinstance(event, Saved):
            put_cell(path, storage)

    outcome = _train_when_free(run, train_store, view, study.device, copy)
    if outcome.ended != "interrupted":
        result = _result(run, outcome, cell, train_store, threads, study.device)
        asked = min(REFERENCE_STORIES, about["valid_stories"] or REFERENCE_STORIES)
        study.finish(cell, result | ({"tracking": _tracking(run, cell, asked)} if cell.task else {}))
    if storage is not None:
        put_cell(path, storage)
    return outcome.ended


def _train_when_free(
    run: Run, train_store: TokenStore, valid_store: TokenStore, device: str, on_event: Callable[[Event], None]
) -> Outcome:
    """Trains; waits first for the process of a killed study, which saves and goes when it finds itself alone."""
    deadline = time.monotonic() + SECONDS_FOR_ANOTHER
    while True:
        try:
            return train_run(run, train_store, valid_store, device, show=False, on_event=on_event)
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
    """Asks this process to save and stop once the study that started it is gone."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _run_from_storage(storage: str, name: str, threads: int) -> str:
    with tempfile.TemporaryDirectory(prefix="rhapsode-cell-") as folder:
        get_study(storage, Path(folder))
        study = Study.open(Path(folder))
        cell = study.plan.cells[name]
        get_cell(storage, study.cell_path(cell))
        return run_cell(study, cell, threads, storage)


def main(arguments: list[str]) -> int:
    """The process: (study directory, cell, threads, storage or nothing) -> exit code."""
    path, name, threads, *storage = arguments
    _leave_with_parent()
    try:
        if storage:
            ended = _run_from_storage(storage[0], name, int(threads))
        else:
            study = Study.open(Path(path))
            ended = run_cell(study, study.plan.cells[name], int(threads))
    except (ValueError, OSError, FloatingPointError, MemoryError, RuntimeError) as error:
        print(str(error).strip().replace("\n", " ") or type(error).__name__, file=sys.stderr)
        return 2
    return EXIT_STOPPED if ended == "interrupted" else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
