import itertools

import numpy as np
import pytest

from rhapsode.textbook import convolution as conv

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

# Sizes all different, strides that do not divide, and more padding than half of the filter.
# In the order n_h, n_w, k_h, k_w, stride, padding.
GEOMETRIES = [
    (5, 7, 3, 2, 1, 0),
    (5, 7, 3, 2, 2, 1),
    (6, 4, 2, 3, 3, 2),
    (4, 5, 4, 5, 1, 0),
    (1, 1, 1, 1, 1, 0),
]


@pytest.fixture(params=GEOMETRIES, ids=lambda g: "-".join(map(str, g)))
def layer(request, rng):
    """x (2, n_h, n_w), f (3, 2, k_h, k_w), a gradient dy for the output, and the options of the layer."""
    n_h, n_w, k_h, k_w, stride, padding = request.param
    x, f = rng.standard_normal((2, n_h, n_w)), rng.standard_normal((3, 2, k_h, k_w))
    options = {"stride": stride, "padding": padding}
    return x, f, rng.standard_normal(conv.cross_correlate(x, f, **options).shape), options


def test_the_answer_of_the_assignment_for_the_laplacian():
    """j = 8, at row 3, column 2 of the 4x4 output: 9 · 2 minus the sum 10 of its neighbourhood."""
    y = conv.cross_correlate_one_channel(IMAGE, LAPLACIAN)
    assert y.shape == (4, 4)
    assert y[2, 1] == 8
    np.testing.assert_array_equal(y.reshape(-1), conv.toeplitz_2d(LAPLACIAN, (6, 6)) @ IMAGE.reshape(-1))


def test_the_answer_of_the_assignment_for_the_output_size():
    """A 6x4 input, a 2x2 filter, stride 2: the output is 3x2."""
    assert (conv.output_size(6, 2, stride=2), conv.output_size(4, 2, stride=2)) == (3, 2)
    assert conv.cross_correlate_one_channel(np.ones((6, 4)), np.ones((2, 2)), stride=2).shape == (3, 2)


def test_the_answers_of_the_assignment_for_sharing():
    assert conv.parameter_counts((1, 22, 22), (4, 4), stride=2) == {
        "shared": 16,
        "unshared": 1_600,
        "dense": 100 * 484,
    }
    assert conv.parameter_counts((3, 40, 40), (4, 4), stride=2)["unshared"] == 17_328


def test_output_size_counts_the_positions_that_fit():
    for n, k, s, p in itertools.product(range(1, 8), range(1, 5), range(1, 4), range(3)):
        starts = [start for start in range(0, n + 2 * p, s) if start + k <= n + 2 * p]
        if starts:
            assert conv.output_size(n, k, s, p) == len(starts)
        else:
            with pytest.raises(
                ValueError, match=f"filter of size {k} is larger than the padded input of size {n + 2 * p}"
            ):
                conv.output_size(n, k, s, p)


def test_one_dimension_is_toeplitz():
    """The matrix of (1 2 3) on 5 entries, padded by one: constant diagonals. Would catch a flipped filter."""
    expected = [[2, 3, 0, 0, 0], [1, 2, 3, 0, 0], [0, 1, 2, 3, 0], [0, 0, 1, 2, 3], [0, 0, 0, 1, 2]]
    f, x = np.array([1.0, 2, 3]), np.array([1.0, -2, 0, 4, 5])
    A = conv.toeplitz_1d(f, 5, padding=1)
    np.testing.assert_array_equal(A, expected)
    np.testing.assert_array_equal(A @ x, np.correlate(x, f, mode="same"))
    np.testing.assert_array_equal(conv.toeplitz_1d(f, 5, stride=2) @ x, np.correlate(x, f)[::2])


def test_loops_matrix_and_im2col_agree(layer):
    x, f, dy, options = layer
    y = conv.cross_correlate_loops(x, f, **options)
    A = conv.convolution_matrix(f, x.shape[1:], **options)
    np.testing.assert_allclose(conv.cross_correlate(x, f, **options), y, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose((A @ x.reshape(-1)).reshape(y.shape), y, rtol=1e-13, atol=1e-13)
    dx, _ = conv.cross_correlate_gradients(x, f, dy, **options)
    np.testing.assert_allclose((A.T @ dy.reshape(-1)).reshape(x.shape), dx, rtol=1e-13, atol=1e-13)


def test_gradients_against_finite_differences(layer, numerical_gradient):
    x, f, dy, options = layer
    dx, df = conv.cross_correlate_gradients(x, f, dy, **options)

    def loss() -> float:
        return (dy * conv.cross_correlate_loops(x, f, **options)).sum()

    np.testing.assert_allclose(dx, numerical_gradient(loss, x), atol=1e-9)
    np.testing.assert_allclose(df, numerical_gradient(loss, f), atol=1e-9)


def test_col2im_is_the_transpose_of_im2col(layer, rng):
    """<im2col x, Y> = <x, col2im Y>, also where patches overlap."""
    x, f, _, options = layer
    X = conv.im2col(x, f.shape[2:], **options)
    Y = rng.standard_normal(X.shape)
    back = conv.col2im(Y, x.shape, f.shape[2:], **options)
    assert (X * Y).sum() == pytest.approx((x * back).sum(), rel=1e-12)


def test_locally_connected_layer(layer, rng, numerical_gradient):
    """One filter everywhere makes it the convolution; with one for each position, differences judge."""
    x, f, dy, options = layer
    same = np.broadcast_to(f[:, None, None], (len(f), *dy.shape[1:], *f.shape[1:]))
    y = conv.cross_correlate_loops(x, f, **options)
    np.testing.assert_allclose(conv.locally_connected(x, same, **options), y, rtol=1e-12, atol=1e-12)

    w = rng.standard_normal(same.shape)
    assert w.size == conv.parameter_counts(x.shape, f.shape[2:], len(f), **options)["unshared"]
    dx, dw = conv.locally_connected_gradients(x, w, dy, **options)

    def loss() -> float:
        return (dy * conv.locally_connected(x, w, **options)).sum()

    np.testing.assert_allclose(dx, numerical_gradient(loss, x), atol=1e-8)
    np.testing.assert_allclose(dw, numerical_gradient(loss, w), atol=1e-8)


def test_layers_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="stride must be >= 1, got 0"):
        conv.output_size(4, 2, stride=0)
    with pytest.raises(ValueError, match="padding must be >= 0, got -1"):
        conv.output_size(4, 2, padding=-1)
    with pytest.raises(ValueError, match="equal C_in"):
        conv.cross_correlate(np.ones((2, 4, 4)), np.ones((1, 3, 2, 2)))
    with pytest.raises(ValueError, match=r"but this input needs \(3, 3, 1\)"):
        conv.locally_connected(np.ones((1, 4, 4)), np.ones((1, 2, 3, 1, 2, 2)))
    with pytest.raises(ValueError, match="output channels must be >= 1, got 0"):
        conv.parameter_counts((1, 4, 4), (2, 2), output_channels=0)
