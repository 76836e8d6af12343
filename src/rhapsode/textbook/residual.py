"""Residual blocks: RMSNorm, the sum that goes past each layer, gates and squared ReLU.

A stacked model passes one vector x (D,) for each position from the bottom to the top. Each layer f reads it,
normalised, and adds its answer (He et al. 2015, arXiv 1512.03385; the norm before the layer: Xiong et al. 2020,
arXiv 2002.04745):

    x ← x + f(n(x))

The norm divides by the root of the mean square (Zhang and Sennrich 2019, arXiv 1910.07467):

    r = √(mean_i x_i² + ε)        (a number)      ε: the spacing of numbers at 1; zeros stay zeros
    x̂ = x / r                     (D,)            its mean square is 1
    n(x) = x̂ ∘ w                  (D,)            w (D,): the scale, learned, 1 at first

Backwards, with g = dL/dn. Since dr/dx_j = x_j / (D r) = x̂_j / D,

    dL/dw = Σ_rows g ∘ x̂
    dL/dx = (g ∘ w - x̂ mean_i(g ∘ w ∘ x̂)_i) / r

The second term takes away what points along x: n(c x) = n(x) for every c > 0, so a longer x changes nothing, and
dL/dx is orthogonal to x (but for ε).

The sum is what lets many layers learn. With J_l the derivative of layer l's answer by its x, the gradient at the
bottom of L layers is

    with the sum       dL/dx_0 = (I + J_1)ᵀ (I + J_2)ᵀ ⋯ (I + J_L)ᵀ dL/dx_L  =  dL/dx_L + (terms with a J)
    without            dL/dx_0 = J_1ᵀ J_2ᵀ ⋯ J_Lᵀ dL/dx_L

With the sum, dL/dx_L arrives whole, however many layers there are; without, small J make it vanish.

Inside the layers stand two functions more, both elementwise. The feed-forward layer's is the squared ReLU (So et al.
2021, arXiv 2109.08668), the recurrent network's outputs pass a gate with SiLU (Elfwing et al. 2017, arXiv 1702.03118):

    f(u) = W_2 relu(W_1 u + b_1)² + b_2            d relu(a)²/da = 2 relu(a)
    y_t = W_out (h_t ∘ silu(W_g u_t + b_g)) + b_out
    silu(a) = a σ(a),  σ(a) = 1 / (1 + exp(-a))    dsilu/da = σ(a) (1 + a (1 - σ(a)))
"""

import numpy as np

EPSILON = float(np.finfo(np.float64).eps)


def root_mean_square(x: np.ndarray, epsilon: float = EPSILON) -> np.ndarray:
    """r (..., 1) of x (..., D): √(mean_i x_i² + ε), over the last axis."""
    return np.sqrt((x**2).mean(axis=-1, keepdims=True) + epsilon)


def rms_norm(x: np.ndarray, w: np.ndarray, epsilon: float = EPSILON) -> np.ndarray:
    """n(x) (..., D) of x (..., D), each row by itself, times the scale w (D,)."""
    return x / root_mean_square(x, epsilon) * w


def rms_norm_gradients(
    x: np.ndarray, w: np.ndarray, g: np.ndarray, epsilon: float = EPSILON
) -> tuple[np.ndarray, np.ndarray]:
    """dL/dx (..., D) and dL/dw (D,) from g = dL/dn (..., D)."""
    r = root_mean_square(x, epsilon)
    x_hat = x / r
    dx = (g * w - x_hat * (g * w * x_hat).mean(axis=-1, keepdims=True)) / r
    return dx, (g * x_hat).reshape(-1, len(w)).sum(axis=0)


def sigmoid(a: np.ndarray) -> np.ndarray:
    """σ(a), elementwise, written with tanh: exp(-a) could overflow."""
    return (1 + np.tanh(a / 2)) / 2


def silu(a: np.ndarray) -> np.ndarray:
    """a σ(a), elementwise."""
    return a * sigmoid(a)


def silu_prime(a: np.ndarray) -> np.ndarray:
    """The derivative of `silu`, elementwise."""
    return sigmoid(a) * (1 + a * (1 - sigmoid(a)))


def squared_relu(a: np.ndarray) -> np.ndarray:
    """max(a, 0)², elementwise."""
    return np.maximum(a, 0) ** 2


def squared_relu_prime(a: np.ndarray) -> np.ndarray:
    """The derivative of `squared_relu`, elementwise: 2 max(a, 0), also at 0, where there is no kink."""
    return 2 * np.maximum(a, 0)


def residual_gradient(jacobians: list[np.ndarray], g: np.ndarray, with_sum: bool = True) -> list[np.ndarray]:
    """dL/dx_l for l = L, …, 0, from the derivatives J_1, …, J_L (D, D) and g = dL/dx_L (D,)."""
    gradients = [g]
    for J in reversed(jacobians):
        gradients.append(J.T @ gradients[-1] + (gradients[-1] if with_sum else 0))
    return gradients
