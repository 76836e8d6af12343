"""A copy head: a second way to say the next token, by pointing to where it stood before.

A name is easier to copy than to know. Beside the distribution over the vocabulary stands one over the tokens so far (a
pointer: Vinyals et al. 2015, arXiv 1506.03134), and a gate mixes the two (Merity et al. 2016, arXiv 1609.07843). A
model has read the tokens w_1 … w_T; x_t (D,) is what its head reads after t of them, z_t (V,) are the head's logits:

    k_n  = W_k x_{n-1} + b_k,  k_1 = 0                   (d,)      the key of w_n is made of the features BEFORE it
    q_t  = W_q x_t + b_q                                 (d,)
    S_tn = k_n · q_t / √d         for n ≤ t, else -∞     (T, T)
    A    = softmax(S)                                    (T, T)    over each row
    c_t(w) = Σ_{n: w_n = w} A_tn                         (T, V)    A times the tokens as rows of zeros and a one
    g_t  = σ(u_t),  u_t = w_g · x_t + b_g                (T,)      how much is copied
    p_t(w) = (1 - g_t) softmax(z_t)(w) + g_t c_t(w)      (T, V)    of w_{t+1}

The query asks: where did things stand as they stand now? The key of w_n says how they stood just before w_n, and what
is copied is w_n, what came then. w_t itself is known when w_{t+1} is predicted, so n = t is allowed.

The loss of a prediction is ℓ_t = -log p_t(y), y = w_{t+1}. Let r be the share of p_t(y) that was copied,

    r_t = g_t c_t(y) / p_t(y)

and ρ_tn = A_tn / c_t(y) where w_n = y, else 0: the weights, once it is known where the right token stood. Then

    dℓ/dz_t  = (1 - r_t) (softmax(z_t) - onehot(y))
    dℓ/du_t  = g_t - r_t
    dℓ/dS_tn = r_t (A_tn - ρ_tn)

Each is (what was expected) - (what turned out), weighted with the share that was responsible for it. Where y stands
nowhere in the text so far, c = r = 0: nothing pulls at the weights A, and ℓ = -log(1 - g) - log softmax(z)(y).

Where a sequence is cut, the state has the keys and the tokens so far, and the key k_{T+1} of the token that comes next.
"""

import numpy as np

from rhapsode.textbook.residual import sigmoid
from rhapsode.textbook.softmax import cross_entropy, cross_entropy_gradient, softmax


def one_hot(tokens: np.ndarray, V: int) -> np.ndarray:
    """Tokens (...) as rows (..., V) of zeros and a one."""
    return np.eye(V)[tokens]


def copy_distribution(A: np.ndarray, tokens: np.ndarray, V: int) -> np.ndarray:
    """c (..., T, V) from the weights A (..., T, S) on tokens (..., S)."""
    return A @ one_hot(tokens, V)


def mixture(z: np.ndarray, u: np.ndarray, c: np.ndarray) -> np.ndarray:
    """p (..., V) from the vocabulary's logits z (..., V), the gate's u (...) and the copy distribution c (..., V)."""
    g = sigmoid(u)[..., None]
    return (1 - g) * softmax(z) + g * c


def mixture_loss(z: np.ndarray, u: np.ndarray, S: np.ndarray, tokens: np.ndarray, y: np.ndarray) -> np.ndarray:
    """ℓ (T,) in nats of targets y (T,), z (T, V), u (T,), scores S (T, N), -inf where n > t, of the tokens (N,)."""
    c = np.where(tokens == y[:, None], softmax(S), 0).sum(axis=1)
    g = sigmoid(u)
    return -np.log((1 - g) * np.exp(-cross_entropy(z, y)) + g * c)


def mixture_gradients(
    z: np.ndarray, u: np.ndarray, S: np.ndarray, tokens: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """dℓ_t/dz_t (T, V), dℓ_t/du_t (T,) and dℓ_t/dS_t (T, N); same arguments as `mixture_loss`."""
    A, g = softmax(S), sigmoid(u)
    hits = np.where(tokens == y[:, None], A, 0)
    c = hits.sum(axis=1)
    r = g * c / np.exp(-mixture_loss(z, u, S, tokens, y))
    rho = np.divide(hits, c[:, None], out=np.zeros_like(A), where=c[:, None] > 0)
    return (1 - r)[:, None] * cross_entropy_gradient(z, y), g - r, r[:, None] * (A - rho)
