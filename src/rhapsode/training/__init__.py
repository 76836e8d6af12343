"""Training: optimiser, how many steps a budget makes (plan), what happens on the way (events), and the loop itself."""

from rhapsode.training.events import Ended, Event, Saved, Started, Step, Validated
from rhapsode.training.loop import Interrupted, Outcome, train_run
from rhapsode.training.optimizer import Optimizers

__all__ = [
    "Ended",
    "Event",
    "Interrupted",
    "Optimizers",
    "Outcome",
    "Saved",
    "Started",
    "Step",
    "Validated",
    "train_run",
]
