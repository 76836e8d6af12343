"""Every part of `make faults`, at a size of seconds: nothing is lost, nothing is silently wrong."""

from pathlib import Path
from typing import Any

import damage
import disk_images
import every_write
import hostile_clients
import kills
import large
import numbers_at_the_edge
import power_cut
import pytest
import reliability
import two_at_once
import whole_processes
from harness import PARTS, RESULTS, NotHere, Tally, Unit, run_part

import rhapsode.files

SEED = 0


def all_survive(unit: Unit, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    try:
        tally = unit[1](SEED, folder)
    except NotHere as reason:
        pytest.skip(str(reason))
    assert tally.tries
    assert tally.lost == []
    assert tally.survived == tally.tries


def ids(units: list[Unit]) -> Any:
    return pytest.mark.parametrize("unit", units, ids=[name for name, _ in units])


@ids(every_write.units(small=True))
def test_every_write_fails_once(unit: Unit, tmp_path: Path) -> None:
    """Would catch a file that is lost or half there, a message without a way out, and litter."""
    all_survive(unit, tmp_path)


@ids(damage.units(small=True))
def test_damage(unit: Unit, tmp_path: Path) -> None:
    """Would catch a flipped bit that is another number, and a traceback."""
    all_survive(unit, tmp_path)


@ids(kills.units(small=True))
def test_kills_inside_every_kind_of_write(unit: Unit, tmp_path: Path) -> None:
    """Would catch what only works if the process lives on: a half file with its name, litter, another end."""
    all_survive(unit, tmp_path)


@ids(power_cut.units(small=True))
def test_power_cuts(unit: Unit, tmp_path: Path) -> None:
    """Would catch what is announced as saved before it is on the disk: contents, and names in folders."""
    all_survive(unit, tmp_path)


@pytest.mark.parametrize("forgotten", ["sync_directory", "_sync"])
def test_the_simulated_disk_notices_what_is_not_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forgotten: str
) -> None:
    """Would catch a simulated disk that forgets nothing, on which every program would pass."""
    monkeypatch.setattr(rhapsode.files, forgotten, lambda path: None)
    assert power_cut.cut_training(40, 0, SEED, tmp_path).lost


@pytest.mark.slow
@pytest.mark.parametrize("module", [disk_images, whole_processes], ids=["disks", "processes"])
def test_real_disks_and_processes(module: Any, tmp_path: Path) -> None:
    """Would catch what a simulation cannot know: journals, delayed allocation, C code that writes."""
    try:
        units = module.units(small=True)
    except NotHere as reason:
        pytest.skip(str(reason))
    for unit in units:
        all_survive(unit, tmp_path / unit[0].split()[0])


@pytest.mark.slow
@ids(hostile_clients.units(small=True))
def test_the_server_survives(unit: Unit, tmp_path: Path) -> None:
    """Would catch clients that take all memory, places or time, and one whose stream is another for their sake."""
    all_survive(unit, tmp_path)


@ids(numbers_at_the_edge.units(small=True))
def test_numbers_at_the_edge(unit: Unit, tmp_path: Path) -> None:
    """Would catch a model that is spoilt in silence, and a seed that does not decide all."""
    all_survive(unit, tmp_path)


@pytest.mark.slow
@ids(two_at_once.units(small=True))
def test_several_processes_at_once(unit: Unit, tmp_path: Path) -> None:
    """Would catch two that write into one directory, and a cache that only one process can use."""
    all_survive(unit, tmp_path)


@pytest.mark.slow
@ids([unit for group in ("text", "prompts", "other") for unit in large.units(True, group)])
def test_large_and_long(unit: Unit, tmp_path: Path) -> None:
    """Would catch memory that grows with the text, with a line, with the number of files or of lines."""
    all_survive(unit, tmp_path)


def test_a_part_is_resumed_and_reports_what_it_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a unit that is run twice, one that is left out, and a loss that is not written down."""
    ran: list[str] = []

    def unit(name: str, problem: str | None) -> Unit:
        def run(seed: int, folder: Path) -> Tally:
            ran.append(f"{name} {seed} {folder.is_dir()}")
            tally = Tally()
            tally.note(problem)
            return tally

        return name, run

    class Module:
        @staticmethod
        def units(small: bool) -> list[Unit]:
            return [unit("a", None), unit("b", "all gone"), unit("c", None)]

    monkeypatch.setattr("harness.import_module", lambda name: Module)
    assert list(PARTS)
    begun = run_part("writes", tmp_path, 3, True, 60.0, only="a")
    assert not begun["complete"]
    ended = run_part("writes", tmp_path, 3, True, 60.0)
    assert ended["complete"]
    assert ran == ["a 3 True", "b 3 True", "c 3 True"]
    assert [(each["name"], each["tries"], each["survived"], each["lost"]) for each in ended["units"]] == [
        ("a", 1, 1, []),
        ("b", 1, 0, ["all gone"]),
        ("c", 1, 1, []),
    ]
    run_part("writes", tmp_path, 4, True, 60.0, only="c")
    assert ran[3:] == ["c 4 True"]


def test_the_page_is_that_of_the_results() -> None:
    """Would catch results that nobody made the page of, and numbers in it that no part has found."""
    page = Path(__file__).parents[2] / "docs" / "reliability.md"
    assert reliability.page(reliability.read(RESULTS)) == page.read_text(encoding="utf-8")
