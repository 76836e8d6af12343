"""A question, and how its numbers are written where the pages of the worked examples do not know it yet."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from rhapsode.textbook.explain.page import PageBlock, beside, number
from rhapsode.textbook.explain.quiz.answers import Answer

PHONE_LETTERS = 52


@dataclass(frozen=True)
class Question:
    """What is asked, the answer that is right, and the steps that lead to it; `draw` names the topic.

    example: the arguments of `rhapsode explain` that show the whole of which this is a part, if there are any.
    """

    blocks: Sequence[PageBlock]
    answer: Answer
    steps: Sequence[PageBlock]
    example: tuple[str, ...] = ()
    topic: str = ""

    @property
    def command(self) -> str:
        """The example's arguments as one types them in a shell."""
        return shlex.join(self.example)


def packed(*matrices: Sequence[str]) -> list[str]:
    """Matrices next to each other, as many as a phone shows in one row, and the others below."""
    rows: list[list[list[str]]] = [[]]
    for lines in map(list, matrices):
        widths = [max(map(len, others)) for others in [*rows[-1], lines]]
        if rows[-1] and sum(widths) + 4 * (len(widths) - 1) > PHONE_LETTERS:
            rows.append([])
        rows[-1].append(lines)
    return [line for i, row in enumerate(rows) for line in ([""] if i else []) + beside(*row)]


def sum_of_products(name: str, rows: Sequence[Sequence[str]], value: float) -> list[str]:
    """`name = 1·2 + 3·4 = 14`, one line for each row of products where they are too long for one."""
    line = f"{name} = {' + '.join(' + '.join(row) for row in rows)} = {number(value)}"
    if len(line) <= PHONE_LETTERS:
        return [line]
    start = " " * len(name)
    first, *others = (" + ".join(row) for row in rows)
    return [f"{name} = {first}", *(f"{start} + {row}" for row in others), f"{start} = {number(value)}"]


def fraction(value: float) -> str:
    """`5/8` for 0.625: for probabilities and what follows from them, whose denominators are small."""
    return str(Fraction(float(value)).limit_denominator(10_000))


def fraction_factor(value: float) -> str:
    """A fraction inside a product or after a minus, in parentheses if it is negative."""
    return f"({fraction(value)})" if value < 0 else fraction(value)


def fractions(values: np.ndarray) -> str:
    """A vector of fractions on one line."""
    return "(" + ", ".join(map(fraction, values)) + ")"


def fraction_matrix(name: str, values: np.ndarray) -> list[str]:
    """`name = [ … ]` in fractions, one line per row, columns aligned."""
    cells = [[fraction(v) for v in r] for r in values]
    width = max(len(cell) for r in cells for cell in r)
    start = f"{name} = "
    return [
        (start if i == 0 else " " * len(start)) + "[ " + " ".join(cell.rjust(width) for cell in r) + " ]"
        for i, r in enumerate(cells)
    ]


def option(values: np.ndarray) -> str:
    """A vector or matrix as an option of `rhapsode explain`: `1 0 -2 / 2 9 5`."""
    return " / ".join(" ".join(f"{v:g}" for v in r) for r in np.atleast_2d(values))
