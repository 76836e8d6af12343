"""The other hand-written kernel: cross-entropy of linear scores, whose logits exist only a chunk of rows at a time.

    z = x W^T + b        nats = log sum_j exp z_j - z_target        N rows are scored, the ignored ones are not
    p = softmax(z)       dL/dz = (p - onehot(target)) / N           without the N for a sum
                         dL/dx = dL/dz W     dL/dW = (dL/dz)^T x     dL/db = sum over rows of dL/dz

While a chunk's logits are in the cache, its loss and its whole gradient are made of them; the backward pass then only
hands the gradients out. PyTorch's `linear_cross_entropy` does the same in about twice as many passes over the logits;
plain `cross_entropy` keeps all of them, and their gradient. R rows, D features, V classes.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

IGNORED = -100  # a target that is not scored
CHUNK_LOGITS = 2**20  # that exist at once: 4 MB in float32, small enough to stay in a cache
FEWEST_ROWS = 128  # of a chunk, where V is large: smaller matrix products run below the machine's rate


def linear_cross_entropy(
    x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, reduction: str = "mean"
) -> Tensor:
    """Cross-entropy in nats of targets (R,) under softmax(x W^T + b); targets equal to IGNORED are left out.

    x (R, D), weight (V, D), bias (V,) or None; reduction 'mean' (over the scored rows; nan if there are none) or
    'sum'. Returns a scalar, differentiable once in x, weight and bias.
    Raises ValueError for another reduction.
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction must be 'mean' or 'sum', got {reduction!r}")
    rows = max(FEWEST_ROWS, CHUNK_LOGITS // len(weight))
    if torch.is_grad_enabled() and len(x) > rows:
        return _LinearCrossEntropy.apply(x, weight, bias, targets, reduction, rows)
    nats = [
        F.cross_entropy(F.linear(x_c, weight, bias), t_c, ignore_index=IGNORED, reduction="sum")
        for x_c, t_c in zip(x.split(rows), targets.split(rows), strict=True)
    ]
    total = nats[0] if len(nats) == 1 else torch.stack(nats).sum()
    return total / (targets != IGNORED).sum() if reduction == "mean" else total


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, reduction: str, rows: int
    ) -> Tensor:
        x = x.contiguous()
        x_grad = torch.empty_like(x)
        weight_grad = torch.zeros_like(weight)
        bias_grad = None if bias is None else torch.zeros_like(bias)
        logits = x.new_empty(rows, len(weight))
        scored = targets != IGNORED
        count = int(scored.sum())
        scale = 1.0 if reduction == "sum" else 1 / count if count else math.nan
        nats = x.new_zeros(())
        for x_c, x_grad_c, t_c, scored_c in zip(
            x.split(rows), x_grad.split(rows), targets.split(rows), scored.split(rows), strict=True
        ):
            z = torch.mm(x_c, weight.t(), out=logits[: len(x_c)])
            if bias is not None:
                z += bias
            t_c = t_c.where(scored_c, 0)[:, None]
            z_target, z_largest = z.gather(1, t_c), z.amax(1, keepdim=True)
            p = torch.softmax(z, 1, out=z)
            # log sum exp z = z_j - log p_j for every j; the largest loses no digits.
            nats_c = z_largest - p.amax(1, keepdim=True).log_() - z_target
            p.scatter_add_(1, t_c, p.new_full((), -1.0).expand_as(t_c))  # dL/dz, but for the scale
            if count < len(targets):
                nats_c *= scored_c[:, None]
                p *= scored_c[:, None]
            nats += nats_c.sum()
            torch.addmm(x_grad_c, p, weight, beta=0, alpha=scale, out=x_grad_c)
            weight_grad.addmm_(p.t(), x_c, alpha=scale)
            if bias_grad is not None:
                bias_grad.add_(p.sum(0), alpha=scale)
        ctx.save_for_backward(x_grad, weight_grad, bias_grad)
        return nats * scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, nats_grad: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.saved_tensors
        if nats_grad != 1:  # as it is unless the caller scaled the loss
            gradients = [gradient if gradient is None else gradient * nats_grad for gradient in gradients]
        return *gradients, None, None, None
