"""Scaled dot-product attention, causal, with one head or several.

A sequence of T vectors, the rows of X (T, D). Each position t asks a question q_t, offers a key k_t to be
found by and a value v_t to be taken:

    Q = X W_qᵀ + b_q        (T, d_k)
    K = X W_kᵀ + b_k        (T, d_k)
    V = X W_vᵀ + b_v        (T, d_v)
    S = Q Kᵀ / √d_k         (T, T)      S[t, n]: how well key n answers query t
    A = softmax(S)          (T, T)      over each row; in causal attention S[t, n] = -∞ for n > t
    O = A V                 (T, d_v)    row t: the values, averaged with the weights A[t]

√d_k keeps the scores' spread independent of the key size: the dot product of two vectors of d_k independent
entries of variance 1 has variance d_k. Causal means that position t sees the positions up to t alone, so
the model cannot read the token that it has to predict.

With H heads each head has weights of its own, (H, d_k, D) and (H, d_v, D); their outputs are joined, the
heads side by side, and transformed once more:

    Y = join(O_1, …, O_H) W_oᵀ + b_o        join: (T, H, d_v) read as (T, H·d_v)

Backwards, with dO = dL/dO:

    dV = Aᵀ dO
    dA = dO Vᵀ
    dS = A ∘ (dA - rowsum(A ∘ dA))          the gradient of softmax; 0 wherever A is 0, so also in the future
    dQ = dS K / √d_k
    dK = dSᵀ Q / √d_k
"""

from dataclasses import dataclass, fields

import numpy as np

from rhapsode.textbook.softmax import softmax, softmax_gradient


@dataclass(frozen=True)
class Attention:
    """What scaled dot-product attention computed: Q, K (…, T, d_k); V, O (…, T, d_v); S, A (…, T, T)."""

    Q: np.ndarray
    K: np.ndarray
    V: np.ndarray
    S: np.ndarray
    A: np.ndarray
    O: np.ndarray


@dataclass(frozen=True)
class MultiHeadWeights:
    """The learned numbers of H heads, or their gradients."""

    W_q: np.ndarray  # (H, d_k, D)
    b_q: np.ndarray  # (H, d_k)
    W_k: np.ndarray  # (H, d_k, D)
    b_k: np.ndarray  # (H, d_k)
    W_v: np.ndarray  # (H, d_v, D)
    b_v: np.ndarray  # (H, d_v)
    W_o: np.ndarray  # (D_out, H·d_v)
    b_o: np.ndarray  # (D_out,)


@dataclass(frozen=True)
class MultiHead:
    """What multi-head attention computed, every intermediate by its name; `shapes` lists them."""

    inputs: np.ndarray  # (T, D)
    queries_per_head: np.ndarray  # (H, T, d_k)
    keys_per_head: np.ndarray  # (H, T, d_k)
    values_per_head: np.ndarray  # (H, T, d_v)
    scores_per_head: np.ndarray  # (H, T, T)
    weights_per_head: np.ndarray  # (H, T, T)
    outputs_per_head: np.ndarray  # (H, T, d_v)
    heads_joined: np.ndarray  # (T, H, d_v)
    output: np.ndarray  # (T, D_out)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every intermediate by name; for `..._per_head`, of one head: without the axis H."""
        arrays = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: a.shape[1:] if name.endswith("per_head") else a.shape for name, a in arrays.items()}


def attend(Q: np.ndarray, K: np.ndarray, V: np.ndarray, causal: bool = True) -> Attention:
    """Scaled dot-product attention of Q (..., T, d_k) over K (..., S, d_k) and V (..., S, d_v).

    Leading axes (batch, heads) are independent of each other. With more keys than queries, the queries are
    the last T of S positions, so query t sees the keys up to S - T + t.
    Raises ValueError if the shapes do not belong together.
    """
    if Q.shape[-1] != K.shape[-1] or K.shape[:-1] != V.shape[:-1] or Q.shape[:-2] != K.shape[:-2]:
        raise ValueError(f"Q {Q.shape}, K {K.shape} and V {V.shape} do not belong together")
    T, keys = Q.shape[-2], K.shape[-2]
    if causal and keys < T:
        raise ValueError(f"causal attention needs a key for every query, got {T} queries and {keys} keys")
    S = Q @ np.swapaxes(K, -1, -2) / np.sqrt(Q.shape[-1])
    if causal:
        S = np.where(np.tri(T, keys, keys - T, dtype=bool), S, -np.inf)
    A = softmax(S)
    return Attention(Q=Q, K=K, V=V, S=S, A=A, O=A @ V)


def attend_gradients(forward: Attention, dO: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """dQ, dK and dV from dO = dL/dO (..., T, d_v)."""
    dV = np.swapaxes(forward.A, -1, -2) @ dO
    dA = dO @ np.swapaxes(forward.V, -1, -2)
    dS = softmax_gradient(forward.A, dA) / np.sqrt(forward.Q.shape[-1])
    return dS @ forward.K, np.swapaxes(dS, -1, -2) @ forward.Q, dV


def multi_head_attention(X: np.ndarray, weights: MultiHeadWeights, causal: bool = True) -> MultiHead:
    """Self-attention of one sequence X (T, D); H, the first axis of the weights, may be 1."""
    w = weights
    Q = np.einsum("td,hkd->htk", X, w.W_q) + w.b_q[:, None, :]
    K = np.einsum("td,hkd->htk", X, w.W_k) + w.b_k[:, None, :]
    V = np.einsum("td,hvd->htv", X, w.W_v) + w.b_v[:, None, :]
    heads = attend(Q, K, V, causal)
    joined = np.moveaxis(heads.O, 0, 1)  # (T, H, d_v)
    return MultiHead(
        inputs=X,
        queries_per_head=Q,
        keys_per_head=K,
        values_per_head=V,
        scores_per_head=heads.S,
        weights_per_head=heads.A,
        outputs_per_head=heads.O,
        heads_joined=joined,
        output=joined.reshape(len(X), -1) @ w.W_o.T + w.b_o,
    )


def multi_head_gradients(
    forward: MultiHead, weights: MultiHeadWeights, dY: np.ndarray
) -> tuple[np.ndarray, MultiHeadWeights]:
    """dX (T, D) and the gradients of all weights, from dY = dL/dY (T, D_out)."""
    f, w = forward, weights
    joined = f.heads_joined.reshape(len(dY), -1)
    dO = np.moveaxis((dY @ w.W_o).reshape(f.heads_joined.shape), 1, 0)  # (H, T, d_v)
    heads = Attention(
        Q=f.queries_per_head,
        K=f.keys_per_head,
        V=f.values_per_head,
        S=f.scores_per_head,
        A=f.weights_per_head,
        O=f.outputs_per_head,
    )
    dQ, dK, dV = attend_gradients(heads, dO)
    dX = sum(np.einsum("htk,hkd->td", d, W) for d, W in ((dQ, w.W_q), (dK, w.W_k), (dV, w.W_v)))
    return dX, MultiHeadWeights(
        W_q=np.einsum("htk,td->hkd", dQ, f.inputs),
        b_q=dQ.sum(axis=1),
        W_k=np.einsum("htk,td->hkd", dK, f.inputs),
        b_k=dK.sum(axis=1),
        W_v=np.einsum("htv,td->hvd", dV, f.inputs),
        b_v=dV.sum(axis=1),
        W_o=dY.T @ joined,
        b_o=dY.sum(axis=0),
    )
