"""Small models to train, and what the end of a run is compared by."""

from typing import Any

import torch

from rhapsode.run import Run

MODELS = {
    "plain": {"embed_dim": 6, "hidden_dim": 10, "key_dim": 3, "value_dim": 5},
    "stacked": {
        "kind": "stacked",
        "embed_dim": 8,
        "hidden_dim": 10,
        "key_dim": 3,
        "value_dim": 5,
        "num_layers": 2,
        "attention": "last",
        "feed_forward": 1,
        "dropout": 0.2,
        "pair_embeddings": 50,
        "copy_dim": 3,
    },
}


class AskedAfter:
    """In place of the event that Ctrl-C sets: it is set at the n-th look at it, and from then on."""

    def __init__(self, looks: int) -> None:
        self.left = looks

    def is_set(self) -> bool:
        self.left -= 1
        return self.left < 0


def timeless(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in entry.items() if key != "seconds"} for entry in entries]


def assert_same_end(run: Run, other: Run) -> None:
    """Bit by bit: weights, optimiser, generators, carried state, best weights, progress, metrics."""
    for name in ("last", "best"):
        found, expected = run.load(name), other.load(name)
        assert found is not None
        assert expected is not None
        assert found.tensors.keys() == expected.tensors.keys()
        for key, tensor in expected.tensors.items():
            assert torch.equal(found.tensors[key], tensor), f"{name}: {key}"
        of_time = ("seconds", "timed_from", "metrics_bytes")
        differing = {key for key in expected.progress if found.progress[key] != expected.progress[key]}
        assert differing <= set(of_time)
    assert timeless(run.metrics()) == timeless(other.metrics())
