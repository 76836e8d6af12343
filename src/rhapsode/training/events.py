"""What happens while a model trains, as small values: for whoever watches, a notebook or a server."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Started:
    """Training begins, at `step` where it is resumed. total_steps: None while a budget in minutes is not timed yet."""

    path: Path
    parameters: int
    device: str
    threads: int
    step: int
    total_steps: int | None


@dataclass(frozen=True)
class Step:
    """One update. loss: of its batch, nats per token (the last that was read, where a GPU is not waited for). tokens,
    seconds: of training so far."""

    step: int
    total_steps: int | None
    loss: float
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Validated:
    """All validation text was scored. train_loss: the mean since the last time; losses in nats per token.

    best: whether valid_loss is the lowest so far. sample: what the model wrote, if it was to write something.
    """

    step: int
    train_loss: float
    valid_loss: float
    bits_per_byte: float | None
    best: bool
    sample: str | None


@dataclass(frozen=True)
class Saved:
    """A checkpoint of this step is on the disk."""

    step: int
    path: Path


@dataclass(frozen=True)
class Ended:
    """Training is over: `budget` (spent), `patience` (no gain for so long) or `interrupted` (saved, can be resumed)."""

    reason: str
    step: int
    tokens: int
    seconds: float


Event = Started | Step | Validated | Saved | Ended
