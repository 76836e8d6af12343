"""Stands between Python and the file system below one folder: counts what is done to files, makes the n-th fail, or
records all of it.

What is written by C code past Python's own files (torch.save to a path) is not seen here; whole_processes.py sees that.
"""

import builtins
import errno
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ERRORS = ("ENOSPC", "EIO", "EROFS", "EACCES", "EDQUOT")
SHORT, INTERRUPTED, KILL = "short write", "EINTR", "SIGKILL"
WRITING = ("write", "fsync", "rename", "open", "mkdir", "truncate", "chmod")


@dataclass(frozen=True)
class Operation:
    """One thing done to a file. path: from the watched folder. file: which file, whatever its name is by then.

    other: the new name of what is renamed. data, offset: of a write; size: of a truncation. flags: of an open.
    """

    kind: str
    path: str
    file: int | None = None
    other: str = ""
    data: bytes = b""
    offset: int = 0
    created: bool = False
    named: bool = True  # whether an error of it knows the path


class Watched:
    """A folder whose operations are counted.

    decide(number, operation) is asked before each of them is done, numbered from 1: it returns None, or raises an
    OSError in its place; SHORT as an answer halves a write. done hears of those that were done.
    """

    def __init__(
        self,
        folder: Path,
        decide: Callable[[int, Operation], str | None] = lambda number, operation: None,
        done: Callable[[Operation], None] = lambda operation: None,
    ) -> None:
        self.folder, self.decide, self.done = os.path.realpath(folder), decide, done
        self.count = 0
        self._files = 0

    def happens(self, operation: Operation) -> str | None:
        """Asks what is to become of an operation."""
        self.count += 1
        try:
            return self.decide(self.count, operation)
        except OSError as error:
            if error.filename is not None:
                error.filename = os.path.join(self.folder, error.filename)
            raise

    def inside(self, path: Any, folder: int | None = None) -> str | None:
        """The path from the folder on; None where it is elsewhere. folder: a descriptor that it starts from."""
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        path = os.fsdecode(path)
        if folder is not None and not os.path.isabs(path):
            path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)
        path = os.path.abspath(path)
        if path == self.folder:
            return "."
        return path.removeprefix(self.folder + "/") if path.startswith(self.folder + "/") else None

    def next_file(self) -> int:
        self._files += 1
        return self._files


