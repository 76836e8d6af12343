"""Several processes that train one model on this machine, without torchrun: the first one starts the others.

    python -m rhapsode.training.worker RUN_DIRECTORY DEVICE SECONDS PARTS        what it starts

The first one has read the data and made the run directory before; the others find both there. They have a session of
their own, so that Ctrl-C reaches the first one alone, which tells them; and they end when it does.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed

from rhapsode.progress import silent
from rhapsode.terminal import EXIT_STOPPED, ToldElsewhere, told
from rhapsode.threads import fixed_threads
from rhapsode.training.followed import FollowedRun
from rhapsode.training.group import Group, joined, together
from rhapsode.training.loop import train_run
from rhapsode.training.start import resume

END_SECONDS = 10.0  # for a worker to end by itself
HERE = "127.0.0.1"


@contextmanager
def started(path: Path, count: int, device: str, seconds: float, accumulate: int) -> Iterator[Group]:
    """Starts `count` - 1 processes that train the run in `path` with this one; yields the group of them all.

    They share the threads that PyTorch has here, each with as many throughout. Raises ChildProcessError with one line
    where one of them ends early.
    """
    threads = max(1, torch.get_num_threads() // count)
    wait = timedelta(seconds=seconds)
    store = distributed.TCPStore(HERE, 0, None, True, wait, wait_for_workers=False)
    shared = {"MASTER_ADDR": HERE, "MASTER_PORT": str(store.port), "WORLD_SIZE": str(count)}
    shared |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "GLOO_SOCKET_IFNAME": _loopback()}
    command = [sys.executable, "-m", "rhapsode.training.worker", str(path), device, f"{seconds:g}", str(accumulate)]
    before = os.environ.get("GLOO_SOCKET_IFNAME")
    os.environ["GLOO_SOCKET_IFNAME"] = shared["GLOO_SOCKET_IFNAME"]
    workers: dict[int, subprocess.Popen[bytes]] = {}
    try:
        for rank in range(1, count):
            own = {**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            workers[rank] = subprocess.Popen(command, env=own, stdin=subprocess.DEVNULL, start_new_session=True)
        with (
            fixed_threads(threads),
            together(store, 0, count, device, seconds, on_wait=lambda: _check(workers)) as group,
        ):
            group.on_loss = lambda: _what_became(workers)
            yield group
    finally:
        _end(workers)
        if before is None:
            del os.environ["GLOO_SOCKET_IFNAME"]
        else:
            os.environ["GLOO_SOCKET_IFNAME"] = before


def _loopback() -> str:
    """The network interface through which a machine speaks to itself: lo, or lo0 on a Mac."""
    return next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")


def _what_became(workers: dict[int, "subprocess.Popen[bytes]"]) -> str | None:
    """How a worker ended, where one did."""
    for rank, worker in workers.items():
        code = worker.poll()
        if code is not None and code < 0:
            return f"process {rank} was killed by {signal.Signals(-code).name}"
        if code is not None:
            return f"process {rank} ended with exit code {code}"
    return None


def _check(workers: dict[int, "subprocess.Popen[bytes]"]) -> None:
    for worker in workers.values():
        if worker.poll() == 2:
            raise ToldElsewhere("a training process could not begin")
    if became := _what_became(workers):
        raise ChildProcessError(f"a training process could not begin: {became}")


def _end(workers: dict[int, "subprocess.Popen[bytes]"]) -> None:
    """Waits for the workers, and ends those that do not end by themselves."""
    until = time.monotonic() + END_SECONDS
    for worker in workers.values():
        try:
            worker.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()


def main(arguments: list[str]) -> int:
    """A worker: (run directory, device, seconds to wait for others, parts) -> exit code."""
    path, device, seconds, accumulate = arguments
    try:
        with silent(), fixed_threads(torch.get_num_threads()), joined(device, float(seconds)) as group:
            ready = resume(Path(path), as_begun=True, kind=FollowedRun)
            stores = ready.train, ready.valid
            ended = train_run(ready.run, *stores, device, show=False, group=group, accumulate=int(accumulate)).ended
    except ToldElsewhere:
        return 2
    except (ValueError, OSError, FloatingPointError, MemoryError, RuntimeError) as error:
        print(f"rhapsode: training process {os.environ['RANK']}: {told(error)}", file=sys.stderr)
        return 2
    return EXIT_STOPPED if ended == "interrupted" else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
