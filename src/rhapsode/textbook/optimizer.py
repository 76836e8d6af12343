"""How weights move: the clipped gradient, AdamW, and Muon, which makes an update orthogonal.

First the gradient of all parameters together, g, is cut to a length C (1e-6 only guards the division):

    g ← g min(1, C / (‖g‖ + 1e-6))        ‖g‖² = the sum of the squares of all entries of all parameters

Matrices inside the model, W (m, n), move by Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon). G is the
matrix's gradient, M its momentum, η the learning rate, λ the weight decay:

    M ← μ M + G                           μ = 0.95; zero at first
    U = G + μ M                           Nesterov's form: a step of momentum ahead
    W ← (1 - η λ) W - η √max(1, m/n) O(U)

O(U) keeps the directions of U and makes them all equally long. In the singular value decomposition U = P diag(σ) Qᵀ

    O(U) ≈ P Qᵀ                           the orthogonal polar factor: of all matrices with orthonormal rows (or
                                          columns), the one nearest to U; all its singular values are 1

A gradient's few large singular values are the directions that it has in common for many tokens; in P Qᵀ the many
small ones move the weights as far. P Qᵀ itself would take an SVD. A Newton-Schulz iteration needs products of
matrices alone (Higham 2008, "Functions of matrices", chapter 8):

    X ← U / ‖U‖                           the Frobenius norm; now every σ is at most 1
    X ← a X + b (X Xᵀ) X + c (X Xᵀ)² X    five times

Since (X Xᵀ) X = P diag(σ³) Qᵀ, P and Q stay as they are, and each σ goes through the polynomial

    p(σ) = a σ + b σ³ + c σ⁵

by itself. With (a, b, c) = (15, -10, 3) / 8 the σ converge to 1 (p(1) = 1, p'(1) = p''(1) = 0), but a small σ grows
only 1.875 times a step. Muon's (3.4445, -4.7750, 2.0315) lets it grow 3.4445 times, and pays with σ that never come to
rest: they stay between about 0.7 and 1.2, which for an update is near enough to 1.

Embeddings, head and vectors (biases, the norms' scales) move by AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101),
at the n-th step:

    W ← (1 - η λ) W
    m ← β₁ m + (1 - β₁) g                 v ← β₂ v + (1 - β₂) g²
    W ← W - η (m / (1 - β₁ⁿ)) / (√(v / (1 - β₂ⁿ)) + ε)

The decay λ is for matrices alone, embeddings and head among them. For vectors λ = 0: a bias or a scale has no reason
to be near zero. The rates η of both rise from 0 over the first steps and fall to 0 at the end, in proportion.
"""

from dataclasses import dataclass

import numpy as np

MUON = (3.4445, -4.7750, 2.0315)
CONVERGING = (15 / 8, -10 / 8, 3 / 8)
VOCABULARY = ("embeddings.", "pair_embeddings.", "lm_head.")


def clip(gradients: dict[str, np.ndarray], length: float) -> tuple[dict[str, np.ndarray], float]:
    """The gradients cut to a length over all of them together, and the length that they had before."""
    norm = float(np.sqrt(sum((g**2).sum() for g in gradients.values())))
    factor = min(1.0, length / (norm + 1e-6))
    return {name: g * factor for name, g in gradients.items()}, norm


def newton_schulz(U: np.ndarray, coefficients: tuple[float, float, float] = MUON, steps: int = 5) -> list[np.ndarray]:
    """X before the first step and after each, all (m, n): the last one is O(U). A matrix of zeros stays zero."""
    a, b, c = coefficients
    X = U / (np.linalg.norm(U) + 1e-7)
    found = [X]
    for _ in range(steps):
        gram = X @ X.T
        X = a * X + b * gram @ X + c * gram @ gram @ X
        found.append(X)
    return found


def singular_value_map(
    sigma: np.ndarray, coefficients: tuple[float, float, float] = MUON, steps: int = 5
) -> np.ndarray:
    """p(p(… p(σ))): what the iteration makes of singular values σ that are already divided by the norm."""
    a, b, c = coefficients
    for _ in range(steps):
        sigma = a * sigma + b * sigma**3 + c * sigma**5
    return sigma


def polar_factor(U: np.ndarray) -> np.ndarray:
    """P Qᵀ (m, n) of U = P diag(σ) Qᵀ, by an SVD."""
    P, _, Qt = np.linalg.svd(U, full_matrices=False)
    return P @ Qt


@dataclass(frozen=True)
class Rates:
    """The numbers of both rules: η for AdamW and for Muon, β₁, β₂, ε; μ; λ; and C, the gradient's greatest length."""

    adamw: float
    muon: float
    beta_1: float = 0.9
    beta_2: float = 0.99
    epsilon: float = 1e-8
    momentum: float = 0.95
    decay: float = 0.0
    length: float = 1.0


class Optimizer:
    """Moves weights, arrays by name; it keeps M, m and v of each and counts the steps."""

    def __init__(self, weights: dict[str, np.ndarray], rates: Rates) -> None:
        self.rates = rates
        self.steps_taken = 0
        self.M = {name: np.zeros_like(W) for name, W in weights.items()}
        self.m = {name: np.zeros_like(W) for name, W in weights.items()}
        self.v = {name: np.zeros_like(W) for name, W in weights.items()}

    def step(
        self, weights: dict[str, np.ndarray], gradients: dict[str, np.ndarray], share: float = 1.0
    ) -> tuple[dict[str, np.ndarray], float]:
        """The weights after one step at this share of both rates, and ‖g‖ before it was clipped."""
        self.steps_taken += 1
        gradients, norm = clip(gradients, self.rates.length)
        moved = {}
        for name, W in weights.items():
            inside = W.ndim == 2 and not name.startswith(VOCABULARY)
            rule = self._muon if inside else self._adamw
            moved[name] = rule(name, W, gradients[name], share)
        return moved, norm

    def _muon(self, name: str, W: np.ndarray, G: np.ndarray, share: float) -> np.ndarray:
        rates, eta, (m, n) = self.rates, self.rates.muon * share, W.shape
        self.M[name] = rates.momentum * self.M[name] + G
        U = G + rates.momentum * self.M[name]
        return (1 - eta * rates.decay) * W - eta * np.sqrt(max(1, m / n)) * newton_schulz(U)[-1]

    def _adamw(self, name: str, W: np.ndarray, g: np.ndarray, share: float) -> np.ndarray:
        rates, eta, n = self.rates, self.rates.adamw * share, self.steps_taken
        decay = rates.decay if W.ndim == 2 else 0.0
        self.m[name] = rates.beta_1 * self.m[name] + (1 - rates.beta_1) * g
        self.v[name] = rates.beta_2 * self.v[name] + (1 - rates.beta_2) * g**2
        m_hat = self.m[name] / (1 - rates.beta_1**n)
        v_hat = self.v[name] / (1 - rates.beta_2**n)
        return (1 - eta * decay) * W - eta * m_hat / (np.sqrt(v_hat) + rates.epsilon)
