"""Worked examples: causal self-attention, and the temperature of a softmax."""

from typing import Any

import numpy as np

from rhapsode.textbook import attention as att
from rhapsode.textbook.explain import drawing
from rhapsode.textbook.explain.page import (
    Heading,
    Illustration,
    Lines,
    PageBlock,
    Text,
    WorkedExample,
    beside,
    factor,
    matrix,
    number,
    row,
    table,
)
from rhapsode.textbook.softmax import softmax

INPUTS = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
W_Q = np.array([[[1.0, 0.0], [0.0, 2.0]], [[0.0, 1.0], [1.0, 0.0]]])
W_K = np.array([[[1.0, 1.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]])
W_V = np.array([[[1.0, 2.0]], [[3.0, -1.0]]])
LOGITS, TEMPERATURES = np.array([2.0, 1.0, 0.5, -1.0]), np.array([0.0, 0.5, 1.0, 2.0])

SHAPES = {
    "inputs": "T x D",
    "queries_per_head": "T x d_k",
    "keys_per_head": "T x d_k",
    "values_per_head": "T x d_v",
    "scores_per_head": "T x T",
    "weights_per_head": "T x T",
    "outputs_per_head": "T x d_v",
    "heads_joined": "T x H x d_v",
    "output": "T x D_out",
}


def attention(
    inputs: np.ndarray = INPUTS,
    w_q: np.ndarray = W_Q,
    w_k: np.ndarray = W_K,
    w_v: np.ndarray = W_V,
    w_o: np.ndarray | None = None,
    causal: bool = True,
) -> WorkedExample:
    """inputs X (T, D), w_q and w_k (H, d_k, D), w_v (H, d_v, D), w_o (D_out, H·d_v), the identity if None.

    Raises ValueError for shapes that differ.
    """
    H, d_k, D = w_k.shape
    d_v = w_v.shape[1]
    w_o = np.eye(H * d_v) if w_o is None else w_o
    _check_attention(inputs, w_q, w_k, w_v, w_o)
    weights = att.MultiHeadWeights(
        W_q=w_q,
        b_q=np.zeros((H, d_k)),
        W_k=w_k,
        b_k=np.zeros((H, d_k)),
        W_v=w_v,
        b_v=np.zeros((H, d_v)),
        W_o=w_o,
        b_o=np.zeros(len(w_o)),
    )
    f = att.multi_head_attention(inputs, weights, causal)
    T = len(inputs)
    blocks: list[PageBlock] = [
        Text(
            "`A = softmax(Q Kᵀ / √d_k)`, `O = A V` with `Q = X W_qᵀ`, `K = X W_kᵀ`, `V = X W_vᵀ` (no biases "
            f"here): {T} positions of {D} numbers, {H} head{'s' * (H > 1)}, d_k = {d_k}, d_v = {d_v}, "
            f"{'causal' if causal else 'every position sees every other'}."
        ),
        Lines(matrix("X", inputs)),
    ]
    for h in range(H):
        blocks += _head(h, f, weights, causal)
    dX, d = att.multi_head_gradients(f, weights, np.ones_like(f.output))
    blocks += [
        Heading("The heads joined"),
        Text("Side by side, one row for each position; then the output transform `Y = joined W_oᵀ`."),
        Lines(beside(matrix("joined", f.heads_joined.reshape(T, -1)), matrix("W_o", w_o), matrix("Y", f.output))),
        Heading("Shapes"),
        Lines(
            table(
                ["intermediate", "shape", "in letters"],
                [[name, " x ".join(map(str, shape)), SHAPES[name]] for name, shape in f.shapes().items()],
                left=3,
            )
        ),
        Heading("The gradients, if L is the sum of all entries of Y"),
        *(Lines(_head_gradients(h, d)) for h in range(H)),
        Lines(matrix("dL/dX", dX)),
    ]
    return WorkedExample(f"{'Causal self' if causal else 'Self'}-attention, step by step", blocks)


def temperature(
    logits: np.ndarray = LOGITS,
    temperatures: np.ndarray = TEMPERATURES,
    names: list[str] | None = None,
) -> WorkedExample:
    """logits (V,), any number of temperatures, names of the V tokens. Raises ValueError for one below 0."""
    names = [f"token {j}" for j in range(len(logits))] if names is None else names
    if len(names) != len(logits):
        raise ValueError(f"names: one for each of the {len(logits)} logits is needed, got {len(names)}")
    p = {tau: softmax(logits, float(tau)) for tau in temperatures}
    blocks: list[PageBlock] = [
        Text(
            "`p_j = exp(s_j / τ) / Σ_k exp(s_k / τ)`. The largest logit is subtracted first; that changes "
            "nothing, and no exponential can overflow."
        ),
        Lines([f"s     = {row(logits)}", f"s - {factor(logits.max())} = {row(logits - logits.max())}"]),
    ]
    for tau in temperatures:
        blocks.append(Heading(f"τ = {number(tau)}"))
        if tau == 0:
            best = int(logits.argmax())
            blocks += [
                Text("Temperature 0 is not a division but the limit: everything on the largest logit."),
                Lines([f"largest: {names[best]}, s = {number(logits[best])}", f"p = {row(p[tau])}"]),
            ]
        else:
            scaled = (logits - logits.max()) / tau
            e = np.exp(scaled)
            blocks.append(
                Lines(
                    [
                        f"divided by τ   {row(scaled)}",
                        f"exp            {row(e)}",
                        f"their sum      {number(e.sum())}",
                        f"p              {row(p[tau])}",
                    ]
                )
            )
    blocks += [
        Heading("Side by side"),
        Lines(
            table(
                ["", *(f"τ = {number(tau)}" for tau in temperatures)],
                [[name, *(number(p[tau][j]) for tau in temperatures)] for j, name in enumerate(names)]
                + [["entropy, nats", *(number(_entropy(p[tau])) for tau in temperatures)]],
            )
        ),
        Text(
            "The entropy goes from 0 (one token has it all) to "
            f"log {len(logits)} = {number(np.log(len(logits)))} (all equally likely)."
        ),
        Illustration(
            "Small temperatures sharpen, large ones flatten.",
            lambda canvas: _draw_temperatures(canvas, p, names),
            (9.0, 3.2),
        ),
    ]
    return WorkedExample("Softmax and its temperature", blocks)


def _head(h: int, f: att.MultiHead, w: att.MultiHeadWeights, causal: bool) -> list[PageBlock]:
    Q, K, V = f.queries_per_head[h], f.keys_per_head[h], f.values_per_head[h]
    S, A, O = f.scores_per_head[h], f.weights_per_head[h], f.outputs_per_head[h]
    d_k = K.shape[1]
    scores = []
    for t in range(len(Q)):
        for n in range(t + 1 if causal else len(K)):
            products = " + ".join(f"{factor(a)}·{factor(b)}" for a, b in zip(Q[t], K[n], strict=True))
            letters = f"S[{t + 1},{n + 1}] = q_{t + 1} · k_{n + 1} / √{d_k}"
            scores.append(f"{letters} = ({products}) / √{d_k} = {number(S[t, n])}")
    averages = []
    for t in range(len(Q)):
        seen = range(t + 1 if causal else len(K))
        terms = " + ".join(f"{number(A[t, n])}·{row(V[n])}" for n in seen)
        averages.append(f"o_{t + 1} = {terms} = {row(O[t])}")
    return [
        Heading(f"Head {h + 1}"),
        Lines(beside(matrix("W_q", w.W_q[h]), matrix("W_k", w.W_k[h]), matrix("W_v", w.W_v[h]))),
        Lines(beside(matrix("Q", Q), matrix("K", K), matrix("V", V))),
        Text(
            "The scores of each query with the keys that it may see"
            + (" (later ones count as -∞ and get weight 0):" if causal else ":")
        ),
        Lines(scores),
        Text("A softmax over each row gives the weights, and the weights average the values:"),
        Lines(matrix("A", A)),
        Lines(averages),
        Illustration(
            f"Head {h + 1}: row t is the query of position t, column n the key of position n.",
            lambda canvas: _draw_head(canvas, S, A, O),
            (9.0, 3.2),
        ),
    ]


def _head_gradients(h: int, d: att.MultiHeadWeights) -> list[str]:
    matrices = {"dL/dW_q": d.W_q[h], "dL/dW_k": d.W_k[h], "dL/dW_v": d.W_v[h]}
    return [f"head {h + 1}", *beside(*(matrix(name, values) for name, values in matrices.items()))]


def _check_attention(X: np.ndarray, w_q: np.ndarray, w_k: np.ndarray, w_v: np.ndarray, w_o: np.ndarray) -> None:
    """Raises ValueError with the option's name where the numbers do not belong together."""
    for name, w in {"w_q": w_q, "w_k": w_k, "w_v": w_v}.items():
        if w.shape[2] != X.shape[1]:
            raise ValueError(
                f"{name} must have {X.shape[1]} columns, one for each number of an input, got {w.shape[2]}"
            )
        if len(w) != len(w_k):
            raise ValueError(f"{name} must have as many heads as w_k, {len(w_k)}, got {len(w)}")
    if w_q.shape[1] != w_k.shape[1]:
        raise ValueError(f"w_q and w_k must have equally many rows (d_k), got {w_q.shape[1]} and {w_k.shape[1]}")
    if w_o.shape[1] != len(w_v) * w_v.shape[1]:
        raise ValueError(f"w_o must have {len(w_v) * w_v.shape[1]} columns (heads times d_v), got {w_o.shape[1]}")


def _entropy(p: np.ndarray) -> float:
    return -sum(float(q) * float(np.log(q)) for q in p if q > 0)


def _draw_head(canvas: Any, S: np.ndarray, A: np.ndarray, O: np.ndarray) -> None:
    axes = canvas.subplots(1, 3, width_ratios=[S.shape[1], A.shape[1], max(1, O.shape[1])])
    drawing.draw_grid(axes[0], S, "scores S")
    drawing.draw_grid(axes[1], A, "weights A = softmax(S)", colours="Oranges", symmetric=False)
    drawing.draw_grid(axes[2], O, "outputs O = A V")
    for ax in axes[:2]:
        ax.set_xlabel("key n", fontsize=9)
        ax.set_ylabel("query t", fontsize=9)


def _draw_temperatures(canvas: Any, p: dict[Any, np.ndarray], names: list[str]) -> None:
    axes = np.atleast_1d(canvas.subplots(1, len(p), sharey=True))
    for ax, (tau, probabilities) in zip(axes, p.items(), strict=True):
        bars = ax.bar(range(len(names)), probabilities, color=drawing.SECOND, width=0.7)
        ax.bar_label(bars, labels=[f"{q:.2f}" for q in probabilities], fontsize=8, color=drawing.INK)
        ax.set_xticks(range(len(names)), names, rotation=45 if max(map(len, names)) > 3 else 0, ha="right")
        drawing.bare_axes(ax, f"τ = {number(tau)}", "", "probability" if ax is axes[0] else "")
        ax.set_ylim(0, 1.08)
