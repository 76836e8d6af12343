"""Where text comes from: files, folders, JSON, JSONL, Parquet, standard input, the Hugging Face Hub, storyworld.

    source = open_source(["stories.jsonl", "more/"], SourceConfig(field="story"))
    print(source.description)
    for story in source.stories(): ...

A source is a list of files and a way to cut them into stories, or a share of the corpus inside the package. It
streams; it can be read again and again.
"""

import hashlib
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

from rhapsode.sources import hub
from rhapsode.sources.cutting import Piece, cut, pieces_of
from rhapsode.sources.files import (
    CHUNK_BYTES,
    FORMATS,
    InputFile,
    OnRead,
    cache_root,
    has_known_suffix,
    input_file,
    open_bytes,
    read_text,
)
from rhapsode.sources.generated import GeneratedSource, is_generated, open_generated
from rhapsode.sources.records import Record, read_records

__all__ = [
    "FileSource",
    "GeneratedSource",
    "Piece",
    "Record",
    "Source",
    "SourceConfig",
    "cache_root",
    "open_source",
]

SPLITS = ("auto", "separator", "paragraph", "line", "file")
CUT_AT = {
    "paragraph": "cut at blank lines",
    "line": "a story per line",
    "file": "the whole file is one story",
}


@dataclass(frozen=True)
class SourceConfig:
    """How to cut text into stories.

    split: for plain text: `separator`, `paragraph` (blocks between blank lines), `line`, `file` (each file is
        one story), or `auto`: separator if the text has it, else paragraph if it has blank lines, else line.
    separator: what stands between stories.
    field: the field of JSON objects, or the Parquet column, that holds the text or the token ids.
    """

    split: str = "auto"
    separator: str = "<|endoftext|>"
    field: str = "text"

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {self.split!r}")
        if not self.separator.strip():
            raise ValueError(f"separator must have a visible character, got {self.separator!r}")
        if not self.field:
            raise ValueError("field must not be empty")


class Source(Protocol):
    """Stories, or lists of token ids: a `FileSource` or a `GeneratedSource`, as `open_source` finds them.

    description: one line for the user: what it is and, where that was guessed, how it is cut.
    kind: "text" or "ids".
    files: what is read; nothing for what is generated.
    total_bytes: bytes on disk, the scale of what `on_read` reports; None where that is not known.
    """

    description: str
    kind: Literal["text", "ids"]
    files: tuple[InputFile, ...]
    total_bytes: int | None

    def stories(self) -> Iterator[str] | Iterator[list[int]]:
        """Yields each story's text, or each list of ids; a file that is one story comes whole."""

    def pieces(self, on_read: OnRead | None = None) -> Iterator[Piece]:
        """Yields the stories in pieces of bounded length; on_read is told of bytes read."""

    def fingerprint(self) -> str:
        """SHA-256 of what decides the stories, in order."""


class FileSource:
    """Stories, or lists of token ids, out of files that were found and recognised by `open_source`."""

    def __init__(self, files: Sequence[InputFile], config: SourceConfig, called: str) -> None:
        self.files = tuple(files)
        self.config = config
        self.total_bytes: int | None = sum(file.path.stat().st_size for file in self.files)
        if self.total_bytes == 0:
            raise ValueError(f"{called}: empty, there is nothing to read")
        self._digest: tuple[list[tuple[int, int]], str] | None = None
        self._temporary: Any = None  # keeps a spooled standard input on disk as long as the source lives

        self.split = config.split
        self.kind: Literal["text", "ids"] = "text"
        plain = [file for file in self.files if file.format == "text"]
        self.description = called
        if plain:
            guessed = config.split == "auto"
            if guessed:
                self.split = _guess_split(plain, config.separator)
            cut_at = CUT_AT.get(self.split, f"cut at {config.separator!r}")
            self.description += f": {cut_at}" + (" (guessed; --split says otherwise)" if guessed else "")
        else:
            first = next(read_records(self.files[0], config.field), None)
            if first is not None and not isinstance(first.value, str):
                self.kind = "ids"
                self.description += ": lists of token ids"

    def stories(self) -> Iterator[str] | Iterator[list[int]]:
        """Yields each story's text, or each list of ids; a file that is one story comes whole."""
        if self.kind == "ids":
            return (record.value.tolist() for record in self.sequences())  # type: ignore[union-attr]
        return self._whole_stories()

    def _whole_stories(self) -> Iterator[str]:
        parts: list[str] = []
        for text, ends_story in self.pieces():
            parts.append(text)
            if ends_story:
                yield "".join(parts)
                parts.clear()

    def pieces(self, on_read: OnRead | None = None) -> Iterator[Piece]:
        """Yields the stories in pieces of bounded length; on_read is told of bytes read from disk.

        Raises ValueError naming file and line where something cannot be read, and where there is no
        story at all.
        """
        empty = True
        for file in self.files:
            if file.format == "text":
                for piece in cut(read_text(file, on_read), self.split, self.config.separator):
                    empty = False
                    yield piece
            else:
                for record in read_records(file, self.config.field, on_read):
                    if not isinstance(record.value, str):
                        raise ValueError(f"{record.where}: token ids, where the items before it are texts")
                    empty = False
                    yield from pieces_of(record.value)
        if empty:
            raise ValueError(f"{self.description}: no story in it, only blank ones or none")

    def sequences(self, on_read: OnRead | None = None) -> Iterator[Record]:
        """Yields the id lists of a source of kind "ids", each with its place for error messages."""
        empty = True
        for file in self.files:
            if file.format == "text":
                raise ValueError(f"{file.name}: text, where the files before it hold token ids")
            for record in read_records(file, self.config.field, on_read):
                if isinstance(record.value, str):
                    raise ValueError(f"{record.where}: a text, where the items before it are lists of token ids")
                empty = False
                yield record
        if empty:
            raise ValueError(f"{self.description}: no list of token ids in it")

    def fingerprint(self) -> str:
        """SHA-256 of all files' contents, in order, and of what decides how they are cut.

        Within one process, files whose size and time of change stayed the same are not read twice.
        """
        stats = [(stat.st_size, stat.st_mtime_ns) for stat in (file.path.stat() for file in self.files)]
        if self._digest is None or self._digest[0] != stats:
            how: dict[str, str] = {}
            if any(file.format == "text" for file in self.files):
                how["split"] = self.split
                if self.split == "separator":
                    how["separator"] = self.config.separator
            if any(file.format != "text" for file in self.files):
                how["field"] = self.config.field
            digest = hashlib.sha256(json.dumps(how, sort_keys=True).encode())
            for file in self.files:
                with file.path.open("rb") as stream:
                    content = hashlib.file_digest(stream, "sha256").hexdigest()
                digest.update(f"\n{file.format} {file.compression} {content}".encode())
            self._digest = (stats, digest.hexdigest())
        return self._digest[1]


