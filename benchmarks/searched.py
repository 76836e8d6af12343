"""What tuning.py looks through: the sizes, rates, windows, batches and vocabularies of `modern` and of our own recipe.

A space has a start, steps of each field from which configurations are drawn by chance, and wider ones, along which the
search goes on from the best of them.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from modern import ModernConfig

from rhapsode.recipe import Recipe
from rhapsode.recipe.changes import Sections
from rhapsode.recipe.presets import MODEL, OPTIMIZER

Config = dict[str, Any]
COPY_DIM = 64
MOST_DRAWS = 20  # for each configuration that is wanted
RATES = (0.005, 0.01, 0.02, 0.04)
WINDOW = 320  # of ours: a story of storyworld fits into it


class Space(NamedTuple):
    """start: a configuration; steps: what each field that is looked for can be; wider: the same, one step beyond edges
    at which the best lay; possible: raises ValueError for a configuration that cannot be."""

    start: Config
    steps: Mapping[str, Sequence[Any]]
    wider: Mapping[str, Sequence[Any]]
    possible: Callable[[Config], object]

    def drawn(self, count: int, seed: int) -> list[Config]:
        """So many different configurations by chance; fewer where there are few."""
        draw, found = random.Random(seed), dict[str, Config]()
        for _ in range(MOST_DRAWS * count):
            config = {**self.start, **{field: draw.choice(steps) for field, steps in self.steps.items()}}
            if len(found) < count and self.can_be(config):
                found[key_of(config)] = config
        return list(found.values())

    def beside(self, config: Config) -> list[Config]:
        """All that are one step of one field away; those that cannot be are left out."""
        return [each for field, steps in self.wider.items() for each in self.neighbours(config, field, steps)]

    def neighbours(self, config: Config, field: str, steps: Sequence[Any]) -> list[Config]:
        """The configuration with the field one step lower, and one step higher."""
        place = steps.index(config[field])
        moved = [{**config, field: steps[i]} for i in (place - 1, place + 1) if 0 <= i < len(steps)]
        return [each for each in moved if self.can_be(each)]

    def can_be(self, config: Config) -> bool:
        """Whether there is such a model."""
        try:
            self.possible(config)
        except ValueError:
            return False
        return True

    def following(self, begun: list[Config], most: int, tried: Sequence[tuple[Config, float]]) -> list[Config]:
        """Which configurations are to be tried next: what the search begins with, then what is beside the best that
        was tried; none where all of that was tried, or so many were.

        tried: each with its loss; infinite where training diverged.
        """
        known = {key_of(config) for config, _ in tried}
        wanted = [config for config in begun if key_of(config) not in known]
        if not wanted:
            best, _ = min(tried, key=lambda one: one[1])
            wanted = [config for config in self.beside(best) if key_of(config) not in known]
        return wanted[: max(0, most - len(tried))]


def key_of(config: Config) -> str:
    """A configuration as the name of its result."""
    return ", ".join(f"{name} {config[name]:g}" for name in sorted(config))


def sections_of(config: Config) -> Sections:
    """A configuration of ours as sections of a recipe, vocab_size among them."""
    names = ("num_layers", "embed_dim", "hidden_dim", "feed_forward", "value_dim", "vocab_size")
    rates = ("learning_rate", "matrix_learning_rate")
    return {
        "model": {**MODEL, **{name: config[name] for name in names}},
        "optimizer": {**OPTIMIZER, **{name: config[name] for name in rates}},
        "train": {"epochs": 1.0},  # no configuration decides it
        "batch": {"window": WINDOW, "batch_size": config["batch_size"]},
    }


def recipe_of(config: Config) -> Recipe:
    """A configuration of ours as a recipe."""
    return Recipe.from_sections(sections_of(config), config["vocab_size"])


_MODERN: dict[str, Sequence[Any]] = {
    "width": (96, 128, 160, 192, 224, 256, 320),
    "vocab_size": (1024, 2048, 4096),
    "layers": (1, 2, 3, 4),
    "feed_forward": (1, 2, 3, 4),
    "window": (64, 128, 256, 512),
    "batch_tokens": (2048, 4096, 8192),
    "learning_rate": RATES,
    "matrix_learning_rate": RATES,
    "heads": (2, 4, 8),
}
MODERN = Space(
    asdict(ModernConfig(copy_dim=COPY_DIM)),
    _MODERN,
    {
        **_MODERN,
        "batch_tokens": (1024, 2048, 4096, 8192),
        "learning_rate": (*RATES, 0.08),
        "matrix_learning_rate": (*RATES, 0.08),
    },
    lambda config: ModernConfig(**config),
)
_OURS: dict[str, Sequence[Any]] = {
    "num_layers": (1, 2, 3),
    "embed_dim": (96, 128, 160, 192),
    "hidden_dim": (128, 192, 224, 288),
    "feed_forward": (0, 1, 2, 3),
    "value_dim": (64, 128),
    "vocab_size": (1024, 2048, 4096),
    "batch_size": (3, 6, 13, 26),
    "learning_rate": (0.01, 0.02, 0.04, 0.08),
    "matrix_learning_rate": (0.01, 0.02, 0.04, 0.08),
}
_FIRST: Config = {"num_layers": 2, "embed_dim": 128, "hidden_dim": 192, "feed_forward": 0, "value_dim": 64}
_FIRST |= {"vocab_size": 2048, "batch_size": 13, "learning_rate": 0.02, "matrix_learning_rate": 0.02}
OURS = Space(_FIRST, _OURS, _OURS, recipe_of)
SPACES = {"modern": MODERN, "rhapsode": OURS}
