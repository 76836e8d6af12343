"""Tasks: their answers against a brute force that keeps the state step by step, and how they become batches."""

import numpy as np
import pytest

from rhapsode.evaluation import padded_batches
from rhapsode.studies.tasks import BOXES, COUNT, SWAPS, TASKS, examples, labelled_store
from rhapsode.studies.tracking import task_stores
from rhapsode.tokens import BatchConfig, Batcher


def by_brute_force(task: str, steps: list[int]) -> list[int]:
    """One step after the other, on things that one can touch."""
    answers = []
    lamp, ticks, inside = False, "", {box: f"object {box}" for box in range(BOXES)}
    for step in steps:
        if task == "parity":
            lamp = not lamp if step else lamp
            answers.append(1 if lamp else 0)
        elif task == "counter":
            ticks += "|" * step
            ticks = ticks.replace("|" * COUNT, "")
            answers.append(len(ticks))
        else:
            one, other = SWAPS[step]
            inside[one], inside[other] = inside[other], inside[one]
            answers.append(int(inside[0].removeprefix("object ")))
    return answers


@pytest.mark.parametrize("task", TASKS)
def test_answers_are_those_of_a_brute_force(task: str) -> None:
    """Would catch an answer that is told before its step counts, and a swap that loses an object."""
    steps, answers = examples(task, "test", 40, 33, seed=5)
    assert [by_brute_force(task, row) for row in steps.tolist()] == answers.tolist()
    assert set(steps.ravel()) == set(range(TASKS[task].inputs))
    assert set(answers.ravel()) == set(range(TASKS[task].outcomes))


def test_every_step_can_change_every_answer_after_it() -> None:
    """Would catch a task that a model without memory can do: each answer but a late one differs with the first step."""
    for task, (inputs, _, answers) in TASKS.items():
        steps, _ = examples(task, "test", 300, 20, seed=0)
        other = steps.copy()
        other[:, 0] = (other[:, 0] + 1) % inputs
        changed = (answers(steps) != answers(other)).mean(axis=0)
        assert (changed > 0.5).all(), task


def test_examples_depend_on_all_that_names_them_and_on_nothing_else() -> None:
    """Would catch models that are asked what they were trained on, and tasks that share their draws."""
    first, again = (examples("parity", "train", 50, 16, seed=0)[0] for _ in range(2))
    assert np.array_equal(first, again)
    others = [("parity", "test", 0), ("parity", "valid", 0), ("parity", "train", 1), ("counter", "train", 0)]
    for task, part, seed in others:
        assert not np.array_equal(first, examples(task, part, 50, 16, seed)[0])


@pytest.mark.parametrize("window", [1, 5, 7])
def test_a_batch_has_steps_and_their_answers_and_no_answer_is_read(window: int) -> None:
    """Would catch targets that are the next steps, and inputs that hold the answers; 7 is the whole of a sequence."""
    steps, answers = examples("boxes", "train", 12, 7, seed=3)
    batcher = Batcher(labelled_store("boxes", "train", 12, 7, 3), BatchConfig(window, 4, "first", shuffle=False), 0)
    assert batcher.tokens_per_batch == 4 * window
    for begin in (0, 4, 8):
        batch = batcher.next()
        assert batch.inputs.tolist() == steps[begin : begin + 4, :window].tolist()
        assert batch.targets.tolist() == answers[begin : begin + 4, :window].tolist()
    with pytest.raises(ValueError, match="need form first"):
        Batcher(labelled_store("boxes", "train", 12, 7, 3), BatchConfig(2, 2), 0)


def test_validation_scores_each_answer_once() -> None:
    """Would catch a validation that predicts the next step."""
    steps, answers = examples("counter", "valid", 9, 7, seed=3)
    found = [
        row for batch in padded_batches(labelled_store("counter", "valid", 9, 7, 3)) for row in zip(*batch, strict=True)
    ]
    assert sorted((inputs.tolist(), targets.tolist()) for inputs, targets in found) == sorted(
        zip(steps.tolist(), answers.tolist(), strict=True)
    )


def test_the_last_batch_is_whole_and_nothing_is_read_twice() -> None:
    """Would catch an epoch that ends before training does."""
    sections = {"batch": {"window": 6, "batch_size": 4}, "train": {"sequences": 10, "seed": 0}}
    train, valid = task_stores("parity", sections)
    batcher = Batcher(train, BatchConfig(6, 4, "first"), 0)
    assert batcher.batches_per_epoch == 3
    assert valid.num_stories == 256
