"""The kernel of the gated recurrence against finite differences and the stepwise equation."""

import pytest
import torch

from rhapsode.kernels import form
from rhapsode.kernels.gated import gated_recurrence, gated_stepwise


def tensors(T: int, B: int, H: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(T * 100 + B * 10 + H)
    x, initial = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((T, B, 2 * H), (B, H)))
    return x.requires_grad_(), initial.requires_grad_()


@pytest.mark.parametrize("block", [1, 3, 2**15], ids=["a step at a time", "blocks and a rest", "at once"])
@pytest.mark.parametrize("with_initial", [True, False])
@pytest.mark.parametrize(("T", "B", "H"), [(1, 1, 1), (1, 3, 2), (5, 1, 4), (7, 2, 3)])
def test_values_and_gradients_equal_the_stepwise_equation(
    T: int, B: int, H: int, with_initial: bool, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a lost initial state, and a gradient that ends at the edge of a block."""
    monkeypatch.setattr("rhapsode.kernels.gated.BLOCK_ENTRIES", max(1, block * B * H // torch.get_num_threads()))
    x, initial = tensors(T, B, H)
    inputs = (x, initial) if with_initial else (x,)
    before = x.detach().clone()
    fast, slow = gated_recurrence(*inputs), gated_stepwise(*inputs)
    upstream = torch.randn_like(slow)
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-13)
    torch.testing.assert_close(
        torch.autograd.grad(fast, inputs, upstream), torch.autograd.grad(slow, inputs, upstream), rtol=0, atol=1e-12
    )
    torch.testing.assert_close(x.detach(), before, rtol=0, atol=0)


def test_finite_differences() -> None:
    x, initial = tensors(4, 2, 3)
    assert torch.autograd.gradcheck(gated_recurrence, (x, initial))
    with form("plain"):
        assert torch.autograd.gradcheck(gated_recurrence, (x, initial))


def test_gates_that_are_shut_or_open() -> None:
    """A gate of exactly 0 or 1, which sigmoid gives in float32 from some 90 on: a scan in log-space would be lost."""
    s = torch.tensor([[200.0, -200.0, 200.0], [-200.0, 200.0, 200.0], [-200.0, 200.0, 200.0]])
    c = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])
    x = torch.cat((s, c), dim=1)[:, None].requires_grad_()
    initial = torch.tensor([[10.0, 20.0, 30.0]], requires_grad=True)
    h = gated_recurrence(x, initial)
    assert h[:, 0].tolist() == [[10, 2, 30], [4, 2, 30], [7, 2, 30]]
    h.sum().backward()
    assert x.grad is not None
    assert initial.grad is not None
    assert x.grad[:, 0, 3:].tolist() == [[0, 3, 0], [1, 0, 0], [1, 0, 0]]
    assert initial.grad.tolist() == [[1, 0, 3]]
    assert x.grad[:, 0, :3].abs().max() == 0


def test_memory_of_the_inputs_is_used_where_it_may_be() -> None:
    """overwrite=True changes neither the states nor the gradients."""
    leaf, initial = tensors(5, 2, 3)
    expected, x = gated_recurrence(leaf, initial), leaf * 1
    h = gated_recurrence(x, initial, overwrite=True)
    torch.testing.assert_close(h, expected, rtol=0, atol=0)
    upstream = torch.randn_like(h)
    ours, theirs = (torch.autograd.grad(each, (leaf, initial), upstream) for each in (h, expected))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("dims", [(0, 0), (2, 1), (0, None)], ids=str)
def test_models_side_by_side(dims: tuple[int, int | None]) -> None:
    """torch.vmap catches rows that get another model's states."""
    single = [torch.stack([each.detach() + model for model in range(3)]) for each in tensors(4, 2, 3)]
    x, initial = (
        (each[0] if dim is None else each.movedim(0, dim)).clone().requires_grad_()
        for each, dim in zip(single, dims, strict=True)
    )
    ours = torch.vmap(gated_recurrence, in_dims=dims)(x, initial)
    begins = [initial if dims[1] is None else initial.select(dims[1], model) for model in range(3)]
    alone = torch.stack([gated_recurrence(x.select(dims[0], m), begin) for m, begin in enumerate(begins)])
    torch.testing.assert_close(ours, alone, rtol=0, atol=1e-13)
    upstream = torch.randn_like(ours)
    torch.testing.assert_close(
        torch.autograd.grad(ours, (x, initial), upstream), torch.autograd.grad(alone, (x, initial), upstream)
    )
