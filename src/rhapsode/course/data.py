"""The course's data files: a JSON list of sequences of token ids, or of texts that are tokenized on the way in."""

import json
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from rhapsode.course.tokenizer import CourseTokenizer

TOKENIZER_FOLDER = Path("my_tokenizer")
LARGEST_ID = 2**31 - 1


class Encoder(Protocol):
    """What a dataset needs of a tokenizer."""

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]: ...


class SentenceDataset(Dataset[Tensor]):
    """The sequences of a data file; indexing gives a 1-dimensional int64 tensor of token ids.

    data: the sequences, as a list; an item that is not a sequence of ids stands there as the file has it, and is an
    error only when it is read. tokenizer cuts a list of texts, without adding anything; None means the one in
    my_tokenizer/, if that is there. Sequences of different lengths are fine here. Raises FileNotFoundError, or
    ValueError with one line that names the file and, counted from 0, the sequence and position that are wrong.
    """

    def __init__(self, path: str | Path, tokenizer: Encoder | None = None) -> None:
        self.path = Path(path)
        content = read_json(self.path)
        if not isinstance(content, list) or not content:
            raise ValueError(f"{path}: must hold a JSON list of sequences of token ids, at least one")
        self.is_text = isinstance(content[0], str)
        self.data: list[Any] = content
        if self.is_text:
            tokenizer = tokenizer or find_tokenizer()
            if tokenizer is None:
                raise ValueError(f"{path}: holds texts, and there is no tokenizer; name its folder with --tokenizer")
            places = [n for n, item in enumerate(content) if isinstance(item, str)]
            for n, ids in zip(places, tokenizer.encode_batch([content[n] for n in places]), strict=True):
                content[n] = torch.from_numpy(ids.astype("int64"))
        else:
            for n, item in enumerate(content):
                if fault(item) is None:
                    content[n] = torch.tensor(item, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Tensor:
        item = self.data[index]
        if isinstance(item, Tensor):
            return item
        wrong = " must be a text, as the first is" if self.is_text else fault(item)
        raise ValueError(f"{self.path}: sequence {range(len(self))[index]}{wrong}")

    @property
    def largest_id(self) -> int:
        """The largest token id in the file, -1 if it holds none."""
        return max((int(item.max()) for item in self.data if isinstance(item, Tensor) and len(item)), default=-1)

    def check(self, vocab_size: int, batch_size: int, num_sequences: int) -> None:
        """What training on the first num_sequences needs; ValueError names the file, sequence and position.

        Of these, every id in the vocabulary, something to predict in every sequence, and one length in every batch.
        """
        first = 0  # of the batch
        for n in range(min(num_sequences, len(self))):
            sequence, where = self[n], f"{self.path}: sequence {n}"
            first = n if n % batch_size == 0 else first
            if len(sequence) < 2:
                has = "one id, so there is nothing to predict" if len(sequence) else "no ids"
                raise ValueError(f"{where} has {has}")
            if len(sequence) != len(self[first]):
                raise ValueError(
                    f"{where} has {len(sequence)} ids, sequence {first} of the same batch {len(self[first])};"
                    " lengths that differ need --batch_size 1"
                )
            if int(sequence.max()) >= vocab_size:
                position = int((sequence >= vocab_size).nonzero()[0])
                wrong = f"{where}, position {position}: id {int(sequence[position])}"
                raise ValueError(f"{wrong} is outside the vocabulary, 0 to {vocab_size - 1}")


def find_tokenizer(folder: str | Path | None = None) -> CourseTokenizer | None:
    """The tokenizer of my_tokenizer/ in the working directory, else that of `folder`, else None."""
    if TOKENIZER_FOLDER.is_dir():
        return CourseTokenizer(TOKENIZER_FOLDER)
    return CourseTokenizer(folder) if folder else None


def read_json(path: Path) -> Any:
    """The content of a JSON file; FileNotFoundError or ValueError in one line that names it."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a directory, not a JSON file")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from None


def fault(item: Any) -> str | None:
    """What keeps an item from being a sequence of token ids, as the end of a line that names it; None if nothing."""
    if not isinstance(item, list):
        return f" must be a list of token ids, got {json.dumps(item)[:40]}"
    if not item or (set(map(type, item)) == {int} and min(item) >= 0 and max(item) <= LARGEST_ID):
        return None
    position = [type(id) is int and 0 <= id <= LARGEST_ID for id in item].index(False)
    return f", position {position}: not a token id: {json.dumps(item[position])[:40]}"
