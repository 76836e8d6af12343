"""Automatic differentiation: modules on a tape.

A computation is a graph of modules. Each module m has inputs (other modules), an output u_m = f_m(inputs),
and an output gradient g_m = dL/du_m of the same shape, which starts at zero. Going forward, each module
computes its output and pushes itself on the tape. Going backward:

    g_last ← 1
    while the tape is not empty:
        pop the module m
        for each input n of m:      g_n ← g_n + (du_m/du_n)ᵀ g_m

Two things make it right. It ADDS: a module that is used twice receives a gradient from each use, and by the
chain rule dL/du is their sum. And the tape is a STACK: every use of a module was pushed after the module
itself, so it is popped before it, and when m is popped its g_m is complete. Popped in first-in order, m
would hand on a gradient that it has not yet received.

A module never sees the graph; it knows two local rules, `forward` and `backward`. Parameters and constants
are `Leaf` modules: they have an output and a gradient, but no inputs, and are not pushed.

    tape = Tape()
    x, W = Leaf([1.0, 2.0]), Leaf([[3.0, 4.0]])
    loss = Mean(Linear(x, W).apply_forward(tape)).apply_forward(tape)
    tape.backward()
    W.output_gradient                   # dL/dW = [[1, 2]]
"""

from collections.abc import Callable

import numpy as np

from rhapsode.textbook import attention, convolution, residual
from rhapsode.textbook.softmax import cross_entropy, cross_entropy_gradient, softmax, softmax_gradient


class Module:
    """A node of the graph: `inputs`, then, after `apply_forward`, `output` and `output_gradient` (zeros).

    Each kind of module defines two rules. `forward(*inputs)` computes the output from the outputs of the
    inputs. `backward(g, *inputs)` computes the gradients of the inputs, one each and shaped like them, from
    the output gradient g.
    """

    forward: Callable[..., np.ndarray]
    backward: Callable[..., tuple[np.ndarray, ...]]
    output: np.ndarray
    output_gradient: np.ndarray

    def __init__(self, *inputs: "Module") -> None:
        self.inputs = inputs

    def apply_forward(self, tape: "Tape") -> "Module":
        """Computes the output, sets its gradient to zero, pushes itself on the tape; returns itself."""
        self.output = self.forward(*(n.output for n in self.inputs))
        self.output_gradient = np.zeros_like(self.output)
        tape.push(self)
        return self

    def apply_backward(self) -> None:
        """Adds each input's gradient to that input's output gradient."""
        gradients = self.backward(self.output_gradient, *(n.output for n in self.inputs))
        for n, gradient in zip(self.inputs, gradients, strict=True):
            n.output_gradient += gradient


class Leaf(Module):
    """A parameter or constant: an output that nothing computes; its gradient grows until `zero_gradient`."""

    def __init__(self, value: np.typing.ArrayLike) -> None:
        super().__init__()
        self.output = np.array(value, dtype=np.float64)
        self.zero_gradient()

    def zero_gradient(self) -> None:
        self.output_gradient = np.zeros_like(self.output)


class Tape:
    """The modules in the order in which they were computed. Any number of tapes can live side by side."""

    def __init__(self) -> None:
        self.modules: list[Module] = []

    def push(self, module: Module) -> None:
        self.modules.append(module)

    def pop(self) -> Module:
        """The module that was pushed last."""
        return self.modules.pop()

    def backward(self) -> None:
        """Sets the last module's output gradient to one and pops until the tape is empty.

        Raises ValueError if the tape is empty, or if the last module's output is not a single number.
        """
        if not self.modules:
            raise ValueError("nothing to differentiate: the tape is empty (call apply_forward first)")
        last = self.modules[-1]
        if last.output.size != 1:
            raise ValueError(f"the last module must output a single number, got shape {last.output.shape}")
        last.output_gradient = np.ones_like(last.output)
        while self.modules:
            self.pop().apply_backward()


def _same_shape(module: Module, a: np.ndarray, b: np.ndarray) -> None:
    if a.shape != b.shape:
        raise ValueError(f"{type(module).__name__} needs inputs of equal shape, got {a.shape} and {b.shape}")


