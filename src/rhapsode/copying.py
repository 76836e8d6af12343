"""The copy head: beside the vocabulary's distribution, one that copies a token of the text so far, mixed by a gate.

    k_n    = W_k x_{n-1} + b_k, k_1 = 0                the key of token n is made of the features before it:
    s_tn   = (W_q x_t + b_q) . k_n / sqrt(d), n <= t   what looked like this before, and what came then?
    c_t(w) = sum over n with token_n = w of softmax_n(s_tn)
    g_t    = sigmoid(w_g . x_t + b_g)
    p_t(w) = (1 - g_t) softmax(z_t)(w) + g_t c_t(w)    of token t + 1; z_t are the logits of the vocabulary

A pointer (Vinyals et al. 2015) beside a vocabulary (Merity et al. 2016). w_g = 0 and b_g = -2 at the start.

B batch, T tokens in this call, S tokens visible (those of earlier calls and this one), d copy_dim, V vocabulary.

The one call gives log p_t, which are logits like any others: softmax(log p) = p. The loss never makes (B, T, V) copies:
of a target it needs c_t(target), a sum over S places,

    nats = -logaddexp(log(1 - g) - nats of the vocabulary, log g + log c(target))

and nothing but the first of the two, with finite gradients, where the target stands nowhere in the text so far.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rhapsode.fold import side_by_side
from rhapsode.kernels.attention import attention_weights
from rhapsode.kernels.copying import copy_cross_entropy, mixed
from rhapsode.state import Cache, CopyState

OPEN = -2.0  # b_g of a fresh model: it copies with probability 0.12


class CopyHead(nn.Module):
    """Queries, keys and the gate, and the mixture that they make."""

    def __init__(self, width: int, copy_dim: int) -> None:
        super().__init__()
        self.query_transform = nn.Linear(width, copy_dim)
        self.key_transform = nn.Linear(width, copy_dim)
        self.gate = nn.Linear(width, 1)
        nn.init.zeros_(self.gate.weight)
        nn.init.constant_(self.gate.bias, OPEN)

    def extended(self, copies: CopyState | None, x: Tensor, tokens: Tensor) -> CopyState:
        """What may be copied once tokens (B, T) with the features x (B, T, width) are read, too."""
        made = self.key_transform(x)  # of the tokens that come after these
        keys = torch.zeros_like(made[:, :1]) if copies is None else copies.next_key[:, None]
        if made.shape[1] > 1:
            keys = torch.cat((keys, made[:, :-1]), dim=1)
        keys = keys[:, None]  # (B, 1, T, d)
        ids = tokens[:, None, :, None]
        cache = Cache(keys, ids) if copies is None else copies.cache.extended(keys, ids)
        return CopyState(cache, made[:, -1])

    def places(self, x: Tensor, copies: CopyState) -> Tensor:
        """softmax_n(s_tn) (B, T, S): x (B, T, width) are the features of the last T of the S tokens in `copies`."""
        cache = copies.cache
        return attention_weights(self.query_transform(x)[:, None], cache.keys, cache.taken)[:, 0]

    def log_probabilities(self, logits: Tensor, x: Tensor, copies: CopyState) -> Tensor:
        """log p_t (B, T, V) from the vocabulary's logits (B, T, V) and the features x (B, T, width).

        Never less than the logarithm of the smallest normal number: below -87 in float32 all are alike.
        """
        weights, gate = self.places(x, copies), self.gate(x)
        p = logits.softmax(-1) * (-gate).sigmoid()
        p = p.scatter_add(2, copies.ids[:, None].expand(weights.shape), weights * gate.sigmoid())
        return p.clamp(min=torch.finfo(p.dtype).tiny).log()

    def origins(self, logits: Tensor, x: Tensor, copies: CopyState, targets: Tensor) -> Tensor:
        """(B, T, S): how probable it is that each target (B, T) was copied, and from which place; arguments as above.

        Summed over the places, g c(target) / p(target): 0 where it stands at none of them.
        """
        weights, gate = self.places(x, copies), self.gate(x)
        hits = weights.where(copies.ids[:, None] == targets[..., None], 0.0)
        known = logits.log_softmax(-1).gather(2, targets[..., None])
        return (F.logsigmoid(gate) + hits.log() - mixed(known, hits.sum(-1, keepdim=True), gate)).exp()

    def loss(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, copies: CopyState, reduction: str
    ) -> Tensor:
        """Cross-entropy in nats of targets (B, T) after features x (B, T, width); weight and bias are the head's.

        reduction and targets of -100 as in `LanguageModel.loss`.
        """
        read = F.linear(x, *side_by_side((self.query_transform, self.gate)))  # one product, and one gradient to x
        q, gate = read.split([self.query_transform.out_features, 1], dim=-1)
        return copy_cross_entropy(x, weight, bias, q, copies.keys, gate[..., 0], copies.ids, targets, reduction)
