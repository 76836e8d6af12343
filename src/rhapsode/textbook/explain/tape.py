"""Worked example: a small network on the tape, as it grows and shrinks."""

from typing import Any

import numpy as np

from rhapsode.textbook.explain import drawing
from rhapsode.textbook.explain.page import (
    Heading,
    Illustration,
    Lines,
    PageBlock,
    Text,
    WorkedExample,
    bracketed,
    matrix,
    number,
    row,
    table,
)
from rhapsode.textbook.tape import Bias, Leaf, Linear, Module, Multiply, Sigmoid, SoftmaxCrossEntropy, Tape

INPUTS, BIAS = np.array([1.0, 2.0]), np.array([0.5, 0.0, -1.0])
WEIGHTS = np.array([[1.0, -1.0], [0.5, 0.0], [0.0, 1.0]])

FORMULAS = {
    "linear": "u = W x",
    "bias": "z = u + b",
    "sigmoid": "h = 1 / (1 + exp(-z))",
    "multiply": "r = h ∘ z",
    "loss": "L = -log softmax(r)[y]",
}


class RecordingTape(Tape):
    """A tape that remembers what was on it after each push and pop, and each gradient when it was popped."""

    def __init__(self, names: dict[Module, str]) -> None:
        super().__init__()
        self.names = names
        self.moments: list[tuple[str, Module, list[str]]] = []
        self.gradients: dict[Module, np.ndarray] = {}

    def push(self, module: Module) -> None:
        super().push(module)
        self._remember("push", module)

    def pop(self) -> Module:
        module = super().pop()
        self.gradients[module] = module.output_gradient.copy()
        self._remember("pop", module)
        return module

    def _remember(self, action: str, module: Module) -> None:
        self.moments.append((action, module, [self.names[m] for m in self.modules]))


class Queue(RecordingTape):
    """What a tape must not be: the module that was pushed first is popped first."""

    def pop(self) -> Module:
        self.modules.append(self.modules.pop(0))
        return super().pop()


def tape(
    inputs: np.ndarray = INPUTS,
    weights: np.ndarray = WEIGHTS,
    bias: np.ndarray = BIAS,
    target: int = 0,
) -> WorkedExample:
    """inputs (D,), weights (M, D), bias (M,), target id below M. Raises ValueError for shapes that differ."""
    M, D = weights.shape
    if len(inputs) != D:
        raise ValueError(f"weights must have {len(inputs)} columns, one for each input, got {D}")
    if len(bias) != M:
        raise ValueError(f"bias must have {M} numbers, one for each row of weights, got {len(bias)}")
    if not 0 <= target < M:
        raise ValueError(f"target must be between 0 and {M - 1} (weights' rows), got {target}")

    leaves, right = _run(RecordingTape, inputs, weights, bias, target)
    wrong_leaves, _ = _run(Queue, inputs, weights, bias, target)
    pushes = [moment for moment in right.moments if moment[0] == "push"]
    pops = [moment for moment in right.moments if moment[0] == "pop"]
    blocks: list[PageBlock] = [
        Text("`L = -log softmax(h ∘ z)[y]` with `z = W x + b` and `h = sigmoid(z)`. Note that z is used twice."),
        Lines([f"x = {row(inputs)}    b = {row(bias)}    y = {target}", "", *matrix("W", weights)]),
        Heading("1. Forward: the tape grows"),
        Text("Each module computes its output, sets its output gradient to zero and pushes itself."),
        Lines(
            table(
                ["push", "computes", "output", "tape"],
                [
                    [right.names[m], FORMULAS[right.names[m]], _value(m.output), " | ".join(stack)]
                    for _, m, stack in pushes
                ],
                left=4,
            )
        ),
        Heading("2. Backward: the tape shrinks"),
        Text("The last module's gradient is set to one. Each popped module adds to its inputs' gradients."),
    ]
    for _, module, stack in pops:
        name = right.names[module]
        lines = [f"pop {name}, its gradient g = {_value(right.gradients[module])}"]
        inputs_of = [m.output for m in module.inputs]
        for m, gradient in zip(module.inputs, module.backward(right.gradients[module], *inputs_of), strict=True):
            if gradient.ndim == 2:
                lines += bracketed(f"  {right.names[m]} += ", gradient)
            else:
                lines.append(f"  {right.names[m]} += {_value(gradient)}")
        blocks.append(Lines([*lines, f"  tape: {' | '.join(stack) or '(empty)'}"]))
    blocks += [
        Heading("3. The gradients of the parameters"),
        Lines(
            [
                *matrix("dL/dW", leaves["W"].output_gradient),
                f"dL/db = {row(leaves['b'].output_gradient)}",
                f"dL/dx = {row(leaves['x'].output_gradient)}",
            ]
        ),
        Heading("4. Why a stack"),
        Text(
            "Popped in first-in order, `linear` would go first, while its gradient is still zero: "
            "nothing that was computed later has been popped yet. The gradients that come out are wrong:"
        ),
        Lines(
            [
                *matrix("dL/dW", wrong_leaves["W"].output_gradient),
                f"dL/db = {row(wrong_leaves['b'].output_gradient)}",
            ]
        ),
        Illustration(
            "What is on the tape after each push and each pop.",
            lambda canvas: _draw_tape(canvas, right),
            (9.0, 3.4),
        ),
        Illustration(
            "The graph. z is used twice, so its gradient is the sum of two.",
            lambda canvas: _draw_graph(canvas, leaves, right),
            (10.0, 4.2),
        ),
    ]
    return WorkedExample("Automatic differentiation, as the tape grows and shrinks", blocks)


