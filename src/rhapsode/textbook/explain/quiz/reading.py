"""From what a student types to numbers: plain arithmetic, rows of it, and matrices in several spellings.

Everything raises ValueError with one line that says what could not be read. Nothing typed is ever executed.
"""

import ast
import math
import operator
import re
import warnings
from collections.abc import Iterator

MOST_LETTERS = 200  # of one number: no sensible answer is longer, and nesting stays shallow

SPELLINGS = str.maketrans({"−": "-", "–": "-", "·": "*", "×": "*", "÷": "/", "⁄": "/", "^": "**", "\u00a0": " "})
OPERATIONS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
FUNCTIONS = {"sqrt": math.sqrt, "log": math.log, "ln": math.log, "exp": math.exp}

Grid = list[list[float]]


def arithmetic(text: str) -> float:
    """The value of a number, a fraction or plain arithmetic: + - * / ^, parentheses, sqrt, log, exp."""
    text = _spelled(text).strip()
    shown = text if len(text) <= 40 else text[:40] + "…"
    try:
        if len(text) > MOST_LETTERS:
            raise SyntaxError
        with warnings.catch_warnings(action="ignore"):  # the parser has opinions on `1if`
            value = _value(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, TypeError):
        raise ValueError(f"{shown!r} is not a number") from None
    except ZeroDivisionError:
        raise ValueError(f"{shown!r} divides by zero") from None
    except OverflowError:
        raise ValueError(f"{shown!r} is too large") from None
    if not math.isfinite(value):
        raise ValueError(f"{shown!r} is too large")
    return value


def grids(text: str) -> Iterator[Grid]:
    """Every way to read the text as rows of numbers, likeliest first; a row is what `;`, a line or ` / ` ends.

    `1 -2` is two numbers and `1 - 2, 3` is two as well, so that only the size that is expected can decide.
    Raises ValueError if there is no way at all.
    """
    error = None
    found: list[Grid] = []
    for rows in _rows(_spelled(text)):
        for separators in (", ", ","):
            try:
                grid = [[arithmetic(cell) for cell in _cells(row, separators)] for row in rows]
            except ValueError as reason:
                error = error or reason
                continue
            if grid and all(grid) and grid not in found:
                found.append(grid)
                yield grid
    if not found:
        raise error or ValueError(f"{text.strip()!r} holds no numbers")


def is_open(text: str) -> bool:
    """Whether a `[` still waits for its `]`."""
    return text.count("[") > text.count("]")


def _value(node: ast.expr) -> float:
    """Raises ValueError for whatever is not arithmetic; all in floating point, so that 9**9**9 costs nothing."""
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return float(value)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _value(operand)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATIONS:
            value = OPERATIONS[type(op)](_value(left), _value(right))
            if isinstance(value, float):  # a root of a negative number is complex
                return value
        case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if name in FUNCTIONS:
            return FUNCTIONS[name](_value(argument))
    raise ValueError


def _spelled(text: str) -> str:
    """The signs that Python knows, and `log(3)` for `log 3`, `sqrt(2)` for `√2`."""
    text = text.translate(SPELLINGS).replace("√", "sqrt ")
    text = re.sub(r"\b(sqrt|log|ln|exp)\s+(\d+(?:\.\d+)?)", r"\1(\2)", text)
    return re.sub(r"\b(sqrt|log|ln|exp)\s+\(", r"\1(", text)


def _rows(text: str) -> Iterator[list[str]]:
    """The rows as text, in every way in which they may be separated."""
    # (1, 2) is a row as [1, 2] is; (1 + 2) is arithmetic and has no comma.
    while (bracketed := re.sub(r"\(([^()\[\]]*,[^()\[\]]*)\)", r"[\1]", text)) != text:
        text = bracketed
    text = re.sub(r"\(\s*((?:\[[^\[\]]*\][\s,;]*)+)\)", r"[\1]", text)
    if "[" in text or "]" in text:
        inner = re.findall(r"\[([^\[\]]*)\]", text)
        around = re.sub(r"\[[^\[\]]*\]", "", text)
        if not re.fullmatch(r"[\s,;]*|\s*\[[\s,;]*\]\s*", around):
            raise ValueError(f"{text.strip()!r}: the brackets do not match")
        if len(inner) != 1:
            yield inner
            return
        text = inner[0]
    lines = [row for row in re.split(r"[;\n]", text) if row.strip()]
    yield lines
    if len(lines) == 1 and "/" in text:
        yield [row for row in re.split(r"\s/\s", text) if row.strip()]
        yield [row for row in text.split("/") if row.strip()]


def _cells(row: str, separators: str) -> list[str]:
    """The row cut at these separators, but not inside of parentheses; spaces around an operator do not cut."""
    cells, depth = [""], 0
    for letter in " ".join(row.split()):
        depth += (letter == "(") - (letter == ")")
        if letter in separators and depth <= 0:
            cells.append("")
        else:
            cells[-1] += letter
    return [cell for cell in cells if cell.strip()]
