"""Which form of a kernel is used."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

KINDS_OF_FORM = ("fast", "plain")
FORMS = {"cpu": "fast", "cuda": "fast", "mps": "fast"}  # by the type of the device; plain on any other
_chosen: str | None = None


@contextmanager
def form(kind: str) -> Iterator[None]:
    """All kernels in this form within the block: `plain`, or `fast` on devices that are not in FORMS too.

    Raises ValueError for another word.
    """
    global _chosen
    if kind not in KINDS_OF_FORM:
        raise ValueError(f"the form of a kernel is one of {', '.join(KINDS_OF_FORM)}, got {kind!r}")
    before, _chosen = _chosen, kind
    try:
        yield
    finally:
        _chosen = before


def is_fast(tensor: Tensor) -> bool:
    """Whether the fast form is the one for this tensor."""
    return (_chosen or FORMS.get(tensor.device.type, "plain")) == "fast"
