"""Training: one loop, from a run directory and two token stores to a trained model in the same directory.

Whatever decides the next step is either in run.json (configs, the plan of steps) or in the checkpoint (weights,
optimiser, generators, progress), and nothing else is: so a run that was killed anywhere goes on bit by bit as if it
had not been, on one kind of machine with as many threads. A budget in minutes becomes a plan of steps: first after
the warm-up, mended on the way, written down each time before it counts.
"""

import hashlib
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import torch

from rhapsode.decode import Engine, SampleConfig, write_texts
from rhapsode.evaluation import Score, Worker, score
from rhapsode.interruption import interruptible
from rhapsode.machine import Capture, keep_freed_memory
from rhapsode.model import build_model
from rhapsode.run import Run
from rhapsode.seeds import seed_everything
from rhapsode.terminal import ToldElsewhere
from rhapsode.threads import ThreadChooser, chosen_threads
from rhapsode.tokens import Batcher, TokenStore
from rhapsode.training.agreement import Agreement
from rhapsode.training.events import Ended, Event, Saved, Started, Step, Validated
from rhapsode.training.graph import GraphStep
from rhapsode.training.group import ALONE, Group
from rhapsode.training.journal import Journal, again_if_refused, board
from rhapsode.training.lines import beginning, counted, validated
from rhapsode.training.optimizer import rate_at
from rhapsode.training.plan import UNKNOWN, first_plan
from rhapsode.training.precision import check_precision
from rhapsode.training.progress import Progress, checkpoint_of, restore
from rhapsode.training.step import TrainingStep

TRAINING_REPORTS = 100  # reports of the training loss in a whole run
STEPS_BETWEEN_EARLY_REPORTS = 10  # while the number of steps is not known
SAMPLE = SampleConfig(max_tokens=60, temperature=0.7)


@dataclass(frozen=True)
class Outcome:
    """How training ended: ended is `budget`, `patience` or `interrupted`."""

    ended: str
    progress: Progress
    valid: Score | None


class Stopped(Exception):
    """The user asked to stop while a validation ran."""


class Interrupted(KeyboardInterrupt):
    """The user stopped the work; what was done is saved, and it can be resumed."""


def train_run(
    run: Run,
    train_store: TokenStore,
    valid_store: TokenStore,
    device: str = "cpu",
    tensorboard: bool = False,
    show: bool = True,
    on_event: Callable[[Event], object] | None = None,
    group: Group = ALONE,
    accumulate: int = 1,
    capture: Capture | None = None,
) -> Outcome:
    """Trains the run to the end of its budget, from its checkpoint if it has one.

    Threads are PyTorch's as they are set; memory that is freed stays with the process from here on. show: live
    progress on stderr. on_event hears of what happens (events.py). group: the processes that train it together, of
    which those that do not lead open it as a FollowedRun. accumulate: parts of a batch that a process computes one
    after the other. capture: how the whole step is made one launch, where it is to be (graph.py). Ctrl-C or SIGTERM
    saves and returns; a second Ctrl-C stops at once. Raises FloatingPointError naming the step before a non-finite loss
    or gradient can do harm, BlockingIOError where another process trains in the directory, and ConnectionError where
    one of the group is lost.
    """
    keep_freed_memory()
    with run.lock(), board(run, tensorboard) as writer, interruptible() as asked:
        how = (group, accumulate, capture)
        training = Training(run, train_store, valid_store, device, writer, asked, show, on_event, *how)
        return training.go()


