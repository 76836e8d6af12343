"""Reads CSV and TSV as tables: a story per row, out of one column. The first row names the columns."""

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from rhapsode.sources.files import LONGEST_RECORD, InputFile, OnRead, read_chunks

SAMPLE_ROWS = 200
LONGEST_NAME = 100  # characters of a column's name; what is longer is a text in a table without names
_NUMBER = re.compile(r"[\s\d.,:;/%+eE-]*")


@dataclass(frozen=True)
class TableShape:
    """What a table looks like: its columns, what stands between them, and whether cells stand in quotation marks."""

    columns: tuple[str, ...]
    delimiter: str
    quoted: bool


def shape_of(file: InputFile) -> TableShape:
    """Looks at the beginning of a table; raises ValueError where the first row cannot be names of columns."""
    first = next((line for line in _lines(read_chunks(file), file.name) if line.strip()), "")
    outside = re.sub(r'"[^"]*"', "", first)
    delimiter = "\t" if file.format == "tsv" else max(",;\t|", key=outside.count)
    quoted = file.format == "csv" or _is_quoted(file, delimiter)
    columns = [name.strip() for name in next(_rows(file, delimiter, quoted), ([], 0))[0]]
    if not any(columns) or any(len(name) > LONGEST_NAME or "\n" in name for name in columns):
        raise ValueError(f"{file.name}: its first row does not name columns; add a header row, such as: text")
    return TableShape(tuple(columns), delimiter, quoted)


def _is_quoted(file: InputFile, delimiter: str) -> bool:
    """TSV comes in two kinds: with cells in quotation marks, as spreadsheets write it, and with none that count."""
    try:
        counts = {len(row) for row, _ in islice(_rows(file, delimiter, True), SAMPLE_ROWS)}
    except ValueError:
        return False
    return len(counts) == 1


def text_column(file: InputFile, shape: TableShape) -> str | None:
    """The only column with text in it: with several words in most cells, or else with anything but numbers.

    None where there are several or none.
    """
    samples: list[list[str]] = [[] for _ in shape.columns]
    for row, _ in islice(_rows(file, shape.delimiter, shape.quoted, shape.columns), SAMPLE_ROWS):
        for cells, cell in zip(samples, row, strict=True):
            if cell.strip():
                cells.append(cell)
    if not any(samples):
        return shape.columns[0] if len(shape.columns) == 1 else None

    prose = [i for i, cells in enumerate(samples) if 2 * sum(len(cell.split()) >= 3 for cell in cells) > len(cells)]
    words = [i for i, cells in enumerate(samples) if 2 * sum(not _NUMBER.fullmatch(c) for c in cells) > len(cells)]
    for found in (prose, words):
        if len(found) == 1:
            return shape.columns[found[0]]
    return None


def read_table(
    file: InputFile, shape: TableShape, column: str, on_read: OnRead | None = None
) -> Iterator[tuple[str, str]]:
    """Yields (cell of the column, where it stands); ValueError naming the line where a row cannot be right."""
    if column not in shape.columns:
        there = ", ".join(shape.columns)
        raise ValueError(f"{file.name}: no column {column!r}; there are: {there} (choose one with --field)")
    index = shape.columns.index(column)
    for row, line in _rows(file, shape.delimiter, shape.quoted, shape.columns, on_read):
        yield row[index], f"{file.name}, line {line}"


def _rows(
    file: InputFile,
    delimiter: str,
    quoted: bool,
    columns: tuple[str, ...] | None = None,
    on_read: OnRead | None = None,
) -> Iterator[tuple[list[str], int]]:
    """Yields (cells, number of the line where they begin) of rows that are not blank; with columns, after the first."""
    csv.field_size_limit(LONGEST_RECORD)  # for the whole process; nothing else in it reads CSV
    lines = _lines(read_chunks(file, on_read), file.name)
    if quoted:
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
    else:
        reader = csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE)
    above, seen = 0, False
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ValueError(
                f"{file.name}, line {above + 1}: not CSV ({error}); a cell with {delimiter!r}, a quotation mark or a"
                ' line end stands in ", and each " in it is doubled'
            ) from None
        line, above = above + 1, reader.line_num
        if not row:
            continue
        if columns and seen and len(row) != len(columns):
            raise ValueError(
                f"{file.name}, line {line}: {len(row)} cells, where the first row names {len(columns)} columns"
                f' (a cell with {delimiter!r} in it stands in ")'
            )
        if seen or not columns:
            yield row, line
        seen = True


def _lines(chunks: Iterator[str], name: str) -> Iterator[str]:
    held: list[str] = []  # of a line that goes on, which is joined once
    length = 0
    for chunk in chunks:
        *lines, rest = chunk.split("\n")
        for line in lines:
            yield "".join([*held, line, "\n"])
            held, length = [], 0
        held, length = [*held, rest] if rest else held, length + len(rest)
        if length > LONGEST_RECORD:
            raise ValueError(f"{name}: a line of more than {LONGEST_RECORD:,} characters; is it a table?")
    if held:
        yield "".join(held)
