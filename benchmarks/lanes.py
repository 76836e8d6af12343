"""Work in lanes: commands that run at the same time, each lane on a core of its own with one thread.

    python benchmarks/lanes.py 1 PID python -c "..."   a command on core 1, which ends when its parent PID does

Whatever else the machine does hits both lanes, so that differences between them count, and seconds do not.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
SECONDS_BETWEEN_LOOKS = 0.2
PR_SET_PDEATHSIG = 1  # of Linux, prctl.h: a signal for the child whose parent is gone


class Command(NamedTuple):
    """A command, and the variables of its surroundings that are to be otherwise. output: where its stdout goes."""

    words: Sequence[str]
    output: Path
    environment: dict[str, str] | None = None


def cores() -> list[int]:
    """The cores that this process may use; on systems that do not say, all of them."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def run_lanes(
    lanes: Sequence[Sequence[Command]], pinned: bool = True, on_seconds: Callable[[float], None] | None = None
) -> list[str | None]:
    """Runs the commands of each lane one after the other, all lanes at once; on_seconds hears how time goes by.

    pinned: each lane on a core of its own with one thread; otherwise as the commands themselves choose. Returns for
    each lane None, or what it failed of: a lane whose command fails runs no further, the others do. Raises ValueError
    where there are fewer cores than lanes. When it ends, however it ends, nothing of it runs any more.
    """
    here = cores()
    if pinned and len(here) < len(lanes):
        raise ValueError(f"{len(lanes)} trainings at once need a core each; this process may use {len(here)}")
    waiting = [list(lane) for lane in lanes]
    running: list[subprocess.Popen[bytes] | None] = [None] * len(lanes)
    failed: list[str | None] = [None] * len(lanes)
    begun = time.monotonic()
    try:
        while any(waiting) or any(running):
            for i, process in enumerate(running):
                if process is not None and process.poll() is None:
                    continue
                if process is not None and process.returncode:
                    failed[i], waiting[i] = _last_words(lanes[i][-1 - len(waiting[i])], process.returncode), []
                running[i] = _start(waiting[i].pop(0), here[i] if pinned else None) if waiting[i] else None
            time.sleep(SECONDS_BETWEEN_LOOKS)
            if on_seconds:
                on_seconds(time.monotonic() - begun)
    finally:
        for process in running:
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()
    return failed


def _start(command: Command, core: int | None) -> "subprocess.Popen[bytes]":
    """Starts a command in a session of its own: the terminal's Ctrl-C reaches this process alone."""
    where = "-" if core is None else str(core)
    launcher = [sys.executable, str(Path(__file__).resolve()), where, str(os.getpid())]
    own = {name: value for name, value in os.environ.items() if name not in ONE_THREAD}
    surroundings = {**own, **(ONE_THREAD if core is not None else {}), **(command.environment or {})}
    with command.output.open("wb") as out, command.output.with_suffix(".err").open("wb") as err:
        return subprocess.Popen(
            [*launcher, *command.words],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env=surroundings,
            start_new_session=True,
        )


def _last_words(command: Command, code: int) -> str:
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    said = command.output.with_suffix(".err").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return said[-1] if said else f"exit code {code}"


def main(core: str, parent: str, *words: str) -> None:
    """Becomes the command, on this core (`-`: on any), as long as the process that started it is there."""
    if core != "-" and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core)})
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):  # it went before the line above
        return
    os.execvp(words[0], words)


if __name__ == "__main__":
    main(*sys.argv[1:])
