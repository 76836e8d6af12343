"""The token store: the ids of all stories in one memory-mapped file, made once per source and tokenizer.

A store is a folder, described in docs/format.md. Making one streams: memory does not grow with the text.
"""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from rhapsode.progress import bar, say
from rhapsode.sources import FileSource, GeneratedSource, Source, cache_root
from rhapsode.tokenizer import Tokenizer, train_tokenizer

FORMAT_VERSION = 1
BATCH_CHARACTERS = 2_000_000  # of text that the tokenizer's threads share at a time
BATCH_IDS = 1_000_000
STALE_SECONDS = 3600.0
TOKENIZER_STORIES = 2_000  # of storyworld: they have all its words that are not rare


class TokenStore:
    """Stories as token ids, memory-mapped and read-only; a view holds some of the stories of a store.

    tokens: all ids of the file. offsets: story i of the file is tokens[offsets[i] : offsets[i + 1]].
    byte_counts: UTF-8 bytes of each story's text. indices: which stories of the file this view holds,
    ascending. num_stories, num_tokens, num_bytes count what the view holds. has_text: False for stores of
    given id lists, whose stories do not end with eos_id.
    """

    def __init__(
        self,
        tokens: np.memmap | np.ndarray,
        offsets: np.ndarray,
        byte_counts: np.ndarray,
        marks: np.ndarray,
        about: dict[str, Any],
        indices: np.ndarray | None = None,
        fingerprint: str | None = None,
    ) -> None:
        self.tokens, self.offsets, self.byte_counts, self._marks, self._about = (
            tokens,
            offsets,
            byte_counts,
            marks,
            about,
        )
        self.indices = np.arange(len(byte_counts)) if indices is None else indices
        self.fingerprint: str = fingerprint or about["fingerprint"]
        self.eos_id: int = about["eos_id"]
        self.vocab_size: int = about["vocab_size"]
        self.has_text: bool = about["has_text"]
        self.description: str = about["description"]
        self.num_stories = len(self.indices)
        whole = self.num_stories == len(byte_counts)
        self.num_tokens = int(offsets[-1] - offsets[0] if whole else self.story_lengths().sum())
        self.num_bytes = int((byte_counts if whole else byte_counts[self.indices]).sum())

    @classmethod
    def open(cls, folder: Path) -> "TokenStore":
        """Opens a store that `prepare` made; raises FileNotFoundError, or ValueError where it is damaged."""
        about = json.loads((folder / "store.json").read_text(encoding="utf-8"))
        if about["format_version"] != FORMAT_VERSION:
            raise ValueError(f"{folder}: format_version {about['format_version']}, this program reads {FORMAT_VERSION}")
        offsets = np.load(folder / "offsets.npy", mmap_mode="r")
        byte_counts = np.load(folder / "bytes.npy", mmap_mode="r")
        tokens = np.memmap(folder / "tokens.bin", dtype=about["dtype"], mode="r")
        store = cls(tokens, offsets, byte_counts, np.load(folder / "marks.npy"), about)
        counts = (store.num_stories, store.num_tokens, len(tokens), len(offsets))
        stories, ids = about["num_stories"], about["num_tokens"]
        if counts != (stories, ids, ids, stories + 1):
            raise ValueError(f"{folder}: damaged, its files hold {counts} items where store.json tells other numbers")
        return store

    def story(self, i: int) -> np.ndarray:
        """The ids of the view's i-th story: with the final </s> for a text, as given for an id list."""
        index = self.indices[i]
        return np.asarray(self.tokens[self.offsets[index] : self.offsets[index + 1]])

    def story_lengths(self) -> np.ndarray:
        """The number of ids of each story of the view."""
        return self.offsets[self.indices + 1] - self.offsets[self.indices]

    def hold_out(self, fraction: float, seed: int) -> tuple["TokenStore", "TokenStore"]:
        """Two views (rest, held out): a seeded draw of stories, in file order, at least one in each.

        A store of one story that was read with --split file is cut in two instead, the end held out, at the
        nearest of the places where the text was cut for the tokenizer (about every 2,048 characters, in a short text
        more often; before whitespace where there is any). Raises ValueError where there is nothing to divide.
        """
        if not 0 < fraction < 1:
            raise ValueError(f"the share to hold out must be between 0 and 1, got {fraction}")
        if self.num_stories == 1:
            return self._cut_in_two(fraction)
        count = min(max(1, round(fraction * self.num_stories)), self.num_stories - 1)
        order = np.random.Generator(np.random.PCG64(seed)).permutation(self.num_stories)
        held_out, rest = np.sort(order[:count]), np.sort(order[count:])
        return self._view(self.indices[rest]), self._view(self.indices[held_out])

    def _view(self, indices: np.ndarray) -> "TokenStore":
        fingerprint = hashlib.sha256(self.fingerprint.encode() + indices.astype("<i8").tobytes()).hexdigest()
        return TokenStore(self.tokens, self.offsets, self.byte_counts, self._marks, self._about, indices, fingerprint)

    def _cut_in_two(self, fraction: float) -> tuple["TokenStore", "TokenStore"]:
        index = int(self.indices[0])
        begin, end = int(self.offsets[index]), int(self.offsets[index + 1])
        marks = self._marks[(self._marks[:, 0] > begin) & (self._marks[:, 0] < end)]
        if not len(marks):
            raise ValueError("cannot hold out a share of one story")
        wanted = begin + (1 - fraction) * (end - begin)
        cut, byte_cut = marks[np.argmin(np.abs(marks[:, 0] - wanted))].tolist()
        byte_count = int(self.byte_counts[index])

        def part(first: int, last: int, byte_count: int) -> TokenStore:
            fingerprint = hashlib.sha256(f"{self.fingerprint} {first} {last}".encode()).hexdigest()
            offsets, byte_counts = np.array([first, last]), np.array([byte_count])
            return TokenStore(self.tokens, offsets, byte_counts, self._marks, self._about, None, fingerprint)

        return part(begin, cut, byte_cut), part(cut, end, byte_count - byte_cut)


