"""Sentences say what the numbers say, in both directions, and admit ties."""

import doctest

from rhapsode.studies.report import sentences
from rhapsode.studies.statistics import Measured


def one(*values: float) -> list[Measured]:
    return [Measured(value) for value in values]


def test_examples_in_the_docstrings() -> None:
    failed, tried = doctest.testmod(sentences)
    assert failed == 0
    assert tried >= 8


def test_trend_in_both_directions() -> None:
    labels = ["64", "128", "256"]
    falls = sentences.trend("Loss", labels, one(3.0, 2.5, 2.25))
    assert falls == "Loss falls at every step, from 3.000 (64) to 2.250 (256), by 0.750 nats."
    rises = sentences.trend("Loss", labels, one(2.25, 2.5, 3.0))
    assert rises == "Loss rises at every step, from 2.250 (64) to 3.000 (256), by 0.750 nats."


def test_trend_that_goes_both_ways() -> None:
    told = sentences.trend("Loss", ["a", "b", "c"], one(3.0, 2.0, 2.5))
    assert told == "Loss goes up and down: lowest at b (2.000), highest at a (3.000)."


def test_trend_with_ties() -> None:
    assert "is the same for all of them, within 0.005 nats" in sentences.trend("Loss", ["a", "b"], one(2.0, 2.004))
    spread = [Measured(2.0, 0.06), Measured(2.1, 0.05)]
    assert "within the spread over seeds (2.000 to 2.100)" in sentences.trend("Loss", ["a", "b"], spread)
    told = sentences.trend("Loss", ["a", "b", "c"], one(3.0, 2.999, 2.5))
    assert told.startswith("Loss falls, from 3.000 (a) to 2.500 (c), by 0.500 nats, though not every step")
    slowly = sentences.trend("Loss", ["a", "b", "c"], one(2.0, 2.004, 2.008))
    assert slowly.startswith("Loss rises, from 2.000 (a) to 2.008 (c)")
    assert sentences.trend("Loss", ["a"], one(2.0)) == "Loss is 2.000 nats (a)."


def test_compare_in_all_directions() -> None:
    def told(seconds: tuple[float, float], losses: tuple[float, float]) -> str:
        return sentences.compare("batch 32", "batch 256", seconds, (Measured(losses[0]), Measured(losses[1])))

    assert told((190, 100), (2.0, 2.21)) == (
        "Batch 256 is 1.9x faster than batch 32 and ends 0.210 nats higher in validation loss."
    )
    assert told((100, 190), (2.21, 2.0)) == (
        "Batch 256 is 1.9x slower than batch 32 and ends 0.210 nats lower in validation loss."
    )
    assert told((100, 101), (2.0, 2.001)) == (
        "Batch 256 is as fast as batch 32 and ends at the same validation loss (within 0.005 nats)."
    )


def test_compare_within_the_spread() -> None:
    losses = (Measured(2.0, 0.1), Measured(2.15, 0.1))
    assert "the same validation loss (within the spread)" in sentences.compare("a", "b", (1, 1), losses)


def test_gap_above_below_and_equal() -> None:
    assert "0.300 nats above" in sentences.gap("x", Measured(2.0), Measured(2.3))
    assert "0.300 nats below" in sentences.gap("x", Measured(2.3), Measured(2.0))
    assert "equal" in sentences.gap("x", Measured(2.0), Measured(2.001))


def test_best_with_and_without_a_tie() -> None:
    assert "0.100 nats below the next (b)" in sentences.best(["a", "b"], one(2.0, 2.1))
    assert "(b), 0.100 nats below the next (a)" in sentences.best(["a", "b"], one(2.1, 2.0))
    tie = sentences.best(["a", "b"], [Measured(2.0, 0.2), Measured(2.1, 0.2)])
    assert "no more than the spread over seeds below the next (b)" in tie


def test_against_the_course() -> None:
    assert "became 6.1x faster, this machine 2.0x slower" in sentences.against(0.5, 6.1, "from a to b")
    assert "this machine no faster" in sentences.against(1.01, 6.1, "from a to b")


def test_times_the_data_were_read() -> None:
    assert sentences.times_read([0.2, 0.2]) == "No sequence was seen twice: training took 0.20 epochs."
    assert sentences.times_read([1.06]) == "Training took 1.06 epochs, each in a new order."


def test_lowest_before_and_at_the_end() -> None:
    """Would catch a model that has overfitted and is told of by its last loss alone."""
    assert "lowest after 10,000 sequences, at 2.000, and ends 0.100" in sentences.lowest([1e4, 2e4], [2.0, 2.1])
    assert sentences.lowest([1e4, 2e4], [2.0, 2.004]).endswith("lowest at the end, within 0.005 nats.")
    assert sentences.lowest([1e4], [2.0]).endswith("lowest at the end.")
