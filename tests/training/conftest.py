"""Fixtures of the tests of training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from begun import MODELS

from rhapsode.model import ModelConfig
from rhapsode.recipe import OptimizerConfig, Recipe, TrainConfig
from rhapsode.run import Run
from rhapsode.tokenizer import Tokenizer
from rhapsode.tokens import BatchConfig
from rhapsode.training.start import create_run


@pytest.fixture
def begin(small: Any, tmp_path: Path) -> Callable[..., Run]:
    """Makes a run: 24 steps, a validation after each sixth, and no sample there, unless said otherwise."""

    def make(
        name: str = "run",
        model: dict[str, Any] = MODELS["plain"],
        optimizer: dict[str, Any] | None = None,
        batch: dict[str, Any] | None = None,
        tokenizer: Tokenizer | None = small.tokenizer,
        **training: Any,
    ) -> Run:
        if not set(training) & {"sequences", "tokens", "epochs", "minutes"}:
            training["sequences"] = 24 * 4
        recipe = Recipe(
            ModelConfig(small.tokenizer.vocab_size, **model),
            OptimizerConfig(**{"warmup_steps": 5, **(optimizer or {})}),
            TrainConfig(**{"validations": 4, "prompt": "", **training}),
            BatchConfig(**{"window": 16, "batch_size": 4, **(batch or {})}),
        )
        if tokenizer is not None:
            return create_run(tmp_path / name, recipe, tokenizer, {})
        return Run.create(tmp_path / name, recipe.to_dict(), None)

    return make
