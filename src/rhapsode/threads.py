"""How many CPU threads the work gets, chosen as it goes: all while they help, one while a core is somebody else's.

A parallel loop waits for its slowest thread, thousands of times a step. Where another process holds one of the cores,
each wait lasts until the system gives that core back, and two threads are 20 to 30 times slower than one. So each piece
of work is timed; where its pace falls, a probe tells whether threads still meet in time, and if not, fewer are used
until they do again.

Sums are made in another order on another number of threads, so the last digits differ: a run records which step had how
many (`thread_plan` in run.json), and `fixed_threads` keeps one number for good.
"""

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

PROBE_SECONDS = 0.012  # longer than most of the system's time slices, or a busy core might not be noticed
LATE_SECONDS = 1e-3  # a piece of work that takes 10 microseconds, and so long where threads wait for each other
MOST_LATE = 0.2  # of the time of a probe that may be lost in waiting
SLOWER = 1.4  # times the usual time of a piece of work: reason enough for a probe
FEWEST_SECONDS = 0.05  # of work that are compared
SECONDS_BETWEEN_PROBES = 1.0  # so long what a probe found is believed, also by the next block of work
FIRST_PROBES = 5  # that find threads in time, one after another, before the pace alone is trusted
FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0  # seconds before more threads are tried again; doubled each time that they fail
CALM_SECONDS = 60.0  # after so long without a fall, the first wait counts again


class _Here(threading.local):
    """Each thread of Python chooses for itself: blocks of a server's and of one that trains beside it may overlap."""

    active: "ThreadChooser | None" = None
    known: "ThreadChooser | None" = None  # of the last block, with what it has learnt of the machine


_here = _Here()


