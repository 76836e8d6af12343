"""Worked examples: RMSNorm, and a residual block with what the sum does for the gradient."""

from collections.abc import Callable
from typing import Any

import numpy as np

from rhapsode.textbook import residual as chapter
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

ROWS, SCALE = np.array([[7.0, -1.0], [14.0, -2.0], [0.3, 0.4]]), np.array([1.0, 0.5])
INPUTS = np.array([7.0, -1.0])
W_1 = np.array([[0.5, 0.5], [0.0, 0.5], [0.5, -0.5]])
W_2 = np.array([[0.5, 1.0, 1.0], [1.0, 0.0, 0.0]])
STEP = 1e-6  # of central differences, as a share of r
MOST_LAYERS = 1000


def rmsnorm(
    inputs: np.ndarray = ROWS,
    scale: np.ndarray | None = None,
    output_gradient: np.ndarray | None = None,
) -> WorkedExample:
    """inputs x, one in each row (rows, D); scale w (D,), ones if None; output_gradient like inputs, or the identity's
    rows if None. Raises ValueError for shapes that differ.
    """
    count, D = inputs.shape
    if scale is None:
        scale = SCALE if inputs is ROWS else np.ones(D)
    if len(scale) != D:
        raise ValueError(f"scale must have {D} numbers, one for each column of inputs, got {len(scale)}")
    if output_gradient is None:
        output_gradient = np.eye(D)[np.arange(count) % D]
    if output_gradient.shape != inputs.shape:
        wanted, got = ("x".join(map(str, a.shape)) for a in (inputs, output_gradient))
        raise ValueError(f"output_gradient must be {wanted} like inputs, got {got}")

    n = chapter.rms_norm(inputs, scale)
    dx, dw = chapter.rms_norm_gradients(inputs, scale, output_gradient)
    blocks: list[PageBlock] = [
        Text("`n(x) = x / r ∘ w` with `r = √(mean_i x_i² + ε)`: each row by itself, whatever the others are."),
        Lines([*matrix("x", inputs), "", f"w = {row(scale)}"]),
    ]
    for i, x in enumerate(inputs):
        g = output_gradient[i]
        r = float(chapter.root_mean_square(x)[0])
        x_hat = x / r
        squares = " + ".join(f"{factor(v)}²" for v in x)
        mean = float((g * scale * x_hat).mean())
        blocks += [
            Heading(f"Row {i + 1}"),
            Lines(
                [
                    f"r    = √(({squares}) / {D}) = {number(r)}",
                    f"x̂    = x / r = {row(x_hat)}",
                    f"n(x) = x̂ ∘ w = {row(n[i])}",
                    "",
                    f"g = dL/dn        = {row(g)}",
                    f"g ∘ w            = {row(g * scale)}",
                    f"mean(g ∘ w ∘ x̂)  = {number(mean)}",
                    f"dL/dx            = (g ∘ w - {factor(mean)} x̂) / {number(r)} = {row(dx[i])}",
                    f"x · dL/dx        = {number(float(x @ dx[i]))}",
                ]
            ),
        ]
    blocks += [
        Text("Each row's gradient is orthogonal to it: a longer x changes nothing."),
        Heading("The gradient of the scale, a sum over the rows"),
        Lines([f"dL/dw = Σ_rows g ∘ x̂ = {row(dw)}"]),
        Text(
            "The largest difference from central differences, as a share of the largest gradient, is "
            f"{agreement(_norm_difference(inputs, scale, output_gradient, dx, dw), 1e-6)}."
        ),
        Illustration(
            "A row that is a multiple of another gives the same n(x), and a gradient as many times smaller.",
            lambda canvas: _draw_norm(canvas, inputs, n, dx),
            (9.0, 1.2 + 0.5 * count),
        ),
    ]
    return WorkedExample("RMSNorm, row by row", blocks)


