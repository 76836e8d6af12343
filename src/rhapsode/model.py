"""The equations: an Elman recurrent network, self-attention over its outputs, and two language models made of them.

    h_t = phi(W_ih i_t + b_ih + W_hh h_{t-1} + b_hh)            RNN; phi is relu or tanh, h_0 = 0
    y_t = W_out h_t + b_out                                     or W_out (h_t * silu(W_g i_t + b_g)) with a gate
    a_t = W_o [sum_{n<=t} softmax_n(k_n . q_t / sqrt(K)) v_n]   SelfAttention; q, k, v linear in y; heads side by side

    plain     logits = W_head a(y(embedding))                   the course's model, equation by equation
    stacked   x = embedding (and that of the pair of token and token before); for each block:    pre-norm, residual
                  x = x + rnn(norm(x)); x = x + attention(norm(x)); x = x + W_2 relu(W_1 norm(x))^2
              logits = W_head norm(x)

B batch, T tokens in this call, S tokens visible (cache and call), E embedding and residual width, H hidden,
K key size per head, N heads, V vocabulary. Shapes are batch-first, (B, T, ...), but the memory behind the recurrent
part is time-major; the transposes in the code are views that cost nothing.

One call serves training, evaluation, sampling and serving: `logits, state = model(tokens, state)`. Cutting a
sequence anywhere and going on from the state gives what the uncut call gives: logits, final state and gradients.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rhapsode.fused import rms_norm, squared_relu
from rhapsode.recurrence import ACTIVATIONS, recurrence
from rhapsode.seeds import seed_everything

CHUNK_LOGITS = 2**19  # that exist at once in the loss: 2 MB in float32, small enough to stay in a cache
FEWEST_CHUNK_ROWS = 128  # where the vocabulary is large: smaller matrix products run below the machine's rate
KEPT = 0.9  # of its hidden state, what a fresh stacked model keeps from step to step

# The fields of a config that the plain model does not have.
STACKED_ONLY = (
    "num_layers",
    "num_heads",
    "attention",
    "gate",
    "feed_forward",
    "dropout",
    "tie_embeddings",
    "pair_embeddings",
)


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a model. kind 'plain' is the course's model; the options after `activation` belong to 'stacked'.

    embed_dim is the width of the embedding (and, stacked, of the residual stream); key_dim and value_dim are per
    head; feed_forward is the inner width as a multiple of embed_dim, 0 for none; attention says which blocks attend;
    pair_embeddings is the number of rows of the table of token pairs, 0 for none.
    Raises ValueError naming the field, the value and what is allowed.
    """

    vocab_size: int
    kind: str = "plain"
    embed_dim: int = 128
    hidden_dim: int = 128
    key_dim: int = 128
    value_dim: int = 128
    activation: str = "relu"
    num_layers: int = 1
    num_heads: int = 1
    attention: str = "all"
    gate: bool = False
    feed_forward: int = 0
    dropout: float = 0.0
    tie_embeddings: bool = False
    pair_embeddings: int = 0

    def __post_init__(self) -> None:
        for field in (
            "vocab_size",
            "embed_dim",
            "hidden_dim",
            "key_dim",
            "value_dim",
            "num_layers",
            "num_heads",
        ):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, got {getattr(self, field)}")
        for field, allowed in (
            ("kind", ("plain", "stacked")),
            ("activation", ACTIVATIONS),
            ("attention", ("all", "last", "none")),
        ):
            if getattr(self, field) not in allowed:
                raise ValueError(f"{field} must be one of {', '.join(allowed)}, got {getattr(self, field)!r}")
        for field in ("feed_forward", "pair_embeddings"):
            if getattr(self, field) < 0:
                raise ValueError(f"{field} must be at least 0, got {getattr(self, field)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        if self.kind == "plain":
            for field in STACKED_ONLY:
                if getattr(self, field) != ModelConfig.__dataclass_fields__[field].default:
                    raise ValueError(f"{field} = {getattr(self, field)!r} needs kind = 'stacked'")


class Cache(NamedTuple):
    """What attention has seen: keys (B, N, S, key_dim) and values (B, N, S, value_dim), heads side by side."""

    keys: Tensor
    values: Tensor


class BlockState(NamedTuple):
    """One block's memory: the last hidden state (B, H), and the attention cache where the block attends."""

    hidden: Tensor
    cache: Cache | None


class State(NamedTuple):
    """A model's whole memory of the tokens so far: one entry per block, and the last token (B,) where pairs are
    embedded. A value, never changed in place.
    """

    blocks: tuple[BlockState, ...]
    token: Tensor | None = None

    def recent(self, tokens: int) -> "State":
        """The same hidden states, with attention caches of at most the last `tokens` tokens."""
        cut = (
            BlockState(hidden, cache and Cache(*(part[:, :, max(0, part.shape[2] - tokens) :] for part in cache)))
            for hidden, cache in self.blocks
        )
        return self._replace(blocks=tuple(cut))

    def apply(self, change: Callable[[Tensor], Tensor]) -> "State":
        """The state with a change made to each of its tensors: detached, say, or moved to a device."""
        return State.from_tensors({name: change(tensor) for name, tensor in self.tensors().items()})

    def rows(self, rows: "slice | Tensor | Sequence[int]") -> "State":
        """The state of some rows of the batch."""
        return self.apply(lambda tensor: tensor[rows])

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name: `0/hidden`, `0/keys`, `0/values`, ..., and `token`."""
        named = {} if self.token is None else {"token": self.token}
        for i, (hidden, cache) in enumerate(self.blocks):
            parts = {"hidden": hidden, **(cache._asdict() if cache else {})}
            named |= {f"{i}/{name}": tensor for name, tensor in parts.items()}
        return named

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "State":
        """The state that `tensors` took apart."""
        blocks = tuple(
            BlockState(
                tensors[f"{i}/hidden"],
                Cache(tensors[f"{i}/keys"], tensors[f"{i}/values"]) if f"{i}/keys" in tensors else None,
            )
            for i in range(sum(name.endswith("/hidden") for name in tensors))
        )
        return cls(blocks, tensors.get("token"))


class RNNCell(nn.Module):
    """One step of the recurrence, h_t = phi(W_ih i_t + b_ih + W_hh h_{t-1} + b_hh); holds its parameters."""

    def __init__(self, input_dim: int, hidden_dim: int, activation: str = "relu") -> None:
        super().__init__()
        self.i2h = nn.Linear(input_dim, hidden_dim)
        self.h2h = nn.Linear(hidden_dim, hidden_dim)
        self.activation: nn.Module = nn.ReLU() if activation == "relu" else nn.Tanh()

    def forward(self, input: Tensor, hidden_state: Tensor) -> Tensor:
        """input (B, input_dim), hidden_state (B, H) -> the next hidden state (B, H)."""
        return self.activation(self.i2h(input) + self.h2h(hidden_state))


class RNN(nn.Module):
    """An Elman network with an output projection, over all timesteps of a call at once.

    With gate=True the hidden state is multiplied by silu(W_g i_t + b_g) before the projection.
    """

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int,
        output_dim: int | None = None,
        activation: str = "relu",
        gate: bool = False,
    ) -> None:
        super().__init__()
        self.cell = RNNCell(input_dim, hidden_dim, activation)
        self.out = nn.Linear(hidden_dim, output_dim or hidden_dim)
        self.gate = nn.Linear(input_dim, hidden_dim) if gate else None

    def forward(self, sequence: Tensor, initial: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """sequence (B, T, input_dim), initial hidden state (B, H) or None for zero.

        Returns (hidden states (B, T, H), outputs (B, T, output_dim)).
        """
        i = sequence.transpose(0, 1)  # (T, B, input_dim)
        h = self.recur(self.project(i), initial)
        y = self.out(h if self.gate is None else h * F.silu(self.gate(i)))
        return h.transpose(0, 1), y.transpose(0, 1)

    def project(self, input: Tensor) -> Tensor:
        """What a step's input adds to the recurrence, both biases included: (..., input_dim) -> (..., H)."""
        cell = self.cell
        return F.linear(input, cell.i2h.weight, cell.i2h.bias + cell.h2h.bias)

    def recur(self, x: Tensor, initial: Tensor | None) -> Tensor:
        """Projected inputs x (T, B, H), whose memory the hidden states take -> hidden states (T, B, H)."""
        activation = "tanh" if isinstance(self.cell.activation, nn.Tanh) else "relu"
        return recurrence(x, self.cell.h2h.weight, initial, activation, overwrite=True)


class SelfAttention(nn.Module):
    """Causal scaled dot-product attention over a sequence, in one call for all timesteps (Vaswani et al. 2017)."""

    def __init__(self, hidden_dim: int, key_dim: int, value_dim: int, num_heads: int = 1) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query_transform = nn.Linear(hidden_dim, num_heads * key_dim)
        self.key_transform = nn.Linear(hidden_dim, num_heads * key_dim)
        self.value_transform = nn.Linear(hidden_dim, num_heads * value_dim)
        self.output_transform = nn.Linear(num_heads * value_dim, hidden_dim)

    def project(self, y: Tensor, before: nn.Linear | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """y (B, T, hidden_dim) -> queries, keys (B, N, T, key_dim) and values (B, N, T, value_dim).

        before: a linear map that y has still to go through.
        """
        y = y.contiguous()  # one copy: attention kernels are slow on rows that lie B apart, as the recurrence left them
        transforms = (self.query_transform, self.key_transform, self.value_transform)
        if torch.is_grad_enabled():
            # Joined, their gradient to y is one product; while decoding, joining would cost more than the products.
            weight = torch.cat([transform.weight for transform in transforms])
            bias = torch.cat([transform.bias for transform in transforms])
            if before is not None:
                y, weight, bias = in_a_row(y, before, weight, bias)
            parts = F.linear(y, weight, bias).split([transform.out_features for transform in transforms], dim=-1)
        else:
            y = y if before is None else before(y)
            parts = tuple(transform(y) for transform in transforms)
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts)
        return q, k, v

    def look(self, q: Tensor, k: Tensor, v: Tensor, cache: Cache | None) -> tuple[Tensor, Cache]:
        """The heads' outputs side by side (B, T, N value_dim), and the cache with these T tokens added."""
        if cache is not None:
            k, v = torch.cat((cache.keys, k), dim=2), torch.cat((cache.values, v), dim=2)
        return attend(q, k, v).transpose(1, 2).flatten(2), Cache(k, v)

    def forward(self, y: Tensor, cache: Cache | None = None) -> tuple[Tensor, Cache]:
        """y (B, T, hidden_dim) attends to itself and to what is in the cache.

        Returns (attention output (B, T, hidden_dim), the cache with these T tokens added).
        """
        a, cache = self.look(*self.project(y), cache)
        return self.output_transform(a), cache


def in_a_row(x: Tensor, first: nn.Linear, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(x, weight, bias) of a linear map equal to `first` on x (..., in), then weight (out, mid) and bias (out,).

    W_2 (W_1 x + b_1) + b_2 = (W_2 W_1) x + (W_2 b_1 + b_2): composed where that takes fewer multiplications, as it
    does where x has many rows; else `first` is done, and what it gives is returned beside weight and bias.
    """
    rows, (wide, middle), narrow = x.numel() // x.shape[-1], weight.shape, first.in_features
    if wide * middle * narrow + rows * wide * narrow < rows * (middle * narrow + wide * middle):
        return x, weight @ first.weight, weight @ first.bias + bias
    return first(x), weight, bias


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(key_dim)) v, where the T queries are the last T of the S positions and none looks ahead.

    q (B, N, T, key_dim), k (B, N, S, key_dim), v (B, N, S, value_dim), S >= T -> (B, N, T, value_dim).
    """
    T, S, key_dim, value_dim = q.shape[2], k.shape[2], q.shape[3], v.shape[3]
    # is_causal aligns the triangle with the top left corner, which is right only while the cache is empty.
    mask = None
    if 1 < T < S:
        mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
    # The fused kernels want one head size: zeros added to q and k change no score, those added to v are cut off.
    if key_dim != value_dim:
        width = max(key_dim, value_dim)
        q, k, v = (F.pad(tensor, (0, width - tensor.shape[3])) for tensor in (q, k, v))
    a = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=1 < T == S, scale=1 / math.sqrt(key_dim))
    return a[..., :value_dim]


class Block(nn.Module):
    """One storey of the stacked model: recurrence, attention, feed-forward, each x + f(norm(x))."""

    def __init__(self, config: ModelConfig, attends: bool) -> None:
        super().__init__()
        width = config.embed_dim
        self.dropout = config.dropout
        self.rnn_norm = RMSNorm(width)
        self.rnn = RNN(width, config.hidden_dim, width, config.activation, config.gate)
        with torch.no_grad():  # near the identity (Le et al. 2015): it remembers before it has learnt what
            self.rnn.cell.h2h.weight.mul_(1 - KEPT).diagonal().add_(KEPT)
        self.attention_norm = RMSNorm(width) if attends else None
        self.attention = SelfAttention(width, config.key_dim, config.value_dim, config.num_heads) if attends else None
        self.feed_forward = (
            nn.Sequential(
                RMSNorm(width),
                nn.Linear(width, config.feed_forward * width),
                SquaredReLU(),
                nn.Linear(config.feed_forward * width, width),
            )
            if config.feed_forward
            else None
        )

    def forward(self, x: Tensor, state: BlockState | None) -> tuple[Tensor, BlockState]:
        """x (B, T, E), this block's state or None -> (x, state), same shapes."""
        hidden, y = self.rnn(self.rnn_norm(x), state and state.hidden)
        x = x + self._drop(y)
        cache = None
        if self.attention is not None and self.attention_norm is not None:
            a, cache = self.attention(self.attention_norm(x), state and state.cache)
            x = x + self._drop(a)
        if self.feed_forward is not None:
            x = x + self._drop(self.feed_forward(x))
        return x, BlockState(hidden[:, -1], cache)

    def _drop(self, part: Tensor) -> Tensor:
        return F.dropout(part, self.dropout, self.training)


class RMSNorm(nn.RMSNorm):
    """The same, with its defaults, in fewer passes over memory."""

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight)


