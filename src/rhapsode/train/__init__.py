"""Training: what is asked for (config, optimiser), how many steps that makes (plan), and the loop itself."""

from rhapsode.train.config import BUDGETS, TrainConfig
from rhapsode.train.loop import Outcome, train
from rhapsode.train.optimizer import OptimizerConfig, Optimizers

__all__ = ["BUDGETS", "OptimizerConfig", "Optimizers", "Outcome", "TrainConfig", "train"]