def _run(
    kind: type[RecordingTape], inputs: np.ndarray, weights: np.ndarray, bias: np.ndarray, target: int
) -> tuple[dict[str, Leaf], RecordingTape]:
    """The network forward and backward on a tape of that kind; its leaves by name, and the tape."""
    leaves = {"x": Leaf(inputs), "W": Leaf(weights), "b": Leaf(bias)}
    linear = Linear(leaves["x"], leaves["W"])
    z = Bias(linear, leaves["b"])
    h = Sigmoid(z)
    r = Multiply(h, z)
    loss = SoftmaxCrossEntropy(r, target)
    modules: dict[str, Module] = {"linear": linear, "bias": z, "sigmoid": h, "multiply": r, "loss": loss}
    recording = kind({module: name for name, module in {**leaves, **modules}.items()})
    for module in modules.values():
        module.apply_forward(recording)
    recording.backward()
    return leaves, recording


def _value(array: np.ndarray) -> str:
    return number(float(array)) if array.ndim == 0 else row(array)


def _draw_tape(canvas: Any, recording: RecordingTape) -> None:
    from matplotlib.patches import Rectangle

    ax = canvas.subplots()
    for moment, (action, _, stack) in enumerate(recording.moments):
        for height, name in enumerate(stack):
            ax.add_patch(
                Rectangle(
                    (moment - 0.46, height + 0.04),
                    0.92,
                    0.9,
                    facecolor="#dbe8f1",
                    edgecolor=drawing.INK,
                    linewidth=0.8,
                )
            )
            ax.text(moment, height + 0.5, name, ha="center", va="center", fontsize=8.5, color=drawing.INK)
        if not stack:
            ax.text(moment, 0.5, "(empty)", ha="center", va="center", fontsize=8.5, color=drawing.INK)
        colour = drawing.SECOND if action == "push" else drawing.ACCENT
        ax.text(moment, -0.3, action, ha="center", va="center", fontsize=9, color=colour)
    ax.axvline(len(recording.moments) / 2 - 0.5, color=drawing.INK, linestyle=":", linewidth=1)
    ax.set_xlim(-0.6, len(recording.moments) - 0.4)
    ax.set_ylim(-0.6, len(recording.moments) / 2 + 0.1)
    ax.axis("off")


def _draw_graph(canvas: Any, leaves: dict[str, Leaf], recording: RecordingTape) -> None:
    ax = canvas.subplots()
    # Where each node is, and its gradient from there.
    places = {
        "x": (0, 1.0, 0, -0.28),
        "W": (0, 0.0, 0, -0.28),
        "linear": (1, 0.5, 0, -0.28),
        "b": (2, -0.2, 0, -0.28),
        "bias": (2, 0.5, -0.3, 0.28),
        "sigmoid": (3, 1.0, 0, 0.28),
        "multiply": (4, 0.5, 0, -0.28),
        "loss": (5, 0.5, 0, -0.28),
    }
    nodes = {}
    for module, name in recording.names.items():
        x, y, right, up = places[name]
        nodes[module] = drawing.node(ax, x, y, name, drawing.PALE if name in leaves else "#dbe8f1")
        if module.output_gradient.ndim < 2:
            gradient = f"g =\n{_value(module.output_gradient)}"
            drawing.note(ax, x + right, y + up, gradient, ha="center", va="center")
    for module in nodes:
        for m in module.inputs:
            drawing.arrow(ax, nodes[m], nodes[module])
    ax.set_xlim(-0.5, 5.4)
    ax.set_ylim(-0.6, 1.5)
    ax.axis("off")
