"""Stories in tokens, batch by batch in the order of their seeds, made in this process or by several others.

The others are commands of their own. `multiprocessing` would run the caller's main module again in each of them:
with all that it imports, and without end where a script lacks the `__main__` guard. Each makes every n-th batch and
writes it to its standard output; so reading them in turn gives the order of the seeds, and a full pipe makes those
that are ahead wait. When the parent is gone, however it went, the pipe breaks and they end.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rhapsode.storyworld.distribution import Distribution
from rhapsode.storyworld.corpus import load_grammar
from rhapsode.storyworld.sampling import BatchSampler, FragmentTokens

STORIES_PER_BATCH = 8_192
PARALLEL_FROM = 250_000  # stories; for fewer, starting the processes takes longer than they save
MOST_PROCESSES = 8


class TokenBatch(NamedTuple):
    """Stories in tokens: all ids one after the other, and of each story the number of ids and of UTF-8 bytes."""

    tokens: np.ndarray  # (sum of lengths,)
    lengths: np.ndarray  # (stories,) int64
    byte_counts: np.ndarray  # (stories,) int64


@dataclass(frozen=True)
class _Share:
    """What one process makes: of the `count` stories from `seed_start` on, every `step`-th batch from the `first`."""

    split: str
    seed_start: int
    count: int
    first: int
    step: int

    def batches(self, sampler: BatchSampler, table: FragmentTokens) -> Iterator[TokenBatch]:
        for begin in range(self.first * STORIES_PER_BATCH, self.count, self.step * STORIES_PER_BATCH):
            number = min(STORIES_PER_BATCH, self.count - begin)
            numbers, offsets = sampler.sample(self.seed_start + begin, number)
            tokens, starts = table.tokens(numbers, offsets)
            yield TokenBatch(tokens, np.diff(starts), table.byte_counts(numbers, offsets))


def token_batches(
    sampler: BatchSampler, table: FragmentTokens, seed_start: int, count: int, processes: int | None = None
) -> Iterator[TokenBatch]:
    """The stories seed_start .. seed_start + count - 1 in tokens.

    processes: None for as many as pay: one for fewer than PARALLEL_FROM stories, else one per core.
    Raises ChildProcessError with the last line that it said where a process fails. Closing the iterator (as an
    exception in the loop that reads it does) ends the processes.
    """
    if processes is None:
        processes = min(_cores(), MOST_PROCESSES) if count >= PARALLEL_FROM and sys.executable else 1
    processes = min(processes, -(-count // STORIES_PER_BATCH))
    split = sampler.distribution.split
    if processes <= 1:
        yield from _Share(split, seed_start, count, 0, 1).batches(sampler, table)
        return
    workers: list[subprocess.Popen] = []
    try:
        workers.extend(_start() for _ in range(processes))
        for number, worker in enumerate(workers):
            _instruct(worker, _Share(split, seed_start, count, number, processes), table)
        for number in range(-(-count // STORIES_PER_BATCH)):
            yield _read_batch(workers[number % processes], table.ids.dtype)
    finally:
        for worker in workers:
            worker.kill()
        for worker in workers:
            with suppress(BrokenPipeError), worker:  # closes the pipes and waits for the end
                pass


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start() -> subprocess.Popen:
    code = f"import sys; sys.path[:] = {sys.path!r}; from rhapsode.storyworld.parallel import work; work()"
    # In a session of its own Ctrl-C does not reach the process: the parent ends it, without a traceback.
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def _instruct(worker: subprocess.Popen, share: _Share, table: FragmentTokens) -> None:
    ids = [part.tolist() for part in np.split(table.ids, table.starts[1:])[:-1]]
    task = {"share": vars(share), "ids": ids, "end_id": table.end_id, "dtype": table.ids.dtype.name}
    assert worker.stdin is not None
    try:
        worker.stdin.write(json.dumps(task).encode())
        worker.stdin.close()
    except BrokenPipeError:
        raise _failure(worker) from None


def work() -> None:
    """What a process runs: the task as JSON on standard input, batches as bytes on standard output."""
    task = json.load(sys.stdin)
    share = _Share(**task["share"])
    sampler = BatchSampler(Distribution(load_grammar(), share.split))
    ids_of = dict(zip(sampler.fragments, task["ids"], strict=True))
    table = FragmentTokens(sampler.fragments, ids_of.__getitem__, task["end_id"], np.dtype(task["dtype"]).type)
    try:
        for batch in share.batches(sampler, table):
            sizes = np.array([len(batch.lengths), len(batch.tokens)], np.int64)
            for array in (sizes, batch.lengths, batch.byte_counts, batch.tokens):
                sys.stdout.buffer.write(array.tobytes())
        sys.stdout.buffer.flush()
    except BrokenPipeError:  # the parent is gone
        os._exit(1)


def _read_batch(worker: subprocess.Popen, dtype: np.dtype) -> TokenBatch:
    assert worker.stdout is not None
    stream = worker.stdout

    def read(number: int, dtype: np.dtype) -> np.ndarray:
        data = stream.read(number * dtype.itemsize)
        if len(data) < number * dtype.itemsize:
            raise _failure(worker)
        return np.frombuffer(data, dtype)

    int64 = np.dtype(np.int64)
    stories, ids = read(2, int64).tolist()
    lengths, byte_counts = read(stories, int64), read(stories, int64)
    return TokenBatch(read(ids, dtype), lengths, byte_counts)


def _failure(worker: subprocess.Popen) -> ChildProcessError:
    assert worker.stderr is not None
    said = worker.stderr.read().decode(errors="replace").strip().splitlines()
    return ChildProcessError(
        f"a process that makes stories ended with status {worker.wait()}: {said[-1] if said else 'it said nothing'}"
    )
