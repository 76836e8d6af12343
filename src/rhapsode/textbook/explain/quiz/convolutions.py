"""Questions: one entry of a convolution, its Toeplitz matrix, and its gradients."""

import numpy as np

from rhapsode.textbook import convolution as conv
from rhapsode.textbook.explain.page import Lines, PageBlock, Text, factor, matrix, number, row
from rhapsode.textbook.explain.quiz.answers import NumbersAnswer, told_apart
from rhapsode.textbook.explain.quiz.question import Question, option, packed, sum_of_products


def entry(channels: int, rng: np.random.Generator) -> Question:
    """One number of the output, of one input channel or two."""
    n, k = rng.integers(4, 7, 2).tolist(), rng.integers(2, 4, 2).tolist()
    stride, padding = int(rng.integers(1, 3)), int(rng.integers(0, 2))
    x = rng.integers(-5, 10, (channels, *n)).astype(float)
    f = rng.integers(-3, 4, (channels, *k)).astype(float)
    y = conv.cross_correlate_loops(x, f[None], stride, padding)[0]
    i, j = int(rng.integers(len(y))), int(rng.integers(y.shape[1]))
    right = y[i, j]
    column = i * y.shape[1] + j
    patches = conv.im2col(x, (k[0], k[1]), stride, padding)[:, column].reshape(f.shape)
    dense = conv.cross_correlate_loops(x, f[None], 1, padding)[0]
    bare = conv.cross_correlate_loops(x, f[None], stride, 0)[0]
    names = [""] if channels == 1 else ["_1", "_2"]
    given = [Lines(packed(matrix(f"x{name}", x[c]), matrix(f"f{name}", f[c]))) for c, name in enumerate(names)]
    steps: list[PageBlock] = [
        Text(
            f"The filter's corner lies {stride}·({i + 1} - 1) rows down and {stride}·({j + 1} - 1) columns "
            "right of the "
            + (f"padded image's corner (the zeros around it are {padding} wide)." if padding else "image's corner.")
            + " Under it, entry by entry:"
        )
    ]
    sums = [(patches[c] * f[c]).sum() for c in range(channels)]
    for c, name in enumerate(names):
        products = [
            [f"{factor(a)}·{factor(b)}" for a, b in zip(*rows, strict=True)]
            for rows in zip(f[c], patches[c], strict=True)
        ]
        left = f"y[{i + 1},{j + 1}]" if channels == 1 else f"channel {c + 1}"
        steps += [Lines(matrix(f"patch{name}", patches[c])), Lines(sum_of_products(left, products, sums[c]))]
    if channels > 1:
        added = " + ".join(factor(s) for s in sums)
        steps.append(Lines([f"y[{i + 1},{j + 1}] = {added} = {number(sum(sums))}"]))
    arguments = ("convolution", "--image", option(x[0]), "--filter", option(f[0]), "--stride", str(stride))
    return Question(
        [
            Text(
                "The filter f is laid on the image x (cross-correlation: it is not flipped)"
                + (", each channel with its own, and the channels are added up" if channels > 1 else "")
                + f". Stride {stride}, padding {padding}. What is y[{i + 1},{j + 1}], rows and columns counted from 1?"
            ),
            *given,
        ],
        NumbersAnswer(
            f"y[{i + 1},{j + 1}]",
            np.array(right),
            whole=True,
            mistakes=told_apart(
                right,
                ((f[:, ::-1, ::-1] * patches).sum(), "with the filter flipped"),
                (dense[i, j] if stride > 1 else None, f"y[{i + 1},{j + 1}] with stride 1"),
                (_at(bare, i, j) if padding else None, "without the padding"),
                (_at(y, j, i), "the entry with row and column exchanged"),
                (_at(y, i + 1, j + 1), "the entry counted from 0"),
                (sums[0] if channels > 1 else None, "the first channel alone"),
                ((f.sum() * patches.sum()), "the product of the sums, not the sum of the products"),
            ),
        ),
        steps,
        (*arguments, "--padding", str(padding)) if channels == 1 else (),
    )


