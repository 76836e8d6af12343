"""Worked example: one prediction of a copy head, from scores to the mixture, its loss and its gradients."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rhapsode.textbook import copying as chapter
from rhapsode.textbook.explain import drawing
from rhapsode.textbook.explain.page import (
    Heading,
    Illustration,
    Lines,
    PageBlock,
    Text,
    WorkedExample,
    agreement,
    number,
    row,
    table,
)
from rhapsode.textbook.residual import sigmoid
from rhapsode.textbook.softmax import softmax

NAMES = ("the", "cat", "Pia", "saw", "her")
TOKENS = np.array([2, 3, 0, 1, 2])  # Pia saw the cat Pia
SCORES = np.array([2.0, -1.0, 0.0, 0.0, 1.0])
LOGITS = np.array([1.0, 0.0, -1.0, 2.0, 0.0])
GATE, TARGET = 0.0, 2
STEP = 1e-6  # of central differences


def copying(
    tokens: np.ndarray = TOKENS,
    scores: np.ndarray = SCORES,
    logits: np.ndarray = LOGITS,
    gate: float = GATE,
    target: int = TARGET,
    names: Sequence[str] | None = None,
) -> WorkedExample:
    """tokens w (S,), ids below V; scores s (S,) of one prediction; logits z (V,) of the vocabulary; gate u; target y.

    names: of the V words; their ids if None. Raises ValueError for what does not belong together.
    """
    V = len(logits)
    if len(scores) != len(tokens):
        raise ValueError(f"scores: one for each of the {len(tokens)} tokens is needed, got {len(scores)}")
    for name, ids in (("tokens", tokens), ("target", np.array([target]))):
        if ids.min() < 0 or ids.max() >= V:
            raise ValueError(f"{name} must be >= 0 and below {V}, the number of logits, got {_outside(ids, V)}")
    if names is None:
        names = NAMES if logits is LOGITS else [str(id) for id in range(V)]
    if len(names) != V:
        raise ValueError(f"names: one for each of the {V} logits is needed, got {len(names)}")

    z, u, s, y = logits[None], np.array([gate]), scores[None], np.array([target])
    A, vocabulary, g = softmax(scores), softmax(logits), float(sigmoid(u)[0])
    c = chapter.copy_distribution(A[None], tokens, V)[0]
    p = chapter.mixture(z, u, c[None])[0]
    loss = float(chapter.mixture_loss(z, u, s, tokens, y)[0])
    dz, du, ds = (gradient[0] for gradient in chapter.mixture_gradients(z, u, s, tokens, y))
    r = g * c[target] / p[target]
    hits = np.where(tokens == target, A, 0)
    rho = hits / c[target] if c[target] > 0 else hits
    places = np.flatnonzero(tokens == target)
    stands = ", ".join(str(place + 1) for place in places) or "nowhere"
    blocks: list[PageBlock] = [
        Text("`p(w) = (1 - g) softmax(z)(w) + g c(w)`: a word is chosen from the vocabulary, or copied from a place."),
        Heading("1. Where to copy from"),
        Lines(
            table(
                ["n", "w_n", "s_n", "A_n"],
                [
                    [str(n + 1), names[id], number(score), number(weight)]
                    for n, (id, score, weight) in enumerate(zip(tokens, scores, A, strict=True))
                ],
                left=2,
            )
        ),
        Text("`c(w)` is the sum of `A_n` over the places where w stands."),
        Heading("2. The mixture"),
        Lines(
            [
                f"g = σ({number(gate)}) = {number(g)}",
                "",
                *table(
                    ["w", "softmax(z)", "c", "p"],
                    [
                        [name, *(number(value) for value in line)]
                        for name, line in zip(names, np.stack([vocabulary, c, p], axis=1), strict=True)
                    ],
                ),
            ]
        ),
        Heading(f"3. The loss of {names[target]!r}"),
        Lines(
            [
                f"ℓ = -log({number(1 - g)}·{number(vocabulary[target])} + {number(g)}·{number(c[target])})"
                f" = -log {number(p[target])} = {number(loss)}",
                f"it stands at: {stands}",
                f"r = g c(y) / p(y) = {number(r)}    the share of it that was copied",
            ]
        ),
        Heading("4. Its gradients"),
        Lines(
            [
                f"dℓ/dz   = (1 - r)(softmax(z) - onehot(y)) = {row(dz)}",
                f"dℓ/du   = g - r = {number(du)}",
                f"ρ       = {row(rho)}",
                f"dℓ/ds_n = r (A_n - ρ_n) = {row(ds)}",
            ]
        ),
        Text(
            "The largest difference from central differences is "
            f"{agreement(_difference(z, u, s, tokens, y, (dz, du, ds)), 1e-8)}."
        ),
        Illustration(
            "What each word gets from the vocabulary and from copying.",
            lambda canvas: _draw(canvas, list(names), (1 - g) * vocabulary, g * c),
            (7.0, 3.2),
        ),
    ]
    return WorkedExample("A copy head: one prediction", blocks)


def _outside(ids: np.ndarray, V: int) -> int:
    return int(ids.min() if ids.min() < 0 else ids.max())


def _difference(
    z: np.ndarray, u: np.ndarray, s: np.ndarray, tokens: np.ndarray, y: np.ndarray, found: tuple[np.ndarray, ...]
) -> float:
    """The largest difference between the gradients and central differences."""
    worst = 0.0
    for n, gradient in enumerate(found):
        for i in np.ndindex((z, u, s)[n].shape):
            losses = []
            for sign in (1, -1):
                parts = [part.astype(np.float64) for part in (z, u, s)]
                parts[n][i] += sign * STEP
                moved_z, moved_u, moved_s = parts
                losses.append(float(chapter.mixture_loss(moved_z, moved_u, moved_s, tokens, y)[0]))
            expected = (losses[0] - losses[1]) / (2 * STEP)
            worst = max(worst, abs(expected - float(np.atleast_1d(gradient)[i[-1]])))
    return worst


def _draw(canvas: Any, names: list[str], chosen: np.ndarray, copied: np.ndarray) -> None:
    axes = canvas.subplots()
    places = np.arange(len(names))
    axes.bar(places, chosen, color=drawing.SECOND, label="(1 - g) softmax(z)")
    axes.bar(places, copied, bottom=chosen, color=drawing.ACCENT, label="g c")
    axes.set_xticks(places, names)
    axes.set_ylabel("p")
    axes.legend(frameon=False)
