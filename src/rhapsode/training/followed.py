"""A run directory as processes see it that do not lead: they read it, and what they would write, process 0 writes."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from rhapsode.model import LanguageModel
from rhapsode.run import Checkpoint, Run


class FollowedRun(Run):
    """A run of which nothing is written. What process 0 writes into run.json is remembered here as well."""

    @property
    def metrics_path(self) -> Path:
        return Path(os.devnull)

    @property
    def log_path(self) -> Path:
        return Path(os.devnull)

    def metrics(self) -> list[dict[str, Any]]:
        """Nothing: process 0 may be writing them."""
        return []

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Process 0 holds the run for all."""
        yield

    def update(self, **fields: Any) -> None:
        """Remembers the fields."""
        self.about = {**self.about, **fields}

    def save_last(self, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
        """Does nothing."""

    def save_best(self, model: LanguageModel, progress: dict[str, Any]) -> None:
        """Does nothing."""

    def cut_metrics(self, checkpoint: Checkpoint | None) -> None:
        """Does nothing."""
