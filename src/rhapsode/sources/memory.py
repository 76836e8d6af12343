"""Texts that a program has in memory, or makes one after the other, as a source."""

import json
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path

from rhapsode.sources.guessing import recognise
from rhapsode.sources.source import FileSource, SourceConfig

TEXTS_IN_MEMORY = "texts given in Python"
SURROGATE = re.compile("[\ud800-\udfff]")


def source_of_texts(texts: Iterable[str]) -> FileSource:
    """The texts as a source, each a story. They are read once, into a temporary file: memory does not grow with them.

    Raises ValueError naming the first item, counted from 0, that is no text, and where there is none but blank ones.
    """
    temporary = tempfile.NamedTemporaryFile("w", encoding="utf-8", prefix="rhapsode-texts-")  # noqa: SIM115 (lives with the source)
    count = 0
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"{TEXTS_IN_MEMORY}: item {place} must be a str, got {type(text).__name__}")
        if (half := SURROGATE.search(text)) is not None:
            raise ValueError(f"{TEXTS_IN_MEMORY}: item {place}: half of a surrogate pair at {half.start()}")
        if text and not text.isspace():
            temporary.write(json.dumps(text) + "\n")
            count += 1
    temporary.flush()
    if not count:
        raise ValueError(f"{TEXTS_IN_MEMORY}: no stories, there are no texts or only blank ones")
    guess = recognise(Path(temporary.name), TEXTS_IN_MEMORY, "jsonl", suffix_of="")
    stories = "1 story" if count == 1 else f"{count:,} stories"
    source = FileSource([guess], SourceConfig(format="jsonl"), f"{TEXTS_IN_MEMORY}: {stories}")
    source.description = f"{TEXTS_IN_MEMORY}: {stories}"
    source._temporary = [temporary]
    return source
