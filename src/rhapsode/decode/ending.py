"""A text in the making: what of it is certain, and whether it has ended."""

from collections.abc import Sequence

from rhapsode.decode.config import SampleConfig
from rhapsode.tokenizer import Tokenizer

SPELLING_CONTEXT = 32  # ids before a new one that decide how it is spelled: more than a character has bytes


class Continuation:
    """Takes the ids that continue a text, one at a time, and gives the text that is certain.

    What it gives, joined, never holds a broken character or a part of a stop text. ended: None while more may come.
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int], config: SampleConfig) -> None:
        self.eos_id, self.left, self.stop = tokenizer.eos_id, config.max_tokens, config.stop
        self.stream = tokenizer.stream()
        for id in before[-SPELLING_CONTEXT:]:
            self.stream.push(id)  # so that the first new piece is spelled as it is after what stands before
        self.held = ""
        self.ended: str | None = None if self.left else "length"

    def take(self, id: int) -> str:
        """The text that is certain once this id is there."""
        self.left -= 1
        text = self.stream.push(id)
        if id == self.eos_id:
            self.ended = "end of text"
        elif self.left == 0:
            self.ended = "length"
        if self.ended is not None:
            text += self.stream.flush()
        return self._certain(text) if self.stop else text

    def _certain(self, text: str) -> str:
        """The held text that no stop text can still claim; finds the stop texts, too."""
        self.held += text
        found = [place for stop in self.stop if (place := self.held.find(stop)) >= 0]
        if found:
            self.ended = "stop"
            certain, self.held = self.held[: min(found)], ""
            return certain
        keep = 0
        if self.ended is None:
            keep = max(begun_at_end(self.held, stop) for stop in self.stop)
        certain, self.held = self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
        return certain


def begun_at_end(text: str, stop: str) -> int:
    """How many characters at the end of a text begin the stop text, but are not all of it; the most that do."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if stop.startswith(text[len(text) - n :])), 0)
