"""Several processes that train together, forked off a test: they share what it has imported and made."""

import multiprocessing
import pickle
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch._dynamo  # the first optimiser of a process asks for it, which takes seconds: once, before they are forked
from torch import distributed

from rhapsode.training.group import Group, together

HERE = "127.0.0.1"
LONGEST_SECONDS = 100.0


def in_processes(size: int, work: Callable[[Group], Any], seconds: float = 20.0) -> list[Any]:
    """What `work` gives in each of `size` processes, by rank; an exception is given back as it is."""
    store = distributed.TCPStore(HERE, 0, None, True, timedelta(seconds=seconds), wait_for_workers=False)
    forking = multiprocessing.get_context("fork")
    pipes, processes = [], []
    for rank in range(size):
        here, there = forking.Pipe(duplex=False)
        processes.append(forking.Process(target=_run, args=(rank, size, store.port, work, seconds, there)))
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


def _received(pipe: Any) -> Any:
    if not pipe.poll(LONGEST_SECONDS):
        return TimeoutError(f"nothing in {LONGEST_SECONDS} s")
    try:
        return pickle.loads(pipe.recv_bytes())
    except EOFError:
        return None  # it was killed


def _run(rank: int, size: int, port: int, work: Callable[[Group], Any], seconds: float, pipe: Any) -> None:
    torch.set_num_threads(1)  # the threads of the test's own process did not come along
    store = distributed.TCPStore(HERE, port, None, False, timedelta(seconds=seconds))
    try:
        with together(store, rank, size, "cpu", seconds) as group:
            found = work(group)
        pipe.send_bytes(pickle.dumps(found))
    except BaseException as error:
        pipe.send_bytes(pickle.dumps(error))
