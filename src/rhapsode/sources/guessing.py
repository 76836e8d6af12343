"""Tells what a file is: packed how, in which encoding and format, and, of plain text, cut into stories how.

The bytes decide on packing and encoding, the name's suffix on the format, where there is a known one. Otherwise the
content decides, for a file as for standard input. `--format` and `--cut` have the last word.
"""

import csv
import json
import re
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from rhapsode.sources.files import COMPRESSIONS, MARKS, InputFile, format_of_name, open_bytes, read_chunks

FORMATS = ("auto", "text", "jsonl", "json", "csv", "tsv", "parquet")
HEAD_CHARACTERS = 1 << 16  # what a guess looks at, at least; a first record that is longer is read to its end
LONGEST_HEAD = 1 << 26  # what is valid JSON for so long is JSON
STANDARD_SEPARATOR = "<|endoftext|>"
SPLIT_FILES = 16  # of a source, whose beginnings tell how text is cut

_SPACE = re.compile(r"[ \t\r\n]*")
_COLUMN_NAME = re.compile(r"[^\W\d][\w-]{0,40}( [\w-]{1,40}){0,2}")
_NUMBER = re.compile(r"\s*[-+]?\d[\d.]*\s*")
TABLE_ROWS = 64  # of a possible table that are looked at
MOST_UNSURE_ROWS = 8  # with as many cells each, where no column has only numbers in it


class Guess(NamedTuple):
    """A file with its format.

    by_content: whether that was guessed from what is in it. looks_like: another format that its content has, although
    its name says text.
    """

    file: InputFile
    by_content: bool
    looks_like: str = ""


def recognise(path: Path, name: str, format: str = "auto", field: str = "text", suffix_of: str | None = None) -> Guess:
    """Looks at a file's name and beginning; `name` is how the user is told of it.

    format: what the user says it is. suffix_of: the name whose suffix counts, "" for none; otherwise the path's.
    Raises ValueError for packed Parquet, for binary files, and where text and JSON Lines cannot be told apart.
    """
    named = path.name if suffix_of is None else suffix_of
    compression = _compression(path) or COMPRESSIONS.get(Path(named).suffix.lower(), "")
    known = format_of_name(named)
    if format == "auto" and (known == "parquet" or (known is None and _begins(path, b"PAR1"))):
        format = "parquet"
    if format == "parquet":
        if compression:
            raise ValueError(f"{name}: Parquet is compressed inside; unpack the {compression} around it first")
        return Guess(InputFile(path, name, format, ""), known is None)
    file = InputFile(path, name, "text", compression)
    with open_bytes(file) as stream:
        head = stream.read(4)
    encoding = next((encoding for mark, encoding in MARKS.items() if head.startswith(mark)), "utf-8")
    file = InputFile(path, name, "text", compression, encoding)
    by_content = False
    if format == "auto":
        format = known or "text"
        if known is None or known in ("json", "jsonl"):
            format = format_of_content(file, field, known)
            by_content = format != (known or "text")
    looks_like = ""
    if known == format == "text" and head.lstrip()[:1] in (b"{", b"[", b'"'):
        with suppress(ValueError):
            looks_like = format_of_content(file, field)
    looks_like = looks_like if looks_like in ("json", "jsonl") else ""
    return Guess(InputFile(path, name, format, compression, encoding), by_content, looks_like)


def _begins(path: Path, magic: bytes) -> bool:
    with path.open("rb") as stream:
        return stream.read(len(magic)) == magic


def _compression(path: Path) -> str:
    """gzip, zstd or "", by the first bytes; frames of zstd that are to be skipped are skipped."""
    with path.open("rb") as stream:
        magic = stream.read(4)
        if magic[:2] == b"\x1f\x8b":
            return "gzip"
        while len(magic) == 4 and 0x50 <= magic[0] <= 0x5F and magic[1:] == b"\x2a\x4d\x18":
            stream.seek(int.from_bytes(stream.read(4), "little"), 1)
            magic = stream.read(4)
        return "zstd" if magic == b"\x28\xb5\x2f\xfd" else ""


class _Head:
    """The beginning of a text, of which more is read where it is needed."""

    def __init__(self, file: InputFile) -> None:
        self.name, self.chunks = file.name, read_chunks(file)
        self.text, self.complete = "", False
        self.extend(HEAD_CHARACTERS)

    def extend(self, wanted: int) -> None:
        """Reads `wanted` characters more, or to the end."""
        parts = [self.text]
        while wanted > 0 and not self.complete:
            chunk = next(self.chunks, None)
            self.complete = chunk is None
            parts.append(chunk or "")
            wanted -= len(parts[-1])
        self.text = "".join(parts)

    def after_space(self, position: int) -> int:
        return _SPACE.match(self.text, position).end()  # type: ignore[union-attr]

    def value(self, position: int) -> tuple[Any, int] | None:
        """The JSON value that begins here, and its end; None where there is none.

        Where it is too long, too deep, or holds too long a number to be read, it is (None, the end of the text).
        """
        while True:
            try:
                return json.JSONDecoder().raw_decode(self.text, position)
            except json.JSONDecodeError as error:
                if self.complete or not is_cut_short(error, self.text):
                    return None
            except (RecursionError, ValueError):
                return None, len(self.text)
            if len(self.text) > LONGEST_HEAD:
                return None, len(self.text)
            self.extend(len(self.text))

    def lines_after(self, position: int) -> list[str]:
        """The lines after the one that ends here that are not blank and that end within the head."""
        lines = self.text[position:].split("\n")[1:]
        return [line for line in (lines if self.complete else lines[:-1]) if line.strip()]


