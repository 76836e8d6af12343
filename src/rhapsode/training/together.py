"""Several runs of one shape trained side by side in one process, a step of all of them at once.

The weights of the models lie in one piece of memory for each matrix, (K, ...), of which each model's own is a slice: so
forward and backward are one computation for all of them (`form("vmap")`), and all the rest is each run's own: its
batches, optimiser, clipping, validations, checkpoints. What a run computes is what it would compute alone, but for the
last digits. Runs end when they end; the others go on.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from rhapsode.interruption import interruptible
from rhapsode.kernels import form
from rhapsode.machine import Capture, eager, keep_freed_memory
from rhapsode.model import LanguageModel
from rhapsode.run import Run
from rhapsode.tokens import TokenStore
from rhapsode.training.events import Event
from rhapsode.training.graph import GraphStep, Update
from rhapsode.training.loop import Outcome, Training
from rhapsode.training.precision import products

OF_ONE_RUN = (ValueError, OSError, FloatingPointError)  # of one run, which the others survive


class Trainee(NamedTuple):
    """A run, what it trains on, what it is validated on, and what hears of it."""

    run: Run
    train_store: TokenStore
    valid_store: TokenStore
    on_event: Callable[[Event], object] | None = None


def why_alone(recipe: Mapping[str, Mapping[str, Any]]) -> str:
    """Why a run cannot be trained side by side with others of its shape, by the fields of its recipe; the empty text
    where it can."""
    if recipe["model"].get("dropout"):
        return "dropout draws its masks for one model at a time"
    if recipe["batch"].get("carry_state"):
        return "its state is carried from batch to batch"
    return "bfloat16 rounds one model at a time" if recipe["train"].get("precision") == "bfloat16" else ""


def train_together(
    trainees: Sequence[Trainee], device: str = "cpu", capture: Capture = eager
) -> list[Outcome | Exception]:
    """Trains all the runs to their ends, from their checkpoints where they have one; how each of them ended, or failed.

    They must have models and batches of one shape. Seconds of training are those of all of them at once. Ctrl-C or
    SIGTERM saves them all. capture: how a step of all of them is made one launch (graph.py). Raises ValueError where
    one cannot be trained beside others, BlockingIOError where another process trains in a directory.
    """
    for each in trainees:
        if reason := why_alone(each.run.about):
            raise ValueError(f"{each.run.path} cannot be trained beside others: {reason}")
    shapes = {(run.model_config, *_sizes(run)) for run in (each.run for each in trainees)}
    if len(shapes) > 1:
        raise ValueError("only models and batches of one shape are trained together")
    keep_freed_memory()
    with ExitStack() as stack:
        for each in trainees:
            stack.enter_context(each.run.lock())
        asked = stack.enter_context(interruptible())
        ended: dict[int, Outcome | Exception] = {}
        trainings: dict[int, Training] = {}
        for number, each in enumerate(trainees):
            try:
                training = _begun(each, device, asked, capture)
                stack.enter_context(training.journal.open())
                training.threads = stack.enter_context(training.choosing_threads())
                training.begin()
                trainings[number] = training
            except OF_ONE_RUN as error:
                ended[number] = error
        _go(trainings, ended)
    return [ended[number] for number in range(len(trainees))]


def _begun(each: Trainee, device: str, asked: threading.Event, capture: Capture) -> Training:
    return Training(
        each.run, each.train_store, each.valid_store, device, None, asked, False, each.on_event, capture=capture
    )


def _sizes(run: Run) -> tuple[int, int, str]:
    assert run.recipe is not None
    return run.recipe.batch.batch_size, run.recipe.batch.window, run.recipe.train.precision


def _go(trainings: dict[int, Training], ended: dict[int, Outcome | Exception]) -> None:
    """Steps of all that have not ended, until all have."""
    update: Update | None = None
    while True:
        for number, training in list(trainings.items()):
            try:
                outcome = training.due()
            except OF_ONE_RUN as error:
                ended[number] = error
            else:
                if outcome is not None:
                    ended[number] = outcome
            if number in ended:
                del trainings[number]
                update = None
        if not trainings:
            return
        if update is None:
            update = _joined([_step(training) for training in trainings.values()])
        started = time.monotonic()
        batches = {number: training.batcher.next() for number, training in trainings.items()}
        for number, training in trainings.items():
            _step(training).memory.put(batches[number], training.rate)
        update()
        for number, training in list(trainings.items()):
            try:
                training.took(batches[number].scored, started)
            except OF_ONE_RUN as error:
                ended[number] = error
                del trainings[number]
                update = None


def _step(training: Training) -> GraphStep:
    assert isinstance(training.step, GraphStep)  # it was begun with a capture
    return training.step


class _Loss(nn.Module):
    """A model whose forward is its loss: what `functional_call` calls."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        return self.model.loss(tokens, targets)[0]


def _joined(several: Sequence[GraphStep]) -> Update:
    """The update of all these models, whose weights from here on lie beside each other."""
    first = several[0]
    named = [dict(step.model.named_parameters()) for step in several]
    stacked = {name: torch.stack([each[name].detach() for each in named]).requires_grad_() for name in named[0]}
    for k, each in enumerate(named):
        for name, parameter in each.items():
            parameter.data = stacked[name].detach()[k]
    whole = _Loss(first.model)

    def loss_of_one(weights: dict[str, Tensor], tokens: Tensor, targets: Tensor) -> Tensor:
        return functional_call(whole, {f"model.{name}": weight for name, weight in weights.items()}, (tokens, targets))

    def update() -> None:
        tokens = torch.stack([step.memory.inputs for step in several])
        targets = torch.stack([step.memory.targets for step in several])
        with products(first.precision):
            for weight in stacked.values():
                weight.grad = None
            with form("vmap"):
                losses = torch.vmap(loss_of_one)(stacked, tokens, targets)
            losses.sum().backward()
            for k, (step, each) in enumerate(zip(several, named, strict=True)):
                for name, parameter in each.items():
                    grad = stacked[name].grad
                    parameter.grad = None if grad is None else grad[k]
                step.finish(losses[k].detach())

    return Update(update, several, first.capture, first.tell)
