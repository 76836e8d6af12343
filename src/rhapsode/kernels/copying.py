"""The loss of a mixture of a vocabulary's distribution and one that copies, and its gradient, in chunks of tokens.

Of each target y, after logits z of the vocabulary, a gate g = sigmoid(u) and scores s_n of the S tokens w_n so far:

    A = softmax(s)     c = sum over n with w_n = y of A_n     p = (1 - g) softmax(z)_y + g c
    nats = -log p      r = g c / p                            which share of p was copied

    dz = (1 - r) (softmax(z) - onehot(y))     du = g - r     ds_n = r (A_n - [w_n = y] A_n / c)

Where y stands nowhere so far, c = r = 0 and nats = -log(1 - g) - log softmax(z)_y. The gradient is made in the forward
pass, some rows of the batch at a time: what is kept is as large as what it is the gradient of.
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

CHUNK_SCORES = 2**21  # that exist at once where a text is scored


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
    rows = max(1, CHUNK_SCORES // (q.shape[1] * k.shape[1]))
    parts = zip(*(part.split(rows) for part in (q, k, ids[:, None], targets[:, :, None])), strict=True)
    copied = torch.cat([(attention_weights(q, k) * (ids == targets)).sum(-1) for q, k, ids, targets in parts])
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
        (B, T, d), S = q.shape, k.shape[1]
        hidden = torch.zeros(T, S, dtype=q.dtype, device=q.device).masked_fill_(~visible(T, S, q.device), -torch.inf)
        wanted, scored = targets.clamp(min=0), targets != -100
        scale = scored.to(x.dtype)
        if mean:
            scale = scale / scored.sum()
        x_grad, q_grad, k_grad, gate_grad = (
            torch.empty(part.shape, dtype=x.dtype, device=x.device) for part in (x, q, k, gate)
        )
        weight_grad, bias_grad = torch.zeros_like(weight), None if bias is None else torch.zeros_like(bias)
        nats = x.new_zeros(())
        rows = max(1, chunk_rows(len(weight), x.device) // T)
        for now in (slice(begin, begin + rows) for begin in range(0, B, rows)):
            A = torch.baddbmm(hidden, q[now], k[now].mT, alpha=1 / math.sqrt(d)).softmax(-1)  # (rows, T, S)
            hits = A.where(ids[now, None] == targets[now, :, None], 0.0)
            c = hits.sum(-1)
            found = c > torch.finfo(c.dtype).tiny
            c = c.where(found, 1.0)
            copied = (F.logsigmoid(gate[now]) + c.log()).where(found, -torch.inf)  # log(g c)

            z, y = F.linear(x[now], weight, bias), wanted[now, :, None]  # (rows, T, V)
            z.sub_(z.amax(-1, keepdim=True))
            right = z.gather(-1, y)[..., 0]
            normaliser = z.exp_().sum(-1)
            known = F.logsigmoid(-gate[now]) + right - normaliser.log()  # log((1 - g) softmax(z)_y)
            total = torch.logaddexp(known, copied)  # log p
            nats -= (total * scale[now]).sum()

            pull = (known - total).exp_() * scale[now]  # 1 - r
            z.mul_((pull / normaliser)[..., None]).scatter_add_(-1, y, -pull[..., None])  # dL/dz
            torch.matmul(z, weight, out=x_grad[now])
            flat = z.flatten(0, 1)
            weight_grad.addmm_(flat.t(), x[now].flatten(0, 1))
            if bias_grad is not None:
                bias_grad += flat.sum(0)
            r = (copied - total).exp_() * scale[now]
            torch.sub(gate[now].sigmoid() * scale[now], r, out=gate_grad[now])
            A.addcdiv_(hits, c[..., None], value=-1).mul_(r[..., None] / math.sqrt(d))  # dL/ds / sqrt(d)
            torch.bmm(A, k[now], out=q_grad[now])
            torch.bmm(A.mT, q[now], out=k_grad[now])
        ctx.gradients = (x_grad, weight_grad, bias_grad, q_grad, k_grad, gate_grad)
        return nats

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the gradient of this loss was taken already; compute the loss again")
        return (*(part if part is None else part.mul_(grad) for part in gradients), None, None, None)