def is_cut_short(error: json.JSONDecodeError, text: str) -> bool:
    """Whether more text could mend the error."""
    return error.msg.startswith("Unterminated") or error.pos > len(text) - 16


def format_of_content(file: InputFile, field: str, known: str | None = None) -> str:
    """The format that a file's beginning has: text, jsonl, json, csv or tsv; known: json or jsonl by its name.

    Raises ValueError for binary files, and where the first lines are JSON Lines and a later one is not.
    """
    try:
        head = _Head(file)
        begin = head.after_space(0)
        guess = {"{": _object, "[": _list, '"': _string}.get(head.text[begin : begin + 1], _other)
        found = guess(head, begin)
    except ValueError:
        if known:
            return known  # whose reader names the line
        raise
    return found or known or _table(head, field) or "text"


def _object(head: _Head, begin: int) -> str | None:
    found = head.value(begin)
    if found is None:  # perhaps the one broken line of many
        return "jsonl" if _is_object(next(iter(head.lines_after(begin)), "")) else None
    value, end = found
    if value is None:
        return "jsonl"
    if "\n" in head.text[begin:end]:
        return "json"
    follows = head.text[end:].lstrip(" \t\r")[:1]
    return "jsonl" if follows in ("", "\n", "{", ",") else None


def _is_object(line: str) -> bool:
    with suppress(ValueError, RecursionError):
        return isinstance(json.loads(line), dict)
    return False


def _string(head: _Head, begin: int) -> str | None:
    found = head.value(begin)
    if found is None or not _line_ends(head, found[1]):
        return None
    # A single line in quotation marks is as well the beginning of a story.
    return "jsonl" if _following(head, found[1], str) else None


def _list(head: _Head, begin: int) -> str | None:
    position = head.after_space(begin + 1)
    sign = head.text[position : position + 1]
    if sign and sign in '{["':  # a list of records, perhaps far too long to be read whole
        for _ in range(2):
            found = head.value(position)
            if found is None:
                return None
            position = head.after_space(found[1])
            sign = head.text[position : position + 1]
            if sign and (sign not in ",]" or (sign == "]" and head.after_space(position + 1) < len(head.text))):
                return None
            if sign != "," or isinstance(found[0], dict):
                break
            position = head.after_space(position + 1)
            if position == len(head.text):
                break
        return "json"  # perhaps a broken one, of which its reader tells where
    found = head.value(begin)  # ids, or nothing
    if found is None:
        return None
    value, end = found
    if value is None or "\n" in head.text[begin:end]:
        return "json"
    if not value:
        return "json" if head.after_space(end) == len(head.text) else None
    if not _line_ends(head, end):
        return None
    return "jsonl" if not head.lines_after(end) or _following(head, end, list) else None


def _other(head: _Head, begin: int) -> str | None:
    return None


def _line_ends(head: _Head, position: int) -> bool:
    return not head.text[position:].partition("\n")[0].strip()


def _following(head: _Head, position: int, kind: type) -> bool:
    """Whether the lines after the first are JSON of this kind too; ValueError where only some of them are."""
    for number, line in enumerate(lines := head.lines_after(position)):
        try:
            right = isinstance(json.loads(line), kind)
        except (ValueError, RecursionError):
            right = False
        if not right:
            if number == 0:
                return False
            raise ValueError(
                f"{head.name}: the first {number + 1} lines are JSON, as in JSON Lines, and the next,"
                f" {line.strip()[:40]!r}, is not; choose --format text or --format jsonl"
            )
    return bool(lines)


def _table(head: _Head, field: str) -> str | None:
    """csv or tsv where the first line is names of columns and all rows have as many cells; None for other text.

    One of the names must be the field, or one of the columns be numbers, or the rows be many: a line of prose may
    well have the one comma that the lines after it have.
    """
    lines = head.text.split("\n")
    for format, delimiter in (("tsv", "\t"), ("csv", ","), ("csv", ";")):
        names = [name.strip('" ') for name in lines[0].split(delimiter)]
        if len(names) < 2 or not all(map(_COLUMN_NAME.fullmatch, names)):
            continue
        rows: list[list[str]] = []
        try:
            reader = csv.reader((f"{line}\n" for line in lines[1:TABLE_ROWS]), delimiter=delimiter, strict=True)
            rows.extend(row for row in reader if row)
        except csv.Error:  # also where a row's end is out of sight
            pass
        if not rows or any(len(row) != len(names) for row in rows):
            continue
        numbers = any(all(map(_NUMBER.fullmatch, column)) for column in zip(*rows, strict=True))
        if field in names or numbers or len(rows) > MOST_UNSURE_ROWS:
            return format
    return None


def guess_split(files: Sequence[InputFile]) -> str:
    """How plain text is cut: at the standard separator if the first two megabytes of one of the first files have it,
    else at blank lines if there are any, else line by line."""
    guess = "line"
    for file in files[:SPLIT_FILES]:
        head = "".join(islice(read_chunks(file), 2))
        if STANDARD_SEPARATOR in head:
            return "separator"
        if re.search(r"\S[^\S\n]*\n\s*\n\s*\S", head):
            guess = "paragraph"
    return guess


def occurs(separator: str, file: InputFile) -> bool:
    """Whether the separator stands anywhere in the text."""
    rest = ""
    for chunk in read_chunks(file):
        rest += chunk
        if separator in rest:
            return True
        rest = rest[len(rest) - len(separator) + 1 :] if len(separator) > 1 else ""
    return False
