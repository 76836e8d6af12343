"""Part of a source's stories in a file of its own, so that another process can read them: cut already, as UTF-8.

A file is a row of pieces: a line with the number of bytes and whether the story ends there (or `-` for token ids), then
the bytes.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from rhapsode.files import naming
from rhapsode.sources import Piece, Record
from rhapsode.sources.files import InputFile, OnRead

BUFFER_BYTES = 1 << 20


class SpoolWriter:
    """Writes pieces, or lists of ids, to a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stream = path.open("wb", buffering=BUFFER_BYTES)

    def write(self, piece: Piece | Record) -> bool:
        """Appends a piece, or a list of ids; True where a story ends with it."""
        if isinstance(piece, Piece):
            content, mark = piece.text.encode(), str(int(piece.ends_story))
        else:
            content, mark = np.asarray(piece.value, "<i8").tobytes(), f"- {piece.where}".replace("\n", " ")
        try:  # for each story, so `naming` comes only where it is needed
            self._stream.write(f"{len(content)} {mark}\n".encode("utf-8", "surrogateescape") + content)
        except OSError:
            with naming(self.path):
                raise
        return mark != "0"

    def close(self) -> None:
        with naming(self.path):
            self._stream.close()


class SpooledSource:
    """What a SpoolWriter wrote; the interface of `rhapsode.sources.Source`."""

    files: tuple[InputFile, ...] = ()

    def __init__(self, path: Path, kind: Literal["text", "ids"], description: str) -> None:
        self.path, self.kind, self.description = path, kind, description
        self.total_bytes: int | None = path.stat().st_size

    def stories(self) -> Iterator[str]:
        """Yields the text of each story."""
        parts: list[str] = []
        for piece in self.pieces():
            parts.append(piece.text)
            if piece.ends_story:
                yield "".join(parts)
                parts.clear()

    def pieces(self, on_read: OnRead | None = None) -> Iterator[Piece]:
        """Yields the pieces as they were written."""
        for content, mark in self._rows(on_read):
            yield Piece(content.decode(), mark == "1")

    def sequences(self, on_read: OnRead | None = None) -> Iterator[Record]:
        """Yields the lists of ids, each with its place in the file where it came from."""
        for content, mark in self._rows(on_read):
            yield Record(np.frombuffer(content, "<i8"), mark.removeprefix("- "))

    def fingerprint(self) -> str:
        """Spooled text is never looked up by its contents."""
        raise NotImplementedError

    def _rows(self, on_read: OnRead | None) -> Iterator[tuple[bytes, str]]:
        with self.path.open("rb", buffering=BUFFER_BYTES) as stream:
            for head in stream:
                size, mark = head.decode("utf-8", "surrogateescape").rstrip("\n").split(" ", 1)
                content = stream.read(int(size))
                if on_read:
                    on_read(len(content))
                yield content, mark
