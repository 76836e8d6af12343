"""From a budget to a number of steps, by arithmetic and by the clock."""

from types import SimpleNamespace

import numpy as np
import pytest

from rhapsode.recipe import TrainConfig
from rhapsode.tokens import BatchConfig, Batcher, TokenStore
from rhapsode.training.plan import UNKNOWN, Plan, first_plan


def batcher(num_tokens: int = 100, batch_size: int = 2, window: int = 5) -> Batcher:
    about = {"fingerprint": "f", "eos_id": 1, "vocab_size": 9, "has_text": False, "description": "ids"}
    offsets = np.array([0, num_tokens])
    store = TokenStore(np.zeros(num_tokens, np.uint16), offsets, np.array([0]), np.empty((0, 2), np.int64), about)
    return Batcher(store, BatchConfig(window, batch_size), 0)


@pytest.mark.parametrize(
    ("budget", "steps"),
    [
        ({"sequences": 8}, 4),
        ({"sequences": 9}, 5),
        ({"sequences": 1}, 1),
        ({"tokens": 40}, 4),
        ({"tokens": 41}, 5),
        ({"epochs": 3.0}, 30),
        ({"epochs": 0.01}, 1),
        ({"epochs": 1.1}, 11),  # 1.1 * 10 is 11.000000000000002
        ({"epochs": 1.11}, 12),
    ],
)
def test_budget_in_steps(budget: dict, steps: int) -> None:
    """Would catch a budget rounded down, or up by the last bit of a product. A batch is 2 x 5, an epoch 10 batches."""
    plan = first_plan(TrainConfig(**budget), 50, batcher())
    assert plan.entries == [[0, steps]]
    assert plan.total(0) == plan.total(10**6) == steps
    assert not plan.after_step(50, 1.0)


def test_budget_is_exactly_one() -> None:
    """Would catch a budget that is none, two, or no number."""
    with pytest.raises(ValueError, match="exactly one of sequences, tokens, epochs, minutes; got none greater than 0"):
        TrainConfig()
    with pytest.raises(ValueError, match="got tokens and minutes"):
        TrainConfig(tokens=5, minutes=1)
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="minutes must be >= 0, got"):
            TrainConfig(minutes=bad)
    for field, bad in (("validations", 0), ("patience", -1), ("seed", -1), ("checkpoint_seconds", float("nan"))):
        with pytest.raises(ValueError, match=f"{field} must be "):
            TrainConfig(tokens=5, **{field: bad})


def run_of(plan: Plan, seconds_of: dict[int, float]) -> int:
    """Goes through a run by a fake clock, {from step: seconds a step takes}; returns the number of steps."""
    step, seconds = 0, 0.0
    while step < plan.total(step):
        step += 1
        seconds += next(cost for begin, cost in sorted(seconds_of.items(), reverse=True) if begin < step)
        plan.after_step(step, seconds)
    return step


def minutes(amount: float, warmup: int = 50) -> Plan:
    return first_plan(TrainConfig(minutes=amount), warmup, batcher())


def test_minutes_on_an_even_clock() -> None:
    """Would catch a pace that counts the slow first steps, or time that is spent twice: 60 s at 0.1 s are 600 steps."""
    assert run_of(minutes(1), {0: 0.1}) == 600
    assert run_of(minutes(1), {0: 5.0, 3: 0.1}) == pytest.approx(453, abs=1)  # three slow steps cost their time only


def test_minutes_on_a_clock_that_slows_down() -> None:
    """Would catch a plan that is never mended: at half the pace from step 300 on, 450 steps fit into 60 s."""
    plan = minutes(1)
    assert run_of(plan, {0: 0.1, 300: 0.2}) == pytest.approx(450, abs=10)
    assert plan.entries[0] == [30, 600]  # a twentieth of the time is over before the warm-up
    assert [begin for begin, _ in plan.entries] == sorted({begin for begin, _ in plan.entries})


def test_minutes_on_a_clock_that_slows_down_at_the_end() -> None:
    """Would catch a last plan that is too old to see it: 588 steps in 58.8 s, then six at twice 0.1 s make a minute."""
    assert run_of(minutes(1), {0: 0.1, 588: 0.2}) == pytest.approx(594, abs=2)
    assert run_of(minutes(1), {0: 0.1, 580: 0.4}) == pytest.approx(585, abs=2)


def test_minutes_shorter_than_the_warm_up() -> None:
    """Would catch a short run that waits for a warm-up of most of its time, and one with more steps than time."""
    plan = minutes(0.1)  # 6 s: a twentieth is over after 10 steps
    assert run_of(plan, {0: 0.1}) == 60
    assert plan.entries[0][0] == 10
    assert run_of(minutes(0.001), {0: 0.1}) == 10  # 0.06 s: no time is left at the first plan


def test_total_is_unknown_before_the_first_plan() -> None:
    plan = minutes(1)
    assert plan.total(0) == UNKNOWN
    plan.entries = [[50, 600], [60, 590]]
    assert [plan.total(step) for step in (49, 50, 59, 60, 99)] == [UNKNOWN, 600, 600, 590, 590]


def test_stored_plan_is_replayed() -> None:
    """Would catch a run that was killed after it had planned, and plans again by another pace when resumed."""
    plan = minutes(1)
    run_of(plan, {0: 0.1, 200: 0.15})
    stored = [list(entry) for entry in plan.entries]
    replayed = minutes(1)
    replayed.entries = [list(entry) for entry in stored]
    steps = run_of(replayed, {0: 0.37})
    assert replayed.entries == stored
    assert steps == stored[-1][1]


def test_minutes_need_a_warm_up() -> None:
    """Would catch a learning rate that depends on a total which is not known yet."""
    with pytest.raises(ValueError, match="warmup_steps must be >= 10, got 9"):
        minutes(1, warmup=9)
    assert minutes(1, warmup=10).entries == []
    assert first_plan(TrainConfig(sequences=4), 0, SimpleNamespace(config=BatchConfig(5, 2))).entries == [[0, 2]]  # type: ignore[arg-type]
