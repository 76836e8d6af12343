"""The whole language model, composed of tape modules.

Tokens w_1 … w_T (ids below V) go in; for every t the model gives logits for w_{t+1}:

    e_t = E[w_t]                                                            embeddings
    h_t = relu(W_i2h e_t + b_i2h + W_h2h h_{t-1} + b_h2h),   h_0 = 0        rnn.cell
    y_t = W_out h_t + b_out                                                 rnn.out
    q_t, k_t, v_t = W_q y_t + b_q,  W_k y_t + b_k,  W_v y_t + b_v           attention
    c_t = Σ_{n≤t} softmax_n(k_n · q_t / √d_k) v_n
    a_t = W_o c_t + b_o
    s_t = W_lm a_t + b_lm                                                   lm_head

    L = mean over the batch and t = 1 … T-1 of  -log softmax(s_t)[w_{t+1}]

Nothing is differentiated by hand here: each line is one or two modules of the tape, and the same step of
the recurrence is pushed once for every t. That is backpropagation through time.

Learning is gradient descent with the moments of Adam (Kingma and Ba 2015, arXiv 1412.6980), after scaling
down a gradient whose norm over all parameters, ‖g‖, exceeds 1:

    g ← g / max(1, ‖g‖)
    m ← β₁ m + (1 - β₁) g            v ← β₂ v + (1 - β₂) g²
    θ ← θ - η (m / (1 - β₁ⁿ)) / (√(v / (1 - β₂ⁿ)) + ε)                      at the n-th step
"""

from dataclasses import dataclass

import numpy as np

from rhapsode.textbook.tape import (
    Add,
    Attention,
    Bias,
    Concatenate,
    Embedding,
    Leaf,
    Linear,
    Mean,
    Module,
    ReLU,
    Slice,
    SoftmaxCrossEntropy,
    Tape,
)


@dataclass(frozen=True)
class Sizes:
    """V = vocab_size token ids, E = embed_dim, H = hidden_dim, d_k = key_dim, d_v = value_dim."""

    vocab_size: int
    embed_dim: int
    hidden_dim: int
    key_dim: int
    value_dim: int

    def __post_init__(self) -> None:
        for name, size in vars(self).items():
            if size < 1:
                raise ValueError(f"{name} must be >= 1, got {size}")

    def linear_layers(self) -> dict[str, tuple[int, int]]:
        """(outputs, inputs) of each linear layer by name, in the order in which data meet them."""
        H = self.hidden_dim
        return {
            "rnn.cell.i2h": (H, self.embed_dim),
            "rnn.cell.h2h": (H, H),
            "rnn.out": (H, H),
            "attention.query_transform": (self.key_dim, H),
            "attention.key_transform": (self.key_dim, H),
            "attention.value_transform": (self.value_dim, H),
            "attention.output_transform": (H, self.value_dim),
            "lm_head": (self.vocab_size, H),
        }


def initial_weights(sizes: Sizes, seed: int) -> dict[str, np.ndarray]:
    """Random weights by name: embeddings from N(0, 1), linear layers from U(-1/√inputs, 1/√inputs)."""
    generator = np.random.default_rng(seed)
    weights = {"embeddings.weight": generator.standard_normal((sizes.vocab_size, sizes.embed_dim))}
    for name, (outputs, inputs) in sizes.linear_layers().items():
        bound = 1 / np.sqrt(inputs)
        weights[f"{name}.weight"] = generator.uniform(-bound, bound, (outputs, inputs))
        weights[f"{name}.bias"] = generator.uniform(-bound, bound, outputs)
    return weights


@dataclass(frozen=True)
class ModelOutput:
    """Modules with the outputs: logits (B, T, V), h (B, T, H) and y (B, T, H), the attention's input."""

    logits: Module
    h: Module
    y: Module


class LanguageModel:
    """The model over its parameters, `Leaf` modules by name, made of `weights`, arrays with those names."""

    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        self.parameters = {name: Leaf(value) for name, value in weights.items()}
        self.key_dim = len(weights["attention.key_transform.weight"])
        self.steps_taken = 0
        self.m = {name: np.zeros_like(p.output) for name, p in self.parameters.items()}
        self.v = {name: np.zeros_like(p.output) for name, p in self.parameters.items()}

    def forward(self, tape: Tape, tokens: np.ndarray) -> ModelOutput:
        """Reads tokens (B, T) from h_0 = 0, step by step, and pushes all modules on the tape."""

        def linear(name: str, x: Module) -> Module:
            product = Linear(x, self.parameters[f"{name}.weight"]).apply_forward(tape)
            return Bias(product, self.parameters[f"{name}.bias"]).apply_forward(tape)

        B, T = tokens.shape
        h: Module = Leaf(np.zeros((B, 1, len(self.parameters["rnn.cell.h2h.bias"].output))))
        states = []
        for t in range(T):
            e = Embedding(self.parameters["embeddings.weight"], tokens[:, t : t + 1]).apply_forward(tape)
            z = Add(linear("rnn.cell.i2h", e), linear("rnn.cell.h2h", h)).apply_forward(tape)
            h = ReLU(z).apply_forward(tape)
            states.append(h)
        h_all = Concatenate(*states, axis=1).apply_forward(tape)  # (B, T, H)
        y = linear("rnn.out", h_all)
        q = linear("attention.query_transform", y)
        k = linear("attention.key_transform", y)
        v = linear("attention.value_transform", y)
        c = Attention(q, k, v, causal=True).apply_forward(tape)
        a = linear("attention.output_transform", c)
        return ModelOutput(logits=linear("lm_head", a), h=h_all, y=y)

    def loss(self, tape: Tape, tokens: np.ndarray) -> Module:
        """L in nats per predicted token, pushed last on the tape, so that `tape.backward()` can follow.

        Raises ValueError if the sequences have fewer than two tokens: there is nothing to predict.
        """
        T = tokens.shape[1]
        if T < 2:
            raise ValueError(f"a sequence needs at least 2 tokens to predict one, got {T}")
        logits = Slice(self.forward(tape, tokens).logits, 0, T - 1, axis=1).apply_forward(tape)
        return Mean(SoftmaxCrossEntropy(logits, tokens[:, 1:]).apply_forward(tape)).apply_forward(tape)

    def gradients(self, tokens: np.ndarray) -> tuple[float, dict[str, np.ndarray]]:
        """The loss on tokens (B, T), and its gradient for every parameter by name."""
        for p in self.parameters.values():
            p.zero_gradient()
        tape = Tape()
        loss = self.loss(tape, tokens)
        tape.backward()
        return float(loss.output), {name: p.output_gradient for name, p in self.parameters.items()}

    def train_step(
        self,
        tokens: np.ndarray,
        learning_rate: float = 1e-3,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
    ) -> float:
        """One step of Adam on tokens (B, T), the gradient clipped at norm 1; returns the loss before it."""
        loss, gradients = self.gradients(tokens)
        norm = np.sqrt(sum((g**2).sum() for g in gradients.values()))
        self.steps_taken += 1
        for name, p in self.parameters.items():
            g = gradients[name] / max(1.0, norm)
            self.m[name] = beta_1 * self.m[name] + (1 - beta_1) * g
            self.v[name] = beta_2 * self.v[name] + (1 - beta_2) * g**2
            m_hat = self.m[name] / (1 - beta_1**self.steps_taken)
            v_hat = self.v[name] / (1 - beta_2**self.steps_taken)
            p.output = p.output - learning_rate * m_hat / (np.sqrt(v_hat) + epsilon)
        return loss
