"""How weights move, and how long: the optimizer and training parts of a recipe."""

import math
from dataclasses import dataclass

from rhapsode.seeds import check_seed

OPTIMIZERS = ("muon", "adamw", "adam")
DECAYS = ("linear", "cosine", "constant")
PRECISIONS = ("float32", "tf32", "bfloat16")
BUDGETS = ("sequences", "tokens", "epochs", "minutes")
FEWEST_TIMED_STEPS = 10  # by which a budget in minutes learns the pace, in the warm-up


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimiser and its schedule.

    optimizer: `muon` (matrices inside the model by Muon, embedding, head and vectors by AdamW), `adamw`, `adam`.
    learning_rate: the peak rate of Adam or AdamW; matrix_learning_rate: that of Muon. warmup_steps: steps over
    which the rate rises linearly. decay: how it falls from there to final_rate (a share of the peak) at the end.
    clip_norm: the gradient's norm is cut to this, 0 for never.
    """

    optimizer: str = "muon"
    learning_rate: float = 3e-3
    matrix_learning_rate: float = 0.02
    beta1: float = 0.9
    beta2: float = 0.99
    momentum: float = 0.95
    weight_decay: float = 0.0
    warmup_steps: int = 50
    decay: str = "linear"
    final_rate: float = 0.0
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        for field, allowed in (("optimizer", OPTIMIZERS), ("decay", DECAYS)):
            if getattr(self, field) not in allowed:
                raise ValueError(f"{field} must be one of {', '.join(allowed)}, got {getattr(self, field)!r}")
        for field in ("learning_rate", "matrix_learning_rate"):
            if not 0 < getattr(self, field) < math.inf:
                raise ValueError(f"{field} must be greater than 0 and finite, got {getattr(self, field)}")
        for field in ("beta1", "beta2", "momentum"):
            if not 0 <= getattr(self, field) < 1:
                raise ValueError(f"{field} must be in [0, 1), got {getattr(self, field)}")
        for field in ("weight_decay", "warmup_steps", "clip_norm"):
            if not 0 <= getattr(self, field) < math.inf:
                raise ValueError(f"{field} must be at least 0 and finite, got {getattr(self, field)}")
        if not 0 <= self.final_rate <= 1:
            raise ValueError(f"final_rate must be in [0, 1], a share of the peak rate, got {self.final_rate}")
        if self.optimizer == "adam" and self.weight_decay:
            raise ValueError(f"weight_decay {self.weight_decay} needs optimizer adamw or muon; adam has none")


@dataclass(frozen=True)
class TrainConfig:
    """How long to train, and how often to look.

    sequences, tokens, epochs, minutes: the budget; exactly one is greater than 0. minutes counts training itself,
    not validation. validations: how many, evenly spaced, the last at the end. patience: stop after so many
    validations without a new best, 0 for never. seed: of the weights, the order of the data, and dropout.
    checkpoint_seconds: how often a checkpoint is written between validations, too.
    prompt: what the sample shown at each validation goes on from. precision: of the products of a training step:
    `float32`, or `tf32` or `bfloat16` where the device has them; weights and validation are float32 throughout.
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
    precision: str = "float32"

    def __post_init__(self) -> None:
        for name in BUDGETS:
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")
        given = [name for name in BUDGETS if getattr(self, name)]
        if len(given) != 1:
            what = f"got {' and '.join(given)}" if given else "got none greater than 0"
            raise ValueError(f"the budget must be exactly one of {', '.join(BUDGETS)}; {what}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if self.validations < 1:
            raise ValueError(f"validations must be >= 1, got {self.validations}")
        check_seed(self.seed)
        for name in ("patience", "checkpoint_seconds"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")
