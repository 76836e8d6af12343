"""What a training would take: the formulas against sums by hand, ranges that widen, and what is said to break first."""

import json
import math
from typing import Any

import pytest
from typer.testing import CliRunner

from rhapsode.cli import app
from rhapsode.planning import Device, Fleet, Link, devices, forecast, links
from rhapsode.planning.costs import Demand, demand_of, parameters_of, seconds_by_part, seconds_of_sum, summed_bytes
from rhapsode.recipe import Recipe
from rhapsode.recipe.changes import merge
from rhapsode.recipe.presets import PRESETS

DEVICE = Device("d", 1e10, 1e9, 1e-5, False, 0.1, 1e6, 1e12)
LINK = Link("l", 1e8, 1e-4, 0.2)
OWN = {"model": {"pair_embeddings": 16384, "embed_dim": 192}}


def recipe(**batch: Any) -> Recipe:
    return Recipe.from_sections(merge(PRESETS["minute"], {**OWN, "batch": {"window": 256, **batch}}), 1024)


def test_a_step_by_hand() -> None:
    """Would catch a factor that is forgotten: three forward passes, 28 bytes a parameter, launches that run ahead."""
    parts = seconds_by_part(Demand(2e9, 3e8, 1e4), DEVICE)
    assert parts == pytest.approx({"matrix products": 0.2, "optimiser": 0.3, "launches": 0.1})
    ahead = Device("d", 1e10, 1e9, 1e-5, True, 0.1, 1e6, 1e12)
    assert seconds_by_part(Demand(2e9, 3e8, 1e4), ahead)["launches"] == 0.0
    assert sum(seconds_by_part(Demand(2e9, 3e8, 1e5), ahead).values()) == pytest.approx(1.0)


def test_bytes_of_a_sum() -> None:
    """Would catch a table of pairs that is counted as a whole, where a step touches few of its rows."""
    model = recipe().model
    everything, pairs = parameters_of(model)
    assert pairs == 16384 * 192
    assert summed_bytes(model, 1_000) == 4 * (everything - pairs + 1_000 * 192) + 16384
    assert summed_bytes(model, 10**6) == 4 * everything + 16384
    assert seconds_of_sum(1e8, 1, LINK) == 0.0
    assert seconds_of_sum(1e8, 4, LINK) == pytest.approx(1.5 + 6e-4)


def test_rows_are_divided_and_time_adds_up() -> None:
    """Would catch a batch that each process computes whole, and parts of the time that are left out."""
    one = forecast(recipe(batch_size=64), 1e8, Fleet(DEVICE, LINK))
    four = forecast(recipe(batch_size=64), 1e8, Fleet(DEVICE, LINK, 2, 2))
    demand = demand_of(recipe().model, 16, 256)
    assert four.seconds["matrix products"] == pytest.approx(demand.flops / 1e10)
    assert four.seconds["matrix products"] == pytest.approx(one.seconds["matrix products"] / 4)
    assert four.seconds["optimiser"] == one.seconds["optimiser"]
    assert one.steps == four.steps == round(1e8 / (64 * 256))
    assert one.total_seconds > one.steps * sum(one.seconds.values())
    assert one.tokens_per_second == pytest.approx(1e8 / one.total_seconds)
    assert 0 < four.efficiency < one.efficiency == pytest.approx(1.0)


def test_ranges_widen_beyond_what_was_measured() -> None:
    """Would catch a guess that looks like a measurement."""
    near = forecast(recipe(batch_size=64), 1e8, Fleet(DEVICE, LINK, 20))
    far = forecast(recipe(batch_size=2000), 1e8, Fleet(DEVICE, LINK, 2000))
    assert not near.extrapolated
    assert near.factor == pytest.approx(1.2)
    assert far.extrapolated
    assert far.factor == pytest.approx(1.2**3)


def test_what_breaks_first() -> None:
    """Would catch a forecast that does not say what to do."""
    slow = Link("slow", 1e6, 1e-3, 0.2)
    assert "the sum of gradients takes" in forecast(recipe(), 1e8, Fleet(DEVICE, slow, 4)).notes[0]
    few = forecast(recipe(batch_size=32), 1e12, Fleet(DEVICE, LINK, 16))
    assert any("2 rows are left for each process" in note for note in few.notes)
    assert any("TB of tokens" in note for note in few.notes)
    with pytest.raises(ValueError, match="batch_size 32 has fewer rows than the 64 processes"):
        forecast(recipe(batch_size=32), 1e8, Fleet(DEVICE, LINK, 64))
    for tokens in (math.inf, math.nan, 0, -1e9, 1e19):
        with pytest.raises(ValueError, match=r"tokens must be above 0 and at most 1e\+18, got"):
            forecast(recipe(), tokens, Fleet(DEVICE, LINK))
    with pytest.raises(ValueError, match="machines must be at least 1, got 0"):
        Fleet(DEVICE, LINK, 0)


def test_command_line() -> None:
    """Would catch a verb that cannot be called, and a device that is not there."""
    more = ["--machines", "8", "--set", "batch_size=256", "--device", "gpu-graph", "--link", "100gbit"]
    result = CliRunner().invoke(app, ["plan", "--tokens", "1e12", *more, "--json"])
    found = json.loads(result.stdout)
    assert found["total_seconds_low"] < found["total_seconds"] < found["total_seconds_high"]
    table = CliRunner().invoke(app, ["plan", "--tokens", "5e7"]).stdout
    assert "tokens per second" in table
    assert {"cpu", "gpu", "gpu-graph"} <= devices().keys()
    assert {"loopback", "10gbit"} <= links().keys()
    error = CliRunner().invoke(app, ["plan", "--tokens", "1", "--device", "tpu"]).exception
    assert "--device must be one of" in str(error)
