import numpy as np
import pytest

from rhapsode.textbook.copying import copy_distribution, mixture, mixture_gradients, mixture_loss


def scores(rng, T: int, S: int) -> np.ndarray:
    """Random scores of the last T of S positions, -inf for those that are not there yet."""
    return np.where(np.tri(T, S, S - T, dtype=bool), rng.standard_normal((T, S)), -np.inf)


def test_a_mixture_by_hand():
    """Weights 0.5, 0.3 and 0.2 on the tokens 2, 0, 2, gate 0.25, a vocabulary of three that are equally likely."""
    c = copy_distribution(np.array([[0.5, 0.3, 0.2]]), np.array([2, 0, 2]), 3)
    np.testing.assert_allclose(c, [[0.3, 0, 0.7]])
    p = mixture(np.zeros((1, 3)), np.array([-np.log(3)]), c)
    np.testing.assert_allclose(p, [[0.25 + 0.075, 0.25, 0.25 + 0.175]])


@pytest.mark.parametrize(("T", "S"), [(1, 1), (4, 4), (3, 6)])
def test_the_loss_is_that_of_the_mixture(rng, T, S):
    z, u, s = rng.standard_normal((T, 4)), rng.standard_normal(T), scores(rng, T, S)
    tokens, y = rng.integers(0, 4, S), rng.integers(0, 4, T)
    A = np.exp(s) / np.exp(s).sum(axis=1, keepdims=True)
    p = mixture(z, u, copy_distribution(A, tokens, 4))
    np.testing.assert_allclose(p.sum(axis=1), 1)
    np.testing.assert_allclose(mixture_loss(z, u, s, tokens, y), -np.log(p[np.arange(T), y]), rtol=1e-13)


def test_gradients_against_finite_differences(rng, numerical_gradient):
    """Targets that stand in the text twice, once, not yet, and never. Would catch a share that goes the other way."""
    T, tokens, y = 5, np.array([2, 0, 2, 1, 0]), np.array([2, 1, 2, 3, 1])
    z, u, s = rng.standard_normal((T, 4)), rng.standard_normal(T), scores(rng, T, T)
    seen = np.isfinite(s)
    found = mixture_gradients(z, u, s, tokens, y)
    hidden = s.copy()

    def loss() -> float:
        return float(mixture_loss(z, u, np.where(seen, hidden, -np.inf), tokens, y).sum())

    hidden[~seen] = 0
    for array, gradient in zip((z, u, hidden), found, strict=True):
        np.testing.assert_allclose(gradient, numerical_gradient(loss, array), atol=1e-9)
    assert np.abs(found[2][1]).max() == 0  # its target, 1, is yet to come
    assert np.abs(found[2][2]).max() > 0.001
