"""Hosts that are cut off from each other: network namespaces with a cable between them, which is pulled.

Each end says so in one line within a bounded time, and the run continues when it is started again, with fewer hosts or
with more, on the curve of one process that nothing disturbs.
"""

import contextlib
import ctypes
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
import torch._dynamo  # the first optimiser of a process asks for it: once, before they are forked
from harness import NotHere, Tally, Unit
from kill_and_resume import SETTINGS, last_step, write_data

import rhapsode.api
from rhapsode.run import Run

PEER_SECONDS = 5.0  # in which they also must have found each other
LONGEST_SECONDS = 600  # of a process, which the system ends then
LONGEST_END = 6 * PEER_SECONDS  # in which both hosts have ended
STEPS, ROWS = 24, 6  # of a batch
TOLERANCE = 1e-5
CLONE_NEWNET = 0x40000000
ADDRESSES = ("10.77.31.1", "10.77.31.2")


def units(small: bool) -> list[Unit]:
    cases = [(1, 6), (3, 6)] if small else [(1, 0), (1, 6), (3, 6), (1, 13), (3, 13), (2, 17)]
    return [
        (f"a host cut off at step {step}, {after} processes afterwards", partial(cut_off, step, after))
        for after, step in cases
    ]


def cut_off(step: int, after: int, seed: int, folder: Path) -> Tally:
    """Pulls the cable between two hosts after this step, and continues with `after` processes.

    It is pulled between two moments of theirs: they stand still meanwhile, so that they do not end before it is out.
    """
    write_data(folder)
    tally = Tally()
    draw, port = random.Random(f"{seed} {step} {after}"), free_port()
    wait(train(folder, "straight"))
    with cable() as hosts:
        begun = [
            train(folder, "run", rank, 2, host, ADDRESSES[0], interface, port)
            for rank, (host, interface) in enumerate(hosts)
        ]
        while (last_step(folder / "run") if (folder / "run").exists() else 0) < step and not any(map(has_ended, begun)):
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.1))
        for pid in begun:
            os.kill(pid, signal.SIGSTOP)
        command("ip", "-n", hosts[0][0], "link", "set", hosts[0][1], "down")
        pulled = time.monotonic()
        for pid in begun:
            os.kill(pid, signal.SIGCONT)
        codes = [wait(pid) for pid in begun]
        seconds = time.monotonic() - pulled
    lines = [said(folder, "run", rank) for rank in range(2)]
    tally.facts = {"seconds until both hosts had ended": round(seconds, 1), "lines": lines}
    tally.note(None if codes == [2, 2] and seconds < LONGEST_END else f"exit codes {codes} after {seconds:.1f} s")
    tally.note(None if [len(each) for each in lines] == [1, 1] else f"not a line of each host: {lines}")
    again = [train(folder, "run", rank, after, None, "127.0.0.1", "lo", port) for rank in range(after)]
    codes = [wait(pid) for pid in again]
    run, straight = Run.open(folder / "run").metrics(), Run.open(folder / "straight").metrics()
    same = len(run) == len(straight) and all(
        one["step"] == other["step"] and abs(one["train_loss"] / other["train_loss"] - 1) < TOLERANCE
        for one, other in zip(run, straight, strict=True)
    )
    tally.note(None if codes == [0] * after and same else f"the curve is broken, exit codes {codes}: {run}")
    return tally


@contextlib.contextmanager
def cable() -> Iterator[list[tuple[str, str]]]:
    """Two network namespaces with a cable between them: the names of both, and of the cable's end in each."""
    names = [f"rhapsode{os.getpid()}{end}" for end in "ab"]
    ends = [f"rh{os.getpid()}{end}" for end in "ab"]
    made = []
    try:
        for name in names:
            command("ip", "netns", "add", name)
            made.append(name)
        command(
            *["ip", "link", "add"],
            ends[0],
            "netns",
            names[0],
            *["type", "veth", "peer", "name"],
            ends[1],
            "netns",
            names[1],
        )
        for name, end, address in zip(names, ends, ADDRESSES, strict=True):
            command("ip", "-n", name, "addr", "add", f"{address}/24", "dev", end)
            for link in ("lo", end):
                command("ip", "-n", name, "link", "set", link, "up")
        yield list(zip(names, ends, strict=True))
    finally:
        for name in made:
            command("ip", "netns", "del", name)


def command(*words: str) -> None:
    """Runs a command of the system; NotHere where that is not permitted, or where there is no such command."""
    try:
        subprocess.run(words, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise NotHere("no network namespaces: there is no command `ip` here") from None
    except subprocess.CalledProcessError as error:
        raise NotHere(f"no network namespaces: {error.stderr.strip()}") from None


def train(
    folder: Path,
    name: str,
    rank: int = 0,
    size: int = 1,
    host: str | None = None,
    address: str = "",
    interface: str = "",
    port: int = 0,
) -> int:
    """`rhapsode train` in a process forked off this one, on a host; returns its number."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        log = os.open(folder / f"{name}.{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115 (not pytest's)
        if host is not None:
            with open(f"/run/netns/{host}") as namespace:
                if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
        os.environ |= {"RHAPSODE_CACHE": str(folder / "cache")}
        if size > 1:
            os.environ |= {"WORLD_SIZE": str(size), "RANK": str(rank), "LOCAL_RANK": "0" if host else str(rank)}
            os.environ |= {"MASTER_ADDR": address, "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": interface}
        torch.set_num_threads(1)
        signal.alarm(LONGEST_SECONDS)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        code = _train(folder, name)
    finally:
        os._exit(code)
    return 0


def _train(folder: Path, name: str) -> int:
    from rhapsode.cli import main

    settings = [f"--set={key}={value}" for key, value in SETTINGS.items()]
    data = [str(folder / "train.jsonl"), "--valid", str(folder / "valid.jsonl"), "--vocab-size", "300"]
    options = ["--sequences", str(STEPS * ROWS), "--threads", "1", "--peer-timeout", f"{PEER_SECONDS:g}", "--resume"]
    own = [f"--set=batch_size={ROWS}", "--set=validations=4"]
    sys.argv = ["rhapsode", "train", *data, "--out", str(folder / name), *options, *settings, *own]
    try:
        main()
    except SystemExit as ended:
        sys.stdout.flush()
        sys.stderr.flush()
        return int(ended.code or 0)
    return 0


def free_port() -> int:
    """A port of this machine at which nothing listens now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def has_ended(pid: int) -> bool:
    """Whether a process that was begun here has ended; `wait` still gives its exit code."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def said(folder: Path, name: str, rank: int) -> list[str]:
    """The errors that a process told its user."""
    text = (folder / f"{name}.{rank}.log").read_text(encoding="utf-8", errors="replace")
    return [line for line in text.splitlines() if line.startswith("rhapsode:")]


assert rhapsode.api  # imported before processes are forked
