"""Worked examples: the convolution of an image with a filter, and the number of learned parameters."""

from typing import Any

import numpy as np

from rhapsode.textbook import convolution as conv
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
    table,
)

IMAGE = np.array(
    [
        [1.0, 0, -2, 3, 4, 1],
        [2, 9, 5, 6, 0, -1],
        [0, -3, 1, 3, 4, 4],
        [6, 5, 2, 0, 6, 8],
        [-5, 4, -3, 1, 3, -2],
        [4, 1, 2, 8, 9, 7],
    ]
)
LAPLACIAN = np.array([[-1.0, -1, -1], [-1, 8, -1], [-1, -1, -1]])

MOST_POSITIONS, MOST_COLUMNS = 64, 40  # what is written out in full: more can no longer be followed


def convolution(
    image: np.ndarray = IMAGE,
    filter: np.ndarray = LAPLACIAN,
    stride: int = 1,
    padding: int = 0,
    output_gradient: np.ndarray | None = None,
) -> WorkedExample:
    """image (n_h, n_w), filter (k_h, k_w); output_gradient (m_h, m_w) is dL/dy, all ones if None.

    Raises ValueError if the filter does not fit, or if output_gradient is not shaped like the output.
    """
    x, f = image[None], filter[None, None]
    y = conv.cross_correlate_one_channel(image, filter, stride, padding)
    dy = np.ones_like(y) if output_gradient is None else output_gradient
    if dy.shape != y.shape:
        raise ValueError(f"output_gradient must be {_by(y.shape)} like the output, got {_by(dy.shape)}")
    A = conv.toeplitz_2d(filter, image.shape, stride, padding)
    X = conv.im2col(x, filter.shape, stride, padding)
    dx, df = conv.cross_correlate_gradients(x, f, dy[None], stride, padding)
    padded = conv.pad(image, padding)
    by_matrix = (A @ image.reshape(-1)).reshape(y.shape)
    by_columns = conv.cross_correlate(x, f, stride, padding)[0]
    difference = max(np.abs(y - by_matrix).max(), np.abs(y - by_columns).max())
    i, j = y.shape[0] // 2, (y.shape[1] - 1) // 2  # the position that the figure frames

    blocks: list[PageBlock] = [
        Text(
            "The filter is laid on the image, position after position; at each, what lies under "
            "it is multiplied entry by entry and added up. (The filter is not flipped: strictly this is "
            "cross-correlation.)"
        ),
        Lines(beside(matrix("x", image), matrix("f", filter))),
        Heading("1. How large is the output?"),
        Text("`m = floor((n + 2p - k) / s) + 1` along each axis, with stride s and padding p."),
        Lines(
            [
                _size_line(name, n, k, stride, padding)
                for name, n, k in zip(("rows", "columns"), image.shape, filter.shape, strict=True)
            ]
        ),
    ]
    if padding:
        blocks += [
            Text(f"The image with {padding} rows and columns of zeros on each side:"),
            Lines(matrix("x", padded)),
        ]
    blocks += [
        Heading("2. One output after the other"),
        Text("Rows and columns are counted from 1. Each line is one position of the filter, read row by row."),
        Lines(_position_lines(y, filter, X)),
        Lines(matrix("y", y)),
        Illustration(
            f"The filter at output row {i + 1}, column {j + 1}: the patch under it, and its sum {number(y[i, j])}.",
            lambda canvas: _draw_sweep(canvas, padded, filter, y, (i, j), stride),
            (9.0, 3.6),
        ),
        Heading("3. The same as a matrix: y = A x"),
        Text(
            f"Read the image row by row as a vector of {image.size}, and the output as one of {y.size}. "
            f"Each row of A ({A.shape[0]}x{A.shape[1]}) is one position of the filter; dots are zeros."
        ),
    ]
    if A.shape[1] <= MOST_COLUMNS and len(A) <= MOST_POSITIONS:
        blocks.append(Lines(matrix("A", A, zero="·")))
    else:
        blocks.append(Text("A is too large to be printed here."))
    blocks += [
        Illustration(
            "The matrix A. Its diagonals repeat the filter, in blocks.",
            lambda canvas: drawing.draw_grid(canvas.subplots(), A, f"A, {A.shape[0]}x{A.shape[1]}"),
            (9.0, max(2.2, min(8.0, 9.0 * len(A) / A.shape[1]))),
        ),
        Text(
            f"im2col does the reverse: the {X.shape[1]} patches become the columns of a "
            f"{X.shape[0]}x{X.shape[1]} matrix, and the filter a row. The largest difference "
            f"between loops, A and im2col is {agreement(difference, 1e-9)}."
        ),
        Heading("4. The gradients"),
        Text(
            "With dy = dL/dy, the gradient of a loss by the output: each output gives its gradient "
            "back along the weights that it used, `dx = Aᵀ dy`; each weight of the filter collects from all "
            "positions, `df[a, b] = Σ dy[i, j] · x[s i + a - p, s j + b - p]`."
        ),
        Lines(beside(matrix("dy", dy), matrix("df", df[0, 0]))),
        Lines(matrix("dx", dx[0])),
        Lines([_filter_gradient_line(df[0, 0, 0, 0], dy, X)]),
        Illustration(
            "The gradients with respect to the image and to the filter.",
            lambda canvas: _draw_gradients(canvas, dx[0], df[0, 0]),
            (7.5, 3.4),
        ),
    ]
    return WorkedExample("Convolution, step by step", blocks)


