"""A source of stories out of files, and how it is asked for."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from rhapsode.sources.cutting import Piece, cut, pieces_of
from rhapsode.sources.files import InputFile, OnRead, read_chunks
from rhapsode.sources.guessing import FORMATS, STANDARD_SEPARATOR, Guess, guess_split, occurs
from rhapsode.sources.records import Record, read_records
from rhapsode.sources.tables import shape_of, text_column

READING_VERSION = 2  # of the rules that make stories of bytes; raised when they change, so that stores are made anew
CUTS = ("auto", "separator", "paragraph", "line", "file")
CUT_AT = {
    "paragraph": "cut at blank lines",
    "line": "a story per line",
    "file": "the whole file is one story",
}
FORMAT_NAMES = {
    "text": "text",
    "jsonl": "JSON Lines",
    "json": "a JSON list",
    "csv": "CSV",
    "tsv": "TSV",
    "parquet": "Parquet",
}
TABLES = ("csv", "tsv")


@dataclass(frozen=True)
class SourceConfig:
    """What files hold and how text is cut into stories; what is left out is guessed, and told.

    split: for plain text: `separator`, `paragraph` (blocks between blank lines), `line`, `file` (each file is
        one story), or `auto`: separator if the text has it, else paragraph if it has blank lines, else line.
    separator: what stands between stories. One that is given must occur in the text; None is `<|endoftext|>`.
    field: the field of JSON objects, or the column, that holds the text or the token ids, as `story` or
        `story.body`; None is `text`, or the only column of a table with text in it.
    format: of all files: text, jsonl, json, csv, tsv, parquet, or `auto`: by the name, else by the content.
    """

    split: str = "auto"
    separator: str | None = None
    field: str | None = None
    format: str = "auto"

    def __post_init__(self) -> None:
        if self.split not in CUTS:
            raise ValueError(f"cut must be one of {', '.join(CUTS)}, got {self.split!r}")
        if self.separator is not None and not self.separator.strip():
            raise ValueError(f"separator must have a visible character, got {self.separator!r}")
        if self.separator is not None and self.split not in ("auto", "separator"):
            raise ValueError(f"--separator {self.separator!r} and --cut {self.split} contradict each other: give one")
        if self.field == "":
            raise ValueError("field must not be empty")
        if self.format not in FORMATS:
            raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {self.format!r}")


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
    """Stories, or lists of token ids, out of files that were found and recognised by `open_source`.

    config: what was asked for. like: the settings of another source, such as the training text's, for what was not.
    resolved: both together with what was guessed, to read the same files, or other ones alike, in the same way.
    validation: the locations among those asked for that have a validation split apart from what is read here.
    """

    def __init__(
        self, guesses: Sequence[Guess], config: SourceConfig, called: str, like: SourceConfig | None = None
    ) -> None:
        self.files = tuple(guess.file for guess in guesses)
        self.config = config
        self.total_bytes: int | None = sum(file.path.stat().st_size for file in self.files)
        if self.total_bytes == 0:
            raise ValueError(f"{called}: empty, there is nothing to read")
        self.validation: tuple[str, ...] = ()
        self._digest: tuple[list[tuple[int, int]], str] | None = None
        self._temporary: list[Any] = []  # keeps spooled inputs on disk as long as the source lives

        self.split, self.separator = config.split, _with_newlines(config.separator)
        if self.split == "separator" and self.separator is None and like is not None:
            self.separator = like.separator
        named: str | None = config.field or (like.field if like else None)
        self.field, self.column = named or "text", named
        self.kind: Literal["text", "ids"] = "text"
        notes = _about_formats(guesses)
        tables = [file for file in self.files if file.format in TABLES]
        records = [file for file in self.files if file.format not in ("text", *TABLES)]
        plain = [file for file in self.files if file.format == "text"]
        if tables:
            notes.append(self._choose_column(tables[0]))
        if records:
            first = next(read_records(records[0], self.field), None) if records[0] is self.files[0] else None
            if first is not None and not isinstance(first.value, str):
                self.kind = "ids"
            notes.append("lists of token ids" if self.kind == "ids" else "a story per record")
        if plain:
            notes.append(("text files: " if tables or records else "") + self._choose_cut(plain, like, called))
        self.description = f"{called}: {'; '.join(notes)}"
        separator = (self.separator or STANDARD_SEPARATOR) if self.split == "separator" else None
        self.resolved = replace(config, split=self.split, separator=separator, field=named)

    def _choose_column(self, file: InputFile) -> str:
        """Decides by the first table which column of all of them holds the text, and says so."""
        shape = shape_of(file)
        columns = ", ".join(shape.columns)
        guessed = self.column is None and "text" not in shape.columns
        self.column = self.column or (text_column(file, shape) if guessed else "text")
        if self.column is None:
            raise ValueError(
                f"{file.name}: no column 'text', and no other that is the only one with text; there are: {columns}"
                " (choose one with --field, or use --format text if it is not a table)"
            )
        said = f"a story per row, column {self.column!r} of {columns}"
        return said + (" (guessed; to change it: --field)" if guessed else "")

    def _choose_cut(self, plain: Sequence[InputFile], like: SourceConfig | None, called: str) -> str:
        """Chooses how plain text is cut; returns it in words. ValueError for a given separator that does not occur."""
        if self.split == "auto" and self.separator is None and like is not None and like.split != "auto":
            self.split, self.separator = like.split, like.separator
            separator = self.separator or STANDARD_SEPARATOR
            said = CUT_AT.get(self.split, f"cut at {separator!r}") + ", as the training text is"
            if self.split == "separator" and not _occurs_in(plain, separator):
                said += " (it does not occur: one story per file)"
            return said
        guessed = self.split == "auto" and self.separator is None
        if guessed:
            self.split = guess_split(plain)
        elif self.split == "auto":
            self.split = "separator"
        separator = self.separator or STANDARD_SEPARATOR
        if self.split == "separator" and not guessed and not _occurs_in(plain, separator):
            cure = "give the text between the stories with --separator, or use --cut auto"
            if self.separator is not None:
                cure = "give the text that does stand between the stories, or end a text that is one story with it"
            if "\\n" in separator:
                cure += "; in a shell, write a line end in it as $'\\n'"
            raise ValueError(f"{called}: the separator {separator!r} does not occur in it; {cure}")
        said = CUT_AT.get(self.split, f"cut at {separator!r}")
        return said + (" (guessed; to change it: --cut)" if guessed else "")

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
                separator = self.separator or STANDARD_SEPARATOR
                for piece in cut(read_chunks(file, on_read), self.split, separator):
                    empty = False
                    yield piece
            else:
                for record in read_records(file, self._field_of(file), on_read):
                    if not isinstance(record.value, str):
                        raise ValueError(f"{record.where}: token ids, where the items before it are texts")
                    empty = False
                    yield from pieces_of(record.value)
        if empty:
            raise ValueError(f"{self.description}: no stories, it is empty or has only white space")

    def sequences(self, on_read: OnRead | None = None) -> Iterator[Record]:
        """Yields the id lists of a source of kind "ids", each with its place for error messages."""
        empty = True
        for file in self.files:
            if file.format == "text":
                raise ValueError(f"{file.name}: text, where the files before it hold token ids")
            for record in read_records(file, self._field_of(file), on_read):
                if isinstance(record.value, str):
                    raise ValueError(f"{record.where}: a text, where the items before it are lists of token ids")
                empty = False
                yield record
        if empty:
            raise ValueError(f"{self.description}: no list of token ids in it")

    def _field_of(self, file: InputFile) -> str:
        return self.column or self.field if file.format in TABLES else self.field

    def fingerprint(self) -> str:
        """SHA-256 of all files' contents, in order, and of what decides how they are cut.

        Within one process, files whose size and time of change stayed the same are not read twice.
        """
        stats = [(stat.st_size, stat.st_mtime_ns) for stat in (file.path.stat() for file in self.files)]
        if self._digest is None or self._digest[0] != stats:
            how: dict[str, str | int] = {"reading": READING_VERSION}
            if any(file.format == "text" for file in self.files):
                how["split"] = self.split
                if self.split == "separator":
                    how["separator"] = self.separator or STANDARD_SEPARATOR
            for file in self.files:
                if file.format != "text":
                    how[f"field of {'tables' if file.format in TABLES else 'records'}"] = self._field_of(file)
            digest = hashlib.sha256(json.dumps(how, sort_keys=True).encode())
            for file in self.files:
                with file.path.open("rb") as stream:
                    content = hashlib.file_digest(stream, "sha256").hexdigest()
                digest.update(f"\n{file.format} {file.compression} {content}".encode())
            self._digest = (stats, digest.hexdigest())
        return self._digest[1]


def _about_formats(guesses: Iterable[Guess]) -> list[str]:
    """What to say of formats that are not what a file's name says."""
    guessed = dict.fromkeys(FORMAT_NAMES[guess.file.format] for guess in guesses if guess.by_content)
    others = {guess.looks_like: guess.file.name for guess in guesses if guess.looks_like}
    return [f"read as {format} (guessed; to change it: --format)" for format in guessed] + [
        f"{name} looks like {FORMAT_NAMES[format]} (to read it that way: --format {format})"
        for format, name in others.items()
    ]


def _with_newlines(separator: str | None) -> str | None:
    """A separator as it stands in a text whose lines end with \\n."""
    return separator and separator.replace("\r\n", "\n").replace("\r", "\n")


def _occurs_in(files: Iterable[InputFile], separator: str) -> bool:
    return any(occurs(separator, file) for file in files)
