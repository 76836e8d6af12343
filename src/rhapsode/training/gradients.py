"""The loss of a whole batch and its gradients, of which each process computes the rows that are its own.

A process may compute its rows in several parts, one after the other, for batches that do not fit into its memory.
Whatever the division, the batch, the random numbers and the mean over its tokens are those of one process and one part:
the results differ in the last digits alone.
"""

import torch
from torch import Tensor

from rhapsode.kernels.dropout import rows_of_batch
from rhapsode.model import LanguageModel
from rhapsode.state import State
from rhapsode.tokens import IGNORED, Batch, BatchConfig
from rhapsode.training.group import Group, share
from rhapsode.training.precision import loss_at
from rhapsode.training.sums import GradientSums


class BatchGradients:
    """Gradients of batches of a config's size, of a model on a device, in a group of processes.

    accumulate: the parts in which a process computes its rows. Raises ValueError where there are too few rows.
    """

    def __init__(
        self, model: LanguageModel, config: BatchConfig, group: Group, accumulate: int = 1, precision: str = "float32"
    ) -> None:
        count, parts = config.batch_size, group.size * accumulate
        # A single row has no order in memory from which to tell in which order the whole draws its masks.
        fewest = 2 if model.config.dropout else 1
        if parts > 1 and count < parts * fewest:
            each = "a row" if fewest == 1 else "two rows, as dropout needs them"
            raise ValueError(
                f"batch_size {count} is too small for {group.size} processes x {accumulate} parts with {each} each; use"
                f" at most {max(1, count // fewest)} parts in all"
            )
        self.model, self.config, self.group, self.precision = model, config, group, precision
        self.device = next(model.parameters()).device
        self.rows = group.rows(count)
        own = self.rows.stop - self.rows.start
        self.parts = [share(own, part, accumulate) for part in range(accumulate)]
        self.states: list[State] | None = None  # of each part, where state is carried
        self.sums = None if group.alone else GradientSums(model, group)

    def of(self, batch: Batch) -> float:
        """Puts the gradients of the batch's mean loss into the parameters; returns this process's share of that loss.

        batch: this process's rows. With others, `finish` has to follow.
        """
        drawn = self._generators() if len(self.parts) > 1 else None
        states: list[State] = []
        nats = 0.0
        for number, rows in enumerate(self.parts):
            if drawn is not None and number:
                self._draw_again(drawn)  # each part draws the masks of the whole batch
            inputs, targets = batch.inputs[rows].to(self.device), batch.targets[rows].to(self.device)
            state = None if batch.restart or self.states is None else self.states[number]
            if self.sums is not None and number == len(self.parts) - 1:
                self.sums.begin()
            first = self.rows.start
            if len(targets) == self.config.batch_size:
                loss, after = loss_at(self.precision, self.model, inputs, targets, state)
            else:
                place = slice(first + rows.start, first + rows.stop)
                with rows_of_batch(place, self.config.batch_size):
                    loss, after = loss_at(self.precision, self.model, inputs, targets, state)
                loss = loss * (int((targets != IGNORED).sum()) / batch.scored)
            loss.backward()
            nats += loss.item()
            if self.config.carry_state:
                states.append(after.recent(self.config.window).apply(Tensor.detach))  # the graph ends here
        self.states = states or None
        return nats

    def finish(self) -> None:
        """Returns when the gradients are those of all processes together."""
        if self.sums is not None:
            self.sums.finish()

    def carried(self) -> dict[str, Tensor]:
        """The carried state of all rows, by name, on process 0; nothing on others, or where none is carried."""
        if self.states is None:
            return {}
        return self.group.gather_rows(State.join(self.states).tensors(), self.config.batch_size)

    def carry(self, state: State) -> None:
        """Takes the state of all rows, of which each process and each part continues with its own."""
        own = state.rows(self.rows).apply(lambda tensor: tensor.to(self.device))
        self.states = [own.rows(rows) for rows in self.parts]

    def _generators(self) -> list[Tensor]:
        """Where PyTorch's generators stand, of the CPU and of the GPU where that computes."""
        devices = [torch.cuda.get_rng_state()] if self.device.type == "cuda" else []
        return [torch.get_rng_state(), *devices]

    def _draw_again(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        if len(states) > 1:
            torch.cuda.set_rng_state(states[1])
