"""Reads one file of a source: plain text cut into stories, or the records of JSONL, JSON and Parquet.

Everything streams: what is held in memory is bounded by a megabyte of text, or by one record.
"""

import codecs
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import zstandard

FORMATS = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".markdown": "text",
    ".rst": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}

CHUNK_BYTES = 1 << 20
LONGEST_PIECE = 1 << 20  # characters; no longer piece reaches the tokenizer
FILE_PIECE = 2048  # characters; the grain at which a file that is one story can be cut in two

OnRead = Callable[[float], None]


class Piece(NamedTuple):
    """A part of a story, cut before whitespace; most stories are one piece.

    The text may be empty where all that was left to tell is that the story ends.
    """

    text: str
    ends_story: bool


class Record(NamedTuple):
    """One value of a JSON, JSONL or Parquet file (a story or its token ids) and where it stands, for errors."""

    value: str | np.ndarray
    where: str


@dataclass(frozen=True)
class InputFile:
    """A file to read: where it lies, what the user calls it, and how to read it.

    format: text, jsonl, json or parquet; compression: gzip, zstd or "".
    """

    path: Path
    name: str
    format: str
    compression: str


def input_file(path: Path, name: str | None = None) -> InputFile:
    """Tells format and compression by the suffixes; what has no known suffix is taken for plain text."""
    compression = COMPRESSIONS.get(path.suffix.lower(), "")
    inner = path.with_suffix("") if compression else path
    format = FORMATS.get(inner.suffix.lower(), "text")
    name = name or str(path)
    if format == "parquet" and compression:
        raise ValueError(f"{name}: Parquet is compressed inside; unpack the {compression} around it first")
    return InputFile(path, name, format, compression)


def has_known_suffix(path: Path) -> bool:
    inner = path.with_suffix("") if path.suffix.lower() in COMPRESSIONS else path
    return inner.suffix.lower() in FORMATS


class _Counted(io.RawIOBase):
    """A raw file that reports how many bytes were read from it, for progress bars."""

    def __init__(self, raw: io.FileIO, on_read: OnRead) -> None:
        self.raw, self.on_read = raw, on_read

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self.raw.readinto(buffer) or 0
        self.on_read(count)
        return count


