"""A step of training: the loss of a batch, its gradients, the sums over processes, clipping, and the update.

    nats = loss(batch)     its gradients, of all processes together     their norm, cut to clip_norm     the update

What is not a finite number is found before it can do harm: the update is not made.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from rhapsode.model import LanguageModel
from rhapsode.recipe import OptimizerConfig
from rhapsode.state import State
from rhapsode.tokens import Batch, BatchConfig
from rhapsode.training.gradients import BatchGradients
from rhapsode.training.group import ALONE, Group
from rhapsode.training.optimizer import Optimizers
from rhapsode.training.precision import products


class TrainingStep:
    """Updates of a model, one batch after the other, by one process or a group of them.

    accumulate: parts of a batch that a process computes one after the other. rows: those of a batch that are this
    process's. After each step, nats_per_token and norm are its loss and the norm of its gradient before clipping; nats:
    of all targets since it was last set to 0. reads: whether those three are known at once, without `settle`.
    """

    reads = True

    def __init__(
        self,
        model: LanguageModel,
        config: OptimizerConfig,
        batch_config: BatchConfig,
        group: Group = ALONE,
        accumulate: int = 1,
        precision: str = "float32",
    ) -> None:
        self.model, self.batch_config, self.clip_norm = model, batch_config, config.clip_norm
        self.precision = precision
        self.device = next(model.parameters()).device
        self.optimizers = Optimizers(model, config)
        self._gradients = BatchGradients(model, batch_config, group, accumulate, precision)
        self.rows = self._gradients.rows
        self.nats, self.nats_per_token, self.norm = 0.0, math.nan, math.nan

    def take(self, batch: Batch, rate: float, agree: Callable[[float], float] = float) -> None:
        """One batch: loss, gradients, update at this share of the peak rates.

        agree: from this process's share of the loss to that of all. Raises FloatingPointError, before the update, where
        loss or gradient are no finite numbers.
        """
        with products(self.precision):
            nats = agree(self._gradients.of(batch))
            if not math.isfinite(nats):
                raise FloatingPointError(f"the loss became {nats}")
            self._gradients.finish()
            norm = clipped_norm(self.model, self.clip_norm).item()
            if not math.isfinite(norm):
                raise FloatingPointError(f"the norm of the gradient became {norm}")
            self.optimizers.step(rate)
        self.nats_per_token, self.norm = nats, norm
        self.nats += nats * batch.scored

    def settle(self) -> None:
        """Returns when nats, nats_per_token and norm are known."""

    def carried(self) -> dict[str, Tensor]:
        """The carried state of all rows, by name, on process 0; nothing on others, or where none is carried."""
        return self._gradients.carried()

    def carry(self, state: State) -> None:
        """Takes the carried state of all rows."""
        self._gradients.carry(state)


def clipped_norm(model: LanguageModel, clip: float) -> Tensor:
    """The norm of all gradients together, which are cut to the length `clip`, 0 for never."""
    return torch.nn.utils.clip_grad_norm_(model.parameters(), clip or math.inf)
