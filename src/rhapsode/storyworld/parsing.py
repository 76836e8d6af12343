"""Reading a story: all its derivations, or the character where it stops being a story, and why."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from rhapsode.storyworld.distribution import Distribution
from rhapsode.storyworld.grammar import Grammar, Scene, Skeleton, bare_word, is_allowed
from rhapsode.storyworld.sampling import decisions, log_product
from rhapsode.storyworld.story import CHOICES_PER_SCENE, Derivation
from rhapsode.storyworld.template import UNIT, Element, Literal, Mention, Wording

# Why a text stops being a story, from the most to the least telling.
CONTRADICTION = "contradicts an earlier fact"
IMPOSSIBLE = "a fact that cannot be"
UNKNOWN_WORD = "a word that no story has"
WRONG_WORD = "a word that does not fit here"
TOO_SHORT = "ends too early"
TOO_LONG = "goes on after the end"


@dataclass(frozen=True)
class Break:
    """Where a text stops being the beginning of any story.

    position: characters of the text that some story begins with. reason: one of the constants above. found:
    the word there. expected: some of what could stand there instead, at most eight.
    """

    position: int
    reason: str
    found: str
    expected: tuple[str, ...]

    def __str__(self) -> str:
        instead = " or ".join(repr(word) for word in self.expected) or "the end of the story"
        return f"character {self.position}: {self.reason}: found {self.found!r}, expected {instead}"


@dataclass(frozen=True)
class Parse:
    """derivations: all of them, none if the text is no story; in that case `error` says why."""

    derivations: tuple[Derivation, ...]
    error: Break | None


# The steps taken so far, newest first: (number of the choice, its option), linked to the steps before.
_Trail = tuple[int, int, "_Trail"] | None


@dataclass(frozen=True)
class _State:
    position: int  # units read
    values: tuple[tuple[str, int], ...]
    trail: _Trail


@dataclass
class _Reader:
    grammar: Grammar
    units: list[str]
    furthest: int = 0
    expected: dict[str, str] = field(default_factory=dict)  # unit -> why it was the only one for its wording

    def miss(self, position: int, unit: str, reason: str = "") -> None:
        if position > self.furthest:
            self.furthest = position
            self.expected.clear()
        if position == self.furthest:
            self.expected.setdefault(unit, reason)

    def read(self, text: str, position: int, reason: str = "") -> int | None:
        """The position after the text's units, None if other units are there."""
        for unit in UNIT.findall(text):
            if position >= len(self.units) or self.units[position] != unit:
                self.miss(position, unit, reason)
                return None
            position += 1
        return position

    def wording(self, wording: Wording, base: int, states: list[_State]) -> list[_State]:
        for element in wording:
            if not states:
                break
            states = [after for state in states for after in self.element(element, base, state)]
        return states

    def element(self, element: Element, base: int, state: _State) -> list[_State]:
        if isinstance(element, Literal):
            position = self.read(element.text, state.position)
            return [] if position is None else [_State(position, state.values, state.trail)]
        if isinstance(element, Mention):
            return self.mention(element, state)
        number = base + element.index
        found = []
        for option, wording in enumerate(element.options):
            chosen = _State(state.position, state.values, (number, option, state.trail))
            found += self.wording(wording, base, [chosen])
        return found

    def mention(self, mention: Mention, state: _State) -> list[_State]:
        values = dict(state.values)
        if mention.variable in values:
            text = mention.texts[values[mention.variable]]
            position = self.read(text, state.position, CONTRADICTION)
            return [] if position is None else [_State(position, state.values, state.trail)]
        found = []
        for value, text in enumerate(mention.texts):
            possible = self.possible(mention.variable, value, values)
            if not possible and self.units[state.position : state.position + 1] != UNIT.findall(text)[:1]:
                continue
            position = self.read(text, state.position)
            if position is None:
                continue
            if possible:
                facts = (*state.values, (mention.variable, value))
                found.append(_State(position, facts, state.trail))
            else:
                self.miss(position - 1, "", IMPOSSIBLE)
        return found

    def possible(self, name: str, value: int, values: dict[str, int]) -> bool:
        """Whether some split's distribution lets the fact have the value beside those read so far."""
        variables = self.grammar.variables
        variable = variables[name]
        if variable.only and variable.domain.properties[variable.only][value] != "yes":
            return False
        return all(
            is_allowed(variable, value, variables[other], given)
            and is_allowed(variables[other], given, variable, value)
            for other, given in values.items()
        )

    def skeletons(self, skeletons: Iterable[Skeleton], place: int, states: list[_State]) -> list[Derivation]:
        """Derivations whose skeleton is among these, which share their first `place` scenes."""
        found = []
        following: dict[Scene, list[Skeleton]] = {}
        for skeleton in skeletons:
            if len(skeleton.scenes) > place:
                following.setdefault(skeleton.scenes[place], []).append(skeleton)
                continue
            for state in states:
                if state.position == len(self.units):
                    found.append(Derivation(skeleton, dict(state.values), _options(state.trail)))
                else:
                    self.miss(state.position, "", TOO_LONG)
        for scene, group in following.items():
            after = self.wording(scene.slots, place * CHOICES_PER_SCENE, states)
            if after:
                found += self.skeletons(group, place + 1, after)
        return found


def _options(trail: _Trail) -> dict[int, int]:
    options = {}
    while trail is not None:
        number, option, trail = trail
        options[number] = option
    return options


def parse(grammar: Grammar, text: str) -> Parse:
    """All derivations of a text, over all splits' skeletons and combinations."""
    units = UNIT.findall(text)
    rest = text[sum(map(len, units)) :]
    reader = _Reader(grammar, [*units, rest] if rest else units)
    derivations = reader.skeletons(grammar.skeletons, 0, [_State(0, (), None)])
    return Parse(tuple(derivations), None if derivations else _explain(reader, text))


def _explain(reader: _Reader, text: str) -> Break:
    start = sum(len(unit) for unit in reader.units[: reader.furthest])
    expected = [unit for unit in reader.expected if unit]
    if reader.furthest >= len(reader.units):
        return Break(len(text), TOO_SHORT, "", _some(expected))
    found = reader.units[reader.furthest]
    shared = max((_shared_prefix(unit, found) for unit in expected), default=0)
    last = reader.furthest == len(reader.units) - 1
    if last and shared == len(found):
        return Break(len(text), TOO_SHORT, found.strip(), _some(expected))
    reasons = set(reader.expected.values())
    if found.strip() and bare_word(found) not in reader.grammar.vocabulary:
        reason = UNKNOWN_WORD
    elif reasons == {TOO_LONG}:
        reason = TOO_LONG
    elif IMPOSSIBLE in reasons:
        reason = IMPOSSIBLE
    elif reasons == {CONTRADICTION}:
        reason = CONTRADICTION
    else:
        reason = WRONG_WORD
    return Break(start + shared, reason, found.strip(), _some(expected))


def _some(units: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(unit.strip() for unit in units))[:8]


def _shared_prefix(one: str, other: str) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def text_log_probability(distribution: Distribution, text: str) -> float:
    """log P(text) in nats: the probabilities of all derivations, added; -inf where there is none."""
    found = parse(distribution.grammar, text).derivations
    each = [log_product(decisions(distribution, derivation)) for derivation in found]
    largest = max(each, default=-math.inf)
    if largest == -math.inf:
        return -math.inf
    return largest + math.log(math.fsum(math.exp(value - largest) for value in each))
