"""A token store of many shards, made by many processes: `rhapsode prepare`.

    plan.json              what is prepared, and how it is cut into shards: written first
    tokenizer/             the tokenizer of all of it
    shard-00000/ ...       a token store each, of some megabytes of text, whole or not there
    shards.json            how many shards, and how much is in them: written last, and only then is the store there

One process reads and cuts the text and spools it, a shard at a time; the others make stores of the spooled text. What
a killed process had not finished is made again, by the same command or at once. The ids are those that `prepare` in
store.py makes, and so is the fingerprint: a training cannot tell which of the two it reads.
"""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from rhapsode.files import CHECKSUMS, digest_of_file, making, write_checksums, write_text
from rhapsode.progress import say, silent
from rhapsode.recorded import read_versioned, sealed
from rhapsode.sources import FileSource, Piece, Record, Source
from rhapsode.sources.files import InputFile, OnRead
from rhapsode.sources.remote import is_remote
from rhapsode.tokenizer import Tokenizer
from rhapsode.tokenizer.coding import TOKENIZER_FILES
from rhapsode.tokens.places import Place
from rhapsode.tokens.ranges import JoinedIds, RangedIds
from rhapsode.tokens.spool import SpooledSource, SpoolWriter
from rhapsode.tokens.store import TokenStore, fingerprint_of
from rhapsode.tokens.writing import reading_bar, write_store

SHARDS_VERSION = 1
MANIFEST, PLAN = "shards.json", "plan.json"
SHARD_BYTES = 16_000_000  # of text; a story is never cut in two
SHARDS_AHEAD = 2  # shards that a process has been told of
MOST_ATTEMPTS = 3  # at a shard whose process is killed
LISTED = "checksums_sha256"  # of a shard's SHA256SUMS: which files make up the store
COLUMNS = ("offsets", "bytes", "unspelled", "marks")


def is_prepared(location: str) -> bool:
    """Whether `rhapsode prepare` has made a store there, to its end; of addresses elsewhere, asks."""
    return (is_remote(location) or Path(location).is_dir()) and Place(location).has(MANIFEST)


class PreparedSource:
    """A store that `prepare_shards` made, where a source of text is asked for: its text is ids already."""

    kind: Literal["text", "ids"] = "text"
    files: tuple[InputFile, ...] = ()
    total_bytes: int | None = None

    def __init__(self, location: str) -> None:
        self.store, self.tokenizer = open_shards(location)
        self.description = f"{location}: {self.store.description} (prepared)"

    def fingerprint(self) -> str:
        """That of the text that was prepared."""
        return str(self.store._about["source_fingerprint"])

    def stories(self) -> Iterator[str]:
        """Yields each story's text, decoded."""
        return (self.tokenizer.decode(self.store.story(i).tolist()) for i in range(self.store.num_stories))

    def pieces(self, on_read: OnRead | None = None) -> Iterator[Piece]:
        """Yields each story in one piece."""
        return (Piece(text, True) for text in self.stories())


def open_shards(location: str) -> tuple[TokenStore, Tokenizer]:
    """The store at a path or an address, and its tokenizer; ids are mapped into memory, or read in pieces from there.

    Raises FileNotFoundError where there is none that is complete, or ValueError where it is damaged.
    """
    place = Place(location)
    about = _manifest(place)
    columns: dict[str, list[np.ndarray]] = {name: [] for name in COLUMNS}
    parts: list[Any] = []
    tokens = 0
    for shard in about["shards"]:
        found, ids = _open_shard(place, shard, about["dtype"])
        columns["offsets"].append(found["offsets"][1:] + tokens)
        columns["marks"].append(found["marks"] + [tokens, 0, 0, 0])
        columns["bytes"].append(found["bytes"])
        columns["unspelled"].append(found["unspelled"])
        parts.append(ids)
        tokens += shard["num_tokens"]
    joined = {name: np.concatenate(pieces) for name, pieces in columns.items()}
    offsets = np.concatenate(([0], joined["offsets"]))
    store = TokenStore(
        JoinedIds(parts), offsets, joined["bytes"], joined["marks"], about, unspelled=joined["unspelled"]
    )
    if (store.num_stories, store.num_tokens) != (about["num_stories"], about["num_tokens"]):
        raise ValueError(f"{location}: damaged, its shards do not hold what {MANIFEST} says")
    tokenizer = _tokenizer_at(place)
    if tokenizer.fingerprint != about["tokenizer_fingerprint"]:
        raise ValueError(f"{location}/tokenizer: not the tokenizer of this store; restore it")
    return store, tokenizer


