"""The loss of a mixture of a vocabulary's distribution and one that copies, and its gradient, in chunks of tokens.

Of each target y, after logits z of the vocabulary, a gate g = sigmoid(u) and scores s_n of the S tokens w_n so far:

    A = softmax(s)     c = sum over n with w_n = y of A_n     p = (1 - g) softmax(z)_y + g c
    nats = -log p      r = g c / p                            which share of p was copied

    dz = (1 - r) (softmax(z) - onehot(y))     du = g - r     ds_n = r (A_n - [w_n = y] A_n / c)

Where y stands nowhere so far, c = r = 0 and nats = -log(1 - g) - log softmax(z)_y. The gradient is made in the forward
pass, for the logits a chunk at a time: what is kept is as large as what it is the gradient of.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from rhapsode.kernels.attention import attention_weights, visible
from rhapsode.kernels.forms import is_fast
from rhapsode.kernels.loss import chunk_rows, linear_cross_entropy


def copy_cross_entropy(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    q: Tensor,
    k: Tensor,
    gate: Tensor,
    ids: Tensor,
    targets: Tensor,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy in nats of targets (B, T) under the mixture.

    x (B, T, D), weight (V, D) and bias (V,) or None make the vocabulary's logits; q (B, T, d) and k (B, S, d) the
    scores q k^T / sqrt(d), of which each of the last T positions sees those up to itself; gate (B, T) is u; ids (B, S)
    are the tokens. Targets of -100 are left out. reduction `mean`, `sum` or `none`, as in `linear_cross_entropy`.
    Differentiable once in the floating-point ones; `backward` is possible once.
    """
    if is_fast(x) and reduction != "none" and torch.is_grad_enabled():
        return _CopyLoss.apply(x, weight, bias, q, k, gate, ids, targets, reduction == "mean")
    of_vocabulary = linear_cross_entropy(x.flatten(0, 1), weight, bias, targets.flatten(), "none").view(targets.shape)
    copied = (attention_weights(q, k) * (ids[:, None] == targets[:, :, None])).sum(-1)
    nats = -mixed(-of_vocabulary, copied, gate).where(targets != -100, 0.0)
    if reduction == "none":
        return nats
    return nats.sum() / (targets != -100).sum() if reduction == "mean" else nats.sum()


def mixed(vocabulary: Tensor, copied: Tensor, gate: Tensor) -> Tensor:
    """log((1 - g) exp(vocabulary) + g copied), g = sigmoid(gate); finite, gradients too, where copied is 0."""
    found = copied > torch.finfo(copied.dtype).tiny  # below, 1 / copied is not finite
    kept = vocabulary + F.logsigmoid(-gate)
    return torch.logaddexp(kept, F.logsigmoid(gate) + copied.where(found, 1.0).log()).where(found, kept)


class _CopyLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        q: Tensor,
        k: Tensor,
        gate: Tensor,
        ids: Tensor,
        targets: Tensor,
        mean: bool,
    ) -> Tensor:
        n, (T, d), S = targets.numel(), q.shape[1:], k.shape[1]
        hidden = torch.zeros(T, S, dtype=q.dtype, device=q.device).masked_fill_(~visible(T, S, q.device), -torch.inf)
        A = torch.baddbmm(hidden, q, k.mT, alpha=1 / math.sqrt(d)).softmax(-1)  # (B, T, S)
        hits = A.where(ids[:, None] == targets[:, :, None], 0.0)
        c = hits.sum(-1)
        found = c > torch.finfo(c.dtype).tiny
        c = c.where(found, 1.0)
        copied = (F.logsigmoid(gate) + c.log()).where(found, -torch.inf).flatten()  # log(g c)
        kept = F.logsigmoid(-gate).flatten()  # log(1 - g)

        scored = targets.flatten() != -100
        wanted = targets.flatten().clamp(min=0)[:, None]
        scale = scored.to(x.dtype)
        if mean:
            scale = scale / scored.sum()
        share, nats = torch.empty_like(kept), torch.empty_like(kept)
        flat, x_grad = x.flatten(0, 1), torch.empty(n, x.shape[2], dtype=x.dtype, device=x.device)
        weight_grad = torch.zeros_like(weight)
        bias_grad = None if bias is None else torch.zeros_like(bias)
        rows = chunk_rows(len(weight))
        for now in (slice(begin, begin + rows) for begin in range(0, n, rows)):
            z = F.linear(flat[now], weight, bias)
            z.sub_(z.amax(1, keepdim=True))
            right = z.gather(1, wanted[now])[:, 0]
            normaliser = z.exp_().sum(1)
            known = kept[now] + right - normaliser.log()  # log((1 - g) softmax(z)_y)
            total = torch.logaddexp(known, copied[now])  # log p
            nats[now], share[now] = -total, (copied[now] - total).exp_()
            pull = (known - total).exp_() * scale[now]
            z.mul_((pull / normaliser)[:, None]).scatter_add_(1, wanted[now], -pull[:, None])  # dL/dz
            torch.mm(z, weight, out=x_grad[now])
            weight_grad.addmm_(z.t(), flat[now])
            if bias_grad is not None:
                bias_grad += z.sum(0)

        r = (share * scale).view(targets.shape)
        gate_grad = gate.sigmoid() * scale.view(targets.shape) - r
        pull = A.addcdiv_(hits, c[..., None], value=-1).mul_(r[..., None] / math.sqrt(d))  # dL/ds / sqrt(d)
        ctx.gradients = (x_grad.view_as(x), weight_grad, bias_grad, pull @ k, pull.mT @ q, gate_grad)
        return (nats * scale).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the gradient of this loss was taken already; compute the loss again")
        return (*(part if part is None else part.mul_(grad) for part in gradients), None, None, None)
