"""The language models that quality.py sets beside ours, each with its loss and its own way to be scored."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rhapsode.evaluation import padded_batches
from rhapsode.tokens import IGNORED, TokenStore

CONTEXT = 128  # tokens that the transformer sees at most, and of everyone's windows


class Transformer(nn.Module):
    """Decoder-only, pre-norm, learned positions, GELU, tied embedding and head (Radford et al. 2019)."""

    def __init__(self, vocab_size: int, dropout: float, layers: int = 4, heads: int = 4, width: int = 128) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.tokens, self.places = nn.Embedding(vocab_size, width), nn.Embedding(CONTEXT, width)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm_1": nn.LayerNorm(width),
                    "qkv": nn.Linear(width, 3 * width),
                    "out": nn.Linear(width, width),
                    "norm_2": nn.LayerNorm(width),
                    "up": nn.Linear(width, 4 * width),
                    "down": nn.Linear(4 * width, width),
                }
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                scale = 0.02 / math.sqrt(2 * layers) if name.endswith(("out.weight", "down.weight")) else 0.02
                nn.init.normal_(parameter, std=scale)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def loss(self, tokens: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        """tokens, targets (B, T <= CONTEXT) -> cross-entropy in nats."""
        drop = self.dropout if self.training else 0.0
        x = F.dropout(self.tokens(tokens) + self.places.weight[: tokens.shape[1]], drop, self.training)
        for block in self.blocks:
            assert isinstance(block, nn.ModuleDict)
            q, k, v = block["qkv"](block["norm_1"](x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            a = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=drop)
            x = x + F.dropout(block["out"](a.transpose(1, 2).flatten(2)), drop, self.training)
            x = x + F.dropout(block["down"](F.gelu(block["up"](block["norm_2"](x)))), drop, self.training)
        logits = F.linear(self.norm(x), self.tokens.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction=reduction)

    @torch.inference_mode()
    def nats(self, store: TokenStore) -> float:
        """Windows of CONTEXT tokens that move on by half: but for a story's first, each scores its second half."""
        total, half = 0.0, CONTEXT // 2
        for batch in padded_batches(store):
            inputs, targets = map(torch.from_numpy, batch)
            for start in range(0, max(1, inputs.shape[1] - half), half):
                window = slice(start, start + CONTEXT)
                expected = targets[:, window].clone()
                if start:
                    expected[:, :half] = IGNORED
                if (expected != IGNORED).any():
                    total += self.loss(inputs[:, window], expected, "sum").item()
        return total


class LSTM(nn.Module):
    """Embedding, two layers of nn.LSTM, head tied to the embedding."""

    def __init__(self, vocab_size: int, dropout: float, width: int = 224) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, width)
        nn.init.normal_(self.tokens.weight, std=0.05)
        self.rnn = nn.LSTM(width, width, num_layers=2, batch_first=True, dropout=dropout)
        self.drop = nn.Dropout(dropout)

    def loss(self, tokens: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        """tokens, targets (B, T) -> cross-entropy in nats."""
        y, _ = self.rnn(self.drop(self.tokens(tokens)))
        logits = F.linear(self.drop(y), self.tokens.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction=reduction)

    @torch.inference_mode()
    def nats(self, store: TokenStore) -> float:
        """Each story from its beginning to its end."""
        total = 0.0
        for inputs, targets in padded_batches(store):
            state = None
            for start in range(0, inputs.shape[1], 512):
                piece = slice(start, start + 512)
                y, state = self.rnn(self.tokens(torch.from_numpy(inputs[:, piece].copy())), state)
                logits = F.linear(y, self.tokens.weight).flatten(0, 1)
                expected = torch.from_numpy(targets[:, piece].copy()).flatten()
                total += F.cross_entropy(logits, expected, ignore_index=IGNORED, reduction="sum").item()
        return total