def _tokenizer_at(place: Place) -> Tokenizer:
    if not place.remote:
        return Tokenizer.load(Path(place.location) / "tokenizer")
    with tempfile.TemporaryDirectory() as folder:
        for name in TOKENIZER_FILES:
            if place.has(f"tokenizer/{name}"):
                (Path(folder) / name).write_text(place.read(f"tokenizer/{name}"), encoding="utf-8")
        return Tokenizer.load(Path(folder))


def _manifest(place: Place) -> dict[str, Any]:
    """What shards.json holds; ValueError where it is damaged or of another version."""
    if not place.remote:
        return read_versioned(Path(place.location) / MANIFEST, SHARDS_VERSION)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / MANIFEST
        file.write_text(place.read(MANIFEST), encoding="utf-8")
        try:
            return read_versioned(file, SHARDS_VERSION)
        except ValueError as error:
            raise ValueError(str(error).replace(folder, place.location)) from None


def _open_shard(place: Place, shard: dict[str, Any], dtype: str) -> tuple[dict[str, np.ndarray], Any]:
    if not place.remote:
        folder = Path(place.location) / shard["name"]
        store = TokenStore.open(folder)
        _check_listed(folder, shard)
        columns = {"offsets": store.offsets, "bytes": store.byte_counts, "unspelled": store.unspelled}
        return {**columns, "marks": store._marks}, store.tokens
    columns = {name: place.read_array(f"{shard['name']}/{name}.npy") for name in COLUMNS}
    return columns, RangedIds(f"{place.location}/{shard['name']}/tokens.bin", dtype, shard["num_tokens"])


def _check_listed(folder: Path, shard: dict[str, Any]) -> None:
    """ValueError where a shard, intact in itself, is not the one that the store was made of."""
    listed = folder / CHECKSUMS
    if LISTED in shard and not listed.is_file():  # stores of earlier versions do not say
        raise ValueError(f"{listed}: missing; restore it")
    if LISTED in shard and digest_of_file(listed) != shard[LISTED]:
        raise ValueError(f"{folder}: another store's, or {MANIFEST} is: they do not belong together; restore the store")


