"""The processes that train one model together: how they find each other, agree, wait, and stop together.

`torchrun`, or `--processes`, starts them and tells each by environment variables who it is. Process 0 leads: it alone
writes. What decides the next step is summed over all of them with the gradients, so that all decide alike. Sums go
through PyTorch's process groups (gloo on CPUs, NCCL on GPUs); waiting goes through PyTorch's store, where each process
shows once a second that it lives, and where one that fails leaves its reason, so that one line is told and not many.
"""

import hashlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

import rhapsode
from rhapsode.terminal import ToldElsewhere, told
from rhapsode.training.noticeboard import (
    LONGEST_LOOK,
    SHORTEST_LOOK,
    NoticeBoard,
    find_store,
    is_agents,
    reason_of,
    wait_for_all,
)

PEER_SECONDS = 120.0  # after which a process that gives no sign is taken for lost, unless said otherwise
PULSE_SECONDS = 1.0
LEAVE_SECONDS = 3.0  # for the others to read why this process fails


class Group:
    """This process among those that train a model together. rank: 0 to size - 1, of which 0 leads."""

    def __init__(
        self, rank: int = 0, size: int = 1, board: NoticeBoard | None = None, seconds: float = PEER_SECONDS
    ) -> None:
        self.rank, self.size, self.seconds = rank, size, seconds
        self._board = board
        self.device = torch.device("cpu")  # of the numbers that are summed
        self.meetings = 0
        self.on_loss: Callable[[], str | None] = lambda: None  # who started the others may know what became of them

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether there is no other process."""
        return self.size == 1

    def rows(self, count: int) -> slice:
        """Which of so many rows of a batch are this process's: as many as any other's, or one more."""
        return share(count, self.rank, self.size)

    @property
    def board(self) -> NoticeBoard:
        """Where the processes leave notes for each other; one that is alone has none."""
        assert self._board is not None
        return self._board

    # -- sums ----------------------------------------------------------------------------------------------------

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """The sums over all processes, in float64, the same to the bit on each of them."""
        if self.alone:
            return list(numbers)
        total = torch.tensor(list(numbers), dtype=torch.float64, device=self.device)
        self.wait(self.start_sum(total))
        return total.tolist()

    def start_sum(self, tensor: Tensor, largest: bool = False) -> Any:
        """Begins to put the sum over all processes, or the largest value, into the tensor; `wait` ends it."""
        operation = distributed.ReduceOp.MAX if largest else distributed.ReduceOp.SUM
        with self._told_of_loss():
            return distributed.all_reduce(tensor, operation, async_op=True)

    def wait(self, work: Any) -> None:
        """Waits for a sum that was begun; raises OSError in one line where another process is lost."""
        with self._told_of_loss():
            work.wait()

    def any(self, flag: bool) -> bool:
        """Whether it is so on any of the processes; waits for them however long they work, as long as they live."""
        self.meet()
        return self.sum([float(flag)])[0] > 0

    def gather_rows(self, tensors: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
        """On process 0 the rows of all processes, in the order of the batch of `count` rows; elsewhere nothing."""
        if self.alone:
            return dict(tensors)
        whole = {}
        with self._told_of_loss():
            for name in sorted(tensors):
                own = tensors[name].contiguous()
                if not self.leads:
                    distributed.send(own, 0)
                    continue
                parts = [own]
                for rank in range(1, self.size):
                    rows = share(count, rank, self.size)
                    parts.append(own.new_empty(rows.stop - rows.start, *own.shape[1:]))
                    distributed.recv(parts[-1], rank)
                whole[name] = torch.cat(parts)
        return whole

    # -- waiting and failing together ----------------------------------------------------------------------------

    def meet(self) -> None:
        """Returns when all processes are here, however long they work before; OSError where one gives no sign."""
        if self.alone:
            return
        self.meetings += 1
        key, board = f"meeting {self.meetings}", self.board
        with self._told_of_loss():
            board.count(key, 1)
            looked, pulses = time.monotonic(), dict.fromkeys(range(self.size), (-1, time.monotonic()))
            pause = SHORTEST_LOOK
            while board.count(key) < self.size:
                self._check_failed()
                now = time.monotonic()
                if now - looked > PULSE_SECONDS:
                    looked = now
                    self._check_pulses(pulses, now)
                time.sleep(pause)
                pause = min(LONGEST_LOOK, 1.5 * pause)
            if self.leads and self.meetings > 1:  # nobody asks for the meeting before this one any more
                board.remove(f"meeting {self.meetings - 1}")

    def _check_pulses(self, pulses: dict[int, tuple[int, float]], now: float) -> None:
        for rank, (before, since) in pulses.items():
            pulse = self.board.count(f"pulse {rank}")
            if pulse != before:
                pulses[rank] = pulse, now
            elif now - since > self.seconds and rank != self.rank:
                raise self._lost(f"process {rank} has given no sign for {now - since:.0f} s")

    def tell_all(self, text: str) -> str:
        """The text of process 0, on all processes."""
        if self.alone:
            return text
        with self._told_of_loss():
            if self.leads:
                self.board.write("text", os.fsencode(text).hex())
            self.meet()
            return os.fsdecode(bytes.fromhex(self.board.read("text") or ""))

    def check_same(self, marks: Mapping[str, str]) -> None:
        """Raises ValueError where another process has something else under one of these names: all must be equal."""
        if self.alone:
            return
        marks = {"version of rhapsode": code_digest(), "version of PyTorch": torch.__version__, **marks}
        with self._told_of_loss():
            if self.leads:
                self.board.write("marks", json.dumps(marks))
            self.meet()
            first = json.loads(self.board.read("marks") or "{}")
            for name, mark in marks.items():
                if mark != first[name]:
                    raise ValueError(
                        f"process {self.rank} on {socket.gethostname()} has another {name} ({mark[:12]}) than process 0"
                        f" ({first[name][:12]}); they must be equal"
                    )
            self.meet()

    def fail(self, error: BaseException) -> bool:
        """Leaves the reason for the others, and time to read it; True where this process is the one to tell it."""
        if isinstance(error, ToldElsewhere):
            return False
        first = int(os.environ.get("LOCAL_RANK", self.rank)) == 0  # of this machine, where the board is out of reach
        with suppress(RuntimeError):
            first = self.board.count("tellers", 1) == 1
            self.board.write("failed", told(error))
        with suppress(RuntimeError):
            distributed.destroy_process_group()  # whoever waits for this process is woken up
        self.leave()
        return first

    def leave(self) -> None:
        """The end of the work: the process that keeps the board goes last, so that the others can still read it."""
        with suppress(RuntimeError):
            self.board.count("left", 1)
            until = time.monotonic() + LEAVE_SECONDS
            keeps = self.leads and not is_agents()
            while keeps and self.board.count("left") < self.size and time.monotonic() < until:
                time.sleep(SHORTEST_LOOK)

    def _check_failed(self) -> None:
        """Raises ToldElsewhere where another process failed, which has told why."""
        reason = self.board.read("failed")
        if reason is not None:
            self.board.count("left", 1)
            raise ToldElsewhere(f"another training process failed: {reason}")

    @contextmanager
    def _told_of_loss(self) -> Iterator[None]:
        """Makes one line of what PyTorch says where another process is gone: told by one process, not by all."""
        try:
            yield
        except RuntimeError as error:
            reason = reason_of(error)
            if "timed out" in reason.lower() or "timeout" in reason.lower():
                reason = f"no answer for {self.seconds:g} s"
            raise self._lost(reason) from None

    def _lost(self, reason: str) -> OSError:
        """What to raise where another process is lost: ToldElsewhere where one has left a reason."""
        self.board.seconds = min(self.seconds, LEAVE_SECONDS)
        try:
            until = time.monotonic() + PULSE_SECONDS
            while time.monotonic() < until:  # it may only just be writing it
                self._check_failed()
                time.sleep(LONGEST_LOOK)
        except ToldElsewhere as error:
            return error
        except RuntimeError:
            pass  # the board is out of reach too
        return ConnectionError(
            f"lost another of the {self.size} training processes: {self.on_loss() or reason}; resume the run from its"
            " last checkpoint"
        )


ALONE = Group()


def share(count: int, rank: int, size: int) -> slice:
    """The rank-th of `size` runs of neighbours among `count` rows, of equal length but for one row."""
    each, more = divmod(count, size)
    begin = rank * each + min(rank, more)
    return slice(begin, begin + each + (rank < more))


def code_digest() -> str:
    """SHA-256 of this package's Python files: two processes with different ones would make different steps."""
    folder = Path(rhapsode.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(f"{file.relative_to(folder).as_posix()}\n".encode() + file.read_bytes())
    return digest.hexdigest()


def is_launched() -> bool:
    """Whether torchrun, or something that sets the same variables, started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE") or 1) > 1 and "RANK" in os.environ


def is_restart() -> bool:
    """Whether torchrun has started this process again after a failure."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT") or 0) > 0


