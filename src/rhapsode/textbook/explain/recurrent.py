"""Worked examples: a recurrent network unrolled over its steps, and its gradients in closed form."""

from collections.abc import Callable
from typing import Any

import numpy as np

from rhapsode.textbook import recurrent as rnn
from rhapsode.textbook.explain import drawing
from rhapsode.textbook.explain.page import (
    Heading,
    Illustration,
    Lines,
    PageBlock,
    Text,
    WorkedExample,
    agreement,
    beside,
    matrix,
    number,
    row,
    table,
)

W_HH, W_HX, W_HY = (
    np.array([[0.5, -0.25], [0.25, 0.5]]),
    np.array([[1.0], [0.5]]),
    np.array([[1.0, 0.0], [0.0, 1.0]]),
)
INPUTS, TARGETS = np.array([[1.0], [-0.5], [2.0], [1.0]]), np.array([0, 1, 0, 1])
PSI = {"identity": "ψ(z) = z, ψ'(z) = 1", "relu": "ψ(z) = max(z, 0), ψ'(z) = 1 if z > 0 else 0"}
PSI |= {"tanh": "ψ(z) = tanh(z), ψ'(z) = 1 - tanh(z)²"}


def unrolling(
    inputs: np.ndarray = INPUTS[:3],
    targets: np.ndarray = TARGETS[:3],
    w_hh: np.ndarray = W_HH,
    w_hx: np.ndarray = W_HX,
    w_hy: np.ndarray = W_HY,
    start: np.ndarray | None = None,
    activation: str = "relu",
) -> WorkedExample:
    """inputs (T, D), targets (T,) ids, start h_0 (H,). Raises ValueError for shapes that do not fit."""
    h_0 = np.zeros(len(w_hh)) if start is None else start
    _check(inputs, targets, w_hh, w_hx, w_hy, h_0, activation)
    f = rnn.forward(w_hh, w_hx, w_hy, inputs, targets, activation, h_0)
    g = rnn.gradients(w_hh, w_hx, w_hy, inputs, targets, activation, h_0)
    T = len(inputs)
    h_prev, slope = np.vstack([h_0, f.h[:-1]]), rnn.psi_prime(f.z, activation)

    blocks = _network(w_hh, w_hx, w_hy, activation)
    blocks += [
        Heading(f"1. The graph of {T} steps"),
        Text("The loop of the network is cut open: one copy for each step, all with the same three matrices."),
        Lines(_ascii_graph(T)),
        Heading("2. Forward"),
    ]
    for t in range(1, T + 1):
        a, b = w_hh @ h_prev[t - 1], w_hx @ inputs[t - 1]
        blocks.append(
            Lines(
                [
                    f"step {t}: x_{t} = {row(inputs[t - 1])}, target y_{t} = {targets[t - 1]}",
                    f"  z_{t} = W_hh h_{t - 1} + W_hx x_{t} = {row(a)} + {row(b)} = {row(f.z[t - 1])}",
                    f"  h_{t} = ψ(z_{t}) = {row(f.h[t - 1])}",
                    f"  o_{t} = W_hy h_{t} = {row(f.o[t - 1])}",
                    f"  ŷ_{t} = softmax(o_{t}) = {row(f.y_hat[t - 1])}",
                    f"  L_{t} = -log ŷ_{t}[{targets[t - 1]}] = {number(f.losses[t - 1])}",
                ]
            )
        )
    blocks += [
        Lines([f"L = {' + '.join(number(loss) for loss in f.losses)} = {number(f.loss)}"]),
        Heading("3. Backward, from the last step to the first"),
        Text(
            "Two gradients meet in each h_t: one from its own output o_t, and one from the next step, which "
            "came back along h_t → z_{t+1}. The last step has no next one."
        ),
    ]
    for t in range(T, 0, -1):
        direct = w_hy.T @ g.o[t - 1]
        lines = [
            f"step {t}:",
            f"  dL/do_{t} = ŷ_{t} - onehot({targets[t - 1]}) = {row(g.o[t - 1])}",
            f"  from o_{t}:  W_hyᵀ dL/do_{t} = {row(direct)}",
        ]
        if t < T:
            lines.append(f"  from z_{t + 1}:  W_hhᵀ dL/dz_{t + 1} = {row(w_hh.T @ g.z[t])}")
        lines += [
            f"  dL/dh_{t} = {row(g.h[t - 1])}",
            f"  ψ'(z_{t}) = {row(slope[t - 1])}",
            f"  dL/dz_{t} = ψ'(z_{t}) ∘ dL/dh_{t} = {row(g.z[t - 1])}",
        ]
        blocks.append(Lines(lines))
    blocks += [
        Heading("4. The matrices collect from all steps"),
        Lines(
            [
                *_sum_of_products("dL/dW_hh", "dL/dz_{t} h_{s}ᵀ", T, g.W_hh),
                "",
                *_sum_of_products("dL/dW_hx", "dL/dz_{t} x_{t}ᵀ", T, g.W_hx),
                "",
                *_sum_of_products("dL/dW_hy", "dL/do_{t} h_{t}ᵀ", T, g.W_hy),
            ]
        ),
        Illustration(
            "The unrolled graph: values forward in black, gradients backward in red.",
            lambda canvas: _draw_graph(canvas, inputs, h_0, f, g),
            (max(5.0, 3.1 * T), 5.4),
        ),
    ]
    return WorkedExample(f"A recurrent network, unrolled over {T} steps", blocks)


