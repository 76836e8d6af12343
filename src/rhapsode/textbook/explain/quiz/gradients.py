"""Questions: gradients in closed form, of softmax with cross-entropy and of a recurrent network."""

import numpy as np

from rhapsode.textbook import recurrent as rnn
from rhapsode.textbook.explain.page import Lines, PageBlock, Text, factor, matrix, number, row
from rhapsode.textbook.explain.quiz.answers import NumbersAnswer, told_apart
from rhapsode.textbook.explain.quiz.question import (
    Question,
    fraction,
    fraction_factor,
    fraction_matrix,
    fractions,
    packed,
)
from rhapsode.textbook.softmax import cross_entropy_gradient, softmax, softmax_gradient

PSI = {"identity": "ψ(z) = z", "relu": "ψ(z) = max(z, 0)", "tanh": "ψ(z) = tanh(z)"}
SLOPE = {"identity": "ψ'(z) = 1", "relu": "ψ'(z) = 1 if z > 0, else 0", "tanh": "ψ'(z) = 1 - h²"}


def of_recurrence(activation: str, by_weights: bool, rng: np.random.Generator) -> Question:
    """dL/dh_1 or dL/dW_hh over two or three steps."""
    T = 2 if by_weights or activation == "tanh" else 3
    W = rng.choice([-2.0, -1, 1, 2, 3], (2, 2))
    direct = rng.choice([-3.0, -2, -1, 1, 2, 3], (T, 2))
    h_0 = rng.choice([-2.0, -1, 1, 2], 2)
    if activation == "tanh":  # the states are given, as nobody computes a tanh by hand
        h = rng.choice([-0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75], (T, 2))
        h_0, z = rng.choice([-0.5, 0, 0.5], 2), np.arctanh(h)
    else:
        z = rng.choice([-3.0, -2, -1, 1, 2, 3, 4], (T, 2))  # at 0, relu has a kink
        h = rnn.psi(z, activation)
    slopes = 1 - h**2 if activation == "tanh" else rnn.psi_prime(z, activation)
    dh = rnn.gradient_h(W, z, direct, activation)
    dz = slopes * dh
    h_prev = np.vstack([h_0, h[:-1]])
    right = dz.T @ h_prev if by_weights else dh[0]
    given = [f"d_{t} = {row(d)}" for t, d in enumerate(direct, start=1)]
    if activation == "tanh":
        given += [f"h_{t} = {row(v)}" for t, v in enumerate(h, start=1)]
    elif activation == "relu":
        given += [f"z_{t} = {row(v)}" for t, v in enumerate(z, start=1)]
    elif by_weights:
        given += [f"h_1 = {row(h[0])}"]
    if by_weights:
        given.append(f"h_0 = {row(h_0)}")
    what = "dL/dW_hh" if by_weights else "dL/dh_1"
    mistakes = _recurrent_mistakes(W, slopes, direct, dh, dz, h, h_prev, by_weights)
    return Question(
        [
            Text(
                f"`z_t = W_hh h_{{t-1}} + W_hx x_t`, `h_t = ψ(z_t)` for t = 1 to {T}, with {PSI[activation]}. "
                f"From its own output each h_t receives the gradient d_t = W_hyᵀ dL/do_t directly. What is {what}?"
            ),
            Lines(packed(matrix("W_hh", W), given)),
        ],
        NumbersAnswer(what, right, whole=activation != "tanh", mistakes=told_apart(right, *mistakes)),
        _recurrent_steps(W, slopes, direct, dh, dz, h_prev, activation, by_weights),
    )


def by_logits(rng: np.random.Generator) -> Question:
    """Of softmax with cross-entropy, dL/ds."""
    counts, target = _counts(rng, int(rng.integers(3, 5)))
    s = np.log(counts)
    right = cross_entropy_gradient(s, np.array(target))
    p = softmax(s)
    return Question(
        [
            Text(
                f"The logits are s, and the true token is number {target + 1} of {len(s)}. What is the "
                "gradient dL/ds of "
                "the cross-entropy `L = -log softmax(s)[y]`?"
            ),
            Lines([f"s = {_logs(counts)}"]),
        ],
        NumbersAnswer("dL/ds", right, mistakes=told_apart(right, *_softmax_mistakes(p, target))),
        [*_softmax_steps(counts, target)],
    )


