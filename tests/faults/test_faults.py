"""Every part of `make faults`, at a size of seconds: nothing is lost, nothing is silently wrong."""

from pathlib import Path
from typing import Any

import damage
import every_write
import kills
import power_cut
import pytest
from harness import Tally, Unit

import rhapsode.files

SEED = 0


def all_survive(tally: Tally) -> None:
    assert tally.tries
    assert tally.lost == []
    assert tally.survived == tally.tries


def ids(units: list[Unit]) -> Any:
    return pytest.mark.parametrize("unit", units, ids=[name for name, _ in units])


@ids(every_write.units(small=True))
def test_every_write_fails_once(unit: Unit, tmp_path: Path) -> None:
    """Would catch a file that is lost or half there, a message without a way out, and litter."""
    all_survive(unit[1](SEED, tmp_path))


@ids(damage.units(small=True))
def test_damage(unit: Unit, tmp_path: Path) -> None:
    """Would catch a flipped bit that is another number, and a traceback."""
    all_survive(unit[1](SEED, tmp_path))


@ids(kills.units(small=True))
def test_kills_inside_every_kind_of_write(unit: Unit, tmp_path: Path) -> None:
    """Would catch what only works if the process lives on: a half file with its name, litter, another end."""
    all_survive(unit[1](SEED, tmp_path))


@ids(power_cut.units(small=True))
def test_power_cuts(unit: Unit, tmp_path: Path) -> None:
    """Would catch what is announced as saved before it is on the disk: contents, and names in folders."""
    all_survive(unit[1](SEED, tmp_path))


@pytest.mark.parametrize("forgotten", ["sync_directory", "_sync"])
def test_the_simulated_disk_notices_what_is_not_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forgotten: str
) -> None:
    """Would catch a simulated disk that forgets nothing, on which every program would pass."""
    monkeypatch.setattr(rhapsode.files, forgotten, lambda path: None)
    assert power_cut.cut_training(40, 0, SEED, tmp_path).lost
