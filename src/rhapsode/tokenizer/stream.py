"""Ids become text as they come."""

import codecs
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet

REPLACEMENT = "\ufffd"
MOST_KNOWN = 100_000
Spelling = int | tuple[tuple[int, ...], tuple[int, ...]]  # an id that spells bytes, or ids and the ids before them


class TextStream:
    """Turns ids into text as they come: what `push` and the final `flush` return, joined, is `decode(ids)`.

    Text is held back until it is certain, so a character whose bytes are several tokens comes out whole. One
    exception, not for tokenizers trained here: the library's byte fallback (Llama's tokenizers have it) spells a
    run of byte tokens by U+FFFD alone if it is broken anywhere; whole characters before that place are out by then.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        bytes_of: Callable[[int], bytes] | None,
        skipped: AbstractSet[int],
        known: dict[Spelling, str],
    ) -> None:
        """decode, bytes_of: of a tokenizer, the second where each of its tokens spells bytes; skipped: no text; known:
        what ids after ids were found to spell, for all streams of the tokenizer."""
        self._decode, self._bytes_of, self._skipped, self._known = decode, bytes_of, skipped, known
        # Where tokens spell bytes, Python decodes those as they come. Other decoders (leading spaces, Llama's byte
        # fallback) look at neighbours: there we decode the last ids again, with those before
        # them as context.
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")
        self._is_open = False  # whether bytes of a character are held back
        self._context: tuple[int, ...] = ()
        self._fresh: tuple[int, ...] = ()

    def push(self, id: int) -> str:
        """Takes the next id and returns the text that is now certain, which may be empty."""
        if self._bytes_of is None:
            return self._push_with_context(id)
        if not self._is_open and (text := self._known.get(id)) is not None:
            return text
        if id in self._skipped:
            return ""
        spelled, was_open = self._bytes_of(id), self._is_open
        text = self._bytes.decode(spelled)
        self._is_open = bool(self._bytes.getstate()[0])
        if not was_open and not self._is_open:
            self._known[id] = text
        return text

    def _push_with_context(self, id: int) -> str:
        if id in self._skipped:
            return ""
        self._fresh += (id,)
        text = self._fresh_text()
        if text.endswith(REPLACEMENT):
            return ""
        if text:
            self._context, self._fresh = self._fresh, ()
        return text

    def flush(self) -> str:
        """Returns what was held back, with U+FFFD for a character that never ended; then it is new."""
        text = self._bytes.decode(b"", final=True) if self._bytes_of is not None else self._fresh_text()
        self._is_open, self._context, self._fresh = False, (), ()
        return text

    def _fresh_text(self) -> str:
        place = self._context, self._fresh
        text = self._known.get(place)
        if text is None:
            before = self._decode(self._context) if self._context else ""
            text = self._decode(self._context + self._fresh)[len(before) :]
            if len(self._known) == MOST_KNOWN:
                self._known.clear()
            self._known[place] = text
        return text