def gradient(by_filter: bool, rng: np.random.Generator) -> Question:
    """dL/df or dL/dx from dL/dy."""
    stride = int(rng.integers(1, 3)) if by_filter else 1
    n = 3 if stride == 1 else 4
    x = rng.integers(-3, 6, (n, n)).astype(float)
    f, dy = (rng.integers(-3, 4, (2, 2)).astype(float) for _ in range(2))
    dx, df = (d.squeeze() for d in conv.cross_correlate_gradients(x[None], f[None, None], dy[None], stride))
    right = df if by_filter else dx
    X = conv.im2col(x[None], (2, 2), stride)
    if by_filter:
        steps: list[PageBlock] = [
            Text(
                "Each weight of the filter collects from all positions: `df[a, b] = Σ dy[i, j] · x[s i + a, "
                "s j + b]`, a "
                "cross-correlation of x" + (" (every other entry)" if stride > 1 else "") + " with dy."
            ),
            Lines(
                [
                    f"df[{a + 1},{b + 1}] = {_products(dy, X[2 * a + b])} = {number(float(df[a, b]))}"
                    for a, b in np.ndindex(2, 2)
                ]
            ),
        ]
        mistakes = told_apart(
            right,
            (df[::-1, ::-1], "with dy flipped"),
            (conv.cross_correlate_one_channel(x, f, stride), "the output y"),
            (conv.im2col(x[None], (2, 2), stride).sum(axis=1).reshape(2, 2), "without dy (as if it were all ones)"),
            (dy * f, "the product of dy and f"),
        )
    else:
        shares = [np.pad(dy[i, j] * f, ((i, n - 2 - i), (j, n - 2 - j))) for i, j in np.ndindex(2, 2)]
        steps = [
            Text(
                "Each output gives its gradient back along the weights that it used, `dx = Aᵀ dy`: the filter, times "
                "dy[i, j], is added where it lay for y[i, j]. Position after position:"
            ),
            Lines(
                packed(
                    *(matrix(f"dy[{i + 1},{j + 1}]·f", s) for (i, j), s in zip(np.ndindex(2, 2), shares, strict=True))
                )
            ),
            Text("And their sum:"),
            Lines(matrix("dx", np.sum(shares, axis=0))),
        ]
        mistakes = told_apart(
            right,
            (conv.cross_correlate_one_channel(dy, f, 1, 1), "dy with the filter not flipped"),
            (shares[0] + shares[3], "without the positions off the diagonal"),
            (conv.toeplitz_2d(f, (n, n)).sum(axis=0).reshape(n, n), "without dy (as if it were all ones)"),
        )
    what = "df = dL/df" if by_filter else "dx = dL/dx"
    return Question(
        [
            Text(
                f"The image x is cross-correlated with the filter f, stride {stride}, no padding, and the "
                "gradient of the "
                f"loss by the output is dy = dL/dy. What is {what}?"
            ),
            Lines(packed(matrix("x", x), matrix("f", f), matrix("dy", dy))),
        ],
        NumbersAnswer("df" if by_filter else "dx", right, whole=True, mistakes=mistakes),
        steps,
        (
            *("convolution", "--image", option(x), "--filter", option(f), "--output-gradient", option(dy)),
            *("--stride", str(stride)),
        ),
    )


