import numpy as np
import pytest

from rhapsode.textbook import residual


def test_rms_norm_of_a_row_by_hand():
    """(7, -1): the mean of 49 and 1 is 25, and its root 5."""
    n = residual.rms_norm(np.array([[7.0, -1.0], [0.0, 0.0]]), np.array([1.0, 10.0]))
    np.testing.assert_allclose(n, [[1.4, -2.0], [0, 0]], rtol=1e-15)


@pytest.mark.parametrize("factor", [1e-3, 7.0, 1e6])
def test_a_longer_row_has_the_same_norm_and_a_smaller_gradient(rng, factor):
    """Would catch a mean that is a sum, and a gradient that keeps a part along x."""
    x, w, g = rng.standard_normal((3, 5)), rng.standard_normal(5), rng.standard_normal((3, 5))
    dx, dw = residual.rms_norm_gradients(x, w, g)
    longer_dx, longer_dw = residual.rms_norm_gradients(factor * x, w, g)
    np.testing.assert_allclose(residual.rms_norm(factor * x, w), residual.rms_norm(x, w), rtol=1e-9)
    np.testing.assert_allclose(factor * longer_dx, dx, rtol=1e-8)
    np.testing.assert_allclose(longer_dw, dw, rtol=1e-9)
    np.testing.assert_allclose((x * dx).sum(axis=1), 0, atol=1e-12)


def test_elementwise_functions_at_their_ends():
    """Would catch an exponential that overflows."""
    a = np.array([-1e4, 0.0, 1e4])
    np.testing.assert_array_equal(residual.silu(a), [0, 0, 1e4])
    np.testing.assert_array_equal(residual.silu_prime(a), [0, 0.5, 1])
    np.testing.assert_array_equal(residual.squared_relu(a), [0, 0, 1e8])
    np.testing.assert_array_equal(residual.squared_relu_prime(a), [0, 0, 2e4])


@pytest.mark.parametrize("with_sum", [True, False])
def test_the_gradient_of_a_stack_is_the_product_of_matrices(rng, with_sum):
    """Would catch layers in the wrong order, and a derivative that is not transposed."""
    jacobians, g = [rng.standard_normal((4, 4)) for _ in range(3)], rng.standard_normal(4)
    whole = np.eye(4)
    for J in jacobians:
        whole = (J + with_sum * np.eye(4)) @ whole
    np.testing.assert_allclose(residual.residual_gradient(jacobians, g, with_sum)[-1], whole.T @ g, rtol=1e-12)
