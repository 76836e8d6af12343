"""Worked example: how Muon makes an update orthogonal, beside the polar factor that an SVD gives."""

from typing import Any

import numpy as np

from rhapsode.textbook import optimizer as chapter
from rhapsode.textbook.explain import drawing
from rhapsode.textbook.explain.page import (
    Heading,
    Illustration,
    Lines,
    PageBlock,
    Text,
    WorkedExample,
    agreement,
    beside,
    factor,
    matrix,
    number,
    row,
    table,
)

UPDATE = np.array([[3.0, 0.0], [4.0, 0.5]])
MOST_STEPS = 100


def muon(
    update: np.ndarray = UPDATE,
    steps: int = 5,
    coefficients: np.ndarray | None = None,
    learning_rate: float = 0.02,
) -> WorkedExample:
    """update U (m, n), a gradient after its momentum; coefficients (a, b, c), Muon's if None.

    Raises ValueError for other than three coefficients, for steps below 1 or above MOST_STEPS, for a learning_rate
    that is not positive, and for an update without a direction: all zeros, or too large to be squared.
    """
    given = chapter.MUON if coefficients is None else coefficients
    if len(given) != 3:
        raise ValueError(f"coefficients must be three numbers a b c, got {len(given)}")
    if not 1 <= steps <= MOST_STEPS:
        raise ValueError(f"steps must be between 1 and {MOST_STEPS}, got {steps}")
    if not learning_rate > 0:
        raise ValueError(f"learning_rate must be > 0, got {learning_rate}")
    with np.errstate(over="ignore"):
        length = float(np.linalg.norm(update))
    if not 0 < length < np.inf:
        raise ValueError(f"update must have a finite length above 0, got {length}")
    a, b, c = abc = (float(given[0]), float(given[1]), float(given[2]))
    with np.errstate(over="ignore", invalid="ignore"):
        found = chapter.newton_schulz(update, abc, steps)
        slow = chapter.newton_schulz(update, chapter.CONVERGING, steps)
    if not np.isfinite(found[-1]).all():
        raise ValueError(f"coefficients {row(np.array(abc))}: the iteration grows without end")

    sigma = np.linalg.svd(update, compute_uv=False)
    polar = chapter.polar_factor(update)
    X = found[0]
    gram = X @ X.T
    m, n = update.shape
    scale = float(np.sqrt(max(1, m / n)))
    measured = np.array([np.linalg.svd(step, compute_uv=False) for step in found])
    through = np.array([chapter.singular_value_map(measured[0], abc, k) for k in range(steps + 1)])
    # An SVD sorts its values; the polynomial may change their order.
    differing = float(np.abs(np.sort(np.abs(through)) - np.sort(measured)).max())
    blocks: list[PageBlock] = [
        Text(
            "`X ← U / ‖U‖`, then `X ← a X + b (X Xᵀ) X + c (X Xᵀ)² X`: the directions of U stay, its singular "
            f"values σ each go through `p(σ) = {number(a)} σ + {factor(b)} σ³ + {factor(c)} σ⁵`."
        ),
        Lines(matrix("U", update)),
        Heading("1. What an SVD says"),
        Lines(
            [
                f"σ = {row(sigma)}",
                "",
                *matrix("P Qᵀ", polar),
            ]
        ),
        Text(
            "`P Qᵀ`, the polar factor, is U with every σ set to 1. Muon comes near it with products of matrices alone."
        ),
        Heading("2. The first step"),
        Lines(
            [
                f"‖U‖ = {number(length)}",
                "",
                *beside(matrix("X", X), matrix("X Xᵀ", gram)),
                "",
                *beside(matrix("(X Xᵀ) X", gram @ X), matrix("(X Xᵀ)² X", gram @ gram @ X)),
                "",
                *matrix(f"{number(a)} X + {factor(b)} (X Xᵀ) X + {factor(c)} (X Xᵀ)² X", found[1]),
            ]
        ),
        Heading("3. Step by step"),
        Text(
            "The singular values, and the largest difference of X from P Qᵀ; beside it that of the coefficients "
            "(15, -10, 3) / 8, which converge:"
        ),
        Lines(
            table(
                ["step", *(f"σ_{i + 1}" for i in range(len(sigma))), "from P Qᵀ", "(15, -10, 3) / 8"],
                [
                    [
                        str(k),
                        *(number(value) for value in measured[k]),
                        number(np.abs(found[k] - polar).max()),
                        number(np.abs(slow[k] - polar).max()),
                    ]
                    for k in range(steps + 1)
                ],
            )
        ),
        Text(
            "The singular values are those that the polynomial alone makes of σ / ‖U‖; the largest difference is "
            f"{agreement(differing, 1e-9)}."
        ),
        Heading("4. The step of the weights"),
        Lines(
            [
                *beside(matrix("O(U)", found[-1]), matrix("P Qᵀ", polar)),
                "",
                f"√max(1, m/n) = √max(1, {m}/{n}) = {number(scale)}",
                *matrix(f"-{number(learning_rate)}·{number(scale)}·O(U)", -learning_rate * scale * found[-1]),
            ]
        ),
        Illustration(
            "What the steps make of a singular value between 0 and 1, and of those of U (dots).",
            lambda canvas: _draw(canvas, sigma / length, abc, steps),
            (9.0, 3.4),
        ),
    ]
    return WorkedExample("Muon: an update made orthogonal", blocks)


def _draw(canvas: Any, sigma: np.ndarray, coefficients: tuple[float, float, float], steps: int) -> None:
    axes = canvas.subplots(1, 2, sharey=True)
    settings = ((coefficients, row(np.array(coefficients))), (chapter.CONVERGING, "(15, -10, 3) / 8"))
    for ax, (abc, name) in zip(axes, settings, strict=True):
        for k in sorted({1, 2, steps}):
            line = np.linspace(0, 1, 301)
            shade = 0.3 + 0.7 * k / max(steps, 2)
            ax.plot(
                line, chapter.singular_value_map(line, abc, k), color=drawing.SECOND, alpha=min(1, shade), linewidth=1.2
            )
        ax.plot(sigma, chapter.singular_value_map(sigma, abc, steps), "o", color=drawing.ACCENT, markersize=5)
        ax.axhline(1, color=drawing.INK, linewidth=0.8, linestyle=":")
        drawing.bare_axes(ax, name, "σ / ‖U‖", "after the steps" if ax is axes[0] else "")
