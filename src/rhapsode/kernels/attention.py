"""Causal scaled dot-product attention over what a cache holds and this call (Vaswani et al. 2017)."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from rhapsode.kernels.forms import is_fast

UNORDERED = ("cuda",)  # devices on which the fused kernels' gradient adds up in whatever order its parts finish
MOST_SCORES = 2**28  # that are kept for an exact gradient there, 1 GB in float32


def attend(q: Tensor, k: Tensor, v: Tensor, taken: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(key_dim)) v, where the T queries are the last T of the S positions and none looks ahead.

    q (B, N, T, key_dim), k (B, N, S, key_dim), v (B, N, S, value_dim), S >= T -> (B, N, T, value_dim). taken: in a
    cache of fixed size, which positions a single query sees, (B, 1, 1, S).

    The gradient is the same to the bit whenever it is computed; on a GPU only up to MOST_SCORES.
    """
    scores = q.shape[:-1].numel() * k.shape[2]
    exact = q.requires_grad and q.device.type in UNORDERED and scores <= MOST_SCORES
    return _fused(q, k, v, taken) if is_fast(q) and not exact else attention_weights(q, k, taken) @ v


def attention_weights(q: Tensor, k: Tensor, taken: Tensor | None = None) -> Tensor:
    """The weights of `attend`, (..., T, S); each row sums to 1."""
    T, S, key_dim = q.shape[-2], k.shape[-2], q.shape[-1]
    scores = q @ k.mT / math.sqrt(key_dim)
    if taken is not None:
        return scores.masked_fill(~taken, -torch.inf).softmax(-1)
    if T == 1:  # it sees all of them
        return scores.softmax(-1)
    return scores.masked_fill(~visible(T, S, q.device), -torch.inf).softmax(-1)


def visible(T: int, S: int, device: torch.device) -> Tensor:
    """(T, S): which positions a query sees, the T queries being the last T of the S positions."""
    return torch.ones(T, S, dtype=torch.bool, device=device).tril(S - T)


def _fused(q: Tensor, k: Tensor, v: Tensor, taken: Tensor | None) -> Tensor:
    T, S, key_dim, value_dim = q.shape[2], k.shape[2], q.shape[3], v.shape[3]
    # is_causal aligns the triangle with the top left corner, which is right only while the cache is empty.
    mask = visible(T, S, q.device) if 1 < T < S else taken
    # The fused kernels want one head size: zeros added to q and k change no score, those added to v are cut off.
    if key_dim != value_dim:
        width = max(key_dim, value_dim)
        q, k, v = (F.pad(tensor, (0, width - tensor.shape[3])) for tensor in (q, k, v))
    a = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=1 < T == S, scale=1 / math.sqrt(key_dim))
    return a[..., :value_dim]
