"""The recipes, named by what they cost a person on a two-core laptop; docs/presets.md says what was measured.

Each is made for a text that its time is too short to read more than a few times; rules.py fits it to a smaller one.
"""

from typing import Any

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
