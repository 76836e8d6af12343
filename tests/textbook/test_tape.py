import numpy as np
import pytest

from rhapsode.textbook import attention, recurrent
from rhapsode.textbook.tape import (
    Add,
    Attention,
    Bias,
    Concatenate,
    Convolution,
    Embedding,
    Leaf,
    Linear,
    Log,
    MatrixProduct,
    Mean,
    Mix,
    Module,
    Multiply,
    ReLU,
    RMSNorm,
    Sigmoid,
    SiLU,
    Slice,
    Softmax,
    SoftmaxCrossEntropy,
    SquaredReLU,
    Tanh,
    Tape,
)

# Each module with the shapes of its inputs: all sizes different, so that swapped axes cannot hide.
MODULES = {
    "linear": (Linear, [(2, 3, 4), (5, 4)]),
    "linear of one vector": (Linear, [(4,), (5, 4)]),
    "bias": (Bias, [(2, 3, 4), (4,)]),
    "bias of one vector": (Bias, [(4,), (4,)]),
    "relu": (ReLU, [(3, 4)]),
    "tanh": (Tanh, [(3, 4)]),
    "sigmoid": (Sigmoid, [(3, 4)]),
    "silu": (SiLU, [(3, 4)]),
    "squared relu": (SquaredReLU, [(3, 4)]),
    "rms norm": (RMSNorm, [(2, 3, 4), (4,)]),
    "rms norm of one vector": (RMSNorm, [(4,), (4,)]),
    "softmax": (Softmax, [(2, 3, 4)]),
    "softmax with cross-entropy": (lambda x: SoftmaxCrossEntropy(x, [[0, 3, 1], [2, 2, 0]]), [(2, 3, 4)]),
    "embedding": (lambda E: Embedding(E, [[4, 1, 4], [0, 1, 4]]), [(5, 3)]),
    "concatenate": (lambda *xs: Concatenate(*xs, axis=1), [(2, 3, 4), (2, 1, 4), (2, 5, 4)]),
    "slice": (lambda x: Slice(x, 1, 3, axis=1), [(2, 5, 3)]),
    "slice of the last axis": (lambda x: Slice(x, 2, 4), [(2, 5)]),
    "add": (Add, [(2, 3), (2, 3)]),
    "multiply": (Multiply, [(2, 3), (2, 3)]),
    "mix": (Mix, [(2, 3, 4), (2, 3, 4), (2, 3, 4)]),
    "mix of rows": (Mix, [(2, 3, 1), (2, 3, 4), (2, 3, 4)]),
    "matrix product": (MatrixProduct, [(2, 3, 4), (2, 4, 5)]),
    "mean": (Mean, [(2, 3, 4)]),
    "convolution": (lambda x, f: Convolution(x, f, stride=2, padding=1), [(2, 5, 7), (3, 2, 3, 2)]),
    "attention": (lambda *qkv: Attention(*qkv), [(2, 4, 3), (2, 4, 3), (2, 4, 5)]),
    "attention to everything": (lambda *qkv: Attention(*qkv, causal=False), [(2, 3), (4, 3), (4, 5)]),
}


@pytest.mark.parametrize("name", MODULES)
def test_every_module_against_finite_differences(rng, numerical_gradient, name):
    """The output is weighted at random before the mean: a plain mean would hide transposed gradients."""
    make, shapes = MODULES[name]
    leaves = [Leaf(rng.standard_normal(shape)) for shape in shapes]
    weights = Leaf(rng.standard_normal(make(*leaves).apply_forward(Tape()).output.shape))

    def run(tape: Tape) -> Module:
        u = make(*leaves).apply_forward(tape)
        return Mean(Multiply(u, weights).apply_forward(tape)).apply_forward(tape)

    tape = Tape()
    run(tape)
    tape.backward()
    for leaf in leaves:
        expected = numerical_gradient(lambda: float(run(Tape()).output), leaf.output)
        assert np.abs(expected).max() > 1e-3
        np.testing.assert_allclose(leaf.output_gradient, expected, atol=1e-9)


