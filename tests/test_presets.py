"""The recipes fitted to texts of any size."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhapsode.configs import SECTIONS, build
from rhapsode.presets import MOST_DROPOUT, MOST_EPOCHS, PACE, PRESETS, WIDEST, Text, fit, tokens_read

NAMES = st.sampled_from(sorted(PRESETS))


@given(name=NAMES, num_tokens=st.integers(1, 10**10), per_story=st.floats(1e-9, 1), read=st.floats(1, 1e12))
def test_any_text_gets_a_recipe_that_it_can_fill(name: str, num_tokens: int, per_story: float, read: float) -> None:
    """Would catch a batch larger than the text, dropout of 1, and a field that is lost on the way."""
    text = Text(num_tokens, max(1, int(num_tokens * per_story)))
    recipe = fit(name, text, read)
    for section, fields in recipe.sections.items():
        build(SECTIONS[section], {**fields, "vocab_size": 300} if section == "model" else fields)
        assert PRESETS[name][section].keys() <= fields.keys() | {"minutes"}
    batch = recipe.sections["batch"]
    if num_tokens >= 16:
        assert batch["batch_size"] * batch["window"] <= num_tokens
    assert 0 <= recipe.sections["model"]["dropout"] <= MOST_DROPOUT
    assert 256 <= recipe.sections["model"]["pair_embeddings"] <= PRESETS[name]["model"]["pair_embeddings"]
    assert (recipe.sections["train"] == PRESETS[name]["train"]) == (read <= MOST_EPOCHS * num_tokens)
    assert fit(name, text, read, stop_early=False).sections["train"] == PRESETS[name]["train"]


@given(name=NAMES, num_tokens=st.integers(1000, 10**8), read=st.floats(1e5, 1e9), more=st.floats(1, 100))
def test_more_epochs_never_mean_less_dropout(name: str, num_tokens: int, read: float, more: float) -> None:
    text = Text(num_tokens, num_tokens // 200)
    less, much = (fit(name, text, r, stop_early=False).sections["model"]["dropout"] for r in (read, more * read))
    assert less <= much


@pytest.mark.parametrize("name", PRESETS)
def test_a_large_text_gets_the_preset_as_it_stands(name: str) -> None:
    recipe = fit(name, Text(10**9, 10**7), 10**9)
    assert recipe.sections == {**PRESETS[name], "model": {**PRESETS[name]["model"], "dropout": 0.0}}


def test_what_a_text_changes() -> None:
    """Read often: a smaller rate, dropout, a second block; a small text: fewer rows, less width; long stories: state is
    carried."""
    once = fit("coffee", Text(10**7, 50_000), 10**7).sections
    often = fit("coffee", Text(10**5, 500), 10**6).sections
    whole = fit("coffee", Text(10**7, 1), 10**7).sections
    assert once["model"]["pair_embeddings"] > often["model"]["pair_embeddings"] > 0
    assert once["model"]["dropout"] < often["model"]["dropout"]
    assert "num_layers" not in once["model"]
    assert (often["model"]["num_layers"], often["model"]["attention"]) == (2, "last")
    assert fit("overnight", Text(10**5, 500), 10**6).sections["model"]["num_layers"] == 3
    assert once["optimizer"]["learning_rate"] > often["optimizer"]["learning_rate"]
    assert once["optimizer"]["weight_decay"] < often["optimizer"]["weight_decay"]
    assert "carry_state" not in once["batch"]
    assert whole["batch"]["carry_state"]
    assert often["model"]["embed_dim"] < once["model"]["embed_dim"]
    assert fit("overnight", Text(10**5, 500), 10**6).sections["model"]["embed_dim"] == WIDEST
    asked = fit("coffee", Text(10**5, 500), 10**6, window=32, batch_size=2).sections
    assert asked["batch"] == {"window": 32, "batch_size": 2}
    assert asked["optimizer"]["weight_decay"] < often["optimizer"]["weight_decay"]  # of the steps that it really takes
    assert fit("coffee", Text(9_000, 50), 1e5).sections["optimizer"]["warmup_steps"] < 50


def test_tokens_that_a_budget_reads() -> None:
    assert tokens_read("minute", {"tokens": 5}, 128, 100) == 5
    assert tokens_read("minute", {"sequences": 3}, 128, 100) == 384
    assert tokens_read("minute", {"epochs": 1.5}, 128, 100) == 150
    assert tokens_read("minute", {"minutes": 2.0}, 128, 100) == 2 * tokens_read("minute", {"minutes": 1.0}, 64, 7) > 0
    rare, often = (tokens_read("minute", {"minutes": 1.0}, 128, size) for size in (10**9, 10**5))
    assert 5 * 10**5 < often < rare
    assert tokens_read("overnight", {"minutes": 1.0}, 128, 10**3) == 0.75 * 60 * PACE["overnight"]  # no further block
