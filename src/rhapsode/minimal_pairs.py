"""Minimal pairs: two sentences that differ in one point of grammar, of which a good model expects the right one more.

    pairs = sample_pairs(seed=0, count=100)                  of each of the paradigms
    found = pair_accuracy(pairs, lambda texts: [each.nats for each in model.score(texts).texts])
    found["agreement"], found["all"]                         shares of pairs, a tie counts as half

In the manner of BLiMP (Warstadt et al. 2020), by a grammar of our own in the words of children's stories: agreement of
subject and verb (beside it, across a phrase, across a clause) and of determiner and noun; reflexives that agree with
their subject in gender and number, also past a nearer noun; order of verb and object, adjective and noun, negation.
Every sentence is whole, and each pair has a number, gender or verb drawn anew, so that half of what is right would be
wrong elsewhere.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple


class Noun(NamedTuple):
    """A noun in both numbers, and the reflexive of the singular."""

    singular: str
    plural: str
    reflexive: str

    def form(self, plural: bool) -> str:
        """The noun in one of its numbers."""
        return self.plural if plural else self.singular


class MinimalPair(NamedTuple):
    """A sentence that is right and one that is wrong. field: agreement, reflexives or order; paradigm: a part of it."""

    field: str
    paradigm: str
    right: str
    wrong: str


PEOPLE = (
    *(Noun(word, f"{word}s", "himself") for word in ("boy", "king", "brother", "father", "prince")),
    *(Noun(word, f"{word}s", "herself") for word in ("girl", "queen", "sister", "mother")),
    Noun("man", "men", "himself"),
    Noun("woman", "women", "herself"),
)
ANIMALS = tuple(Noun(word, f"{word}s", "itself") for word in ("cat", "dog", "bird", "bear", "frog", "rabbit"))
THINGS = tuple(
    Noun(word, plural, "itself")
    for word, plural in (
        *((word, f"{word}s") for word in ("ball", "toy", "hat", "car", "book", "flower", "cake", "apple")),
        ("box", "boxes"),
    )
)
CREATURES = (*PEOPLE, *ANIMALS)
STATES = ("happy", "sad", "kind", "tired", "hungry", "proud", "small", "big")
ADJECTIVES = ("red", "blue", "green", "big", "small", "new", "pretty", "old")
PLACES = ("near", "with", "behind", "next to")
MET = ("saw", "liked", "helped", "found")  # one creature another
DONE_TO_ONESELF = ("hurt", "saw", "washed", "liked")
TOOK = ("found", "took", "dropped", "liked", "lost")  # someone something
ACTED = ("run", "jump", "sing", "sleep", "dance", "cry", "smile")
FALLS = ("down", "on the floor", "into the water", "from the table", "off the bed")
BE = (("is", "are"), ("was", "were"))  # singular, plural
SINGULAR_OR_PLURAL = (*BE, ("has been", "have been"))
DETERMINERS = (("this", "these"), ("that", "those"))

Draw = random.Random
Sentences = tuple[str, str]  # the right one, the wrong one


def _beside(draw: Draw) -> Sentences:
    subject, plural, verb = draw.choice(CREATURES), draw.random() < 0.5, draw.choice(SINGULAR_OR_PLURAL)
    begin, end = f"The {subject.form(plural)}", f"very {draw.choice(STATES)}."
    return f"{begin} {verb[plural]} {end}", f"{begin} {verb[not plural]} {end}"


def _across_a_phrase(draw: Draw) -> Sentences:
    (subject, other), plural, verb = draw.sample(CREATURES, 2), draw.random() < 0.5, draw.choice(SINGULAR_OR_PLURAL)
    begin = f"The {subject.form(plural)} {draw.choice(PLACES)} the {other.form(not plural)}"
    end = f"very {draw.choice(STATES)}."
    return f"{begin} {verb[plural]} {end}", f"{begin} {verb[not plural]} {end}"


def _across_a_clause(draw: Draw) -> Sentences:
    (subject, other), plural, verb = draw.sample(CREATURES, 2), draw.random() < 0.5, draw.choice(SINGULAR_OR_PLURAL)
    begin = f"The {subject.form(plural)} that {draw.choice(MET)} the {other.form(not plural)}"
    end = f"very {draw.choice(STATES)}."
    return f"{begin} {verb[plural]} {end}", f"{begin} {verb[not plural]} {end}"


def _determiner(draw: Draw) -> Sentences:
    subject, thing, plural = draw.choice(CREATURES), draw.choice(THINGS), draw.random() < 0.5
    determiner, adjective = draw.choice(DETERMINERS), draw.choice(ADJECTIVES)
    begin, end = f"The {subject.singular} {draw.choice(TOOK)}", f"{adjective} {thing.form(plural)}."
    return f"{begin} {determiner[plural]} {end}", f"{begin} {determiner[not plural]} {end}"


def _gender(draw: Draw) -> Sentences:
    subject, verb = draw.choice(PEOPLE), draw.choice(DONE_TO_ONESELF)
    other = {"himself": "herself", "herself": "himself"}[subject.reflexive]
    begin = f"The {draw.choice(STATES)} {subject.singular} {verb}"
    return f"{begin} {subject.reflexive}.", f"{begin} {other}."


def _number(draw: Draw) -> Sentences:
    subject, verb, plural = draw.choice(CREATURES), draw.choice(DONE_TO_ONESELF), draw.random() < 0.5
    begin, forms = f"The {draw.choice(STATES)} {subject.form(plural)} {verb}", (subject.reflexive, "themselves")
    return f"{begin} {forms[plural]}.", f"{begin} {forms[not plural]}."


def _past_a_nearer_noun(draw: Draw) -> Sentences:
    (subject, other), plural = draw.sample(CREATURES, 2), draw.random() < 0.5
    begin = f"The {subject.form(plural)} that {draw.choice(MET)} the {other.form(not plural)}"
    verb, forms = draw.choice(DONE_TO_ONESELF), (subject.reflexive, "themselves")
    wrong = "themselves" if not plural else other.reflexive
    return f"{begin} {verb} {forms[plural]}.", f"{begin} {verb} {wrong}."


def _verb_and_object(draw: Draw) -> Sentences:
    subject, thing = draw.choice(CREATURES), draw.choice(THINGS)
    begin, what = f"The {subject.form(draw.random() < 0.5)}", f"the {draw.choice(ADJECTIVES)} {thing.singular}"
    verb = draw.choice(TOOK)
    return f"{begin} {verb} {what}.", f"{begin} {what} {verb}."


def _adjective_and_noun(draw: Draw) -> Sentences:
    adjective, noun = draw.choice(ADJECTIVES), draw.choice(THINGS).form(draw.random() < 0.5)
    end = f"fell {draw.choice(FALLS)}."
    return f"The {adjective} {noun} {end}", f"The {noun} {adjective} {end}"


def _negation(draw: Draw) -> Sentences:
    subject, verb = draw.choice(CREATURES), draw.choice(ACTED)
    begin = f"The {draw.choice(STATES)} {subject.form(draw.random() < 0.5)}"
    return f"{begin} did not {verb}.", f"{begin} not did {verb}."


PARADIGMS: dict[tuple[str, str], Callable[[Draw], Sentences]] = {
    ("agreement", "verb beside its subject"): _beside,
    ("agreement", "verb across a phrase"): _across_a_phrase,
    ("agreement", "verb across a clause"): _across_a_clause,
    ("agreement", "determiner and noun"): _determiner,
    ("reflexives", "gender"): _gender,
    ("reflexives", "number"): _number,
    ("reflexives", "past a nearer noun"): _past_a_nearer_noun,
    ("order", "verb and object"): _verb_and_object,
    ("order", "adjective and noun"): _adjective_and_noun,
    ("order", "negation"): _negation,
}


def sample_pairs(seed: int = 0, count: int = 100) -> list[MinimalPair]:
    """`count` different pairs of each paradigm; the same seed gives the same pairs on every machine.

    Raises ValueError for a count below 1, or for more pairs than a paradigm has.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    return [
        MinimalPair(*names, *sentences)
        for names, make in PARADIGMS.items()
        for sentences in _different(make, random.Random(f"{seed} {names[1]}"), count, names[1])
    ]