def tokenizer_for(
    source: Source, kind: str = "bpe", vocab_size: int = 1024, cache_dir: Path | None = None
) -> Tokenizer:
    """The tokenizer of this kind and size trained on the source; trained once, then found in the cache.

    For storyworld it is trained on the first stories, so that it is the same for all numbers of them above 2,000.
    """
    if isinstance(source, GeneratedSource):
        source = source.head(TOKENIZER_STORIES)
    if source.kind == "ids":
        raise ValueError(
            f"{source.description}: ids have no text to train a tokenizer on; name theirs with --tokenizer"
        )
    key = hashlib.sha256(f"{FORMAT_VERSION} {source.fingerprint()} {kind} {vocab_size}".encode()).hexdigest()
    folder = _cache(cache_dir) / f"tokenizer-{key[:32]}"
    if folder.is_dir():
        try:
            return Tokenizer.load(folder)
        except (OSError, ValueError):
            shutil.rmtree(folder, ignore_errors=True)
    with _reading(f"training a {kind} tokenizer", source) as on_read:
        tokenizer = train_tokenizer((piece.text for piece in source.pieces(on_read)), kind, vocab_size)
    with _new_folder(folder) as temporary:
        tokenizer.save(temporary)
    return tokenizer


def prepare(source: Source, tokenizer: Tokenizer, cache_dir: Path | None = None) -> TokenStore:
    """The token store of the source, made now or found in the cache ($RHAPSODE_CACHE/tokens or the user's).

    The store is found by the contents of the source and of the tokenizer, so a change of either makes a new
    one. Raises ValueError for a source that cannot be read, an id that the vocabulary lacks, or a source that
    changes while it is read; OSError for a cache folder that cannot be written.
    """
    before = source.fingerprint()
    fingerprint = hashlib.sha256(f"{FORMAT_VERSION} {before} {tokenizer.fingerprint}".encode()).hexdigest()
    folder = _cache(cache_dir) / f"store-{fingerprint[:32]}"
    if folder.is_dir():
        try:
            return TokenStore.open(folder)
        except (OSError, ValueError, KeyError) as error:
            say(f"{folder} is damaged ({error}); making it anew")
            shutil.rmtree(folder)
    started = time.monotonic()
    with _new_folder(folder) as temporary:
        about = _write_store(temporary, source, tokenizer)
        about |= {"fingerprint": fingerprint, "source_fingerprint": before}
        text = json.dumps(about, indent=2, ensure_ascii=False) + "\n"
        (temporary / "store.json").write_text(text, encoding="utf-8")
        if source.fingerprint() != before:
            raise ValueError(f"{source.description}: changed while it was read; run again when complete")
    rate = about["num_bytes"] / 1e6 / max(time.monotonic() - started, 1e-9)
    counts = f"{about['num_stories']:,} stories, {about['num_bytes']:,} bytes, {about['num_tokens']:,} tokens"
    say(f"{counts} ({rate:.1f} MB/s), kept in {folder}")
    return TokenStore.open(folder)


