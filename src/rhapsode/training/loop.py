"""Training: one loop, from a run directory and two token stores to a trained model in the same directory.

Whatever decides the next step is either in run.json (configs, the plan of steps) or in the checkpoint (weights,
optimiser, generators, progress), and nothing else is: so a run that was killed anywhere goes on bit by bit as if it
had not been, on one kind of machine with as many threads. A budget in minutes becomes a plan of steps: first after
the warm-up, mended on the way, written down each time before it counts.
"""

import hashlib
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NoReturn

import torch
from torch import Tensor

from rhapsode.decode import Engine, SampleConfig, write_texts
from rhapsode.evaluation import Score, Worker, score
from rhapsode.files import AppendedFile
from rhapsode.machine import keep_freed_memory
from rhapsode.model import build_model
from rhapsode.progress import TrainingDisplay
from rhapsode.recipe import BUDGETS
from rhapsode.recorded import check_schema, read_config
from rhapsode.run import Checkpoint, Run, below, load_weights, weights_of
from rhapsode.seeds import seed_everything
from rhapsode.state import State
from rhapsode.terminal import ToldElsewhere, told
from rhapsode.threads import ThreadChooser, chosen_threads
from rhapsode.tokens import Batcher, TokenStore
from rhapsode.training.events import Ended, Event, Saved, Started, Step, Validated
from rhapsode.training.gradients import BatchGradients
from rhapsode.training.group import ALONE, Group
from rhapsode.training.optimizer import Optimizers, rate_at
from rhapsode.training.plan import UNKNOWN, first_plan

TRAINING_REPORTS = 100  # reports of the training loss in a whole run
STEPS_BETWEEN_EARLY_REPORTS = 10  # while the number of steps is not known
SAMPLE = SampleConfig(max_tokens=60, temperature=0.7)


@dataclass
class Progress:
    """Where a run stands; with the tensors of its checkpoint, all that is needed to go on.

    seconds: of training, without validation. nats, scored: since the last validation. Losses are nats per token.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    batcher: dict[str, int] = field(default_factory=lambda: {"epoch": 0, "position": 0})
    nats: float = 0.0
    scored: int = 0
    reported_step: int = 0
    validated_step: int = 0
    validations: int = 0
    best_loss: float | None = None
    best_step: int = 0
    without_gain: int = 0


@dataclass
class _Agreed:
    """What several processes have agreed on: process 0's seconds of training, whether to stop, whether to save now."""

    seconds: float
    stop: bool = False
    save: bool = False
    own_seconds: float = 0.0

    def __post_init__(self) -> None:
        self.own_seconds = self.seconds


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
) -> Outcome:
    """Trains the run to the end of its budget, from its checkpoint if it has one.

    Threads are PyTorch's as they are set; memory that is freed stays with the process from here on. show: live
    progress on stderr. on_event hears of what happens (events.py). group: the processes that train it together, of
    which those that do not lead open it as a FollowedRun. accumulate: parts of a batch that a process computes one
    after the other. Ctrl-C or SIGTERM saves and returns; a second Ctrl-C stops at once. Raises FloatingPointError
    naming the step before a non-finite loss or gradient can do harm, BlockingIOError where another process trains in
    the directory, and ConnectionError where one of the group is lost.
    """
    keep_freed_memory()
    with run.lock(), _writer(run, tensorboard) as writer, _interruptible() as asked:
        training = _Training(run, train_store, valid_store, device, writer, asked, show, on_event, group, accumulate)
        return training.go()


