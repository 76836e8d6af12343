"""The same faults in whole processes: strace makes system calls of `rhapsode train` fail, as a disk would.

What the shim does not see, C code that writes and the moments of start and end, is in here. The command ends well or
with exit code 2 and one line; no traceback; --resume, or the same command again, ends where it would have ended anyway;
only best weights of which the command said that they are not kept may be missing.
"""

import os
import random
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

from harness import NotHere, Tally, Unit
from kill_and_resume import digests, write_data

CALLS = ("write", "fsync", "rename", "mkdir", "openat", "ftruncate")
ERRORS = ("ENOSPC", "EIO", "EROFS", "EACCES", "EDQUOT", "EINTR")
TRIES, SMALL_TRIES = 60, 1
SETTINGS = (
    *("embed_dim=8", "hidden_dim=8", "key_dim=4", "value_dim=4", "window=16", "batch_size=4", "checkpoint_seconds=0"),
    *("validations=2", "kind=stacked", "num_layers=1"),
)
TRACED = re.compile(r"^(\d+) +(\w+)\((.*)")


def units(small: bool) -> list[Unit]:
    if shutil.which("strace") is None:
        raise NotHere("strace is not installed (Debian's package strace)")
    tried = subprocess.run(["strace", "-f", "-o", os.devnull, "true"], capture_output=True, text=True)
    if tried.returncode:
        raise NotHere(f"strace may not trace here: {tried.stderr.strip().splitlines()[-1]}")
    return [("rhapsode train", partial(fail_processes, SMALL_TRIES if small else TRIES))]


def _command(folder: Path, out: Path) -> list[str]:
    settings = [f"--set={each}" for each in SETTINGS]
    data = [str(folder / "train.jsonl"), "--valid", str(folder / "valid.jsonl"), "--vocab-size", "300"]
    budget = ["--sequences", "24", "--threads", "1"]
    return [sys.executable, "-m", "rhapsode", "train", *data, "--out", str(out), *budget, *settings]


def _run(command: list[str], place: Path, *strace: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "RHAPSODE_CACHE": str(place / "cache"), "OMP_NUM_THREADS": "1"}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1"}
    traced = ["strace", "-f", "-qq", *strace, *command] if strace else command
    return subprocess.run(traced, env=environment, capture_output=True, text=True, timeout=300)


def _own_calls(place: Path, folder: Path) -> list[tuple[str, int]]:
    """Which of its calls, by kind and number, a training's first process makes to its own folders.

    Numbers count its main thread's, as strace does where it is told which call to let fail.
    """
    trace = folder / "trace"
    result = _run(_command(folder, place / "run"), place, "-y", "-o", str(trace), "-e", f"trace={','.join(CALLS)}")
    assert result.returncode == 0, result.stderr
    numbers = dict.fromkeys(CALLS, 0)
    found = []
    lines = [TRACED.match(line) for line in trace.read_text(errors="replace").splitlines()]
    main = next(match[1] for match in lines if match)
    for match in lines:
        if match and match[1] == main and match[2] in numbers:
            numbers[match[2]] += 1
            if str(place) in match[3]:
                found.append((match[2], numbers[match[2]]))
    return found


def fail_processes(tries: int, seed: int, folder: Path) -> Tally:
    """A fault that hit nothing, or a file which is not ours, a package's or the system's, as calls do not come in the
    same order every time, is drawn again."""
    write_data(folder)
    calls = _own_calls(folder / "straight", folder)
    straight = folder / "straight" / "run"
    draw, tally = random.Random(seed), Tally(facts={"calls": len(calls), "drawn again": 0})
    for number in range(3 * tries):
        if tally.tries == tries:
            break
        (call, count), error, for_good = draw.choice(calls), draw.choice(ERRORS), draw.random() < 0.5
        last = count
        while for_good and error != "EINTR" and (call, last + 1) in calls:  # as long as they are ours
            last += 1
        place = folder / f"try-{number}"
        fault = f"inject={call}:error={error}:when={count}..{last}"
        try:
            tally.note_of(partial(_one, folder, place, call, fault, straight), fault)
        except NotOurs:
            tally.facts["drawn again"] += 1
        shutil.rmtree(place, ignore_errors=True)
    return tally


class NotOurs(BaseException):
    """The fault hit nothing, or a file outside of the training's folders."""


def _one(folder: Path, place: Path, call: str, fault: str, straight: Path) -> None:
    place.mkdir()
    command, trace = _command(folder, place / "run"), folder / f"{place.name}.trace"
    result = _run(command, place, "-y", "-o", str(trace), "-e", f"trace={call}", "-e", fault)
    hit = [line for line in trace.read_text(errors="replace").splitlines() if "(INJECTED)" in line]
    if not hit or any(str(place) not in line for line in hit):
        raise NotOurs
    assert "Traceback" not in result.stderr, result.stderr[-600:]
    assert result.returncode in (0, 2), f"exit code {result.returncode}: {result.stderr[-300:]}"
    again = _run([*command, "--resume"], place)
    assert again.returncode == 0, again.stderr[-600:]
    kept = "these best weights are not kept" not in result.stderr
    assert digests(place / "run", kept) == digests(straight, kept), "another end"
