"""Cuts plain text into stories, and long stories into pieces, while it streams by."""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

LONGEST_PIECE = 1 << 20  # characters; longer stories are cut at the next word's end
LONGEST_WORD = 1 << 20  # what has no word's end for so long is cut anywhere
FILE_PIECE = 2048  # characters; the grain at which a long file that is one story can be cut in two
SMALLEST_FILE_PIECE = 64  # of a short one: 5% of it must be found to a per cent or two


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
    length, longest_word = (_file_piece, _file_piece) if exact else (_long_piece, _long_word)
    # A cut must not fall into a separator of which only the beginning has arrived.
    margin = len(separator) if split == "separator" else 1
    started = False  # whether a piece of the current story went out already
    place = 0  # of `rest` in the story
    blanks: list[str] = []  # whitespace after the last piece, or before the first, that counts only if more comes
    rest = ""
    for chunk in chunks:
        *whole, rest = boundary.split(rest + chunk)
        for story in whole:
            if started or (story and not story.isspace()):
                text = story.rstrip() if started else story.strip()
                yield Piece("".join(blanks) + text if text else "", True)
            started, place = False, 0
            blanks.clear()
        begin = 0
        for end in _places_to_cut(rest, place, length, longest_word, margin):
            piece, begin = rest[begin:end], end
            visible = len(piece.rstrip())
            if exact and (started or visible):
                visible = len(piece)
            if visible:
                text = piece[:visible] if started or exact else piece[:visible].lstrip()
                yield Piece("".join(blanks) + text, False)
                started = True
                blanks.clear()
            if visible < len(piece) and (started or exact):
                blanks.append(piece[visible:])
        rest, place = rest[begin:], place + begin
    if started or (rest and not rest.isspace()):
        text = rest if exact else rest.rstrip() if started else rest.strip()
        yield Piece("".join(blanks) + text if text else "", True)


_WORD_END = re.compile(r"(?<=\S)[ \n\t]")


def _places_to_cut(
    text: str, place: int, length: Callable[[int], int], longest_word: Callable[[int], int], margin: int = 1
) -> Iterator[int]:
    """Where to cut: before whitespace that follows a word, `length` characters apart or a little more.

    Tokenizers split there first, so the ids of the pieces, joined, are the ids of the whole. Where no word ends
    within `longest_word` characters more, the cut falls anywhere. Both depend on the place in the story; `text`
    begins at `place` of it.
    """
    last = len(text) - margin
    end = length(place)
    while end <= last:
        longest = longest_word(place + end)
        match = _WORD_END.search(text, end, min(end + longest, last + 1))
        if match:
            end = match.start()
        elif last < end + longest:  # more text may bring the whitespace
            return
        yield end
        end += length(place + end)


def _file_piece(place: int) -> int:
    """Pieces of a file that is one story grow with it, so that each is a small share of what came before."""
    return min(FILE_PIECE, max(SMALLEST_FILE_PIECE, place // 32))


def _long_piece(place: int) -> int:
    return LONGEST_PIECE


def _long_word(place: int) -> int:
    return LONGEST_WORD


def pieces_of(story: str) -> Iterator[Piece]:
    """One story in memory as pieces; nearly always one."""
    begin = 0
    for end in _places_to_cut(story, 0, _long_piece, _long_word):
        yield Piece(story[begin:end], False)
        begin = end
    yield Piece(story[begin:], True)