@contextmanager
def joined(device: str, seconds: float = PEER_SECONDS) -> Iterator[Group]:
    """The group that torchrun started this process for, within the block; ALONE where nobody did.

    device: cpu or cuda, where each process of a machine takes the GPU of its number. seconds: how long to wait for a
    process that gives no sign. Raises OSError or ValueError with one line where the others cannot be found.
    """
    if not is_launched():
        yield ALONE
        return
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    with together(find_store(rank, seconds), rank, size, device, seconds) as group:
        yield group


@contextmanager
def together(
    store: Any, rank: int, size: int, device: str, seconds: float, on_wait: Callable[[], None] = lambda: None
) -> Iterator[Group]:
    """The group of `size` processes that share this store, within the block.

    on_wait is called again and again while they come. Raises ConnectionError with one line where not all of them come.
    """
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    backend = "nccl" if device == "cuda" else "gloo"
    try:
        name = wait_for_all(store, rank, size, seconds, on_wait)
        sums, wait = distributed.PrefixStore(f"{name} sums", store), timedelta(seconds=seconds)
        distributed.init_process_group(backend, store=sums, rank=rank, world_size=size, timeout=wait)
    except RuntimeError as error:
        raise ConnectionError(
            f"process {rank}: not all {size} processes could be reached within {seconds:g} s ({reason_of(error)})"
        ) from None
    notes = f"{name} notes"
    group = Group(rank, size, NoticeBoard(store, notes, seconds), seconds)
    group.device = torch.device(device)
    ended = threading.Event()
    pulse = NoticeBoard(store.clone(), notes, seconds)  # a connection of its own, so that no other question delays it
    threading.Thread(target=_beat, args=(pulse, rank, ended), daemon=True).start()
    try:
        yield group
        group.meet()
        group.leave()
    except BaseException as error:
        if not group.fail(error) and isinstance(error, Exception):
            raise ToldElsewhere(told(error)) from None
        raise
    finally:
        ended.set()
        group.board.close()
        if distributed.is_initialized():
            with suppress(RuntimeError):
                distributed.destroy_process_group()


def _beat(board: NoticeBoard, rank: int, ended: threading.Event) -> None:
    """Shows once a second that this process lives."""
    with closing(board), suppress(RuntimeError):
        while not ended.wait(PULSE_SECONDS):
            board.count(f"pulse {rank}", 1)
