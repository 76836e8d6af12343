"""What may follow the beginning of a story, exactly: the next token's distribution, from the grammar alone.

A story's ids are those of its fragments one after the other, then the end token (the canonical spelling). With
p a beginning of such ids,

    P(w | p) = sum of P(story) over stories whose ids begin with p, w  /  the same over those that begin with p

The sums run over more stories than can be listed. They are found by forward filtering: a hypothesis is one way in
which a story may have begun (the plots still possible, the facts and the wordings settled, the fragment being read
and how far), with the probability of all stories that begin in this way. Reading a symbol drops the hypotheses that
have another; one whose fragment ends branches into what the grammar lets follow. Facts not mentioned yet are summed
out (`Distribution.conditional`), and wordings to come add up to one. No draw and no cut-off, all terms positive, so
that float64 keeps twelve digits and more.

The same filter reads a text by its characters, as code points.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rhapsode.storyworld.distribution import Distribution
from rhapsode.storyworld.grammar import Scene
from rhapsode.storyworld.template import Choice, Literal, Wording

if TYPE_CHECKING:
    from rhapsode.tokenizer import Tokenizer

MOST_EXPECTED = 4  # what could have stood there, in an error


@dataclass(frozen=True, slots=True)
class TokenDistribution:
    """Which token comes next, and how probable each is; a token that is not here cannot come.

    ids: int64 (n,), the likeliest first. probabilities: float64 (n,), they sum to 1. boundary: of a prefix given as
    text, the probability that a token ends where the prefix does (see `next_tokens`); 1 for a prefix given as ids.
    """

    ids: np.ndarray
    probabilities: np.ndarray
    boundary: float = 1.0

    def probability(self, id: int) -> float:
        """That the token with this id comes next; 0 where it cannot."""
        return float(self.probabilities[self.ids == id].sum())

    def dense(self, vocab_size: int) -> np.ndarray:
        """The probabilities of all ids of a vocabulary: float64 (vocab_size,)."""
        whole = np.zeros(vocab_size)
        whole[self.ids] = self.probabilities
        return whole

    @property
    def entropy(self) -> float:
        """In nats: the least that any model can expect to lose here."""
        return float(0.0 - (self.probabilities * np.log(self.probabilities)).sum())


@dataclass(frozen=True, slots=True)
class TokenDistributions:
    """The truth at each position of a row of ids.

    ids: what was read. rows: rows[i] is what may follow ids[:i], so that rows[i].probability(ids[i]) is the truth
    for ids[i]; one more than ids, unless the last is the token that ends a story. departure: None, or where and why
    no story goes on as the ids do; `rows` then ends with what could have stood there.
    """

    ids: tuple[int, ...]
    rows: tuple[TokenDistribution, ...]
    departure: str | None

    @property
    def log_probabilities(self) -> np.ndarray:
        """Of the ids, in nats: float64, as many as there are rows for; -inf at a departure.

        Their sum over a whole story and its end token is the story's log-probability.
        """
        with np.errstate(divide="ignore"):
            each = zip(self.rows, self.ids, strict=False)
            return np.log(np.array([row.probability(id) for row, id in each], dtype=np.float64))


@dataclass(frozen=True, slots=True)
class _Hypothesis:
    """One way in which a story may have begun, with all stories that begin in this way."""

    skeletons: tuple[int, ...]  # numbers in the distribution; they have the same scenes as far as these are begun
    weights: np.ndarray  # (skeletons,) their stories' probability, given what was read
    place: int  # scenes begun
    rest: Wording  # elements to come in the scene
    values: Mapping[str, int]  # facts settled
    start: int = 0  # characters before the fragment
    fragment: str | None = ""  # what is being read; None where the story has ended
    symbols: Sequence[int] = ()  # its spelling: token ids, or code points; the end's where the story has ended
    read: int = 0  # how many of them were read

    @property
    def weight(self) -> float:
        return float(self.weights.sum())


class StoryFilter:
    """Reads the beginning of a story symbol by symbol; `hypotheses` are all that begin with what was read.

    spell: a fragment's symbols, None's are those of the end.
    """

    def __init__(self, distribution: Distribution, spell: Callable[[str | None], Sequence[int]]):
        self.distribution = distribution
        self._spell = spell
        weights = distribution.weights / distribution.weights.sum()
        first = _Hypothesis(tuple(range(len(weights))), weights, 0, (), {})
        self.hypotheses = list(self._following(first))

    def read(self, symbol: int) -> bool:
        """Takes the next symbol; False, and nothing has changed, where no story goes on with it."""
        same = [h for h in self.hypotheses if h.read < len(h.symbols) and h.symbols[h.read] == symbol]
        total = math.fsum(h.weight for h in same)
        if total == 0:
            return False
        after: list[_Hypothesis] = []
        for h in same:
            weights = h.weights / total
            read = _Hypothesis(
                h.skeletons, weights, h.place, h.rest, h.values, h.start, h.fragment, h.symbols, h.read + 1
            )
            if read.read < len(read.symbols):
                after.append(read)
            elif read.fragment is not None:
                after += self._following(read)
        self.hypotheses = after
        return True

    def _following(self, before: _Hypothesis) -> Iterator[_Hypothesis]:
        """The hypotheses after a fragment's end, each at the first symbol of its next fragment."""
        start = before.start + len(before.fragment or "")
        yield from self._walk(before.skeletons, before.weights, before.place, before.rest, before.values, start)

    def _walk(
        self,
        skeletons: tuple[int, ...],
        weights: np.ndarray,
        place: int,
        rest: Wording,
        values: Mapping[str, int],
        start: int,
    ) -> Iterator[_Hypothesis]:
        if not rest:
            yield from self._next_scenes(skeletons, weights, place, values, start)
            return
        element, rest = rest[0], rest[1:]
        if isinstance(element, Choice):
            for weight, option in zip(element.weights, element.options, strict=True):
                if weight:
                    shared = weights * (weight / element.total)
                    yield from self._walk(skeletons, shared, place, option + rest, values, start)
        elif isinstance(element, Literal):
            yield self._at(skeletons, weights, place, rest, values, start, element.text)
        elif element.variable in values:
            yield self._at(skeletons, weights, place, rest, values, start, element.texts[values[element.variable]])
        else:
            plots = (self.distribution.skeletons[number] for number in skeletons)
            given = np.stack([self.distribution.conditional(plot, element.variable, values) for plot in plots])
            joint = weights[:, None] * given  # (skeletons, values)
            for value in np.flatnonzero(joint.any(axis=0)).tolist():
                known = {**values, element.variable: value}
                yield self._at(skeletons, joint[:, value], place, rest, known, start, element.texts[value])

    def _next_scenes(
        self, skeletons: tuple[int, ...], weights: np.ndarray, place: int, values: Mapping[str, int], start: int
    ) -> Iterator[_Hypothesis]:
        following: dict[Scene | None, list[int]] = {}
        for column, number in enumerate(skeletons):
            scenes = self.distribution.skeletons[number].scenes
            if weights[column] > 0:
                following.setdefault(scenes[place] if place < len(scenes) else None, []).append(column)
        for scene, columns in following.items():
            chosen = tuple(skeletons[column] for column in columns)
            if scene is None:
                yield self._at(chosen, weights[columns], place, (), values, start, None)
            else:
                yield from self._walk(chosen, weights[columns], place + 1, scene.slots, values, start)

    def _at(
        self,
        skeletons: tuple[int, ...],
        weights: np.ndarray,
        place: int,
        rest: Wording,
        values: Mapping[str, int],
        start: int,
        fragment: str | None,
    ) -> _Hypothesis:
        return _Hypothesis(skeletons, weights, place, rest, values, start, fragment, self._spell(fragment))


