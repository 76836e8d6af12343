"""The course's model, all timesteps at once: an Elman RNN, one head of self-attention over its outputs, a head.

    h_t = phi(W_i2h i_t + b_i2h + W_h2h h_{t-1} + b_h2h),  h_0 = 0;   y_t = W_out h_t + b_out
    a_t = W_o [sum_{n<=t} softmax_n(k_n . q_t / sqrt(key_dim)) v_n];  logits_t = W_head a_t

B batch, t timesteps, H hidden, V vocabulary; everything that is returned is contiguous, batch first. Weights and the
cell's activation may be replaced from outside at any time: nothing is kept from one call to the next.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rhapsode.model import Cache, attend
from rhapsode.recurrence import recurrence

HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


class RNNCell(nn.Module):
    """One step of the recurrence, h_t = relu(W_i2h i_t + b_i2h + W_h2h h_{t-1} + b_h2h); holds its parameters."""

    def __init__(self, input_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.i2h = nn.Linear(input_dim, hidden_dim)
        self.h2h = nn.Linear(hidden_dim, hidden_dim)
        self.activation: nn.Module = nn.ReLU()

    # Sizes are read off the weights: a model file of another program, or of an earlier version, may lack them.
    @property
    def input_dim(self) -> int:
        """Width of the input."""
        return self.i2h.weight.shape[1]

    @property
    def hidden_dim(self) -> int:
        """Width of the hidden state."""
        return self.h2h.weight.shape[1]

    def forward(self, input: Tensor, hidden_state: Tensor) -> Tensor:
        """input (B, input_dim), hidden_state (B, H) -> the next hidden state (B, H)."""
        return self.activation(self.i2h(input) + self.h2h(hidden_state))


class RNN(nn.Module):
    """An Elman network with an output projection; `step` and `forward` compute the same."""

    def __init__(self, input_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.cell = RNNCell(input_dim, hidden_dim)
        self.out = nn.Linear(hidden_dim, hidden_dim)

    @property
    def input_dim(self) -> int:
        """Width of the input."""
        return self.cell.input_dim

    @property
    def hidden_dim(self) -> int:
        """Width of hidden states and outputs."""
        return self.out.weight.shape[1]

    def step(self, input: Tensor, hidden_prev: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One timestep: input (B, input_dim) -> (hidden state, output), both (B, H).

        hidden_prev (B, t-1, H) holds the hidden states so far, of which only the last row matters; None for none.
        One of shape (B, H) is that last row itself.
        """
        if hidden_prev is None or hidden_prev.shape[-2] == 0:
            last = input.new_zeros(input.shape[0], self.out.in_features)
        else:
            last = hidden_prev if hidden_prev.ndim == 2 else hidden_prev[:, -1]
        hidden = self.cell(input, last)
        return hidden, self.out(hidden)

    def forward(self, sequence: Tensor) -> tuple[Tensor, Tensor]:
        """sequence (B, t, input_dim) -> (hidden states, outputs), both (B, t, H), from a hidden state of zero."""
        cell = self.cell
        i = sequence.transpose(0, 1)  # (t, B, input_dim)
        activation = kernel_activation(cell)
        if activation:
            x = F.linear(i, cell.i2h.weight, cell.i2h.bias + cell.h2h.bias)
            h = recurrence(x, cell.h2h.weight, None, activation, overwrite=True)
        else:
            hidden, states = i.new_zeros(i.shape[1], self.out.in_features), []
            for input in i:
                hidden = cell(input, hidden)
                states.append(hidden)
            h = torch.stack(states)
        return h.transpose(0, 1).contiguous(), self.out(h).transpose(0, 1).contiguous()


def kernel_activation(cell: nn.Module) -> str | None:
    """The activation under which `recurrence` computes what the cell does; None for a cell to be called step by step.

    None for a foreign activation, cell or layer, and wherever hooks want to see the steps.
    """
    if type(cell) is not RNNCell or not type(cell.i2h) is type(cell.h2h) is nn.Linear:
        return None
    if cell.i2h.bias is None or cell.h2h.bias is None:
        return None
    if any(getattr(module, hooks) for module in cell.modules() for hooks in HOOKS):
        return None
    activations: dict[type, str] = {nn.ReLU: "relu", nn.Tanh: "tanh"}
    return activations.get(type(cell.activation))


