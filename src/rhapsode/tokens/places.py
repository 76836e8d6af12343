"""Where a store of shards is: a folder of this computer, or a folder at an address."""

import io
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from rhapsode.files import make_directory, making, naming, sweep, sync_directory, write_text
from rhapsode.sources.remote import file_system, is_remote, reaching

WORK = ".work"  # a folder in the store, of what is made on the way


class Place:
    """A folder at a path or an address. Elsewhere, what is made lies in a temporary folder here before it is copied."""

    def __init__(self, location: str) -> None:
        self.location, self.remote = location.rstrip("/"), is_remote(location)
        if self.remote:
            self.system, self.root = file_system(self.location)
            self._here: Any = None

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        if not self.remote:
            return (Path(self.location) / name).is_file()
        with reaching(self.location):
            return bool(self.system.exists(f"{self.root}/{name}"))

    def names(self) -> list[str]:
        """What is in the folder, hidden files left out."""
        if not self.remote:
            folder = Path(self.location)
            return [path.name for path in folder.iterdir() if path.name[0] != "."] if folder.is_dir() else []
        with reaching(self.location):
            found = self.system.ls(self.root, detail=False) if self.system.exists(self.root) else []
        return [name.rstrip("/").rpartition("/")[2] for name in found]

    def read(self, name: str) -> str:
        """The text of a file."""
        if not self.remote:
            return (Path(self.location) / name).read_text(encoding="utf-8")
        with reaching(f"{self.location}/{name}"):
            return self.system.cat_file(f"{self.root}/{name}").decode()

    def read_array(self, name: str) -> np.ndarray:
        """An array that NumPy saved."""
        with reaching(f"{self.location}/{name}"):
            content = self.system.cat_file(f"{self.root}/{name}")
        return np.load(io.BytesIO(content))

    def write(self, name: str, text: str) -> None:
        """A file, whole or not at all."""
        if not self.remote:
            make_directory(Path(self.location))
            write_text(Path(self.location) / name, text)
            return
        with reaching(self.location):
            self.system.pipe_file(f"{self.root}/{name}", text.encode())

    @contextmanager
    def making(self, name: str) -> Iterator[Path]:
        """Yields a folder of this computer; what is put into it becomes the folder of that name there."""
        if not self.remote:
            with making(Path(self.location) / name) as temporary:
                yield temporary
            return
        folder = self.local_folder("new") / name
        folder.mkdir()
        yield folder
        self.take(folder, name)

    def take(self, folder: Path, name: str) -> None:
        """Moves a folder of this computer there; elsewhere its store.json, by which it counts as whole, comes last."""
        if not self.remote:
            folder.rename(Path(self.location) / name)
            with naming(self.location):
                sync_directory(Path(self.location))  # before anything else tells that it is there
            return
        with reaching(self.location):
            for file in sorted(folder.iterdir(), key=lambda file: file.name == "store.json"):
                self.system.put_file(str(file), f"{self.root}/{name}/{file.name}")
                file.unlink()
        folder.rmdir()

    def local_folder(self, name: str) -> Path:
        """A folder of this computer for what is made on the way; what an earlier process left there may still be."""
        if self.remote:
            if self._here is None:
                self._here = tempfile.TemporaryDirectory(prefix="rhapsode-store-")
            folder = Path(self._here.name) / name
        else:
            folder = Path(self.location) / WORK / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def clear(self) -> None:
        """Removes what was made on the way."""
        if self.remote:
            if self._here is not None:
                self._here.cleanup()
        else:
            shutil.rmtree(Path(self.location) / WORK, ignore_errors=True)

    @contextmanager
    def held(self, names: Iterable[str]) -> Iterator[None]:
        """Holds the folder for this process; BlockingIOError where another one prepares it. Elsewhere nobody can.

        What a killed process left of the files of these names, half written, is removed.
        """
        if self.remote:
            yield
            return
        make_directory(Path(self.location))
        lock = FileLock(Path(self.location) / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise BlockingIOError(f"{self.location}: another process prepares it; wait for it or stop it") from None
        try:
            sweep(Path(self.location), names)
            yield
        finally:
            lock.release()