def parameters(
    input_size: tuple[int, int] = (22, 22),
    channels: int = 1,
    filter_size: tuple[int, int] = (4, 4),
    output_channels: int = 1,
    stride: int = 2,
    padding: int = 0,
) -> WorkedExample:
    """Learned weights of a layer with and without sharing. Raises ValueError for impossible sizes."""
    (n_h, n_w), (k_h, k_w) = input_size, filter_size
    counts = conv.parameter_counts((channels, n_h, n_w), filter_size, output_channels, stride, padding)
    m_h, m_w = conv.output_size(n_h, k_h, stride, padding), conv.output_size(n_w, k_w, stride, padding)
    shared, unshared, dense = (f"{counts[name]:,}" for name in ("shared", "unshared", "dense"))
    factors = f"{output_channels} · {channels} · {k_h} · {k_w}"
    blocks: list[PageBlock] = [
        Text(
            f"A {n_h}x{n_w} input with {channels} channel{'s' * (channels > 1)}, {output_channels} "
            f"filter{'s' * (output_channels > 1)} of {k_h}x{k_w}, stride {stride}, padding {padding}. "
            "How many numbers are learned? (Biases are not counted.)"
        ),
        Heading("1. How many positions does the filter take?"),
        Lines(
            [
                _size_line("rows", n_h, k_h, stride, padding),
                _size_line("columns", n_w, k_w, stride, padding),
                f"positions   {m_h} · {m_w} = {m_h * m_w}",
            ]
        ),
        Heading("2. Shared: a convolution"),
        Text("The same filter everywhere: output channels · input channels · filter rows · filter columns."),
        Lines([f"{factors} = {shared}"]),
        Heading("3. Unshared: a locally connected layer"),
        Text("The same patches, but a filter of its own at each position."),
        Lines([f"{m_h * m_w} · {shared} = {unshared}"]),
        Heading("4. Dense"),
        Text("Every output is connected with every input: outputs · inputs."),
        Lines([f"({output_channels} · {m_h * m_w}) · ({channels} · {n_h} · {n_w}) = {dense}"]),
        Heading("Together"),
        Lines(table(["layer", "learned weights"], [["shared", shared], ["unshared", unshared], ["dense", dense]])),
        Illustration(
            "Left: the filter's first positions on the input. Right: learned weights, logarithmic scale.",
            lambda canvas: _draw_parameters(canvas, input_size, filter_size, stride, padding, counts),
            (8.5, 3.4),
        ),
    ]
    return WorkedExample("Learned parameters, with sharing and without", blocks)


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _size_line(name: str, n: int, k: int, stride: int, padding: int) -> str:
    m = conv.output_size(n, k, stride, padding)
    return f"{name:<9} m = floor(({n} + 2·{padding} - {k}) / {stride}) + 1 = {m}"


