"""What of a preset is changed, one thing at a time: for ablations.py, what it is worth, and parts.py, what it costs."""

import contextlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor

from rhapsode.kernels.attention import visible
from rhapsode.kernels.copying import mixed
from rhapsode.kernels.loss import linear_cross_entropy
from rhapsode.recipe import Recipe

Sections = dict[str, dict[str, Any]]
Patch = Callable[[], contextlib.AbstractContextManager[Any]]
RECIPE = "the recipe"
EOS = 1  # of the tokenizers that are trained here


def within_stories(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    q: Tensor,
    k: Tensor,
    gate: Tensor,
    ids: Tensor,
    targets: Tensor,
    reduction: str = "mean",
) -> Tensor:
    """`copy_cross_entropy` that copies from the story at hand alone, not from others in the window; plainly."""
    of_vocabulary = linear_cross_entropy(x.flatten(0, 1), weight, bias, targets.flatten(), "none").view(targets.shape)
    ends, read, known = (ids == EOS).cumsum(1), x.shape[1], ids.shape[1]
    in_story = ends[:, -read:, None] == (ends - (ids == EOS).long())[:, None]  # (B, T, S): of what comes next, of a key
    seen = in_story & visible(read, known, x.device)
    scores = (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])).masked_fill(~seen, -math.inf)
    hits = (ids[:, None] == targets[..., None]) & seen
    copied = torch.where(hits, scores.masked_fill(~seen.any(-1, keepdim=True), 0.0).softmax(-1), 0.0).sum(-1)
    nats = -mixed(-of_vocabulary, copied, gate).where(targets != -100, 0.0)
    if reduction == "none":
        return nats
    return nats.sum() / (targets != -100).sum() if reduction == "mean" else nats.sum()


class Change(NamedTuple):
    """sections: fields of the recipe that it sets; patch: what of the package it replaces while a model trains;
    spaced: whether the tokenizer leaves the space before a name with it."""

    sections: Sections
    patch: Patch = contextlib.nullcontext
    spaced: bool = False


def _model(**fields: Any) -> Change:
    return Change({"model": fields})


CHANGES: dict[str, Change] = {
    RECIPE: Change({}),
    "no copy head": _model(copy_dim=0),
    "copies within a story alone": Change(
        {}, lambda: mock.patch("rhapsode.copying.copy_cross_entropy", within_stories)
    ),
    "an Elman recurrence": _model(cell="elman"),
    "an Elman recurrence, no output gate": _model(cell="elman", gate=False),
    "no output gate": _model(gate=False),
    "fresh cells that remember for two steps": Change({}, lambda: mock.patch("rhapsode.cells.LONGEST_MEMORY", 2)),
    "one block": _model(num_layers=1),
    "three blocks": _model(num_layers=3),
    "no attention": _model(attention="none"),
    "attention in both blocks": _model(attention="all"),
    "no feed-forward part": _model(feed_forward=0),
    "a feed-forward part": _model(feed_forward=2),
    "no embeddings of pairs": _model(pair_embeddings=0),
    "names with the space before them": Change({}, spaced=True),
    "a vocabulary of 1,024": _model(vocab_size=1024),
    "a vocabulary of 4,096": _model(vocab_size=4096),
    "windows of 128, batches of 32": Change({"batch": {"window": 128, "batch_size": 32}}),
    "windows of 512, batches of 8": Change({"batch": {"window": 512, "batch_size": 8}}),
    "AdamW for the matrices too, at 2e-3": Change({"optimizer": {"optimizer": "adamw", "learning_rate": 2e-3}}),
    "Muon at 0.04": Change({"optimizer": {"matrix_learning_rate": 0.04}}),
    "no weight decay": Change({"optimizer": {"weight_decay": 0.0}}),
}
READ_OFTEN: dict[str, Change] = {  # of a recipe that is fitted to a text which is read often
    RECIPE: Change({}),
    "no copy head": _model(copy_dim=0),
    "one block": _model(num_layers=1),
    "no dropout": _model(dropout=0.0),
    "weight decay of 0.1": Change({"optimizer": {"weight_decay": 0.1}}),
    "the rate of new text, 0.02": Change({"optimizer": {"learning_rate": 0.02}}),
}


def changes_of(recipe: Sections, often: bool) -> dict[str, Change]:
    """What can be changed in a recipe, itself first; often: whether it is of a text that is read often."""
    whole = Recipe.from_sections(recipe, recipe["model"].get("vocab_size", 2))
    known = READ_OFTEN if often else CHANGES
    return {
        name: each for name, each in known.items() if not each.sections or whole.with_changes(**each.sections) != whole
    }
