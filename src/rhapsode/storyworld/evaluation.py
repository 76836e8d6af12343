"""What a language model is asked about storyworld: the right words at references, and stories of its own."""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from rhapsode.storyworld.grammar import Grammar
from rhapsode.storyworld.parsing import parse
from rhapsode.storyworld.story import Story

# Distances from antecedent to reference, in words, as they are reported: from each bound up to the next.
DISTANCE_BOUNDS = (0, 5, 10, 20, 50, 100, 200)


@dataclass(frozen=True)
class Cloze:
    """A reference as a question to a model: which continuation of `prefix` is the likeliest?

    Each continuation is a whole piece of text from white space to white space, with the punctuation around
    the word, so that tokenizing prefix and continuation apart gives the tokens of both together.
    """

    kind: str
    distance: int
    prefix: str
    right: str
    wrong: tuple[str, ...]


def clozes(story: Story) -> list[Cloze]:
    """The labelled references of a story as questions, in order."""
    questions = []
    for label in story.labels:
        start, end = label.start, label.end
        while start > 0 and not story.text[start - 1].isspace():
            start -= 1  # back over an opening quotation mark
        start = len(story.text[:start].rstrip())  # and the white space before it
        while end < len(story.text) and not story.text[end].isspace():
            end += 1
        before, after = story.text[start : label.start], story.text[label.end : end]
        questions.append(
            Cloze(
                label.kind,
                label.distance,
                story.text[:start],
                before + label.right + after,
                tuple(before + word + after for word in label.wrong),
            )
        )
    return questions


def distance_bin(distance: int) -> str:
    """The name of the bin of a distance: "0-4", "5-9", ..., "200+"."""
    for low, high in itertools.pairwise(DISTANCE_BOUNDS):
        if distance < high:
            return f"{low}-{high - 1}"
    return f"{DISTANCE_BOUNDS[-1]}+"


@dataclass(frozen=True)
class Accuracy:
    """Share of references where the right continuation is likelier than each wrong one, with their number."""

    overall: tuple[float, int]
    by_kind: dict[str, tuple[float, int]]
    by_distance: dict[str, tuple[float, int]]


def reference_accuracy(
    stories: Iterable[Story], log_probabilities: Callable[[str, list[str]], list[float]]
) -> Accuracy:
    """Accuracy at the labelled references, over all, by kind and by distance in words.

    log_probabilities: (prefix, continuations) -> the log-probability of each continuation after the prefix,
    the sum over its tokens. A tie counts as wrong: a model that knows nothing must not be right.
    """
    outcomes: list[ReferenceOutcome] = []
    for story in stories:
        for question in clozes(story):
            right, *wrong = log_probabilities(question.prefix, [question.right, *question.wrong])
            outcomes.append(ReferenceOutcome(question.kind, question.distance, right > max(wrong)))
    return accuracy(outcomes)


def chance(stories: Iterable[Story]) -> Accuracy:
    """The accuracy of a guesser at the references of these stories: one over the number of continuations."""
    questions = [question for story in stories for question in clozes(story)]
    return accuracy(ReferenceOutcome(each.kind, each.distance, 1 / (1 + len(each.wrong))) for each in questions)


class ReferenceOutcome(NamedTuple):
    """What became of one question: 1 or True for right, 0 or False for wrong, or the probability of right."""

    kind: str
    distance: int
    right: float


def accuracy(outcomes: Iterable[ReferenceOutcome]) -> Accuracy:
    """Means of outcomes over all, by kind and by distance. Raises ValueError if there are none."""
    outcomes = list(outcomes)
    if not outcomes:
        raise ValueError("accuracy at references needs at least one story with a labelled reference")
    bins = [distance_bin(bound) for bound in DISTANCE_BOUNDS]
    by_distance = {name: [o.right for o in outcomes if distance_bin(o.distance) == name] for name in bins}
    kinds = sorted({outcome.kind for outcome in outcomes})
    return Accuracy(
        _mean([outcome.right for outcome in outcomes]),
        {kind: _mean([outcome.right for outcome in outcomes if outcome.kind == kind]) for kind in kinds},
        {name: _mean(rights) for name, rights in by_distance.items() if rights},
    )


def _mean(rights: list[float]) -> tuple[float, int]:
    return math.fsum(rights) / len(rights), len(rights)


@dataclass(frozen=True)
class GeneratedReport:
    """What became of generated texts.

    parsed: how many are possible stories. new: how many of those are not among the training stories.
    distinct: how many different ones they are. breaks: reason -> how many of the others broke for it.
    examples: reason -> one line each, with the place and what could have stood there. words_before_break:
    the mean, None if none broke.
    """

    total: int
    parsed: int
    new: int
    distinct: int
    breaks: dict[str, int]
    examples: dict[str, str]
    words_before_break: float | None


def check_generated(grammar: Grammar, texts: Iterable[str], training: Iterable[str] = ()) -> GeneratedReport:
    """How many generated texts are stories, why the others are not, and how many were not seen in training.

    training: the texts trained on, or an iterator that makes them again; read once, not kept.
    White space around a generated text does not count.
    """
    stripped = [text.strip() for text in texts]
    breaks: Counter[str] = Counter()
    examples: dict[str, str] = {}
    stories: list[str] = []
    words = 0
    for text in stripped:
        error = parse(grammar, text).error
        if error is None:
            stories.append(text)
            continue
        words += len(text[: error.position].split())
        breaks[error.reason] += 1
        examples.setdefault(error.reason, str(error))
    distinct = set(stories)
    seen = {text for text in training if text in distinct} if distinct else set()
    broken = sum(breaks.values())
    return GeneratedReport(
        total=len(stripped),
        parsed=len(stories),
        new=sum(text not in seen for text in stories),
        distinct=len(distinct),
        breaks=dict(breaks.most_common()),
        examples=examples,
        words_before_break=words / broken if broken else None,
    )
