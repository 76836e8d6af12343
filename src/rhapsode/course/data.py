"""The course's data files: a JSON list of sequences of token ids, or of texts that are tokenized on the way in."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from rhapsode.tokenizer import Tokenizer

TOKENIZER_FOLDER = Path("my_tokenizer")
LARGEST_ID = 2**31 - 1


class SentenceDataset(Dataset[Tensor]):
    """The sequences of a data file; indexing gives a 1-dimensional int64 tensor of token ids.

    tokenizer cuts a list of texts, without adding anything; None means the one in my_tokenizer/, if that is there.
    Sequences of different lengths are fine here. Raises FileNotFoundError, or ValueError with one line that names the
    file and, counted from 0, the sequence and position that are wrong.
    """

    def __init__(self, path: str | Path, tokenizer: Tokenizer | None = None) -> None:
        self.path = Path(path)
        content = read_json(self.path)
        if not isinstance(content, list) or not content:
            raise ValueError(f"{path}: must hold a JSON list of sequences of token ids, at least one")
        self.is_text = all(isinstance(item, str) for item in content)
        if self.is_text:
            tokenizer = tokenizer or find_tokenizer()
            if tokenizer is None:
                raise ValueError(f"{path}: holds texts, and there is no tokenizer; name its folder with --tokenizer")
            self.sequences = [torch.from_numpy(ids.astype("int64")) for ids in tokenizer.encode_batch(content)]
        else:
            self.sequences = [_token_ids(item, f"{path}: sequence {n}") for n, item in enumerate(content)]
        for n, sequence in enumerate(self.sequences):
            if len(sequence) == 0:
                raise ValueError(f"{path}: sequence {n} is empty")

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, index: int) -> Tensor:
        return self.sequences[index]

    @property
    def largest_id(self) -> int:
        """The largest token id in the file."""
        return max(int(sequence.max()) for sequence in self.sequences)

    def check(self, vocab_size: int, batch_size: int) -> None:
        """What training needs beyond a readable file; ValueError names the file, sequence and position.

        Every id in the vocabulary, something to predict in every sequence, and one length for all. Texts, whose
        lengths are what they are, may differ as long as each is a batch of its own.
        """
        length = len(self.sequences[0])
        for n, sequence in enumerate(self.sequences):
            where = f"{self.path}: sequence {n}"
            if len(sequence) != length and not (self.is_text and batch_size == 1):
                remedy = "texts need --batch_size 1" if self.is_text else "they must be of one length"
                raise ValueError(f"{where} has {len(sequence)} ids, those before it {length}; {remedy}")
            if len(sequence) < 2:
                raise ValueError(f"{where} has one id, so there is nothing to predict")
            if int(sequence.max()) >= vocab_size:
                position = int((sequence >= vocab_size).nonzero()[0])
                wrong = f"{where}, position {position}: id {int(sequence[position])}"
                raise ValueError(f"{wrong} is outside the vocabulary, 0 to {vocab_size - 1}")


def find_tokenizer(folder: str | Path | None = None) -> Tokenizer | None:
    """The tokenizer of my_tokenizer/ in the working directory, else that of `folder`, else None."""
    if TOKENIZER_FOLDER.is_dir():
        return Tokenizer.load(TOKENIZER_FOLDER)
    return Tokenizer.load(Path(folder)) if folder else None


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


def _token_ids(item: Any, where: str) -> Tensor:
    if not isinstance(item, list):
        raise ValueError(f"{where} must be a list of token ids, got {json.dumps(item)[:40]}")
    if item and (set(map(type, item)) != {int} or min(item) < 0 or max(item) > LARGEST_ID):
        fits = [type(id) is int and 0 <= id <= LARGEST_ID for id in item]
        position = fits.index(False)
        raise ValueError(f"{where}, position {position}: not a token id: {json.dumps(item[position])[:40]}")
    return torch.tensor(item, dtype=torch.int64)
