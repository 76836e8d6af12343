"""Questions: shapes and sizes in multi-head attention."""

from dataclasses import fields

import numpy as np

from rhapsode.textbook import attention as att
from rhapsode.textbook.explain.page import Lines, Text
from rhapsode.textbook.explain.quiz.answers import NumbersAnswer, ShapeAnswer, told_apart
from rhapsode.textbook.explain.quiz.question import Question

SHAPES = {
    "queries_per_head": ("the queries Q of one head", ("T", "d_k")),
    "keys_per_head": ("the keys K of one head", ("T", "d_k")),
    "values_per_head": ("the values V of one head", ("T", "d_v")),
    "scores_per_head": ("the scores S of one head", ("T", "T")),
    "weights_per_head": ("the attention weights A of one head", ("T", "T")),
    "outputs_per_head": ("the output O of one head", ("T", "d_v")),
    "W_q": ("the matrix W_q of one head, where Q = X W_qᵀ", ("d_k", "D")),
    "W_v": ("the matrix W_v of one head, where V = X W_vᵀ", ("d_v", "D")),
    "joined": ("the heads' outputs, joined side by side as one matrix", ("T", "H·d_v")),
    "W_o": ("the matrix W_o, where Y = joined W_oᵀ", ("D_out", "H·d_v")),
    "output": ("the output Y", ("T", "D_out")),
}


def _sizes(rng: np.random.Generator) -> dict[str, int]:
    """All sizes different, so that no two can be exchanged unseen."""
    while True:
        T, H, d_k, d_v = (int(rng.integers(*span)) for span in ((5, 40), (2, 9), (3, 17), (3, 17)))
        D, D_out = (int(size) for size in rng.integers(18, 65, 2))
        if len({T, H, d_k, d_v, D, D_out, H * d_v}) == 7:
            return {"T": T, "D": D, "H": H, "d_k": d_k, "d_v": d_v, "D_out": D_out, "H·d_v": H * d_v}


def _zeros(n: dict[str, int]) -> att.MultiHeadWeights:
    """Weights of these sizes: what has which shape is left to the chapter."""
    H, d_k, d_v, D, D_out = (n[name] for name in ("H", "d_k", "d_v", "D", "D_out"))
    shapes = {
        "W_q": (H, d_k, D),
        "b_q": (H, d_k),
        "W_k": (H, d_k, D),
        "b_k": (H, d_k),
        "W_v": (H, d_v, D),
        "b_v": (H, d_v),
        "W_o": (D_out, H * d_v),
        "b_o": (D_out,),
    }
    return att.MultiHeadWeights(**{name: np.zeros(shape) for name, shape in shapes.items()})


def _given(n: dict[str, int]) -> str:
    return (
        f"Multi-head self-attention of T = {n['T']} positions: inputs of D = {n['D']} numbers, H = {n['H']} heads, "
        f"d_k = {n['d_k']}, d_v = {n['d_v']}, outputs of D_out = {n['D_out']} numbers."
    )


def one_shape(rng: np.random.Generator) -> Question:
    """The shape of an intermediate or of a matrix of weights."""
    n = _sizes(rng)
    key = list(SHAPES)[rng.integers(len(SHAPES))]
    what, letters = SHAPES[key]
    weights = _zeros(n)
    forward = att.multi_head_attention(np.zeros((n["T"], n["D"])), weights)
    if key in ("W_q", "W_v"):
        right: tuple[int, ...] = getattr(weights, key)[0].shape
    elif key == "W_o":
        right = weights.W_o.shape
    elif key == "joined":
        right = forward.heads_joined.reshape(n["T"], -1).shape
    else:
        right = forward.shapes()[key]
    others = {
        tuple(n[x] for x in l): f"the shape of {w}" for w, l in SHAPES.values() if tuple(n[x] for x in l) != right
    }
    if "H·d_v" in letters:
        others[tuple(n["d_v" if x == "H·d_v" else x] for x in letters)] = "the shape if there were one head"
    others |= {(n["H"], *right): "the shape for all heads together"} if key.endswith("per_head") else {}
    return Question(
        [Text(f"{_given(n)} What is the shape of {what}?")],
        ShapeAnswer("the shape", right, tuple(others.items())),
        [
            Text(f"{what[0].upper() + what[1:]}: {' x '.join(letters)}. " + _reason(key)),
            Lines([f"{' x '.join(letters)} = {' x '.join(str(n[x]) for x in letters)}"]),
        ],
    )


def _reason(key: str) -> str:
    return {
        "scores_per_head": "Every query meets every key; how long they are is summed away in the dot product.",
        "weights_per_head": "A softmax over each row of the scores leaves their shape as it is.",
        "outputs_per_head": "One average of values for each query, as long as a value.",
        "values_per_head": "A value may have another size than a key.",
        "joined": "One row for each position, the heads side by side.",
        "W_o": "It maps a joined row to an output.",
        "output": "One row for each position, whatever the heads are.",
    }.get(key, "It maps an input to one such row." if key.startswith("W_") else "One row for each position.")


