"""Tasks that ask a model to keep track of something: a state that each step changes, told by an exact answer.

    parity     each step is 0 or 1; the answer: whether there was an odd number of ones so far
    counter    each step is 0 or 1; the answer: how many ones there were so far, modulo COUNT
    boxes      each step, two of BOXES boxes swap what is in them; the answer: which object lies in the first box

An answer is asked for at every step, and no answer is ever read: a model cannot continue from its last one, but must
keep the state itself. Whoever has learnt the task from short sequences knows it for all lengths.
"""

import hashlib
import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from rhapsode.tokens import TokenStore

COUNT = 5
BOXES = 3
SWAPS = tuple(itertools.combinations(range(BOXES), 2))  # which two boxes a step's id means


class Task(NamedTuple):
    """inputs: how many different steps there are; outcomes: how many different answers. answers: steps (N, T) -> the
    answer after each (N, T)."""

    inputs: int
    outcomes: int
    answers: Callable[[np.ndarray], np.ndarray]

    @property
    def vocab_size(self) -> int:
        """Ids of steps and of answers, which share their numbers."""
        return max(self.inputs, self.outcomes)


def parity(steps: np.ndarray) -> np.ndarray:
    """steps (N, T) of 0 and 1 -> the number of ones so far, modulo 2."""
    return steps.cumsum(axis=1) % 2


def counter(steps: np.ndarray) -> np.ndarray:
    """steps (N, T) of 0 and 1 -> the number of ones so far, modulo COUNT."""
    return steps.cumsum(axis=1) % COUNT


def boxes(steps: np.ndarray) -> np.ndarray:
    """steps (N, T), numbers of SWAPS -> the object in the first box after each; object i begins in box i."""
    rows = np.arange(len(steps))
    held = np.tile(np.arange(BOXES), (len(steps), 1))
    answers = np.empty_like(steps)
    pairs = np.array(SWAPS)
    for t in range(steps.shape[1]):
        one, other = pairs[steps[:, t]].T
        held[rows, one], held[rows, other] = held[rows, other], held[rows, one]
        answers[:, t] = held[:, 0]
    return answers


TASKS = {
    "parity": Task(2, 2, parity),
    "counter": Task(2, COUNT, counter),
    "boxes": Task(len(SWAPS), BOXES, boxes),
}
PARTS = ("train", "valid", "test")  # each with draws of its own


def examples(name: str, part: str, count: int, length: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(steps, answers), both (count, length) of int64: every step drawn evenly, the same for the same arguments."""
    task = TASKS[name]
    draw = np.random.Generator(np.random.PCG64([seed, list(TASKS).index(name), PARTS.index(part)]))
    steps = draw.integers(task.inputs, size=(count, length))
    return steps, task.answers(steps)


def labelled_store(name: str, part: str, count: int, length: int, seed: int) -> TokenStore:
    """The same as a token store in memory, each story a sequence of steps with their answers (TokenStore.labelled)."""
    ids = np.stack(examples(name, part, count, length, seed), axis=2).reshape(-1)  # step, answer, step, answer, ...
    key = f"task {name} {part} {count} {length} {seed}"
    about = {
        "fingerprint": hashlib.sha256(key.encode()).hexdigest(),
        "eos_id": 0,
        "vocab_size": TASKS[name].vocab_size,
        "has_text": False,
        "labelled": True,
        "description": f"{name}, {count:,} sequences of {length} steps",
    }
    offsets = np.arange(count + 1) * 2 * length
    return TokenStore(ids.astype(np.uint8), offsets, np.zeros(count, np.int64), np.zeros((0, 2), np.int64), about)
