"""The user's own numbers: from options such as `--image "1 0 -2 / 2 9 5"`, or from a JSON file.

Numbers are separated by spaces or commas, rows by `/`, and heads (matrices side by side) by `|`. In a
JSON file the same names hold nested lists, or text in the same notation. Everything raises ValueError
with the name, what was found and what was expected.
"""

import json
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Reader = Callable[[str, Any], Any]
MOST_NUMBERS = 4_096  # of a matrix or a vector: examples hold Jacobians, which grow with the square, and are to be read


def matrix(name: str, value: Any) -> np.ndarray:
    """A matrix (rows, columns); rows separated by `/`."""
    if isinstance(value, str):
        value = [_words(row) for row in value.split("/")]
    if not isinstance(value, list) or not value or not all(isinstance(row, list) and row for row in value):
        raise ValueError(f"{name}: expected a matrix such as '1 0 -2 / 2 9 5', got {value!r}")
    _check_size(name, sum(map(len, value)))
    rows = [[_number(name, entry) for entry in row] for row in value]
    for i, row in enumerate(rows, start=1):
        if len(row) != len(rows[0]):
            raise ValueError(f"{name}: row {i} has {len(row)} numbers, row 1 has {len(rows[0])}")
    return np.array(rows)


def vector(name: str, value: Any) -> np.ndarray:
    """A vector (entries,)."""
    if isinstance(value, str):
        value = _words(value)
    if not isinstance(value, list) or not value:
        raise ValueError(f"{name}: expected numbers such as '1 0 -2', got {value!r}")
    _check_size(name, len(value))
    return np.array([_number(name, entry) for entry in value])


def heads(name: str, value: Any) -> np.ndarray:
    """One matrix for each head (heads, rows, columns), separated by `|`; a single matrix is one head."""
    if isinstance(value, str):
        value = value.split("|")
    elif isinstance(value, list) and all(_is_row(entry) for entry in value):
        value = [value]
    if not isinstance(value, list) or not value:
        raise ValueError(f"{name}: expected matrices such as '1 0 / 0 1 | 1 1 / 0 1', got {value!r}")
    matrices = [matrix(name, head) for head in value]
    for h, head in enumerate(matrices, start=1):
        if head.shape != matrices[0].shape:
            raise ValueError(f"{name}: head {h} has the shape {head.shape}, head 1 {matrices[0].shape}")
    return np.array(matrices)


def integer(name: str, value: Any) -> int:
    """One whole number."""
    number = _number(name, value)
    if number != int(number):
        raise ValueError(f"{name}: expected a whole number, got {value!r}")
    return int(number)


def real(name: str, value: Any) -> float:
    """One number."""
    return _number(name, value)


def integers(name: str, value: Any) -> np.ndarray:
    """Whole numbers, such as token ids."""
    return np.array([integer(name, entry) for entry in vector(name, value)])


def size(name: str, value: Any) -> tuple[int, int]:
    """Rows and columns: '22 22' or '22x22'."""
    rows_and_columns = integers(name, value.replace("x", " ") if isinstance(value, str) else value)
    if len(rows_and_columns) != 2:
        raise ValueError(f"{name}: expected rows and columns such as '22 22', got {value!r}")
    return int(rows_and_columns[0]), int(rows_and_columns[1])


def words(name: str, value: Any) -> list[str]:
    """Words separated by spaces, or a list of them."""
    if isinstance(value, str):
        value = value.split()
    if not isinstance(value, list) or not value or not all(isinstance(word, str) for word in value):
        raise ValueError(f"{name}: expected words such as 'cat dog', got {value!r}")
    return [word if word.isprintable() else ascii(word)[1:-1] for word in value]  # no escape sequence is obeyed


def truth(name: str, value: Any) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}: expected true or false, got {value!r}")
    return value


def text(name: str, value: Any) -> str:
    """One word."""
    if not isinstance(value, str):
        raise ValueError(f"{name}: expected a word, got {value!r}")
    return value


def gather(options: Mapping[str, tuple[Reader, Any]], file: Path | None) -> dict[str, Any]:
    """What the user gave, by name: a JSON object in `file` (`-` is stdin), overridden by options not None.

    options: for each name the function that checks and converts it, and the option's value. Names that were
    given nowhere are left out.
    """
    given = {}
    if file is not None:
        source = "standard input" if str(file) == "-" else str(file)
        try:
            given = json.loads(sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{source} is not JSON: {error}") from error
        if not isinstance(given, dict):
            raise ValueError(f'{source}: expected one JSON object such as {{"{next(iter(options))}": …}}')
        for name in given:
            if name not in options:
                raise ValueError(f"{source}: unknown name {name!r}, known are {', '.join(options)}")
    given |= {name: value for name, (_, value) in options.items() if value is not None}
    return {name: options[name][0](name, value) for name, value in given.items()}


def _check_size(name: str, count: int) -> None:
    if count > MOST_NUMBERS:
        raise ValueError(f"{name}: {count:,} numbers, a worked example has at most {MOST_NUMBERS:,}; give fewer")


def _is_row(value: Any) -> bool:
    return isinstance(value, list) and not any(isinstance(entry, list) for entry in value)


def _words(value: str) -> list[Any]:
    return value.replace(",", " ").split()


def _number(name: str, value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{name}: {value!r} is not a number")
    return number
