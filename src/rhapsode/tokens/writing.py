"""Writes the files of a token store, story by story, while the source streams by."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from rhapsode.progress import bar
from rhapsode.sources import FileSource, Source
from rhapsode.storyworld.source import GeneratedSource
from rhapsode.tokenizer import Tokenizer
from rhapsode.tokens.spool import SpooledSource

FORMAT_VERSION = 2
BATCH_CHARACTERS = 2_000_000  # of text that the tokenizer's threads share at a time
BATCH_IDS = 1_000_000


def write_store(folder: Path, source: Source, tokenizer: Tokenizer) -> dict[str, Any]:
    """Writes all but store.json, and returns what that has to tell of it."""
    with (
        open(folder / "tokens.bin", "wb") as tokens,
        _Column(folder / "offsets.npy") as offsets,
        _Column(folder / "bytes.npy") as byte_counts,
        _Column(folder / "marks.npy", width=4) as marks,
        _Column(folder / "unspelled.npy", width=2) as unspelled,
        reading_bar("tokenizing" if source.kind == "text" else "reading token ids", source) as on_read,
    ):
        writer = _Writer(tokenizer, tokens, offsets, byte_counts, marks, unspelled)
        if isinstance(source, GeneratedSource) and _spells_fragments(tokenizer):
            writer.write_generated(source, on_read)
        elif source.kind == "text":
            writer.write_text(source, on_read)
        else:
            assert isinstance(source, FileSource | SpooledSource)
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


def _spells_fragments(tokenizer: Tokenizer) -> bool:
    """Whether the ids of storyworld's fragments, joined, are those of the stories and hold all of their text."""
    from rhapsode import storyworld

    if not tokenizer.words_stand_alone:
        return False
    fragments = list(storyworld.fragments())
    return not any(each.bits for each in tokenizer.corrections(fragments, tokenizer.encode_batch(fragments)))


@contextmanager
def reading_bar(what: str, source: Source) -> Iterator[Callable[[float], None]]:
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

    def append(self, rows: Sequence[int] | Sequence[Sequence[int]] | np.ndarray) -> None:
        array = np.asarray(rows, dtype="<i8")
        if self.width is not None:
            array = array.reshape(-1, self.width)
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
        self,
        tokenizer: Tokenizer,
        tokens: Any,
        offsets: _Column,
        byte_counts: _Column,
        marks: _Column,
        unspelled: _Column,
    ) -> None:
        self.tokenizer = tokenizer
        self.tokens, self.offsets, self.byte_counts = tokens, offsets, byte_counts
        self.marks, self.unspelled = marks, unspelled
        self.dtype = tokenizer.dtype
        self.num_tokens = self.num_bytes = 0
        # Of the story that is being written, of which a piece may be there: whether, what it holds, what it lacks.
        self.goes_on, self.story_bytes, self.lacking, self.bits, self.tail = False, 0, 0, 0, 0
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
        marks: list[tuple[int, ...]] = []
        unspelled: list[tuple[int, int]] = []
        continued = [self.goes_on, *(not end for end in ends)][: len(texts)]
        ids_of_texts = self.tokenizer.encode_batch(texts, continued)
        losses = self.tokenizer.corrections(texts, ids_of_texts, continued, self.tail)
        for text, ids, loss, ends_story in zip(texts, ids_of_texts, losses, ends, strict=True):
            arrays.append(ids)
            self.num_tokens += len(ids)
            self.story_bytes += len(text.encode())
            self.lacking, self.bits = self.lacking + loss.num_bytes, self.bits + loss.bits
            if ends_story:
                arrays.append(ended)
                self.num_tokens += 1
                offsets.append(self.num_tokens)
                byte_counts.append(self.story_bytes)
                unspelled.append((self.lacking, self.bits))
                self.num_bytes += self.story_bytes
                self.story_bytes = self.lacking = self.bits = 0
            else:
                marks.append((self.num_tokens, self.story_bytes, self.lacking, self.bits))
        if arrays:
            self.tokens.write(np.concatenate(arrays).data)
            self.goes_on, self.tail = not ends[-1], losses[-1].tail
        self.offsets.append(offsets)
        self.byte_counts.append(byte_counts)
        self.unspelled.append(unspelled)
        self.marks.append(marks)

    def write_generated(self, source: GeneratedSource, on_read: Callable[[float], None]) -> None:
        """What write_text writes, but put together from the ids of fragments, of which storyworld is made."""
        from rhapsode import storyworld

        table = storyworld.fragment_tokens(self.tokenizer.encode, self.tokenizer.eos_id, self.dtype.type)
        for batch in storyworld.token_batches(table, source.seed_start, source.count, source.split):
            self.tokens.write(batch.tokens.astype(self.dtype, copy=False).data)
            ends = self.num_tokens + np.cumsum(batch.lengths)
            self.offsets.append(ends)
            self.byte_counts.append(batch.byte_counts)
            self.unspelled.append(np.zeros((len(batch.lengths), 2)))
            read = int(batch.byte_counts.sum())
            self.num_tokens, self.num_bytes = int(ends[-1]), self.num_bytes + read
            on_read(read)

    def write_ids(self, source: FileSource | SpooledSource, on_read: Callable[[float], None]) -> None:
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
        self.unspelled.append(np.zeros((len(batch), 2)))
        self.num_tokens, self.num_bytes = int(ends[-1]), self.num_bytes + sum(byte_counts)
