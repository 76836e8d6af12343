"""RMSNorm and squared ReLU in few passes over memory; what PyTorch composes them of makes two to three times as many.

    n = x / sqrt(mean(x^2) + eps)         y = n * w                     over the last axis, D long
    dL/dw = sum over rows of g * n        dL/dx = (g * w - n * mean(g * w * n)) / sqrt(mean(x^2) + eps),   g = dL/dy

    y = relu(x)^2                         dL/dx = 2 * g * relu(x)

RMSNorm: Zhang and Sennrich, "Root mean square layer normalization", 2019. Squared ReLU: So et al., "Primer", 2021.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from rhapsode.kernels.forms import is_fast


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """x (..., D) divided by the root of its mean square, times weight (D,); eps is that of x's type, as in PyTorch.

    Differentiable once in x and weight.
    """
    return _RMSNorm.apply(x, weight) if is_fast(x) else F.rms_norm(x, weight.shape, weight)


def squared_relu(x: Tensor) -> Tensor:
    """relu(x)^2, differentiable once."""
    return _SquaredReLU.apply(x) if is_fast(x) else F.relu(x).square()


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = length.square_().div_(x.shape[-1]).add_(torch.finfo(x.dtype).eps).rsqrt_()
        normal = x * scale
        ctx.save_for_backward(normal, scale, weight)
        return normal * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        normal, scale, weight = ctx.saved_tensors
        product = grad * normal
        mean = (product @ weight).unsqueeze(-1).div_(product.shape[-1])
        x_grad = (grad * weight).addcmul_(normal, mean, value=-1).mul_(scale)
        return x_grad, product.reshape(-1, product.shape[-1]).sum(0)


class _SquaredReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        positive = x.relu()
        ctx.save_for_backward(positive)
        return positive.square()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (positive,) = ctx.saved_tensors
        return (grad * positive).mul_(2)


class RMSNorm(nn.RMSNorm):
    """`rms_norm` with a weight of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight)


class SquaredReLU(nn.Module):
    """`squared_relu` as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        return squared_relu(x)
