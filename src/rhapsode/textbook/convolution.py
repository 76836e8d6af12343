"""Convolution, three times: as loops, as a matrix, and as one product of matrices.

What networks call convolution is cross-correlation: the filter is not flipped. For one input channel x
(n_h, n_w), one filter f (k_h, k_w), stride s and padding p (rows and columns of zeros on each side):

    y[i, j] = Σ_a Σ_b  f[a, b] · x[s i + a - p, s j + b - p]

Along each axis the output has

    m = floor((n + 2p - k) / s) + 1

entries. With several channels each output channel c has a filter of its own for each input channel, and
adds up:

    y[c] = Σ_d  f[c, d] ⋆ x[d]            x (C_in, n_h, n_w),  f (C_out, C_in, k_h, k_w),  y (C_out, m_h, m_w)

The map x → y is linear, so there is a matrix A with y = A x, once x and y are read as vectors row by row.
In one dimension A repeats the filter along its diagonals (a Toeplitz matrix); in two it does so in blocks.
Each row of A is one position of the filter. The gradients are then two lines of matrix calculus, with dy =
dL/dy:

    dL/dx = Aᵀ dy                          each output hands its gradient back along the weights it used
    dL/df[a, b] = Σ_ij dy[i, j] · x[s i + a - p, s j + b - p]        again a cross-correlation

im2col exchanges the roles: it puts the patch that each output sees into a column, X (C_in k_h k_w, m_h
m_w), so that y = F X with the filters as the rows of F. One product of matrices is what fast libraries
compute.

Sharing. The filter is the same at every position, so the layer learns C_out C_in k_h k_w numbers. A locally
connected layer sees the same patches but learns a filter for each position: m_h m_w times as many. A 4x4
filter with stride 2 on a 22x22 image: 16 shared, 1,600 unshared.
"""

import numpy as np


def output_size(input_size: int, filter_size: int, stride: int = 1, padding: int = 0) -> int:
    """m = floor((n + 2p - k) / s) + 1, the entries of the output along one axis.

    Raises ValueError if a size is out of range, or if the filter is larger than the padded input.
    """
    sizes = {"input size": input_size, "filter size": filter_size, "stride": stride}
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be >= 1, got {size}")
    if padding < 0:
        raise ValueError(f"padding must be >= 0, got {padding}")
    if filter_size > input_size + 2 * padding:
        padded_size = input_size + 2 * padding
        raise ValueError(f"filter of size {filter_size} is larger than the padded input of size {padded_size}")
    return (input_size + 2 * padding - filter_size) // stride + 1


def pad(x: np.ndarray, padding: int) -> np.ndarray:
    """x (..., n_h, n_w) with `padding` rows and columns of zeros on each side."""
    return np.pad(x, [(0, 0)] * (x.ndim - 2) + [(padding, padding)] * 2)


def cross_correlate_one_channel(x: np.ndarray, f: np.ndarray, stride: int = 1, padding: int = 0) -> np.ndarray:
    """y (m_h, m_w) of x (n_h, n_w) and f (k_h, k_w): the definition, in four nested loops."""
    (n_h, n_w), (k_h, k_w) = x.shape, f.shape
    y = np.zeros((output_size(n_h, k_h, stride, padding), output_size(n_w, k_w, stride, padding)))
    padded = pad(x, padding)
    for i in range(y.shape[0]):
        for j in range(y.shape[1]):
            for a in range(k_h):
                for b in range(k_w):
                    y[i, j] += f[a, b] * padded[stride * i + a, stride * j + b]
    return y


def cross_correlate_loops(x: np.ndarray, f: np.ndarray, stride: int = 1, padding: int = 0) -> np.ndarray:
    """y (C_out, m_h, m_w) of x (C_in, n_h, n_w) and f (C_out, C_in, k_h, k_w): channels added up."""
    _check_channels(x, f)
    return np.array(
        [sum(cross_correlate_one_channel(x[d], f[c, d], stride, padding) for d in range(len(x))) for c in range(len(f))]
    )