def by_weights(rng: np.random.Generator) -> Question:
    """Of softmax with cross-entropy, dL/dW where s = W h."""
    counts, target = _counts(rng, 3)
    h = rng.choice([-2.0, -1, 1, 2, 3], 2)
    s = np.log(counts)
    ds = cross_entropy_gradient(s, np.array(target))
    right = np.outer(ds, h)
    p = softmax(s)
    return Question(
        [
            Text(
                f"The logits are s = W h, and the true token is number {target + 1} of 3. What is the "
                "gradient dL/dW of the "
                "cross-entropy `L = -log softmax(s)[y]`, shaped as W is?"
            ),
            Lines([f"h = {row(h)}", f"s = {_logs(counts)}"]),
        ],
        NumbersAnswer(
            "dL/dW",
            right,
            mistakes=told_apart(
                right,
                (np.outer(p, h), "p hᵀ: the true token's 1 is not subtracted"),
                (np.outer(h, ds), "its transpose"),
                (-right, "with the opposite sign"),
            ),
        ),
        [
            *_softmax_steps(counts, target),
            Text("Row by column, `dL/dW = dL/ds hᵀ`: row j is the j-th entry of dL/ds, times h."),
            Lines([f"row {j + 1} = {fraction(ds[j])} · {row(h)} = {fractions(right[j])}" for j in range(3)]),
            Lines(fraction_matrix("dL/dW", right)),
        ],
    )


def of_softmax_alone(rng: np.random.Generator) -> Question:
    """dL/ds from any dL/dp."""
    counts, _ = _counts(rng, 3)
    p = counts / counts.sum()
    dp = rng.integers(-4, 5, 3).astype(float)
    right = softmax_gradient(p, dp)
    mean = float(p @ dp)
    return Question(
        [
            Text("Softmax gave p = softmax(s), and the gradient by its output is dp = dL/dp. What is dL/ds?"),
            Lines([f"p  = {fractions(p)}", f"dp = {row(dp)}"]),
        ],
        NumbersAnswer(
            "dL/ds",
            right,
            mistakes=told_apart(
                right,
                (p * dp, "p ∘ dp, without what all entries subtract: p · dp"),
                (p * (1 - p) * dp, "the diagonal of the Jacobian alone"),
                (dp - mean, "without the factor p"),
                (p - dp, "p - dp, but dp is no one-hot vector here"),
            ),
        ),
        [
            Text("`dL/ds_j = p_j (dp_j - Σ_k p_k dp_k)`. The sum first, then each entry:"),
            Lines(
                [
                    "p · dp = "
                    + " + ".join(f"{fraction(a)}·{factor(b)}" for a, b in zip(p, dp, strict=True))
                    + f" = {fraction(mean)}",
                    *(
                        f"dL/ds_{j + 1} = {fraction(p[j])}·({number(dp[j])} - {fraction_factor(mean)}) = "
                        f"{fraction(right[j])}"
                        for j in range(3)
                    ),
                ]
            ),
            Lines([f"dL/ds = {fractions(right)}"]),
        ],
    )


def _counts(rng: np.random.Generator, size: int) -> tuple[np.ndarray, int]:
    """exp(s), whole numbers, so that the probabilities are fractions; and the true token."""
    return rng.integers(1, 7, size).astype(float), int(rng.integers(size))


def _logs(counts: np.ndarray) -> str:
    return "(" + ", ".join("0" if c == 1 else f"log {c:g}" for c in counts) + ")"


def _softmax_mistakes(p: np.ndarray, target: int) -> list[tuple[np.ndarray, str]]:
    onehot = np.eye(len(p))[target]
    return [
        (p, "softmax(s) alone: the true token's 1 is not subtracted"),
        (onehot - p, "with the opposite sign"),
        (-onehot / p, "dL/dp, not dL/ds"),
        (p - np.roll(onehot, 1), "with the 1 subtracted from another token: tokens are counted from 1 here"),
        (p - np.roll(onehot, -1), "with the 1 subtracted from another token: tokens are counted from 1 here"),
    ]


def _softmax_steps(counts: np.ndarray, target: int) -> list[PageBlock]:
    total = counts.sum()
    p = counts / total
    onehot = np.eye(len(p))[target]
    added = " + ".join(f"{c:g}" for c in counts)
    return [
        Text("`dL/ds = softmax(s) - onehot(y)`. The exponentials and their sum:"),
        Lines([f"exp(s) = {row(counts)}", f"sum = {added} = {total:g}"]),
        Text("The probabilities are the exponentials divided by their sum; 1 is subtracted from the true token's."),
        Lines(
            [f"p = {fractions(p)}", f"onehot(y) = {row(onehot)}", f"dL/ds = p - onehot(y) = {fractions(p - onehot)}"]
        ),
    ]


