import numpy as np
import pytest

from rhapsode.textbook.gated import gated_gradients, gated_states, kept_shares


def test_a_state_by_hand():
    """a = 0.75 (log 3) and 0.5: from h_0 = 8, 0.75 * 8 + 0.25 * 4 = 7, then 0.5 * 7 + 0.5 * 3 = 5."""
    s, c = np.array([[np.log(3)], [0.0]]), np.array([[4.0], [3.0]])
    np.testing.assert_allclose(gated_states(s, c, np.array([8.0])), [[7], [5]])
    np.testing.assert_allclose(gated_states(s, c), [[1], [2]])


@pytest.mark.parametrize("T", [1, 6])
def test_the_states_are_means_of_what_came_in(rng, T):
    """The closed form is the recursion, and its weights sum to 1. Would catch a share that is taken twice."""
    s, c, h_0 = rng.standard_normal((T, 3)), rng.standard_normal((T, 3)), rng.standard_normal(3)
    w = kept_shares(s)
    np.testing.assert_allclose(w.sum(axis=1), 1, rtol=1e-14)
    np.testing.assert_allclose((w * np.vstack([h_0[None], c])).sum(axis=1), gated_states(s, c, h_0), rtol=1e-13)


def test_half_is_kept_for_as_long_as_the_chapter_says():
    for a, steps in ((0.9, 7), (0.99, 69)):
        kept = kept_shares(np.full((70, 1), np.log(a / (1 - a))))[:, 0, 0]
        assert kept[steps - 1] < 0.5 < kept[steps - 2] or round(np.log(2) / -np.log(a)) == steps


@pytest.mark.parametrize("T", [1, 5])
def test_gradients_against_finite_differences(rng, numerical_gradient, T):
    s, c, g, h_0 = (rng.standard_normal(shape) for shape in ((T, 3), (T, 3), (T, 3), (3,)))
    found = gated_gradients(s, c, g, h_0)
    for array, gradient in zip((s, c, h_0), found, strict=True):
        expected = numerical_gradient(lambda: float((gated_states(s, c, h_0) * g).sum()), array)
        np.testing.assert_allclose(gradient, expected, atol=1e-9)