def backpropagation(
    inputs: np.ndarray = INPUTS,
    targets: np.ndarray = TARGETS,
    w_hh: np.ndarray = W_HH,
    w_hx: np.ndarray = W_HX,
    w_hy: np.ndarray = W_HY,
    start: np.ndarray | None = None,
    activation: str = "identity",
) -> WorkedExample:
    """dL/dh_i as a sum over later steps, term by term; arguments and errors as of `unrolling`."""
    h_0 = np.zeros(len(w_hh)) if start is None else start
    _check(inputs, targets, w_hh, w_hx, w_hy, h_0, activation)
    f = rnn.forward(w_hh, w_hx, w_hy, inputs, targets, activation, h_0)
    g = rnn.gradients(w_hh, w_hx, w_hy, inputs, targets, activation, h_0)
    T = len(inputs)
    direct = g.o @ w_hy
    norms = rnn.contribution_norms(w_hh, f.z, direct, activation)
    radius = float(np.abs(np.linalg.eigvals(w_hh)).max())
    difference = _difference_from_central_differences(
        w_hh, g.W_hh, lambda W: rnn.forward(W, w_hx, w_hy, inputs, targets, activation, h_0).loss
    )

    blocks = _network(w_hh, w_hx, w_hy, activation)
    blocks += [
        Heading("1. What reaches each state from its own output"),
        Lines(
            [
                f"W_hyᵀ dL/do_{t} = W_hyᵀ (ŷ_{t} - onehot({targets[t - 1]})) "
                f"= W_hyᵀ {row(g.o[t - 1])} = {row(direct[t - 1])}"
                for t in range(1, T + 1)
            ]
        ),
        Heading("2. What reaches it from the later steps"),
    ]
    if activation == "identity":
        powers = {n: np.linalg.matrix_power(w_hh.T, n) for n in range(1, max(2, min(T, 4)))}
        blocks += [
            Text("ψ' = 1, so the way from step t back to step i is a power of one matrix: `(W_hhᵀ)^(t-i)`."),
            Lines(beside(*(matrix(f"(W_hhᵀ)^{n}", power) for n, power in powers.items()))),
        ]
    else:
        blocks += [
            Text("Each step back is `W_hhᵀ diag(ψ'(z_k))`, for k = t, …, i + 1. The derivatives are:"),
            Lines([f"ψ'(z_{t}) = {row(rnn.psi_prime(f.z[t - 1], activation))}" for t in range(1, T + 1)]),
        ]
    blocks.append(Heading("3. dL/dh_i, the sum over the steps t ≥ i"))
    for i in range(T, 0, -1):
        terms = rnn.step_contributions(w_hh, f.z, direct, i, activation)
        width = max(len(row(term)) for term in terms)
        lines = [
            f"{'+' if t > i else ' '} {row(term):<{width}}  from step {t}: {_chain(i, t, activation)}"
            for t, term in enumerate(terms, start=i)
        ]
        blocks.append(Lines([f"dL/dh_{i} =", *lines, f"= {row(g.h[i - 1])}"]))
    blocks += [
        Heading("4. The gradient of W_hh"),
        Text("Row by column, `dL/dz_i h_{i-1}ᵀ` summed over the steps, with dL/dz_i = ψ'(z_i) ∘ dL/dh_i:"),
        Lines(
            [f"step {i}:  {row(g.z[i - 1])} · {row(np.vstack([h_0, f.h])[i - 1])}ᵀ" for i in range(1, T + 1)]
            + ["", *matrix("dL/dW_hh", g.W_hh)]
        ),
        Text(f"The largest difference from central differences is {agreement(difference, 1e-6)}."),
        Heading("5. Does the gradient vanish or explode?"),
        Text(
            "The length of what step t (column) contributes to dL/dh_i (row). To the right the distance "
            f"t - i grows. The largest absolute eigenvalue of W_hh is {number(radius)}: with the identity, "
            "and far away, each step of distance multiplies the length by about that much. With relu or tanh "
            "it is multiplied by ψ' ≤ 1 besides."
        ),
        Lines(
            table(
                ["", *(f"t = {t}" for t in range(1, T + 1))],
                [
                    [f"i = {i}", *("" if t < i else number(norms[i - 1, t - 1]) for t in range(1, T + 1))]
                    for i in range(1, T + 1)
                ],
            )
        ),
        Illustration(
            "Left: the length of each step's contribution. Right: a unit gradient at step 30, sent back "
            "through steps of W_hh scaled to three largest eigenvalues (ψ = identity).",
            lambda canvas: _draw_norms(canvas, norms, w_hh, radius),
            (9.0, 3.6),
        ),
    ]
    return WorkedExample("Backpropagation through time, in closed form", blocks)


