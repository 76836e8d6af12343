"""RMSNorm and squared ReLU against PyTorch's own compositions, and their gradients against finite differences."""

import pytest
import torch
from torch.nn import functional as F

from rhapsode.kernels.norm import rms_norm, squared_relu

SHAPES = pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 5), (7, 4)], ids=str)


def tensors(shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
    return x, torch.randn(shape[-1:], generator=generator, dtype=torch.float64).requires_grad_()


@SHAPES
def test_rms_norm(shape: tuple[int, ...]) -> None:
    """Would catch a norm's own scale that is lost in the backward pass, and another eps than nn.RMSNorm's."""
    x, weight = tensors(shape)
    torch.testing.assert_close(rms_norm(x, weight), F.rms_norm(x, shape[-1:], weight), rtol=1e-13, atol=1e-13)
    assert torch.autograd.gradcheck(rms_norm, (x, weight))
    tiny = torch.full((2, shape[-1]), 1e-6, requires_grad=True)  # as small as eps: float32's here
    torch.testing.assert_close(rms_norm(tiny, torch.ones(shape[-1])), F.rms_norm(tiny, shape[-1:]))


def test_rms_norm_of_rows_that_lie_apart() -> None:
    """The recurrence leaves its outputs time-major."""
    x, weight = tensors((4, 3, 5))
    turned = x.transpose(0, 1)
    ours, theirs = rms_norm(turned, weight), F.rms_norm(turned, (5,), weight)
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)
    upstream = torch.randn(3, 4, 5, dtype=torch.float64)
    for a, b in zip(
        torch.autograd.grad(ours, (x, weight), upstream),
        torch.autograd.grad(theirs, (x, weight), upstream),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


@SHAPES
def test_squared_relu(shape: tuple[int, ...]) -> None:
    x, _ = tensors(shape)
    torch.testing.assert_close(squared_relu(x), F.relu(x).square(), rtol=0, atol=0)
    assert torch.autograd.gradcheck(squared_relu, (x,))
    assert squared_relu(torch.tensor([-1.0, 0.0, 3.0])).tolist() == [0.0, 0.0, 9.0]
