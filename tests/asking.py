"""Requests as the command line makes them, for the tests of what becomes of them."""

from pathlib import Path
from typing import Any

from rhapsode.data import DataRequest
from rhapsode.recipe.changes import own_sections
from rhapsode.sources import SourceConfig
from rhapsode.training.start import TrainingRequest

TINY = ("embed_dim=4", "hidden_dim=4", "key_dim=4", "value_dim=4", "num_layers=1", "pair_embeddings=0")
TINY = (*TINY, "window=8", "batch_size=2")


def asked(
    *data: str,
    valid: str | None = None,
    preset: str | None = None,
    budget: dict[str, float] | None = None,
    tokenizer: Any = None,
    vocab_size: int | None = None,
    config: Path | None = None,
    assignments: tuple[str, ...] = TINY,
    seed: int | None = None,
    **reading: Any,
) -> TrainingRequest:
    """What these options of `rhapsode train` ask for."""
    wanted = DataRequest(data, (valid,) if valid else (), tokenizer, vocab_size, SourceConfig(**reading))
    return TrainingRequest(wanted, preset, own_sections(config, budget or {}, seed, assignments))
