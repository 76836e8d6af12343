"""The token store: the ids of all stories in one memory-mapped file, made once per source and tokenizer.

A store is a folder, described in docs/format.md. Making one streams: memory does not grow with the text.
"""

import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from rhapsode.files import (
    CHECKSUMS,
    MAKING,
    cache_root,
    check_checksums,
    make_directory,
    making,
    write_checksums,
    write_text,
)
from rhapsode.progress import say
from rhapsode.recorded import read_versioned
from rhapsode.sources import Source
from rhapsode.storyworld.source import GeneratedSource
from rhapsode.tokenizer import Tokenizer, train_tokenizer
from rhapsode.tokenizer.training import sample_of
from rhapsode.tokens.ranges import JoinedIds
from rhapsode.tokens.writing import FORMAT_VERSION, reading_bar, write_store

# These enter the names of what is made: raised when other ids, or other tokenizers, come of the same source.
IDS_VERSION, TRAINING_VERSION = 1, 3
ATTEMPTS = 5  # to make a store that others remove
TOKENIZER_STORIES = 2_000  # of storyworld: they have all its words that are not rare


class TokenStore:
    """Stories as token ids, memory-mapped and read-only; a view holds some of the stories of a store.

    tokens: all ids of the file. offsets: story i of the file is tokens[offsets[i] : offsets[i + 1]].
    byte_counts: UTF-8 bytes of each story's text. unspelled: (N, 2), of each story the bytes that its ids do not
    hold and the bits of the corrections that give them (see tokenizer/corrections.py). indices: which stories of
    the file this view holds, ascending. num_stories, num_tokens, num_bytes, unspelled_bytes count what the view
    holds; correction_bits, too, with the bit that ends each story's corrections, 0 where there are none at all.
    has_text: False for stores of given id lists, whose stories do not end with eos_id. labelled: whether each story is
    a list of ids with answers, id, answer, id, answer: an answer is what is expected after its id, and is not read.
    """

    def __init__(
        self,
        tokens: np.ndarray | JoinedIds,
        offsets: np.ndarray,
        byte_counts: np.ndarray,
        marks: np.ndarray,
        about: dict[str, Any],
        indices: np.ndarray | None = None,
        fingerprint: str | None = None,
        unspelled: np.ndarray | None = None,
    ) -> None:
        self.tokens, self.offsets, self.byte_counts, self._marks, self._about = (
            tokens,
            offsets,
            byte_counts,
            marks,
            about,
        )
        self.unspelled = np.zeros((len(byte_counts), 2), np.int64) if unspelled is None else unspelled
        self.indices = np.arange(len(byte_counts)) if indices is None else indices
        self.fingerprint: str = fingerprint or about["fingerprint"]
        self.eos_id: int = about["eos_id"]
        self.vocab_size: int = about["vocab_size"]
        self.has_text: bool = about["has_text"]
        self.labelled: bool = about.get("labelled", False)
        self.description: str = about["description"]
        self.num_stories = len(self.indices)
        whole = self.num_stories == len(byte_counts)
        self.num_tokens = int(offsets[-1] - offsets[0] if whole else self.story_lengths().sum())
        self.num_bytes = int((byte_counts if whole else byte_counts[self.indices]).sum())
        sums = (self.unspelled if whole else self.unspelled[self.indices]).sum(axis=0)
        self.unspelled_bytes, bits = int(sums[0]), int(sums[1])
        self.correction_bits = bits + self.num_stories if bits else 0

    @classmethod
    def open(cls, folder: Path) -> "TokenStore":
        """Opens a store that `prepare` made, once all its files match their checksums.

        Raises OSError where a file is not there or cannot be read, ValueError where the store is damaged.
        """
        about = read_versioned(folder / "store.json", FORMAT_VERSION)
        check_checksums(folder, folder.name)
        try:
            store = cls._open(folder, about)
            if not (folder / CHECKSUMS).exists():  # made by an earlier version
                store._check_bounds()
        except OSError:
            raise
        except Exception as error:  # what NumPy raises at damaged headers has no end
            raise ValueError(f"{folder}: damaged ({error})") from None
        return store

    @classmethod
    def _open(cls, folder: Path, about: dict[str, Any]) -> "TokenStore":
        offsets = np.load(folder / "offsets.npy", mmap_mode="r")
        byte_counts = np.load(folder / "bytes.npy", mmap_mode="r")
        tokens = np.memmap(folder / "tokens.bin", dtype=about["dtype"], mode="r")
        unspelled = np.load(folder / "unspelled.npy", mmap_mode="r")
        store = cls(tokens, offsets, byte_counts, np.load(folder / "marks.npy"), about, unspelled=unspelled)
        counts = (store.num_stories, store.num_tokens, len(tokens), len(offsets), len(unspelled))
        stories, ids = about["num_stories"], about["num_tokens"]
        if counts != (stories, ids, ids, stories + 1, stories):
            raise ValueError(f"its files hold {counts} items, but store.json has other numbers")
        return store

    def _check_bounds(self) -> None:
        """Raises ValueError where stories would lie outside the file, or ids outside the vocabulary."""
        ascending = self.offsets[0] == 0 and (np.diff(self.offsets) >= 0).all() and (self.byte_counts >= 0).all()
        if not ascending or (len(self.tokens) and np.asarray(self.tokens).max() >= self.vocab_size):
            raise ValueError("its numbers cannot be those of a store")

    def story(self, i: int) -> np.ndarray:
        """The ids of the view's i-th story: with the final </s> for a text, as given for an id list."""
        index = self.indices[i]
        return np.asarray(self.tokens[self.offsets[index] : self.offsets[index + 1]])

    def story_lengths(self) -> np.ndarray:
        """The number of ids of each story of the view."""
        return self.offsets[self.indices + 1] - self.offsets[self.indices]

    def hold_out(self, fraction: float, seed: int) -> tuple["TokenStore", "TokenStore"]:
        """Two views (rest, held out): a seeded draw of stories, in file order, at least one in each.

        A store of one story that was read with --cut file is cut in two instead, the end held out, at the
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
        columns = (self.tokens, self.offsets, self.byte_counts, self._marks)
        return TokenStore(*columns, self._about, indices, fingerprint, self.unspelled)

    def _cut_in_two(self, fraction: float) -> tuple["TokenStore", "TokenStore"]:
        index = int(self.indices[0])
        begin, end = int(self.offsets[index]), int(self.offsets[index + 1])
        marks = self._marks[(self._marks[:, 0] > begin) & (self._marks[:, 0] < end)]
        if not len(marks):
            raise ValueError("cannot hold out a share of one story")
        wanted = begin + (1 - fraction) * (end - begin)
        cut, byte_cut, *unspelled_cut = marks[np.argmin(np.abs(marks[:, 0] - wanted))].tolist()
        byte_count, unspelled = int(self.byte_counts[index]), self.unspelled[index]

        def part(first: int, last: int, byte_count: int, unspelled: np.ndarray) -> TokenStore:
            fingerprint = hashlib.sha256(f"{self.fingerprint} {first} {last}".encode()).hexdigest()
            columns = (self.tokens, np.array([first, last]), np.array([byte_count]), self._marks)
            return TokenStore(*columns, self._about, None, fingerprint, unspelled[None])

        before = np.array(unspelled_cut)
        return part(begin, cut, byte_cut, before), part(cut, end, byte_count - byte_cut, unspelled - before)


def tokenizer_for(
    source: Source, kind: str = "bpe", vocab_size: int = 1024, cache_dir: Path | None = None, fit: bool = False
) -> Tokenizer:
    """The tokenizer of this kind and size trained on the source; trained once, then found in the cache.

    fit: whether a text too small for so many tokens gets fewer, as `train_tokenizer` says.

    For storyworld it is trained on the first stories, so that it is the same for all numbers of them above 2,000.
    """
    if isinstance(source, GeneratedSource):
        source = source.head(TOKENIZER_STORIES)
    if source.kind == "ids":
        raise ValueError(
            f"{source.description}: token ids have no text to train a tokenizer on; give their tokenizer with"
            " --tokenizer"
        )
    key = hashlib.sha256(
        f"{TRAINING_VERSION} {source.fingerprint()} {kind} {vocab_size}{' fitted' * fit}".encode()
    ).hexdigest()
    folder = _cache(cache_dir) / f"tokenizer-{key[:32]}"
    try:
        check_checksums(folder, folder.name)
        return Tokenizer.load(folder)
    except FileNotFoundError:
        pass
    except ValueError as error:
        _set_aside(folder, error)
    with reading_bar("reading for the tokenizer", source) as on_read:
        sample = sample_of(piece.text for piece in source.pieces(on_read))
    tokenizer = train_tokenizer(sample, kind, vocab_size, fit)
    with _new_folder(folder) as temporary:
        tokenizer.save(temporary)
    return tokenizer


def prepare(source: Source, tokenizer: Tokenizer, cache_dir: Path | None = None) -> TokenStore:
    """The token store of the source, made now or found in the cache ($RHAPSODE_CACHE/tokens or the user's).

    The store is found by the contents of the source and of the tokenizer, so a change of either makes a new
    one. Raises ValueError for a source that cannot be read, an id that the vocabulary lacks, or a source that
    changes while it is read; OSError for a cache folder that cannot be written.
    """
    before, fingerprint = source.fingerprint(), fingerprint_of(source, tokenizer)
    folder = _cache(cache_dir) / f"store-{fingerprint[:32]}"
    for _ in range(ATTEMPTS):  # others may clean the cache meanwhile
        try:
            store = TokenStore.open(folder)
            if store.fingerprint != fingerprint:
                raise ValueError("it holds another text or tokenizer")
        except (OSError, ValueError) as error:
            if folder.is_dir():
                _set_aside(folder, error)
        else:
            _say_what_is_lost(store)
            return store
        _make_store(folder, source, tokenizer, before, fingerprint)
    raise OSError(f"{folder}: is removed or damaged again and again; set RHAPSODE_CACHE to another folder")


def fingerprint_of(source: Source, tokenizer: Tokenizer) -> str:
    """SHA-256 of what decides the ids of a source: its contents, the tokenizer, the version of this program's rules."""
    return hashlib.sha256(f"{IDS_VERSION} {source.fingerprint()} {tokenizer.fingerprint}".encode()).hexdigest()


def _make_store(folder: Path, source: Source, tokenizer: Tokenizer, before: str, fingerprint: str) -> None:
    started = time.monotonic()
    with _new_folder(folder) as temporary:
        about = write_store(temporary, source, tokenizer)
        about |= {"fingerprint": fingerprint, "source_fingerprint": before}
        write_text(temporary / "store.json", json.dumps(about, indent=2, ensure_ascii=False) + "\n")
        if source.fingerprint() != before:
            raise ValueError(f"{source.description}: changed while it was read; run again when complete")
    rate = about["num_bytes"] / 1e6 / max(time.monotonic() - started, 1e-9)
    counts = f"{about['num_stories']:,} stories, {about['num_bytes']:,} bytes, {about['num_tokens']:,} tokens"
    say(f"{counts} ({rate:.1f} MB/s), kept in {folder}")


def _say_what_is_lost(store: TokenStore) -> None:
    if store.has_text and store.correction_bits:
        say(f"{store.description}: {share_text(store.unspelled_bytes / max(1, store.num_bytes))}")


def share_text(share: float) -> str:
    """What is said of a text that the tokenizer cannot spell, whole or in part."""
    amount = "less than 0.1%" if share < 0.001 else f"{share:.1%}"
    return (
        f"{amount} of the text cannot be represented by this tokenizer (characters that it lacks or changes); bits per"
        " byte include the cost of correcting that, nats per token and perplexity do not"
    )


def _cache(cache_dir: Path | None) -> Path:
    folder = cache_root() / "tokens" if cache_dir is None else Path(cache_dir)
    try:
        make_directory(folder)
    except OSError as error:
        raise OSError(
            f"cannot make the cache folder {folder}: {error.strerror}; set RHAPSODE_CACHE to another folder"
        ) from None
    return folder


def _set_aside(folder: Path, error: Exception) -> None:
    """Removes a folder that cannot be used, in one step, so that nobody finds half of it."""
    say(f"{folder} cannot be used ({error}); making it again")
    with suppress(OSError):
        aside = tempfile.mkdtemp(prefix=f"{MAKING}damaged.", dir=folder.parent)
        os.rename(folder, aside)
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that becomes `folder` at the end, whole or not at all, with the checksums of its files.

    Of two processes that make the same folder, the first to end wins, and the other throws its own away.
    """
    begun = False
    try:
        with making(folder) as temporary:
            begun = True
            yield temporary
            files = [path for path in temporary.iterdir() if path.name not in (".lock", CHECKSUMS)]
            write_checksums(temporary, folder.name, files)
    except OSError as error:
        if begun and error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            return  # another process was faster
        if begun and isinstance(error, FileNotFoundError) and str(error.filename).startswith(str(folder)):
            return  # the cache was cleaned meanwhile; the caller looks again
        if not str(error.filename or "").startswith(str(folder)):
            raise  # of the source
        room = "make room, or " if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise OSError(
            f"cannot write into the cache {folder.parent}: {error.strerror}; {room}set RHAPSODE_CACHE to another folder"
        ) from None
