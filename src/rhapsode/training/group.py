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
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

import rhapsode
from rhapsode.terminal import ToldElsewhere, told

PEER_SECONDS = 120.0  # after which a process that gives no sign is taken for lost, unless said otherwise
PULSE_SECONDS = 1.0
LEAVE_SECONDS = 3.0  # for the others to read why this process fails
SHORTEST_LOOK, LONGEST_LOOK = 0.002, 0.1  # seconds between two looks at the store


class Group:
    """This process among those that train a model together. rank: 0 to size - 1, of which 0 leads."""

    def __init__(self, rank: int = 0, size: int = 1, store: Any = None, seconds: float = PEER_SECONDS) -> None:
        self.rank, self.size, self.store, self.seconds = rank, size, store, seconds
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
        with self._told_of_loss():
            key = f"here {self.meetings}"
            self.store.add(key, 1)
            looked, pulses = time.monotonic(), dict.fromkeys(range(self.size), (-1, time.monotonic()))
            pause = SHORTEST_LOOK
            while self.store.add(key, 0) < self.size:
                self._check_failed()
                now = time.monotonic()
                if now - looked > PULSE_SECONDS:
                    looked = now
                    self._check_pulses(pulses, now)
                time.sleep(pause)
                pause = min(LONGEST_LOOK, 1.5 * pause)
            if self.leads and self.meetings > 1:  # nobody asks for the meeting before this one any more
                self.store.delete_key(f"here {self.meetings - 1}")

    def _check_pulses(self, pulses: dict[int, tuple[int, float]], now: float) -> None:
        for rank, (before, since) in pulses.items():
            pulse = self.store.add(f"pulse {rank}", 0)
            if pulse != before:
                pulses[rank] = pulse, now
            elif now - since > self.seconds and rank != self.rank:
                raise self._lost(f"process {rank} has given no sign for {now - since:.0f} s")

    def tell_all(self, text: str | None = None) -> str:
        """The text of process 0, on all processes; the others give none."""
        if self.alone:
            return text or ""
        with self._told_of_loss():
            if self.leads:
                self.store.set("text", (text or "").encode("utf-8", "surrogateescape").hex())
            self.meet()
            return bytes.fromhex(self.store.get("text").decode()).decode("utf-8", "surrogateescape")

    def check_same(self, marks: Mapping[str, str]) -> None:
        """Raises ValueError where another process has something else under one of these names: all must be equal."""
        if self.alone:
            return
        marks = {"version of rhapsode": code_digest(), "version of PyTorch": torch.__version__, **marks}
        with self._told_of_loss():
            self.store.set(f"marks {self.rank}", json.dumps(marks))
            self.meet()
            first = json.loads(self.store.get("marks 0"))
            for name, mark in marks.items():
                if mark != first[name]:
                    here, there = (f"{text[:12]}" for text in (mark, first[name]))
                    raise ValueError(
                        f"process {self.rank} on {socket.gethostname()} has another {name} ({here}) than process 0"
                        f" ({there}); they must be equal"
                    )
            self.meet()

    def fail(self, error: BaseException) -> bool:
        """Leaves the reason for the others, and time to read it; True where this process is the one to tell it."""
        if isinstance(error, ToldElsewhere):
            return False
        first = int(os.environ.get("LOCAL_RANK", self.rank)) == 0  # of this machine, where the store is out of reach
        with suppress(RuntimeError, OSError):
            first = self.store.add("tellers", 1) == 1
            self.store.set("failed", told(error))
        with suppress(RuntimeError):
            distributed.destroy_process_group()  # whoever waits for this process is woken up
        self.leave()
        return first

    def leave(self) -> None:
        """The end of the work: the process that has the store goes last, so that the others can still read it."""
        if self.alone:
            return
        with suppress(RuntimeError, OSError):
            self.store.add("left", 1)
            until = time.monotonic() + LEAVE_SECONDS
            has_store = self.leads and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
            while has_store and self.store.add("left", 0) < self.size and time.monotonic() < until:
                time.sleep(SHORTEST_LOOK)

    def _check_failed(self) -> None:
        """Raises ToldElsewhere where another process failed, which has told why."""
        if self.store.check(["failed"]):
            reason = self.store.get("failed").decode(errors="replace")
            self.store.add("left", 1)
            raise ToldElsewhere(f"another training process failed: {reason}")

    @contextmanager
    def _told_of_loss(self) -> Iterator[None]:
        """Makes one line of what PyTorch says where another process is gone: told by one process, not by all."""
        try:
            yield
        except RuntimeError as error:
            raise self._lost(_reason(error)) from None

    def _lost(self, reason: str) -> OSError:
        """What to raise where another process is lost: ToldElsewhere where one has left a reason."""
        try:
            until = time.monotonic() + PULSE_SECONDS
            while time.monotonic() < until:  # it may only just be writing it
                self._check_failed()
                time.sleep(LONGEST_LOOK)
        except ToldElsewhere as error:
            return error
        except (RuntimeError, OSError):
            pass  # the store is out of reach too
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
    with together(_find_store(rank, seconds), rank, size, device, seconds) as group:
        yield group