def toeplitz_1d(f: np.ndarray, input_size: int, stride: int = 1, padding: int = 0) -> np.ndarray:
    """A (m, n) with y = A x for a one-dimensional input x (n,) and filter f (k,): A[i, s i + a - p] = f[a].

    With stride 1 every diagonal of A is constant. Weights that fall on the padding are left out.
    """
    A = np.zeros((output_size(input_size, len(f), stride, padding), input_size))
    for i in range(len(A)):
        for a in range(len(f)):
            column = stride * i + a - padding
            if 0 <= column < input_size:
                A[i, column] = f[a]
    return A


def toeplitz_2d(f: np.ndarray, input_shape: tuple[int, int], stride: int = 1, padding: int = 0) -> np.ndarray:
    """A (m_h m_w, n_h n_w) with y = A x, both read row by row: input (n_h, n_w), filter f (k_h, k_w).

    A is Toeplitz in blocks: block (i, s i + a - p) is the one-dimensional matrix of the filter's row a.
    """
    n_h, n_w = input_shape
    m_h, m_w = output_size(n_h, f.shape[0], stride, padding), output_size(n_w, f.shape[1], stride, padding)
    A = np.zeros((m_h, m_w, n_h, n_w))
    for i in range(m_h):
        for a in range(len(f)):
            row = stride * i + a - padding
            if 0 <= row < n_h:
                A[i, :, row, :] = toeplitz_1d(f[a], n_w, stride, padding)
    return A.reshape(m_h * m_w, n_h * n_w)


def convolution_matrix(f: np.ndarray, input_shape: tuple[int, int], stride: int = 1, padding: int = 0) -> np.ndarray:
    """A (C_out m_h m_w, C_in n_h n_w) with channels: a block `toeplitz_2d` for each pair (c, d)."""
    return np.block([[toeplitz_2d(f_cd, input_shape, stride, padding) for f_cd in f_c] for f_c in f])


def im2col(x: np.ndarray, filter_shape: tuple[int, int], stride: int = 1, padding: int = 0) -> np.ndarray:
    """X (C_in k_h k_w, m_h m_w): column (i, j) is the patch of x (C_in, n_h, n_w) that y[:, i, j] sees."""
    k_h, k_w = filter_shape
    m_h = output_size(x.shape[1], k_h, stride, padding)
    m_w = output_size(x.shape[2], k_w, stride, padding)
    padded = pad(x, padding)
    columns = [
        padded[:, stride * i : stride * i + k_h, stride * j : stride * j + k_w].reshape(-1)
        for i in range(m_h)
        for j in range(m_w)
    ]
    return np.array(columns).T


def col2im(
    X: np.ndarray,
    input_shape: tuple[int, int, int],
    filter_shape: tuple[int, int],
    stride: int = 1,
    padding: int = 0,
) -> np.ndarray:
    """The transpose of `im2col`: adds every column back to where its patch came from; (C_in, n_h, n_w).

    Where patches overlap their values add up, so this is not the inverse: it is what gradients need.
    """
    (C_in, n_h, n_w), (k_h, k_w) = input_shape, filter_shape
    m_w = output_size(n_w, k_w, stride, padding)
    padded = np.zeros((C_in, n_h + 2 * padding, n_w + 2 * padding))
    for position, column in enumerate(X.T):
        i, j = divmod(position, m_w)
        padded[:, stride * i : stride * i + k_h, stride * j : stride * j + k_w] += column.reshape(C_in, k_h, k_w)
    return padded[:, padding : padding + n_h, padding : padding + n_w]


def cross_correlate(x: np.ndarray, f: np.ndarray, stride: int = 1, padding: int = 0) -> np.ndarray:
    """y = F X (C_out, m_h, m_w) by im2col; same arguments as `cross_correlate_loops`."""
    _check_channels(x, f)
    m_h = output_size(x.shape[1], f.shape[2], stride, padding)
    m_w = output_size(x.shape[2], f.shape[3], stride, padding)
    return (f.reshape(len(f), -1) @ im2col(x, f.shape[2:], stride, padding)).reshape(len(f), m_h, m_w)


