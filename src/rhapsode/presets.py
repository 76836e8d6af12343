"""The recipes, named by what they cost a person on a two-core laptop, and how they are fitted to a text.

A recipe is made for a text that its time is too short to read more than a few times. A smaller text is read more often,
and a rate that makes a model learn fast makes it learn by heart then: `fit` lowers it, adds dropout, weight decay and a
second block, and ends in time. docs/presets.md says what was measured.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from rhapsode.train import BUDGETS, OptimizerConfig
from rhapsode.train.plan import FEWEST_TIMED_STEPS

# Muon moves the matrices. Ten minutes of new text are too short for more than one block, a minute also for a
# feed-forward part.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "minute": {
        "model": {
            "kind": "stacked",
            "embed_dim": 192,
            "hidden_dim": 256,
            "key_dim": 64,
            "value_dim": 64,
            "pair_embeddings": 16384,
        },
        "optimizer": {"learning_rate": 0.02, "weight_decay": 0.1},
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
            "pair_embeddings": 16384,
            "feed_forward": 2,
        },
        "optimizer": {"learning_rate": 0.02, "weight_decay": 0.1},
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
        "optimizer": {"learning_rate": 0.02, "weight_decay": 0.1},
        "train": {"minutes": 480.0},
        "batch": {"window": 256, "batch_size": 32},
    },
}

# Tokens per second of training on two cores of 2.8 GHz; from minutes to how often a text is read.
PACE = {"minute": 32_000, "coffee": 19_000, "overnight": 3_000}

FEW_EPOCHS = 5  # up to these a recipe stays as it is; beyond, what learns fast learns by heart
REREAD_RATE = 3e-3
REREAD_PACE = 0.75  # dropout and carried state take their time,
SECOND_BLOCK_PACE = 0.75  # and so does a second block
STEPS_TIMES_DECAY = 300
MOST_DECAY = 1.0
MOST_EPOCHS = 20
EPOCHS_WITHOUT_DROPOUT = 7
DROPOUT_PER_DOUBLING = 0.2
MOST_DROPOUT = 0.4
TOKENS_PER_PAIR = 16  # of the text, for each row of the table of pairs
FEWEST_ROWS = 256
WIDEST, WIDEST_TOKENS = 192, 100_000  # embed_dim for a text of so many tokens; its square grows with them
WIDTH_STEP = 32
BATCHES_PER_EPOCH = 8
LONG_STORY = 8  # windows
WARMUP_SHARE = 0.2  # of all steps, at most


class Text(NamedTuple):
    """What of a text decides: how many tokens and stories there are to train on."""

    num_tokens: int
    num_stories: int


class Fitted(NamedTuple):
    """A recipe for one text. sections: its fields, as in PRESETS; reasons: why, for the fields that the text decides;
    text: in a line, how often the text would be read."""

    sections: dict[str, dict[str, Any]]
    reasons: dict[str, str]
    text: str


def tokens_read(name: str, train: Mapping[str, Any], window: int, num_tokens: int) -> float:
    """How many tokens a budget reads, whatever it is counted in, by the preset as it is; train: fields of a
    TrainConfig."""
    if "minutes" in train:
        return 60 * train["minutes"] * PACE[name]
    if "sequences" in train:
        return train["sequences"] * window
    return train["tokens"] if "tokens" in train else train["epochs"] * num_tokens


def rows_for_pairs(name: str, num_tokens: int) -> int:
    """Rows of the table of pairs: the preset's, halved until the text has TOKENS_PER_PAIR for each."""
    rows = PRESETS[name]["model"]["pair_embeddings"]
    while rows > FEWEST_ROWS and rows * TOKENS_PER_PAIR > num_tokens:
        rows //= 2
    return rows