def with_cache(rng: np.random.Generator) -> Question:
    """Scores or outputs of a batch, where earlier keys and values are cached."""
    while True:
        B, H, T, cached, d_k, d_v = (int(v) for v in rng.integers(2, 20, 6))
        S = cached + T
        if len({B, H, T, cached, d_k, d_v, S}) == 7:
            break
    forward = att.attend(np.zeros((B, H, T, d_k)), np.zeros((B, H, S, d_k)), np.zeros((B, H, S, d_v)))
    of_scores = bool(rng.integers(2))
    right = forward.S.shape if of_scores else forward.O.shape
    what = (
        "all scores S (batch, heads, and what follows)"
        if of_scores
        else "all heads' outputs O (batch, heads, and what follows)"
    )
    letters = "B x H x T x (cached + T)" if of_scores else "B x H x T x d_v"
    wrong = {
        (B, H, S, S): "with queries for the cached positions: these were computed before",
        (B, H, T, T): "without the cached keys",
        (B, H, T, cached): "without the new keys",
        (B, H, S, d_v): "with outputs for the cached positions: these were computed before",
        (B, T, H * d_v): "the shape once the heads are joined",
        (B, H, T, d_k): "with the size of a key in place of a value",
        right[1:]: "the shape for one sequence",
        right[2:]: "the shape for one head of one sequence",
    }
    return Question(
        [
            Text(
                f"A batch of B = {B} sequences continues with T = {T} new tokens each; the keys and values of "
                f"{cached} earlier "
                f"tokens of each are in the cache. There are H = {H} heads, d_k = {d_k}, d_v = {d_v}. What "
                f"is the shape of {what}?"
            )
        ],
        ShapeAnswer("the shape", right, tuple((s, reason) for s, reason in wrong.items() if s != right)),
        [
            Text("Only the new tokens have queries; they see the keys of the cached ones and their own."),
            Lines([f"{letters} = {' x '.join(map(str, right))}"]),
        ],
    )


def parameter_count(rng: np.random.Generator) -> Question:
    """How many numbers are learned."""
    H, d = int(rng.integers(2, 9)), int(rng.integers(2, 9))
    D, biases = H * d, bool(rng.integers(2))
    n = {"H": H, "d_k": d, "d_v": d, "D": D, "D_out": D}
    zeros = _zeros(n)
    counts = {f.name: getattr(zeros, f.name).size for f in fields(zeros)}
    right = np.array(float(sum(c for name, c in counts.items() if biases or name.startswith("W"))))
    return Question(
        [
            Text(
                f"Multi-head attention with D = {D} numbers at input and output, and H = {H} heads with d_k "
                "= d_v = D / H. "
                "How many numbers do W_q, W_k, W_v and W_o have in all heads together, "
                f"{'with' if biases else 'without'} biases?"
            )
        ],
        NumbersAnswer(
            "numbers",
            right,
            whole=True,
            mistakes=told_apart(
                right,
                (4 * D * D + (0 if biases else 4 * D), f"the count {'without' if biases else 'with'} biases"),
                (3 * D * D + (3 * D if biases else 0), "the count without W_o"),
                (right * H, f"{H} times as many: each head has D / H rows only"),
                (3 * d * D + D * D, "the count with W_q, W_k and W_v of one head"),
            ),
        ),
        [
            Text("Each of W_q, W_k and W_v has H·d_k rows of D numbers, W_o has D rows of H·d_v. H·d_k = H·d_v = D:"),
            Lines(
                [
                    f"numbers = 4·{D}·{D}" + (f" + 4·{D}" if biases else "") + f" = {int(right)}",
                ]
            ),
        ],
    )


def seen(rng: np.random.Generator) -> Question:
    """How many weights the causal mask leaves."""
    T, H = int(rng.integers(4, 21)), int(rng.integers(2, 9))
    zeros = np.zeros((H, T, 1))
    forward = att.attend(zeros, zeros, zeros)
    right = np.array(float((forward.A > 0).sum()))
    return Question(
        [
            Text(
                f"Causal self-attention of T = {T} positions with H = {H} heads. How many attention weights "
                "are not hidden by "
                "the mask, in all heads together?"
            )
        ],
        NumbersAnswer(
            "weights",
            right,
            whole=True,
            mistakes=told_apart(
                right,
                (right / H, "the count for one head"),
                (float(H * T * T), "the count of all, hidden ones too"),
                (H * T * (T - 1) / 2, "the count of the hidden ones: each position sees itself"),
            ),
        ),
        [
            Text(
                "Position t sees the positions 1 to t, itself among them: 1 + 2 + … + T = T (T + 1) / 2 in each head."
            ),
            Lines([f"weights = {H}·{T}·({T} + 1)/2 = {int(right)}"]),
        ],
    )