def prepare_shards(source: Source, tokenizer: Tokenizer, out: str, workers: int = 1) -> TokenStore:
    """Makes the store of a source at a path or an address, by so many processes; what is there already is kept.

    Raises ValueError where something else is being prepared there, or the source cannot be read or changes meanwhile,
    and OSError where nothing can be written.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    place, before = Place(out), source.fingerprint()
    fingerprint = fingerprint_of(source, tokenizer)
    plan = {"format_version": SHARDS_VERSION, "fingerprint": fingerprint, "shard_bytes": SHARD_BYTES}
    with place.held((PLAN, MANIFEST)):
        _begin(place, plan, tokenizer)
        if place.has(MANIFEST):
            place.clear()  # of a process that was killed just before it did
            say(f"{out}: prepared already")
            return open_shards(out)[0]
        started = time.monotonic()
        shards = list(_Shards(place, source, tokenizer, workers).made())
        if source.fingerprint() != before:
            raise ValueError(f"{source.description}: changed while it was read; run again when complete")
        about = {key: value for key, value in shards[0].items() if key not in ("sha256", "name", LISTED)}
        counts = {name: sum(shard[name] for shard in shards) for name in ("num_stories", "num_tokens", "num_bytes")}
        about |= {"description": source.description, "fingerprint": fingerprint, "source_fingerprint": before, **counts}
        about |= {
            "format_version": SHARDS_VERSION,
            "shards": [{n: shard[n] for n in ("name", *counts, LISTED)} for shard in shards],
        }
        place.write(MANIFEST, json.dumps(sealed(about), indent=1, ensure_ascii=False) + "\n")
        place.clear()
    rate = counts["num_bytes"] / 1e6 / max(time.monotonic() - started, 1e-9)
    amounts = f"{counts['num_stories']:,} stories, {counts['num_bytes']:,} bytes, {counts['num_tokens']:,} tokens"
    say(f"{amounts} ({rate:.1f} MB/s) in {len(shards)} shards in {out}")
    return open_shards(out)[0]


def _begin(place: Place, plan: dict[str, Any], tokenizer: Tokenizer) -> None:
    """Writes down what is prepared here; ValueError where that was something else."""
    if not place.has(PLAN):
        if place.names():
            raise FileExistsError(f"{place.location} already exists: choose another folder with --out")
        place.write(PLAN, json.dumps(plan))
    elif _plan_at(place) != plan:
        raise ValueError(
            f"{place.location}: holds a store of other data or with another tokenizer, or a part of one; choose"
            " another folder with --out, or remove it"
        )
    if not all(place.has(f"tokenizer/{name}") for name in TOKENIZER_FILES):
        with place.making("tokenizer") as folder:
            tokenizer.save(folder)


def _plan_at(place: Place) -> Any:
    try:
        return json.loads(place.read(PLAN))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{place.location}/{PLAN}: damaged ({error}); remove the folder, or choose another one with --out"
        ) from None


class ShardWorker(NamedTuple):
    """A process that makes shards, one after the other, the pipe by which it is told which, and those it was told."""

    pipe: Connection
    process: BaseProcess
    shards: list[int]

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


class _Shards:
    """The shards of a source while they are made."""

    def __init__(self, place: Place, source: Source, tokenizer: Tokenizer, workers: int) -> None:
        self.place, self.source, self.tokenizer, self.workers = place, source, tokenizer, workers
        self.spools = place.local_folder("spool")
        self.context = _context()
        self.there: list[ShardWorker] = []
        self.queue: list[int] = []  # shards whose text is spooled
        self.attempts: dict[int, int] = {}

    def made(self) -> list[dict[str, Any]]:
        """What each shard holds, in order, once all are made."""
        there = {name for name in self.place.names() if self.place.has(f"{name}/store.json")}
        try:
            with reading_bar("preparing", self.source) as self.on_read:
                number, spool, done = 0, None, 0
                for piece in self._pieces():
                    name = f"shard-{number:05}"
                    if done == 0:
                        spool = None if name in there else SpoolWriter(self.spools / name)
                    ends = spool.write(piece) if spool else not isinstance(piece, Piece) or piece.ends_story
                    done += _size(piece)
                    if done >= SHARD_BYTES and ends:
                        self._next(number, spool)
                        number, done = number + 1, 0
                if done:
                    self._next(number, spool)
                    number += 1
                while any(worker.shards for worker in self.there):
                    self._wait()
        finally:
            self._end()
        return [
            json.loads(self.place.read(f"{name}/store.json")) | {"name": name, LISTED: self._digest_of_list(name)}
            for name in (f"shard-{i:05}" for i in range(number))
        ]

    def _digest_of_list(self, name: str) -> str:
        return hashlib.sha256(self.place.read(f"{name}/{CHECKSUMS}").encode()).hexdigest()

    def _pieces(self) -> Iterator[Piece | Record]:
        if self.source.kind == "text":
            return iter(self.source.pieces(self.on_read))
        assert isinstance(self.source, FileSource)
        return self.source.sequences(self.on_read)

    def _next(self, number: int, spool: SpoolWriter | None) -> None:
        """A shard's text is spooled: makes it, or has it made; returns when there is room for the next one."""
        if spool is None:
            return
        spool.close()
        if self._target(number).is_dir():  # made by a process that was killed before it could move it
            self._keep(number)
        elif self.workers == 1:
            make_shard(*self._asked(number), tokenizer=self.tokenizer)
            self._keep(number)
        else:
            self.queue.append(number)
            self._hand_out()
            while self.queue:
                self._wait()

    def _asked(self, number: int) -> tuple[str, str, Any, str]:
        """What `make_shard` has to know of a shard."""
        spool, target = self.spools / f"shard-{number:05}", self._target(number)
        return str(spool), str(target), self.source.kind, self.source.description

    def _target(self, number: int) -> Path:
        return self.place.local_folder("shards") / f"shard-{number:05}"

    def _hand_out(self) -> None:
        """Gives each process a shard, and one more, so that none waits while the next one's text is read."""
        while self.queue and (free := self._free()):
            try:
                free.pipe.send(self._asked(self.queue[0]))
            except ConnectionError:  # killed while it had nothing to do
                self._lost(free)
            else:
                free.shards.append(self.queue.pop(0))

    def _free(self) -> ShardWorker | None:
        """The process with the least to do, if there is room for more; a new one, if there may be one more."""
        least = min(self.there, key=lambda worker: len(worker.shards), default=None)
        if len(self.there) < self.workers and (least is None or least.shards):
            self.there.append(self._worker())
            return self.there[-1]
        return least if least and len(least.shards) < SHARDS_AHEAD else None

    def _lost(self, worker: ShardWorker) -> None:
        """A process was killed: what it had to do is done by others."""
        worker.end()
        self.there.remove(worker)
        self.queue[:0] = worker.shards

    def _worker(self) -> ShardWorker:
        folder = self.place.local_folder("tokenizer-copy")
        if not (folder / TOKENIZER_FILES[0]).exists():
            self.tokenizer.save(folder)
        here, there = self.context.Pipe()
        process = self.context.Process(target=_make_apart, args=(there, str(folder)), daemon=True)
        process.start()
        there.close()
        return ShardWorker(here, process, [])

    def _wait(self) -> None:
        """Waits for a shard; one whose process was killed is made again."""
        busy = {worker.pipe: worker for worker in self.there if worker.shards}
        for pipe in wait(list(busy)):
            worker = busy[pipe]  # type: ignore[index]
            number = worker.shards[0]
            try:
                error, killed = worker.pipe.recv(), False
            except (EOFError, ConnectionError):
                error, killed = None, True
            if error is not None:
                raise error
            if not killed or self._target(number).is_dir():
                worker.shards.pop(0)
                self._keep(number)
            else:
                self.attempts[number] = self.attempts.get(number, 0) + 1
                if self.attempts[number] == MOST_ATTEMPTS:
                    raise ChildProcessError(
                        f"shard {number}: the process that makes it was killed {MOST_ATTEMPTS} times, perhaps because"
                        " memory ran out; run the same command again, with fewer --workers"
                    )
                say(f"shard {number}: its process was killed; making it again")
            if killed:
                self._lost(worker)
        self._hand_out()

    def _end(self) -> None:
        """Ends the processes, at work or not."""
        for worker in self.there:
            worker.end()

    def _keep(self, number: int) -> None:
        name = f"shard-{number:05}"
        self.place.take(self.place.local_folder("shards") / name, name)
        (self.spools / name).unlink(missing_ok=True)


