"""A gated recurrence, in which no entry meets another: each step keeps a share of what was and takes one of what is.

One sequence of T steps; s_t and c_t (H,) are linear in the input of the step, h_0 is given (zero by default):

    a_t = σ(s_t)                                   (H,)    the share that is kept, between 0 and 1
    h_t = a_t ∘ h_{t-1} + (1 - a_t) ∘ c_t          (H,)

A minimal GRU (Feng et al. 2024, arXiv 2410.01201, with a = 1 - z): neither a nor c asks h_{t-1}, so that the step is
linear in h_{t-1}, and all steps together have a closed form. With the empty product 1,

    h_t = Σ_{n=0..t} w_tn ∘ c_n        c_0 stands for h_0
    w_tn = (1 - a_n) ∘ a_{n+1} ∘ ⋯ ∘ a_t,   w_t0 = a_1 ∘ ⋯ ∘ a_t

and Σ_n w_tn = 1: each entry of h_t is a mean of what came in, so that it is never larger than the largest of it. Half
of what came in is still there after log 2 / -log a steps: 7 for a = 0.9, 69 for a = 0.99.

Backwards, with g_t = dL/dh_t where h_t is read:

    G_i = Σ_{t=i..T} a_{i+1} ∘ ⋯ ∘ a_t ∘ g_t       all that reaches h_i; or step by step G_i = g_i + a_{i+1} ∘ G_{i+1}
    dL/dc_i = (1 - a_i) ∘ G_i
    dL/ds_i = a_i ∘ (1 - a_i) ∘ (h_{i-1} - c_i) ∘ G_i
    dL/dh_0 = a_1 ∘ G_1

Every factor is between 0 and 1: the gradient may vanish, it cannot explode. What it cannot do either: a step that is
linear in h_{t-1} with a positive factor never turns a sign round, so that one such layer cannot tell even from odd
counts of a token.

In the code row t-1 of an array belongs to step t: `h[0]` is h_1, and h_0 is kept apart as `h_0`.
"""

import numpy as np

from rhapsode.textbook.residual import sigmoid


def gated_states(s: np.ndarray, c: np.ndarray, h_0: np.ndarray | None = None) -> np.ndarray:
    """h (T, H), step by step, of s and c (T, H) and h_0 (H,)."""
    a = sigmoid(s)
    h = np.zeros_like(c)
    previous = np.zeros(c.shape[1]) if h_0 is None else h_0
    for t in range(len(c)):
        h[t] = previous = a[t] * previous + (1 - a[t]) * c[t]
    return h


def kept_shares(s: np.ndarray) -> np.ndarray:
    """w (T, T + 1, H): w[t - 1, n] is the share of c_n, and for n = 0 of h_0, in h_t; 0 where n > t."""
    a = sigmoid(s)
    T, H = s.shape
    w = np.zeros((T, T + 1, H))
    for t in range(1, T + 1):
        for n in range(t + 1):
            taken = 1.0 if n == 0 else 1 - a[n - 1]
            w[t - 1, n] = taken * a[n:t].prod(axis=0)
    return w


def gated_gradients(
    s: np.ndarray, c: np.ndarray, g: np.ndarray, h_0: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """dL/ds (T, H), dL/dc (T, H) and dL/dh_0 (H,) in closed form, from g = dL/dh (T, H), with T² products."""
    a, T = sigmoid(s), len(s)
    start = np.zeros(c.shape[1]) if h_0 is None else h_0
    before = np.vstack([start[None], gated_states(s, c, h_0)[:-1]])
    G = np.array([sum(a[i:t].prod(axis=0) * g[t - 1] for t in range(i, T + 1)) for i in range(1, T + 1)])
    return a * (1 - a) * (before - c) * G, (1 - a) * G, a[0] * G[0]