def fit(name: str, text: Text, own: Mapping[str, Mapping[str, Any]] | None = None) -> Fitted:
    """The recipe `name` for a text. own: what a user chose, by section: budget, window, batch size and number of blocks
    decide with the text; a text that the preset's own minutes would read more than MOST_EPOCHS times is read that
    often."""
    preset = PRESETS[name]
    chosen = {section: (own or {}).get(section, {}) for section in preset}
    reasons = {}
    window = chosen["batch"].get("window")
    if window is None:
        window = preset["batch"]["window"]
        while window > 16 and BATCHES_PER_EPOCH * window > text.num_tokens:
            window //= 2
    batch_size = chosen["batch"].get("batch_size")
    if batch_size is None:
        batch_size = max(1, min(preset["batch"]["batch_size"], text.num_tokens // (BATCHES_PER_EPOCH * window)))
    reasons["window"] = reasons["batch_size"] = (
        f"{BATCHES_PER_EPOCH} batches or more in an epoch, where the text has them"
    )
    batch = {"window": window, "batch_size": batch_size}
    if text.num_tokens >= LONG_STORY * window * text.num_stories:
        batch["carry_state"] = True
        reasons["carry_state"] = f"stories are {LONG_STORY} windows long or more"

    train = preset["train"]
    budget = {field: value for field, value in chosen["train"].items() if field in BUDGETS}
    read = tokens_read(name, budget or train, window, text.num_tokens)
    often = read > FEW_EPOCHS * text.num_tokens
    many = f"in more than {FEW_EPOCHS} epochs ({read / text.num_tokens:,.1f} at the pace of {name} as it stands)"
    second_block = often and preset["model"].get("num_layers", 1) == 1 and "num_layers" not in chosen["model"]
    if often and "minutes" in (budget or train):
        read *= REREAD_PACE * (SECOND_BLOCK_PACE if second_block else 1)
    epochs = read / text.num_tokens
    summary = f"{text.num_tokens:,} tokens to train on; {name} would read {read:,.0f}, which makes {epochs:,.1f} epochs"
    if not budget and epochs > MOST_EPOCHS:
        epochs, read, train = MOST_EPOCHS, MOST_EPOCHS * text.num_tokens, {"epochs": float(MOST_EPOCHS)}
        reasons["epochs"] = (
            f"instead of minutes {preset['train']['minutes']:g}: more epochs would learn the text by heart"
        )
    steps = read / (batch_size * window)

    model: dict[str, Any] = {"dropout": 0.0, "pair_embeddings": rows_for_pairs(name, text.num_tokens)}
    optimizer = preset["optimizer"]
    reasons["pair_embeddings"] = f"{TOKENS_PER_PAIR} tokens of the text or more for each row, {FEWEST_ROWS} at least"
    if often:
        doublings = math.log2(max(1.0, epochs / EPOCHS_WITHOUT_DROPOUT))
        model["dropout"] = round(min(MOST_DROPOUT, DROPOUT_PER_DOUBLING * doublings), 2)
        least = optimizer["weight_decay"]
        decay = round(min(MOST_DECAY, max(least, STEPS_TIMES_DECAY / steps)), 2)
        optimizer = {**optimizer, "learning_rate": REREAD_RATE, "weight_decay": decay}
        reasons["learning_rate"] = f"{many} a higher rate learns the text by heart"
        reasons["weight_decay"] = (
            f"{STEPS_TIMES_DECAY} over some {steps:,.0f} steps, at least {least:g}, at most {MOST_DECAY:g}"
        )
    if second_block:
        model |= {"num_layers": 2, "attention": "last"}
        reasons["num_layers"] = reasons["attention"] = f"{many} a second block pays"
    reasons["dropout"] = (
        f"{DROPOUT_PER_DOUBLING:g} for each doubling of the epochs beyond {EPOCHS_WITHOUT_DROPOUT},"
        f" at most {MOST_DROPOUT:g}"
    )
    widest = WIDEST * math.sqrt(max(1.0, text.num_tokens / WIDEST_TOKENS))
    if (full := preset["model"]["embed_dim"]) > widest:
        for field in ("embed_dim", "hidden_dim"):
            model[field] = WIDTH_STEP * round(preset["model"][field] * widest / full / WIDTH_STEP)
            reasons[field] = f"instead of {preset['model'][field]}: wider would learn a text of this size by heart"

    if WARMUP_SHARE * steps < OptimizerConfig.warmup_steps:
        optimizer = {**optimizer, "warmup_steps": max(FEWEST_TIMED_STEPS, round(WARMUP_SHARE * steps))}
        reasons["warmup_steps"] = (
            f"a share of {WARMUP_SHARE:g} of some {steps:,.0f} steps, {FEWEST_TIMED_STEPS} at least"
        )
    sections = {
        **preset,
        "model": {**preset["model"], **model},
        "optimizer": optimizer,
        "train": train,
        "batch": {**preset["batch"], **batch},
    }
    return Fitted(sections, reasons, summary)