def _write_store(folder: Path, source: Source, tokenizer: Tokenizer) -> dict[str, Any]:
    """Writes all but store.json, and returns what that has to tell of it."""
    with (
        open(folder / "tokens.bin", "wb") as tokens,
        _Column(folder / "offsets.npy") as offsets,
        _Column(folder / "bytes.npy") as byte_counts,
        _Column(folder / "marks.npy", width=2) as marks,
        _reading("tokenizing" if source.kind == "text" else "reading token ids", source) as on_read,
    ):
        writer = _Writer(tokenizer, tokens, offsets, byte_counts, marks)
        if isinstance(source, GeneratedSource) and tokenizer.words_stand_alone:
            writer.write_generated(source, on_read)
        elif source.kind == "text":
            writer.write_text(source, on_read)
        else:
            assert isinstance(source, FileSource)
            writer.write_ids(source, on_read)
    return {
        "format_version": FORMAT_VERSION,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "description": source.description,
        "has_text": source.kind == "text",
        "dtype": tokenizer.dtype.str,
        "vocab_size": tokenizer.vocab_size,
        "eos_id": tokenizer.eos_id,
        "num_stories": byte_counts.rows,
        "num_tokens": writer.num_tokens,
        "num_bytes": writer.num_bytes,
    }


@contextmanager
def _reading(what: str, source: Source) -> Iterator[Callable[[float], None]]:
    """A progress bar in megabytes, to be told of bytes."""
    total = None if source.total_bytes is None else source.total_bytes / 1e6
    with bar(what, total, "MB") as advance:
        yield lambda count: advance(count / 1e6)


class _Column:
    """A .npy file of int64 that grows row by row: the header is written last, into the room kept for it."""

    def __init__(self, path: Path, width: int | None = None) -> None:
        self.stream, self.width, self.rows = open(path, "wb"), width, 0  # noqa: SIM115
        self._write_header()
        self.header_bytes = self.stream.tell()

    def _write_header(self) -> None:
        shape = (self.rows,) if self.width is None else (self.rows, self.width)
        np.lib.format.write_array_header_1_0(self.stream, {"descr": "<i8", "fortran_order": False, "shape": shape})

    def append(self, rows: list[int] | list[tuple[int, int]] | np.ndarray) -> None:
        array = np.asarray(rows, dtype="<i8")
        self.stream.write(array.tobytes())
        self.rows += len(array)

    def __enter__(self) -> "_Column":
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.seek(0)
        self._write_header()
        assert self.stream.tell() == self.header_bytes
        self.stream.close()


