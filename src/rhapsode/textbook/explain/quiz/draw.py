"""The questions of a seed: which topic comes when, in which variant, and with which numbers."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from rhapsode.textbook.explain.quiz import TOPICS, attentions, convolutions, gradients, heads, sizes, tapes
from rhapsode.textbook.explain.quiz.question import Question
from rhapsode.textbook.recurrent import ACTIVATIONS

Maker = Callable[[np.random.Generator], Question]

MAKERS: dict[str, tuple[Maker, ...]] = {
    "output-size": (sizes.one_layer, sizes.two_layers, sizes.same_size),
    "parameters": tuple(partial(sizes.parameters, kind) for kind in ("shared", "unshared", "dense")),
    "convolution-entry": tuple(partial(convolutions.entry, channels) for channels in (1, 2)),
    "toeplitz": (convolutions.toeplitz, convolutions.toeplitz_row),
    "convolution-gradient": tuple(partial(convolutions.gradient, by_filter) for by_filter in (True, False)),
    "softmax-gradient": (gradients.by_logits, gradients.by_weights, gradients.of_softmax_alone),
    "recurrent-gradient": tuple(
        partial(gradients.of_recurrence, activation, by_weights)
        for activation in ACTIVATIONS
        for by_weights in (False, True)
    ),
    "attention-gradient": tuple(partial(attentions.gradient, wanted) for wanted in "VSQK"),
    "attention-shapes": (heads.one_shape, heads.with_cache, heads.parameter_count, heads.seen),
    "tape": (
        *(tapes.stack_or_queue, tapes.order, tapes.left, tapes.as_queue),
        *(partial(tapes.used_twice, by) for by in "wx"),
    ),
}


def chosen_topics(given: Sequence[str]) -> list[str]:
    """The topics of `--topic`, each with commas or not; all if none is given. Raises ValueError for an unknown one."""
    names = [name.strip() for text in given for name in text.split(",")]
    for name in names:
        if name not in TOPICS:
            raise ValueError(f"--topic: there is no topic {name!r}; the topics are {', '.join(TOPICS)}")
    return [topic for topic in TOPICS if topic in names or not names]


def draw_questions(seed: int, count: int, topics: Sequence[str]) -> list[Question]:
    """`count` questions, topics and their variants in turn; with a larger count the first ones are the same.

    No question comes twice, as long as there are that many.
    """
    rng = np.random.default_rng(seed)
    topics_in_turn = _in_turn(len(topics), rng.spawn(1)[0])
    variants = {
        topic: _in_turn(len(MAKERS[topic]), stream)
        for topic, stream in zip(topics, rng.spawn(len(topics)), strict=True)
    }
    questions: list[Question] = []
    for stream in rng.spawn(count):
        topic = topics[next(topics_in_turn)]
        make = MAKERS[topic][next(variants[topic])]
        for _ in range(20):
            question = fair(make, stream)
            if all(question.blocks != earlier.blocks for earlier in questions):
                break
        questions.append(replace(question, topic=topic))
    return questions


def fair(make: Maker, rng: np.random.Generator) -> Question:
    """A question whose right answer can be told from the wrong ones; the others are thrown away."""
    while not (question := make(rng)).answer.fair():
        pass
    return question


def _in_turn(count: int, rng: np.random.Generator) -> Iterator[int]:
    """0 to count - 1 in random order, and again in another, for ever."""
    while True:
        yield from rng.permutation(count).tolist()
