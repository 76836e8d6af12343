import numpy as np
import pytest

from rhapsode.textbook import recurrent
from rhapsode.textbook.recurrent import ACTIVATIONS

T, D, H, V = 6, 3, 4, 5


@pytest.fixture
def problem(rng):
    """W_hh, W_hx, W_hy, x, y and a starting state h_0; not zero, as its part of dL/dW_hh would not show."""
    return (
        rng.standard_normal((H, H)),
        rng.standard_normal((H, D)),
        rng.standard_normal((V, H)),
        rng.standard_normal((T, D)),
        rng.integers(0, V, T),
        rng.standard_normal(H),
    )


def test_forward_by_hand():
    """One number per vector, ψ = relu: z = (2, -1, 1), h = (2, 0, 1). Would catch a frozen state."""
    W_hh, W_hx, W_hy = np.array([[-1.0]]), np.array([[1.0]]), np.array([[0.0], [1.0]])
    x = np.array([[2.0], [1.0], [1.0]])
    f = recurrent.forward(W_hh, W_hx, W_hy, x, np.array([0, 0, 1]), "relu")
    np.testing.assert_array_equal(f.z, [[2], [-1], [1]])
    np.testing.assert_array_equal(f.h, [[2], [0], [1]])
    np.testing.assert_array_equal(f.o, [[0, 2], [0, 0], [0, 1]])
    expected = [np.log(1 + np.e**2), np.log(2), np.log(1 + np.e) - 1]
    np.testing.assert_allclose(f.losses, expected, rtol=1e-14)
    assert f.loss == pytest.approx(sum(expected), rel=1e-14)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_closed_form_against_finite_differences(problem, numerical_gradient, activation):
    W_hh, W_hx, W_hy, x, y, h_0 = problem
    closed = recurrent.gradients(W_hh, W_hx, W_hy, x, y, activation, h_0)
    for name, matrix in {"W_hh": W_hh, "W_hx": W_hx, "W_hy": W_hy}.items():
        expected = numerical_gradient(lambda: recurrent.forward(W_hh, W_hx, W_hy, x, y, activation, h_0).loss, matrix)
        np.testing.assert_allclose(getattr(closed, name), expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradient_of_each_state_against_finite_differences(problem, numerical_gradient, activation):
    """h_i is moved and the rest of the sequence run again from it: that is what dL/dh_i means."""
    W_hh, W_hx, W_hy, x, y, h_0 = problem
    f = recurrent.forward(W_hh, W_hx, W_hy, x, y, activation, h_0)
    closed = recurrent.gradients(W_hh, W_hx, W_hy, x, y, activation, h_0)
    for i in range(1, T + 1):
        h_i = f.h[i - 1].copy()

        def loss_from_h_i(i=i, h_i=h_i) -> float:
            own = recurrent.cross_entropy(W_hy @ h_i, y[i - 1])
            return own + recurrent.forward(W_hh, W_hx, W_hy, x[i:], y[i:], activation, h_i).loss

        np.testing.assert_allclose(closed.h[i - 1], numerical_gradient(loss_from_h_i, h_i), rtol=1e-7, atol=1e-8)


def test_for_the_identity_the_chain_is_a_power_of_one_matrix(problem, rng):
    """Both forms of the sum, term by term. Would catch a missing transpose, and t - i off by one."""
    W_hh = problem[0]
    direct = rng.standard_normal((T, H))
    for i in range(1, T + 1):
        general = recurrent.step_contributions(W_hh, np.zeros((T, H)), direct, i, "identity")
        assert general.shape == (T - i + 1, H)
        np.testing.assert_allclose(
            recurrent.identity_step_contributions(W_hh, direct, i), general, rtol=1e-12, atol=1e-12
        )


def test_norms_vanish_and_explode_with_the_distance(rng):
    """The loss at the last step alone and c times an orthogonal matrix: the norm is exactly c^(T - i)."""
    orthogonal, _ = np.linalg.qr(rng.standard_normal((H, H)))
    direct = np.zeros((T, H))
    direct[-1] = [1, 0, 0, 0]
    for c in (0.5, 1.0, 2.0):
        norms = recurrent.contribution_norms(c * orthogonal, np.zeros((T, H)), direct, "identity")
        np.testing.assert_allclose(norms[:, -1], c ** np.arange(T - 1, -1, -1.0), rtol=1e-12)
        assert not norms[:, :-1].any()


def test_a_dead_relu_cuts_the_chain():
    """Where z_t < 0 the gradient of everything before comes from earlier steps alone."""
    z = np.array([[1.0], [-1.0], [1.0]])
    terms = recurrent.step_contributions(np.array([[3.0]]), z, np.array([[1.0], [10.0], [100.0]]), 1, "relu")
    np.testing.assert_array_equal(terms, [[1], [0], [0]])


def test_what_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="activation must be one of identity, relu, tanh, got 'gelu'"):
        recurrent.psi(np.zeros(2), "gelu")
    with pytest.raises(ValueError, match="step i must be between 1 and 2, got 0"):
        recurrent.step_contributions(np.eye(1), np.zeros((2, 1)), np.zeros((2, 1)), 0, "relu")
