"""A disk that forgets what was not flushed: what Python does to files is recorded, and any moment can be the last.

Of a file it keeps what it held at its last fsync; of a folder, the names that it held at its last fsync. What came
later may be there, or not, or in part: `after` gives what a power cut may leave.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from shim import Operation, Watched, watching

WAYS = ("nothing more", "all of it", "names without contents", "some of it", "some of it, another draw")


@dataclass
class _File:
    """kept: how many of its first bytes are as they were flushed, which no write has touched since."""

    content: bytes = b""
    flushed: bytes = b""
    kept: int = 0


@dataclass
class _Folder:
    names: dict[str, "_File | _Folder"] = field(default_factory=dict)
    flushed: dict[str, "_File | _Folder"] = field(default_factory=dict)


@dataclass
class Recording:
    """What was done below a folder, and what it held before. said: (operations so far, what was announced then)."""

    before: Path
    operations: list[Operation] = field(default_factory=list)
    said: list[tuple[int, int]] = field(default_factory=list)

    def announce(self, value: int) -> None:
        """Notes that the work said, just now, that this much is safe."""
        self.said.append((len(self.operations), value))

    def announced(self, moment: int) -> int | None:
        """The last that was said before the moment."""
        return next((value for count, value in reversed(self.said) if count <= moment), None)


@contextmanager
def recording(folder: Path, before: Path) -> Iterator[Recording]:
    """Records what the block does below the folder; before: a copy of the folder as it is now, all of it flushed."""
    found = Recording(before)

    def note(operation: Operation) -> None:
        if operation.kind != "look":
            found.operations.append(operation)

    with watching(Watched(folder, done=note)):
        yield found


def after(found: Recording, moment: int, way: str, draw: random.Random, target: Path) -> None:
    """Makes in `target`, a new folder, what a power cut after so many operations may leave."""
    root = _read(found.before)
    files: dict[int, _File] = {}
    for operation in found.operations[:moment]:
        _apply(root, files, operation)
    _write(root, way, draw, target)


def _read(path: Path) -> _Folder:
    folder = _Folder()
    for entry in path.iterdir():
        if entry.is_dir():
            folder.names[entry.name] = _read(entry)
        else:
            content = entry.read_bytes()
            folder.names[entry.name] = _File(content, content, len(content))
    folder.flushed = dict(folder.names)
    return folder


def _find(root: _Folder, path: str) -> "_File | _Folder":
    node: _File | _Folder = root
    for part in PurePosixPath(path).parts:
        assert isinstance(node, _Folder)
        node = node.names[part]
    return node


def _place(root: _Folder, path: str) -> tuple[_Folder, str]:
    parent = _find(root, str(PurePosixPath(path).parent))
    assert isinstance(parent, _Folder)
    return parent, PurePosixPath(path).name


def _apply(root: _Folder, files: dict[int, _File], operation: Operation) -> None:
    if operation.kind == "open":
        folder, name = _place(root, operation.path)
        if name not in folder.names:
            folder.names[name] = _File()
        file = folder.names[name]
        assert isinstance(file, _File)
        if operation.created:
            file.content, file.kept = b"", 0
        assert operation.file is not None
        files[operation.file] = file
    elif operation.kind == "write":
        file = files.get(operation.file or 0) or _find(root, operation.path)
        assert isinstance(file, _File)
        files[operation.file or 0] = file
        held = file.content.ljust(operation.offset, b"\0")
        file.kept = min(file.kept, operation.offset)
        file.content = held[: operation.offset] + operation.data + held[operation.offset + len(operation.data) :]
    elif operation.kind == "truncate":
        file = _find(root, operation.path)
        assert isinstance(file, _File)
        file.content = file.content[: operation.offset].ljust(operation.offset, b"\0")
        file.kept = min(file.kept, operation.offset)
    elif operation.kind == "fsync":
        node = _find(root, operation.path)
        if isinstance(node, _File):
            node.flushed, node.kept = node.content, len(node.content)
        else:
            node.flushed = dict(node.names)
    elif operation.kind == "mkdir":
        folder, name = _place(root, operation.path)
        folder.names[name] = _Folder()
    elif operation.kind == "rename":
        folder, name = _place(root, operation.path)
        other, new = _place(root, operation.other)
        other.names[new] = folder.names.pop(name)
    elif operation.kind in ("unlink", "rmdir"):
        folder, name = _place(root, operation.path)
        folder.names.pop(name, None)


def _write(folder: _Folder, way: str, draw: random.Random, target: Path) -> None:
    target.mkdir(parents=True)
    for name in sorted({*folder.names, *folder.flushed}):
        now, then = folder.names.get(name), folder.flushed.get(name)
        node = {"nothing more": then, "all of it": now, "names without contents": now}.get(way)
        if way.startswith("some"):
            node = draw.choice((now, then))
        if isinstance(node, _Folder):
            _write(node, way, draw, target / name)
        elif node is not None:
            content = node.content if way == "all of it" else node.flushed
            if way.startswith("some") and node.content != node.flushed:
                written = node.content[: draw.randint(node.kept, len(node.content))]  # a page that did not make it
                zeros = written.ljust(len(node.content), b"\0")  # one of which only the length did
                content = draw.choice((node.content, node.flushed, written, zeros))
            (target / name).write_bytes(content)
