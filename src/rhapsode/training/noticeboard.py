"""Where processes that train together leave notes for each other: PyTorch's store, asked with a limit of time.

The store is a table of names and values in one process, process 0 or torchrun's agent. Whoever asks it over a cable
that is cut would wait for good: so each question is asked by a thread of its own, and where no answer comes in time the
board is `cut` and nothing more is asked.
"""

import os
import queue
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from typing import Any

from torch import distributed

SHORTEST_LOOK, LONGEST_LOOK = 0.002, 0.1  # seconds between two looks at the board


class NoticeBoard:
    """A store, under a prefix. seconds: how long an answer may take; RuntimeError where it takes longer."""

    def __init__(self, store: Any, prefix: str, seconds: float) -> None:
        self.store, self.seconds, self.cut = distributed.PrefixStore(prefix, store), seconds, False
        self._questions: queue.SimpleQueue[tuple[str, tuple[Any, ...], queue.SimpleQueue[Any]]] = queue.SimpleQueue()
        threading.Thread(target=self._answer, daemon=True).start()

    def write(self, name: str, text: str) -> None:
        """Leaves a note."""
        self._ask("set", name, text)

    def read(self, name: str) -> str | None:
        """A note, None where there is none."""
        if not self._ask("check", [name]):
            return None
        return self._ask("get", name).decode("utf-8", "replace")

    def count(self, name: str, more: int = 0) -> int:
        """A number that begins at 0, after so many more."""
        return self._ask("add", name, more)

    def remove(self, name: str) -> None:
        """Takes a note or a number away."""
        self._ask("delete_key", name)

    def close(self) -> None:
        """Ends the thread that asks."""
        self.cut = True
        self._questions.put(("", (), queue.SimpleQueue()))

    def _ask(self, what: str, *arguments: Any) -> Any:
        if self.cut:
            raise RuntimeError("no connection to process 0")
        answer: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._questions.put((what, arguments, answer))
        try:
            found = answer.get(timeout=self.seconds)
        except queue.Empty:
            self.cut = True
            raise RuntimeError(f"no answer from process 0 for {self.seconds:g} s") from None
        if isinstance(found, Exception):
            raise found
        return found

    def _answer(self) -> None:
        while True:
            what, arguments, answer = self._questions.get()
            if self.cut:
                return
            try:
                answer.put(getattr(self.store, what)(*arguments))
            except RuntimeError as error:
                answer.put(error)


def find_store(rank: int, seconds: float) -> Any:
    """The store at MASTER_ADDR and MASTER_PORT, which process 0 or torchrun's agent keeps.

    Raises ValueError or ConnectionError with one line where it cannot be reached in time, or kept.
    """
    host, named = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT") or ""
    if not host or not named.isdecimal():
        raise ValueError("RANK and WORLD_SIZE are set, but not MASTER_ADDR and MASTER_PORT; start with torchrun")
    port, keeps = int(named), rank == 0 and not is_agents()
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
            reason = f"port {port} of this machine cannot be used ({reason_of(error)}); choose another (--master-port)"
        else:
            reason = f"no process 0 at {host}:{port} within {seconds:g} s ({reason_of(error)})"
        raise ConnectionError(f"process {rank}: {reason}") from None


def is_agents() -> bool:
    """Whether torchrun's agent keeps the store, and not process 0."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


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


def wait_for_all(store: Any, rank: int, size: int, seconds: float, on_wait: Callable[[], None]) -> str:
    """A name for the group of these processes, once all of them are there; ConnectionError where some do not come.

    torchrun keeps its store when it starts processes again, and in it whatever earlier ones wrote. So each process
    shows a name that it has just drawn, process 0 admits all that it sees to the group of its own name, and the group
    is there when as many as it needs have found themselves admitted. on_wait is called meanwhile.
    """
    with closing(NoticeBoard(store, "rhapsode", seconds)) as board:
        own, until = uuid.uuid4().hex, time.monotonic() + seconds
        board.write(f"name {rank}", own)
        group, admitted = own if rank == 0 else None, {own}
        counted, here = False, 0
        while here < size:
            if rank == 0:
                shown = {board.read(f"name {other}") for other in range(size)}
                for name in shown - admitted - {None}:
                    admitted.add(str(name))
                    board.write(f"group of {name}", own)
            elif group is None:
                group = board.read(f"group of {own}")
            if group is not None:
                here = board.count(f"{group} here", 0 if counted else 1)
                counted = True
            on_wait()
            if time.monotonic() > until:
                came = f"only {here} of {size} processes" if group else f"not all {size} processes"
                raise ConnectionError(f"process {rank}: {came} came within {seconds:g} s")
            time.sleep(SHORTEST_LOOK)
        return str(group)


def reason_of(error: BaseException) -> str:
    """What PyTorch or the system says, without the place in its source and the stack."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    lines = text.strip().splitlines() or [type(error).__name__]
    line = lines[0]
    if line.startswith("["):  # [/path/to/pair.cc:123] Connection closed by peer
        line = line.partition("] ")[2] or line
    return line.partition(". ")[0].rstrip(".")