def _recurrent_mistakes(
    W: np.ndarray,
    slopes: np.ndarray,
    direct: np.ndarray,
    dh: np.ndarray,
    dz: np.ndarray,
    h: np.ndarray,
    h_prev: np.ndarray,
    by_weights: bool,
) -> list[tuple[np.ndarray | float | None, str]]:
    if by_weights:
        return [
            ((slopes * direct).T @ h_prev, "without what reaches h_1 by way of h_2"),
            (
                np.outer(dz[0], h_prev[0]),
                "the first step's share alone: the steps share W_hh, and their gradients add up",
            ),
            (
                np.outer(dz[-1], h_prev[-1]),
                "the last step's share alone: the steps share W_hh, and their gradients add up",
            ),
            (dz.T @ h, "with h_t in place of h_{t-1}"),
            (dh.T @ h_prev, "without ψ'"),
            (h_prev.T @ dz, "its transpose"),
        ]
    untransposed = without_slopes = direct[-1]
    for t in range(len(direct) - 1, 0, -1):
        untransposed = direct[t - 1] + W @ (slopes[t] * untransposed)
        without_slopes = direct[t - 1] + W.T @ without_slopes
    return [
        (untransposed, "with W_hh in place of its transpose"),
        (without_slopes, "without ψ'"),
        (direct[0], "the direct gradient alone: h_1 acts on the later steps too"),
        (direct.sum(axis=0), "without W_hh: the later gradients come back through it"),
        (dh[0] - direct[0], "without the direct gradient d_1"),
        (direct[0] + W.T @ (slopes[1] * direct[1]), "the sum of two steps only: h_1 acts on the third as well"),
        (dz[0], "dL/dz_1: ψ'(z_1) lies below h_1, not above it"),
    ]


def _recurrent_steps(
    W: np.ndarray,
    slopes: np.ndarray,
    direct: np.ndarray,
    dh: np.ndarray,
    dz: np.ndarray,
    h_prev: np.ndarray,
    activation: str,
    by_weights: bool,
) -> list[PageBlock]:
    T = len(direct)
    steps: list[PageBlock] = [
        Text(
            f"From the last step to the first: `dL/dh_t = d_t + W_hhᵀ dL/dz_{{t+1}}`, `dL/dz_t = ψ'(z_t) ∘ "
            "dL/dh_t`, with "
            f"{SLOPE[activation]}. The last step has no next."
        )
    ]
    for t in range(T, 0, -1):
        lines = []
        if t == T:
            lines.append(f"dL/dh_{t} = d_{t} = {row(dh[t - 1])}")
        else:
            back = W.T @ dz[t]
            lines += [
                f"W_hhᵀ dL/dz_{t + 1} = {row(back)}",
                f"dL/dh_{t} = {row(direct[t - 1])} + {row(back)} = {row(dh[t - 1])}",
            ]
        if t > 1 or by_weights:
            lines += [f"dL/dz_{t} = {row(slopes[t - 1])} ∘ {row(dh[t - 1])} = {row(dz[t - 1])}"]
        steps.append(Lines(lines))
    if not by_weights:
        if activation == "identity":
            powers = [np.linalg.matrix_power(W.T, t) @ d for t, d in enumerate(direct)]
            steps += [
                Text("Written as one sum, `dL/dh_1 = Σ_t (W_hhᵀ)^{t-1} d_t`:"),
                Lines([f"dL/dh_1 = {' + '.join(map(row, powers))} = {row(np.sum(powers, axis=0))}"]),
            ]
        return steps
    shares = [np.outer(dz[t], h_prev[t]) for t in range(T)]
    return [
        *steps,
        Text(
            "Each step's share is a column times a row, `dL/dz_t h_{t-1}ᵀ`; all steps use the same W_hh, so "
            "they add up:"
        ),
        *(
            Lines([f"step {t}: {row(dz[t - 1])}ᵀ {row(h_prev[t - 1])}", *matrix("      ", share)])
            for t, share in enumerate(shares, start=1)
        ),
        Lines(matrix("dL/dW_hh", np.sum(shares, axis=0))),
    ]
