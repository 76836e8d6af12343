"""The recipes fitted to texts of any size."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhapsode.recipe.changes import SECTIONS, build
from rhapsode.recipe.presets import PACE, PRESETS
from rhapsode.recipe.rules import (
    EPOCHS_AT_FULL_RATE,
    FEW_EPOCHS,
    LEAST_RATE,
    MOST_DROPOUT,
    MOST_EPOCHS,
    TextSize,
    fit_preset,
    tokens_read,
)

NAMES = st.sampled_from(sorted(PRESETS))


def tokens(count: float) -> dict[str, dict[str, Any]]:
    """A budget that a user chose."""
    return {"train": {"tokens": int(count)}}


@given(
    name=NAMES,
    num_tokens=st.integers(1, 10**10),
    per_story=st.floats(1e-9, 1),
    budget=st.none() | st.fixed_dictionaries({"tokens": st.integers(1, 10**12)}),
)
def test_any_text_gets_a_recipe_that_it_can_fill(
    name: str, num_tokens: int, per_story: float, budget: dict[str, int] | None
) -> None:
    """Would catch a batch larger than the text, dropout of 1, and a field that is lost on the way."""
    text = TextSize(num_tokens, max(1, int(num_tokens * per_story)))
    recipe = fit_preset(name, text, {"train": budget} if budget else None)
    for section, fields in recipe.sections.items():
        build(SECTIONS[section], {**fields, "vocab_size": 300} if section == "model" else fields)
        assert PRESETS[name][section].keys() <= fields.keys() | {"minutes"}
    batch = recipe.sections["batch"]
    if num_tokens >= 16:
        assert batch["batch_size"] * batch["window"] <= num_tokens
    assert 0 <= recipe.sections["model"]["dropout"] <= MOST_DROPOUT
    assert 256 <= recipe.sections["model"]["pair_embeddings"] <= PRESETS[name]["model"]["pair_embeddings"]
    if budget:
        assert recipe.sections["train"] == PRESETS[name]["train"]
        read: float = budget["tokens"]
    else:
        read = tokens_read(PACE[name], PRESETS[name]["train"], 128, num_tokens)
        ends = read * (0.75 if read > FEW_EPOCHS * num_tokens else 1) > MOST_EPOCHS * num_tokens
        assert recipe.sections["train"] == ({"epochs": MOST_EPOCHS} if ends else PRESETS[name]["train"])
    assert LEAST_RATE <= recipe.sections["optimizer"]["learning_rate"] <= 0.02
    if read <= EPOCHS_AT_FULL_RATE * num_tokens:
        assert recipe.sections["optimizer"]["learning_rate"] == 0.02


@given(name=NAMES, num_tokens=st.integers(1000, 10**8), read=st.floats(1e5, 1e9), more=st.floats(1, 1.1))
def test_the_rate_falls_with_the_epochs_without_a_step(name: str, num_tokens: int, read: float, more: float) -> None:
    """Would catch a text that is read a little more often and gets half the rate."""
    text = TextSize(num_tokens, num_tokens // 200)
    full, less = (fit_preset(name, text, tokens(r)).sections["optimizer"]["learning_rate"] for r in (read, more * read))
    assert 0.75 * full <= less <= full


@given(name=NAMES, num_tokens=st.integers(1000, 10**8), read=st.floats(1e5, 1e9), more=st.floats(1, 100))
def test_more_epochs_never_mean_less_dropout(name: str, num_tokens: int, read: float, more: float) -> None:
    text = TextSize(num_tokens, num_tokens // 200)
    less, much = (fit_preset(name, text, tokens(r)).sections["model"]["dropout"] for r in (read, more * read))
    assert less <= much


@pytest.mark.parametrize("name", PRESETS)
def test_a_large_text_gets_the_preset_as_it_stands(name: str) -> None:
    recipe = fit_preset(name, TextSize(10**9, 10**7))
    assert recipe.sections == {**PRESETS[name], "model": {**PRESETS[name]["model"], "dropout": 0.0}}


def test_what_a_text_changes() -> None:
    """Read often: a smaller rate and dropout; a small text: fewer rows for pairs; long stories: state is carried."""
    once = fit_preset("coffee", TextSize(10**7, 50_000), tokens(10**7)).sections
    often = fit_preset("coffee", TextSize(10**5, 500), tokens(10**6)).sections
    whole = fit_preset("coffee", TextSize(10**7, 1), tokens(10**7)).sections
    assert once["model"]["pair_embeddings"] > often["model"]["pair_embeddings"] > 0
    assert once["model"]["dropout"] < often["model"]["dropout"]
    assert once["optimizer"]["learning_rate"] > often["optimizer"]["learning_rate"]
    assert once["optimizer"]["weight_decay"] < often["optimizer"]["weight_decay"]
    assert "carry_state" not in once["batch"]
    assert whole["batch"]["carry_state"]
    asked = fit_preset(
        "coffee", TextSize(10**5, 500), {**tokens(10**6), "batch": {"window": 32, "batch_size": 2}}
    ).sections
    assert asked["batch"] == {"window": 32, "batch_size": 2}
    assert asked["optimizer"]["weight_decay"] < often["optimizer"]["weight_decay"]  # of the steps that it really takes
    assert fit_preset("coffee", TextSize(9_000, 50), tokens(1e5)).sections["optimizer"]["warmup_steps"] < 50


def test_what_a_budget_of_minutes_reads() -> None:
    """A text read often is read more slowly. Would catch a number of epochs that the recipe's pace cannot reach, and
    a text that is read more than FEW_EPOCHS times at the rate for new text."""
    for size in (10**9, 2 * 10**6, 10**6, 3 * 10**5):
        recipe = fit_preset("coffee", TextSize(size, size // 200), {"train": {"minutes": 10.0}})
        full = 600 * PACE["coffee"]
        often = full > 5 * size
        assert f"would process {full * 0.75 if often else full:,.0f}," in recipe.text
        assert (recipe.sections["model"]["dropout"] > 0) == (full * 0.75 > 7 * size)


def test_one_thread_reads_half_as_much() -> None:
    """Would catch a recipe for five epochs of a text that is read two and a half times."""
    text, ten = TextSize(2_000_000, 10_000), {"train": {"minutes": 10.0}}
    one, two, many = (fit_preset("coffee", text, ten, threads).sections["optimizer"] for threads in (1, 2, 16))
    assert two == many
    assert one["learning_rate"] > two["learning_rate"]
    half = {"train": {"minutes": 5.0}}
    assert one == fit_preset("coffee", text, half, 2).sections["optimizer"]


def test_tokens_that_a_budget_reads() -> None:
    assert tokens_read(7.0, {"tokens": 5}, 128, 100) == 5
    assert tokens_read(7.0, {"sequences": 3}, 128, 100) == 384
    assert tokens_read(7.0, {"epochs": 1.5}, 128, 100) == 150
    assert tokens_read(7.0, {"minutes": 2.0}, 128, 100) == 840
    small = fit_preset("coffee", TextSize(1000, 10), {"train": {"sequences": 60}})
    assert (
        f"would process {60 * small.sections['batch']['window']:,}," in small.text
    )  # of the window that it really takes