class _Writer:
    """Appends stories to the open files of a store that is being made."""

    def __init__(
        self, tokenizer: Tokenizer, tokens: Any, offsets: _Column, byte_counts: _Column, marks: _Column
    ) -> None:
        self.tokenizer = tokenizer
        self.tokens, self.offsets, self.byte_counts, self.marks = tokens, offsets, byte_counts, marks
        self.dtype = tokenizer.dtype
        self.num_tokens = self.num_bytes = self.story_bytes = 0
        offsets.append([0])

    def write_text(self, source: Source, on_read: Callable[[float], None]) -> None:
        texts: list[str] = []
        ends: list[bool] = []
        characters = 0
        for text, ends_story in source.pieces(on_read):
            texts.append(text)
            ends.append(ends_story)
            characters += len(text) + 16  # so that very many very short stories fill a batch too
            if characters >= BATCH_CHARACTERS:
                self._write_pieces(texts, ends)
                texts, ends, characters = [], [], 0
        self._write_pieces(texts, ends)

    def _write_pieces(self, texts: list[str], ends: list[bool]) -> None:
        arrays: list[np.ndarray] = []
        ended = np.array([self.tokenizer.eos_id], self.dtype)
        offsets: list[int] = []
        byte_counts: list[int] = []
        marks: list[tuple[int, int]] = []
        for text, ids, ends_story in zip(texts, self.tokenizer.encode_batch(texts), ends, strict=True):
            arrays.append(ids)
            self.num_tokens += len(ids)
            self.story_bytes += len(text.encode())
            if ends_story:
                arrays.append(ended)
                self.num_tokens += 1
                offsets.append(self.num_tokens)
                byte_counts.append(self.story_bytes)
                self.num_bytes += self.story_bytes
                self.story_bytes = 0
            else:
                marks.append((self.num_tokens, self.story_bytes))
        if arrays:
            self.tokens.write(np.concatenate(arrays).data)
        self.offsets.append(offsets)
        self.byte_counts.append(byte_counts)
        self.marks.append(np.array(marks, dtype=np.int64).reshape(-1, 2))

    def write_generated(self, source: GeneratedSource, on_read: Callable[[float], None]) -> None:
        """What write_text writes, but put together from the ids of fragments, of which storyworld is made."""
        from rhapsode import storyworld

        table = storyworld.fragment_tokens(self.tokenizer.encode, self.tokenizer.eos_id, self.dtype.type)
        for batch in storyworld.token_batches(table, source.seed_start, source.count, source.split):
            self.tokens.write(batch.tokens.astype(self.dtype, copy=False).data)
            ends = self.num_tokens + np.cumsum(batch.lengths)
            self.offsets.append(ends)
            self.byte_counts.append(batch.byte_counts)
            read = int(batch.byte_counts.sum())
            self.num_tokens, self.num_bytes = int(ends[-1]), self.num_bytes + read
            on_read(read)

    def write_ids(self, source: FileSource, on_read: Callable[[float], None]) -> None:
        batch: list[np.ndarray] = []
        held = 0
        for record in source.sequences(on_read):
            ids = np.asarray(record.value)
            if ids.max() >= self.tokenizer.vocab_size:
                position = int(np.argmax(ids >= self.tokenizer.vocab_size))
                raise ValueError(
                    f"{record.where}, position {position + 1}: id {ids[position]} is not in the tokenizer's"
                    f" vocabulary of {self.tokenizer.vocab_size}"
                )
            batch.append(ids)
            held += len(ids)
            if held >= BATCH_IDS:
                self._write_sequences(batch)
                batch, held = [], 0
        self._write_sequences(batch)

    def _write_sequences(self, batch: list[np.ndarray]) -> None:
        if not batch:
            return
        byte_counts = [len(text.encode()) for text in self.tokenizer.decode_batch([ids.tolist() for ids in batch])]
        self.tokens.write(np.concatenate(batch).astype(self.dtype).tobytes())
        ends = self.num_tokens + np.cumsum([len(ids) for ids in batch])
        self.offsets.append(ends)
        self.byte_counts.append(byte_counts)
        self.num_tokens, self.num_bytes = int(ends[-1]), self.num_bytes + sum(byte_counts)


def _cache(cache_dir: Path | None) -> Path:
    folder = cache_root() / "tokens" if cache_dir is None else Path(cache_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"cannot make the cache folder {folder}: {error.strerror}; set RHAPSODE_CACHE to another"
        ) from None
    return folder


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that becomes `folder` at the end, whole or not at all.

    Of two processes that make the same folder, the first to end wins, and the other throws its own away.
    """
    for other in folder.parent.glob(".making-*"):  # what killed processes left
        newest = max((path.stat().st_mtime for path in (other, *other.glob("*"))), default=0.0)
        if time.time() - newest > STALE_SECONDS:
            shutil.rmtree(other, ignore_errors=True)
    try:
        temporary = Path(tempfile.mkdtemp(prefix=".making-", dir=folder.parent))
    except OSError as error:
        raise OSError(
            f"cannot write into the cache {folder.parent}: {error.strerror}; set RHAPSODE_CACHE to another"
        ) from None
    try:
        yield temporary
        for path in (*temporary.iterdir(), temporary):
            handle = os.open(path, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)
        os.chmod(temporary, 0o755)
        try:
            os.rename(temporary, folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
