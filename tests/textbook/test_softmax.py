import numpy as np
import pytest

from rhapsode.textbook.softmax import cross_entropy, cross_entropy_gradient, softmax, softmax_gradient


def test_softmax_of_known_logits():
    """exp(0) : exp(log 2) : exp(log 5) = 1 : 2 : 5. Would catch a wrong axis or a missing normaliser."""
    logits = np.log([[1.0, 2.0, 5.0], [3.0, 1.0, 4.0]])
    np.testing.assert_allclose(softmax(logits), [[1 / 8, 2 / 8, 5 / 8], [3 / 8, 1 / 8, 4 / 8]], rtol=1e-14)


def test_temperature_squares_or_takes_roots_of_the_odds():
    """Odds p_j / p_k are raised to 1 / τ; at τ = 1/2 odds of 3 become 9. Would catch multiplying by τ."""
    p = softmax(np.log([3.0, 1.0]), temperature=0.5)
    np.testing.assert_allclose(p, [0.9, 0.1], rtol=1e-14)


def test_temperature_zero_is_the_argmax_and_its_limit():
    logits = np.array([0.3, 2.0, 1.9])
    np.testing.assert_array_equal(softmax(logits, 0), [0, 1, 0])
    np.testing.assert_allclose(softmax(logits, 1e-3), [0, 1, 0], atol=1e-40)
    np.testing.assert_array_equal(softmax(np.array([5.0, 5.0]), 0), [1, 0])


def test_extreme_logits_do_not_overflow():
    with np.errstate(all="raise", under="ignore"):
        np.testing.assert_allclose(softmax(np.array([1e4, 0.0, -np.inf])), [1, 0, 0])
        np.testing.assert_allclose(softmax(np.array([1.0, 0.0]), 1e-300), [1, 0])
        assert cross_entropy(np.array([0.0, 1e4]), np.array(0)) == 1e4


@pytest.mark.parametrize("temperature", [-0.1, np.nan, np.inf])
def test_a_temperature_that_means_nothing_is_refused(temperature):
    with pytest.raises(ValueError, match="temperature must be finite and >= 0"):
        softmax(np.zeros(3), temperature)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_softmax_gradient_against_finite_differences(rng, numerical_gradient, temperature):
    s, dp = rng.standard_normal((2, 5)), rng.standard_normal((2, 5))
    expected = numerical_gradient(lambda: (dp * softmax(s, temperature)).sum(), s)
    np.testing.assert_allclose(softmax_gradient(softmax(s, temperature), dp, temperature), expected, atol=1e-9)


def test_cross_entropy_and_its_gradient(rng, numerical_gradient):
    s, y = rng.standard_normal((2, 3, 7)), rng.integers(0, 7, (2, 3))
    by_definition = [[-np.log(softmax(s[b, t])[y[b, t]]) for t in range(3)] for b in range(2)]
    np.testing.assert_allclose(cross_entropy(s, y), by_definition, rtol=1e-13)
    expected = numerical_gradient(lambda: cross_entropy(s, y).sum(), s)
    np.testing.assert_allclose(cross_entropy_gradient(s, y), expected, atol=1e-9)
