"""The kernel against finite differences, PyTorch's own RNN and the stepwise equation."""

import pytest
import torch

from rhapsode.kernels.recurrence import recurrence


def stepwise(x: torch.Tensor, weight: torch.Tensor, initial: torch.Tensor | None, activation: str) -> torch.Tensor:
    h = torch.zeros_like(x[0]) if initial is None else initial
    states = []
    for x_t in x:
        h = getattr(torch, activation)(x_t + h @ weight.t())
        states.append(h)
    return torch.stack(states)


def tensors(T: int, B: int, H: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(T * 100 + B * 10 + H)

    def make(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    return make(T, B, H), make(H, H), make(B, H)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("with_initial", [True, False])
@pytest.mark.parametrize(("T", "B", "H"), [(1, 1, 1), (1, 3, 2), (5, 1, 4), (7, 2, 3)])
def test_values_and_gradients_equal_the_stepwise_equation(
    T: int, B: int, H: int, with_initial: bool, activation: str
) -> None:
    """Catches a transposed weight, a lost initial state, a gradient that stops after one step."""
    x, weight, initial = tensors(T, B, H)
    inputs = (x, weight, initial) if with_initial else (x, weight)
    given = initial if with_initial else None
    fast, slow = recurrence(x, weight, given, activation), stepwise(x, weight, given, activation)
    upstream = torch.randn_like(slow)
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-12)
    for ours, theirs in zip(
        torch.autograd.grad(fast, inputs, upstream), torch.autograd.grad(slow, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_gradcheck() -> None:
    """Finite differences in float64 (tanh has no kink; relu is compared with autograd above)."""
    x, weight, initial = tensors(4, 2, 3)
    assert torch.autograd.gradcheck(lambda *a: recurrence(*a, "tanh"), (x, weight, initial))


def test_equals_pytorch_rnn() -> None:
    """Independent oracle: nn.RNN with the same weights."""
    torch.manual_seed(0)
    rnn = torch.nn.RNN(5, 6, nonlinearity="relu").double()
    i, h0 = torch.randn(7, 3, 5, dtype=torch.float64), torch.randn(1, 3, 6, dtype=torch.float64)
    x = i @ rnn.weight_ih_l0.t() + rnn.bias_ih_l0 + rnn.bias_hh_l0
    torch.testing.assert_close(recurrence(x, rnn.weight_hh_l0, h0[0]), rnn(i, h0)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("transposed", [False, True])
def test_states_in_the_place_of_the_inputs(transposed: bool) -> None:
    """overwrite=True changes where the states are, not what they are, nor the gradients; x is left alone without it."""
    leaf, weight, initial = tensors(5, 2, 3)
    before = leaf.detach().clone()
    expected = recurrence(leaf, weight, initial)
    torch.testing.assert_close(leaf.detach(), before, rtol=0, atol=0)
    x = leaf * 1
    if transposed:
        x = x.transpose(0, 1).contiguous().transpose(0, 1)
    h = recurrence(x, weight, initial, overwrite=True)
    assert (h.data_ptr() == x.data_ptr()) == (not transposed)
    torch.testing.assert_close(h, expected, rtol=0, atol=0)
    inputs, upstream = (leaf, weight, initial), torch.randn_like(h)
    ours, theirs = torch.autograd.grad(h, inputs, upstream), torch.autograd.grad(expected, inputs, upstream)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dims", [(0, 0, 0), (2, 1, 1), (0, None, None), (None, 0, None)], ids=str)
@pytest.mark.parametrize("T", [1, 4])
@pytest.mark.parametrize("with_initial", [True, False])
def test_models_side_by_side(dims: tuple[int | None, int | None, int | None], T: int, with_initial: bool) -> None:
    """torch.vmap catches rows that meet another model's weights, and a gradient that is one model's for all."""
    M = 3
    parts = [tensors(T, 2 + model, 4) for model in (0, 0, 0)]
    single = [torch.stack([model * 0.1 + part[i] for model, part in enumerate(parts)]).detach() for i in range(3)]
    inputs = [
        (each[0] if dim is None else each.movedim(0, dim)).clone().requires_grad_()
        for each, dim in zip(single, dims, strict=True)
    ]
    count = 3 if with_initial else 2
    side_by_side = torch.vmap(recurrence, in_dims=dims[:count])(*inputs[:count])
    alone = [
        recurrence(
            *(each if dim is None else each.select(dim, m) for each, dim in zip(inputs[:count], dims, strict=False))
        )
        for m in range(M)
    ]
    torch.testing.assert_close(side_by_side, torch.stack(alone), rtol=0, atol=1e-12)
    upstream = torch.randn_like(side_by_side)
    ours = torch.autograd.grad(side_by_side, inputs[:count], upstream)
    theirs = torch.autograd.grad(torch.stack(alone), inputs[:count], upstream)
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_unknown_activation_is_named() -> None:
    x, weight, _ = tensors(2, 1, 2)
    with pytest.raises(ValueError, match="activation must be one of relu, tanh, got 'gelu'"):
        recurrence(x, weight, None, "gelu")
