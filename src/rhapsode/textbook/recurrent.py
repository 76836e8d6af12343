"""A recurrent network, and backpropagation through time in closed form.

One sequence of T inputs x_t (D,) with targets y_t, read from left to right, h_0 given (zero by default):

    z_t = W_hh h_{t-1} + W_hx x_t         (H,)
    h_t = ψ(z_t)                          (H,)    ψ is identity, relu or tanh
    o_t = W_hy h_t                        (V,)
    ŷ_t = softmax(o_t)                    (V,)
    L   = Σ_t -log ŷ_t[y_t]               (a number, in nats)

Backwards. The loss of step t sees o_t alone, and softmax with cross-entropy has the gradient

    dL/do_t = ŷ_t - onehot(y_t)

so that W_hyᵀ dL/do_t reaches h_t directly. But h_i also acts on every later step, through the chain h_i →
z_{i+1} → h_{i+1} → … → h_t, each link of which is dh_k/dh_{k-1} = diag(ψ'(z_k)) W_hh. Transposed, and
summed over the later steps t:

    dL/dh_i = Σ_{t=i..T}  W_hhᵀ diag(ψ'(z_{i+1})) ⋯ W_hhᵀ diag(ψ'(z_t))  W_hyᵀ dL/do_t

For the identity, ψ' = 1 and the chain is a power of one matrix:

    dL/dh_i = Σ_{t=i..T}  (W_hhᵀ)^{t-i}  W_hyᵀ dL/do_t

This is where gradients vanish or explode: the share of a distant step t is a product of t - i matrices. If
the largest singular value of each is below 1 it vanishes exponentially with the distance; above 1 it may
explode. The matrices are shared by all steps, so their gradients add up:

    dL/dz_i  = ψ'(z_i) ∘ dL/dh_i
    dL/dW_hh = Σ_i dL/dz_i h_{i-1}ᵀ        dL/dW_hx = Σ_i dL/dz_i x_iᵀ        dL/dW_hy = Σ_i dL/do_i h_iᵀ

In the code row t-1 of an array belongs to step t: `h[0]` is h_1, and h_0 is kept apart as `h_0`.
"""

from dataclasses import dataclass

import numpy as np

from rhapsode.textbook.softmax import cross_entropy, cross_entropy_gradient, softmax

ACTIVATIONS = ("identity", "relu", "tanh")


def psi(z: np.ndarray, activation: str) -> np.ndarray:
    """ψ(z), elementwise. Raises ValueError if activation is none of ACTIVATIONS."""
    if activation == "identity":
        return z
    if activation == "relu":
        return np.maximum(z, 0)
    if activation == "tanh":
        return np.tanh(z)
    raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")


def psi_prime(z: np.ndarray, activation: str) -> np.ndarray:
    """ψ'(z), elementwise; at the kink of relu, z = 0, the derivative is taken to be 0."""
    if activation == "identity":
        return np.ones_like(z)
    if activation == "relu":
        return (z > 0).astype(np.float64)
    return 1 - psi(z, activation) ** 2


@dataclass(frozen=True)
class Forward:
    """All that the forward pass computed: z, h (T, H); o, y_hat (T, V); losses (T,) in nats; h_0 (H,)."""

    z: np.ndarray
    h: np.ndarray
    o: np.ndarray
    y_hat: np.ndarray
    losses: np.ndarray
    h_0: np.ndarray

    @property
    def loss(self) -> float:
        """L, the sum over the steps."""
        return float(self.losses.sum())


@dataclass(frozen=True)
class Gradients:
    """dL/do (T, V), dL/dh and dL/dz (T, H), and dL/d of each matrix, shaped as the matrix is."""

    o: np.ndarray
    h: np.ndarray
    z: np.ndarray
    W_hh: np.ndarray
    W_hx: np.ndarray
    W_hy: np.ndarray