def toeplitz(rng: np.random.Generator) -> Question:
    """The whole matrix of a convolution of a sequence."""
    n, k = int(rng.integers(4, 6)), int(rng.integers(2, 4))
    stride, padding = int(rng.choice([1, 1, 2])), int(rng.integers(0, 2))
    f = _without_zeros(rng, (k,))
    A = conv.toeplitz_1d(f, n, stride, padding)
    narrow = conv.toeplitz_1d(f, n, stride, 0)
    whole_filter = f"The filter stands in each row, {stride} further to the right than in the row above"
    return Question(
        [
            Text(
                f"y is the cross-correlation of the {n} numbers x with the filter f, stride {stride}, "
                f"padding {padding}. "
                "Which matrix A gives y = A x?"
            ),
            Lines([f"f = {row(f)}"]),
        ],
        NumbersAnswer(
            "A",
            A,
            whole=True,
            size_asked=True,
            mistakes=told_apart(
                A,
                (conv.toeplitz_1d(f[::-1].copy(), n, stride, padding), "with the filter flipped"),
                (conv.toeplitz_1d(f, n, 1, padding) if stride > 1 else None, "the matrix for stride 1"),
                (narrow if padding else None, "the matrix without the padding"),
                (np.ascontiguousarray(A.T), "its transpose, which carries the gradient back"),
                (
                    conv.toeplitz_1d(f, n + 2 * padding, stride) if padding else None,
                    "the matrix for the padded x: the columns of the zeros fall away",
                ),
            ),
        ),
        [
            Text("As many rows as y has numbers, as many columns as x:"),
            Lines([f"m = floor(({n} + 2·{padding} - {k}) / {stride}) + 1 = {len(A)}"]),
            Text(
                whole_filter
                + (", and begins left of the first column: what falls on the padding is left out." if padding else ".")
            ),
            Lines([_row_line(i, f, stride, padding, n) for i in range(len(A))]),
            Lines(matrix("A", A, zero="·")),
        ],
    )


def toeplitz_row(rng: np.random.Generator) -> Question:
    """One row of the matrix of a convolution of an image."""
    n_h, n_w, stride = 3, int(rng.integers(3, 5)), 1
    f = _without_zeros(rng, (2, 2))
    A = conv.toeplitz_2d(f, (n_h, n_w), stride)
    m_w = n_w - 1
    i, j = int(rng.integers(2)), int(rng.integers(m_w))
    right = A[i * m_w + j]
    laid = right.reshape(n_h, n_w)
    return Question(
        [
            Text(
                f"A {n_h}x{n_w} image x and the output y of its cross-correlation with f (stride 1, no "
                "padding) are read "
                f"row by row as vectors, and y = A x. What is the row of A that gives y[{i + 1},{j + 1}], "
                "rows and columns "
                "counted from 1?"
            ),
            Lines(matrix("f", f)),
        ],
        NumbersAnswer(
            "row",
            right,
            whole=True,
            mistakes=told_apart(
                right,
                (conv.toeplitz_2d(f[::-1, ::-1].copy(), (n_h, n_w))[i * m_w + j], "with the filter flipped"),
                (laid[:, ::-1].reshape(-1), "with the columns in reverse order"),
                (laid.T.reshape(-1), "read column by column"),
                (A[(i * m_w + j + 1) % len(A)], "the row of another entry of y"),
                (
                    np.concatenate([f.reshape(-1), np.zeros(right.size - 4)]),
                    "the filter without its place in the image",
                ),
            ),
        ),
        [
            Text("Lay the filter where it lies for this entry, on an image of zeros:"),
            Lines(matrix("x", laid, zero="·")),
            Text("And read that row by row:"),
            Lines([f"row = {row(right)}"]),
        ],
        ("convolution", "--image", option(np.ones((n_h, n_w))), "--filter", option(f)),
    )


def _row_line(i: int, f: np.ndarray, stride: int, padding: int, n: int) -> str:
    """`y[2] = 3·x[2] + (-1)·x[3]`, without what falls on the padding."""
    columns = [(a, stride * i + a - padding) for a in range(len(f))]
    return f"y[{i + 1}] = " + " + ".join(f"{factor(f[a])}·x[{c + 1}]" for a, c in columns if 0 <= c < n)


def _products(dy: np.ndarray, patch: np.ndarray) -> str:
    return " + ".join(f"{factor(g)}·{factor(v)}" for g, v in zip(dy.flat, patch, strict=True))


def _without_zeros(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.choice([-4.0, -3, -2, -1, 1, 2, 3, 4, 5], shape)


def _at(y: np.ndarray, i: int, j: int) -> float | None:
    return float(y[i, j]) if i < y.shape[0] and j < y.shape[1] else None