def _find_store(rank: int, seconds: float) -> Any:
    """The store at MASTER_ADDR and MASTER_PORT, which process 0 or torchrun's agent keeps."""
    host, named = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT") or ""
    if not host or not named.isdecimal():
        raise ValueError("RANK and WORLD_SIZE are set, but not MASTER_ADDR and MASTER_PORT; start with torchrun")
    port, keeps = int(named), rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        if keeps:
            with socket.socket() as probe:  # PyTorch would listen beside another program, on the other kind of address
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("", port))
        else:
            _wait_for_port(host, port, seconds)
        wait = timedelta(seconds=seconds)
        return distributed.TCPStore(host, port, None, keeps, wait, wait_for_workers=False, multi_tenant=True)
    except (RuntimeError, OSError) as error:
        if keeps:
            reason = f"port {port} of this machine cannot be used ({_reason(error)}); choose another (--master-port)"
        else:
            reason = f"no process 0 at {host}:{port} within {seconds:g} s ({_reason(error)})"
        raise ConnectionError(f"process {rank}: {reason}") from None


def _wait_for_port(host: str, port: int, seconds: float) -> None:
    """Returns when something listens there; OSError where nothing does for so long."""
    until = time.monotonic() + seconds
    while True:
        try:
            with socket.create_connection((host, port), timeout=max(0.1, until - time.monotonic())):
                return
        except OSError:
            if time.monotonic() > until:
                raise
        time.sleep(LONGEST_LOOK)


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
        name = _gather(store, rank, size, seconds, on_wait)
        group = Group(rank, size, distributed.PrefixStore(f"{name} group", store), seconds)
        group.device = torch.device(device)
        inner = distributed.PrefixStore(f"{name} sums", store)
        wait = timedelta(seconds=seconds)
        distributed.init_process_group(backend, store=inner, rank=rank, world_size=size, timeout=wait)
    except RuntimeError as error:
        raise ConnectionError(
            f"process {rank}: not all {size} processes could be reached within {seconds:g} s ({_reason(error)})"
        ) from None
    ended = threading.Event()
    own = distributed.PrefixStore(f"{name} group", store.clone())  # one connection serves one thread
    pulse = threading.Thread(target=_beat, args=(own, rank, ended), daemon=True)
    pulse.start()
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
        if distributed.is_initialized():
            with suppress(RuntimeError):
                distributed.destroy_process_group()


def _gather(store: Any, rank: int, size: int, seconds: float, on_wait: Callable[[], None]) -> str:
    """A name for this group, once all its processes are there; ConnectionError where some do not come in time.

    torchrun keeps its store when it starts processes again, and in it whatever earlier ones wrote. So each process
    shows a name that it has just drawn, process 0 admits all that it sees to the group of its own name, and the group
    is there when as many as it needs have found themselves admitted.
    """
    own, until = uuid.uuid4().hex, time.monotonic() + seconds
    store.set(f"name {rank}", own)
    group, admitted = own if rank == 0 else "", {own}
    counted, here = False, 0
    while here < size:
        if rank == 0:
            shown = [f"name {other}" for other in range(size) if store.check([f"name {other}"])]
            for name in {store.get(key).decode() for key in shown} - admitted:
                admitted.add(name)
                store.set(f"group of {name}", own)
        elif not group and store.check([f"group of {own}"]):
            group = store.get(f"group of {own}").decode()
        if group:
            here = store.add(f"{group} here", 0 if counted else 1)
            counted = True
        on_wait()
        if time.monotonic() > until:
            came = f"only {here} of {size} processes" if group else f"not all {size} processes"
            raise ConnectionError(f"process {rank}: {came} came within {seconds:g} s")
        time.sleep(SHORTEST_LOOK)
    return group


def _beat(store: Any, rank: int, ended: threading.Event) -> None:
    """Shows once a second that this process lives."""
    with suppress(RuntimeError, OSError):
        while not ended.wait(PULSE_SECONDS):
            store.add(f"pulse {rank}", 1)


def _reason(error: BaseException) -> str:
    """What PyTorch says, without the place in its source and the stack."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    lines = text.strip().splitlines() or [type(error).__name__]
    line = lines[0]
    if line.startswith("["):  # [/path/to/pair.cc:123] Connection closed by peer
        line = line.partition("] ")[2] or line
    return line.partition(". ")[0].rstrip(".")
