"""Studies whose cells were never trained: results with chosen numbers, so that a report can be checked in no time."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rhapsode.studies.directory import Study
from rhapsode.studies.plans import Cell, StudyRequest, plan_of
from rhapsode.studies.whole import command_of
from rhapsode.tokenizer import train_tokenizer

Losses = Callable[[Cell], tuple[float, float, float]]  # (training, validation, seconds) at the end


def made_up_losses(cell: Cell) -> tuple[float, float, float]:
    """Larger models, more steps: lower losses; larger models: more time."""
    width, steps = cell.sections["model"].get("hidden_dim", 128), cell.sections["train"]["sequences"] / 128
    train = 2.0 + 8 / math.log(width) + 2 / math.log(2 + steps) - 2.7 + 0.001 * (cell.seed % 3)
    return train, train + 0.05 + 0.0137, width * steps / 700


def made_up_study(path: Path, request: StudyRequest, scale: float = 0.05, losses: Losses = made_up_losses) -> Study:
    """A study directory with all cells finished."""
    tokenizer = train_tokenizer(["Once upon a time there was a cat. " * 20], "characters", 64)
    fingerprints = {"train_fingerprint": "a", "valid_fingerprint": "b", "store_fingerprint": "c"}
    about: dict[str, Any] = {
        "request": {name: getattr(request, name) for name in StudyRequest.__dataclass_fields__},
        "command": command_of(request, path),
        "scale": scale,
        "valid_stories": 1000,
        "valid_sequences": 1000,
        "jobs": 1,
        "data": fingerprints
        | {"locations": ["stories.jsonl"], "source": {}, "valid": "valid.jsonl"}
        | {"description": "stories.jsonl", "num_stories": 11_812, "valid_stories_there": 3_228}
        | {"valid_description": "valid.jsonl"},
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "tokenizer_kind": tokenizer.kind,
        "vocab_size": tokenizer.vocab_size,
    }
    study = Study.create(path, about, tokenizer)
    for cell in plan_of(request, scale).cells.values():
        study.cell_path(cell).mkdir(parents=True)
        study.finish(cell, made_up_result(cell, *losses(cell)))
    return study


def made_up_result(cell: Cell, train_loss: float, valid_loss: float, seconds: float) -> dict[str, Any]:
    """Ten points on the way to these ends."""
    batch_size, count = cell.sections["batch"]["batch_size"], cell.sections["train"]["sequences"]
    steps = -(-count // batch_size)
    points = []
    for i in range(1, min(10, steps) + 1):
        share = i / min(10, steps)
        step = max(1, round(steps * share))
        above = 3.5 * (1 - share) ** 2
        points.append(
            {"step": step, "sequences": step * batch_size, "tokens": step * batch_size * 127}
            | {"seconds": seconds * share, "train_loss": train_loss + above, "valid_loss": valid_loss + above}
        )
    walk = "They went to the park. " * 8
    texts = [f" little girl <named> Lily & her *dog* number {i}. {walk}" for i in (1, 2, 3)]
    completions = [
        {
            "temperature": temperature,
            "texts": texts if temperature else texts[:1],
            "distinct": {n: [0.2 + 0.8 * temperature, 0.25 + 0.8 * temperature] for n in ("1", "2", "3")},
            "repetition": [0.8 - temperature, 0.82 - temperature],
            "log_probability": [-0.5 - temperature, -0.6 - temperature],
        }
        for temperature in (0.0, 0.3, 0.8)
    ]
    return {
        "ended": "budget",
        "points": points,
        "seconds": seconds,
        "epochs": points[-1]["sequences"] / 11_812,
        "parameters": 1_000 * cell.sections["model"].get("hidden_dim", 128),
        "threads": 1,
        "threads_begun": 1,
        "completions": completions if cell.completions else [],
    }
