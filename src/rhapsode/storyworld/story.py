"""A story: its derivation, its text, and the labelled references in it."""

import bisect
import re
from collections.abc import Mapping
from dataclasses import dataclass

from rhapsode.storyworld.grammar import Skeleton
from rhapsode.storyworld.template import Choice, Literal, Mention, Wording

# Choices of the scene at place i of a skeleton have the numbers i * CHOICES_PER_SCENE + index.
CHOICES_PER_SCENE = 1024


@dataclass(frozen=True)
class Derivation:
    """How a story is made: skeleton, the value of each fact, and the option of each choice met on the way."""

    skeleton: Skeleton
    values: Mapping[str, int]
    options: Mapping[int, int]


@dataclass(frozen=True)
class Decision:
    """One step of a derivation with its probability weight / total: a plot, a fact's value, or a wording."""

    what: str
    option: int
    weight: int
    total: int


@dataclass(frozen=True)
class Reference:
    """A place where the story refers to a fact that it has told before.

    kind: what is referred to ("name", "colour", ...; "pronoun", "ability", ... where it follows from the
    fact). start, end: the word's span in the text, in characters. right: the word. wrong: words of the same
    type that keep the sentence grammatical and that no story with the same beginning has here. antecedent:
    the span of the last mention before it that tells the word; introduced: of the fact's first. distance:
    words from the antecedent to the reference.
    """

    kind: str
    start: int
    end: int
    right: str
    wrong: tuple[str, ...]
    antecedent: tuple[int, int]
    introduced: tuple[int, int]
    distance: int


@dataclass(frozen=True)
class Story:
    text: str
    labels: tuple[Reference, ...]
    skeleton: str
    choices: tuple[Decision, ...]
    log_probability: float  # in nats, under the split that it was drawn from


@dataclass(frozen=True)
class Placed:
    """A fragment in its place: the element that made it, and the character where it starts."""

    element: Literal | Mention
    text: str
    start: int


def realise(derivation: Derivation) -> list[Placed]:
    """The fragments of a derivation, in order."""
    placed: list[Placed] = []
    position = 0

    def walk(wording: Wording, base: int) -> None:
        nonlocal position
        for element in wording:
            if isinstance(element, Choice):
                walk(element.options[derivation.options[base + element.index]], base)
                continue
            text = element.text if isinstance(element, Literal) else element.texts[derivation.values[element.variable]]
            placed.append(Placed(element, text, position))
            position += len(text)

    for place, scene in enumerate(derivation.skeleton.scenes):
        walk(scene.slots, place * CHOICES_PER_SCENE)
    return placed


def references(derivation: Derivation, open_mentions: frozenset[Mention], most_wrong: int = 4) -> list[Reference]:
    """The labelled references of a derivation, in order.

    open_mentions: the mentions (by identity) where another wording may put another word of the same type, so
    that the story so far does not settle the word; they carry no label.
    """
    placed = realise(derivation)
    text = "".join(fragment.text for fragment in placed)
    word_starts = [match.start() for match in re.finditer(r"\S+", text)]
    told: dict[str, list[tuple[Mention, tuple[int, int]]]] = {}
    found = []
    for fragment in placed:
        mention = fragment.element
        if isinstance(mention, Literal):
            continue
        value = derivation.values[mention.variable]
        start, end = (fragment.start + offset for offset in mention.cores[value])
        earlier = told.setdefault(mention.variable, [])
        telling = [span for m, span in earlier if (m.form, mention.form) in mention.domain.telling]
        if telling and mention not in open_mentions:
            distance = bisect.bisect_right(word_starts, start) - bisect.bisect_right(word_starts, telling[-1][0])
            wrong = _wrong_words(mention, derivation, set(told), most_wrong)
            kind = mention.domain.kinds[mention.form]
            found.append(Reference(kind, start, end, text[start:end], wrong, telling[-1], earlier[0][1], distance))
        earlier.append((mention, (start, end)))
    return [reference for reference in found if reference.wrong]


def _wrong_words(mention: Mention, derivation: Derivation, told: set[str], most: int) -> tuple[str, ...]:
    """Other words of the same form and article: first those of facts told so far, then neighbours."""
    value = derivation.values[mention.variable]
    others = [
        derivation.values[variable.name]
        for variable in derivation.skeleton.variables
        if variable.name in told and variable.domain is mention.domain and variable.name != mention.variable
    ]
    size = len(mention.domain)
    right, before = mention.core(value), mention.before(value)
    wrong: dict[str, None] = {}
    for other in (*others, *((value + step) % size for step in range(1, size))):
        if len(wrong) == most:
            break
        word = mention.core(other)
        same_article = not mention.article or mention.before(other) == before
        if same_article and not word.startswith(right) and not right.startswith(word):
            wrong[word] = None
    return tuple(wrong)
