"""The model that makes the numbers, held against its equations in NumPy."""

import itertools
from typing import Any

import numpy as np
import pytest
from fast_against_textbook import BOUND, largest_difference
from stacked_against_textbook import B, T, compare

SHAPES = {
    "whole": {},
    "in three pieces": {"cuts": (4, 5)},
    "token by token": {"cuts": tuple(range(1, T))},
    "one token": {"length": 1},
    "one row": {"rows": 1},
    "one token of one row": {"rows": 1, "length": 1},
    "from a state": {"from_state": True},
    "one token from a state": {"from_state": True, "rows": 1, "length": 1},
    "in two pieces from a state": {"from_state": True, "cuts": (2,)},
}
# gate, feed_forward and activation take turns: each of their settings meets each shape and each attention.
EXTRAS = itertools.cycle(
    [{"gate": gate, "feed_forward": wide, "activation": psi} for gate, wide, psi in (
        (True, 2, "relu"), (False, 3, "tanh"), (True, 0, "tanh"), (False, 0, "relu"), (True, 1, "relu"),
    )]
)  # fmt: skip
SETTINGS = [
    {"attention": attention, "pair_embeddings": pairs, "tie_embeddings": tied, **next(EXTRAS)}
    for attention, pairs, tied in itertools.product(("none", "last", "all"), (0, 13), (False, True))
]


def name_of(fields: dict[str, Any]) -> str:
    return " ".join(str(value) for value in fields.values())


@pytest.mark.parametrize("fields", SETTINGS, ids=name_of)
@pytest.mark.parametrize("shape", SHAPES)
def test_model_and_textbook_agree(shape: str, fields: dict[str, Any]) -> None:
    """Values and gradients. Would catch whatever is left out of, or added to, any term of the equations."""
    values, gradients = compare(**SHAPES[shape], **fields)
    assert min(np.abs(own).max() for _, own in values) > 0.1
    assert largest_difference(values) < BOUND
    assert largest_difference(gradients) < BOUND
