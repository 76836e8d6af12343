"""Cuts plain text into stories, and long stories into pieces, while it streams by."""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

LONGEST_PIECE = 1 << 20  # characters; longer stories are cut at the next word's end
LONGEST_WORD = 1 << 20  # what has no word's end for so long is cut anywhere
FILE_PIECE = 2048  # characters; the grain at which a file that is one story can be cut in two


class Piece(NamedTuple):
    """A part of a story, cut before whitespace; most stories are one piece.

    The text may be empty where all that was left to tell is that the story ends.
    """

    text: str
    ends_story: bool


def cut(chunks: Iterable[str], split: str, separator: str) -> Iterator[Piece]:
    """Cuts text that arrives in chunks into stories, and long stories into pieces.

    split: separator, paragraph (blocks between blank lines), line, or file (all of it is one story). Stories
    lose the whitespace around them, except with `file`, where every character counts; blank ones are skipped.
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
        begin = 0
        for end in _places_to_cut(rest, FILE_PIECE if exact else LONGEST_PIECE, margin):
            piece = rest[begin:end]
            yield Piece(piece if started or exact else piece.lstrip(), False)
            started, begin = True, end
        rest = rest[begin:]
    if started or (rest and not rest.isspace()):
        yield Piece(rest if exact else rest.rstrip() if started else rest.strip(), True)


_WORD_END = re.compile(r"(?<=\S)[ \n\t]")


def _places_to_cut(text: str, length: int, margin: int = 1) -> Iterator[int]:
    """Where to cut: before whitespace that follows a word, `length` characters apart or a little more.

    Tokenizers split there first, so the ids of the pieces, joined, are the ids of the whole.
    """
    last = len(text) - margin
    end = length
    while end <= last:
        match = _WORD_END.search(text, end, min(end + LONGEST_WORD, last + 1))
        if match:
            end = match.start()
        elif last < end + LONGEST_WORD:  # more text may bring the whitespace
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
