"""Dropout whose masks do not depend on how the rows of a batch are divided among processes and parts."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor
from torch.nn import functional as F

_rows: tuple[slice, int] | None = None


@contextmanager
def rows_of_batch(rows: slice, count: int) -> Iterator[None]:
    """Within the block, batches are these rows of a batch of `count` rows: `dropout` drops what it would drop there."""
    global _rows
    outer, _rows = _rows, (rows, count)
    try:
        yield
    finally:
        _rows = outer


def dropout(x: Tensor, probability: float, training: bool) -> Tensor:
    """x (B, ...) with entries set to 0 at this probability and the others scaled up, where training.

    Of a part of a batch, the masks of all its rows are drawn: that costs as much as for the whole, and leaves the
    generator where the whole leaves it.
    """
    if _rows is None or not training or not probability:
        return F.dropout(x, probability, training)
    rows, count = _rows
    # The mask is drawn in the order of the memory, so the whole has to lie as this part does.
    strides = x.stride()
    order = sorted(range(x.ndim), key=lambda axis: (-strides[axis], -axis))
    shape = [count, *x.shape[1:]]
    whole = x.new_ones([shape[axis] for axis in order]).permute([order.index(axis) for axis in range(x.ndim)])
    return x * F.dropout(whole, probability, training=True)[rows]
