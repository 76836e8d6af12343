"""Texts that a program has in memory, or makes one after the other, as a source."""

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

from rhapsode.sources.guessing import recognise
from rhapsode.sources.source import FileSource, SourceConfig

NAME = "texts given in Python"


def source_of_texts(texts: Iterable[str]) -> FileSource:
    """The texts as a source, each a story. They are read once, into a temporary file: memory does not grow with them.

    Raises ValueError naming the first item, counted from 0, that is no text, and where there is none but blank ones.
    """
    temporary = tempfile.NamedTemporaryFile("w", encoding="utf-8", prefix="rhapsode-texts-")  # noqa: SIM115 (lives with the source)
    count = 0
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"{NAME}: item {place} is no text but of type {type(text).__name__}")
        if text and not text.isspace():
            temporary.write(json.dumps(text) + "\n")
            count += 1
    temporary.flush()
    if not count:
        raise ValueError(f"{NAME}: no story in them, only blank ones or none")
    guess = recognise(Path(temporary.name), NAME, "jsonl", suffix_of="")
    stories = "1 story" if count == 1 else f"{count:,} stories"
    source = FileSource([guess], SourceConfig(format="jsonl"), f"{NAME}: {stories}")
    source.description = f"{NAME}: {stories}"
    source._temporary = [temporary]
    return source
