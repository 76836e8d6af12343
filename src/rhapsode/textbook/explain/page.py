"""What a worked example is made of, how numbers are written, and the example in a terminal or in Markdown."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Heading:
    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph; `names` in backticks."""

    text: str


@dataclass(frozen=True)
class Lines:
    """Calculations and matrices, shown line by line in one width of letter."""

    lines: Sequence[str]


@dataclass(frozen=True)
class Illustration:
    """A drawing for the web page: `draw` fills an empty matplotlib figure, `size` wide and high in inches."""

    caption: str
    draw: Callable[[Any], None]
    size: tuple[float, float]


PageBlock = Heading | Text | Lines | Illustration


@dataclass(frozen=True)
class WorkedExample:
    title: str
    blocks: Sequence[PageBlock]


def number(value: float) -> str:
    """Exact if three decimals suffice, else to four, or with an exponent if below 0.001; 1e-16 is 0."""
    value = float(value)
    for decimals in range(4):
        if abs(value - round(value, decimals)) < 1e-12:
            return f"{round(value, decimals) + 0.0:.{decimals}f}"  # + 0.0 turns -0.0 into 0.0
    return f"{value:.4f}" if abs(value) >= 0.001 else f"{value:.1e}"


def row(values: np.ndarray) -> str:
    """A vector on one line: `(1, 0.5)`."""
    return "(" + ", ".join(number(v) for v in values) + ")"


def factor(value: float) -> str:
    """A number inside a product, in parentheses if it is negative."""
    return f"({number(value)})" if value < 0 else number(value)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Aligned lines under the columns' names: the first `left` columns to the left, others to the right."""
    widths = [max(len(r[c]) for r in [columns, *rows]) for c in range(len(columns))]

    def line(cells: Sequence[str]) -> str:
        aligned = [
            cell.ljust(width) if c < left else cell.rjust(width)
            for c, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(aligned).rstrip()

    return [line(columns), *map(line, rows)]


def matrix(name: str, values: np.ndarray, zero: str = "0") -> list[str]:
    """`name = [ … ]`, one line per row, columns aligned; zeros written as `zero`."""
    return bracketed(f"{name} = ", values, zero)


def bracketed(left: str, values: np.ndarray, zero: str = "0") -> list[str]:
    """A matrix after the text `left`."""
    cells = [[zero if number(v) == "0" else number(v) for v in r] for r in np.atleast_2d(values)]
    width = max(len(cell) for r in cells for cell in r)
    return [
        (left if i == 0 else " " * len(left)) + "[ " + " ".join(cell.rjust(width) for cell in r) + " ]"
        for i, r in enumerate(cells)
    ]


def beside(*matrices: list[str]) -> list[str]:
    """Blocks of lines next to each other, aligned at the top."""
    widths = [max(map(len, m)) for m in matrices]
    return [
        "    ".join(line.ljust(width) for line, width in zip(lines, widths, strict=True)).rstrip()
        for lines in zip_longest(*matrices, fillvalue="")
    ]


def agreement(difference: float, bound: float) -> str:
    """`below 1e-9` if so, else the difference: what is printed does not depend on the machine's last bits."""
    return (f"below {bound:.0e}" if difference < bound else f"{difference:.1e}").replace("e-0", "e-")


def print_example(example: WorkedExample) -> None:
    """Prints the example on stdout, with colours on a terminal. Figures are for the web page and left out."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    console.print(example.title, style="bold underline", soft_wrap=True)
    print_blocks(console, example.blocks)


def print_blocks(console: "Console", blocks: Sequence[PageBlock]) -> None:
    """Prints the blocks with an empty line before each; figures are left out."""
    for block in blocks:
        if isinstance(block, Heading):
            console.print(f"\n{block.text}", style="bold cyan", soft_wrap=True)
        elif isinstance(block, Text):
            console.print(f"\n{block.text.replace('`', '')}", width=min(console.width, 100))
        elif isinstance(block, Lines):
            console.print()
            for line in block.lines:
                console.print(f"  {line}".rstrip(), soft_wrap=True)


def to_markdown(example: WorkedExample, level: int) -> str:
    """The example as Markdown under a heading of that level; figures are left out."""
    parts = [f"{'#' * level} {example.title}"]
    for block in example.blocks:
        if isinstance(block, Heading):
            parts.append(f"**{block.text}**")
        elif isinstance(block, Text):
            parts.append(block.text)
        elif isinstance(block, Lines):
            parts.append("\n".join(["```text", *block.lines, "```"]))
    return "\n\n".join(parts) + "\n"
