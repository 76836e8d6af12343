"""Kills and signals: the run ends, bit by bit, where it would have ended anyway, and metrics.jsonl has each step once.

Two ways: real processes of `rhapsode train`, killed at moments drawn from a seed as kill_and_resume.py does, with
SIGTERM and SIGINT among them; and a child that kills itself before its n-th operation on a file, so that every write,
flush, rename and mkdir of all that Rhapsode does is once the last thing that it did not do.
"""

import os
import random
import shutil
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from every_write import WORKS, Work
from harness import Tally, Unit
from kill_and_resume import STEPS, Life, digests, last_step, uninterrupted, write_data
from material import Material, an_hour_passes, leftovers, material, using_cache
from shim import KILL, Watched, failing, watching

from rhapsode.progress import silent
from rhapsode.run import Run
from rhapsode.terminal import EXIT_STOPPED

LIVES, KILLS_OF_A_LIFE = 15, 14  # 210 times SIGKILL, the other signals beside them
SMALL_POINTS = 4  # of a work, in the suite
MOST_ENDS = 20  # of a life, before all kills
STARTING = 0.15  # of the kills come while the process starts
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def units(small: bool, group: str = "1") -> list[Unit]:
    """group: 1, kills inside every kind of write and half of those at random moments, or 2, the other half."""
    inside = [(f"inside {work.name}", partial(kill_inside, work, SMALL_POINTS if small else 0)) for work in WORKS]
    if small:
        return inside if group == "1" else []
    lives = [(f"life {i + 1}", partial(kill_at_random, i)) for i in range(LIVES)]
    return [*inside, *lives[: LIVES // 2]] if group == "1" else lives[LIVES // 2 :]


def kill_inside(work: Work, most: int, seed: int, folder: Path) -> Tally:
    """Each operation on a file is once the one before which the process dies."""
    made = material(folder / "made")
    before, undisturbed = folder / "before", folder / "undisturbed"
    before.mkdir()
    with silent(), using_cache(folder / "cache-of-all"):
        work.before(made, before)
        shutil.copytree(before, undisturbed)
        kinds: list[str] = []
        with watching(Watched(undisturbed, lambda number, operation: kinds.append(operation.kind))):
            work.act(made, undisturbed)
        expected = work.result(made, undisturbed)
        numbers = [number for number, kind in enumerate(kinds, start=1) if kind != "look"]
        if most and most < len(numbers):
            numbers = sorted(random.Random(f"{seed} {work.name}").sample(numbers, most))
        tally = Tally(facts={"operations": len(kinds)})
        for number in numbers:
            check = partial(_killed_inside, work, made, before, folder / "now", number, expected)
            tally.note_of(check, f"{work.name}: killed before {number} ({kinds[number - 1]})")
    return tally


def _killed_inside(work: Work, made: Material, before: Path, now: Path, number: int, expected: Any) -> None:
    shutil.rmtree(now, ignore_errors=True)
    shutil.copytree(before, now)
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        with watching(Watched(now, failing(number, KILL, False))):
            try:
                work.act(made, now)
            finally:
                os._exit(7)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"was not killed, exit code {os.waitstatus_to_exitcode(status)}"
    if work.sweeps_after_an_hour:
        an_hour_passes(now)
    work.act(made, now)
    assert work.result(made, now) == expected, "another result afterwards"
    assert not leftovers(now), leftovers(now)


def kill_at_random(life: int, seed: int, folder: Path) -> Tally:
    """One run, stopped again and again by SIGKILL, SIGTERM and SIGINT, beside one that nothing stops."""
    torch.set_num_threads(1)
    write_data(folder)
    straight, start = uninterrupted(folder)
    expected = digests(straight)
    draw = random.Random(f"{seed} {life}")
    out, tally = folder / "stopped", Tally()
    doing: dict[str, int] = {}
    number = kills = ends = 0
    while kills < KILLS_OF_A_LIFE:
        process = Life(folder, out, *(["--resume"] if number else []))
        number += 1
        if draw.random() < STARTING:
            time.sleep(draw.uniform(0.05, start))
        else:
            process.wait_for_work()
            process.wait_for_steps(draw.randint(0, 6))
            time.sleep(draw.uniform(0, 0.02))
        if process.process.poll() is not None:  # on a busy machine we may look too late; then another run begins
            ends += 1
            tally.note_of(
                partial(_has_ended, process, out, expected), f"end {ends} of run {life + 1}, before all kills"
            )
            if ends == MOST_ENDS:
                tally.note(f"run {life + 1} ended {ends} times before {KILLS_OF_A_LIFE} kills")
                break
            shutil.rmtree(out)
            number = 0
            continue
        number_of_signal = draw.choice(SIGNALS)
        if number_of_signal == signal.SIGKILL:
            kills += 1
            kill = process.kill()
            doing[kill.doing] = doing.get(kill.doing, 0) + 1
        else:
            name = signal.Signals(number_of_signal).name
            doing[name] = doing.get(name, 0) + 1
        tally.note_of(partial(_is_whole, process, number_of_signal), f"stop {number} of run {life + 1}")
    tally.note_of(partial(_ends_as_if_undisturbed, folder, out, expected), f"the end of run {life + 1}")
    tally.facts = {"SIGKILL": kills, **doing}
    return tally


def _ends_as_if_undisturbed(folder: Path, out: Path, expected: dict[str, str]) -> None:
    _has_ended(Life(folder, out, "--resume"), out, expected)


def _has_ended(process: Life, out: Path, expected: dict[str, str]) -> None:
    process.finish()
    assert digests(out) == expected, "ended elsewhere"
    for event in ("train", "valid"):
        steps = [entry["step"] for entry in Run.open(out).metrics() if entry["event"] == event]
        assert len(steps) == len(set(steps)), f"a step's {event} is twice in metrics.jsonl"


def _is_whole(process: Life, number_of_signal: signal.Signals) -> None:
    """What is left by a process that was killed, or is told to stop now, which saves and says so by its exit code."""
    out = process.out
    if number_of_signal != signal.SIGKILL:
        trained = bool(process.told())
        process.process.send_signal(number_of_signal)
        _, errors = process.process.communicate(timeout=60)
        code = process.process.returncode
        assert not trained or code == EXIT_STOPPED or last_step(out) == STEPS, f"exit code {code}: {errors[-300:]}"
    if (out / "run.json").exists():
        run = Run.open(out)
        run.load("last")
        run.load("best")
