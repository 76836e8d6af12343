"""The whole step as one launch: forward, loss, backward, clipping and both optimisers, captured once and replayed.

A GPU that is given one small product after the other waits for the next; a CUDA graph is given to it at once. What is
captured are addresses and constants: a replay runs no Python. So whatever differs from step to step lies in tensors
that stay where they are, `Memory`: the batch, how many targets it scores, the share of the peak learning rates, the
carried state; and what a step finds is added up there, and read when somebody wants to know it.

    update(memory)                  the step as a function of nothing but tensors: what is captured
    Eager: update runs each time    Graph: update ran once, its launches are repeated

A row's first window has no state before it, so there are up to two captured updates, which share weights and memory.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rhapsode.machine import Capture, eager, on_own_stream
from rhapsode.model import LanguageModel
from rhapsode.recipe import OptimizerConfig
from rhapsode.state import State
from rhapsode.tokens import Batch, BatchConfig
from rhapsode.training.optimizer import Optimizers
from rhapsode.training.precision import loss_at, products
from rhapsode.training.step import clipped_norm

SLOTS = 2  # batches that are on their way at once
LARGEST_LOSS_DIFFERENCE = 1e-4  # relative, between a replayed and an eager step, of loss and norm
LARGEST_MOVE_DIFFERENCE = 0.02  # of the way that an update moves a weight, and a moment: Adam divides small by small
ROUNDING = 1e-6  # differences of so little of a tensor's own length are rounding
NEGLIGIBLE = 1e-6  # a gradient of so little of the whole one is rounding
FIRST_MOMENTS = ("/exp_avg", "/momentum")  # of the optimisers: a gradient, scaled


class Memory:
    """What changes from step to step, at addresses that stay: what a replayed update reads and writes.

    inputs, targets (B, T); numbers: how many targets are scored, and the rate's share of its peak; state: what is
    carried, by name; found: nats of all targets so far, nats per token and the norm of the last step, and the sum of
    all losses and norms, which is not finite from the first that is not.
    """

    def __init__(self, config: BatchConfig, device: torch.device) -> None:
        shape = config.batch_size, config.window
        self.inputs, self.targets = (torch.zeros(shape, dtype=torch.long, device=device) for _ in range(2))
        self.numbers = torch.zeros(2, dtype=torch.float64, device=device)
        self.found = torch.zeros(4, dtype=torch.float64, device=device)
        self.state: dict[str, Tensor] = {}
        self.device = device
        self._slots = [self._slot() for _ in range(SLOTS)] if device.type == "cuda" else []
        self._next = 0

    def put(self, batch: Batch, rate: float) -> None:
        """Sends a batch on its way; returns before it is there, and waits only for the one SLOTS before it."""
        numbers = torch.tensor([batch.scored, rate], dtype=torch.float64)
        there = self.inputs, self.targets, self.numbers
        if not self._slots:
            for place, tensor in zip(there, (batch.inputs, batch.targets, numbers), strict=True):
                place.copy_(tensor)
            return
        pinned, sent = self._slots[self._next]
        self._next = (self._next + 1) % SLOTS
        sent.synchronize()  # what lay there has left
        for place, page, tensor in zip(there, pinned, (batch.inputs, batch.targets, numbers), strict=True):
            page.copy_(tensor)
            place.copy_(page, non_blocking=True)
        sent.record()

    def _slot(self) -> tuple[list[Tensor], Any]:
        parts = (self.inputs, self.targets, self.numbers)
        return [torch.empty(part.shape, dtype=part.dtype, pin_memory=True) for part in parts], torch.cuda.Event()

    def keep(self, state: State) -> None:
        """Takes a carried state: into the memory that is there, or, the first time, into its own."""
        for name, tensor in state.tensors().items():
            if name in self.state:
                self.state[name].copy_(tensor)
            else:
                self.state[name] = tensor.detach().to(self.device, copy=True)


class GraphStep:
    """Stands in for a `TrainingStep` of one process and whole batches, and reads nothing back until `settle`.

    capture: `cuda_graph` or `eager`. tell: hears why a captured step is not used.
    """

    reads = False

    def __init__(
        self,
        model: LanguageModel,
        config: OptimizerConfig,
        batch_config: BatchConfig,
        capture: Capture,
        tell: Callable[[str], object],
        precision: str = "float32",
    ) -> None:
        self.model, self.batch_config, self.precision = model, batch_config, precision
        self.clip_norm, self.capture, self.tell = config.clip_norm, capture, tell
        self.device = next(model.parameters()).device
        self.optimizers = Optimizers(model, config, captured=True)
        self.memory = Memory(batch_config, self.device)
        self.rows = slice(0, batch_config.batch_size)
        self.nats, self.nats_per_token, self.norm = 0.0, math.nan, math.nan
        self._carries = False  # whether there is a state for the next batch
        self._updates: dict[bool, Update] = {}  # by whether a state is continued

    def take(self, batch: Batch, rate: float, agree: Callable[[float], float] = float) -> None:
        """One batch, at this share of the peak rates; what it loses is known after `settle`."""
        self.memory.put(batch, rate)
        continued = self._carries and not batch.restart
        if continued not in self._updates:
            self._updates[continued] = Update(lambda: self._update(continued), [self], self.capture, self.tell)
        self._updates[continued]()
        self._carries = self.batch_config.carry_state

    def _update(self, continued: bool) -> None:
        """The step as a function of the memory, which is all that it reads and writes besides weights and moments."""
        memory = self.memory
        state = State.from_tensors(memory.state) if continued else None
        with products(self.precision):
            loss, after = loss_at(self.precision, self.model, memory.inputs, memory.targets, state)
            loss.backward()
            self.finish(loss.detach())
        if self.batch_config.carry_state:
            memory.keep(after.recent(self.batch_config.window).apply(Tensor.detach))

    def finish(self, loss: Tensor) -> None:
        """Clips the gradients that are there, makes the update, and adds up what the step has found."""
        memory = self.memory
        norm = clipped_norm(self.model, self.clip_norm)
        self.optimizers.step(memory.numbers[1])
        loss, norm, (nats, _, _, total) = loss.double(), norm.double(), memory.found
        memory.found.copy_(torch.stack((nats + loss * memory.numbers[0], loss, norm, total + loss + norm)))

    def settle(self) -> None:
        """Waits for the steps taken so far, and reads what they found.

        Raises FloatingPointError where a loss or a norm was no finite number since the last time.
        """
        nats, loss, norm, total = self.memory.found.tolist()
        if not math.isfinite(total):
            raise FloatingPointError(f"the loss or the norm of the gradient became {total}")
        self._nats, self.nats_per_token, self.norm = nats, loss, norm

    @property
    def nats(self) -> float:
        """Of all targets since it was last set, as `settle` found it."""
        return self._nats

    @nats.setter
    def nats(self, value: float) -> None:
        self._nats = value
        self.memory.found.zero_()
        self.memory.found[0] = value

    def carried(self) -> dict[str, Tensor]:
        """The carried state of all rows, by name; nothing where none is carried."""
        return dict(self.memory.state) if self._carries else {}

    def carry(self, state: State) -> None:
        """Takes the carried state of all rows."""
        self.memory.keep(state)
        self._carries = True

    def stop_capturing(self) -> None:
        """All steps are eager from here on. What was captured before is forgotten, and so are a failed capture's
        gradients, which nothing has computed."""
        self.capture, self._updates = eager, {}
        self.model.zero_grad(set_to_none=True)

    def changing(self) -> dict[str, Tensor]:
        """All that an update changes, by name."""
        weights = {f"weight {name}": parameter.detach() for name, parameter in self.model.named_parameters()}
        moments = {f"optimizer {name}": tensor for name, tensor in self.optimizers.state_tensors().items()}
        state = {f"state {name}": tensor for name, tensor in self.memory.state.items()}
        return {**weights, **moments, **state, "losses": self.memory.found}


class Update:
    """An update of one model, or of several side by side: made eagerly the first time, and replayed from then on.

    Before a captured one is trusted, its first replay is compared with the eager update from the same state; where they
    differ by more than rounding, or where the capture fails, all are eager, and `tell` hears why.
    """

    def __init__(
        self,
        update: Callable[[], None],
        steps: Sequence[GraphStep],
        capture: Capture,
        tell: Callable[[str], object],
    ) -> None:
        self.update, self.steps, self.capture, self.tell = update, steps, capture, tell
        self.device = steps[0].device
        self._replay: Callable[[], None] | None = None

    def __call__(self) -> None:
        """Makes the update, with what lies in the memories now."""
        if self._replay is None:
            self._replay = self._first()
        else:
            self._replay()

    def _first(self) -> Callable[[], None]:
        """The first update; and what makes those to come."""
        if self.capture is eager:
            self.update()
            return self.update
        before, generators = self._snapshot(), self._generators()
        on_own_stream(self.device, self.update)  # also makes the moments, which a capture must find at their place
        expected, moved = self._snapshot(), self._generators()
        try:
            self._go_back(before, generators)
            replay = self.capture(self.update)
            self._go_back(before, generators)
            replay()
            difference = _difference(before, expected, self._snapshot())
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            self.tell(f"the step could not be captured, so it is launched piece by piece: {reason}")
        else:
            if not difference:
                return replay
            self.tell(f"a captured step is not the step it was captured from ({difference}); steps are not captured")
        self._go_back(expected, moved)
        for step in self.steps:
            step.stop_capturing()
        return self.update

    def _changing(self) -> dict[str, Tensor]:
        return {f"{k} {name}": part for k, step in enumerate(self.steps) for name, part in step.changing().items()}

    def _snapshot(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self._changing().items()}

    def _generators(self) -> list[Tensor]:
        on_device = [torch.cuda.get_rng_state()] if self.device.type == "cuda" else []
        return [torch.get_rng_state(), *on_device]

    @torch.no_grad()
    def _go_back(self, snapshot: dict[str, Tensor], generators: list[Tensor]) -> None:
        """Puts everything back where it was, in its place; what was not there yet begins at zero."""
        for name, tensor in self._changing().items():
            if name in snapshot:
                tensor.copy_(snapshot[name])
            else:
                tensor.zero_()
        torch.set_rng_state(generators[0])
        if len(generators) > 1:
            torch.cuda.set_rng_state(generators[1])


def _difference(before: dict[str, Tensor], expected: dict[str, Tensor], found: dict[str, Tensor]) -> str:
    """What differs between two steps from one state by more than rounding; the empty text where nothing does."""
    ways = {
        name: (t.double() - (before[name].double() if name in before else 0)).norm() for name, t in expected.items()
    }
    gradients = {name: way for name, way in ways.items() if name.endswith(FIRST_MOMENTS)}
    whole = torch.stack([*gradients.values()]).norm() if gradients else 0.0
    noise = {_parameter(name) for name, way in gradients.items() if way <= NEGLIGIBLE * whole}
    for name, tensor in expected.items():
        wanted, got = tensor.double(), found[name].double()
        if not wanted.isfinite().all():  # the step itself is spoilt, and the next report stops the run
            continue
        if name.endswith("losses"):
            if not ((got - wanted).abs() <= LARGEST_LOSS_DIFFERENCE * wanted.abs()).all():
                return f"losses {got.tolist()} instead of {wanted.tolist()}"
            continue
        difference = (got - wanted).norm()
        if _parameter(name) not in noise:
            allowed = LARGEST_MOVE_DIFFERENCE * ways[name] + ROUNDING * wanted.norm()
        else:  # Adam takes a whole step of it, in any direction
            allowed = 3 * ways[name] + (NEGLIGIBLE * whole if " optimizer " in name else ROUNDING * wanted.norm())
        if not difference <= allowed:
            return f"{name} by {float(difference / wanted.norm()):.1e} of its length"
    return ""


def _parameter(name: str) -> str:
    """The parameter that a tensor of `Update._changing` belongs to, with the number of its model."""
    number, kind, *rest = name.split(" ", 2)
    return f"{number} {rest[0].split('/')[1] if kind == 'optimizer' else rest[0]}" if rest else name