class _Raw(io.FileIO):
    """A file opened for writing."""

    def __init__(self, watched: Watched, path: Any, mode: str, name: str, closefd: bool, opener: Any) -> None:
        self.watched, self.path_inside = watched, name
        new = isinstance(path, int) or not os.path.exists(path)
        self.number = watched.next_file()
        operation = Operation("open", name, self.number, created=new or "w" in mode)
        told = not isinstance(path, int) and opener is None
        if told:
            watched.happens(operation)
        super().__init__(path, mode, closefd, opener)
        if told:
            watched.done(operation)

    def write(self, data: Any) -> int:
        data = bytes(data)
        offset = os.fstat(self.fileno()).st_size if "a" in self.mode else self.tell()
        name = self.watched.inside(self.fileno()) or self.path_inside
        if self.watched.happens(Operation("write", name, self.number, data=data, offset=offset, named=False)) == SHORT:
            data = data[: max(1, len(data) // 2)]
        written = super().write(data) or 0
        self.watched.done(Operation("write", name, self.number, data=data[:written], offset=offset))
        return written

    def truncate(self, size: int | None = None) -> int:
        size = self.tell() if size is None else size
        name = self.watched.inside(self.fileno()) or self.path_inside
        self.watched.happens(Operation("truncate", name, offset=size, named=False))
        truncated = super().truncate(size)
        self.watched.done(Operation("truncate", name, offset=size))
        return truncated


@contextmanager
def watching(watched: Watched) -> Iterator[Watched]:
    """Within the block, what Python does to files below the folder goes by way of `watched`."""
    real = {name: getattr(os, name) for name in ("open", "fsync", "replace", "rename", "mkdir", "unlink", "remove")}
    real |= {name: getattr(os, name) for name in ("rmdir", "chmod", "truncate", "ftruncate")}
    real_open = io.open

    def opened(file: Any, mode: str = "r", buffering: int = -1, encoding: Any = None, errors: Any = None,
               newline: Any = None, closefd: bool = True, opener: Any = None) -> Any:  # fmt: skip
        name = watched.inside(file)
        if name is None or not set(mode) & set("wax+"):
            if name is not None and not isinstance(file, int):
                watched.happens(Operation("look", name))
            return real_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        raw = _Raw(watched, file, mode.replace("b", "").replace("t", ""), name, closefd, opener)
        if buffering == 0:
            return raw
        kind = io.BufferedRandom if "+" in mode else io.BufferedWriter
        buffer = kind(raw)
        if "b" in mode:
            return buffer
        encoding = encoding if encoding != "locale" else None
        text = io.TextIOWrapper(buffer, encoding, errors, newline, line_buffering=buffering == 1)
        text.mode = mode  # type: ignore[misc]
        return text

    def asked(operation: Operation | None, call: Callable[[], Any]) -> Any:
        if operation is not None:
            watched.happens(operation)
        result = call()
        if operation is not None:
            watched.done(operation)
        return result

    def os_open(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        name, operation = watched.inside(path, dir_fd), None
        if name is not None:
            writes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
            created = writes and not os.path.lexists(os.path.join(watched.folder, name))
            number = watched.next_file() if writes else None
            operation = Operation("open" if writes else "look", name, number, created=created)
        return asked(operation, lambda: real["open"](path, flags, mode, dir_fd=dir_fd))

    def one(kind: str, call: str) -> Callable[..., Any]:
        def patched(path: Any, *rest: Any, **more: Any) -> Any:
            name, operation = watched.inside(path, more.get("dir_fd")), None
            if name is not None:
                size = rest[0] if kind == "truncate" else 0
                operation = Operation(kind, name, offset=size, named=not isinstance(path, int))
            return asked(operation, lambda: real[call](path, *rest, **more))

        return patched

    def two(call: str) -> Callable[..., Any]:
        def patched(source: Any, target: Any, **more: Any) -> Any:
            name, other, operation = watched.inside(source), watched.inside(target), None
            if name is not None or other is not None:
                operation = Operation("rename", name or str(source), other=other or str(target))
            return asked(operation, lambda: real[call](source, target, **more))

        return patched

    os.open = os_open  # type: ignore[assignment]
    os.replace, os.rename = two("replace"), two("rename")
    for call, kind in (("fsync", "fsync"), ("mkdir", "mkdir"), ("unlink", "unlink"), ("remove", "unlink")):
        setattr(os, call, one(kind, call))
    for call, kind in (("rmdir", "rmdir"), ("chmod", "chmod"), ("truncate", "truncate"), ("ftruncate", "truncate")):
        setattr(os, call, one(kind, call))
    io.open = builtins.open = opened  # type: ignore[assignment]
    try:
        yield watched
    finally:
        io.open = builtins.open = real_open  # type: ignore[assignment]
        for name, call in real.items():
            setattr(os, name, call)


def failing(number: int, error: str, for_good: bool) -> Callable[[int, Operation], str | None]:
    """Lets the number-th operation fail, or all from there on: with an error, as a short write, interrupted, killed.

    Once a disk is full it is full for what needs room: looking and removing still work. A disk that is read-only or
    not ours refuses removing too.
    """
    needs = (
        ("write", "open", "mkdir", "fsync", "rename")
        if error in ("ENOSPC", "EDQUOT")
        else (*WRITING, "unlink", "rmdir")
    )

    def decide(now: int, operation: Operation) -> str | None:
        if now < number or (now > number and not for_good):
            return None
        if error == KILL:
            os.kill(os.getpid(), 9)
        if error == SHORT:
            return SHORT if operation.kind == "write" else None
        if error == INTERRUPTED:
            if operation.kind == "write" and now == number:
                raise InterruptedError(errno.EINTR, os.strerror(errno.EINTR))
            return None
        if now > number and operation.kind not in needs:
            return None
        if operation.kind == "fsync" and operation.path and error == "EACCES":
            return None  # what is open stays open
        if operation.kind == "look" and error not in ("EIO", "EACCES"):
            return None
        code = getattr(errno, error)
        if not operation.named:
            raise OSError(code, os.strerror(code))
        raise OSError(code, os.strerror(code), operation.path)

    return decide
