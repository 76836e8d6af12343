"""What a training run is asked for: its budget, and how often it looks at itself."""

import math
from dataclasses import dataclass

from rhapsode.seeds import check_seed

BUDGETS = ("sequences", "tokens", "epochs", "minutes")


@dataclass(frozen=True)
class TrainConfig:
    """How long to train, and how often to look.

    sequences, tokens, epochs, minutes: the budget; exactly one is greater than 0. minutes counts training itself,
    not validation. validations: how many, evenly spaced, the last at the end. patience: stop after so many
    validations without a new best, 0 for never. seed: of the weights, the order of the data, and dropout.
    checkpoint_seconds: how often a checkpoint is written between validations, too.
    prompt: what the sample shown at each validation goes on from.
    """

    sequences: int = 0
    tokens: int = 0
    epochs: float = 0.0
    minutes: float = 0.0
    validations: int = 10
    patience: int = 0
    seed: int = 0
    checkpoint_seconds: float = 30.0
    prompt: str = "Once upon a time"

    def __post_init__(self) -> None:
        for name in BUDGETS:
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")
        given = [name for name in BUDGETS if getattr(self, name)]
        if len(given) != 1:
            what = f"got {' and '.join(given)}" if given else "got none greater than 0"
            raise ValueError(f"a budget is exactly one of {', '.join(BUDGETS)}; {what}")
        if self.validations < 1:
            raise ValueError(f"validations must be >= 1, got {self.validations}")
        check_seed(self.seed)
        for name in ("patience", "checkpoint_seconds"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")
