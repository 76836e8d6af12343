"""Questions: the tape of backpropagation, a stack or a queue, and what comes out of it."""

import numpy as np

from rhapsode.textbook.explain.page import Lines, PageBlock, Text, factor, number
from rhapsode.textbook.explain.quiz.answers import ChoiceAnswer, NumbersAnswer, told_apart
from rhapsode.textbook.explain.quiz.question import Question
from rhapsode.textbook.explain.tape import Queue, RecordingTape
from rhapsode.textbook.tape import Bias, Leaf, Linear, Mean, Module, Multiply, ReLU, Sigmoid, Tanh

ACTIVATIONS: dict[str, type[Module]] = {"sigmoid": Sigmoid, "tanh": Tanh, "relu": ReLU}


def stack_or_queue(rng: np.random.Generator) -> Question:
    """Which of the two a tape is, and why."""
    if rng.integers(2):
        text = "Modules are pushed on the tape as they are computed. In which order must backpropagation take them off?"
        options = [
            ("The one pushed last first: the tape is a stack.", "right: every use of a module was pushed after it"),
            (
                "The one pushed first first: the tape is a queue.",
                "the first module would pass on a gradient that it has not received yet: those that use it come later",
            ),
            (
                "In any order: gradients add up.",
                "they add up, but a module must have received all before it passes anything on",
            ),
            (
                "The ones with the fewest inputs first.",
                "how many inputs a module has says nothing about whether its own gradient is complete",
            ),
        ]
        why = "What uses a module is pushed after it, and popped before it off a stack: its gradient is complete."
    else:
        text = "The tape is a stack. What would happen if it were a queue, from which the first pushed is popped first?"
        options = [
            (
                "The first module would pass on a gradient of zero, as nothing has been added to it yet.",
                "right: those that use it are popped after it",
            ),
            (
                "Nothing: gradients add up in any order.",
                "they add up, but a module passes on its gradient once, when it is popped",
            ),
            (
                "The gradients would have the opposite sign.",
                "the order changes which gradients are complete, and no sign",
            ),
            (
                "Only modules that are used twice would be wrong.",
                "a module used once has also received nothing before the one that uses it is popped",
            ),
        ]
        why = (
            "Each module passes on what it has received when it is popped. At the front of a queue, that is still zero."
        )
    return _choice(rng, [Text(text)], options, [Text(why)])


def order(rng: np.random.Generator) -> Question:
    """The order of the pops."""
    names, formulas, recording = _chain(rng)
    pops = [recording.names[m] for action, m, _ in recording.moments if action == "pop"]
    swapped = [*pops]
    swapped[1], swapped[2] = swapped[2], swapped[1]
    options = [
        (", ".join(pops), "right"),
        (", ".join(names), "that is the order in which they were pushed, as a queue would give them back"),
        (", ".join(swapped), f"{swapped[1]} is used by {swapped[2]}, which must be popped before it"),
        (", ".join([names[-1], *names[:-1]]), "the last first, but then as a queue"),
    ]
    return _choice(
        rng,
        [
            Text("These are computed in this order, each pushed on the tape. In which order are they popped?"),
            Lines(formulas),
        ],
        options,
        [
            Text("The tape is a stack: the last pushed is the first popped."),
            Lines([f"pushed: {', '.join(names)}", f"popped: {', '.join(pops)}"]),
        ],
    )


def left(rng: np.random.Generator) -> Question:
    """What is on the tape after some pops."""
    names, formulas, recording = _chain(rng)
    count = int(rng.integers(1, len(names) - 1))
    stacks = [stack for action, _, stack in recording.moments if action == "pop"]
    rest = stacks[count - 1]
    options = [
        (" | ".join(rest), "right"),
        (" | ".join(names[count:]), "that is what is left of a queue"),
        (" | ".join(names[: len(rest) + 1]), "one pop too few"),
        (" | ".join(reversed(rest)), "the right ones, but the first pushed lies at the bottom, here on the left"),
    ]
    if len(rest) == 1:
        options[3] = ("(nothing)", "one pop too many")
    return _choice(
        rng,
        [
            Text(
                f"These are computed in this order, each pushed on the tape. What is on the tape after {count} "
                f"pop{'s' * (count > 1)} of the backward pass, written from the bottom to the top?"
            ),
            Lines(formulas),
        ],
        options,
        [
            Text("Each pop takes the topmost, here the rightmost:"),
            Lines(
                [" | ".join(names), *(f"after pop {i}: {' | '.join(s)}" for i, s in enumerate(stacks[:count], start=1))]
            ),
        ],
    )


