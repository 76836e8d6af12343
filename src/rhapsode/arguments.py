"""What a caller of the Python API gave, as what the rooms below take; a ValueError in one line where it cannot be."""

import os
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from rhapsode.data import DataRequest
from rhapsode.sources import Source, SourceConfig, is_remote, location_of
from rhapsode.sources.memory import source_of_texts
from rhapsode.tokenizer import Tokenizer
from rhapsode.tokenizer.training import KINDS

LONGEST_FILE_NAME = 255  # bytes of a file's name, on any common disk

PathLike = str | os.PathLike[str]
Data = PathLike | Iterable[str] | Iterable[os.PathLike[str]]
Locations = PathLike | Iterable[os.PathLike[str]]


def data_request(
    data: Data | None,
    valid: Data | None,
    tokenizer: PathLike | Tokenizer | None,
    vocab_size: int | None,
    reading: SourceConfig,
) -> DataRequest:
    """The data, and the tokenizer that goes with them; files are read no sooner than they are needed."""
    if tokenizer is not None and not isinstance(tokenizer, Tokenizer):
        if not isinstance(tokenizer, str | os.PathLike):
            kinds = ", ".join(KINDS)
            raise ValueError(f"tokenizer must be a folder, a Tokenizer or one of {kinds}, got {tokenizer!r}")
        tokenizer = location_of(os.fspath(tokenizer))
    return DataRequest(data_of(data, "data"), data_of(valid, "valid"), tokenizer, vocab_size, reading)


def data_of(data: Data | None, name: str) -> tuple[str, ...] | Source:
    """Locations, or a source of texts in memory; ValueError where one could be taken for the other."""
    if data is None:
        return ()
    if isinstance(data, str | os.PathLike):
        location = location_of(os.fspath(data))
        if is_remote(location):
            return (location,)
        if not os.path.lexists(location) and (
            "\n" in location or max(len(os.fsencode(part)) for part in location.split(os.sep)) > LONGEST_FILE_NAME
        ):
            raise ValueError(f"{name}: a single str names a file; pass texts as a list, even a single one: [text]")
        return (location,)
    if not isinstance(data, Iterable) or isinstance(data, bytes):
        raise ValueError(f"{name} must be a file's name or path, or an iterable of texts, got {type(data).__name__}")
    items: Iterator[Any] = iter(data)
    first = next(items, None)
    if first is None:
        raise ValueError(f"{name}: empty, there is no text in it")
    if isinstance(first, os.PathLike):
        return tuple(_location(item, name, place) for place, item in enumerate((first, *items)))
    if isinstance(data, list | tuple) and all(_is_file(item) for item in data):
        raise ValueError(f"{name}: {data[0]!r} is the name of a file: pass files as pathlib.Path, texts as str")
    return source_of_texts(chain((first,), items))


def _location(item: object, name: str, place: int) -> str:
    if not isinstance(item, os.PathLike):
        raise ValueError(f"{name}: item {place} must be a path like those before it, got {type(item).__name__}")
    return location_of(os.fspath(item))


def _is_file(item: object) -> bool:
    named = isinstance(item, str) and (os.path.exists(item) or (is_remote(item) and not any(map(str.isspace, item))))
    return isinstance(item, os.PathLike) or named
