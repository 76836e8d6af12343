"""Fixtures that several test files share."""

import json
import os
import signal
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, settings

from rhapsode import storyworld
from rhapsode.sources import open_source
from rhapsode.tokenizer import Tokenizer, train_tokenizer
from rhapsode.tokens import TokenStore, prepare

# A suite that was started in the background inherits a Ctrl-C that is ignored, and hands it on to what it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Every run draws the same examples and no clock judges them; by default one fails that takes 200 ms on a busy machine.
settings.register_profile("suite", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data beside the checkout; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("RHAPSODE_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip("needs the data folder shared/ beside the checkout (or RHAPSODE_SHARED)")
    return folder


@pytest.fixture(autouse=True)
def threads_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test depends on what else the machine does: threads always meet in time."""
    monkeypatch.setattr("rhapsode.threads.threads_meet_in_time", lambda count: True)


class Small(NamedTuple):
    """A hundred beginnings of stories, in a file, and as token stores."""

    file: Path
    tokenizer: Tokenizer
    train: TokenStore
    valid: TokenStore


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """Data on which a test trains in milliseconds: 4,000 tokens to learn from, 500 to be judged by."""
    folder = tmp_path_factory.mktemp("small")
    texts = [text[:80] for text in storyworld.sample_batch(0, 100)]
    file = folder / "stories.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    tokenizer = train_tokenizer(texts, "bpe", 300)
    train, valid = prepare(open_source([str(file)]), tokenizer, folder / "cache").hold_out(0.1, seed=0)
    return Small(file, tokenizer, train, valid)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, small: Small) -> Path:
    """A run directory of a tiny stacked model, trained for ten steps; not to be written to."""
    from rhapsode.recipe import Recipe
    from rhapsode.training import train_run
    from rhapsode.training.start import create_run

    recipe = Recipe.from_sections(
        {
            "model": {"kind": "stacked", "embed_dim": 8, "hidden_dim": 10, "key_dim": 4, "value_dim": 6,
                      "num_layers": 2, "num_heads": 2, "attention": "last", "pair_embeddings": 50, "copy_dim": 3},
            "train": {"sequences": 40, "validations": 2},
            "batch": {"window": 8, "batch_size": 4},
        },
        small.tokenizer.vocab_size,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("runs") / "tiny"
    run = create_run(path, recipe, small.tokenizer, {})
    train_run(run, small.train, small.valid, show=False)
    return path