class _Training:
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
        group: Group,
        accumulate: int,
    ) -> None:
        about = run.about
        self.happened: Callable[[Event], object] = on_event or (lambda event: None)
        self.run, self.valid_store, self.writer, self.asked = run, valid_store, writer, asked
        self.group = group
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
        self.optimizers = Optimizers(self.model, self.optimizer_config)
        self.gradients = BatchGradients(self.model, self.batch_config, group, accumulate)
        self.progress = Progress()
        self.plan = first_plan(self.config, self.optimizer_config.warmup_steps, self.batcher)
        self.plan.entries = about.get("plan") or self.plan.entries
        seed_everything(self.config.seed)
        if checkpoint is not None:
            self._restore(checkpoint)
        run.cut_metrics(checkpoint)
        self.valid: Score | None = None
        self.saved_at = time.monotonic()
        self.agreed = _Agreed(self.progress.seconds)
        past = [entry["train_loss"] for entry in run.metrics() if entry["event"] == "train"]
        self.display = TrainingDisplay(past, enabled=show)
        self.log, self.metrics = AppendedFile(run.log_path), AppendedFile(run.metrics_path)
        self.unsaved = False  # the last attempt to save failed
        self.refusals: set[str] = set()  # what was said of a disk that refuses
        self._note_division(accumulate)
        marks = {"training data": train_store.fingerprint, "validation data": valid_store.fingerprint}
        marks |= {"recipe": str(recipe.to_dict()), "plan of steps": str(self.plan.entries)}
        marks |= {"checkpoint": "" if checkpoint is None else str(checkpoint.progress)}
        group.check_same({name: hashlib.sha256(mark.encode()).hexdigest() for name, mark in marks.items()})

    # -- the loop ------------------------------------------------------------------------------------------------

    def go(self) -> Outcome:
        progress = self.progress
        with closing(self.metrics), self._closing_log(), self.display, self._threads() as self.threads:
            self._tell(self._beginning())
            sizes, device = (p.numel() for p in self.model.parameters()), str(self.device)
            threads = torch.get_num_threads()
            self.happened(Started(self.run.path, sum(sizes), device, threads, progress.step, self.known_total))
            try:
                while True:
                    if self._validation_is_due():
                        self._validate()
                        self._save_if_possible()
                    if progress.step >= self.total and progress.validated_step == progress.step:
                        return self._end("budget")
                    if self.config.patience and progress.without_gain >= self.config.patience:
                        return self._end("patience")
                    if self._is_asked():
                        raise Stopped
                    self._step()
                    if self._save_is_due():
                        self._save_if_possible()
            except Stopped:
                self.save()
                return self._end("interrupted")

    def _step(self) -> None:
        """One batch: loss, gradients, update; stops before the update if any of it is not a finite number."""
        started = time.monotonic()
        progress, clip = self.progress, self.optimizer_config.clip_norm
        batch = self.batcher.next(self.gradients.rows)
        nats = self._agree(self.gradients.of(batch), started)
        if not math.isfinite(nats):
            self._not_finite(f"the loss became {nats} at step {progress.step + 1}")
        self.gradients.finish()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), clip or math.inf).item()
        if not math.isfinite(norm):
            self._not_finite(f"the norm of the gradient became {norm} at step {progress.step + 1}")
        self.optimizers.step(rate_at(self.optimizer_config, progress.step, self.total))
        progress.step += 1
        progress.tokens += batch.scored
        progress.nats += nats * batch.scored
        progress.scored += batch.scored
        seconds = time.monotonic() - started
        self.agreed.own_seconds += seconds
        progress.seconds = self.agreed.own_seconds if self.group.alone else self.agreed.seconds
        timed_from = self.plan.timed_from
        extended = self.plan.after_step(progress.step, progress.seconds)
        if extended and self.group.any(not self._noted("plan", self.plan.entries)):
            self.plan.entries.pop()  # what is not written down must not count; the next step tries again
            self.plan.timed_from = timed_from
        self._report(nats, norm)
        self.threads.worked("step", seconds, batch.scored)
        self.display.step(progress.step, self.total, nats, progress.tokens, progress.seconds)
        self.happened(Step(progress.step, self.known_total, nats, progress.tokens, progress.seconds))

    def _agree(self, nats: float, started: float) -> float:
        """The loss of the whole batch, of which `nats` is this process's share; and what else all have to know.

        Nothing that is decided from here to the next step may hang on what one process alone knows: its clock, a signal
        that it got.
        """
        if self.group.alone:
            return nats
        now, agreed = time.monotonic(), self.agreed
        save = now - self.saved_at > self.config.checkpoint_seconds
        leads = self.group.leads
        mine = [nats, self.asked.is_set(), leads and agreed.own_seconds + now - started, leads and save]
        nats, asked, agreed.seconds, save_due = self.group.sum(mine)
        agreed.stop, agreed.save = asked > 0, save_due > 0
        return nats

    def _is_asked(self) -> bool:
        """Whether the user asked any of the processes to stop."""
        return self.asked.is_set() if self.group.alone else self.agreed.stop

    def _save_is_due(self) -> bool:
        if self.group.alone:
            return time.monotonic() - self.saved_at > self.config.checkpoint_seconds
        return self.agreed.save

    def _validate(self) -> None:
        progress, group = self.progress, self.group

        def on_tokens(count: int) -> None:
            self.display.validating(count * group.size, self.valid_store.num_tokens)
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
                self._refused(error, "training continues, these best weights are not kept")
                refused = True
            better = not group.any(refused)
        if better:
            progress.best_loss, progress.best_step = loss, progress.step
        train_loss = progress.nats / max(1, progress.scored)
        bits, share = valid.bits_per_byte, valid.unspelled_share
        losses = {"train_loss": train_loss, "valid_loss": loss, "bits_per_byte": bits, "unspelled_share": share}
        self._write("valid", **losses, best=better)
        progress.nats, progress.scored = 0.0, 0
        progress.validated_step = progress.step
        progress.validations += 1
        self._tell(self._validated(train_loss, valid))
        sample = None
        if "tokenizer" in self.run.about and self.config.prompt and group.leads:
            text = write_texts(Engine(self.model, self.run.tokenizer), self.config.prompt, SAMPLE)[0]
            sample = f"{self.config.prompt}{text}"
            self._tell("    " + " ".join(sample.split()), sample=True)
        self.happened(Validated(progress.step, train_loss, loss, valid.bits_per_byte, better, sample))

    @contextmanager
    def _threads(self) -> Iterator[ThreadChooser]:
        """The number of threads is chosen as training goes; which steps had how many stands in run.json."""
        plan = [entry for entry in self.run.about.get("thread_plan", []) if entry[0] < self.progress.step]
        before = plan[-1][1] if plan else self.run.about["threads"]

        def note(count: int) -> None:
            plan.append([self.progress.step, count])
            self._noted("thread_plan", plan)

        def changed(count: int) -> None:
            note(count)
            why = "the cores are free again" if count == begun else "because another process keeps a core busy"
            self._tell(f"step {self.progress.step:,}: now using {_number(count, 'thread')}, {why}")

        begun = torch.get_num_threads()
        with chosen_threads(changed if self.device.type == "cpu" else None) as chooser:
            if self.device.type == "cpu" and begun != before and torch.get_num_threads() == begun:
                if not plan:
                    self._tell(
                        f"this run was started with {_number(before, 'thread')} and now uses {begun}, so its numbers"
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
        self.metrics.flush()
        self._check_equal_weights()
        tensors = weights_of(self.model)
        tensors |= {f"optimizer/{name}": tensor for name, tensor in self.optimizers.state_tensors().items()}
        tensors["generator/cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["generator/cuda"] = torch.cuda.get_rng_state()
        tensors |= {f"state/{name}": tensor for name, tensor in self.gradients.carried().items()}
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        self.progress.batcher = self.batcher.state_dict()
        progress = asdict(self.progress) | {"timed_from": self.plan.timed_from}
        again_if_refused(lambda: self.run.save_last(tensors, progress))
        self.saved_at = time.monotonic()
        self.happened(Saved(self.progress.step, self.run.path))

    def _check_equal_weights(self) -> None:
        """Raises ValueError where processes have different weights, which only a fault of a machine can bring about."""
        if self.group.alone:
            return
        bits = [int(p.detach().view(torch.int32).sum(dtype=torch.int64)) for p in self.model.parameters()]
        size = self.group.size
        parts = [float(part) for total in bits for part in (total >> 26, total & (2**26 - 1))]  # exact in float64
        if self.group.any([total / size for total in self.group.sum(parts)] != parts):
            raise ValueError(
                f"the processes no longer have the same weights at step {self.progress.step}; this was not saved:"
                " resume the run, and check the machines' memory"
            )

    def _save_if_possible(self) -> None:
        """Saves on the way: where the disk refuses, training continues, and saving is tried again."""
        refused = False
        try:
            self.save()
        except (ConnectionError, ToldElsewhere):
            raise
        except OSError as error:
            refused, self.saved_at = True, time.monotonic()
            self._refused(error, "training continues, the last checkpoint is kept, and saving is tried again")
        if self.group.any(refused):
            self.unsaved = True
        else:
            if self.unsaved:
                self._tell(f"step {self.progress.step:,}: saved again")
            self.unsaved, self.refusals = False, set()

    def _noted(self, field: str, value: Any) -> bool:
        """Writes a field of run.json; False where the disk refuses."""
        try:
            again_if_refused(lambda: self.run.update(**{field: value}))
        except OSError as error:
            self._refused(error, f"training continues, the {field} is not written down")
            return False
        return True

    def _refused(self, error: OSError, consequence: str) -> None:
        """Says that the disk refuses something and what comes of it; once until something can be saved again."""
        if consequence not in self.refusals:
            self.refusals.add(consequence)
            self._tell(f"{told(error)}; {consequence}")

    def _restore(self, checkpoint: Checkpoint) -> None:
        """Takes what `save` wrote; ValueError with one line where that cannot be."""
        try:
            self._take(checkpoint.tensors, dict(checkpoint.progress))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())
            raise ValueError(
                f"{self.run.path / 'last.safetensors'}: training cannot be resumed from it: {what}; replace it with an"
                " intact copy, or start a new run"
            ) from None

    def _take(self, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
        load_weights(self.model, tensors, str(self.run.path))
        self.optimizers.load_state_tensors(below("optimizer/", tensors))
        torch.set_rng_state(tensors["generator/cpu"])
        if "generator/cuda" in tensors and self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["generator/cuda"])
        if state := below("state/", tensors):
            self._check_state(state)
            self.gradients.carry(State.from_tensors(state))
        step, seconds = progress.pop("timed_from")
        self.plan.timed_from = int(step), float(seconds)
        check_schema(progress.pop("metrics_bytes", 0), int, "its progress", "metrics_bytes")
        missing = {each.name for each in fields(Progress)} - set(progress)
        if missing:
            raise KeyError(f"progress.{min(missing)}")
        self.progress = read_config(Progress, progress, "its contents", "progress")
        self.batcher.load_state_dict(self.progress.batcher)

    def _check_state(self, state: dict[str, Tensor]) -> None:
        """Raises ValueError where a carried state is not one of this model and batch."""
        tokens = torch.zeros(self.batch_config.batch_size, 1, dtype=torch.long, device=self.device)
        with torch.no_grad():
            expected = self.model.eval()(tokens)[1].tensors()
        self.model.train()
        for name in expected.keys() | state.keys():
            had, has = (_shape_but_for_time(name, each[name]) if name in each else None for each in (expected, state))
            if had != has:
                raise ValueError(f"state/{name} has the shape {has}, the model's is {had}")

    def _report(self, nats: float, norm: float) -> None:
        progress = self.progress
        every = max(1, self.total // TRAINING_REPORTS) if self.total < UNKNOWN else STEPS_BETWEEN_EARLY_REPORTS
        if progress.step - progress.reported_step >= every:
            progress.reported_step = progress.step
            rate = rate_at(self.optimizer_config, progress.step - 1, self.total)
            self._write("train", train_loss=nats, gradient_norm=norm, rate=rate)

    def _write(self, event: str, **values: Any) -> None:
        """A line of metrics.jsonl, and of TensorBoard's file."""
        progress = self.progress
        sequences = progress.step * self.batch_config.batch_size
        counts = {"step": progress.step, "sequences": sequences, "tokens": progress.tokens}
        entry = {"event": event, **counts, "seconds": round(progress.seconds, 3), **values}
        try:
            self.metrics.write(json.dumps(entry) + "\n")
        except OSError as error:
            self._refused(error, "training continues, these lines are written later")
        try:
            for name, value in values.items():
                if self.writer is not None and isinstance(value, float):
                    self.writer.add_scalar(f"{event}/{name}", value, progress.step)
        except OSError as error:
            self.writer = None
            self._refused(error, "training continues without TensorBoard files")

    # -- what is told --------------------------------------------------------------------------------------------

    def _tell(self, line: str, sample: bool = False) -> None:
        try:
            self.log.write(line + "\n")
        except OSError as error:
            if self.log.path.name not in self.refusals:
                self.refusals.add(self.log.path.name)
                self.display.say(f"{told(error)}; training continues, these lines are written later")
        if sample:
            self.display.sample(line)
        else:
            self.display.say(line)

    def _beginning(self) -> str:
        count = sum(p.numel() for p in self.model.parameters())
        parameters = f"{count / 1e6:.1f}M parameters" if count >= 10**6 else f"{count:,} parameters"
        threads = _number(torch.get_num_threads(), "thread") if self.device.type == "cpu" else str(self.device)
        if not self.group.alone:
            threads = f"{self.group.size} processes of {threads}"
        if self.progress.step:
            return f"{parameters}, {threads}; resumed at step {self.progress.step:,}"
        amount, unit = next((amount, name) for name in BUDGETS if (amount := getattr(self.config, name)))
        budget = f"{amount:,.15g} {unit.removesuffix('s') if amount == 1 else unit}"
        steps = (
            f"{self.total:,} steps" if self.total < UNKNOWN else "the number of steps is chosen after a short timing"
        )
        return f"{parameters}, {threads}; budget {budget}: {steps}"

    def _validated(self, train_loss: float, valid: Score) -> str:
        progress = self.progress
        rate = progress.tokens / max(progress.seconds, 1e-9)
        floor = self.run.about.get("floor_bits_per_byte")
        against = "" if floor is None else f", the floor is {floor:.3f}"
        if valid.correction_bits:
            against += f", {valid.correction_bits / valid.num_bytes:.3f} of it for what the tokenizer cannot represent"
        bits = "" if valid.bits_per_byte is None else f" ({valid.bits_per_byte:.3f} bits per byte{against})"
        losses = f"train {train_loss:.3f}, valid {valid.nats_per_token:.3f}{bits}"
        best = "" if progress.best_step == progress.step else f", best at step {progress.best_step:,}"
        return f"step {progress.step:,} of {self.total:,}: {losses}{best}; {rate:,.0f} tokens/s"

    def _not_finite(self, what: str) -> NoReturn:
        self._tell(what)
        raise FloatingPointError(f"{what}; this was not saved in {self.run.path}; try a smaller learning_rate")

    @contextmanager
    def _closing_log(self) -> Iterator[None]:
        try:
            yield
        finally:
            try:
                self.log.close()
            except OSError as error:
                self.display.say(f"{told(error)}; its last lines are lost")

    def _end(self, ended: str) -> Outcome:
        if self.unsaved:
            self.save()
        words = {
            "budget": "finished, the budget is used up",
            "patience": f"stopped early, no improvement in {self.config.patience} validations",
            "interrupted": "stopped and saved",
        }
        self._tell(f"{words[ended]}; {self.progress.seconds:,.1f} s of training")
        progress = self.progress
        self.happened(Ended(ended, progress.step, progress.tokens, progress.seconds))
        return Outcome(ended, progress, self.valid)


def again_if_refused(write: Callable[[], None]) -> None:
    """Writes, and once more where the disk refuses: many a trouble is over by then."""
    try:
        write()
    except OSError:
        write()


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _shape_but_for_time(name: str, tensor: Tensor) -> list[int]:
    """A cache is as long as what it has seen, up to a window."""
    shape = list(tensor.shape)
    return shape[:2] + shape[3:] if name.endswith(("/keys", "/values", "/ids")) else shape


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Yields an event that the first Ctrl-C or SIGTERM sets; the second Ctrl-C is an ordinary one."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, _: Any) -> None:
        asked.set()
        signal.signal(number, before[number])

    for number in before:
        signal.signal(number, ask)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _writer(run: Run, wanted: bool) -> Iterator[Any]:
    """TensorBoard's writer, or None; what a killed process wrote after the checkpoint is hidden there."""
    if not wanted:
        yield None
        return
    from torch.utils.tensorboard import SummaryWriter

    checkpoint = run.load("last")
    step = checkpoint.progress.get("step", -1) + 1 if checkpoint else 0
    with SummaryWriter(str(run.path / "tensorboard"), purge_step=step) as writer:
        yield writer
