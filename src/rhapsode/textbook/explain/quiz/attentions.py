"""Questions: the gradients of causal attention whose weights are given as fractions."""

from dataclasses import dataclass

import numpy as np

from rhapsode.textbook import attention as att
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

D_K = 4  # its root is a whole number


@dataclass(frozen=True)
class Case:
    """One attention forward and backward: forward.A are the fractions, known is the Q or K that is shown."""

    forward: att.Attention
    known: np.ndarray
    dO: np.ndarray
    dA: np.ndarray
    row_sums: np.ndarray  # (T, 1): Σ_n A[t, n] dA[t, n]
    dS: np.ndarray


def gradient(wanted: str, rng: np.random.Generator) -> Question:
    """dL/dV, dL/dS, dL/dQ or dL/dK, by the letter wanted."""
    T = int(rng.integers(2, 4)) if wanted == "V" else 2
    case = _case(rng, T, wanted)
    f, dA, dS, root = case.forward, case.dA, case.dS, np.sqrt(D_K)
    dQ, dK, dV = att.attend_gradients(f, case.dO)
    right = {"V": dV, "S": dS, "Q": dQ, "K": dK}[wanted]
    unsummed = f.A * dA
    mistakes = {
        "V": [
            (f.A @ case.dO, "A dO: the weights carry the gradient back transposed"),
            (case.dO, "dO itself: the weights are missing"),
        ],
        "S": [
            (unsummed, "A ∘ dA, without the sum of each row"),
            (dA, "dA: the softmax is missing"),
            (f.A * (dA - unsummed.sum(axis=0)), "with the sums of the columns: the softmax is over each row"),
            (f.A - dA, "A - dA, but dA is no one-hot vector here"),
        ],
        "Q": [
            (dQ * root, "without 1 / √d_k"),
            (dS.T @ f.K / root, "dSᵀ K / √d_k: for the queries, dS is not transposed"),
            (unsummed @ f.K / root, "with A ∘ dA for dS, without the sum of each row"),
        ],
        "K": [
            (dK * root, "without 1 / √d_k"),
            (dS @ f.Q / root, "dS Q / √d_k: for the keys, dS is transposed"),
            (unsummed.T @ f.Q / root, "with A ∘ dA for dS, without the sum of each row"),
        ],
    }[wanted]
    given = [fraction_matrix("A", f.A), matrix("dO", case.dO)]
    if wanted != "V":
        given.append(matrix("V", f.V))
    if wanted in "QK":
        given.append(matrix("K" if wanted == "Q" else "Q", case.known))
    size = f" with d_k = {D_K}" if wanted in "QK" else ""
    return Question(
        [
            Text(
                f"Causal attention over {T} positions, `S = Q Kᵀ / √d_k`{size}, `A = softmax(S)` over each "
                "row, `O = A V`, gave "
                f"the weights A. The gradient of the loss by the output is dO = dL/dO. What is d{wanted} = "
                f"dL/d{wanted}?"
            ),
            Lines(packed(*given)),
        ],
        NumbersAnswer(f"d{wanted}", right, mistakes=told_apart(right, *mistakes)),
        _value_steps(case, dV) if wanted == "V" else _score_steps(case) + _last_step(wanted, case, right),
    )


def _case(rng: np.random.Generator, T: int, wanted: str) -> Case:
    """Weights first, as fractions; Q or K at random; then the other so that softmax(Q Kᵀ / √d_k) gives the weights."""
    counts = np.tril(rng.integers(1, 5, (T, T))).astype(float)
    dO, V = (rng.choice([-3.0, -2, -1, 1, 2, 3], (T, 2)) for _ in range(2))
    known = rng.integers(-3, 4, (T, D_K)).astype(float)
    while np.linalg.matrix_rank(known) < T:
        known = rng.integers(-3, 4, (T, D_K)).astype(float)
    products = np.log(np.where(counts > 0, counts, 1)) * np.sqrt(D_K)
    inverse = np.linalg.pinv(known)  # known @ inverse = 1
    forward = (
        att.attend(known, (inverse @ products).T, V) if wanted == "K" else att.attend(products @ inverse.T, known, V)
    )
    dA = dO @ V.T
    row_sums = (forward.A * dA).sum(axis=1, keepdims=True)
    return Case(forward, known, dO, dA, row_sums, forward.A * (dA - row_sums))


def _value_steps(case: Case, dV: np.ndarray) -> list[PageBlock]:
    A, dO = case.forward.A, case.dO
    T = len(A)
    lines = [
        f"row {n + 1} = "
        + " + ".join(f"{fraction(A[t, n])}·{row(dO[t])}" for t in range(n, T))
        + f" = {fractions(dV[n])}"
        for n in range(T)
    ]
    return [
        Text(
            "`dV = Aᵀ dO`: value n gets a share of the gradient of each position t ≥ n, as large as its weight there, "
            "A[t, n]."
        ),
        Lines(lines),
        Lines(fraction_matrix("dV", dV)),
    ]


def _score_steps(case: Case) -> list[PageBlock]:
    A, dA, sums, dS = case.forward.A, case.dA, case.row_sums[:, 0], case.dS
    products, entries = [], []
    for t in range(len(A)):
        terms = " + ".join(f"{fraction(A[t, n])}·{factor(dA[t, n])}" for n in range(t + 1))
        products.append(f"r_{t + 1} = {terms} = {fraction(sums[t])}")
        entries += [
            f"dS[{t + 1},{n + 1}] = {fraction(A[t, n])}·({number(dA[t, n])} - {fraction_factor(sums[t])}) "
            f"= {fraction(dS[t, n])}"
            for n in range(t + 1)
        ]
    return [
        Text("`dA = dO Vᵀ`, the gradient by each weight:"),
        Lines(matrix("dA", dA)),
        Text("`dS = A ∘ (dA - r)`, where r_t = Σ_n A[t, n] dA[t, n] is a sum over row t; 0 where A is 0."),
        Lines([*products, *entries]),
        Lines(fraction_matrix("dS", dS)),
    ]


def _last_step(wanted: str, case: Case, right: np.ndarray) -> list[PageBlock]:
    if wanted == "S":
        return []
    formula, name, dS = (
        ("dQ = dS K / √d_k", "dS", case.dS) if wanted == "Q" else ("dK = dSᵀ Q / √d_k", "dSᵀ", case.dS.T)
    )
    return [
        Text(f"`{formula}`, where √d_k = {number(np.sqrt(D_K))}:"),
        Lines(packed(fraction_matrix(name, dS), matrix("K" if wanted == "Q" else "Q", case.known))),
        Lines(fraction_matrix(f"d{wanted}", right)),
    ]
