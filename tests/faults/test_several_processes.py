"""The part `group` of `make faults`, at a size of seconds: the end is the undisturbed one, and one line tells why."""

from pathlib import Path

import pytest
import several_processes
from harness import NotHere, Unit

UNITS = several_processes.units(small=True)


@pytest.mark.parametrize("unit", UNITS, ids=[name for name, _ in UNITS])
def test_one_of_several_is_killed_or_cut_off(unit: Unit, tmp_path: Path) -> None:
    """Would catch a restart that finds what dead processes left, state that is not saved, and waits without an end."""
    try:
        tally = unit[1](0, tmp_path)
    except NotHere as reason:
        pytest.skip(str(reason))
    assert tally.lost == []
    assert tally.survived == tally.tries
