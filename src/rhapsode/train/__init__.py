"""Training: optimiser, how many steps a budget makes (plan), and the loop itself."""

from rhapsode.train.loop import Outcome, train
from rhapsode.train.optimizer import Optimizers

__all__ = ["Optimizers", "Outcome", "train"]
