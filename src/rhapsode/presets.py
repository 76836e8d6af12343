"""The recipes, named by what they cost a person on a two-core laptop."""

from typing import Any

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
