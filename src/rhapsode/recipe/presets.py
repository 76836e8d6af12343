"""The recipes, named by what they cost a person on a two-core laptop; docs/presets.md says what was measured.

Each is made for a text that its time is too short to read more than a few times; rules.py fits it to a smaller one.
"""

from typing import Any

# Two gated blocks, attention in the last, and a copy head. Muon moves the matrices. A minute is too short for
# feed-forward parts.
MODEL: dict[str, Any] = {
    "kind": "stacked",
    "cell": "gated",
    "gate": True,
    "num_layers": 2,
    "attention": "last",
    "key_dim": 64,
    "value_dim": 64,
    "copy_dim": 64,
    "pair_embeddings": 16384,
}
OPTIMIZER: dict[str, Any] = {"learning_rate": 0.02, "weight_decay": 0.1}

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "minute": {
        "model": {**MODEL, "embed_dim": 128, "hidden_dim": 192},
        "optimizer": OPTIMIZER,
        "train": {"minutes": 1.0},
        "batch": {"window": 320, "batch_size": 13},
    },
    "coffee": {
        "model": {**MODEL, "embed_dim": 160, "hidden_dim": 224, "value_dim": 128, "feed_forward": 2},
        "optimizer": OPTIMIZER,
        "train": {"minutes": 10.0},
        "batch": {"window": 320, "batch_size": 13},
    },
}

# Tokens of a vocabulary, of a text that can teach so many.
VOCAB_SIZES = {"minute": 2048, "coffee": 2048}

# Tokens per second of training by two threads on cores of 2.8 GHz; from minutes to how often a text is read.
PACED_THREADS = 2
PACE = {"minute": 40_000, "coffee": 24_000}
