"""Reads the records of JSONL, JSON, CSV, TSV and Parquet files: texts or lists of token ids, one at a time."""

import json
import re
import sys
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from rhapsode.sources.files import LONGEST_RECORD, InputFile, OnRead, open_bytes, read_chunks
from rhapsode.sources.guessing import is_cut_short
from rhapsode.sources.tables import read_table, shape_of

MOST_NAMED = 20  # fields in an error
PARQUET_ROWS = 16  # of Parquet that are unpacked at once, where a small file can hold large texts many times over


class Record(NamedTuple):
    """A story, or a list of token ids, of a JSON, JSONL or Parquet file, and where it stands, for errors."""

    value: str | np.ndarray
    where: str


def read_records(file: InputFile, field: str, on_read: OnRead | None = None) -> Iterator[Record]:
    """Yields the stories or id lists of a file that is not plain text; blank and null ones are skipped.

    field: of JSON objects, or the column, that holds them; `story.body` is the field body of the objects in story.
    Line ends inside a text become \\n, as those of text files do.
    """
    read = {"jsonl": _read_jsonl, "json": _read_json, "csv": _read_table, "tsv": _read_table, "parquet": _read_parquet}
    for value, where in read[file.format](file, field, on_read):
        if isinstance(value, dict):
            value = _at(value, field, where)
        if isinstance(value, str):
            if "\r" in value:
                value = value.replace("\r\n", "\n").replace("\r", "\n")
            if value and not value.isspace():
                try:
                    value.encode()
                except UnicodeEncodeError:
                    raise ValueError(f"{where}: half of a surrogate pair, which no UTF-8 text can hold") from None
                yield Record(value, where)
        elif isinstance(value, list | np.ndarray):
            if len(value):
                yield Record(_ids(value, where), where)
        elif value is not None:
            raise ValueError(f"{where}: expected a text or a list of token ids, got {type(value).__name__}")


def _at(record: dict[Any, Any], field: str, where: str) -> Any:
    """What stands in the field, or at the end of the path `story.body`; None where something on the way is null."""
    value: Any = record
    rest = field
    while rest:
        if value is None:
            return None
        if isinstance(value, dict) and rest in value:
            value, rest = value[rest], ""
        else:
            name, _, rest = rest.partition(".")
            if not isinstance(value, dict) or name not in value or not rest:
                there = ", ".join(islice(_paths(record), MOST_NAMED)) or "none"
                raise ValueError(f"{where}: no field {field!r}; there are: {there} (choose one with --field)")
            value = value[name]
    if isinstance(value, dict):
        paths = islice(_paths(value, f"{field}."), MOST_NAMED)
        there = " or ".join(f"--field {path}" for path in paths) or "nothing"
        raise ValueError(f"{where}: {field!r} is an object, not a text; choose a field inside it: {there}")
    return value


def _paths(record: dict[Any, Any], before: str = "") -> Iterator[str]:
    """The names of a record's fields; of those that are objects, the paths to what is in them, a few levels down."""
    for name, value in record.items():
        if isinstance(value, dict) and value and before.count(".") < 3:
            yield from _paths(value, f"{before}{name}.")
        else:
            yield f"{before}{name}"


def _ids(value: list | np.ndarray, where: str) -> np.ndarray:
    try:
        ids = np.asarray(value)
    except ValueError:  # lists of unequal lengths inside
        ids = np.empty(0, dtype=object)
    if ids.dtype.kind in "iu" and ids.ndim == 1 and ids.min() >= 0 and ids.dtype != np.uint64:
        return ids.astype(np.int64, copy=False)
    if isinstance(value[0], dict):
        there = ", ".join(map(str, value[0]))
        raise ValueError(f"{where}: expected a text or a list of token ids, got a list of objects ({there})")
    for position, id in enumerate(value, start=1):
        if isinstance(id, bool) or not isinstance(id, int | np.integer) or not 0 <= id < 2**31:
            raise ValueError(
                f"{where}, position {position}: {str(id)[:40]!r} is not a token id (a whole number from 0 on)"
            )
    raise ValueError(f"{where}: not a list of token ids")


def _read_jsonl(file: InputFile, field: str, on_read: OnRead | None) -> Iterator[tuple[Any, str]]:
    offset = 0
    with open_bytes(file, on_read) as stream:
        for number, line in enumerate(iter(lambda: stream.readline(LONGEST_RECORD + 1), b""), start=1):
            where = f"{file.name}, line {number}"
            if len(line) > LONGEST_RECORD:
                raise ValueError(f"{where}: {_TOO_LONG}; cut the text into several, or give it as a .txt file")
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{where}: not UTF-8 at byte {offset + error.start} ({error.reason})") from None
            offset += len(line)
            if not text.strip():
                continue
            try:
                value = json.loads(text)
            except json.JSONDecodeError as error:
                raise ValueError(f"{where}: not JSON: {error.msg} (column {error.colno})") from None
            except (RecursionError, ValueError) as error:
                raise ValueError(f"{where}: {_beyond_reading(error)}") from None
            yield value, where


