"""Files that are there whole or not at all: written under another name, flushed to disk, then renamed."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def cache_root() -> Path:
    """The folder of what can be made again (token stores, downloads, the decoding kernel): $RHAPSODE_CACHE or the
    user's."""
    named = os.environ.get("RHAPSODE_CACHE")
    return Path(named).expanduser() if named else platformdirs.user_cache_path("rhapsode")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Gives the error of a full disk, which names no file, the name of what is written inside."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            error.filename = error.filename or str(path)
        raise


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; what was written there takes its place at the end.

    After an exception the temporary file is removed and `path` is as it was. Raises OSError, with the name `path`,
    where it cannot be written.
    """
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:64]}.", dir=path.parent)
    except OSError as error:
        error.filename = str(path)  # not the temporary name, which says nothing
        raise
    os.close(handle)
    temporary = Path(name)
    try:
        with naming(path):
            yield temporary
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.chmod(0o644)
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    r"""Writes a text file atomically, as UTF-8; a byte of a file name that is not is \\udcff, which JSON reads back."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
