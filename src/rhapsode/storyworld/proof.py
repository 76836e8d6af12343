"""That every text has one derivation, and which words the story so far settles: both by one walk.

Two derivations of the same text would part at some first choice: at two scenes that may follow the same
scenes, at two wordings, or at two values of a fact. Up to there they are the same, and from there on each
option's words are a beginning of the same rest of the text, so that one option's words would begin the
other's. This module walks each pair of options in step, word by word, and shows that it never happens:
options are prefix-free. Facts are taken as independent of each other but for those known to differ, so that
more is walked than can occur.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

from rhapsode.storyworld.grammar import Grammar, Scene, Variable, bare_word
from rhapsode.storyworld.template import UNIT, Choice, Element, Literal, Mention, Wording


@dataclass(frozen=True)
class _Edge:
    """One unit of text on the way through a wording, and the mention that it belongs to, if it does."""

    unit: str
    rest: tuple[Element, ...]
    mention: Mention | None = None


def _edges(wording: Wording) -> Iterator[_Edge]:
    """The ways to take one unit from the front of a wording."""
    first, rest = wording[0], wording[1:]
    if isinstance(first, Choice):
        for option in first.options:
            yield from _edges(option + rest)
        return
    mention = first if isinstance(first, Mention) else None
    for text in dict.fromkeys(first.texts if isinstance(first, Mention) else (first.text,)):
        units = UNIT.findall(text)
        remaining = "".join(units[1:])
        yield _Edge(units[0], (Literal(remaining), *rest) if remaining else rest, mention)


class Proof:
    """ambiguities: descriptions of pairs of options that are not prefix-free; none in a sound grammar.

    open_mentions: mentions where, after the same words, another option may have another word of the same
    domain.
    """

    def __init__(self, grammar: Grammar):
        self.grammar = grammar
        self.ambiguities: list[str] = []
        self.open_mentions: set[Mention] = set()
        for scene in grammar.scenes:
            for slot in scene.slots:
                self._choice(slot, scene.name)
        for group in _siblings(grammar):
            options = tuple((scene.slots[0],) for scene in group)
            self._options(options, "scenes " + ", ".join(scene.name for scene in group))

    def _choice(self, choice: Choice, where: str) -> None:
        self._options(choice.options, where)
        for option in choice.options:
            for element in option:
                if isinstance(element, Choice):
                    self._choice(element, where)
                elif isinstance(element, Mention):
                    self._values(element, where)

    def _values(self, mention: Mention, where: str) -> None:
        for one, other in combinations([UNIT.findall(text) for text in dict.fromkeys(mention.texts)], 2):
            if one[: len(other)] == other[: len(one)]:
                self.ambiguities.append(f"{where}: {mention.variable} as {''.join(one)!r} or {''.join(other)!r}")

    def _options(self, options: tuple[Wording, ...], where: str) -> None:
        for one, other in combinations(options, 2):
            self._walk(one, other, "", where)

    def _walk(self, one: Wording, other: Wording, read: str, where: str) -> None:
        if not one or not other:
            self.ambiguities.append(f"{where}: two ways to read {read.strip()!r}")
            return
        by_unit: dict[str, list[_Edge]] = {}
        for edge in _edges(other):
            by_unit.setdefault(edge.unit, []).append(edge)
        for pair in self._open_pairs(list(_edges(one)), [edge for edges in by_unit.values() for edge in edges]):
            self.open_mentions.update(pair)
        # Edges that lead to the same rest are the same way on: the walk need not be repeated for each name.
        taken = set()
        for edge in _edges(one):
            for twin in by_unit.get(edge.unit, []):
                if self._differ(edge.mention, twin.mention):
                    continue
                key = (tuple(map(id, edge.rest)), tuple(map(id, twin.rest)))
                if key not in taken:
                    taken.add(key)
                    self._walk(edge.rest, twin.rest, read + edge.unit, where)

    def _open_pairs(self, ones: list[_Edge], others: list[_Edge]) -> Iterator[list[Mention]]:
        """Mentions of two facts of one domain, or of a fact against a fixed word like one of its values."""
        for mentions, texts in ((_mentions(ones), others), (_mentions(others), ones)):
            for mention in mentions:
                starts = {bare_word(UNIT.findall(text)[0]) for text in mention.texts}
                for edge in texts:
                    same_fact = edge.mention is not None and edge.mention.variable == mention.variable
                    if bare_word(edge.unit) in starts and not same_fact:
                        yield [mention] if edge.mention is None else [mention, edge.mention]

    def _differ(self, one: Mention | None, other: Mention | None) -> bool:
        """Whether the two mentions show facts that are never the same, in forms that tell which."""
        if one is None or other is None or not (one.reveals and other.reveals):
            return False
        facts: tuple[Variable, Variable] = (
            self.grammar.variables[one.variable],
            self.grammar.variables[other.variable],
        )
        return facts[0].name in facts[1].differs or facts[1].name in facts[0].differs


def _mentions(edges: list[_Edge]) -> set[Mention]:
    return {edge.mention for edge in edges if edge.mention is not None}


def _siblings(grammar: Grammar) -> set[tuple[Scene, ...]]:
    """The sets of scenes that may follow the same scenes."""
    following: dict[tuple[Scene, ...], dict[Scene, None]] = {}
    for skeleton in grammar.skeletons:
        for place, scene in enumerate(skeleton.scenes):
            following.setdefault(skeleton.scenes[:place], {})[scene] = None
    return {tuple(scenes) for scenes in following.values()}
