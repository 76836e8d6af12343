"""Opens one file of a source: unpacks it, turns it into UTF-8, and reads it as text, a megabyte at a time."""

import codecs
import gzip
import io
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

from rhapsode.files import naming

FORMATS = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".markdown": "text",
    ".rst": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
# A mark of UTF-32 begins with one of UTF-16, so it comes first.
MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}

CHUNK_BYTES = 1 << 20
PACKED_BYTES = 1 << 10  # of zstandard that are unpacked at once: to 32 MB at most, held twice, whatever is in them
LONGEST_RECORD = 1 << 28  # bytes of a line of JSON, characters of an item of a list or of a cell of a table
LARGEST_WINDOW = 1 << 31  # bytes of memory, all that `zstd --long=31` needs; the library alone stops at 1 << 27

OnRead = Callable[[float], None]


@dataclass(frozen=True)
class InputFile:
    """A file to read: where it lies, what the user calls it, and how to read it.

    format: text, jsonl, json, csv, tsv or parquet; compression: gzip, zstd or ""; encoding: utf-8, utf-16 or utf-32,
    of all formats but Parquet.
    """

    path: Path
    name: str
    format: str
    compression: str
    encoding: str = "utf-8"


def format_of_name(name: str | Path) -> str | None:
    """The format that a file's name tells, with .gz or .zst behind it or not; None for a name that tells none."""
    path = Path(name)
    inner = path.with_suffix("") if path.suffix.lower() in COMPRESSIONS else path
    return FORMATS.get(inner.suffix.lower())


def shown(name: str | Path) -> str:
    r"""A file's name as it can be printed and stored: bytes that are not UTF-8 as \xff."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


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
        self.packed, self.place, self.ready = b"", 0, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.ready:
            if self.place == len(self.packed):
                self.packed, self.place = self.compressed.read(CHUNK_BYTES // 8), 0
            data = self.packed[self.place : self.place + PACKED_BYTES]
            self.place += len(data)
            if not data:
                if self.frame is not None:
                    raise EOFError("the file ends in the middle of a frame")
                return 0
            if self.frame is None:
                self.frame = zstandard.ZstdDecompressor(max_window_size=LARGEST_WINDOW).decompressobj()
            self.ready = memoryview(self.frame.decompress(data))
            if self.frame.eof:
                self.place -= len(self.frame.unused_data)
                self.frame = None
        count = min(len(buffer), len(self.ready))
        buffer[:count] = self.ready[:count]
        self.ready = self.ready[count:]
        return count


class _Utf8(io.RawIOBase):
    """What stands in another encoding, with a byte-order mark, as UTF-8 without one."""

    def __init__(self, stream: BinaryIO, encoding: str, name: str) -> None:
        self.stream, self.encoding, self.name = stream, encoding, name
        self.decoder = codecs.getincrementaldecoder(encoding)()
        self.offset, self.ended, self.ready = 0, False, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.ready and not self.ended:
            data = self.stream.read(CHUNK_BYTES)
            pending = len(self.decoder.getstate()[0])
            try:
                text = self.decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                where = self.offset - pending + error.start
                raise ValueError(f"{self.name}: not {self.encoding.upper()} at byte {where} ({error.reason})") from None
            self.offset, self.ended, self.ready = self.offset + len(data), not data, memoryview(text.encode())
        count = min(len(buffer), len(self.ready))
        buffer[:count] = self.ready[:count]
        self.ready = self.ready[count:]
        return count


@contextmanager
def open_bytes(file: InputFile, on_read: OnRead | None = None) -> Iterator[io.BufferedReader]:
    """Opens the file's unpacked bytes, UTF-8 where it is text; on_read is told of (packed) bytes read from disk."""
    with naming(file.name), file.path.open("rb", buffering=0) as raw:
        stream = io.BufferedReader(_Counted(raw, on_read) if on_read else raw, CHUNK_BYTES)
        unpacked: Any = stream
        if file.compression == "gzip":
            unpacked = io.BufferedReader(gzip.GzipFile(fileobj=stream), CHUNK_BYTES)
        elif file.compression == "zstd":
            unpacked = io.BufferedReader(_Zstd(stream), CHUNK_BYTES)
        if file.encoding != "utf-8":
            unpacked = io.BufferedReader(_Utf8(unpacked, file.encoding, file.name), CHUNK_BYTES)
        try:
            yield unpacked
        except (gzip.BadGzipFile, zlib.error, zstandard.ZstdError, EOFError) as error:
            raise ValueError(f"{file.name}: broken {file.compression} data: {error}") from None


def read_chunks(file: InputFile, on_read: OnRead | None = None) -> Iterator[str]:
    """Yields the text in chunks of about a megabyte: from UTF-8, no byte-order mark, lines ended by \\n.

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
                    f"{file.name}: not a text file, byte {zero} is zero; give text, JSON, JSONL, CSV or Parquet"
                    " (UTF-16 is read where it begins with its byte-order mark)"
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
