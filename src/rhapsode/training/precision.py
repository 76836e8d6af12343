"""How precisely the products of a training step are made; weights, optimisers, loss and validation are float32.

float32    as they are
tf32       on a GPU from Ampere on: factors are rounded to 11 bits where they enter a product, sums are float32
bfloat16   activations and weights are rounded to 8 bits for all products up to the head; gradients of the weights
           come back as float32 (Micikevicius et al., "Mixed precision training", 2018, without a scaled loss: the
           range of bfloat16 is that of float32)
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from rhapsode.fold import Affine
from rhapsode.model import LanguageModel
from rhapsode.state import State

FIRST_WITH_TF32 = 8  # compute capability, of Ampere, which brought bfloat16 too


def check_precision(precision: str, device: str) -> None:
    """Raises ValueError with one line where the device cannot compute in this precision."""
    if precision == "float32":
        return
    if device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        if major < FIRST_WITH_TF32:
            raise ValueError(
                f"precision {precision} needs a GPU of compute capability {FIRST_WITH_TF32}.0 or more, this one"
                f" ({torch.cuda.get_device_name()}) has {major}.{minor}; use float32"
            )
    elif precision == "tf32" or device != "cpu":
        where = "an NVIDIA GPU" if precision == "tf32" else "an NVIDIA GPU or the CPU"
        raise ValueError(f"precision {precision} needs {where}, this run is on {device}; use float32")


@contextmanager
def products(precision: str) -> Iterator[None]:
    """Within the block, products of float32 numbers are made in TF32 where that is the precision."""
    before = torch.get_float32_matmul_precision()
    if precision == "tf32":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        if precision == "tf32":
            torch.set_float32_matmul_precision(before)


def loss_at(
    precision: str, model: LanguageModel, tokens: Tensor, targets: Tensor, state: State | None
) -> tuple[Tensor, State]:
    """`model.loss` in this precision: its mean, and a state of float32."""
    if precision != "bfloat16":
        return model.loss(tokens, targets, state)
    # Nothing is kept in autocast's cache: a step that is captured makes its own copies each time it is replayed.
    with torch.autocast(tokens.device.type, torch.bfloat16, cache_enabled=False):
        x, head, state = model.before_logits(tokens, state and state.apply(lambda t: _as(torch.bfloat16, t)))
    weight, bias = head
    head = Affine(weight.float(), None if bias is None else bias.float())
    state = state.apply(lambda t: _as(torch.float32, t))
    return model.loss_of(x.float(), head, targets, state), state


def _as(dtype: torch.dtype, tensor: Tensor) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
