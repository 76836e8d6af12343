"""The chunked loss against PyTorch's cross_entropy in float64, gradients included, at sizes that are all different."""

import pytest
import torch
from torch.nn import functional as F

import rhapsode.loss
from rhapsode.loss import IGNORED, linear_cross_entropy


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five rows at once, so that a few rows are many chunks."""
    monkeypatch.setattr(rhapsode.loss, "CHUNK_LOGITS", 5)
    monkeypatch.setattr(rhapsode.loss, "FEWEST_ROWS", 5)


def tensors(rows: int, with_bias: bool) -> tuple[list[torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    shapes = [(rows, 3), (7, 3), (7,)][: 3 if with_bias else 2]
    inputs = [torch.randn(*s, generator=generator, dtype=torch.float64).mul_(3).requires_grad_() for s in shapes]
    return inputs, torch.randint(7, (rows,), generator=generator)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("ignored", [slice(0, 0), slice(1, 8), slice(4, 5)])
@pytest.mark.parametrize("rows", [1, 5, 11, 15])
def test_value_and_gradients_equal_cross_entropy(rows: int, ignored: slice, with_bias: bool, reduction: str) -> None:
    """Catches a last chunk that is dropped, a mean over the wrong rows, an ignored row that still pulls."""
    inputs, targets = tensors(rows, with_bias)
    targets[ignored] = IGNORED
    x, weight, bias = inputs if with_bias else (*inputs, None)
    ours = linear_cross_entropy(x, weight, bias, targets, reduction)
    theirs = F.cross_entropy(F.linear(x, weight, bias), targets, ignore_index=IGNORED, reduction=reduction)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)
    for a, b in zip(torch.autograd.grad(3 * ours, inputs), torch.autograd.grad(3 * theirs, inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)
    with torch.no_grad():
        torch.testing.assert_close(linear_cross_entropy(x, weight, bias, targets, reduction), theirs)


def test_a_loss_of_many_digits_keeps_them() -> None:
    """A target whose probability is 0 in float32 must still cost its full number of nats."""
    x, weight = torch.tensor([[1.0]] * 11, requires_grad=True), torch.tensor([[300.0], [0.0]])
    loss = linear_cross_entropy(x, weight, None, torch.ones(11, dtype=torch.int64))
    torch.testing.assert_close(loss, torch.tensor(300.0))


def test_the_gradient_survives_a_second_backward_pass() -> None:
    """The gradients are made in the forward pass; handing them out must not use them up."""
    (x, weight), targets = tensors(11, with_bias=False)
    loss = linear_cross_entropy(x, weight, None, targets) * 2
    first = torch.autograd.grad(loss, (x, weight), retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(loss, (x, weight)), first, rtol=0, atol=0)


def test_no_scored_row_is_nan_as_in_pytorch() -> None:
    (x, weight), _ = tensors(11, with_bias=False)
    assert linear_cross_entropy(x, weight, None, torch.full((11,), IGNORED)).isnan()


def test_unknown_reduction_is_named() -> None:
    (x, weight), targets = tensors(2, with_bias=False)
    with pytest.raises(ValueError, match="reduction must be 'mean' or 'sum', got 'none'"):
        linear_cross_entropy(x, weight, None, targets, "none")
