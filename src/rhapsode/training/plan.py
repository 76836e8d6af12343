"""How many steps a budget makes. Minutes become steps by timing, and what was decided is written down.

A plan is a list of (from step, total steps); the last entry at or before a step counts. A budget in sequences,
tokens or epochs makes one entry, known before the first step. A budget in minutes makes its first entry when the
warm-up ends, whose learning rates do not depend on the total, and mends it on the way by the pace since: MENDS times,
and then whenever half of what was left is done, so that the end comes in time even where the last steps are slow.
Since each entry is stored before it counts, a run that is killed and resumed repeats the same plan.
"""

import math
from dataclasses import dataclass

from rhapsode.recipe import FEWEST_TIMED_STEPS, TrainConfig
from rhapsode.tokens import Batcher

UNTIMED_STEPS = 3  # the first steps are slower: memory is new, kernels are chosen
MENDS = 20
UNKNOWN = 10**12  # more steps than can be


@dataclass
class Plan:
    """entries: as they are stored. seconds: the budget of training time, 0 where it is counted in steps.

    timed_from: the (step, second of training) from which the pace is measured.
    """

    entries: list[list[int]]
    seconds: float
    warmup_steps: int
    timed_from: tuple[int, float] = (0, 0.0)

    def total(self, step: int) -> int:
        """The number of steps, by what was known at this step."""
        return next((total for begin, total in reversed(self.entries) if begin <= step), UNKNOWN)

    def after_step(self, step: int, seconds: float) -> bool:
        """Times the warm-up; at its end, or after a twentieth of the time, makes the first plan, and mends it later.

        True where there is a new entry.
        """
        if self.entries:
            planned, total = self.entries[-1]
            every = max(1, min(total // MENDS, (total - planned) // 2))
            if not self.seconds or step < planned + every or step >= total:
                return False
            self._extend(step, seconds)
            return True
        if step == UNTIMED_STEPS:
            self.timed_from = (step, seconds)
        if step < FEWEST_TIMED_STEPS or (step < self.warmup_steps and seconds < 0.05 * self.seconds):
            return False
        self._extend(step, seconds)
        return True

    def _extend(self, step: int, seconds: float) -> None:
        since_step, since_seconds = self.timed_from
        pace = (seconds - since_seconds) / (step - since_step)
        self.entries.append([step, step + round(max(0.0, self.seconds - seconds) / pace)])
        self.timed_from = (step, seconds)


def first_plan(config: TrainConfig, warmup_steps: int, batcher: Batcher) -> Plan:
    """The plan before the first step; ValueError where a budget in minutes has no warm-up to be timed in."""
    if config.minutes:
        if warmup_steps < FEWEST_TIMED_STEPS:
            raise ValueError(
                "with a budget in minutes the warm-up is used for timing: warmup_steps must be >="
                f" {FEWEST_TIMED_STEPS}, got {warmup_steps}"
            )
        return Plan([], 60 * config.minutes, warmup_steps)
    sequences = config.sequences / batcher.config.batch_size
    steps = sequences or config.tokens / batcher.tokens_per_batch or config.epochs * batcher.batches_per_epoch
    # Rounded first: 1.1 epochs of 10 batches are 11 steps, and a product in floating point is a little more.
    return Plan([[0, max(1, math.ceil(round(steps, 6)))]], 0.0, warmup_steps)