def test_the_logarithm():
    """Apart from the others: its input must be positive."""
    tape, x = Tape(), Leaf([0.5, 4.0])
    Mean(Log(x).apply_forward(tape)).apply_forward(tape)
    assert tape.modules[-1].output == pytest.approx(np.log(2) / 2)
    tape.backward()
    np.testing.assert_allclose(x.output_gradient, [1, 0.125])


def test_the_protocol_of_the_tape():
    """Forward pushes and sets gradients to zero; backward starts from one and leaves the tape empty."""
    tape, x = Tape(), Leaf([1.0, -2.0])
    u = ReLU(x).apply_forward(tape)
    loss = Mean(u).apply_forward(tape)
    assert tape.modules == [u, loss]
    np.testing.assert_array_equal(u.output_gradient, [0, 0])
    tape.backward()
    assert tape.modules == []
    assert loss.output_gradient == 1
    np.testing.assert_array_equal(u.output_gradient, [0.5, 0.5])
    np.testing.assert_array_equal(x.output_gradient, [0.5, 0])


def test_gradients_add_up_when_a_module_is_used_twice():
    """d(x² + 3x)/dx at 2 is 7. Would catch assigning where adding is needed."""
    tape, x, three = Tape(), Leaf(2.0), Leaf(3.0)
    square = Multiply(x, x).apply_forward(tape)
    Add(square, Multiply(x, three).apply_forward(tape)).apply_forward(tape)
    tape.backward()
    assert x.output_gradient == 7


def test_gradients_add_up_over_backward_passes_until_set_to_zero():
    x = Leaf([3.0])
    for expected in (6, 12):
        tape = Tape()
        Multiply(x, x).apply_forward(tape)
        tape.backward()
        assert x.output_gradient == expected
    x.zero_gradient()
    assert x.output_gradient == 0


def test_the_tape_must_be_a_stack():
    """z ∘ sigmoid(z): first-in order pops the sigmoid before its gradient has arrived from the product."""

    class Queue(Tape):
        def pop(self) -> Module:
            return self.modules.pop(0)

    def gradient(tape: Tape) -> np.ndarray:
        z = Leaf([0.5, -1.0])
        h = Sigmoid(z).apply_forward(tape)
        Mean(Multiply(h, z).apply_forward(tape)).apply_forward(tape)
        tape.backward()
        return z.output_gradient

    s = 1 / (1 + np.exp([-0.5, 1.0]))
    right = (s + np.array([0.5, -1.0]) * s * (1 - s)) / 2
    np.testing.assert_allclose(gradient(Tape()), right, rtol=1e-14)
    assert np.abs(gradient(Queue()) - right).max() > 0.1


def test_tapes_live_side_by_side():
    """Interleaved computations on two tapes, sharing a parameter, must not pop each other's modules."""
    a, b, w = Tape(), Tape(), Leaf([2.0])
    on_a = Multiply(w, Leaf([3.0])).apply_forward(a)
    on_b = Multiply(w, Leaf([10.0])).apply_forward(b)
    Tanh(on_b).apply_forward(b)
    Mean(on_a).apply_forward(a)
    a.backward()
    assert w.output_gradient == 3
    assert len(b.modules) == 2
    assert on_b.output_gradient == 0


def test_what_cannot_be_differentiated_is_refused():
    with pytest.raises(ValueError, match="tape is empty"):
        Tape().backward()
    tape = Tape()
    Tanh(Leaf([1.0, 2.0])).apply_forward(tape)
    with pytest.raises(ValueError, match=r"single number, got shape \(2,\)"):
        tape.backward()
    with pytest.raises(ValueError, match="Add needs inputs of equal shape"):
        Add(Leaf([1.0]), Leaf([1.0, 2.0])).apply_forward(tape)
    with pytest.raises(ValueError, match="equal leading axes"):
        MatrixProduct(Leaf(np.ones((2, 3, 4))), Leaf(np.ones((1, 4, 3)))).apply_forward(tape)


