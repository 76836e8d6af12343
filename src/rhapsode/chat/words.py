"""The likeliest next words, where the model knows tokens only."""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from rhapsode.decode import Alternative, Engine, Failed, GenerationRequest, SampleConfig, Written
from rhapsode.decode.ending import SPELLING_CONTEXT
from rhapsode.tokenizer import Tokenizer

PART = "\ufffd"  # stands for a character of which a token has a part only
MOST_READ = 200  # beginnings of words that are read, before what was found has to do


@dataclass(frozen=True)
class NextWord:
    """A word that may come next. text: with the blank before it; empty for the end of the text."""

    text: str
    probability: float


def likeliest_words(engine: Engine, ids: Sequence[int], count: int) -> list[NextWord]:
    """The `count` likeliest words after some tokens, the likeliest first, with their exact probabilities.

    A word ends where the next token begins with anything but a letter or a digit, so its probability is that of its
    tokens times that of such a token after them. Beginnings are read in the order of their probabilities: no word that
    was not found is likelier than one that was. A word that has several spellings in tokens counts by each alone.
    """
    tokenizer = engine.tokenizer
    begins = first_characters(tokenizer)
    frontier: list[tuple[float, int, tuple[int, ...], str | None]] = [(0.0, 0, (), None)]
    found: dict[str, NextWord] = {}
    number = 0
    for _ in range(MOST_READ):
        while frontier and frontier[0][3] is not None and len(found) < count:
            surprise, _, _, word = heapq.heappop(frontier)
            assert word is not None
            found.setdefault(word, NextWord(word, math.exp(-surprise)))
        if not frontier or len(found) == count:
            break
        surprise, _, begun, _ = heapq.heappop(frontier)
        spelled = text_after(tokenizer, ids, begun)
        ends = 0.0
        for id, log_probability in alternatives(engine, [*ids, *begun]):
            first = begins.get(id)
            if begun and (first is None or not goes_on(spelled, first)):
                ends += math.exp(log_probability)
            elif first is not None or id == tokenizer.eos_id:
                number += 1
                end = "" if id == tokenizer.eos_id else None
                heapq.heappush(frontier, (surprise - log_probability, number, (*begun, id), end))
        if ends > 0:
            number += 1
            heapq.heappush(frontier, (surprise - math.log(ends), number, begun, spelled))
    return list(found.values())


@lru_cache(maxsize=4)
def first_characters(tokenizer: Tokenizer) -> dict[int, str | None]:
    """What the text of each token begins with: U+FFFD for a part of a character, None for a token without text."""
    found: dict[int, str | None] = {}
    for id, name in tokenizer.names.items():
        piece = tokenizer.token_text(id)
        if piece.startswith("▁"):
            found[id] = " "
        elif name.startswith("bytes:"):
            found[id] = PART
        else:
            found[id] = tokenizer.decode([id])[:1] or None
    return found


def alternatives(engine: Engine, ids: Sequence[int]) -> tuple[Alternative, ...]:
    """All tokens that may follow, with their log-probabilities. Raises FloatingPointError where the model failed."""
    top = engine.tokenizer.vocab_size
    engine.submit(GenerationRequest(ids, SampleConfig(max_tokens=1, temperature=0), top=top))
    found: tuple[Alternative, ...] = ()
    while engine.busy:
        for event in engine.step():
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Written):
                found = event.top
    return found


def goes_on(spelled: str, first: str) -> bool:
    """Whether a text that begins with a character is a part of the word so far; a part of a character always is."""
    last = spelled[-1:]
    return not spelled or first == PART or (is_of_word(first) and (is_of_word(last) or not spelled.strip()))


def is_of_word(character: str) -> bool:
    """Whether a character is a part of words."""
    return character.isalnum() or character in "'’-"


def text_after(tokenizer: Tokenizer, ids: Sequence[int], added: Sequence[int]) -> str:
    """What ids add to the text of those before them; a character that is not whole is left out."""
    stream = tokenizer.stream()
    for id in ids[-SPELLING_CONTEXT:]:
        stream.push(id)
    return "".join(map(stream.push, added))
