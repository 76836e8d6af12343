import numpy as np
import pytest

from rhapsode.textbook import attention

T, D, H, D_K, D_V, D_OUT = 5, 4, 3, 2, 6, 7


@pytest.fixture
def weights(rng):
    return attention.MultiHeadWeights(
        W_q=rng.standard_normal((H, D_K, D)),
        b_q=rng.standard_normal((H, D_K)),
        W_k=rng.standard_normal((H, D_K, D)),
        b_k=rng.standard_normal((H, D_K)),
        W_v=rng.standard_normal((H, D_V, D)),
        b_v=rng.standard_normal((H, D_V)),
        W_o=rng.standard_normal((D_OUT, H * D_V)),
        b_o=rng.standard_normal(D_OUT),
    )


def test_attention_by_hand():
    """d_k = 4, so scores are halved. Row 2 weighs the values by 1 : 3; row 1 sees itself alone."""
    Q = np.array([[1.0, 0, 0, 0], [1, 0, 0, 0]])
    K = np.array([[0.0, 0, 0, 0], [2 * np.log(3), 0, 0, 0]])
    V = np.array([[4.0], [8.0]])
    f = attention.attend(Q, K, V)
    np.testing.assert_allclose(f.A, [[1, 0], [0.25, 0.75]], rtol=1e-14)
    np.testing.assert_allclose(f.O, [[4], [7]], rtol=1e-14)


def test_every_query_against_the_sum_as_written(rng):
    """c_t = Σ_{n≤t} softmax_n(k_n · q_t / √d_k) v_n, in loops over a batch of two."""
    Q, K, V = (rng.standard_normal((2, T, d)) for d in (D_K, D_K, D_V))
    for causal in (True, False):
        O = attention.attend(Q, K, V, causal).O
        for b in range(2):
            for t in range(T):
                seen = range(t + 1 if causal else T)
                e = np.exp([K[b, n] @ Q[b, t] / np.sqrt(D_K) for n in seen])
                expected = sum(e[n] / e.sum() * V[b, n] for n in seen)
                np.testing.assert_allclose(O[b, t], expected, rtol=1e-12)


def test_the_future_has_no_influence(rng):
    Q, K, V = (rng.standard_normal((T, d)) for d in (D_K, D_K, D_V))
    before = attention.attend(Q, K, V)
    K[3:], V[3:] = 99, -99
    after = attention.attend(Q, K, V)
    np.testing.assert_array_equal(after.O[:3], before.O[:3])
    assert np.abs(after.O[3:] - before.O[3:]).min() > 1e-3
    dQ, dK, dV = attention.attend_gradients(before, np.eye(T, D_V) * [[1], [0], [0], [0], [0]])
    assert not dK[1:].any()
    assert not dV[1:].any()
    assert not dQ[1:].any()


def test_fewer_queries_than_keys_are_the_last_ones(rng):
    """As with a cache: the last two queries alone must see what they see in the whole sequence."""
    Q, K, V = (rng.standard_normal((T, d)) for d in (D_K, D_K, D_V))
    np.testing.assert_allclose(attention.attend(Q[3:], K, V).O, attention.attend(Q, K, V).O[3:], rtol=1e-13)


@pytest.mark.parametrize("causal", [True, False])
def test_gradients_against_finite_differences(rng, numerical_gradient, causal):
    Q, K, V = (rng.standard_normal((T, d)) for d in (D_K, D_K, D_V))
    dO = rng.standard_normal((T, D_V))
    found = attention.attend_gradients(attention.attend(Q, K, V, causal), dO)
    for array, gradient in zip((Q, K, V), found, strict=True):
        expected = numerical_gradient(lambda: (dO * attention.attend(Q, K, V, causal).O).sum(), array)
        np.testing.assert_allclose(gradient, expected, atol=1e-8)


def test_multi_head_gradients_against_finite_differences(rng, weights, numerical_gradient):
    X, dY = rng.standard_normal((T, D)), rng.standard_normal((T, D_OUT))
    dX, d = attention.multi_head_gradients(attention.multi_head_attention(X, weights), weights, dY)

    def loss() -> float:
        return (dY * attention.multi_head_attention(X, weights).output).sum()

    np.testing.assert_allclose(dX, numerical_gradient(loss, X), rtol=1e-7, atol=1e-8)
    for name, array in vars(weights).items():
        np.testing.assert_allclose(getattr(d, name), numerical_gradient(loss, array), rtol=1e-7, atol=1e-8)


def test_shapes_by_name(rng, weights):
    """Keys per head T x d_k; heads joined T x H x d_v."""
    shapes = attention.multi_head_attention(rng.standard_normal((T, D)), weights).shapes()
    assert shapes == {
        "inputs": (T, D),
        "queries_per_head": (T, D_K),
        "keys_per_head": (T, D_K),
        "values_per_head": (T, D_V),
        "scores_per_head": (T, T),
        "weights_per_head": (T, T),
        "outputs_per_head": (T, D_V),
        "heads_joined": (T, H, D_V),
        "output": (T, D_OUT),
    }


def test_heads_are_joined_side_by_side(rng, weights):
    """Columns of head h in W_o act on head h alone. Would catch a reshape that interleaves heads."""
    X = rng.standard_normal((T, D))
    W_o = np.zeros_like(weights.W_o)
    W_o[0, D_V : D_V + D_V] = 1
    one_head = attention.MultiHeadWeights(**{**vars(weights), "W_o": W_o, "b_o": np.zeros(D_OUT)})
    f = attention.multi_head_attention(X, one_head)
    np.testing.assert_allclose(f.output[:, 0], f.outputs_per_head[1].sum(axis=1), rtol=1e-12)


def test_shapes_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match="do not belong together"):
        attention.attend(np.ones((3, 2)), np.ones((3, 4)), np.ones((3, 4)))
    with pytest.raises(ValueError, match="a key for every query, got 3 queries and 2 keys"):
        attention.attend(np.ones((3, 2)), np.ones((2, 2)), np.ones((2, 4)))