class SelfAttention(nn.Module):
    """Causal scaled dot-product attention with one head; `step` and `forward` compute the same."""

    def __init__(self, hidden_dim: int, key_dim: int, value_dim: int) -> None:
        super().__init__()
        self.query_transform = nn.Linear(hidden_dim, key_dim)
        self.key_transform = nn.Linear(hidden_dim, key_dim)
        self.value_transform = nn.Linear(hidden_dim, value_dim)
        self.output_transform = nn.Linear(value_dim, hidden_dim)

    @property
    def hidden_dim(self) -> int:
        """Width of what attention reads and of what it gives."""
        return self.query_transform.weight.shape[1]

    @property
    def key_dim(self) -> int:
        """Width of queries and keys."""
        return self.key_transform.weight.shape[0]

    @property
    def value_dim(self) -> int:
        """Width of values."""
        return self.value_transform.weight.shape[0]

    def step(self, y_all: Tensor) -> Tensor:
        """y_all (B, t, H), the outputs so far -> the attention output (B, H) of the last timestep."""
        q, k, v = (
            transform(y)[:, None]  # (B, 1, t, ...): attend has an axis for heads
            for transform, y in (
                (self.query_transform, y_all[:, -1:]),
                (self.key_transform, y_all),
                (self.value_transform, y_all),
            )
        )
        return self.output_transform(attend(q, k, v)[:, 0, 0])

    def forward(self, y_all: Tensor) -> Tensor:
        """y_all (B, t, H) -> attention outputs (B, t, H); timestep t attends to the timesteps up to t."""
        return self.extend(y_all)[0]

    def extend(self, y: Tensor, cache: Cache | None = None) -> tuple[Tensor, Cache]:
        """y (B, t, H) attends to itself and to what the cache holds -> (outputs (B, t, H), the longer cache)."""
        q, k, v = (
            transform(y)[:, None] for transform in (self.query_transform, self.key_transform, self.value_transform)
        )
        if cache is not None:
            k, v = torch.cat((cache.keys, k), dim=2), torch.cat((cache.values, v), dim=2)
        return self.output_transform(attend(q, k, v)[:, 0]), Cache(k, v)


class RNNLanguageModel(nn.Module):
    """Embedding, RNN, self-attention, head: the course's language model. key_dim and value_dim None mean hidden_dim."""

    def __init__(
        self,
        embed_dim: int,
        hidden_dim: int,
        vocab_size: int,
        key_dim: int | None = None,
        value_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(vocab_size, embed_dim)
        self.rnn = RNN(embed_dim, hidden_dim)
        self.attention = SelfAttention(hidden_dim, key_dim or hidden_dim, value_dim or hidden_dim)
        self.lm_head = nn.Linear(hidden_dim, vocab_size)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """tokens (B, t) -> (logits (B, t, V), hidden states (B, t, H), what attention reads (B, t, H))."""
        hidden, y = self.rnn(self.embeddings(tokens))
        return self.lm_head(self.attention(y)), hidden, y

    def select_token(self, token_logits: Tensor, temperature: float) -> Tensor:
        """token_logits (V,) -> a token, 0-dimensional: the argmax at temperature 0, else one multinomial draw.

        The draw is from PyTorch's global generator. Raises ValueError for a negative temperature.
        """
        if not temperature >= 0:  # nan is not either
            raise ValueError(f"temperature must be >= 0, got {temperature}")
        if temperature == 0:
            return token_logits.argmax(-1)
        return torch.multinomial(torch.softmax(token_logits / temperature, -1), 1).squeeze(-1)

    @torch.no_grad()
    def generate(self, tokens: Tensor, max_tokens: float = 10, temperature: float = 0.0) -> Tensor:
        """Continues tokens (1, n), n >= 1: returns the (max_tokens,) new tokens only.

        One timestep per token: the last hidden state and the keys and values so far are carried along.
        max_tokens: a whole number, which may come as a float (16.0).
        Raises ValueError for another shape of tokens, a max_tokens or temperature that is none.
        """
        if tokens.ndim != 2 or tokens.shape[0] != 1 or tokens.shape[1] == 0:
            raise ValueError(f"tokens must be of shape (1, n) with n >= 1, got {tuple(tokens.shape)}")
        max_tokens = whole("max_tokens", max_tokens)
        if max_tokens < 0:
            raise ValueError(f"max_tokens must be >= 0, got {max_tokens}")
        new = tokens.new_empty(max_tokens)
        hidden, y = self.rnn(self.embeddings(tokens))
        a, cache = self.attention.extend(y)
        for n in range(max_tokens):
            new[n] = self.select_token(self.lm_head(a[0, -1]), temperature)
            if n + 1 < max_tokens:
                hidden = hidden[:, -1:]
                last, output = self.rnn.step(self.embeddings(new[n : n + 1]), hidden)
                hidden = last[:, None]
                a, cache = self.attention.extend(output[:, None], cache)
        return new


# The class's name from spring 2026 on.
HybridLanguageModel = RNNLanguageModel


def whole(name: str, number: float) -> int:
    """The number as an int, 16.0 as 16; ValueError, which names it, for one that is not whole."""
    if not float(number).is_integer():
        raise ValueError(f"{name} must be a whole number, got {number}")
    return int(number)
