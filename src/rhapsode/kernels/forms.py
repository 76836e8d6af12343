"""Which form of a kernel is used."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

KINDS_OF_FORM = ("fast", "plain", "triton", "vmap")
FORMS = {"cpu": "fast", "cuda": "fast", "mps": "fast"}  # by the type of the device; plain on any other
TRITON_MISSING = "Triton is not installed: pip install 'rhapsode[gpu]'"
_chosen: str | None = None


@contextmanager
def form(kind: str) -> Iterator[None]:
    """All kernels in this form within the block: `plain`, or `fast` on devices that are not in FORMS too.

    `triton` is `fast` with both recurrences in one launch each, whatever the device and the size: recurrence_forms.py
    decides otherwise. `vmap` is what torch.vmap can vectorise, models side by side: `plain`, but for the recurrences,
    which are as outside. Raises ValueError for another word, and for `triton` where it is not installed.
    """
    global _chosen
    if kind not in KINDS_OF_FORM:
        raise ValueError(f"the form of a kernel is one of {', '.join(KINDS_OF_FORM)}, got {kind!r}")
    if kind == "triton" and not has_triton():
        raise ValueError(TRITON_MISSING)
    before, _chosen = _chosen, kind
    try:
        yield
    finally:
        _chosen = before


def side_by_side_models(tensor: Tensor, dim: int | None, at: int, count: int) -> Tensor:
    """What torch.vmap gives a kernel, with its `count` models along dimension `at`; dim None: one for all of them."""
    if dim is None:
        return tensor.unsqueeze(at).expand(*tensor.shape[:at], count, *tensor.shape[at:]).contiguous()
    return tensor.movedim(dim, at).contiguous()


def has_triton() -> bool:
    """Whether Triton is installed, the extra `gpu`; PyTorch for NVIDIA's cards brings it."""
    return importlib.util.find_spec("triton") is not None


def is_fast(tensor: Tensor) -> bool:
    """Whether the fast form is the one for this tensor."""
    return (_chosen or FORMS.get(tensor.device.type, "plain")) in ("fast", "triton")


def chosen_form() -> str | None:
    """The kind that `form` has chosen; None outside of its blocks."""
    return _chosen
