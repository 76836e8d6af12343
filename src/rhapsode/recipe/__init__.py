"""What a training is made of, as a value: model, optimizer, training, batches; and how one is chosen for a text.

configs.py    OptimizerConfig, TrainConfig (ModelConfig and BatchConfig stand beside what they configure)
value.py      Recipe
changes.py    fields of a recipe from TOML and `field=value`, laid over each other
presets.py    minute, coffee
rules.py      how a preset is fitted to a text, each rule with its reason
"""

from rhapsode.recipe.configs import BUDGETS, FEWEST_TIMED_STEPS, PRECISIONS, OptimizerConfig, TrainConfig
from rhapsode.recipe.value import Recipe

__all__ = ["BUDGETS", "FEWEST_TIMED_STEPS", "PRECISIONS", "OptimizerConfig", "Recipe", "TrainConfig"]