def _different(make: Callable[[Draw], Sentences], draw: Draw, count: int, name: str) -> Iterator[Sentences]:
    found: set[Sentences] = set()
    for _ in range(100 * count):
        sentences = make(draw)
        if sentences not in found:
            found.add(sentences)
            yield sentences
        if len(found) == count:
            return
    raise ValueError(f"count must be lower than {count}: {name} has no more than about {len(found)} pairs")


def pair_accuracy(pairs: Sequence[MinimalPair], nats: Callable[[list[str]], Sequence[float]]) -> dict[str, float]:
    """The share of pairs whose right sentence costs less: by paradigm, by field, and of `all`; a tie counts as half.

    nats: what sentences cost a model, in nats, summed over all their tokens; lengths do not count. Raises ValueError
    where there is no pair.
    """
    if not pairs:
        raise ValueError("there is no pair to judge")
    costs = nats([sentence for pair in pairs for sentence in (pair.right, pair.wrong)])
    right: dict[str, list[float]] = {}
    for pair, good, bad in zip(pairs, costs[::2], costs[1::2], strict=True):
        for name in (f"{pair.field}: {pair.paradigm}", pair.field, "all"):
            right.setdefault(name, []).append(1.0 if good < bad else 0.5 if good == bad else 0.0)
    return {name: sum(found) / len(found) for name, found in right.items()}