class Linear(Module):
    """u = x Wᵀ: x (..., D), W (M, D), u (..., M). The bias is a module of its own."""

    def forward(self, x: np.ndarray, W: np.ndarray) -> np.ndarray:
        return x @ W.T

    def backward(self, g: np.ndarray, x: np.ndarray, W: np.ndarray) -> tuple[np.ndarray, ...]:
        D, M = x.shape[-1], g.shape[-1]
        return g @ W, g.reshape(-1, M).T @ x.reshape(-1, D)


class Bias(Module):
    """u = x + b: x (..., D), b (D,), the same b for every row."""

    def forward(self, x: np.ndarray, b: np.ndarray) -> np.ndarray:
        return x + b

    def backward(self, g: np.ndarray, x: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, ...]:
        return g, g.reshape(-1, len(b)).sum(axis=0)


class ReLU(Module):
    """u = max(x, 0), elementwise; the derivative at 0 is taken to be 0."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        return np.maximum(x, 0)

    def backward(self, g: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, ...]:
        return (g * (x > 0),)


class Tanh(Module):
    """u = tanh(x), elementwise; du/dx = 1 - u²."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        return np.tanh(x)

    def backward(self, g: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, ...]:
        return (g * (1 - self.output**2),)


class Sigmoid(Module):
    """u = 1 / (1 + exp(-x)), elementwise; du/dx = u (1 - u)."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        return residual.sigmoid(x)

    def backward(self, g: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, ...]:
        return (g * self.output * (1 - self.output),)


class SiLU(Module):
    """u = x / (1 + exp(-x)), elementwise; see `residual`."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        return residual.silu(x)

    def backward(self, g: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, ...]:
        return (g * residual.silu_prime(x),)


class SquaredReLU(Module):
    """u = max(x, 0)², elementwise; see `residual`."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        return residual.squared_relu(x)

    def backward(self, g: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, ...]:
        return (g * residual.squared_relu_prime(x),)


class RMSNorm(Module):
    """u = x / √(mean x² + ε) ∘ w over the last axis: x (..., D), w (D,), u (..., D); see `residual`."""

    def forward(self, x: np.ndarray, w: np.ndarray) -> np.ndarray:
        return residual.rms_norm(x, w)

    def backward(self, g: np.ndarray, x: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, ...]:
        return residual.rms_norm_gradients(x, w, g)


class Softmax(Module):
    """u = softmax(x) over the last axis."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        return softmax(x)

    def backward(self, g: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, ...]:
        return (softmax_gradient(self.output, g),)


class SoftmaxCrossEntropy(Module):
    """u = -log softmax(x)[y] in nats: logits x (..., V), token ids y (...), u (...), a loss for each."""

    def __init__(self, x: Module, y: np.typing.ArrayLike) -> None:
        super().__init__(x)
        self.y = np.asarray(y)

    def forward(self, x: np.ndarray) -> np.ndarray:
        return np.asarray(cross_entropy(x, self.y))

    def backward(self, g: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, ...]:
        return (g[..., None] * cross_entropy_gradient(x, self.y),)


class Embedding(Module):
    """u = E[ids]: a table E (V, D), token ids (...), u (..., D). A repeated id adds up its gradients."""

    def __init__(self, E: Module, ids: np.typing.ArrayLike) -> None:
        super().__init__(E)
        self.ids = np.asarray(ids)

    def forward(self, E: np.ndarray) -> np.ndarray:
        return E[self.ids]

    def backward(self, g: np.ndarray, E: np.ndarray) -> tuple[np.ndarray, ...]:
        dE = np.zeros_like(E)
        np.add.at(dE, self.ids, g)  # dE[ids] += g would keep one of several equal ids
        return (dE,)