@pytest.mark.parametrize("activation", recurrent.ACTIVATIONS)
def test_the_tape_and_the_closed_form_agree_on_backpropagation_through_time(rng, activation):
    """Two derivations that share no code: modules popped from a stack, and sums of matrix powers."""
    T, D, H, V = 6, 3, 4, 5
    W_hh, W_hx, W_hy = (Leaf(rng.standard_normal(shape)) for shape in ((H, H), (H, D), (V, H)))
    x, y = rng.standard_normal((T, D)), rng.integers(0, V, T)
    psi = {"relu": ReLU, "tanh": Tanh}

    tape = Tape()
    h_prev: Module = Leaf(rng.standard_normal(H))
    h_0, loss, z, h, o = h_prev.output, Leaf(0.0), [], [], []
    for t in range(T):
        left = Linear(h_prev, W_hh).apply_forward(tape)
        z.append(Add(left, Linear(Leaf(x[t]), W_hx).apply_forward(tape)).apply_forward(tape))
        h_prev = z[t] if activation == "identity" else psi[activation](z[t]).apply_forward(tape)
        h.append(h_prev)
        o.append(Linear(h_prev, W_hy).apply_forward(tape))
        loss = Add(loss, SoftmaxCrossEntropy(o[t], y[t]).apply_forward(tape)).apply_forward(tape)
    tape.backward()

    weights = (W_hh.output, W_hx.output, W_hy.output)
    closed = recurrent.gradients(*weights, x, y, activation, h_0)
    assert loss.output == pytest.approx(recurrent.forward(*weights, x, y, activation, h_0).loss, rel=1e-13)
    for name, modules in {"o": o, "h": h, "z": z}.items():
        taped = np.array([m.output_gradient for m in modules])
        np.testing.assert_allclose(taped, getattr(closed, name), rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(W_hh.output_gradient, closed.W_hh, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(W_hx.output_gradient, closed.W_hx, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(W_hy.output_gradient, closed.W_hy, rtol=1e-11, atol=1e-11)


def test_the_tape_and_the_closed_form_agree_on_two_heads(rng):
    """Multi-head attention written as modules, one head after the other, against `multi_head_gradients`."""
    T, D, H, d_k, d_v, D_out = 5, 4, 2, 3, 6, 7
    shapes = {"q": (H, d_k), "k": (H, d_k), "v": (H, d_v)}
    W = {name: rng.standard_normal((*shape, D)) for name, shape in shapes.items()}
    b = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    W_o, b_o, dY = (
        rng.standard_normal((D_out, H * d_v)),
        rng.standard_normal(D_out),
        rng.standard_normal((T, D_out)),
    )
    X = rng.standard_normal((T, D))

    tape, x = Tape(), Leaf(X)
    W_leaves = {name: [Leaf(w) for w in heads] for name, heads in W.items()}
    b_leaves = {name: [Leaf(w) for w in heads] for name, heads in b.items()}
    W_o_leaf, b_o_leaf = Leaf(W_o), Leaf(b_o)
    heads = []
    for head in range(H):
        qkv = [
            Bias(Linear(x, W_leaves[n][head]).apply_forward(tape), b_leaves[n][head]).apply_forward(tape) for n in "qkv"
        ]
        heads.append(Attention(*qkv).apply_forward(tape))
    joined = Concatenate(*heads, axis=1).apply_forward(tape)
    Y = Bias(Linear(joined, W_o_leaf).apply_forward(tape), b_o_leaf).apply_forward(tape)
    Mean(Multiply(Y, Leaf(dY * dY.size)).apply_forward(tape)).apply_forward(tape)
    tape.backward()

    weights = attention.MultiHeadWeights(W["q"], b["q"], W["k"], b["k"], W["v"], b["v"], W_o, b_o)
    forward = attention.multi_head_attention(X, weights)
    dX, d = attention.multi_head_gradients(forward, weights, dY)
    np.testing.assert_allclose(forward.output, Y.output, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(dX, x.output_gradient, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(d.W_o, W_o_leaf.output_gradient, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(d.b_o, b_o_leaf.output_gradient, rtol=1e-11, atol=1e-12)
    for n in "qkv":
        taped_W = np.array([leaf.output_gradient for leaf in W_leaves[n]])
        taped_b = np.array([leaf.output_gradient for leaf in b_leaves[n]])
        np.testing.assert_allclose(getattr(d, f"W_{n}"), taped_W, rtol=1e-11, atol=1e-12)
        np.testing.assert_allclose(getattr(d, f"b_{n}"), taped_b, rtol=1e-11, atol=1e-12)