def _position_lines(y: np.ndarray, filter: np.ndarray, X: np.ndarray) -> list[str]:
    lines = []
    for position, patch in enumerate(X.T[:MOST_POSITIONS]):
        i, j = divmod(position, y.shape[1])
        products = " + ".join(f"{factor(w)}·{factor(v)}" for w, v in zip(filter.reshape(-1), patch, strict=True))
        lines.append(f"y[{i + 1},{j + 1}] = {products} = {number(y[i, j])}")
    if y.size > MOST_POSITIONS:
        lines.append(f"… and so on: the first {MOST_POSITIONS} of {y.size} positions are written out here.")
    return lines


def _filter_gradient_line(value: float, dy: np.ndarray, X: np.ndarray) -> str:
    """The first entry of df as its sum over positions, at most the first 16 of them."""
    terms = [f"{factor(g)}·{factor(v)}" for g, v in zip(dy.reshape(-1), X[0], strict=True)]
    shown = " + ".join(terms[:16]) + (" + …" if len(terms) > 16 else "")
    return f"df[1,1] = {shown} = {number(value)}"


def _draw_sweep(
    canvas: Any, padded: np.ndarray, filter: np.ndarray, y: np.ndarray, position: tuple[int, int], stride: int
) -> None:
    left, middle, right = canvas.subplots(1, 3, width_ratios=[padded.shape[1], filter.shape[1], y.shape[1]])
    (i, j), (k_h, k_w) = position, filter.shape
    drawing.draw_grid(left, padded, "image x", (stride * i, stride * j, k_h, k_w))
    drawing.draw_grid(middle, filter, "filter f")
    drawing.draw_grid(right, y, "output y", (i, j, 1, 1))


def _draw_gradients(canvas: Any, dx: np.ndarray, df: np.ndarray) -> None:
    left, right = canvas.subplots(1, 2, width_ratios=[dx.shape[1], df.shape[1]])
    drawing.draw_grid(left, dx, "dL/dx")
    drawing.draw_grid(right, df, "dL/df")


def _draw_parameters(
    canvas: Any,
    input_size: tuple[int, int],
    filter_size: tuple[int, int],
    stride: int,
    padding: int,
    counts: dict[str, int],
) -> None:
    from matplotlib.patches import Rectangle

    left, right = canvas.subplots(1, 2)
    (n_h, n_w), (k_h, k_w) = input_size, filter_size
    left.add_patch(Rectangle((0, 0), n_w, n_h, facecolor=drawing.PALE, edgecolor=drawing.INK))
    positions = min(3, conv.output_size(n_w, k_w, stride, padding))
    for p in range(positions):
        corner = (stride * p - padding, -padding)
        left.add_patch(Rectangle(corner, k_w, k_h, facecolor=drawing.ACCENT, alpha=0.25, edgecolor=drawing.ACCENT))
    left.set_xlim(-padding - 0.5, n_w + padding + 0.5)
    left.set_ylim(n_h + padding + 0.5, -padding - 0.5)
    left.set_aspect("equal")
    left.axis("off")
    left.set_title(f"{n_h}x{n_w} input, {k_h}x{k_w} filter, stride {stride}", fontsize=10, color=drawing.INK)

    names = list(counts)
    bars = right.barh(names, list(counts.values()), color=[drawing.SECOND, drawing.ACCENT, drawing.INK], height=0.6)
    right.bar_label(bars, labels=[f"{counts[name]:,}" for name in names], padding=4, fontsize=9, color=drawing.INK)
    right.set_xscale("log")
    right.set_xlim(1, max(counts.values()) * 12)
    right.invert_yaxis()
    drawing.bare_axes(right, "learned weights", "", "")