def hidden_states(W_hh: np.ndarray, a: np.ndarray, h_0: np.ndarray, activation: str) -> tuple[np.ndarray, np.ndarray]:
    """z and h, both (T, H), of the recurrence alone: z_t = W_hh h_{t-1} + a_t, h_t = ψ(z_t).

    a (T, H): what the input adds at each step, W_hx x_t in this chapter.
    """
    z, h = np.zeros_like(a), np.zeros_like(a)
    h_prev = h_0
    for t in range(len(a)):
        z[t] = W_hh @ h_prev + a[t]
        h[t] = h_prev = psi(z[t], activation)
    return z, h


def forward(
    W_hh: np.ndarray,
    W_hx: np.ndarray,
    W_hy: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    activation: str = "tanh",
    h_0: np.ndarray | None = None,
) -> Forward:
    """The forward pass: W_hh (H, H), W_hx (H, D), W_hy (V, H), inputs x (T, D), target ids y (T,)."""
    start = np.zeros(len(W_hh)) if h_0 is None else h_0
    z, h = hidden_states(W_hh, x @ W_hx.T, start, activation)
    o = h @ W_hy.T
    return Forward(z=z, h=h, o=o, y_hat=softmax(o), losses=cross_entropy(o, y), h_0=start)


def step_contributions(W_hh: np.ndarray, z: np.ndarray, direct: np.ndarray, i: int, activation: str) -> np.ndarray:
    """The terms of the sum dL/dh_i: row t - i (H,) is what step t contributes, for t = i, …, T.

    direct (T, H): the gradient that reaches each h_t from its own step, W_hyᵀ dL/do_t. i counts from 1.
    Each row is the product as written in the equation, evaluated from the right.
    Raises ValueError if i is not a step of the sequence.
    """
    T = len(z)
    if not 1 <= i <= T:
        raise ValueError(f"step i must be between 1 and {T}, got {i}")
    terms = []
    for t in range(i, T + 1):
        term = direct[t - 1]
        for k in range(t, i, -1):
            term = W_hh.T @ (psi_prime(z[k - 1], activation) * term)
        terms.append(term)
    return np.array(terms)


def identity_step_contributions(W_hh: np.ndarray, direct: np.ndarray, i: int) -> np.ndarray:
    """The same terms for ψ = identity, by the powers of one matrix: row t - i is (W_hhᵀ)^{t-i} direct_t."""
    T = len(direct)
    return np.array([np.linalg.matrix_power(W_hh.T, t - i) @ direct[t - 1] for t in range(i, T + 1)])


def gradient_h(W_hh: np.ndarray, z: np.ndarray, direct: np.ndarray, activation: str) -> np.ndarray:
    """dL/dh_i for every i, (T, H): the sum of the contributions of the steps from i to T."""
    T = len(z)
    return np.array([step_contributions(W_hh, z, direct, i, activation).sum(axis=0) for i in range(1, T + 1)])


def gradients(
    W_hh: np.ndarray,
    W_hx: np.ndarray,
    W_hy: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    activation: str = "tanh",
    h_0: np.ndarray | None = None,
) -> Gradients:
    """Every gradient of L in closed form; same arguments as `forward`.

    No term is shared between steps, which costs on the order of T³ products of a matrix and a vector where
    backpropagation needs T: the price of the formula as written.
    """
    f = forward(W_hh, W_hx, W_hy, x, y, activation, h_0)
    do = cross_entropy_gradient(f.o, y)
    dh = gradient_h(W_hh, f.z, do @ W_hy, activation)
    dz = psi_prime(f.z, activation) * dh
    h_prev = np.vstack([f.h_0, f.h[:-1]])
    return Gradients(o=do, h=dh, z=dz, W_hh=dz.T @ h_prev, W_hx=dz.T @ x, W_hy=do.T @ f.h)


def contribution_norms(W_hh: np.ndarray, z: np.ndarray, direct: np.ndarray, activation: str) -> np.ndarray:
    """Euclidean norm (T, T) of step t's contribution to dL/dh_i, at row i - 1, column t - 1; 0 where t < i.

    Along a row, the norms show how the gradient vanishes or explodes with the distance t - i.
    """
    T = len(z)
    norms = np.zeros((T, T))
    for i in range(1, T + 1):
        norms[i - 1, i - 1 :] = np.linalg.norm(step_contributions(W_hh, z, direct, i, activation), axis=1)
    return norms
