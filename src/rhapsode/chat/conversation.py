"""The text so far, and what is done with it: written on, changed, undone, looked into."""

import itertools
from collections.abc import Generator
from dataclasses import replace

from rhapsode.chat.words import NextWord, likeliest_words
from rhapsode.decode import Engine, Failed, GenerationRequest, SampleConfig, Written, prompt_ids
from rhapsode.inspection.copying import CopiedWord, copied_words
from rhapsode.trained import Model


class Conversation:
    """A text that a person and a model write in turns.

    text: all of it. config: how the model draws; turn number i draws with its seed + i. ended: whether the model ended
    the text, and nothing was added since.
    """

    def __init__(self, model: Model, config: SampleConfig) -> None:
        self.model, self.config = model, config
        self.text, self.ended = "", False
        self.written_from = 0  # where what the model wrote last begins
        self._engine = Engine(model.network, model.tokenizer)
        self._before: list[str] = []
        self._turns = 0

    def add(self, line: str) -> str:
        """Adds a line of a person's, on a line of its own; returns what that adds to the text."""
        self._remember()
        added = line if not self.text or self.text.endswith("\n") else f"\n{line}"
        self._set(self.text + added)
        return added

    def append(self, text: str) -> None:
        """Adds a text right behind what is there."""
        self._remember()
        self._set(self.text + text)

    @property
    def last_line(self) -> str:
        """The last line of the text that is not empty."""
        return self.text.rstrip("\n").rpartition("\n")[2]

    def replace_last_line(self, line: str) -> None:
        """Puts another line in the place of the last one."""
        self._remember()
        kept = self.text.rstrip("\n")
        self._set(kept[: len(kept) - len(self.last_line)] + line)

    def undo(self) -> bool:
        """Takes back the last turn, what was written after it too; whether there was one."""
        if not self._before:
            return False
        self._set(self._before.pop())
        return True

    def _remember(self) -> None:
        self._before.append(self.text)

    def _set(self, text: str) -> None:
        self.text, self.ended = text, False
        self.written_from = len(text)

    def go_on(self) -> Generator[str, None, None]:
        """Has the model write on, in pieces of text as they become certain; what is not taken is not written.

        Raises FloatingPointError where the model has failed.
        """
        self.written_from, self.ended = len(self.text), False
        config = replace(self.config, seed=(self.config.seed + self._turns) % 2**64)
        self._turns += 1
        ticket = self._engine.submit(GenerationRequest(self._ids(), config))
        try:
            while self._engine.busy:
                for event in self._engine.step():
                    if isinstance(event, Failed):
                        raise event.error
                    if isinstance(event, Written):
                        self.text += event.text
                        self.ended = event.ended == "end of text"
                        yield event.text
        finally:
            self._engine.cancel(ticket)

    def alternatives(self, count: int) -> list[NextWord]:
        """The likeliest next words."""
        return likeliest_words(self._engine, self._ids(), count)

    def _ids(self) -> list[int]:
        return prompt_ids(self.model.tokenizer, self.text)

    def words(self) -> tuple[list[CopiedWord], int]:
        """All words, each with where it was copied from, and the number of the first that the model wrote last.

        Raises ValueError where the model has no copy head, or there is no text.
        """
        tokenizer = self.model.tokenizer
        words = copied_words(self.model.copies(self.text))
        before = sum(len(tokenizer.token_text(id)) for id in prompt_ids(tokenizer, self.text[: self.written_from]))
        ends = itertools.accumulate(len(word.text) for word in words)
        return words, sum(end <= before for end in ends)