def residual(
    inputs: np.ndarray = INPUTS,
    w_1: np.ndarray = W_1,
    w_2: np.ndarray = W_2,
    output_gradient: np.ndarray | None = None,
    layers: int = 12,
) -> WorkedExample:
    """inputs x (D,), w_1 (M, D), w_2 (D, M), output_gradient (D,), the first unit vector if None.

    Raises ValueError for shapes that differ, inputs of zeros, and layers below 1 or above MOST_LAYERS.
    """
    D = len(inputs)
    g = np.eye(D)[0] if output_gradient is None else output_gradient
    if w_1.shape[1] != D:
        raise ValueError(f"w_1 must have {D} columns, one for each input, got {w_1.shape[1]}")
    if w_2.shape != (D, len(w_1)):
        raise ValueError(
            f"w_2 must be {D}x{len(w_1)}, back from w_1's rows to the inputs, got {w_2.shape[0]}x{w_2.shape[1]}"
        )
    if len(g) != D:
        raise ValueError(f"output_gradient must have {D} numbers like inputs, got {len(g)}")
    if not inputs.any():
        raise ValueError("inputs must not be all zeros: their norm has no direction")
    if not 1 <= layers <= MOST_LAYERS:
        raise ValueError(f"layers must be between 1 and {MOST_LAYERS}, got {layers}")

    w = np.ones(D)
    n, r = chapter.rms_norm(inputs, w), float(chapter.root_mean_square(inputs)[0])
    a = w_1 @ n
    s = chapter.squared_relu(a)
    y = w_2 @ s
    ds = w_2.T @ g
    da = ds * chapter.squared_relu_prime(a)
    dn = w_1.T @ da
    through, _ = chapter.rms_norm_gradients(inputs, w, dn)
    kept, lost = _gradients(inputs, w_1, w_2, g, layers, True), _gradients(inputs, w_1, w_2, g, layers, False)
    lengths = [[float(np.linalg.norm(v)) for v in gradients] for gradients in (kept, lost)]
    blocks: list[PageBlock] = [
        Text("`x ← x + f(n(x))` with `f(u) = W_2 relu(W_1 u)²`; scale 1 and no biases here."),
        Lines(
            [
                f"x = {row(inputs)}",
                "",
                *beside(matrix("W_1", w_1), matrix("W_2", w_2)),
            ]
        ),
        Heading("1. Forward"),
        Lines(
            [
                f"u = n(x)       = {row(n)}",
                f"a = W_1 u      = {row(a)}",
                f"s = relu(a)²   = {row(s)}",
                f"y = W_2 s      = {row(y)}",
                f"x + y          = {row(inputs + y)}",
            ]
        ),
        Heading("2. Backward: two ways from the sum to x"),
        Lines(
            [
                f"g = dL/d(x + y)     {row(g)}",
                "",
                f"past the layer      {row(g)}",
                "",
                "through the layer",
                f"  dL/ds = W_2ᵀ g                              {row(ds)}",
                f"  dL/da = dL/ds ∘ 2 relu(a)                   {row(da)}",
                f"  dL/du = W_1ᵀ dL/da                          {row(dn)}",
                f"  then  (dL/du - u mean(dL/du ∘ u)) / r       {row(through)}    with r = {number(r)}",
                "",
                f"dL/dx = {row(g)} + {row(through)} = {row(g + through)}",
            ]
        ),
        Text(
            "The largest difference from central differences, as a share of the largest gradient, is "
            f"{agreement(_block_difference(inputs, w_1, w_2, g, g + through), 1e-6)}."
        ),
        Heading(f"3. {layers} such layers, one on the other"),
        Text(
            "The length of the gradient of each layer's x, from the top down; with the sum g arrives at the bottom, "
            "without it each layer's derivative multiplies what is left."
        ),
        Lines(
            table(
                ["layer's x", "with the sum", "without"],
                [
                    [f"x_{layers - i}", number(with_sum), number(without)]
                    for i, (with_sum, without) in enumerate(zip(*lengths, strict=True))
                ],
            )
        ),
        Illustration(
            "What reaches each layer of the gradient at the top.",
            lambda canvas: _draw_lengths(canvas, *lengths),
            (8.0, 3.4),
        ),
    ]
    return WorkedExample("A residual block, and a stack of them", blocks)