def cross_correlate_gradients(
    x: np.ndarray, f: np.ndarray, dy: np.ndarray, stride: int = 1, padding: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """dL/dx (C_in, n_h, n_w) and dL/df (C_out, C_in, k_h, k_w) from dy = dL/dy (C_out, m_h, m_w).

    From y = F X: dF = dy Xᵀ and dX = Fᵀ dy, the latter added back to the image by `col2im`.
    """
    _check_channels(x, f)
    dy_rows = dy.reshape(len(f), -1)
    df = dy_rows @ im2col(x, f.shape[2:], stride, padding).T
    dx = col2im(f.reshape(len(f), -1).T @ dy_rows, x.shape, f.shape[2:], stride, padding)
    return dx, df.reshape(f.shape)


def locally_connected(x: np.ndarray, w: np.ndarray, stride: int = 1, padding: int = 0) -> np.ndarray:
    """y (C_out, m_h, m_w) of the layer without sharing: position (i, j) has its own filter w[:, i, j].

    w (C_out, m_h, m_w, C_in, k_h, k_w). If all positions hold the same filter this is `cross_correlate`.
    """
    X = _patches(x, w, stride, padding)
    return np.einsum("cijdab,ijdab->cij", w, X)


def locally_connected_gradients(
    x: np.ndarray, w: np.ndarray, dy: np.ndarray, stride: int = 1, padding: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """dL/dx and dL/dw of `locally_connected` from dy (C_out, m_h, m_w); dL/dw sums over no positions."""
    dw = np.einsum("cij,ijdab->cijdab", dy, _patches(x, w, stride, padding))
    dX = np.einsum("cij,cijdab->dabij", dy, w).reshape(-1, dy.shape[1] * dy.shape[2])
    return col2im(dX, x.shape, w.shape[4:], stride, padding), dw


def parameter_counts(
    input_shape: tuple[int, int, int],
    filter_shape: tuple[int, int],
    output_channels: int = 1,
    stride: int = 1,
    padding: int = 0,
) -> dict[str, int]:
    """Learned weights, without biases, of three layers with the same input (C_in, n_h, n_w) and output size.

    `shared`: a convolution; `unshared`: locally connected; `dense`: every output sees every input.
    """
    (C_in, n_h, n_w), (k_h, k_w) = input_shape, filter_shape
    for name, count in {"input channels": C_in, "output channels": output_channels}.items():
        if count < 1:
            raise ValueError(f"{name} must be >= 1, got {count}")
    positions = output_size(n_h, k_h, stride, padding) * output_size(n_w, k_w, stride, padding)
    shared = output_channels * C_in * k_h * k_w
    return {
        "shared": shared,
        "unshared": positions * shared,
        "dense": output_channels * positions * C_in * n_h * n_w,
    }


def _patches(x: np.ndarray, w: np.ndarray, stride: int, padding: int) -> np.ndarray:
    """The patch of every position, (m_h, m_w, C_in, k_h, k_w), after checking w's positions against x."""
    _, m_h, m_w, C_in, k_h, k_w = w.shape
    X = im2col(x, (k_h, k_w), stride, padding)
    needed = (
        output_size(x.shape[1], k_h, stride, padding),
        output_size(x.shape[2], k_w, stride, padding),
        len(x),
    )
    if needed != (m_h, m_w, C_in):
        raise ValueError(f"w has (m_h, m_w, C_in) = {(m_h, m_w, C_in)}, but this input needs {needed}")
    return X.T.reshape(m_h, m_w, C_in, k_h, k_w)


def _check_channels(x: np.ndarray, f: np.ndarray) -> None:
    if x.ndim != 3 or f.ndim != 4 or f.shape[1] != x.shape[0]:
        raise ValueError(
            f"x (C_in, n_h, n_w) and f (C_out, C_in, k_h, k_w) need equal C_in, got {x.shape} and {f.shape}"
        )
