"""The honest rival: a transformer that has every part of our recipe that is not recurrent.

    e_t = E[w_t] + P[hash(w_{t-1}, w_t)]                         token and pair of tokens, P = 0 at the start
    x_t = e_t + m * e_{t-1}                                      mixed with the one before it, m = 0 at the start
    x   = x + W_o attention(R q', R k', v)                       q' = norm(W_q norm(x)), k' alike, per head
    x   = x + W_2 relu(W_1 norm(x))^2                            W_o = W_2 = 0 at the start
    logits = W_head norm(x)                                      and, with copy_dim, the copy head of our model

R turns each pair of components by an angle that grows with the place, so that scores depend on distances alone (Su et
al. 2021); norms of queries and keys as in Henry et al. 2020, with a scale for each component; the rest, Muon too, is
the package's own code: the kernels, the optimisers, the batches. Sizes, rates and window are for tuning.py to find.

B batch, T tokens, D width, N heads, K components of a head.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rhapsode.copying import CopyHead
from rhapsode.evaluation import padded_batches
from rhapsode.fold import side_by_side
from rhapsode.kernels.attention import attend
from rhapsode.kernels.loss import linear_cross_entropy
from rhapsode.kernels.norm import RMSNorm, SquaredReLU
from rhapsode.model import pair_rows
from rhapsode.tokens import IGNORED, TokenStore

BASE = 10_000.0  # of the angles: the slowest pair turns once in 2 pi BASE tokens
STRIDES = 4  # scoring: a window moves on by a quarter of itself, so that a token sees three quarters of one or more


@dataclass(frozen=True)
class ModernConfig:
    """All that is tuned. width: of the residual stream; feed_forward: inner width as a multiple of it; copy_dim: 0 for
    no copy head; window: tokens that it is trained on and scored with at once, in batches of batch_tokens."""

    vocab_size: int = 1024
    layers: int = 2
    width: int = 128
    heads: int = 4
    feed_forward: int = 4
    window: int = 128
    batch_tokens: int = 4096
    learning_rate: float = 0.02
    matrix_learning_rate: float = 0.02
    weight_decay: float = 0.1
    dropout: float = 0.0
    pair_embeddings: int = 16384
    copy_dim: int = 0

    def __post_init__(self) -> None:
        if self.width % (2 * self.heads):
            raise ValueError(f"width must be a multiple of twice the heads ({2 * self.heads}), got {self.width}")
        if self.batch_tokens % self.window:
            raise ValueError(f"batch_tokens must be a multiple of the window, got {self.batch_tokens}, {self.window}")

    @property
    def batch_size(self) -> int:
        """Rows of a batch."""
        return self.batch_tokens // self.window


def angles(length: int, components: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine (length, components / 2) of place times BASE^(-2 i / components), for the i-th pair."""
    turns = BASE ** (-torch.arange(0, components, 2, dtype=torch.float64) / components)
    angle = torch.outer(torch.arange(length, dtype=torch.float64), turns)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """x (..., T, K) with component i and i + K/2 turned by the angle of place t; cosine, sine (T, K/2)."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, first * sine + second * cosine), dim=-1)


class Attention(nn.Module):
    """Causal attention whose queries and keys are normalised per head and then rotated."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.query_norm, self.key_norm = RMSNorm(width // heads), RMSNorm(width // heads)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """x (B, T, D) -> (B, T, D)."""
        parts = F.linear(x, *side_by_side((self.query, self.key, self.value)))  # (B, T, 3 D)
        q, k, v = parts.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, N, T, K) each
        q, k = rotate(self.query_norm(q), cosine, sine), rotate(self.key_norm(k), cosine, sine)
        return self.out(attend(q, k, v).transpose(1, 2).flatten(2))


class ModernBlock(nn.Module):
    """Attention, then the feed-forward part, each x + f(norm(x))."""

    def __init__(self, config: ModernConfig) -> None:
        super().__init__()
        width, inner = config.width, config.feed_forward * config.width
        self.dropout = config.dropout
        self.attention_norm, self.attention = RMSNorm(width), Attention(width, config.heads)
        self.feed_forward = nn.Sequential(
            RMSNorm(width), nn.Linear(width, inner), SquaredReLU(), nn.Linear(inner, width)
        )
        last = self.feed_forward[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """x (B, T, D) -> (B, T, D)."""
        x = x + self._drop(self.attention(self.attention_norm(x), cosine, sine))
        return x + self._drop(self.feed_forward(x))

    def _drop(self, part: Tensor) -> Tensor:
        return F.dropout(part, self.dropout, self.training)


class Modern(nn.Module):
    """The transformer at the top of this file. Its parts bear our names, so that Muon moves what it moves in ours."""

    def __init__(self, config: ModernConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = nn.Embedding(config.vocab_size, config.width)
        self.pair_embeddings = nn.Embedding(config.pair_embeddings, config.width)
        nn.init.zeros_(self.pair_embeddings.weight)
        self.mix = nn.Parameter(torch.zeros(config.width))
        self.blocks = nn.ModuleList(ModernBlock(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width)
        self.lm_head = nn.Linear(config.width, config.vocab_size)
        self.copy_head = CopyHead(config.width, config.copy_dim) if config.copy_dim else None
        cosine, sine = angles(config.window, config.width // config.heads)
        self.register_buffer("cosine", cosine.float(), persistent=False)
        self.register_buffer("sine", sine.float(), persistent=False)

    def features(self, tokens: Tensor) -> Tensor:
        """tokens (B, T <= window) -> what the head reads (B, T, D)."""
        if tokens.shape[1] > self.config.window:
            raise ValueError(f"at most {self.config.window} tokens at once, got {tokens.shape[1]}")
        rows = pair_rows(tokens, None, self.config.pair_embeddings)
        e = self.embeddings(tokens) + self.pair_embeddings(rows)
        x = e + self.mix * F.pad(e, (0, 0, 1, -1))
        x = F.dropout(x, self.config.dropout, self.training)
        assert isinstance(self.cosine, Tensor)
        assert isinstance(self.sine, Tensor)
        cosine, sine = self.cosine[: tokens.shape[1]], self.sine[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x, cosine, sine)
        return self.norm(x)

    def loss(self, tokens: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        """tokens, targets (B, T <= window) -> cross-entropy in nats; reduction as for our models."""
        x, weight, bias = self.features(tokens), self.lm_head.weight, self.lm_head.bias
        if self.copy_head is not None:
            return self.copy_head.loss(x, weight, bias, targets, self.copy_head.extended(None, x, tokens), reduction)
        nats = linear_cross_entropy(x.flatten(0, 1), weight, bias, targets.flatten(), reduction)
        return nats.view(targets.shape) if reduction == "none" else nats

    @torch.inference_mode()
    def nats(self, store: TokenStore) -> float:
        """Summed over all tokens of the store, each story scored by itself as `token_nats` does it."""
        total, device = 0.0, self.mix.device
        for inputs, targets in padded_batches(store):
            read = (torch.from_numpy(array).to(device) for array in (inputs, targets))
            total += self.token_nats(*read).double().sum().item()
        return total

    @torch.inference_mode()
    def token_nats(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """inputs, targets (B, T of any length) -> nats (B, T), 0 where a target is left out.

        Windows of as many tokens as it was trained on, which move on by a quarter: the first scores all its tokens,
        every other its last quarter.
        """
        window, length = self.config.window, inputs.shape[1]
        stride = max(1, window // STRIDES)
        nats = torch.zeros(targets.shape, device=targets.device)
        for start in range(0, max(1, length - window + stride), stride):
            new = slice(start + window - stride if start else 0, start + window)
            if (targets[:, new] != IGNORED).any():
                piece = slice(start, start + window)
                nats[:, new] = self.loss(inputs[:, piece], targets[:, piece], "none")[:, new.start - start :]
        return nats
