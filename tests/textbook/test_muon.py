import numpy as np
import pytest

from rhapsode.textbook.optimizer import (
    CONVERGING,
    Optimizer,
    Rates,
    clip,
    newton_schulz,
    polar_factor,
    singular_value_map,
)

SHAPES = [(1, 1), (1, 6), (6, 1), (4, 4), (3, 7), (7, 3)]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_iteration_moves_singular_values_alone(rng, shape):
    """Oracle: the polynomial on the singular values of an SVD. Would catch X Xᵀ taken on the wrong side."""
    U = rng.standard_normal(shape)
    P, sigma, Qt = np.linalg.svd(U, full_matrices=False)
    for k, X in enumerate(newton_schulz(U)):
        expected = singular_value_map(sigma / (np.linalg.norm(U) + 1e-7), steps=k)
        np.testing.assert_allclose(X, P @ np.diag(expected) @ Qt, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_converging_coefficients_lead_to_the_polar_factor(rng, shape):
    """The oracle of what Muon aims at: PQᵀ of an SVD, a matrix with orthonormal rows or columns."""
    U = rng.standard_normal(shape)
    O = newton_schulz(U, CONVERGING, steps=30)[-1]
    np.testing.assert_allclose(O, polar_factor(U), atol=1e-12)
    short = O @ O.T if shape[0] <= shape[1] else O.T @ O
    np.testing.assert_allclose(short, np.eye(min(shape)), atol=1e-12)


def test_the_polar_factor_is_the_nearest_of_its_kind(rng):
    """Among 500 orthogonal matrices none is nearer to U."""
    U = rng.standard_normal((3, 3))
    nearest = np.linalg.norm(U - polar_factor(U))
    for _ in range(500):
        Q, _ = np.linalg.qr(rng.standard_normal((3, 3)))
        assert np.linalg.norm(U - Q) >= nearest


def test_muons_coefficients_end_between_bounds_and_begin_fast():
    """Every σ from 0.003 to 1 ends between 0.65 and 1.25; the converging ones leave small σ behind."""
    sigma = np.linspace(0.003, 1, 5000)
    assert 0.65 < singular_value_map(sigma).min() < singular_value_map(sigma).max() < 1.25
    assert singular_value_map(np.array([0.003]), CONVERGING)[0] < 0.08
    assert not newton_schulz(np.zeros((2, 3)))[-1].any()


def test_clip_cuts_all_gradients_together():
    """3 and 4 are 5 long together; cut to 1 they are 0.6 and 0.8 long, and a short gradient stays as it is."""
    gradients = {"a": np.array([3.0, 0.0]), "b": np.array([[4.0]])}
    cut, norm = clip(gradients, 1.0)
    assert norm == 5
    np.testing.assert_allclose([cut["a"][0], cut["b"][0, 0]], [0.6, 0.8], rtol=1e-6)
    assert clip(gradients, 6.0)[0]["a"].tolist() == [3, 0]


def test_the_first_step_of_each_rule_by_hand():
    """AdamW: every entry moves by η, after a decay of matrices alone. Muon: by η √(m/n) along the polar factor."""
    weights = {
        "embeddings.weight": np.full((2, 2), 10.0),
        "norm.weight": np.full(3, 10.0),
        "rnn.weight": np.full((4, 1), 10.0),
    }
    gradients = {name: np.full(W.shape, 0.1) for name, W in weights.items()}
    moved, _ = Optimizer(weights, Rates(adamw=0.5, muon=0.25, decay=0.1, length=9.0)).step(
        weights, gradients, share=0.5
    )
    np.testing.assert_allclose(moved["embeddings.weight"], 10 - 0.25 * 0.1 * 10 - 0.25, rtol=1e-6)
    np.testing.assert_allclose(moved["norm.weight"], 10 - 0.25, rtol=1e-6)
    step = (
        0.125 * 2 * 0.5 * singular_value_map(np.array([1.0]))[0]
    )  # each of four equal entries of a unit vector is 0.5
    np.testing.assert_allclose(moved["rnn.weight"], 10 - 0.125 * 0.1 * 10 - step, rtol=1e-6)