def used_twice(by: str, rng: np.random.Generator) -> Question:
    """A gradient by w or x, through a number that is used twice."""
    x, w, b = (float(v) for v in rng.choice([-3, -2, -1, 1, 2, 3, 4], 3))
    leaves, modules, _ = _twice(RecordingTape, x, w, b)
    u, v = w * x, w * x + b
    right = leaves[by].output_gradient.reshape(())
    du = float(modules["u"].output_gradient.item())
    factor_of = x if by == "w" else w
    return Question(
        [
            Text(f"With x = {number(x)}, w = {number(w)} and b = {number(b)} these are computed. What is dL/d{by}?"),
            Lines(["u = w x", "v = u + b", "L = v u"]),
        ],
        NumbersAnswer(
            f"dL/d{by}",
            right,
            whole=True,
            mistakes=told_apart(
                right,
                (v * factor_of, "without the way through v: u is used twice, and its gradients add up"),
                (u * factor_of, "without the direct use of u in L: u is used twice, and its gradients add up"),
                (du, "dL/du: one step is missing"),
                ((u + v) * (w if by == "w" else x), "multiplied by the wrong one of the two factors"),
                (0.0, "what a queue would give: u popped before it has received anything"),
            ),
        ),
        [
            Text("Forward first, then the stack from its top: L, v, u."),
            Lines(
                [
                    f"u = {number(w)}·{factor(x)} = {number(u)}",
                    f"v = {number(u)} + {factor(b)} = {number(v)}",
                    f"L = {number(v)}·{factor(u)} = {number(u * v)}",
                ]
            ),
            Lines(
                [
                    f"pop L: v receives u = {number(u)}, u receives v = {number(v)}",
                    f"pop v: u receives {number(u)} more",
                    f"dL/du = {number(v)} + {factor(u)} = {number(u + v)}",
                    f"pop u: dL/d{by} = {number(du)}·{factor(factor_of)} = {number(float(right))}",
                ]
            ),
        ],
    )


def as_queue(rng: np.random.Generator) -> Question:
    """What a queue makes of the same graph: v hands on nothing, since it goes before L."""
    x, w, b = (float(v) for v in rng.choice([-3, -2, -1, 1, 2, 3, 4], 3))
    _, modules, recording = _twice(Queue, x, w, b)
    _, correct, _ = _twice(RecordingTape, x, w, b)
    pops = [recording.names[m] for action, m, _ in recording.moments if action == "pop"]
    right = modules["u"].output_gradient.reshape(())
    u, v = w * x, w * x + b
    return Question(
        [
            Text(
                f"With x = {number(x)}, w = {number(w)} and b = {number(b)} these are computed, and then, by "
                "mistake, taken off "
                "the tape as off a queue: the first pushed first. Which number does u hold for dL/du at the end?"
            ),
            Lines(["u = w x", "v = u + b", "L = v u"]),
        ],
        NumbersAnswer(
            "dL/du",
            right,
            whole=True,
            mistakes=told_apart(
                right,
                (float(correct["u"].output_gradient.item()), "what a stack gives"),
                (u, "what u should receive through v: but v goes before L, and has nothing to pass on"),
                (0.0, "what u passes on; afterwards it still receives its share of L"),
                (u * v, "the value of L"),
            ),
        ),
        [
            Text(f"Off a queue they come as {', '.join(pops)}. u and v go while they hold zero, and pass on zero."),
            Lines(
                [
                    f"u = {number(w)}·{factor(x)} = {number(u)}",
                    f"v = {number(u)} + {factor(b)} = {number(v)}",
                    "u goes with 0, v goes with 0",
                    f"L goes with 1: u receives v = {number(v)}",
                    f"dL/du = {number(float(right))}",
                ]
            ),
            Text(f"A stack would have given {number(v)} + {factor(u)} = {number(u + v)}."),
        ],
    )


def _chain(rng: np.random.Generator) -> tuple[list[str], list[str], RecordingTape]:
    """A random network's modules by name in order, their formulas, and the tape that ran it."""
    W, x, b = Leaf(np.ones((2, 2))), Leaf(np.ones(2)), Leaf(np.zeros(2))
    letters = iter("uvacd")
    modules: dict[str, Module] = {}
    formulas: list[str] = []

    def add(name: str, formula: str, module: Module) -> Module:
        modules[name] = module
        formulas.append(f"{name} = {formula}")
        return module

    first = next(letters)
    last: Module = add(first, "W x", Linear(x, W))
    name = first
    if rng.integers(2):
        before, name = name, next(letters)
        last = add(name, f"{before} + b", Bias(last, b))
    for activation in rng.permutation(list(ACTIVATIONS))[: rng.integers(1, 3)]:
        before, name = name, next(letters)
        last = add(name, f"{activation}({before})", ACTIVATIONS[activation](last))
    before, name = name, next(letters)
    last = add(name, f"{before} ∘ {first}", Multiply(last, modules[first]))
    add("L", f"mean({name})", Mean(last))
    recording = RecordingTape({module: name for name, module in modules.items()})
    for module in modules.values():
        module.apply_forward(recording)
    recording.backward()
    return list(modules), formulas, recording


def _twice(
    kind: type[RecordingTape], x: float, w: float, b: float
) -> tuple[dict[str, Leaf], dict[str, Module], RecordingTape]:
    """u = w x, v = u + b, L = v u, forward and backward on a tape of that kind."""
    leaves = {"x": Leaf([x]), "w": Leaf([[w]]), "b": Leaf([b])}
    u = Linear(leaves["x"], leaves["w"])
    v = Bias(u, leaves["b"])
    modules: dict[str, Module] = {"u": u, "v": v, "L": Multiply(v, u)}
    recording = kind({module: name for name, module in {**leaves, **modules}.items()})
    for module in modules.values():
        module.apply_forward(recording)
    recording.backward()
    return leaves, modules, recording


def _choice(
    rng: np.random.Generator, blocks: list[PageBlock], options: list[tuple[str, str]], steps: list[PageBlock]
) -> Question:
    """The options, of which the first is right, in random order."""
    order = rng.permutation(len(options))
    answer = ChoiceAnswer(
        tuple(options[i][0] for i in order), int(np.argmin(order)), tuple(options[i][1] for i in order)
    )
    return Question(blocks, answer, steps)