class TokenPredictor:
    """The next token's distribution under a split, in a tokenizer's canonical spelling of the stories.

    Raises ValueError for a tokenizer whose tokens may reach across white space into the next word: a story's ids are
    then not those of its fragments, one after the other, and nothing short of all stories' ids would be exact.
    """

    def __init__(self, distribution: Distribution, tokenizer: "Tokenizer"):
        if not tokenizer.words_stand_alone:
            raise ValueError(
                "this tokenizer may join two words in one token, so the exact distribution of its next token is not"
                " known; use one that splits words at white space, as those that Rhapsode trains do"
            )
        self.distribution = distribution
        self.tokenizer = tokenizer
        self._spelled: dict[str, tuple[int, ...]] = {}

    def _spell(self, fragment: str | None) -> tuple[int, ...]:
        if fragment is None:
            return (self.tokenizer.eos_id,)
        if fragment not in self._spelled:
            ids = tuple(self.tokenizer.encode(fragment))
            if not ids:
                raise ValueError(f"this tokenizer has no token at all for {fragment!r}, which occurs in stories")
            self._spelled[fragment] = ids
        return self._spelled[fragment]

    def next_tokens(self, prefix: str | Sequence[int]) -> TokenDistribution:
        """See `rhapsode.storyworld.next_tokens`."""
        if isinstance(prefix, str):
            return self._after_text(prefix)
        found = self.along(prefix)
        if found.departure is not None:
            raise ValueError(found.departure)
        if len(found.rows) == len(found.ids):
            raise ValueError(f"the story has ended with token {len(found.ids)}, the end token: nothing follows it")
        return found.rows[-1]

    def along(self, prefix: str | Sequence[int]) -> TokenDistributions:
        """See `rhapsode.storyworld.next_tokens_along`."""
        ids = tuple(self.tokenizer.encode(prefix) if isinstance(prefix, str) else map(int, prefix))
        stories = StoryFilter(self.distribution, self._spell)
        rows = [self._row(stories.hypotheses)]
        for number, id in enumerate(ids):
            before = stories.hypotheses
            if not stories.read(id):
                return TokenDistributions(ids, tuple(rows), self._departure(ids, number, before, rows[-1]))
            if stories.hypotheses:
                rows.append(self._row(stories.hypotheses))
            elif number + 1 < len(ids):
                departure = f"token {number + 1} ends the story, but {len(ids) - number - 1} more follow it"
                return TokenDistributions(ids, tuple(rows), departure)
        return TokenDistributions(ids, tuple(rows), None)

    def _row(self, hypotheses: list[_Hypothesis]) -> TokenDistribution:
        """All hypotheses are at a token's beginning; their weights are given what was read, so they sum to one."""
        return _sorted((h.symbols[h.read], h.weight) for h in hypotheses)

    def _departure(
        self, ids: tuple[int, ...], number: int, hypotheses: list[_Hypothesis], expected: TokenDistribution
    ) -> str:
        position = max(self._character(h) for h in hypotheses)
        likeliest = " or ".join(repr(self.tokenizer.token_text(int(id))) for id in expected.ids[:MOST_EXPECTED])
        try:
            found = repr(self.tokenizer.token_text(ids[number]))
        except ValueError:
            found = f"id {ids[number]}, which is not in the vocabulary of {self.tokenizer.vocab_size}"
        return (
            f"no {self.distribution.split} story continues like this from token {number + 1} of {len(ids)}, at"
            f" character {position}: found {found}, expected {likeliest}"
        )

    def _character(self, hypothesis: _Hypothesis) -> int:
        """Where the token that a hypothesis has next begins, in characters."""
        if hypothesis.read == 0 or hypothesis.fragment is None:
            return hypothesis.start
        return hypothesis.start + self.tokenizer.spans(hypothesis.fragment)[hypothesis.read][0]

    def _after_text(self, prefix: str) -> TokenDistribution:
        stories = StoryFilter(self.distribution, lambda fragment: tuple(map(ord, fragment or "")))
        for position, character in enumerate(prefix):
            if not stories.read(ord(character)):
                raise ValueError(self._text_departure(prefix, position, stories.hypotheses))
        at_boundary: list[tuple[int, float]] = []
        inside: list[tuple[int, float]] = []
        for h in stories.hypotheses:
            id, begins_here = self._next_at_character(h)
            (at_boundary if begins_here else inside).append((id, h.weight))
        edge = math.fsum(weight for _, weight in at_boundary)
        over = math.fsum(weight for _, weight in inside)
        tokens = _sorted((id, weight / (edge or over)) for id, weight in at_boundary or inside)
        return TokenDistribution(tokens.ids, tokens.probabilities, edge / (edge + over))

    def _next_at_character(self, hypothesis: _Hypothesis) -> tuple[int, bool]:
        """The token that spells a hypothesis's next character, and whether it begins with this character."""
        ids = self._spell(hypothesis.fragment)
        if hypothesis.read == 0 or hypothesis.fragment is None:
            return ids[0], True
        spans = self.tokenizer.spans(hypothesis.fragment)
        number = next((n for n, (_, end) in enumerate(spans) if end > hypothesis.read), None)
        if number is None:
            raise ValueError(f"this tokenizer leaves out the end of {hypothesis.fragment!r}, which occurs in stories")
        return ids[number], spans[number][0] >= hypothesis.read

    def _text_departure(self, text: str, position: int, hypotheses: list[_Hypothesis]) -> str:
        ranked = sorted(hypotheses, key=lambda h: -h.weight)
        rests = [(h.fragment or "")[h.read :] for h in ranked]
        begun = _match(r"\S*$", text[:position])
        found = begun + _match(r"^\S*", text[position:])
        expected = dict.fromkeys(begun + _match(r"^\S*", rest) for rest in rests)
        if not found or found in expected:  # the word is right, what comes after it is not
            found = _match(r"^\s*\S*", text[position:])
            expected = dict.fromkeys(_match(r"^\s*\S*", rest) for rest in rests)
        likeliest = " or ".join(repr(word) if word else "the end" for word in list(expected)[:MOST_EXPECTED])
        return (
            f"no {self.distribution.split} story continues like this from character {position}: "
            f"found {found!r}, expected {likeliest}"
        )


def _sorted(weighted: Iterator[tuple[int, float]]) -> TokenDistribution:
    """The sums of the weights by id, the largest first."""
    parts: dict[int, list[float]] = {}
    for id, weight in weighted:
        parts.setdefault(id, []).append(weight)
    ranked = sorted(((math.fsum(each), id) for id, each in parts.items()), key=lambda pair: (-pair[0], pair[1]))
    return TokenDistribution(
        np.array([id for _, id in ranked], dtype=np.int64), np.array([weight for weight, _ in ranked], dtype=np.float64)
    )


def _match(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    return found.group() if found else ""
