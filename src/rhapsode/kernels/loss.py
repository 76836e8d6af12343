"""Cross-entropy of a linear map's outputs, a chunk of them at a time: the logits of all tokens never exist at once.

PyTorch's own `linear_cross_entropy` does that in one function, forward and backward. Where PyTorch is older than 2.13,
each chunk's logits are made again for the backward pass (Chen et al. 2016, "Training deep nets with sublinear memory
cost").
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from rhapsode.kernels.forms import is_fast

CHUNK_LOGITS = 2**19  # that exist at once: 2 MB in float32, small enough to stay in a cache
GPU_CHUNK_LOGITS = 2**25  # and on a GPU, which waits for launches and not for memory: 128 MB
FEWEST_CHUNK_ROWS = 128  # where the vocabulary is large: smaller matrix products run below the machine's rate


def linear_cross_entropy(
    x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, reduction: str = "mean"
) -> Tensor:
    """Cross-entropy in nats of targets (n,) under logits x weight^T + bias: x (n, D), weight (V, D), bias (V,) or None.

    Targets of -100 are left out. reduction `mean` (over the scored ones; nan if there are none), `sum`, or `none`:
    one number a target, 0 where it is left out. `backward` is possible once.
    """
    rows = chunk_rows(len(weight), x.device)
    if not is_fast(x):
        return F.cross_entropy(F.linear(x, weight, bias), targets, reduction=reduction)
    if reduction == "none" or not hasattr(F, "linear_cross_entropy"):
        return _chunked(x, weight, bias, targets, reduction, rows)
    options = nn.LinearCrossEntropyOptions(batch_chunk_size=rows) if len(x) > rows else None
    return F.linear_cross_entropy(x, weight, targets, linear_bias=bias, reduction=reduction, options=options)


def chunk_rows(vocab_size: int, device: torch.device) -> int:
    """How many tokens' logits exist at once."""
    logits = GPU_CHUNK_LOGITS if device.type == "cuda" else CHUNK_LOGITS
    return max(FEWEST_CHUNK_ROWS, logits // vocab_size)


def _chunked(x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, reduction: str, rows: int) -> Tensor:
    def part(x: Tensor, targets: Tensor) -> Tensor:
        kind = "none" if reduction == "none" else "sum"
        return F.cross_entropy(F.linear(x, weight, bias), targets, reduction=kind)

    again = torch.is_grad_enabled() and len(x) > rows  # those of a single chunk are kept
    parts = [
        checkpoint(part, *chunk, use_reentrant=False, preserve_rng_state=False) if again else part(*chunk)
        for chunk in zip(x.split(rows), targets.split(rows), strict=True)
    ]
    if reduction == "none":
        return torch.cat(parts)
    nats = torch.stack(parts).sum()
    return nats / (targets != -100).sum() if reduction == "mean" else nats