class Concatenate(Module):
    """u = the inputs joined along `axis`; each gets back its own part of the gradient."""

    def __init__(self, *inputs: Module, axis: int = -1) -> None:
        super().__init__(*inputs)
        self.axis = axis

    def forward(self, *inputs: np.ndarray) -> np.ndarray:
        return np.concatenate(inputs, axis=self.axis)

    def backward(self, g: np.ndarray, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        ends = np.cumsum([x.shape[self.axis] for x in inputs])
        return tuple(np.split(g, ends[:-1], axis=self.axis))


class Slice(Module):
    """u = x[start:stop] along `axis`; what was left out gets gradient zero."""

    def __init__(self, x: Module, start: int, stop: int, axis: int = -1) -> None:
        super().__init__(x)
        self.start, self.stop, self.axis = start, stop, axis

    def _index(self, x: np.ndarray) -> tuple[slice, ...]:
        index = [slice(None)] * x.ndim
        index[self.axis] = slice(self.start, self.stop)
        return tuple(index)

    def forward(self, x: np.ndarray) -> np.ndarray:
        return x[self._index(x)]

    def backward(self, g: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, ...]:
        dx = np.zeros_like(x)
        dx[self._index(x)] = g
        return (dx,)


class Add(Module):
    """u = a + b, of equal shapes."""

    def forward(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        _same_shape(self, a, b)
        return a + b

    def backward(self, g: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, ...]:
        return g, g


class Multiply(Module):
    """u = a ∘ b, elementwise, of equal shapes."""

    def forward(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        _same_shape(self, a, b)
        return a * b

    def backward(self, g: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, ...]:
        return g * b, g * a


class Mix(Module):
    """u = (1 - a) ∘ x + a ∘ y: x and y of equal shape (..., D); a of the same shape, or (..., 1): one for each row."""

    def forward(self, a: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        _same_shape(self, x, y)
        return (1 - a) * x + a * y

    def backward(self, g: np.ndarray, a: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, ...]:
        da = g * (y - x)
        return da if a.shape == x.shape else da.sum(axis=-1, keepdims=True), (1 - a) * g, a * g


class Log(Module):
    """u = log x, elementwise, of x > 0."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        return np.log(x)

    def backward(self, g: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, ...]:
        return (g / x,)


class MatrixProduct(Module):
    """u = A B: A (..., M, K), B (..., K, N), with the same leading axes."""

    def forward(self, A: np.ndarray, B: np.ndarray) -> np.ndarray:
        if A.shape[:-2] != B.shape[:-2]:
            raise ValueError(f"MatrixProduct needs equal leading axes, got {A.shape} and {B.shape}")
        return A @ B

    def backward(self, g: np.ndarray, A: np.ndarray, B: np.ndarray) -> tuple[np.ndarray, ...]:
        return g @ np.swapaxes(B, -1, -2), np.swapaxes(A, -1, -2) @ g


class Mean(Module):
    """u = the mean of all entries, a single number."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        return np.asarray(x.mean())

    def backward(self, g: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, ...]:
        return (np.full_like(x, g / x.size),)


class Convolution(Module):
    """u = f ⋆ x: image x (C_in, n_h, n_w), filters f (C_out, C_in, k_h, k_w); see `convolution`."""

    def __init__(self, x: Module, f: Module, stride: int = 1, padding: int = 0) -> None:
        super().__init__(x, f)
        self.stride, self.padding = stride, padding

    def forward(self, x: np.ndarray, f: np.ndarray) -> np.ndarray:
        return convolution.cross_correlate(x, f, self.stride, self.padding)

    def backward(self, g: np.ndarray, x: np.ndarray, f: np.ndarray) -> tuple[np.ndarray, ...]:
        return convolution.cross_correlate_gradients(x, f, g, self.stride, self.padding)


class Attention(Module):
    """u = softmax(Q Kᵀ / √d_k) V: Q, K (..., T, d_k), V (..., T, d_v); see `attention`."""

    def __init__(self, Q: Module, K: Module, V: Module, causal: bool = True) -> None:
        super().__init__(Q, K, V)
        self.causal = causal

    def forward(self, Q: np.ndarray, K: np.ndarray, V: np.ndarray) -> np.ndarray:
        self.computed = attention.attend(Q, K, V, self.causal)
        return self.computed.O

    def backward(self, g: np.ndarray, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        return attention.attend_gradients(self.computed, g)
