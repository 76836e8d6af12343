"""The number of threads as it is chosen: on a made-up machine whose cores come and go, and on this one."""

import multiprocessing
import os
import threading
from typing import Any

import pytest
import torch

from rhapsode import threads
from rhapsode.threads import ThreadChooser, chosen_threads, fixed_threads, threads_meet_in_time

LONGEST_SECONDS = 120.0  # of a wait: to end a hang, not to measure a machine


@pytest.fixture(autouse=True)
def as_before() -> object:
    count = torch.get_num_threads()
    yield
    torch.set_num_threads(count)


class Machine:
    """A clock, and cores of which some may be busy: so many threads meet in time as there are free cores."""

    def __init__(self, cores: int) -> None:
        self.cores = self.free = cores
        self.now, self.probes, self.heard = 0.0, 0, []  # type: float, int, list[int]

    def meets(self, count: int) -> bool:
        torch.set_num_threads(count)  # as the probe of a real machine does
        self.probes += 1
        self.now += threads.PROBE_SECONDS
        return count <= self.free

    def chooser(self) -> ThreadChooser:
        return ThreadChooser(self.cores, self.heard.append, self.meets, lambda: self.now)

    def work(self, chooser: ThreadChooser, seconds: float) -> int:
        """Steps of 0.1 s of one thread for so long; how many were done."""
        end, steps = self.now + seconds, 0
        while self.now < end:
            count = torch.get_num_threads()
            took = 0.1 / count if count <= self.free else 3.0
            self.now += took
            chooser.worked("step", took)
            steps += 1
        return steps


def test_all_threads_while_the_cores_are_free() -> None:
    """Would catch threads given away on a quiet machine, and probes that cost something there."""
    machine = Machine(2)
    chooser = machine.chooser()
    assert machine.work(chooser, 100) == pytest.approx(2000, rel=0.01)
    assert (machine.heard, machine.probes) == ([], threads.FIRST_PROBES)


@pytest.mark.parametrize(("cores", "free", "best"), [(2, 1, 1), (8, 7, 7), (8, 5, 4), (8, 2, 1)])
def test_a_busy_core_costs_a_moment(cores: int, free: int, best: int) -> None:
    """At least 80% of what the free cores make; would catch probing that eats the time, and a late switch."""
    machine = Machine(cores)
    chooser = machine.chooser()
    machine.work(chooser, 20)
    machine.free = free
    done = machine.work(chooser, 60)
    assert chooser.count == best
    assert done > 0.8 * 60 * best / 0.1
    machine.free = cores
    machine.work(chooser, 2 * threads.LONGEST_WAIT)
    assert chooser.count == cores
    assert machine.heard == [best, cores]


def test_a_neighbour_from_the_beginning() -> None:
    """Would catch work that goes on with the threads of a probe that failed."""
    machine = Machine(2)
    machine.free = 1
    chooser = machine.chooser()
    assert chooser.count == 1
    assert machine.work(chooser, 100) > 0.95 * 1000


def test_a_neighbour_that_comes_and_goes() -> None:
    """Would catch a chooser that follows every whim: changes get rarer, the pace stays near one thread's at least."""
    machine = Machine(2)
    chooser = machine.chooser()
    done = 0
    for _ in range(60):
        machine.free = 2
        done += machine.work(chooser, 2)
        machine.free = 1
        done += machine.work(chooser, 2)
    assert done > 0.8 * 2400
    assert len(machine.heard) < 40


def test_slower_work_is_no_neighbour() -> None:
    """Longer sequences take longer; would catch threads given away for that."""
    machine = Machine(2)
    chooser = machine.chooser()
    for took in [0.06] * 50 + [0.6] * 50:
        machine.now += took
        chooser.worked("step", took)
    assert chooser.count == 2
    assert machine.probes < 2 * threads.FIRST_PROBES


def test_a_probe_that_sees_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy core that most probes miss, from the beginning and later; would catch a slow pace taken for the usual."""
    machine = Machine(2)
    machine.free = 1
    seen = iter([True, True, False, True, True, *[False] * 1000])  # of the probes beside the neighbour
    monkeypatch.setattr(machine, "meets", lambda count: count <= machine.free or next(seen))
    chooser = machine.chooser()
    done = machine.work(chooser, 100)
    assert chooser.count == 1
    assert done > 0.8 * 1000


def test_one_thread_needs_no_choice() -> None:
    chooser = ThreadChooser(1, meets_in_time=lambda count: pytest.fail("probed"))
    chooser.worked("step", 10.0)
    torch.set_num_threads(2)
    with fixed_threads(3):
        with chosen_threads() as fixed:
            fixed.worked("step", 10.0)
            fixed.worked("step", 100.0)
        assert torch.get_num_threads() == 3
    with fixed_threads(None):
        assert torch.get_num_threads() == 2
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"), fixed_threads(0):
        pass
    assert torch.get_num_threads() == 2
    assert threads._here.active is None


def test_blocks_inside_of_each_other_share_a_choice() -> None:
    torch.set_num_threads(2)
    with chosen_threads() as outer:
        with chosen_threads() as inner:
            assert inner is outer
        assert threads._here.active is outer
    assert threads._here.active is None
    assert torch.get_num_threads() == 2


def test_blocks_of_two_threads_that_overlap_leave_nothing_behind() -> None:
    """Would catch the block of a server that ends first, and whose choice the one that ends last brings back."""
    torch.set_num_threads(2)
    begun, end = threading.Event(), threading.Event()

    def serve() -> None:
        with fixed_threads(1):
            begun.set()
            end.wait(LONGEST_SECONDS)

    server = threading.Thread(target=serve)
    with chosen_threads() as mine:
        server.start()
        assert begun.wait(LONGEST_SECONDS)
        assert threads._here.active is mine
    with chosen_threads() as again:
        assert again.most == 2
        end.set()
        server.join(LONGEST_SECONDS)
    assert threads._here.active is None
    assert torch.get_num_threads() == 2


def spin(begun: Any) -> None:
    begun.release()
    while True:
        pass


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
def test_a_real_neighbour_is_noticed() -> None:
    """On this machine: as many busy processes as cores, and threads do not meet in time."""
    count = os.cpu_count() or 2
    context = multiprocessing.get_context("spawn")
    begun = context.Semaphore(0)
    neighbours = [context.Process(target=spin, args=(begun,), daemon=True) for _ in range(count)]
    for neighbour in neighbours:
        neighbour.start()
    try:
        for _ in neighbours:
            assert begun.acquire(timeout=LONGEST_SECONDS)
        noticed = sum(not threads_meet_in_time(count) for _ in range(9))
    finally:
        for neighbour in neighbours:
            neighbour.terminate()
            neighbour.join()
    assert noticed >= 5


def test_a_block_begins_with_what_the_last_one_learnt() -> None:
    """Would catch a probe for every short piece of work, and the pace of other work taken for this one's."""
    machine = Machine(2)
    chooser = machine.chooser()
    machine.work(chooser, 1)
    probes = machine.probes
    chooser.begin(machine.heard.append)
    assert (machine.probes, chooser.count, machine.heard) == (probes, 2, [])
    chooser.worked("step", 50.0)
    machine.now += threads.SECONDS_BETWEEN_PROBES
    machine.free = 1
    chooser.begin(machine.heard.append)
    assert (chooser.count, machine.heard) == (1, [1])
    machine.now += threads.SECONDS_BETWEEN_PROBES / 2
    chooser.begin(machine.heard.append)  # another block, which hears that it has one
    assert machine.heard == [1, 1]
