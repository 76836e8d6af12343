"""The recipes, named by what they cost a person on a two-core laptop, and how they are fitted to a text.

A recipe is made for a text that its time is too short to read more than a few times. A smaller text `fit` reads a few
times all the same, since reading on only learns it by heart, with fewer rows for pairs and smaller batches; where more
is asked for, it adds dropout. docs/presets.md says what was measured.
"""

import math
from typing import Any, NamedTuple

# Muon moves the matrices; two blocks, of which the last attends, with a feed-forward part where there is time for it.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "minute": {
        "model": {
            "kind": "stacked",
            "embed_dim": 192,
            "hidden_dim": 256,
            "key_dim": 64,
            "value_dim": 64,
            "num_layers": 2,
            "attention": "last",
            "pair_embeddings": 16384,
        },
        "optimizer": {"learning_rate": 0.02},
        "train": {"minutes": 1.0},
        "batch": {"window": 128, "batch_size": 32},
    },
    "coffee": {
        "model": {
            "kind": "stacked",
            "embed_dim": 224,
            "hidden_dim": 288,
            "key_dim": 64,
            "value_dim": 128,
            "num_layers": 2,
            "attention": "last",
            "pair_embeddings": 16384,
            "feed_forward": 2,
        },
        "optimizer": {"learning_rate": 0.02},
        "train": {"minutes": 10.0},
        "batch": {"window": 128, "batch_size": 32},
    },
    "overnight": {
        "model": {
            "kind": "stacked",
            "embed_dim": 384,
            "hidden_dim": 512,
            "key_dim": 64,
            "value_dim": 64,
            "num_heads": 4,
            "num_layers": 3,
            "attention": "last",
            "pair_embeddings": 16384,
            "feed_forward": 2,
        },
        "optimizer": {"learning_rate": 0.02},
        "train": {"minutes": 480.0},
        "batch": {"window": 256, "batch_size": 32},
    },
}

# Tokens per second of training on two cores of 2.8 GHz; from minutes to how often a text is read.
PACE = {"minute": 26_000, "coffee": 16_500, "overnight": 3_000}

EPOCHS_WITHOUT_DROPOUT = 5
DROPOUT_PER_DOUBLING = 0.1
MOST_DROPOUT = 0.4
MOST_EPOCHS = 5
TOKENS_PER_PAIR = 16  # of the text, for each row of the table of pairs
BATCHES_PER_EPOCH = 8


class Fitted(NamedTuple):
    """A recipe for one text. sections: its fields, as in PRESETS; reasons: why, for the fields that the text decides;
    text: in a line, how often the text would be read."""

    sections: dict[str, dict[str, Any]]
    reasons: dict[str, str]
    text: str


def tokens_read(name: str, train: dict[str, Any], window: int, num_tokens: int) -> float:
    """How many tokens a budget reads, whatever it is counted in; train: the fields of a TrainConfig."""
    if "minutes" in train:
        return 60 * train["minutes"] * PACE[name]
    if "sequences" in train:
        return train["sequences"] * window
    return train["tokens"] if "tokens" in train else train["epochs"] * num_tokens


def fit(name: str, num_tokens: int, read: float, stop_early: bool = True) -> Fitted:
    """The recipe `name` for a text of num_tokens tokens, of which `read` would be read.

    Dropout grows with the logarithm of the epochs; rows for pairs, rows of a batch and, at the very end, the window
    shrink with the text. stop_early: a text that would be read more than MOST_EPOCHS times is read that often.
    """
    preset = PRESETS[name]
    epochs = read / num_tokens
    text = f"{num_tokens:,} tokens to train on; {name} would read {read:,.0f}, which makes {epochs:,.1f} epochs"
    reasons = {}

    doublings = math.log2(max(1.0, (min(epochs, MOST_EPOCHS) if stop_early else epochs) / EPOCHS_WITHOUT_DROPOUT))
    dropout = round(min(MOST_DROPOUT, DROPOUT_PER_DOUBLING * doublings), 2)
    reasons["dropout"] = (
        f"{DROPOUT_PER_DOUBLING:g} for each doubling of the epochs beyond {EPOCHS_WITHOUT_DROPOUT},"
        f" at most {MOST_DROPOUT:g}"
    )

    pairs = preset["model"]["pair_embeddings"]
    while pairs > 256 and pairs * TOKENS_PER_PAIR > num_tokens:
        pairs //= 2
    reasons["pair_embeddings"] = f"{TOKENS_PER_PAIR} tokens of the text or more for each row"

    window, batch_size = preset["batch"]["window"], preset["batch"]["batch_size"]
    while window > 16 and BATCHES_PER_EPOCH * window > num_tokens:
        window //= 2
    batch_size = max(1, min(batch_size, num_tokens // (BATCHES_PER_EPOCH * window)))
    reasons["window"] = reasons["batch_size"] = (
        f"{BATCHES_PER_EPOCH} batches or more in an epoch, where the text has them"
    )

    train = preset["train"]
    if stop_early and epochs > MOST_EPOCHS:
        train = {"epochs": float(MOST_EPOCHS)}
        reasons["epochs"] = f"instead of minutes {preset['train']['minutes']:g}: more of them learn the text by heart"

    sections = {
        **preset,
        "model": {**preset["model"], "dropout": dropout, "pair_embeddings": pairs},
        "train": train,
        "batch": {**preset["batch"], "window": window, "batch_size": batch_size},
    }
    return Fitted(sections, reasons, text)
