import numpy as np
import pytest

from rhapsode.textbook.language_model import LanguageModel, Sizes, initial_weights
from rhapsode.textbook.softmax import cross_entropy
from rhapsode.textbook.tape import Tape

SIZES = Sizes(vocab_size=7, embed_dim=3, hidden_dim=5, key_dim=2, value_dim=4)
TOKENS = np.array([[1, 6, 2, 2, 0], [3, 3, 5, 1, 4]])


def test_forward_against_the_equations_token_by_token():
    """The equations of the docstring in loops over b and t: no tape, no batch, no matrices Q, K, V."""
    weights = initial_weights(SIZES, seed=0)
    output = LanguageModel(weights).forward(Tape(), TOKENS)

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return weights[f"{name}.weight"] @ x + weights[f"{name}.bias"]

    for b, row in enumerate(TOKENS):
        h, ys = np.zeros(SIZES.hidden_dim), []
        for t, token in enumerate(row):
            h = np.maximum(linear("rnn.cell.i2h", weights["embeddings.weight"][token]) + linear("rnn.cell.h2h", h), 0)
            ys.append(linear("rnn.out", h))
            q = linear("attention.query_transform", ys[t])
            e = np.exp([linear("attention.key_transform", y) @ q / np.sqrt(SIZES.key_dim) for y in ys])
            c = sum(e[n] / e.sum() * linear("attention.value_transform", ys[n]) for n in range(t + 1))
            s = linear("lm_head", linear("attention.output_transform", c))
            np.testing.assert_allclose(output.h.output[b, t], h, rtol=1e-12)
            np.testing.assert_allclose(output.y.output[b, t], ys[t], rtol=1e-12)
            np.testing.assert_allclose(output.logits.output[b, t], s, rtol=1e-12)


def test_loss_predicts_the_next_token():
    """Position n is scored on token n + 1, and the last position on nothing."""
    model = LanguageModel(initial_weights(SIZES, seed=0))
    logits = model.forward(Tape(), TOKENS).logits.output
    expected = np.mean([cross_entropy(logits[b, n], TOKENS[b, n + 1]) for b in range(2) for n in range(4)])
    assert model.loss(Tape(), TOKENS).output == pytest.approx(expected, rel=1e-13)


def test_gradients_of_every_parameter_against_finite_differences(numerical_gradient):
    model = LanguageModel(initial_weights(SIZES, seed=1))
    _, gradients = model.gradients(TOKENS)
    assert len(gradients) == 17
    for name, p in model.parameters.items():
        gradient = gradients[name].copy()
        expected = numerical_gradient(lambda: float(model.loss(Tape(), TOKENS).output), p.output)
        np.testing.assert_allclose(gradient, expected, atol=1e-9, err_msg=name)


def test_gradients_do_not_depend_on_earlier_calls():
    model = LanguageModel(initial_weights(SIZES, seed=1))
    first = {name: g.copy() for name, g in model.gradients(TOKENS)[1].items()}
    for name, g in model.gradients(TOKENS)[1].items():
        np.testing.assert_array_equal(g, first[name])


def test_the_first_step_of_adam_moves_each_weight_by_the_learning_rate():
    """At the first step m̂ / √v̂ is the sign of the gradient, clipped or not: each weight moves by η."""
    model = LanguageModel(initial_weights(SIZES, seed=2))
    _, gradients = model.gradients(TOKENS)
    before = {name: p.output.copy() for name, p in model.parameters.items()}
    gradients = {name: g.copy() for name, g in gradients.items()}
    model.train_step(TOKENS, learning_rate=0.01)
    moved = 0
    for name, p in model.parameters.items():
        large = np.abs(gradients[name]) > 1e-4
        moved += large.sum()
        step = (p.output - before[name])[large]
        np.testing.assert_allclose(step, -0.01 * np.sign(gradients[name])[large], rtol=1e-3)
    assert moved > 100


def test_a_few_training_steps_learn_the_sequences():
    model = LanguageModel(initial_weights(SIZES, seed=3))
    losses = [model.train_step(TOKENS, learning_rate=0.02) for _ in range(150)]
    assert losses[0] > 1.5
    assert losses[-1] < 0.25


def test_sizes_and_sequences_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="key_dim must be >= 1, got 0"):
        Sizes(vocab_size=7, embed_dim=3, hidden_dim=5, key_dim=0, value_dim=4)
    with pytest.raises(ValueError, match="at least 2 tokens"):
        LanguageModel(initial_weights(SIZES, seed=0)).loss(Tape(), TOKENS[:, :1])