class ThreadChooser:
    """The number of threads of this process, as it is chosen while work goes on.

    most: the number that is used while all cores are free. on_change hears of every other number, and of `most` again.
    """

    def __init__(
        self,
        most: int,
        on_change: Callable[[int], object] | None = None,
        meets_in_time: Callable[[int], bool] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.most = self.count = self.using = most
        self.clock = clock
        self.meets_in_time = meets_in_time or threads_meet_in_time
        self.usual: dict[str, float] = {}  # seconds per unit, by kind of work, with `most` threads
        self.fewer: dict[str, float] = {}  # the same with fewer
        self.seconds: dict[str, float] = {}
        self.units: dict[str, float] = {}
        self.wait, self.changed = FIRST_WAIT, clock()
        self.probed, self.trusted = -1e9, 0  # when, and how often in a row threads were in time
        self.begin(on_change)

    def begin(self, on_change: Callable[[int], object] | None = None) -> None:
        """Begins a block of work, with the number of threads that a fresh probe, or a recent one, speaks for."""
        self.on_change, self.using = on_change, self.most  # as PyTorch has it outside of the block
        self.usual.clear()  # other work has another pace
        self.fewer.clear()
        if self.most == 1:
            return
        if self.clock() - self.probed < SECONDS_BETWEEN_PROBES:
            self._use(self.count)
        elif self._in_time():
            self._use(self.most)
        else:
            self._use_fewer()

    def worked(self, kind: str, seconds: float, units: float = 1.0) -> None:
        """Tells of a piece of work that was done with the threads as they are; may change their number.

        kind: pieces of one kind are compared with each other. units: what its time grows with, tokens for instance.
        """
        if self.most == 1:
            return
        self.seconds[kind] = self.seconds.get(kind, 0.0) + seconds
        self.units[kind] = self.units.get(kind, 0.0) + units
        if self.seconds[kind] < FEWEST_SECONDS:
            return
        pace = self.seconds.pop(kind) / self.units.pop(kind)
        if self.count < self.most:
            self.fewer[kind] = pace
            self._try_more()
        elif pace > self.fewer.get(kind, math.inf):  # fewer were faster a moment ago
            self._use_fewer()
        else:
            self._watch(kind, pace)

    def _try_more(self) -> None:
        """After a while, all threads again, if they meet in time."""
        if self.clock() - self.changed > self.wait:
            if self._in_time():
                self._use(self.most)
            else:
                self.wait, self.changed = min(LONGEST_WAIT, 2 * self.wait), self.clock()

    def _watch(self, kind: str, pace: float) -> None:
        """With all threads: probes in the beginning, and where the pace falls."""
        now = self.clock()
        if now - self.changed > CALM_SECONDS:
            self.wait = FIRST_WAIT
            self.fewer.clear()  # the machine's own speed may have changed since
        usual = self.usual.get(kind)
        falls = usual is not None and pace > SLOWER * usual
        if (falls or self.trusted < FIRST_PROBES) and now - self.probed > SECONDS_BETWEEN_PROBES:
            if not self._in_time():
                self._use_fewer()
                return
            falls = False  # the work is slower for another reason
            usual = pace
        self.usual[kind] = pace if usual is None else usual if falls else 0.9 * usual + 0.1 * pace

    def _in_time(self) -> bool:
        """Asks by a probe whether all threads meet in time."""
        found = self.meets_in_time(self.most)
        self.probed, self.trusted = self.clock(), self.trusted + 1 if found else 0
        if self.count < self.most and not found:
            torch.set_num_threads(self.count)  # the probe took more
        return found

    def _use_fewer(self) -> None:
        """Uses the most threads below `most` that meet in time, for longer than the last time."""
        self.wait = min(LONGEST_WAIT, 2 * self.wait) if self.clock() - self.changed < CALM_SECONDS else FIRST_WAIT
        self.usual.clear()
        for count in dict.fromkeys((self.most - 1, self.most // 2)):
            if count > 1 and self.meets_in_time(count):
                self._use(count)
                return
        self._use(1)

    def _use(self, count: int) -> None:
        torch.set_num_threads(count)
        before, self.using = self.using, count
        if count != self.count:
            self.changed = self.clock()
        self.count = count
        self.seconds.clear()
        self.units.clear()
        if self.on_change and count != before:
            self.on_change(count)


def threads_meet_in_time(count: int) -> bool:
    """Whether so many threads finish small pieces of work together, or some core is not theirs alone."""
    torch.set_num_threads(count)
    x = torch.zeros(1 << 16)  # twice what PyTorch shares among threads
    late = 0.0
    begun = time.perf_counter()
    while (now := time.perf_counter()) - begun < PROBE_SECONDS:
        x.mul_(1.0)
        took = time.perf_counter() - now
        late += took if took > LATE_SECONDS else 0.0
    return late < MOST_LATE * PROBE_SECONDS


@contextmanager
def chosen_threads(on_change: Callable[[int], object] | None = None) -> Iterator[ThreadChooser]:
    """Within the block, the number of threads is chosen: at most as many as PyTorch has now, which it has again after.

    Inside of another such block, or of `fixed_threads`, that one's choice counts.
    """
    if _here.active is not None:
        yield _here.active
        return
    before = torch.get_num_threads()
    if _here.known is not None and _here.known.most == before:
        _here.known.begin(on_change)
    else:
        _here.known = ThreadChooser(before, on_change)
    with _deciding(_here.known, before) as chooser:
        yield chooser


@contextmanager
def fixed_threads(count: int | None) -> Iterator[None]:
    """Within the block, work is done with so many threads, whatever else the machine does; None changes nothing.

    Raises ValueError for a number below 1.
    """
    if count is None:
        yield
        return
    if count < 1:
        raise ValueError(f"threads must be at least 1, got {count}")
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    with _deciding(ThreadChooser(1), before):
        yield


@contextmanager
def _deciding(chooser: ThreadChooser, before: int) -> Iterator[ThreadChooser]:
    outer, _here.active = _here.active, chooser
    try:
        yield chooser
    finally:
        _here.active = outer
        torch.set_num_threads(before)