def _block(x: np.ndarray, w_1: np.ndarray, w_2: np.ndarray) -> np.ndarray:
    """The layer's answer f(n(x)), without the sum."""
    return w_2 @ chapter.squared_relu(w_1 @ chapter.rms_norm(x, np.ones(len(x))))


def _gradients(
    x: np.ndarray, w_1: np.ndarray, w_2: np.ndarray, g: np.ndarray, layers: int, with_sum: bool
) -> list[np.ndarray]:
    """dL/dx_l for l = layers, …, 0, where the same layer stands on itself and x is what it begins with."""
    jacobians, w = [], np.ones(len(x))
    for _ in range(layers):
        slope = chapter.squared_relu_prime(w_1 @ chapter.rms_norm(x, w))
        dn = (w_2 * slope) @ w_1  # row k: the gradient of the answer's entry k by n
        jacobians.append(np.array([chapter.rms_norm_gradients(x, w, line)[0] for line in dn]))
        x = _block(x, w_1, w_2) + (x if with_sum else 0)
    return chapter.residual_gradient(jacobians, g, with_sum)


def _norm_difference(x: np.ndarray, w: np.ndarray, g: np.ndarray, dx: np.ndarray, dw: np.ndarray) -> float:
    """The largest difference of both gradients from central differences, as a share of the largest entry of each."""
    steps = STEP * np.repeat(chapter.root_mean_square(x), x.shape[1], axis=1)
    by_x = _central(lambda other: float((g * chapter.rms_norm(other, w)).sum()), x, steps)
    by_w = _central(lambda other: float((g * chapter.rms_norm(x, other)).sum()), w, np.full_like(w, STEP))
    return max(_share(by_x, dx), _share(by_w, dw))


def _block_difference(x: np.ndarray, w_1: np.ndarray, w_2: np.ndarray, g: np.ndarray, dx: np.ndarray) -> float:
    steps = np.full_like(x, STEP * float(chapter.root_mean_square(x)[0]))
    return _share(_central(lambda other: float(g @ (other + _block(other, w_1, w_2))), x, steps), dx)


def _central(f: Callable[[np.ndarray], float], values: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Central differences, with a step of its own for each entry."""
    gradient = np.zeros_like(values)
    for index in np.ndindex(values.shape):
        moved = []
        for sign in (1, -1):
            other = values.copy()
            other[index] += sign * steps[index]
            moved.append(f(other))
        gradient[index] = (moved[0] - moved[1]) / (2 * steps[index])
    return gradient


def _share(numerical: np.ndarray, exact: np.ndarray) -> float:
    return float(np.abs(numerical - exact).max() / max(np.abs(exact).max(), 1e-3))


def _draw_norm(canvas: Any, x: np.ndarray, n: np.ndarray, dx: np.ndarray) -> None:
    axes = canvas.subplots(1, 3)
    for ax, values, title in zip(axes, (x, n, dx), ("x", "n(x)", "dL/dx"), strict=True):
        drawing.draw_grid(ax, values, title)


def _draw_lengths(canvas: Any, with_sum: list[float], without: list[float]) -> None:
    ax = canvas.subplots()
    layers = np.arange(len(with_sum))[::-1]
    for lengths, label, colour in ((with_sum, "with the sum", drawing.SECOND), (without, "without", drawing.ACCENT)):
        shown = [length if length > 0 else np.nan for length in lengths]
        ax.plot(layers, shown, "o-", label=label, color=colour, markersize=4)
    if any(length > 0 for length in (*with_sum, *without)):
        ax.set_yscale("log")
    ax.legend(frameon=False, fontsize=9)
    drawing.bare_axes(ax, "", "layer", "length of dL/dx")
