"""A power cut at every moment of a training, a creation, a preparation: what was announced as saved is there then.

On the simulated disk of simulated_disk.py, which forgets all that was not flushed, names in folders too.
"""

import random
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from every_write import WORKS, Work
from harness import Tally, Unit
from material import Material, an_hour_passes, end_of, leftovers, material, new_run, trained, using_cache
from simulated_disk import WAYS, Recording, after, recording

import rhapsode
from rhapsode.progress import silent
from rhapsode.run import Run
from rhapsode.tensors import checksum

SMALL_TRIES, RESUMED = 40, 6  # in the suite: moments that are looked at, and trainings that are resumed from one


def units(small: bool) -> list[Unit]:
    left_out = ("training and its saves", "a study's report" if small else "")  # which takes seconds to begin
    works = [work for work in WORKS if work.name not in left_out]
    return [
        ("training", partial(cut_training, SMALL_TRIES if small else 0, RESUMED if small else 200)),
        *((work.name, partial(cut_work, work, SMALL_TRIES // 6 if small else 0)) for work in works),
    ]


def _moments(found: Recording, most: int, draw: random.Random) -> list[tuple[int, str]]:
    cases = [(moment, way) for moment in range(len(found.operations) + 1) for way in WAYS]
    return sorted(draw.sample(cases, most)) if most and most < len(cases) else cases


def cut_training(most: int, resumed: int, seed: int, folder: Path) -> Tally:
    """A run is created and trained, a checkpoint after each step; then the power is cut at every operation."""
    made, draw = material(folder / "made"), random.Random(seed)
    disk, before = folder / "disk", folder / "before"
    disk.mkdir()
    before.mkdir()
    weights: dict[int, str] = {}  # what was saved at each step

    def on_event(event: Any) -> None:
        if type(event).__name__ == "Saved":
            found.announce(event.step)
            checkpoint = Run.open(disk / "runs" / "run").load("last")
            assert checkpoint is not None
            weights[event.step] = checksum(checkpoint.tensors, "")

    with silent():
        with recording(disk, before) as found:
            run = new_run(made, disk / "runs" / "run")
            found.announce(0)
            trained(made, run, on_event=on_event)
        expected = end_of(run)
        cases = _moments(found, most, draw)
        again = set(draw.sample(range(len(cases)), min(resumed, len(cases))))
        tally = Tally(facts={"operations": len(found.operations), "resumed to the end": len(again)})
        for i, (moment, way) in enumerate(cases):
            left = folder / "left"
            shutil.rmtree(left, ignore_errors=True)
            after(found, moment, way, random.Random(f"{seed} {moment} {way}"), left)
            check = partial(_training_survives, made, left / "runs" / "run", found.announced(moment), weights,
                            expected if i in again else None)  # fmt: skip
            tally.note_of(check, f"after {moment} of {len(found.operations)}, {way}")
    return tally


def _training_survives(
    made: Material, path: Path, announced: int | None, weights: dict[int, str], expected: dict[str, Any] | None
) -> None:
    if announced is None and not (path / "run.json").exists():
        assert not path.exists(), "a run directory without a run"
        new_run(made, path)
    run = Run.open(path)
    assert run.tokenizer.fingerprint == made.tokenizer.fingerprint
    checkpoint = run.load("last")
    step = checkpoint.progress["step"] if checkpoint else 0
    assert step >= (announced or 0), f"step {announced} was announced as saved, {step} is there"
    if checkpoint:
        assert checksum(checkpoint.tensors, "") == weights[step], "a checkpoint that was never saved"
    run.load("best")
    run.metrics()
    assert all(file.problem is None for file in rhapsode.check(path)), rhapsode.check(path)
    if expected is not None:
        trained(made, run)
        assert end_of(run) == expected, "another end"
        assert not leftovers(path.parent), leftovers(path.parent)


def cut_work(work: Work, most: int, seed: int, folder: Path) -> Tally:
    """A work that is announced when it ends: what it made is there whole then, and whole or not at all before."""
    made, draw = material(folder / "made"), random.Random(seed)
    disk, before = folder / "disk", folder / "before"
    before.mkdir()
    with silent(), using_cache(folder / "cache-of-all"):
        work.before(made, before)
        shutil.copytree(before, disk)
        with recording(disk, before) as found:
            work.act(made, disk)
            found.announce(1)
        expected = work.result(made, disk)
        cases = _moments(found, most, draw)
        tally = Tally(facts={"operations": len(found.operations)})
        for moment, way in cases:
            left = folder / "left"
            shutil.rmtree(left, ignore_errors=True)
            after(found, moment, way, random.Random(f"{seed} {moment} {way}"), left)
            check = partial(_work_survives, work, made, left, found.announced(moment) is not None, expected)
            tally.note_of(check, f"{work.name}: after {moment} of {len(found.operations)}, {way}")
    return tally


def _work_survives(work: Work, made: Material, left: Path, announced: bool, expected: Any) -> None:
    if announced:
        assert work.result(made, left) == expected, "announced, and not there"
    if work.sweeps_after_an_hour:
        an_hour_passes(left)
    work.act(made, left)
    assert work.result(made, left) == expected, "another result afterwards"
    assert not leftovers(left), leftovers(left)