def _check(
    inputs: np.ndarray,
    targets: np.ndarray,
    w_hh: np.ndarray,
    w_hx: np.ndarray,
    w_hy: np.ndarray,
    h_0: np.ndarray,
    activation: str,
) -> None:
    """Raises ValueError with the option's name where the numbers do not belong together."""
    if activation not in rnn.ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(rnn.ACTIVATIONS)}, got {activation!r}")
    H = len(w_hh)
    if w_hh.shape != (H, H):
        raise ValueError(f"w_hh must be square, got {w_hh.shape[0]} rows and {w_hh.shape[1]} columns")
    if w_hx.shape != (H, inputs.shape[1]):
        raise ValueError(
            f"w_hx must be {H}x{inputs.shape[1]} (w_hh's rows x numbers per input), got {w_hx.shape[0]}x{w_hx.shape[1]}"
        )
    if w_hy.shape[1] != H:
        raise ValueError(f"w_hy must have {H} columns like w_hh, got {w_hy.shape[1]}")
    if h_0.shape != (H,):
        raise ValueError(f"start must have {H} numbers like w_hh's rows, got {len(h_0)}")
    if len(targets) != len(inputs):
        raise ValueError(f"targets: one for each of the {len(inputs)} inputs is needed, got {len(targets)}")
    for target in targets:
        if not 0 <= target < len(w_hy):
            raise ValueError(f"targets must be between 0 and {len(w_hy) - 1} (w_hy's rows), got {target}")


def _network(w_hh: np.ndarray, w_hx: np.ndarray, w_hy: np.ndarray, activation: str) -> list[PageBlock]:
    return [
        Text(
            "`z_t = W_hh h_{t-1} + W_hx x_t`, `h_t = ψ(z_t)`, `o_t = W_hy h_t`, `ŷ_t = softmax(o_t)`, "
            "`L = Σ_t -log ŷ_t[y_t]`"
        ),
        Lines(
            [
                *beside(matrix("W_hh", w_hh), matrix("W_hx", w_hx), matrix("W_hy", w_hy)),
                "",
                PSI[activation],
            ]
        ),
    ]


def _ascii_graph(T: int) -> list[str]:
    """Steps beside each other, inputs below, losses above; at most eight steps, as lines grow too long."""
    steps = range(1, min(T, 8) + 1)
    more = "  …" if T > 8 else ""

    def line(cell: Callable[[int], str]) -> str:
        return (" " * 13 + "".join(cell(t).ljust(15) for t in steps) + more).rstrip()

    states = "".join(f" ─ W_hh ──→ {f'h_{t}':<3}" for t in steps)
    return [
        line(lambda t: f"L_{t}"),
        line(lambda t: " ↑"),
        line(lambda t: f"o_{t}"),
        line(lambda t: " ↑ W_hy"),
        f"h_0{states}".replace("h_0 ─ W_hh ──→", "h_0 ─ W_hh →", 1).rstrip() + more,
        line(lambda t: " ↑ W_hx"),
        line(lambda t: f"x_{t}"),
    ]


