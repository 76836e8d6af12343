"""The recipes fitted to texts of any size."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhapsode.configs import SECTIONS, build
from rhapsode.presets import MOST_DROPOUT, MOST_EPOCHS, PRESETS, fit, tokens_read

NAMES = st.sampled_from(sorted(PRESETS))


@given(name=NAMES, num_tokens=st.integers(1, 10**10), read=st.floats(1, 1e12))
def test_any_text_gets_a_recipe_that_it_can_fill(name: str, num_tokens: int, read: float) -> None:
    """Would catch a batch larger than the text, dropout of 1, and a field that is lost on the way."""
    recipe = fit(name, num_tokens, read)
    for section, fields in recipe.sections.items():
        build(SECTIONS[section], {**fields, "vocab_size": 300} if section == "model" else fields)
        assert PRESETS[name][section].keys() <= fields.keys() | {"minutes"}
    batch = recipe.sections["batch"]
    if num_tokens >= 16:
        assert batch["batch_size"] * batch["window"] <= num_tokens
    assert 0 <= recipe.sections["model"]["dropout"] <= MOST_DROPOUT
    assert 256 <= recipe.sections["model"]["pair_embeddings"] <= PRESETS[name]["model"]["pair_embeddings"]
    assert (recipe.sections["train"] == PRESETS[name]["train"]) == (read <= MOST_EPOCHS * num_tokens)
    assert fit(name, num_tokens, read, stop_early=False).sections["train"] == PRESETS[name]["train"]


@given(name=NAMES, num_tokens=st.integers(1000, 10**8), read=st.floats(1e5, 1e9), more=st.floats(1, 100))
def test_more_epochs_never_mean_less_dropout(name: str, num_tokens: int, read: float, more: float) -> None:
    less, much = (fit(name, num_tokens, r, stop_early=False).sections["model"]["dropout"] for r in (read, more * read))
    assert less <= much


@pytest.mark.parametrize("name", PRESETS)
def test_a_large_text_gets_the_preset_as_it_stands(name: str) -> None:
    recipe = fit(name, 10**9, 10**9)
    assert recipe.sections == {**PRESETS[name], "model": {**PRESETS[name]["model"], "dropout": 0.0}}


def test_tokens_that_a_budget_reads() -> None:
    assert tokens_read("minute", {"tokens": 5}, 128, 100) == 5
    assert tokens_read("minute", {"sequences": 3}, 128, 100) == 384
    assert tokens_read("minute", {"epochs": 1.5}, 128, 100) == 150
    assert tokens_read("minute", {"minutes": 2.0}, 128, 100) == 2 * tokens_read("minute", {"minutes": 1.0}, 64, 7) > 0