def open_source(locations: Sequence[str], config: SourceConfig = SourceConfig()) -> Source:
    """Finds the files behind the locations and tells what they hold.

    locations: files, folders (all files of known kinds in them, sorted), `-` (standard input), `hub:NAME` (a
    dataset of the Hugging Face Hub, see `rhapsode.sources.hub`). Files may be packed with gzip or zstandard. Or
    alone, `storyworld[:COUNT][:SPLIT]` (the corpus inside the package, see `rhapsode.sources.generated`).
    Raises ValueError, or an OSError, with one line that says which location cannot be used and why.
    """
    if not locations:
        raise ValueError("no data: name a file, a folder, hub:NAME, storyworld, or - for standard input")
    if any(map(is_generated, locations)):
        if len(locations) > 1:
            raise ValueError(f"storyworld cannot be mixed with other data, got {', '.join(locations)}")
        return open_generated(locations[0])
    files: list[InputFile] = []
    temporary = None
    ignored = 0
    for location in locations:
        if location == "-":
            if temporary is not None:
                raise ValueError("standard input (-) can be named once only")
            temporary, file = _spool_standard_input()
            files.append(file)
        elif location.startswith("hub:"):
            files += hub.download(location)
        elif Path(location).is_dir():
            found, others = _files_in(Path(location))
            files += found
            ignored += others
        else:
            if not Path(location).exists():
                raise FileNotFoundError(f"{location}: no such file or folder")
            files.append(input_file(Path(location)))
    called = ", ".join("standard input" if location == "-" else location for location in locations[:3])
    if len(locations) > 3:
        called += f" and {len(locations) - 3} more"
    if len(files) > len(locations):
        called += f" ({len(files)} files{f'; {ignored} of other kinds left out' if ignored else ''})"
    source = FileSource(files, config, called)
    source._temporary = temporary
    return source


def _files_in(folder: Path) -> tuple[list[InputFile], int]:
    """The files of known kinds below the folder, sorted by path, and the number of others not hidden."""
    visible = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    known = [input_file(path) for path in visible if has_known_suffix(path)]
    if not known:
        raise ValueError(f"{folder}: no file in it ends in one of {' '.join(FORMATS)} (or these with .gz, .zst)")
    return known, len(visible) - len(known)


def _spool_standard_input() -> tuple[Any, InputFile]:
    """Copies standard input into a temporary file, to be read more than once, and looks at how it begins."""
    temporary = tempfile.NamedTemporaryFile(prefix="rhapsode-stdin-")  # noqa: SIM115 (lives with the source)
    shutil.copyfileobj(sys.stdin.buffer, temporary)
    temporary.flush()
    path = Path(temporary.name)
    with path.open("rb") as stream:
        magic = stream.read(4)
    compression = "gzip" if magic[:2] == b"\x1f\x8b" else "zstd" if magic == b"\x28\xb5\x2f\xfd" else ""
    format = "parquet" if magic == b"PAR1" else "text"
    if format == "text":
        with open_bytes(InputFile(path, "standard input", "text", compression)) as unpacked:
            head = unpacked.readline(CHUNK_BYTES).lstrip(b"\xef\xbb\xbf \t\r\n")
        if head.startswith(b"{"):
            try:
                format = "jsonl" if isinstance(json.loads(head), dict) else "text"
            except ValueError:
                format = "text"
        elif re.match(rb'\[\s*(["\[{]|$)', head):
            format = "json"
    return temporary, InputFile(path, "standard input", format, compression)


def _guess_split(files: Sequence[InputFile], separator: str) -> str:
    """Looks at the first two megabytes of the first files."""
    guess = "line"
    for file in files[:16]:
        head = "".join(islice(read_text(file), 2))
        if separator in head:
            return "separator"
        if re.search(r"\S[^\S\n]*\n\s*\n\s*\S", head):
            guess = "paragraph"
    return guess
