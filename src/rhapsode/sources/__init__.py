"""Where text comes from: files, folders, JSON, JSONL, tables, Parquet, standard input, the Hub, storyworld.

    source = open_source(["stories.jsonl", "more/"], SourceConfig(field="story"))
    print(source.description)
    for story in source.stories(): ...

A source is a list of files and a way to cut them into stories, or a share of the corpus inside the package. It
streams; it can be read again and again. What is guessed is told in its description, and `docs/inputs.md` says how.
"""

import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rhapsode.sources import hub
from rhapsode.sources.cutting import Piece
from rhapsode.sources.files import shown
from rhapsode.sources.folders import EVALUATION, TRAINING, Found, files_in
from rhapsode.sources.guessing import Guess, recognise
from rhapsode.sources.records import Record
from rhapsode.sources.remote import fetch, is_remote, location_of
from rhapsode.sources.source import CUT_AT, READING_VERSION, TABLES, FileSource, Source, SourceConfig
from rhapsode.sources.tables import shape_of, text_column

__all__ = [
    "ALL_GUESSED",
    "CUT_AT",
    "EVALUATION",
    "READING_VERSION",
    "TRAINING",
    "FileSource",
    "Piece",
    "Record",
    "Source",
    "SourceConfig",
    "files_state",
    "is_place",
    "is_remote",
    "location_of",
    "open_source",
    "shown",
]

MOST_NAMED = 4  # files in a description
ALL_GUESSED = SourceConfig()


def open_source(
    locations: Sequence[str],
    config: SourceConfig = ALL_GUESSED,
    wanted: Sequence[str] = TRAINING,
    like: SourceConfig | None = None,
) -> Source:
    """Finds the files behind the locations and tells what they hold.

    locations: files, folders (all files of known kinds in them, sorted), `-` (standard input), `hub:NAME` (a
    dataset of the Hugging Face Hub, see `rhapsode.sources.hub`), or addresses of either elsewhere, such as
    `s3://bucket/stories/` (see `rhapsode.sources.remote`). Files may be packed with gzip or zstandard. Or
    alone, `storyworld[:COUNT][:SPLIT]` (the corpus inside the package, see `rhapsode.storyworld.source`).
    wanted: TRAINING or EVALUATION: which files of a folder whose file names tell of splits. like: how the training
    text was read, for what `config` leaves open. Raises ValueError, or an OSError, with one line that says which
    location cannot be used and why.
    """
    if not locations:
        raise ValueError("no data: name a file, a folder, hub:NAME, storyworld, or - for standard input")
    from rhapsode.storyworld.source import is_generated, open_generated  # which is made of this room's parts

    if any(map(is_generated, locations)):
        if len(locations) > 1:
            raise ValueError(f"storyworld cannot be mixed with other data, got {', '.join(locations)}")
        return open_generated(locations[0])
    field = config.field or "text"
    guesses: list[Guess] = []
    left_out: list[str] = []
    validation: list[str] = []
    temporary: list[Any] = []
    for location in locations:
        path = Path(location)
        if location == "-":
            if locations.count("-") > 1:
                raise ValueError("standard input (-) can be named only once")
            if sys.stdin is None:
                raise ValueError("standard input (-) is closed: there is nothing to read")
            temporary.append(_spool(sys.stdin.buffer))
            guesses.append(recognise(Path(temporary[-1].name), "standard input", config.format, field, suffix_of=""))
        elif is_remote(location):
            found, from_there = _fetched(location, wanted, config.format)
            guesses += [recognise(file, name, config.format, field) for file, name in from_there]
            if found is not None:
                left_out += found.left_out
                validation += [location] if found.has_validation else []
        elif location.startswith("hub:"):
            guesses += [recognise(path, name, config.format, field) for path, name in hub.download(location)]
        elif path.is_dir():
            found = files_in(path, wanted, config.format)
            taken = [recognise(file, shown(file), config.format, field) for file in found.files]
            taken, tables = _without_other_tables(taken, config)
            guesses += taken
            left_out += found.left_out + tables
            validation += [location] if found.has_validation else []
        elif path.is_file():
            guesses.append(recognise(path, shown(path), config.format, field))
        elif path.exists():  # a pipe, such as a shell makes of <(command): it can be read once
            with path.open("rb") as stream:
                temporary.append(_spool(stream))
            guesses.append(recognise(Path(temporary[-1].name), shown(path), config.format, field, suffix_of=path.name))
        else:
            raise FileNotFoundError(f"{shown(location)}: no such file or folder")
    called = _named(["standard input" if location == "-" else shown(location) for location in locations])
    if len(guesses) > len(locations):
        called += f" ({len(guesses)} files{f'; left out: {_named(left_out)}' if left_out else ''})"
    elif left_out:
        called += f" ({_named([Path(guess.file.name).name for guess in guesses])}; left out: {_named(left_out)})"
    source = FileSource(guesses, config, called, like)
    source.validation, source._temporary = tuple(validation), temporary
    return source


def _fetched(location: str, wanted: Sequence[str], format: str) -> tuple[Found | None, list[tuple[Path, str]]]:
    """What a folder elsewhere holds (None: a file); and the copies of the files to read, with what they are called."""
    copy = fetch(location)
    if copy.is_file():
        return None, [(copy, shown(location))]
    found = files_in(copy, wanted, format)
    return found, [(file, f"{shown(location).rstrip('/')}/{file.relative_to(copy).as_posix()}") for file in found.files]


def _without_other_tables(guesses: list[Guess], config: SourceConfig) -> tuple[list[Guess], list[str]]:
    """A folder's files without the tables, such as labels.csv, that have no text; and these in words."""
    others = set()
    if config.field is None and config.format == "auto":
        for guess in guesses:
            if guess.file.format in TABLES:
                shape = shape_of(guess.file)
                if "text" not in shape.columns and text_column(guess.file, shape) is None:
                    others.add(guess)
    if len(others) == len(guesses):
        return guesses, []
    words = [f"{Path(guess.file.name).name} (no column of text)" for guess in guesses if guess in others]
    return [guess for guess in guesses if guess not in others], words


def _named(names: Sequence[str]) -> str:
    """The first few of the names, and how many more there are."""
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def _spool(stream: Any) -> Any:
    """Copies what can be read once into a temporary file, to be read more than once."""
    temporary = tempfile.NamedTemporaryFile(prefix="rhapsode-input-")  # noqa: SIM115 (lives with the source)
    shutil.copyfileobj(stream, temporary)
    temporary.flush()
    return temporary


def is_place(location: str) -> bool:
    """Whether a location is a path, which means another place in another working directory."""
    from rhapsode.storyworld.source import is_generated

    elsewhere = location.startswith("hub:") or is_remote(location)
    return location != "-" and not elsewhere and not is_generated(location)


def files_state(locations: Sequence[str], wanted: Sequence[str] = TRAINING, format: str = "auto") -> str | None:
    """SHA-256 of names, sizes and times of change of the files that these places lead to; None where one is gone.

    While it stays the same the contents are taken to be the same; where it differs, the contents decide.
    """
    digest = hashlib.sha256()
    try:
        for location in filter(is_place, locations):
            path = Path(location)
            for file in files_in(path, wanted, format).files if path.is_dir() else [path]:
                stat = file.stat()
                digest.update(b"%s\0%d %d\n" % (os.fsencode(file), stat.st_size, stat.st_mtime_ns))
    except FileNotFoundError:
        return None
    return digest.hexdigest()
