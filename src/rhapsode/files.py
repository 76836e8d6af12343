"""Files and folders that are there whole or not at all, and that a power cut does not take away again.

Each is written under another name, flushed to disk, renamed, and then the folder that holds the new name is flushed
too. A folder can carry SHA256SUMS, the digests of its files, which `sha256sum -c SHA256SUMS` checks as well.
"""

import glob
import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import platformdirs
from filelock import FileLock, Timeout

MAKING = ".making-"  # how the names of folders begin that are not whole yet
STALE_SECONDS = 3600.0
CLAIM_ATTEMPTS = 5  # at what other processes may undo
CHECKSUMS = "SHA256SUMS"
OURS = "# rhapsode: "  # how its first line begins, which says what the folder is
_LINE = re.compile(r"([0-9a-f]{64})  (\S.*)")


def cache_root() -> Path:
    """The folder of what can be made again (token stores, downloads, the decoding kernel): $RHAPSODE_CACHE or the
    user's."""
    named = os.environ.get("RHAPSODE_CACHE")
    return Path(named).expanduser() if named else platformdirs.user_cache_path("rhapsode")


@contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """Gives an OSError that names no file, as those of reading and writing do, the name of what is read or written."""
    try:
        yield
    except OSError as error:
        if error.errno and not error.filename:
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; what was written there takes its place at the end, for good.

    What killed processes left of theirs, more than an hour ago, is removed first.
    After an exception the temporary file is removed and `path` is as it was, or already new. Raises OSError, with the
    name `path`, where it cannot be written.
    """
    with suppress(OSError):
        for leftover in path.parent.glob(f".{glob.escape(path.name[:64])}.????????"):
            if time.time() - leftover.stat().st_mtime > STALE_SECONDS:
                leftover.unlink()
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:64]}.", dir=path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    temporary = Path(name)
    try:
        os.close(handle)
        yield temporary
        _sync(temporary)
        temporary.chmod(0o644)
        os.replace(temporary, path)
        sync_directory(path.parent)
    except BaseException as error:
        with suppress(OSError):  # the disk may be read-only by now
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and error.filename in (None, name, str(path.parent)):
            raise OSError(error.errno, error.strerror, str(path)) from None  # a temporary name says nothing
        raise


def write_text(path: Path, text: str) -> None:
    r"""Writes a text file atomically, as UTF-8; a byte of a file name that is not is \\udcff, which JSON reads back."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


class AppendedFile:
    """A text file that grows by whole texts; what the disk refuses is kept, and written before the next one."""

    def __init__(self, path: Path) -> None:
        self.path, self._pending = path, b""
        self._stream = path.open("ab", buffering=0)

    def write(self, text: str) -> None:
        """Appends a text, as UTF-8; raises OSError where the disk refuses, without losing it."""
        self._pending += text.encode("utf-8", errors="backslashreplace")
        self.flush()

    def flush(self) -> None:
        """Writes what is still to be written; raises OSError, with the path."""
        with naming(self.path):
            while self._pending:
                self._pending = self._pending[self._stream.write(self._pending) or 0 :]

    def close(self) -> None:
        """Closes the file; raises OSError where the rest cannot be written."""
        try:
            self.flush()
        finally:
            self._stream.close()


def sweep(folder: Path, names: Iterable[str]) -> None:
    """Removes what killed processes left of files that they were replacing; nobody may be writing them now."""
    for name in names:
        for leftover in folder.glob(f".{glob.escape(name[:64])}.*"):
            leftover.unlink(missing_ok=True)


@contextmanager
def making(path: Path) -> Iterator[Path]:
    """Yields a temporary folder beside `path`; with what was put into it, it becomes `path` at the end, or is gone.

    A folder that killed processes left unfinished beside `path` is removed. Raises OSError, with the name `path`,
    where it cannot be written, and where something is at `path` by then that is not an empty folder.
    """
    try:
        temporary, lock = _claimed(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    try:
        yield temporary
        for folder, _, files in os.walk(temporary, topdown=False):
            for name in files:
                _sync(Path(folder, name))
            sync_directory(Path(folder))
        if path.is_dir():
            path.rmdir()
        if os.name == "nt":  # where a folder with an open file cannot be renamed
            lock.release()
        os.rename(temporary, path)
        sync_directory(path.parent)
        lock.release()
        (path / ".lock").unlink(missing_ok=True)
    except BaseException as error:
        lock.release()
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError) and error.errno:
            named = str(error.filename or path).replace(str(temporary), str(path))
            raise OSError(error.errno, error.strerror, named) from None
        raise