class Training:
    """A run at work: everything that changes while it trains."""

    def __init__(
        self,
        run: Run,
        train_store: TokenStore,
        valid_store: TokenStore,
        device: str,
        writer: Any,
        asked: threading.Event,
        show: bool,
        on_event: Callable[[Event], object] | None,
        group: Group = ALONE,
        accumulate: int = 1,
        capture: Capture | None = None,
    ) -> None:
        about = run.about
        self.happened: Callable[[Event], object] = on_event or (lambda event: None)
        self.run, self.valid_store, self.asked, self.group = run, valid_store, asked, group
        self.device = torch.device(device)
        if "threads" not in about:
            run.update(threads=torch.get_num_threads())
        recipe = run.recipe
        if recipe is None:
            raise ValueError(f"{run.path}: its model was imported, so there is no recipe to train it with")
        self.config, self.optimizer_config, self.batch_config = recipe.train, recipe.optimizer, recipe.batch
        self.batcher = Batcher(train_store, self.batch_config, self.config.seed)
        checkpoint = run.load("last")
        if checkpoint is not None:
            run.check_fits(checkpoint.tensors)
        self.model = build_model(run.model_config, self.config.seed).to(self.device)
        check_precision(self.config.precision, device)
        configs, precision = (self.optimizer_config, self.batch_config), self.config.precision
        self.refused_capture = capture is not None and not (group.alone and accumulate == 1)
        self.step: TrainingStep | GraphStep
        if capture is None or self.refused_capture:
            self.step = TrainingStep(self.model, *configs, group, accumulate, precision)
        else:
            self.step = GraphStep(self.model, *configs, capture, lambda line: self.journal.tell(line), precision)
        self.settled_step = 0
        self.progress = Progress()
        self.plan = first_plan(self.config, self.optimizer_config.warmup_steps, self.batcher)
        self.plan.entries = about.get("plan") or self.plan.entries
        seed_everything(self.config.seed)
        if checkpoint is not None:
            self.progress = restore(run.path, checkpoint, self.step, self.batcher, self.plan)
            self.settled_step = self.progress.step
        run.cut_metrics(checkpoint)
        self.threads: ThreadChooser  # chosen within `choosing_threads`
        self.valid: Score | None = None
        self.agreement = Agreement(group, asked, self.config.checkpoint_seconds, self.progress.seconds)
        self.journal = Journal(run, writer, show)
        self.stepped = False  # since the last look at what is due
        self.unsaved = False  # the last attempt to save failed
        self._note_division(accumulate)
        marks = {"training data": train_store.fingerprint, "validation data": valid_store.fingerprint}
        marks |= {"recipe": str(recipe.to_dict()), "plan of steps": str(self.plan.entries)}
        marks |= {"checkpoint": "" if checkpoint is None else str(checkpoint.progress)}
        group.check_same({name: hashlib.sha256(mark.encode()).hexdigest() for name, mark in marks.items()})

    # -- the loop ------------------------------------------------------------------------------------------------

    def go(self) -> Outcome:
        with self.journal.open(), self.choosing_threads() as self.threads:
            self.begin()
            while (outcome := self.due()) is None:
                self._step()
            return outcome

    def begin(self) -> None:
        """Tells how it begins."""
        threads, count = torch.get_num_threads(), sum(p.numel() for p in self.model.parameters())
        where = counted(threads, "thread") if self.device.type == "cpu" else str(self.device)
        where = where if self.group.alone else f"{self.group.size} processes of {where}"
        self.journal.tell(beginning(self.config, count, where, self.progress.step, self.total))
        if self.refused_capture:
            self.journal.tell("a step is captured only in one process and with whole batches; it is launched in pieces")
        self.happened(Started(self.run.path, count, str(self.device), threads, self.progress.step, self.known_total))

    def due(self) -> Outcome | None:
        """Saves and validates where that is due between two steps; how training ended, where it has."""
        progress = self.progress
        try:
            if self.stepped and self.agreement.save():
                self._save_if_possible()
            self.stepped = False
            if self._validation_is_due():
                self._validate()
                self._save_if_possible()
            if progress.step >= self.total and progress.validated_step == progress.step:
                return self._end("budget")
            if self.config.patience and progress.without_gain >= self.config.patience:
                return self._end("patience")
            if self.agreement.stop():
                raise Stopped
        except Stopped:
            self.save()
            return self._end("interrupted")
        return None

    def _step(self) -> None:
        """One batch, and what is told of it."""
        started = time.monotonic()
        batch = self.batcher.next(self.step.rows)
        try:
            self.step.take(batch, self.rate, lambda nats: self.agreement.on(nats, started))
        except FloatingPointError as error:
            self._not_finite(f"{error} at step {self.progress.step + 1}")
        self.took(batch.scored, started)

    def took(self, scored: int, started: float) -> None:
        """What is to be done after a step, of a batch with so many targets, that began at this time."""
        progress = self.progress
        progress.step += 1
        progress.tokens += scored
        progress.scored += scored
        reports = self._report_is_due()
        if reports or self.step.reads or math.isnan(self.step.nats_per_token):
            self._settle()
        seconds = time.monotonic() - started
        self.agreement.worked(seconds)
        progress.seconds = self.agreement.seconds
        timed_from = self.plan.timed_from
        extended = self.plan.after_step(progress.step, progress.seconds)
        if extended and self.group.any(not self.journal.noted("plan", self.plan.entries)):
            self.plan.entries.pop()  # what is not written down must not count; the next step tries again
            self.plan.timed_from = timed_from
        if reports:
            self._report()
        self.threads.worked("step", seconds, scored)
        nats = self.step.nats_per_token
        self.journal.display.step(progress.step, self.total, nats, progress.tokens, progress.seconds)
        self.happened(Step(progress.step, self.known_total, nats, progress.tokens, progress.seconds))
        self.stepped = True

    @property
    def rate(self) -> float:
        """The share of the peak learning rate at which the next step is taken."""
        return rate_at(self.optimizer_config, self.progress.step, self.total)

    def _validate(self) -> None:
        progress, group = self.progress, self.group
        self._settle()

        def on_tokens(count: int) -> None:
            self.journal.display.validating(count * group.size, self.valid_store.num_tokens)
            if group.alone and self.asked.is_set():
                raise Stopped

        self.valid = valid = score(self.model, self.valid_store, on_tokens, Worker(group.rank, group.size, group.sum))
        if not group.alone and group.sum([self.asked.is_set()])[0]:
            raise Stopped
        if not math.isfinite(valid.nats):
            self._not_finite(f"the validation loss became {valid.nats} after step {progress.step}")
        loss = valid.nats_per_token
        better = progress.best_loss is None or loss < progress.best_loss
        progress.without_gain = 0 if better else progress.without_gain + 1
        if better:
            refused = False
            try:
                again_if_refused(lambda: self.run.save_best(self.model, {"step": progress.step, "valid_loss": loss}))
            except OSError as error:  # the file has the best before still, and so has the progress
                self.journal.refused(error, "training continues, these best weights are not kept")
                refused = True
            better = not group.any(refused)
        if better:
            progress.best_loss, progress.best_step = loss, progress.step
        train_loss = progress.nats / max(1, progress.scored)
        bits, share = valid.bits_per_byte, valid.unspelled_share
        losses = {"train_loss": train_loss, "valid_loss": loss, "bits_per_byte": bits, "unspelled_share": share}
        self._write("valid", **losses, best=better)
        self.step.nats = progress.nats = 0.0
        progress.scored = 0
        progress.validated_step = progress.step
        progress.validations += 1
        floor = self.run.about.get("floor_bits_per_byte")
        self.journal.tell(validated(progress, self.total, train_loss, valid, floor))
        sample = None
        if "tokenizer" in self.run.about and self.config.prompt and group.leads:
            text = write_texts(Engine(self.model, self.run.tokenizer), self.config.prompt, SAMPLE)[0]
            sample = f"{self.config.prompt}{text}"
            self.journal.tell("    " + " ".join(sample.split()), sample=True)
        self.happened(Validated(progress.step, train_loss, loss, valid.bits_per_byte, better, sample))

    @contextmanager
    def choosing_threads(self) -> Iterator[ThreadChooser]:
        """The number of threads is chosen as training goes; which steps had how many stands in run.json."""
        plan = [entry for entry in self.run.about.get("thread_plan", []) if entry[0] < self.progress.step]
        before = plan[-1][1] if plan else self.run.about["threads"]

        def note(count: int) -> None:
            plan.append([self.progress.step, count])
            self.journal.noted("thread_plan", plan)

        def changed(count: int) -> None:
            note(count)
            why = "the cores are free again" if count == begun else "because another process keeps a core busy"
            self.journal.tell(f"step {self.progress.step:,}: now using {counted(count, 'thread')}, {why}")

        begun = torch.get_num_threads()
        with chosen_threads(changed if self.device.type == "cpu" else None) as chooser:
            if self.device.type == "cpu" and begun != before and torch.get_num_threads() == begun:
                if not plan:
                    self.journal.tell(
                        f"this run was started with {counted(before, 'thread')} and now uses {begun}, so its numbers"
                        f" can differ in the last digits; --threads {before} gives exactly the same"
                    )
                note(begun)
            yield chooser

    def _note_division(self, accumulate: int) -> None:
        """Writes down from which step on a batch is divided among how many processes and parts."""
        entries = [entry for entry in self.run.about.get("division", []) if entry[0] < self.progress.step]
        now = [self.group.size, accumulate]
        if now != (entries[-1][1:] if entries else [1, 1]):
            self.run.update(division=[*entries, [self.progress.step, *now]])

    @property
    def total(self) -> int:
        return self.plan.total(self.progress.step)

    @property
    def known_total(self) -> int | None:
        """The number of steps, None while it is not known."""
        return self.total if self.total < UNKNOWN else None

    def _validation_is_due(self) -> bool:
        """At the end of each part of the run; a mended plan moves the ends, and those that lie behind are past."""
        progress, parts, total = self.progress, self.config.validations, self.total
        past = max(progress.validations, progress.validated_step * parts // total)
        ended = progress.step >= total or progress.step * parts >= total * (past + 1)
        return progress.step > progress.validated_step and ended

    # -- what stays ----------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Commits a checkpoint of this very point."""
        self._settle()
        self.journal.metrics.flush()
        self.agreement.check_equal_weights(self.model, self.progress.step)
        tensors, progress = checkpoint_of(self.progress, self.step, self.batcher, self.plan)
        again_if_refused(lambda: self.run.save_last(tensors, progress))
        self.agreement.saved()
        self.happened(Saved(self.progress.step, self.run.path))

    def _save_if_possible(self) -> None:
        """Saves on the way: where the disk refuses, training continues, and saving is tried again."""
        refused = False
        try:
            self.save()
        except (ConnectionError, ToldElsewhere):
            raise
        except OSError as error:
            refused = True
            self.agreement.saved()
            self.journal.refused(error, "training continues, the last checkpoint is kept, and saving is tried again")
        if self.group.any(refused):
            self.unsaved = True
        else:
            if self.unsaved:
                self.journal.tell(f"step {self.progress.step:,}: saved again")
            self.unsaved = False
            self.journal.saved()

    def _settle(self) -> None:
        """Waits until it is known what the steps so far have found; stops where that is no finite number."""
        try:
            self.step.settle()
        except FloatingPointError as error:
            self._not_finite(f"{error} between step {self.settled_step + 1} and step {self.progress.step}")
        self.settled_step = self.progress.step
        self.progress.nats = self.step.nats

    def _report_is_due(self) -> bool:
        every = max(1, self.total // TRAINING_REPORTS) if self.total < UNKNOWN else STEPS_BETWEEN_EARLY_REPORTS
        return self.progress.step - self.progress.reported_step >= every

    def _report(self) -> None:
        self.progress.reported_step = self.progress.step
        rate = rate_at(self.optimizer_config, self.progress.step - 1, self.total)
        self._write("train", train_loss=self.step.nats_per_token, gradient_norm=self.step.norm, rate=rate)

    def _write(self, event: str, **values: Any) -> None:
        self.journal.write(event, self.progress, self.batch_config.batch_size, **values)

    # -- what is told --------------------------------------------------------------------------------------------

    def _not_finite(self, what: str) -> NoReturn:
        self.journal.tell(what)
        raise FloatingPointError(f"{what}; this was not saved in {self.run.path}; try a smaller learning_rate")

    def _end(self, ended: str) -> Outcome:
        if self.unsaved:
            self.save()
        words = {
            "budget": "finished, the budget is used up",
            "patience": f"stopped early, no improvement in {self.config.patience} validations",
            "interrupted": "stopped and saved",
        }
        self.journal.tell(f"{words[ended]}; {self.progress.seconds:,.1f} s of training")
        progress = self.progress
        self.happened(Ended(ended, progress.step, progress.tokens, progress.seconds))
        return Outcome(ended, progress, self.valid)
