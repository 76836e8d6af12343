"""The course's model against its equations, step against forward, and weights and activations put in from outside."""

import math

import pytest
import torch
from torch import Tensor, nn

from rhapsode.course import RNN, RNNCell, RNNLanguageModel, SelfAttention, plain_parts
from rhapsode.course.model import kernel_activation
from rhapsode.model import PlainModel

EMBED, HIDDEN, VOCAB, KEY, VALUE = 5, 7, 23, 3, 4


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


ACTIVATIONS = pytest.mark.parametrize(
    "activation",
    [nn.ReLU(), nn.Tanh(), nn.Identity(), nn.Sigmoid(), Swish(), nn.LeakyReLU(0.3)],
    ids=lambda activation: type(activation).__name__,
)
SHAPES = pytest.mark.parametrize(("B", "t"), [(1, 1), (1, 9), (3, 1), (3, 6)])


def made(dtype: torch.dtype = torch.float64) -> RNNLanguageModel:
    torch.manual_seed(1)
    return RNNLanguageModel(EMBED, HIDDEN, VOCAB, KEY, VALUE).to(dtype)


def tokens_of(B: int, t: int) -> Tensor:
    return torch.randint(VOCAB, (B, t), generator=torch.Generator().manual_seed(2))


def by_the_equations(lm: RNNLanguageModel, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sums and loops over the state dict alone, one sequence and one timestep at a time."""
    weights = dict(lm.named_parameters())

    def linear(name: str, x: Tensor) -> Tensor:
        return weights[f"{name}.weight"] @ x + weights[f"{name}.bias"]

    all_logits, all_hidden, all_y = [], [], []
    for row in tokens:
        h, hs, ys, logits = torch.zeros(HIDDEN, dtype=torch.float64), [], [], []
        for token in row:
            h = lm.rnn.cell.activation(
                linear("rnn.cell.i2h", weights["embeddings.weight"][token]) + linear("rnn.cell.h2h", h)
            )
            hs.append(h)
            ys.append(linear("rnn.out", h))
            q = linear("attention.query_transform", ys[-1])
            keys = [linear("attention.key_transform", y) for y in ys]
            scores = torch.softmax(torch.stack([k @ q / math.sqrt(KEY) for k in keys]), 0)
            a = sum(score * linear("attention.value_transform", y) for score, y in zip(scores, ys, strict=True))
            logits.append(linear("lm_head", linear("attention.output_transform", a)))
        for rows, row_of in ((all_logits, logits), (all_hidden, hs), (all_y, ys)):
            rows.append(torch.stack(row_of))
    return torch.stack(all_logits), torch.stack(all_hidden), torch.stack(all_y)


@SHAPES
@ACTIVATIONS
def test_values_and_gradients_follow_the_equations(activation: nn.Module, B: int, t: int) -> None:
    """A foreign activation taken for relu, a transposed weight, a future position seen."""
    lm, tokens = made(), tokens_of(B, t)
    lm.rnn.cell.activation = activation
    ours, theirs = lm(tokens), by_the_equations(lm, tokens)
    for a, b, width in zip(ours, theirs, (VOCAB, HIDDEN, HIDDEN), strict=True):
        assert a.shape == (B, t, width)
        assert a.is_contiguous()  # a test may call .view on it
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    upstream = [torch.randn_like(a) for a in ours]
    parameters = list(lm.parameters())
    for a, b in zip(
        torch.autograd.grad(ours, parameters, upstream), torch.autograd.grad(theirs, parameters, upstream), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@SHAPES
@ACTIVATIONS
def test_rnn_step_is_forward(activation: nn.Module, B: int, t: int) -> None:
    """Only the last row of hidden_prev matters; None and no rows are the start."""
    torch.manual_seed(3)
    rnn = RNN(EMBED, HIDDEN).double()
    rnn.cell.activation = activation
    sequence = torch.randn(B, t, EMBED, dtype=torch.float64)
    hidden_states, outputs = rnn(sequence)
    for n in range(t):
        noise = torch.randn(B, n, HIDDEN, dtype=torch.float64)
        noise[:, -1:] = hidden_states[:, n - 1 : n] if n else noise[:, -1:]
        for hidden_prev in [noise] if n else [None, noise]:
            hidden, output = rnn.step(sequence[:, n], hidden_prev)
            assert hidden.shape == output.shape == (B, HIDDEN)
            torch.testing.assert_close(hidden, hidden_states[:, n], rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(output, outputs[:, n], rtol=1e-10, atol=1e-12)
        if n:  # two dimensions: the last hidden state itself
            assert torch.equal(rnn.step(sequence[:, n], noise[:, -1])[0], hidden)


@SHAPES
def test_attention_step_is_forward(B: int, t: int) -> None:
    torch.manual_seed(4)
    attention = SelfAttention(HIDDEN, KEY, VALUE).double()
    y = torch.randn(B, t, HIDDEN, dtype=torch.float64)
    whole = attention(y)
    assert whole.shape == (B, t, HIDDEN)
    for n in range(1, t + 1):
        torch.testing.assert_close(attention.step(y[:, :n]), whole[:, n - 1], rtol=1e-10, atol=1e-12)


def test_the_cell_is_a_step() -> None:
    cell = RNNCell(EMBED, HIDDEN)
    i, h = torch.randn(3, EMBED), torch.randn(3, HIDDEN)
    expected = torch.relu(i @ cell.i2h.weight.T + cell.i2h.bias + h @ cell.h2h.weight.T + cell.h2h.bias)
    torch.testing.assert_close(cell(i, h), expected)


def test_weights_put_in_from_outside_count_at_once() -> None:
    """Nothing may be kept from the weights, neither at construction nor from the call before."""
    lm, tokens = made(), tokens_of(2, 5)
    before = lm(tokens)[0]
    lm.rnn.cell.h2h.weight = nn.Parameter(torch.eye(HIDDEN, dtype=torch.float64))
    lm.attention.value_transform.bias = nn.Parameter(torch.ones(VALUE, dtype=torch.float64))
    after = lm(tokens)[0]
    assert (before - after).abs().max() > 1e-3
    torch.testing.assert_close(after, by_the_equations(lm, tokens)[0], rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        lm.lm_head.weight.zero_()
    torch.testing.assert_close(lm(tokens)[0], lm.lm_head.bias.expand(2, 5, VOCAB))


def test_a_cell_or_layer_of_another_kind_is_called_step_by_step() -> None:
    """A GRU in place of the cell, a layer without bias, a hook: each is honoured, not replaced by the kernel."""
    rnn, sequence = RNN(EMBED, HIDDEN), torch.randn(2, 4, EMBED)
    assert kernel_activation(rnn.cell) == "relu"
    calls = []
    handle = rnn.cell.register_forward_hook(lambda *_: calls.append(1))
    hooked = rnn(sequence)
    assert len(calls) == 4
    handle.remove()
    torch.testing.assert_close(hooked, rnn(sequence))

    rnn.cell.h2h = nn.Linear(HIDDEN, HIDDEN, bias=False)
    torch.testing.assert_close(rnn(sequence)[0][:, 0], torch.relu(rnn.cell.i2h(sequence[:, 0])))

    rnn.cell = nn.GRUCell(EMBED, HIDDEN)
    gru = nn.GRU(EMBED, HIDDEN, batch_first=True)
    for name, parameter in rnn.cell.named_parameters():
        setattr(gru, f"{name}_l0", parameter)
    torch.testing.assert_close(rnn(sequence)[0], gru(sequence)[0])


def test_key_and_value_dim_default_to_hidden_dim() -> None:
    lm = RNNLanguageModel(EMBED, HIDDEN, VOCAB)
    assert lm.attention.query_transform.weight.shape == (HIDDEN, HIDDEN)
    assert lm.attention.value_transform.weight.shape == (HIDDEN, HIDDEN)


def test_the_same_seed_gives_pytorchs_default_weights_in_order() -> None:
    """Names, order and initial values: a module made out of order draws other numbers."""
    torch.manual_seed(10601)
    lm = RNNLanguageModel(EMBED, HIDDEN, VOCAB, KEY, VALUE)
    torch.manual_seed(10601)
    sizes = {
        "rnn.cell.i2h": (EMBED, HIDDEN),
        "rnn.cell.h2h": (HIDDEN, HIDDEN),
        "rnn.out": (HIDDEN, HIDDEN),
        "attention.query_transform": (HIDDEN, KEY),
        "attention.key_transform": (HIDDEN, KEY),
        "attention.value_transform": (HIDDEN, VALUE),
        "attention.output_transform": (VALUE, HIDDEN),
        "lm_head": (HIDDEN, VOCAB),
    }
    expected = {"embeddings.weight": nn.Embedding(VOCAB, EMBED).weight}
    for name, size in sizes.items():
        layer = nn.Linear(*size)
        expected |= {f"{name}.weight": layer.weight, f"{name}.bias": layer.bias}
    assert list(lm.state_dict()) == list(expected)
    for name, tensor in lm.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_select_token() -> None:
    lm = made()
    logits = torch.tensor([0.1, 3.0, -1.0, 2.5])
    token = lm.select_token(logits, 0.0)
    assert token.shape == ()
    assert token == 1
    torch.manual_seed(5)
    drawn = [lm.select_token(logits, 0.7) for _ in range(20)]
    torch.manual_seed(5)
    assert drawn == [torch.multinomial(torch.softmax(logits / 0.7, -1), 1)[0] for _ in range(20)]
    assert drawn[0].shape == ()
    with pytest.raises(ValueError, match=r"temperature must be >= 0, got -1"):
        lm.select_token(logits, -1.0)


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Sigmoid()])
@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_generate_is_forward_and_select_again_and_again(activation: nn.Module, temperature: float) -> None:
    """A stale hidden state or cache shows; so does a draw too many from the global generator."""
    lm, tokens = made(), tokens_of(1, 4)
    lm.rnn.cell.activation = activation
    torch.manual_seed(6)
    ours = lm.generate(tokens, max_tokens=12, temperature=temperature)
    after = torch.rand(1)
    torch.manual_seed(6)
    seen = tokens
    for _ in range(12):
        seen = torch.cat((seen, lm.select_token(lm(seen)[0][0, -1], temperature).view(1, 1)), dim=1)
    assert ours.dtype == torch.int64
    assert ours.tolist() == seen[0, 4:].tolist()
    assert torch.equal(after, torch.rand(1))


def test_generate_sizes() -> None:
    lm = made()
    assert lm.generate(tokens_of(1, 1)).shape == (10,)
    assert lm.generate(tokens_of(1, 3), max_tokens=0).shape == (0,)
    assert torch.equal(lm.generate(tokens_of(1, 3), max_tokens=16.0), lm.generate(tokens_of(1, 3), max_tokens=16))
    for tokens in (tokens_of(2, 3), tokens_of(1, 0), torch.tensor([1, 2])):
        with pytest.raises(ValueError, match=r"tokens must be of shape \(1, n\)"):
            lm.generate(tokens)
    for number in (2.5, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"max_tokens must be a whole number, got {number}"):
            lm.generate(tokens_of(1, 3), max_tokens=number)
    with pytest.raises(ValueError, match="max_tokens must be >= 0, got -1"):
        lm.generate(tokens_of(1, 3), max_tokens=-1)


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Tanh()])
def test_the_plain_model_computes_the_same(activation: nn.Module) -> None:
    """What an import relies on."""
    lm, tokens = made(), tokens_of(2, 6)
    lm.rnn.cell.activation = activation
    config, state = plain_parts(lm)
    plain = PlainModel(config).double()
    plain.load_state_dict(state)
    torch.testing.assert_close(plain(tokens)[0], lm(tokens)[0], rtol=1e-10, atol=1e-12)
    assert (config.embed_dim, config.hidden_dim, config.vocab_size) == (EMBED, HIDDEN, VOCAB)
    assert (config.key_dim, config.value_dim) == (KEY, VALUE)
