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

from rhapsode.kernels.attention import attention_weights
from rhapsode.kernels.loss import linear_cross_entropy
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
        first = torch.zeros_like(made[:, :1]) if copies is None else copies.next_key[:, None]
        keys = torch.cat((first, made[:, :-1]), dim=1)[:, None]  # (B, 1, T, d)
        ids = tokens[:, None, :, None]
        cache = Cache(keys, ids) if copies is None else copies.cache.extended(keys, ids)
        return CopyState(cache, made[:, -1])

    def places(self, x: Tensor, copies: CopyState) -> Tensor:
        """softmax_n(s_tn) (B, T, S): x (B, T, width) are the features of the last T of the S tokens in `copies`."""
        return attention_weights(self.query_transform(x)[:, None], copies.cache.keys)[:, 0]

    def log_probabilities(self, logits: Tensor, x: Tensor, copies: CopyState) -> Tensor:
        """log p_t (B, T, V) from the vocabulary's logits (B, T, V) and the features x (B, T, width)."""
        weights, ids = self.places(x, copies), copies.ids
        copied = torch.zeros_like(logits).scatter_add(2, ids[:, None].expand(weights.shape), weights)
        return self._mixed(logits.log_softmax(-1), copied, self.gate(x))

    def loss(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, copies: CopyState, reduction: str
    ) -> Tensor:
        """Cross-entropy in nats of targets (B, T) after features x (B, T, width); weight and bias are the head's.

        reduction and targets of -100 as in `LanguageModel.loss`.
        """
        scored = targets != -100
        of_vocabulary = linear_cross_entropy(x.flatten(0, 1), weight, bias, targets.flatten(), "none")
        hits = copies.ids[:, None] == targets[:, :, None]  # (B, T, S)
        copied = (self.places(x, copies) * hits).sum(-1)
        nats = -self._mixed(-of_vocabulary.view(targets.shape), copied, self.gate(x)[..., 0]).where(scored, 0.0)
        if reduction == "none":
            return nats
        return nats.sum() / scored.sum() if reduction == "mean" else nats.sum()

    @staticmethod
    def _mixed(vocabulary: Tensor, copied: Tensor, gate: Tensor) -> Tensor:
        """log((1 - g) exp(vocabulary) + g copied), g = sigmoid(gate); finite, gradients too, where copied is 0."""
        found = copied > torch.finfo(copied.dtype).tiny  # below, 1 / copied is not finite
        kept = vocabulary + F.logsigmoid(-gate)
        return torch.logaddexp(kept, F.logsigmoid(gate) + copied.where(found, 1.0).log()).where(found, kept)
