"""The equations: an Elman recurrent network, self-attention over its outputs, and two language models made of them.

    h_t = phi(W_ih i_t + b_ih + W_hh h_{t-1} + b_hh)            RNN; phi is relu or tanh, h_0 = 0; or with a gated cell
    h_t = a_t h_{t-1} + (1 - a_t) (W_c i_t + b_c)               a_t = sigmoid(W_a i_t + b_a)
    y_t = W_out h_t + b_out                                     or W_out (h_t * silu(W_g i_t + b_g)) with a gate
    a_t = W_o [sum_{n<=t} softmax_n(k_n . q_t / sqrt(K)) v_n]   SelfAttention; q, k, v linear in y; heads side by side

    plain     logits = W_head a(y(embedding))                   the course's model, equation by equation
    stacked   x = embedding (and that of the pair of token and token before); for each block:    pre-norm, residual
                  x = x + rnn(norm(x)); x = x + attention(norm(x)); x = x + W_2 relu(W_1 norm(x))^2
              logits = W_head norm(x), which a copy head turns into log-probabilities (copying.py)

B batch, T tokens in this call, S tokens visible (cache and call), E embedding and residual width, H hidden,
K key size per head, N heads, V vocabulary. Shapes are batch-first, (B, T, ...), but the memory behind the recurrent
part is time-major; the transposes in the code are views that cost nothing.

One call serves training, evaluation, sampling and serving: `logits, state = model(tokens, state)`. Cutting a
sequence anywhere and going on from the state gives what the uncut call gives: logits, final state and gradients.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rhapsode.cells import CELLS, RNN, RNNCell
from rhapsode.copying import CopyHead
from rhapsode.fold import Affine, Folded, fold, side_by_side
from rhapsode.kernels.attention import attend
from rhapsode.kernels.dropout import dropout
from rhapsode.kernels.loss import linear_cross_entropy
from rhapsode.kernels.norm import RMSNorm, SquaredReLU
from rhapsode.kernels.recurrence import ACTIVATIONS
from rhapsode.seeds import seed_everything
from rhapsode.state import BlockState, Cache, CopyState, State

KEPT = 0.9  # of its hidden state, what a fresh stacked model keeps from step to step

MODEL_SIZES = ("embed_dim", "hidden_dim", "key_dim", "value_dim", "num_layers", "num_heads")
# The fields of a config that the plain model does not have.
STACKED_ONLY = (
    *("num_layers", "num_heads", "attention", "gate"),
    *("feed_forward", "dropout", "tie_embeddings", "pair_embeddings", "cell", "copy_dim"),
)


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a model. kind 'plain' is the course's model; the options after `activation` belong to 'stacked'.

    embed_dim is the width of the embedding (and, stacked, of the residual stream); key_dim and value_dim are per
    head; feed_forward is the inner width as a multiple of embed_dim, 0 for none; attention says which blocks attend;
    pair_embeddings is the number of rows of the table of token pairs, 0 for none; cell is the recurrence: elman,
    gated (which has no activation), or none (attention alone); copy_dim is the size of a copy head's keys, 0 for none.
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
    cell: str = "elman"
    copy_dim: int = 0

    def __post_init__(self) -> None:
        for field in ("vocab_size", *MODEL_SIZES):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, got {getattr(self, field)}")
        for field, allowed in (
            ("kind", ("plain", "stacked")),
            ("activation", ACTIVATIONS),
            ("attention", ("all", "last", "none")),
            ("cell", CELLS),
        ):
            if getattr(self, field) not in allowed:
                raise ValueError(f"{field} must be one of {', '.join(allowed)}, got {getattr(self, field)!r}")
        for field in ("feed_forward", "pair_embeddings", "copy_dim"):
            if getattr(self, field) < 0:
                raise ValueError(f"{field} must be at least 0, got {getattr(self, field)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        if self.cell == "none" and self.attention == "none":
            raise ValueError("cell = 'none' needs attention: without both, a model sees one token")
        if self.kind == "plain":
            for field in STACKED_ONLY:
                if getattr(self, field) != ModelConfig.__dataclass_fields__[field].default:
                    raise ValueError(f"{field} = {getattr(self, field)!r} needs kind = 'stacked'")


class SelfAttention(nn.Module):
    """Causal scaled dot-product attention over a sequence, in one call for all timesteps (Vaswani et al. 2017)."""

    def __init__(self, hidden_dim: int, key_dim: int, value_dim: int, num_heads: int = 1) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query_transform = nn.Linear(hidden_dim, num_heads * key_dim)
        self.key_transform = nn.Linear(hidden_dim, num_heads * key_dim)
        self.value_transform = nn.Linear(hidden_dim, num_heads * value_dim)
        self.output_transform = nn.Linear(num_heads * value_dim, hidden_dim)

    @property
    def transforms(self) -> Sequence[nn.Linear]:
        """From y to queries, to keys, to values."""
        return (self.query_transform, self.key_transform, self.value_transform)

    def forward(self, y: Tensor, cache: Cache | None = None) -> tuple[Tensor, Cache]:
        """y (B, T, hidden_dim) attends to itself and to what is in the cache.

        Returns (attention output (B, T, hidden_dim), the cache with these T tokens added).
        """
        a, cache = self.look(*self.project(y), cache)
        return self.output_transform(a), cache

    def project(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """y (B, T, hidden_dim) -> queries, keys (B, N, T, key_dim) and values (B, N, T, value_dim)."""
        y = y.contiguous()  # one copy: attention kernels are slow on rows that lie B apart, as the recurrence left them
        if torch.is_grad_enabled():  # one product, whose gradient to y is one too; elsewhere joining costs more
            sizes = [transform.out_features for transform in self.transforms]
            parts: Sequence[Tensor] = F.linear(y, *side_by_side(self.transforms)).split(sizes, dim=-1)
        else:
            parts = [transform(y) for transform in self.transforms]
        q, k, v = map(self.heads, parts)
        return q, k, v

    def heads(self, part: Tensor) -> Tensor:
        """(B, T, N size), heads side by side -> (B, N, T, size)."""
        return part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def look(self, q: Tensor, k: Tensor, v: Tensor, cache: Cache | None) -> tuple[Tensor, Cache]:
        """The heads' outputs side by side (B, T, N value_dim), and the cache with these T tokens added."""
        cache = Cache(k, v) if cache is None else cache.extended(k, v)
        return attend(q, cache.keys, cache.values, cache.taken).transpose(1, 2).flatten(2), cache