def _sum_of_products(name: str, term: str, T: int, value: np.ndarray) -> list[str]:
    terms = [term.replace("{t}", str(t)).replace("{s}", str(t - 1)) for t in range(1, T + 1)]
    return [f"{name} = {' + '.join(terms)}", *matrix(" " * len(name), value)]


def _chain(i: int, t: int, activation: str) -> str:
    """The product that takes step t's gradient back to h_i, in letters."""
    if activation == "identity":
        link = f"(W_hhᵀ)^{t - i} " if t > i else ""
    else:
        link = "".join(f"W_hhᵀ diag(ψ'(z_{k})) " for k in range(i + 1, t + 1))
    return f"{link}W_hyᵀ dL/do_{t}"


def _difference_from_central_differences(
    w: np.ndarray, gradient: np.ndarray, loss: Callable[[np.ndarray], float], step: float = 1e-5
) -> float:
    slopes = np.zeros_like(w)
    for index in np.ndindex(w.shape):
        moved = np.zeros_like(w)
        moved[index] = step
        slopes[index] = (loss(w + moved) - loss(w - moved)) / (2 * step)
    return float(np.abs(slopes - gradient).max())


def _draw_graph(canvas: Any, x: np.ndarray, h_0: np.ndarray, f: rnn.Forward, g: rnn.Gradients) -> None:
    ax = canvas.subplots()
    previous = drawing.node(ax, 0, 1, f"h_0\n{row(h_0)}")
    for t in range(1, len(x) + 1):
        x_t = drawing.node(ax, t, 0, f"x_{t}\n{row(x[t - 1])}")
        h_t = drawing.node(ax, t, 1, f"h_{t}\n{row(f.h[t - 1])}", "#dbe8f1")
        o_t = drawing.node(ax, t, 2, f"o_{t}\n{row(f.o[t - 1])}")
        L_t = drawing.node(ax, t, 3, f"L_{t} = {number(f.losses[t - 1])}", "#f6e0db")
        drawing.arrow(ax, x_t, h_t, "W_hx")
        drawing.arrow(ax, previous, h_t, "W_hh")
        drawing.arrow(ax, h_t, o_t, "W_hy")
        drawing.arrow(ax, o_t, L_t)
        drawing.note(ax, t - 0.04, 1.5, f"dL/dh_{t}\n{row(g.h[t - 1])}", ha="right", va="center")
        drawing.note(ax, t - 0.04, 2.5, f"dL/do_{t}\n{row(g.o[t - 1])}", ha="right", va="center")
        if t > 1:
            drawing.arrow(ax, h_t, previous, "", drawing.ACCENT, bend=-0.35)
            drawing.note(ax, t - 0.5, 0.72, f"dL/dz_{t}\n{row(g.z[t - 1])}", ha="center", va="top")
        previous = h_t
    ax.set_xlim(-0.4, len(x) + 0.5)
    ax.set_ylim(-0.35, 3.3)
    ax.axis("off")


def _draw_norms(canvas: Any, norms: np.ndarray, w_hh: np.ndarray, radius: float) -> None:
    left, right = canvas.subplots(1, 2)
    T = len(norms)
    shown = np.where(np.tri(T, dtype=bool).T, norms, np.nan)
    drawing.draw_grid(left, shown, "‖contribution of step t to dL/dh_i‖", colours="Oranges", symmetric=False)
    for text in left.texts:
        if text.get_text() == "-∞":
            text.set_text("")
    left.set_xlabel("t, from 1", fontsize=9)
    left.set_ylabel("i, from 1", fontsize=9)
    steps = 30
    direct = np.zeros((steps, len(w_hh)))
    direct[-1] = 1 / np.sqrt(len(w_hh))
    for target, colour in ((0.8, drawing.SECOND), (1.0, drawing.INK), (1.2, drawing.ACCENT)):
        scaled = w_hh * (target / radius) if radius > 0 else w_hh
        lengths = rnn.contribution_norms(scaled, np.zeros_like(direct), direct, "identity")[:, -1]
        distance = np.arange(steps - 1, -1, -1)
        right.plot(distance, np.maximum(lengths, 1e-12), color=colour, label=f"largest |eigenvalue| {target}")
    right.set_yscale("log")
    right.legend(fontsize=8, frameon=False)
    drawing.bare_axes(right, "vanishing and exploding", "distance t - i", "length of the gradient")