class SquaredReLU(nn.Module):
    """relu(x)^2."""

    def forward(self, x: Tensor) -> Tensor:
        return squared_relu(x)


class LanguageModel(nn.Module):
    """What both models share: the one call, a single step, and the loss without materialised logits."""

    config: ModelConfig
    embeddings: nn.Embedding
    lm_head: nn.Linear

    def features(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """tokens (B, T) -> (what `scores` reads (B, T, width), the state after them)."""
        raise NotImplementedError

    def scores(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Features (..., width) -> (x, weight, bias) of the linear map that makes the logits of them."""
        return x, self.lm_head.weight, self.lm_head.bias

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """tokens (B, T) of int64, the state before them or None -> (logits (B, T, V), the state after them)."""
        x, state = self.features(tokens, state)
        return F.linear(*self.scores(x)), state

    def step(self, token: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """One token per row, (B,) -> (logits (B, V), state)."""
        logits, state = self(token[:, None], state)
        return logits[:, 0], state

    def loss(
        self, tokens: Tensor, targets: Tensor, state: State | None = None, reduction: str = "mean"
    ) -> tuple[Tensor, State]:
        """Cross-entropy in nats of targets (B, T) given tokens (B, T); targets of -100 are left out.

        reduction 'mean' (over the scored tokens; nan if there are none) or 'sum'. The (B T, V) logits exist a chunk
        at a time: CHUNK_LOGITS of them, or those of FEWEST_CHUNK_ROWS tokens. `backward` is possible once.
        Returns (scalar loss, the state after the tokens).
        """
        x, state = self.features(tokens, state)
        x, weight, bias = self.scores(x.flatten(0, 1))
        rows = max(FEWEST_CHUNK_ROWS, CHUNK_LOGITS // len(weight))
        nats = F.linear_cross_entropy(
            x,
            weight,
            targets.flatten(),
            linear_bias=bias,
            reduction=reduction,
            options=nn.LinearCrossEntropyOptions(batch_chunk_size=rows) if len(x) > rows else None,
        )
        return nats, state


def embed(embeddings: nn.Embedding, tokens: Tensor) -> Tensor:
    """tokens (B, T) -> (B, T, E), time-major in memory, as the recurrence wants it."""
    return embeddings(tokens.t()).transpose(0, 1)


def pairs(tokens: Tensor, before: Tensor | None, rows: int) -> Tensor:
    """The row of each token and the one before it in a table of `rows` rows: (B, T) -> (B, T).

    before: the token (B,) before the first, or None at the beginning, where id 0 stands for it. Pairs share rows
    by a hash (Svenstrup et al. 2017): what two of them mean, the network tells apart by the token itself.
    """
    first = tokens.new_zeros(len(tokens), 1) if before is None else before[:, None]
    previous = torch.cat((first, tokens[:, :-1]), dim=1)
    return (previous * 1_000_003 + tokens * 7_919) % rows


class PlainModel(LanguageModel):
    """The course's model: embedding, RNN, self-attention over its outputs, head. PyTorch's default initialisation."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = nn.Embedding(config.vocab_size, config.embed_dim)
        self.rnn = RNN(config.embed_dim, config.hidden_dim, activation=config.activation)
        self.attention = SelfAttention(config.hidden_dim, config.key_dim, config.value_dim)
        self.lm_head = nn.Linear(config.hidden_dim, config.vocab_size)

    def features(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        block = state.blocks[0] if state else None
        table, ids = self.embeddings, tokens.t()
        # A token's input projection depends on nothing else: where there are more tokens than entries in the
        # vocabulary, each entry is projected once, instead of once for every time that it occurs.
        if tokens.numel() > table.num_embeddings:
            x = F.embedding(ids, self.rnn.project(table.weight))
        else:
            x = self.rnn.project(table(ids))
        h = self.rnn.recur(x, block and block.hidden).transpose(0, 1)  # (B, T, H)
        a, cache = self.attention.look(*self.attention.project(h, before=self.rnn.out), block and block.cache)
        return a, State((BlockState(h[:, -1], cache),))

    def scores(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        return in_a_row(x, self.attention.output_transform, self.lm_head.weight, self.lm_head.bias)


class StackedModel(LanguageModel):
    """Blocks of the same two modules, pre-norm and residual (see the equations at the top of this file)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = nn.Embedding(config.vocab_size, config.embed_dim)
        self.pair_embeddings = (
            nn.Embedding(config.pair_embeddings, config.embed_dim) if config.pair_embeddings else None
        )
        if self.pair_embeddings is not None:
            nn.init.zeros_(self.pair_embeddings.weight)  # a pair says nothing until it was seen
        self.blocks = nn.ModuleList(
            Block(
                config,
                config.attention == "all" or (config.attention == "last" and i == config.num_layers - 1),
            )
            for i in range(config.num_layers)
        )
        self.norm = RMSNorm(config.embed_dim)
        self.lm_head = nn.Linear(config.embed_dim, config.vocab_size, bias=not config.tie_embeddings)
        if config.tie_embeddings:  # as a head, normally distributed rows would begin with logits of sqrt(E)
            nn.init.normal_(self.embeddings.weight, std=config.embed_dim**-0.5)
            self.lm_head.weight = self.embeddings.weight

    def features(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        x, last = embed(self.embeddings, tokens), None
        if self.pair_embeddings is not None:
            x = x + embed(self.pair_embeddings, pairs(tokens, state and state.token, self.config.pair_embeddings))
            last = tokens[:, -1]
        x = F.dropout(x, self.config.dropout, self.training)
        after = []
        for i, block in enumerate(self.blocks):
            x, block_state = block(x, state.blocks[i] if state else None)
            after.append(block_state)
        return self.norm(x), State(tuple(after), last)


def build_model(config: ModelConfig, seed: int | None = None) -> LanguageModel:
    """A freshly initialised model of the config's kind; the same seed gives the same weights.

    seed None draws from PyTorch's global generator as it stands; an integer leaves that generator untouched.
    """
    make = PlainModel if config.kind == "plain" else StackedModel
    if seed is None:
        return make(config)
    with torch.random.fork_rng(devices=[]):
        seed_everything(seed)
        return make(config)