class Block(nn.Module):
    """One storey of the stacked model: recurrence, attention, feed-forward, each x + f(norm(x))."""

    def __init__(self, config: ModelConfig, attends: bool) -> None:
        super().__init__()
        width = config.embed_dim
        self.dropout = config.dropout
        recurs = config.cell != "none"
        self.rnn_norm = RMSNorm(width) if recurs else None
        self.rnn = RNN(width, config.hidden_dim, width, config.activation, config.gate, config.cell) if recurs else None
        if self.rnn is not None and isinstance(self.rnn.cell, RNNCell):
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
        hidden = x[..., :0]  # what a block without a recurrence keeps: nothing
        if self.rnn is not None and self.rnn_norm is not None:
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
        return dropout(part, self.dropout, self.training)


class LanguageModel(nn.Module):
    """What both models share: the one call, a single step, and the loss without materialised logits."""

    config: ModelConfig
    embeddings: nn.Embedding
    lm_head: nn.Linear
    copy_head: CopyHead | None

    def features(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """tokens (B, T) -> (what the head reads (B, T, width), the state after them)."""
        raise NotImplementedError

    def logits(self, x: Tensor, copies: CopyState | None = None) -> Tensor:
        """Features (..., width) -> logits (..., V) of the token that comes next.

        A model with a copy head needs the state's `copies`, of which x (B, T, width) are the last T tokens; what it
        gives are log-probabilities: their softmax is the mixture, as that of any logits is the distribution.
        """
        logits = self.lm_head(x)
        if self.copy_head is None:
            return logits
        assert copies is not None, "the logits of a copy head need the tokens that it may copy"
        return self.copy_head.log_probabilities(logits, x, copies)

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """tokens (B, T) of int64, the state before them or None -> (logits (B, T, V), the state after them)."""
        x, state = self.features(tokens, state)
        return self.logits(x, state.copies), state

    def step(self, token: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """One token per row, (B,) -> (logits (B, V), state)."""
        logits, state = self(token[:, None], state)
        return logits[:, 0], state

    def loss(
        self, tokens: Tensor, targets: Tensor, state: State | None = None, reduction: str = "mean"
    ) -> tuple[Tensor, State]:
        """Cross-entropy in nats of targets (B, T) given tokens (B, T); targets of -100 are left out.

        reduction `mean` (over the scored tokens; nan if there are none) or `sum`: a scalar; `none`: (B, T), 0 where a
        target is left out. The (B T, V) logits exist a chunk at a time. `backward` is possible once.
        Returns (loss, the state after the tokens).
        """
        x, head, state = self.before_logits(tokens, state)
        return self.loss_of(x, head, targets, state, reduction), state

    def loss_of(self, x: Tensor, head: Affine, targets: Tensor, state: State, reduction: str = "mean") -> Tensor:
        """The cross-entropy of `loss` from what `before_logits` gives."""
        if self.copy_head is not None:
            assert state.copies is not None
            return self.copy_head.loss(x, *head, targets, state.copies, reduction)
        nats = linear_cross_entropy(x.flatten(0, 1), *head, targets.flatten(), reduction)
        return nats.view(targets.shape) if reduction == "none" else nats

    def before_logits(self, tokens: Tensor, state: State | None) -> tuple[Tensor, Affine, State]:
        """As `features`, and beside them the linear map that makes their logits, those of the vocabulary alone."""
        x, state = self.features(tokens, state)
        return x, Affine(self.lm_head.weight, self.lm_head.bias), state

    def folded(self) -> "LanguageModel | Folded":
        """What decoding calls: equal to the model with the weights that it has now, in fewer products."""
        return self


def embed(embeddings: nn.Embedding, tokens: Tensor) -> Tensor:
    """tokens (B, T) -> (B, T, E), time-major in memory, as the recurrence wants it."""
    return embeddings(tokens.t()).transpose(0, 1)


def pair_rows(tokens: Tensor, before: Tensor | None, rows: int) -> Tensor:
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
        self.rnn = RNN(config.embed_dim, config.hidden_dim, config.hidden_dim, config.activation)
        self.attention = SelfAttention(config.hidden_dim, config.key_dim, config.value_dim)
        self.lm_head = nn.Linear(config.hidden_dim, config.vocab_size)
        self.copy_head = None

    def features(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        block = state.blocks[0] if state else None
        h, y = self.rnn(embed(self.embeddings, tokens), block and block.hidden)
        a, cache = self.attention(y, block and block.cache)
        return a, State((BlockState(h[:, -1], cache),))

    def before_logits(self, tokens: Tensor, state: State | None) -> tuple[Tensor, Affine, State]:
        return fold(self, tokens.numel()).before_logits(tokens, state)

    @torch.no_grad()
    def folded(self) -> Folded:
        return fold(self)


class StackedModel(LanguageModel):
    """Blocks of the same two modules, pre-norm and residual (see the equations at the top of this file)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = nn.Embedding(config.vocab_size, config.embed_dim)
        self.pair_embeddings = None
        if config.pair_embeddings:
            self.pair_embeddings = nn.Embedding(config.pair_embeddings, config.embed_dim)
            nn.init.zeros_(self.pair_embeddings.weight)  # a pair says nothing until it was seen
        self.blocks = nn.ModuleList(
            Block(config, config.attention == "all" or (config.attention == "last" and i == config.num_layers - 1))
            for i in range(config.num_layers)
        )
        self.norm = RMSNorm(config.embed_dim)
        self.lm_head = nn.Linear(config.embed_dim, config.vocab_size, bias=not config.tie_embeddings)
        if config.tie_embeddings:  # as a head, normally distributed rows would begin with logits of sqrt(E)
            nn.init.normal_(self.embeddings.weight, std=config.embed_dim**-0.5)
            self.lm_head.weight = self.embeddings.weight
        self.copy_head = CopyHead(config.embed_dim, config.copy_dim) if config.copy_dim else None

    def features(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        x, last = embed(self.embeddings, tokens), None
        if self.pair_embeddings is not None:
            before = state.token if state else None
            x = x + embed(self.pair_embeddings, pair_rows(tokens, before, self.config.pair_embeddings))
            last = tokens[:, -1]
        x = dropout(x, self.config.dropout, self.training)
        after = []
        for i, block in enumerate(self.blocks):
            x, block_state = block(x, state.blocks[i] if state else None)
            after.append(block_state)
        x, copies = self.norm(x), None
        if self.copy_head is not None:
            x = x.contiguous()  # once, for four products; the recurrence left it time-major
            copies = self.copy_head.extended(state.copies if state else None, x, tokens)
        return x, State(tuple(after), last, copies)


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
