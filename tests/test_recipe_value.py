"""A recipe as a value: there and back, changed, and refused with the field that is wrong."""

import copy
import json
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from rhapsode.model import ModelConfig
from rhapsode.recipe import OptimizerConfig, Recipe, TrainConfig
from rhapsode.recipe.presets import PRESETS
from rhapsode.tokens import BatchConfig

RECIPE = Recipe(
    ModelConfig(vocab_size=300, kind="stacked", num_layers=2, dropout=0.1),
    OptimizerConfig(learning_rate=0.02, weight_decay=0.1),
    TrainConfig(minutes=1.0, seed=7),
    BatchConfig(window=64),
)


@pytest.mark.parametrize("name", PRESETS)
def test_there_and_back(name: str) -> None:
    """Through JSON, as run.json keeps it; would catch a field that is lost or changes its type."""
    recipe = Recipe.from_sections(PRESETS[name], vocab_size=500)
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    assert recipe.model.vocab_size == 500
    assert hash(recipe) == hash(copy.deepcopy(recipe))
    with pytest.raises(FrozenInstanceError):
        recipe.model = RECIPE.model  # type: ignore[misc]


def test_changes() -> None:
    """A budget displaces the other, a plain model has no dropout, whole numbers do for floats, nothing else moves."""
    changed = RECIPE.with_changes(model={"hidden_dim": 9}, train={"tokens": 500})
    assert (changed.model.hidden_dim, changed.model.dropout, changed.train.seed) == (9, 0.1, 7)
    assert (changed.train.tokens, changed.train.minutes) == (500, 0.0)
    assert RECIPE.with_changes(train={"minutes": 2}).train.minutes == 2.0
    plain = RECIPE.with_changes(model={"kind": "plain"}).model
    assert (plain.kind, plain.dropout, plain.num_layers, plain.vocab_size) == ("plain", 0.0, 1, 300)
    assert RECIPE.with_changes() == RECIPE
    with pytest.raises(ValueError, match=r"with_changes: unknown field 'model\.depth'"):
        RECIPE.with_changes(model={"depth": 3})
    with pytest.raises(ValueError, match="hidden_dim must be at least 1, got 0"):
        RECIPE.with_changes(model={"hidden_dim": 0})
    with pytest.raises(
        ValueError, match="'modle' is not a section of a recipe; the sections are model, optimizer, train, batch"
    ):
        RECIPE.with_changes(modle={"hidden_dim": 3})


def broken(change: str) -> dict[str, Any]:
    content: dict[str, Any] = copy.deepcopy(RECIPE.to_dict())
    if change == "missing field":
        del content["optimizer"]["beta1"]
    elif change == "missing section":
        del content["batch"]
    elif change == "no table":
        content["batch"] = [1, 2]
    elif change == "unknown field":
        content["model"]["mood"] = "good"
    elif change == "unknown section":
        content["weather"] = {}
    elif change == "type":
        content["model"]["hidden_dim"] = "64"
    elif change == "value":
        content["train"]["validations"] = 0
    return content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing field", r"run\.json: the field optimizer\.beta1 is missing"),
        ("missing section", r"run\.json: the section batch is missing"),
        ("no table", r"run\.json: batch must be an object, got \[1, 2\]"),
        ("unknown field", r"run\.json: model has the field 'mood', which this version of rhapsode does not know"),
        ("unknown section", r"run\.json: 'weather' is not a section of a recipe"),
        ("type", r"run\.json: model\.hidden_dim must be a whole number, got '64'"),
        ("value", r"run\.json: train: validations must be >= 1, got 0"),
    ],
)
def test_what_is_wrong_is_named(change: str, message: str) -> None:
    """One line with the file, the section and the field."""
    with pytest.raises(ValueError, match=message) as caught:
        Recipe.from_dict(broken(change), "run.json")
    assert len(str(caught.value).splitlines()) == 1