def _claimed(path: Path) -> tuple[Path, FileLock]:
    """A new folder beside `path`, and its lock, held. Those that nobody holds any more are removed first."""
    attempts = 0
    while True:
        attempts += 1
        make_directory(path.parent)
        for other in path.parent.glob(f"{MAKING}*"):
            if _is_abandoned(other):
                shutil.rmtree(other, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(prefix=f"{MAKING}{path.name[:64]}.", dir=path.parent))
        lock = FileLock(temporary / ".lock")
        try:
            lock.acquire()
            sync_directory(temporary)  # what has no lock has nothing else either
            temporary.chmod(0o755)
            os.stat(temporary / ".lock")
        except OSError as error:
            lock.release()
            shutil.rmtree(temporary, ignore_errors=True)
            # Another process may have found it without its lock, and removed it.
            if not isinstance(error, FileNotFoundError) or attempts == CLAIM_ATTEMPTS:
                raise
        else:
            return temporary, lock


def _is_abandoned(folder: Path) -> bool:
    """Whether nobody makes this folder any more: its lock is free, or it has none and is empty or an hour old."""
    lock = folder / ".lock"
    try:
        if lock.exists():
            with FileLock(lock, timeout=0):
                return True
        if not any(folder.iterdir()):
            return True
        newest = max(path.stat().st_mtime for path in (folder, *folder.glob("*")))
    except (OSError, Timeout):  # held, or gone while we looked
        return False
    return time.time() - newest > STALE_SECONDS


def make_directory(path: Path) -> None:
    """Makes a folder and those above it that are missing, to stay after a power cut; one that is there is no error."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    with naming(path):
        for folder in missing:
            sync_directory(folder.parent)


def sync_directory(path: Path) -> None:
    """Brings the names in a folder to the disk: until then a power cut may undo what was created or renamed in it."""
    if os.name != "nt":  # where folders cannot be opened
        _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def digest_of_file(path: Path) -> str:
    """SHA-256 of a file's contents, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_checksums(folder: Path, title: str, files: Iterable[Path]) -> None:
    """Writes SHA256SUMS into the folder: of what the files, all below it, hold now; title: whose they are."""
    lines = [f"{digest_of_file(file)}  {file.relative_to(folder).as_posix()}\n" for file in sorted(files)]
    write_text(folder / CHECKSUMS, f"{OURS}{title}\n{''.join(lines)}")


def read_checksums(folder: Path) -> tuple[str, dict[str, str]] | None:
    """The title in a folder's SHA256SUMS and the digests by name; None where it has none of ours.

    Raises ValueError where it is damaged.
    """
    file = folder / CHECKSUMS
    if not file.exists():
        return None
    head, *lines = file.read_text(encoding="utf-8", errors="replace").removesuffix("\n").split("\n")
    found = [_LINE.fullmatch(line) for line in lines]
    if not head.startswith(OURS):
        return None
    if not all(found):
        raise ValueError(f"{file}: damaged, not a list of SHA-256 digests")
    return head.removeprefix(OURS), {match[2]: match[1] for match in found if match}


def check_checksums(folder: Path, title: str | None = None) -> None:
    """ValueError naming the first file that differs from SHA256SUMS, where there is one, or that is missing.

    Also where the list is another folder's: its title is not the one that is given.
    """
    listed = read_checksums(folder)
    if listed is None:
        return
    if title is not None and listed[0] != title:
        raise ValueError(f"{folder / CHECKSUMS}: belongs to {listed[0]}, not to {title}")
    for name, digest in listed[1].items():
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name}: missing")
        if digest_of_file(folder / name) != digest:
            raise ValueError(
                f"{folder / name}: damaged, or changed: its SHA-256 is not the one in {CHECKSUMS}; restore it, or, if"
                f" the change is yours, remove {CHECKSUMS}"
            )
