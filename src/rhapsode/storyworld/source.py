"""The source that needs no file: storyworld, the corpus inside the package.

    storyworld                50,000 stories of the split train
    storyworld:200000         as many as one likes
    storyworld:valid          1,000 stories of another split
    storyworld:500:valid      500 of them

A file or folder that is called storyworld is reached as ./storyworld.
"""

import hashlib
from collections.abc import Iterator
from typing import Literal

from rhapsode.seeds import LARGEST_SEED
from rhapsode.sources.cutting import Piece, pieces_of
from rhapsode.sources.files import InputFile, OnRead

STORYWORLD = "storyworld"
TRAINING_STORIES = 50_000
OTHER_STORIES = 1_000


class GeneratedSource:
    """Stories of storyworld, those of the seeds from `seed_start` on; the interface of `rhapsode.sources.Source`.

    count: how many stories. split: one of `storyworld.SPLITS`. Raises ValueError for what cannot be drawn.
    """

    kind: Literal["text", "ids"] = "text"
    files: tuple[InputFile, ...] = ()
    total_bytes: int | None = None

    def __init__(self, count: int, split: str = "train", seed_start: int = 0) -> None:
        from rhapsode.storyworld import SPLITS

        if split not in SPLITS:
            raise ValueError(f"{STORYWORLD} has no split {split!r}; its splits are {', '.join(SPLITS)}")
        if count < 1:
            raise ValueError(f"the number of stories must be at least 1, got {count}")
        if not 0 <= seed_start <= LARGEST_SEED + 1 - count:
            raise ValueError(f"seeds must be from 0 to 2^64 - 1, got {count} from {seed_start}")
        self.count, self.split, self.seed_start = count, split, seed_start
        stories = "1 story" if count == 1 else f"{count:,} stories"
        self.description = f"{STORYWORLD}: {stories} of the split {split}"
        if seed_start:
            self.description += f", starting at seed {seed_start:,}"

    def head(self, count: int) -> "GeneratedSource":
        """The first stories: a fair sample, since a story depends on its seed alone."""
        return GeneratedSource(min(count, self.count), self.split, self.seed_start)

    def stories(self) -> Iterator[str]:
        """Yields each story's text."""
        from rhapsode.storyworld import training_stories

        return training_stories(self.count, self.seed_start, self.split)

    def pieces(self, on_read: OnRead | None = None) -> Iterator[Piece]:
        """Yields the stories, each in one piece; on_read is told of their bytes."""
        for story in self.stories():
            if on_read is not None:
                on_read(len(story.encode()))
            yield from pieces_of(story)

    def fingerprint(self) -> str:
        """SHA-256 of what decides the texts: grammar, generator, split, seeds."""
        from rhapsode.storyworld import fingerprint

        return hashlib.sha256(
            f"{STORYWORLD} {fingerprint()} {self.split} {self.seed_start} {self.count}".encode()
        ).hexdigest()


def is_generated(location: str) -> bool:
    """Whether a location names the corpus inside the package, rightly or not."""
    return location == STORYWORLD or location.startswith(f"{STORYWORLD}:")


def open_generated(location: str) -> GeneratedSource:
    """The source that `storyworld[:COUNT][:SPLIT]` names.

    Raises ValueError with one line where count or split cannot be read.
    """
    from rhapsode.storyworld import SPLITS

    parts = location.split(":")[1:]
    if parts and (len(parts) == 2 or parts[0] not in SPLITS):
        number, *parts = parts
        if not (number.isascii() and number.isdecimal() and int(number) > 0):
            what = "is not a number of stories (1 or more)" + ("" if parts else f", nor a split ({', '.join(SPLITS)})")
            raise ValueError(f"{location}: {number!r} {what}")
        count = int(number)
    else:
        count = None
    if len(parts) > 1:
        raise ValueError(f"{location}: write it as {STORYWORLD}:COUNT:SPLIT, such as {STORYWORLD}:500:valid")
    split = parts[0] if parts else "train"
    try:
        return GeneratedSource(count or (TRAINING_STORIES if split == "train" else OTHER_STORIES), split)
    except ValueError as error:
        raise ValueError(f"{location}: {error}") from None