def _context() -> Any:
    """How processes are begun: where that can be, forked from one that has imported this module and nothing else."""
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _size(piece: Piece | Record) -> int:
    return len(piece.text.encode()) + 16 if isinstance(piece, Piece) else piece.value.nbytes  # type: ignore[union-attr]


def _make_apart(pipe: Connection, tokenizer_folder: str) -> None:
    """`make_shard` in a process of its own, with one thread: other cores are others'. Sends an error, or None."""
    os.environ["RAYON_NUM_THREADS"] = "1"
    with suppress(ConnectionError, EOFError):  # nobody asks any more
        tokenizer = None
        while True:
            spool, target, kind, description = pipe.recv()
            error = None
            try:
                tokenizer = tokenizer or Tokenizer.load(Path(tokenizer_folder))
                make_shard(spool, target, kind, description, tokenizer)
            except Exception as raised:
                error = raised
            pipe.send(error)


def make_shard(spool: str, target: str, kind: Any, description: str, tokenizer: Tokenizer) -> dict[str, Any]:
    """Makes the token store of a spooled file; returns what its store.json says."""
    source, folder = SpooledSource(Path(spool), kind, description), Path(target)
    with making(folder) as temporary:
        with silent():
            about = write_store(temporary, source, tokenizer)
        about |= {"fingerprint": folder.name, "source_fingerprint": folder.name}
        write_text(temporary / "store.json", json.dumps(sealed(about), indent=2, ensure_ascii=False) + "\n")
        files = [path for path in temporary.iterdir() if path.name not in (".lock", CHECKSUMS)]
        write_checksums(temporary, folder.name, files)
    return about
