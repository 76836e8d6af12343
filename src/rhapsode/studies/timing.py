"""How large a study may be to end within so many minutes: a few steps of each shape are timed, then counted."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from rhapsode.evaluation import score
from rhapsode.machine import synchronize
from rhapsode.model import ModelConfig, build_model
from rhapsode.progress import say
from rhapsode.recipe import OptimizerConfig, TrainConfig
from rhapsode.recipe.changes import build
from rhapsode.studies.data import valid_view
from rhapsode.studies.plans import Cell, StudyPlan
from rhapsode.studies.tasks import TASKS
from rhapsode.studies.tracking import LENGTH, REFERENCE_STORIES, REFERENCES, TEST_SEQUENCES, TESTED, task_stores
from rhapsode.threads import ThreadChooser, chosen_threads
from rhapsode.tokens import BatchConfig, Batcher, TokenStore
from rhapsode.training import Optimizers
from rhapsode.training.plan import first_plan

TIMED_STEPS = 3
TIMED_SECONDS = 2.0
TIMED_STORIES = 32
MARGIN = 0.85  # of the time is planned with: other programs want the machine too
VALIDATION_SHARE = 0.3  # of the time, at most, unless the number of validation stories was named
FEWEST_VALID_STORIES = 100
SMALLEST_SCALE = 1e-5
REFERENCES_COST = 25  # of asking about a story, in scorings of it


@dataclass(frozen=True)
class Pace:
    """Seconds of one step, of scoring one story, and of everything else of a cell."""

    step: float
    story: float
    start: float


@dataclass(frozen=True)
class Fit:
    """What was decided: scale, validation stories, and the seconds that they should take."""

    scale: float
    valid_stories: int
    seconds: float


def fit_scale(
    plan_at: Callable[[float], StudyPlan],
    train_store: TokenStore,
    valid_store: TokenStore,
    seconds: float,
    valid_stories: int,
    may_validate_less: bool,
    jobs: int,
    device: str,
) -> Fit:
    """The largest scale, 1 at most, with which the plan should end within so many seconds from now.

    plan_at: the plan of a scale. may_validate_less: whether fewer validation stories than asked for may be chosen.
    PyTorch's threads must be those of a cell. Raises ValueError where not even one step of each cell would fit.
    """
    began = time.monotonic()
    plan = plan_at(1.0)
    say("timing a few steps of each model size")
    paces = _paces(plan, train_store, valid_store, device)
    left = MARGIN * (seconds - (time.monotonic() - began))

    def needed(scale: float, stories: int) -> float:
        cells = plan_at(scale).cells.values()
        times = [_seconds(cell, paces[_shape(cell)], train_store, stories) for cell in cells]
        return max(sum(times) / jobs, *times)

    stories = min(valid_stories or valid_store.num_stories, valid_store.num_stories)
    if may_validate_less:
        without = needed(SMALLEST_SCALE, 0)
        validation = needed(SMALLEST_SCALE, stories) - without
        share = VALIDATION_SHARE * left / validation
        stories = min(stories, max(FEWEST_VALID_STORIES, int(stories * share)))
    if needed(SMALLEST_SCALE, stories) > left:
        minutes = needed(SMALLEST_SCALE, stories) / MARGIN / 60
        raise ValueError(
            f"--minutes {seconds / 60:g}: {len(plan.cells)} cells need {minutes:.1f} minutes for start-up and"
            " validation alone; give more minutes or lower --valid-stories"
        )
    low, high = SMALLEST_SCALE, 1.0
    if needed(high, stories) <= left:
        low = high
    while high / low > 1.01:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if needed(middle, stories) <= left else (low, middle)
    scale = float(f"{low:.2g}")
    scale = scale if scale <= low else float(f"{0.95 * low:.2g}")
    return Fit(scale, stories, needed(scale, stories))


def _shape(cell: Cell) -> str:
    """Cells of one shape take the same time for a step."""
    parts = [cell.sections["model"], cell.sections["batch"], cell.sections["optimizer"], cell.task]
    return json.dumps(parts, sort_keys=True)


def _paces(plan: StudyPlan, train_store: TokenStore, valid_store: TokenStore, device: str) -> dict[str, Pace]:
    started = time.monotonic()
    begin = f"import rhapsode.studies.cell, torch; torch.zeros(1, device={device!r})"  # a GPU takes seconds to begin
    subprocess.run([sys.executable, "-c", begin], check=True)
    start = time.monotonic() - started
    few = valid_view(valid_store, TIMED_STORIES, plan.valid_tokens, 0)
    paces: dict[str, Pace] = {}
    with chosen_threads() as threads:  # as in the cells themselves
        for cell in plan.cells.values():
            if _shape(cell) not in paces:
                paces[_shape(cell)] = _pace(cell, train_store, few, start, device, threads)
    return paces


def _pace(
    cell: Cell, train_store: TokenStore, few: TokenStore, start: float, device: str, threads: ThreadChooser
) -> Pace:
    if cell.task in TASKS:
        few_sequences = {**cell.sections["train"], "sequences": cell.sections["batch"]["batch_size"]}
        train_store, few = task_stores(cell.task, {**cell.sections, "train": few_sequences})
    config = ModelConfig(**{**cell.sections["model"], "vocab_size": train_store.vocab_size})
    model = build_model(config, seed=0).to(device)
    optimizers = Optimizers(model, build(OptimizerConfig, cell.sections["optimizer"]))
    batcher = Batcher(train_store, build(BatchConfig, cell.sections["batch"]), 0)
    times: list[float] = []
    while len(times) < 2 or (len(times) <= TIMED_STEPS and sum(times) < TIMED_SECONDS):
        began = time.monotonic()
        batch = batcher.next()
        loss, _ = model.loss(batch.inputs.to(device), batch.targets.to(device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizers.step(1.0)
        synchronize(device)
        times.append(time.monotonic() - began)
        threads.worked(cell.name, times[-1])
    began = time.monotonic()
    score(model, few)
    story = (time.monotonic() - began) / few.num_stories
    ending = 64 * story * cell.completions + times[0]  # completions are as many tokens; the first step is slow
    if cell.task:
        ending += story * (
            REFERENCE_STORIES * REFERENCES_COST if cell.task == REFERENCES else TEST_SEQUENCES * TESTED / LENGTH
        )
    return Pace(sorted(times[1:])[(len(times) - 1) // 2], 0.0 if cell.task in TASKS else story, start + ending)


def _seconds(cell: Cell, pace: Pace, train_store: TokenStore, valid_stories: int) -> float:
    """Seconds of a whole cell."""
    training = build(TrainConfig, cell.sections["train"])
    if training.minutes:
        steps, seconds = training.validations, 60 * training.minutes
    else:
        batcher = Batcher(train_store, build(BatchConfig, cell.sections["batch"]), 0)
        steps = first_plan(training, 0, batcher).total(0)
        seconds = steps * pace.step
    return pace.start + seconds + min(steps, training.validations) * valid_stories * pace.story