class _Zstd(io.RawIOBase):
    """Decompresses zstandard frames; unlike zstandard's own reader, it notices a file that ends too early."""

    def __init__(self, compressed: BinaryIO) -> None:
        self.compressed = compressed
        self.frame: zstandard.ZstdDecompressionObj | None = None
        self.left, self.ready = b"", memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.ready:
            data = self.left or self.compressed.read(CHUNK_BYTES // 8)
            if not data:
                if self.frame is not None:
                    raise EOFError("the file ends in the middle of a frame")
                return 0
            if self.frame is None:
                self.frame = zstandard.ZstdDecompressor().decompressobj()
            self.ready, self.left = memoryview(self.frame.decompress(data)), b""
            if self.frame.eof:
                self.left, self.frame = self.frame.unused_data, None
        count = min(len(buffer), len(self.ready))
        buffer[:count] = self.ready[:count]
        self.ready = self.ready[count:]
        return count


@contextmanager
def open_bytes(file: InputFile, on_read: OnRead | None = None) -> Iterator[io.BufferedReader]:
    """Opens the file's unpacked bytes. on_read is told the number of bytes read from disk, packed ones if packed."""
    with file.path.open("rb", buffering=0) as raw:
        stream = io.BufferedReader(_Counted(raw, on_read) if on_read else raw, CHUNK_BYTES)
        unpacked: Any = stream
        if file.compression == "gzip":
            unpacked = io.BufferedReader(gzip.GzipFile(fileobj=stream), CHUNK_BYTES)
        elif file.compression == "zstd":
            unpacked = io.BufferedReader(_Zstd(stream), CHUNK_BYTES)
        try:
            yield unpacked
        except (gzip.BadGzipFile, zlib.error, zstandard.ZstdError, EOFError) as error:
            raise ValueError(f"{file.name}: broken {file.compression} data: {error}") from None


def read_text(file: InputFile, on_read: OnRead | None = None) -> Iterator[str]:
    """Yields the file's text in chunks of about a megabyte: UTF-8, without a byte-order mark, lines ended by \\n.

    Raises ValueError naming the byte (of the unpacked file) where the text is binary or not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    offset = 0
    with open_bytes(file, on_read) as stream:
        while True:
            data = stream.read(CHUNK_BYTES)
            if offset == 0 and (zero := data.find(b"\0", 0, 8192)) >= 0:
                raise ValueError(
                    f"{file.name}: not a text file, byte {zero} is zero; give text, JSON, JSONL or Parquet"
                )
            pending = len(decoder.getstate()[0])
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                where = offset - pending + error.start
                raise ValueError(
                    f"{file.name}: not UTF-8 at byte {where} ({error.reason}); convert it to UTF-8"
                ) from None
            if offset == 0:
                text = text.removeprefix("\ufeff")
            offset += len(data)
            yield newlines.decode(text, final=not data)
            if not data:
                return


def cut(chunks: Iterable[str], split: str, separator: str) -> Iterator[Piece]:
    """Cuts text that arrives in chunks into stories, and long stories into pieces.

    split: separator, paragraph (blocks between blank lines), line, or file (all of it is one story). Stories lose
    the whitespace around them, except with `file`, where every character counts; blank ones are skipped.
    """
    boundary = re.compile(
        {"separator": re.escape(separator), "paragraph": r"\n\s*\n", "line": r"\n", "file": r"(?!)"}[split]
    )
    exact = split == "file"
    # A cut must not fall into a separator of which only the beginning has arrived.
    margin = len(separator) if split == "separator" else 1
    started = False  # whether a piece of the current story went out already
    rest = ""
    for chunk in chunks:
        *whole, rest = boundary.split(rest + chunk)
        for story in whole:
            if started or (story and not story.isspace()):
                yield Piece(story.rstrip() if started else story.strip(), True)
            started = False
        if not started and not exact:
            rest = rest.lstrip()
        begin = 0
        for end in _places_to_cut(rest, FILE_PIECE if exact else LONGEST_PIECE, margin):
            yield Piece(rest[begin:end], False)
            started, begin = True, end
        rest = rest[begin:]
    if started or (rest and not rest.isspace()):
        yield Piece(rest if exact else rest.rstrip(), True)


_WORD_END = re.compile(r"(?<=\S)[ \n\t]")


def _places_to_cut(text: str, length: int, margin: int = 1) -> Iterator[int]:
    """Where to cut: before whitespace that follows a word, `length` characters apart or a little more.

    Tokenizers split there first, so the ids of the pieces, joined, are the ids of the whole.
    """
    last = len(text) - margin
    end = length
    while end <= last:
        match = _WORD_END.search(text, end, min(end + LONGEST_PIECE, last + 1))
        if match:
            end = match.start()
        elif last < end + LONGEST_PIECE:  # more text may bring the whitespace
            return
        yield end
        end += length


def pieces_of(story: str) -> Iterator[Piece]:
    """One story in memory as pieces; nearly always one."""
    begin = 0
    for end in _places_to_cut(story, LONGEST_PIECE):
        yield Piece(story[begin:end], False)
        begin = end
    yield Piece(story[begin:], True)


def read_records(file: InputFile, field: str, on_read: OnRead | None = None) -> Iterator[Record]:
    """Yields the stories or id lists of a JSONL, JSON or Parquet file; blank and null ones are skipped."""
    read = {"jsonl": _read_jsonl, "json": _read_json, "parquet": _read_parquet}[file.format]
    for value, where in read(file, field, on_read):
        if isinstance(value, dict):
            if field not in value:
                there = ", ".join(map(str, value)) or "none"
                raise ValueError(f"{where}: no field {field!r}; there are: {there} (choose one with --field)")
            value = value[field]
        if isinstance(value, str):
            if value and not value.isspace():
                try:
                    value.encode()
                except UnicodeEncodeError:
                    raise ValueError(
                        f"{where}: half of a surrogate pair, which no UTF-8 text can hold"
                    ) from None
                yield Record(value, where)
        elif isinstance(value, list | np.ndarray):
            if len(value):
                yield Record(_ids(value, where), where)
        elif value is not None:
            raise ValueError(
                f"{where}: a {type(value).__name__} where a text or a list of token ids should stand"
            )


def _ids(value: list | np.ndarray, where: str) -> np.ndarray:
    try:
        ids = np.asarray(value)
    except ValueError:  # lists of unequal lengths inside
        ids = np.empty(0, dtype=object)
    if ids.dtype.kind in "iu" and ids.ndim == 1 and ids.min() >= 0 and ids.dtype != np.uint64:
        return ids.astype(np.int64, copy=False)
    for position, id in enumerate(value, start=1):
        if isinstance(id, bool) or not isinstance(id, int | np.integer) or not 0 <= id < 2**31:
            raise ValueError(
                f"{where}, position {position}: {str(id)[:40]!r} is not a token id (a whole number from 0 on)"
            )
    raise ValueError(f"{where}: not a list of token ids")


def _read_jsonl(file: InputFile, field: str, on_read: OnRead | None) -> Iterator[tuple[Any, str]]:
    offset = 0
    with open_bytes(file, on_read) as stream:
        for number, line in enumerate(stream, start=1):
            where = f"{file.name}, line {number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{where}: not UTF-8 at byte {offset + error.start} ({error.reason})"
                ) from None
            offset += len(line)
            if not text.strip():
                continue
            try:
                yield json.loads(text), where
            except json.JSONDecodeError as error:
                raise ValueError(f"{where}: not JSON: {error.msg} (column {error.colno})") from None


def _read_json(file: InputFile, field: str, on_read: OnRead | None) -> Iterator[tuple[Any, str]]:
    """The elements of one long JSON list, one after another, without holding the list."""
    decoder = json.JSONDecoder()
    chunks = read_text(file, on_read)
    buffer, begin, line, number, at_end = "", 0, 1, 0, False

    def bad(message: str, position: int) -> ValueError:
        return ValueError(
            f"{file.name}, line {line + buffer.count(chr(10), 0, position)}: not JSON: {message}"
        )

    expected = "["
    while True:
        begin += (
            len(buffer[begin:]) - len(buffer[begin:].lstrip()) if buffer[begin : begin + 1].isspace() else 0
        )
        token = buffer[begin : begin + 1]
        if expected == "]":  # after the end of the list
            if token:
                raise bad("text after the end of the list", begin)
            if at_end:
                return
        elif token and expected == "[":
            if token != "[":
                raise ValueError(
                    f"{file.name}: not a JSON list (of texts, of objects, or of lists of token ids)"
                )
            begin, expected = begin + 1, "element or ]"
            continue
        elif token == "]" and expected in ("element or ]", ", or ]"):
            begin, expected = begin + 1, "]"
            continue
        elif token and expected == ", or ]":
            if token != ",":
                raise bad("expected , or ]", begin)
            begin, expected = begin + 1, "element"
            continue
        elif token:
            try:
                value, end = decoder.raw_decode(buffer, begin)
            except json.JSONDecodeError as error:
                if at_end:
                    raise bad(error.msg, error.pos) from None
            else:
                # A number at the very end of the buffer may go on in the next chunk.
                if end < len(buffer) or at_end:
                    number += 1
                    yield value, f"{file.name}, item {number}"
                    begin, expected = end, ", or ]"
                    continue
        if at_end:
            raise bad("the list does not end", len(buffer))
        line += buffer.count("\n", 0, begin)
        # As much again as is held already: a long element is then parsed a few times, not once per chunk.
        buffer, begin, wanted = buffer[begin:], 0, len(buffer) - begin + 1
        fresh: list[str] = []
        while wanted > 0 and not at_end:
            chunk = next(chunks, None)
            at_end = chunk is None
            fresh.append(chunk or "")
            wanted -= len(fresh[-1])
        buffer += "".join(fresh)


def _read_parquet(file: InputFile, field: str, on_read: OnRead | None) -> Iterator[tuple[Any, str]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ValueError(f"{file.name}: reading Parquet needs pyarrow; pip install 'rhapsode[hub]'") from None
    try:
        with pyarrow.parquet.ParquetFile(file.path) as table:
            columns = table.schema_arrow.names
            if field not in columns:
                there = ", ".join(columns) or "none"
                raise ValueError(
                    f"{file.name}: no column {field!r}; there are: {there} (choose one with --field)"
                )
            bytes_per_row = file.path.stat().st_size / max(table.metadata.num_rows, 1)
            row = 0
            for batch in table.iter_batches(batch_size=1024, columns=[field]):
                for value in batch.column(0).to_pylist():
                    row += 1
                    yield value, f"{file.name}, row {row}"
                if on_read:
                    on_read(bytes_per_row * batch.num_rows)
    except pyarrow.ArrowException as error:
        raise ValueError(f"{file.name}: broken Parquet: {str(error).splitlines()[0]}") from None
