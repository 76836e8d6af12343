"""Several processes that train together, forked off a server of processes that has no threads.

A fork takes along the locks that other threads hold, for good; and whoever trained, tokenized or served has threads.
"""

import pickle
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import Any

import cloudpickle
import torch
from clean_processes import context_with, stop_server
from torch import distributed

from rhapsode.training.group import Group, together

HERE = "127.0.0.1"
LONGEST_SECONDS = 600.0  # to end a hang, not to measure a machine: the first to be forked waits for imports


def in_processes(size: int, work: Callable[[Group], Any], seconds: float = 120.0) -> list[Any]:
    """What `work` gives in each of `size` processes, by rank; an exception is given back as it is.

    seconds: how long they wait for one that gives no sign.
    work: may be defined inside of a test; what it refers to is pickled. What a test has patched is not patched there.
    """
    store = distributed.TCPStore(HERE, 0, None, True, timedelta(seconds=seconds), wait_for_workers=False)
    context, packed = _context(), cloudpickle.dumps(work)
    pipes, processes = [], []
    for rank in range(size):
        here, there = context.Pipe(duplex=False)
        processes.append(context.Process(target=_run, args=(rank, size, store.port, packed, seconds, there)))
        pipes.append(here)
        processes[-1].start()
        there.close()
    try:
        found = [_received(pipe) for pipe in pipes]
    finally:
        for process in processes:
            process.join(1.0)
            process.kill()
            process.join()
    return found


@cache
def _context() -> Any:
    """How processes are begun; the first optimiser of a process asks for _dynamo, which takes seconds."""
    stop_server()
    return context_with("torch._dynamo", "rhapsode.training", "pytest")


def _received(pipe: Any) -> Any:
    if not pipe.poll(LONGEST_SECONDS):
        return TimeoutError(f"nothing in {LONGEST_SECONDS} s")
    try:
        return pickle.loads(pipe.recv_bytes())
    except EOFError:
        return None  # it was killed


def _run(rank: int, size: int, port: int, packed: bytes, seconds: float, pipe: Any) -> None:
    torch.set_num_threads(1)
    store = distributed.TCPStore(HERE, port, None, False, timedelta(seconds=seconds))
    try:
        with together(store, rank, size, "cpu", seconds) as group:
            found = pickle.loads(packed)(group)
        pipe.send_bytes(cloudpickle.dumps(found))
    except BaseException as error:
        pipe.send_bytes(cloudpickle.dumps(error))
