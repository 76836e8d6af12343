"""Ids become text as they come."""

import codecs
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet

REPLACEMENT = "\ufffd"


class TextStream:
    """Turns ids into text as they come: what `push` and the final `flush` return, joined, is `decode(ids)`.

    Text is held back until it is certain, so a character whose bytes are several tokens comes out whole. One
    exception, not for tokenizers trained here: the library's byte fallback (Llama's tokenizers have it) spells a
    run of byte tokens by U+FFFD alone if it is broken anywhere; whole characters before that place are out by then.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], bytes_of: Callable[[int], bytes] | None, skipped: AbstractSet[int]
    ) -> None:
        """decode, bytes_of: of a tokenizer, the second where each of its tokens spells bytes; skipped: no text."""
        self._decode, self._bytes_of, self._skipped = decode, bytes_of, skipped
        # Where tokens spell bytes, Python decodes those as they come. Other decoders (leading spaces, Llama's byte
        # fallback) look at neighbours: there we decode the last ids again, with those before
        # them as context.
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")
        self._context: list[int] = []
        self._fresh: list[int] = []

    def push(self, id: int) -> str:
        """Takes the next id and returns the text that is now certain, which may be empty."""
        if id in self._skipped:
            return ""
        if self._bytes_of is not None:
            return self._bytes.decode(self._bytes_of(id))
        self._fresh.append(id)
        text = self._fresh_text()
        if text.endswith(REPLACEMENT):
            return ""
        if text:
            self._context, self._fresh = self._fresh, []
        return text

    def flush(self) -> str:
        """Returns what was held back, with U+FFFD for a character that never ended; then it is new."""
        text = self._bytes.decode(b"", final=True) if self._bytes_of is not None else self._fresh_text()
        self._context, self._fresh = [], []
        return text

    def _fresh_text(self) -> str:
        before = self._decode(self._context) if self._context else ""
        return self._decode(self._context + self._fresh)[len(before) :]