def _beyond_reading(error: Exception) -> str:
    """What to say of valid JSON that Python does not read."""
    if isinstance(error, RecursionError):
        return f"JSON nested too deeply, over {sys.getrecursionlimit():,} levels"
    return f"a number of more than {sys.get_int_max_str_digits():,} digits; remove it or make it a text"


def _read_json(file: InputFile, field: str, on_read: OnRead | None) -> Iterator[tuple[Any, str]]:
    """The elements of one long JSON list, one after another, without holding the list."""
    decoder = json.JSONDecoder()
    chunks = read_chunks(file, on_read)
    buffer, begin, at_end = "", 0, False
    line, number = 1, 0  # of the buffer's first character; of the element
    expected = "the list"

    def bad(message: str, position: int) -> ValueError:
        at = line + buffer.count("\n", 0, position)
        return ValueError(f"{file.name}, line {at}: not JSON: {message}")

    while True:
        begin = _SPACE.match(buffer, begin).end()  # type: ignore[union-attr]
        sign = buffer[begin : begin + 1]
        if expected == "the list" and sign:
            if sign != "[":
                what = "one object over several lines, or an incomplete one" if sign == "{" else "not a JSON list"
                raise ValueError(
                    f"{file.name}: {what}; give a list of texts, of objects or of lists of ids, or one of them per line"
                )
            begin, expected = begin + 1, "an element or ]"
            continue
        if expected in ("an element or ]", ", or ]") and sign == "]":
            begin, expected = begin + 1, "the end"
            continue
        if expected == ", or ]" and sign:
            if sign != ",":
                raise bad(f"expected {expected}", begin)
            begin, expected = begin + 1, "an element"
            continue
        if expected == "the end":
            if sign:
                raise bad("there is text after the list", begin)
            if at_end:
                return
        elif sign:
            try:
                value, end = decoder.raw_decode(buffer, begin)
            except json.JSONDecodeError as error:
                if at_end or not is_cut_short(error, buffer):
                    raise bad(error.msg, error.pos) from None
            except (RecursionError, ValueError) as error:
                raise ValueError(f"{file.name}, item {number + 1}: {_beyond_reading(error)}") from None
            else:
                number += 1
                yield value, f"{file.name}, item {number}"
                begin, expected = end, ", or ]"
                continue
        if at_end:
            raise bad(f"the file ends where {expected} was expected", len(buffer))
        line += buffer.count("\n", 0, begin)
        if len(buffer) - begin > LONGEST_RECORD:
            raise ValueError(f"{file.name}, item {number + 1}: {_TOO_LONG}; cut the text, or give it as a .txt file")
        # As much again as is held: a long element is then tried a few times, not once per chunk.
        held, begin, wanted = buffer[begin:], 0, len(buffer) - begin
        fresh = [held]
        while wanted >= 0 and not at_end:
            chunk = next(chunks, None)
            at_end = chunk is None
            fresh.append(chunk or "")
            wanted -= len(fresh[-1])
        buffer = "".join(fresh)


_TOO_LONG = f"longer than {LONGEST_RECORD >> 20} MiB, which is the most for one record"
_SPACE = re.compile(r"[ \t\r\n]*")


def _read_table(file: InputFile, field: str, on_read: OnRead | None) -> Iterator[tuple[Any, str]]:
    yield from read_table(file, shape_of(file), field, on_read)


def _read_parquet(file: InputFile, field: str, on_read: OnRead | None) -> Iterator[tuple[Any, str]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ValueError(f"{file.name}: reading Parquet needs pyarrow; pip install 'rhapsode[hub]'") from None
    try:
        with pyarrow.parquet.ParquetFile(file.path) as table:
            columns = table.schema_arrow.names
            column = field if field in columns else field.partition(".")[0]
            if column not in columns:
                there = ", ".join(columns) or "none"
                raise ValueError(f"{file.name}: no column {field!r}; there are: {there} (choose one with --field)")
            bytes_per_row = file.path.stat().st_size / max(table.metadata.num_rows, 1)
            row = 0
            for batch in table.iter_batches(batch_size=PARQUET_ROWS, columns=[column]):
                for packed in batch.column(0):
                    value, row = packed.as_py(), row + 1
                    nested = isinstance(value, dict) or column != field
                    yield {column: value} if nested else value, f"{file.name}, row {row}"
                if on_read:
                    on_read(bytes_per_row * batch.num_rows)
    except pyarrow.ArrowException as error:
        raise ValueError(f"{file.name}: broken Parquet: {str(error).splitlines()[0]}") from None
