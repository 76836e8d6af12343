"""The tokenizer folder as the course's program uses it: special tokens are read and written, spaces cleaned up.

The package's own `rhapsode.tokenizer` never takes a text for a special token and leaves special tokens out of what it
decodes; the course's program, through `transformers`, does neither.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from torch import Tensor

from rhapsode.tokenizer import Tokenizer

# What `transformers` replaces, one after the other, where a tokenizer_config.json sets clean_up_tokenization_spaces.
CLEAN_UP = (
    *((f" {mark}", mark) for mark in ".?!,"),
    (" ' ", "'"),
    *((f" {ending}", ending) for ending in ("n't", "'m", "'s", "'ve", "'re")),
)


class CourseTokenizer:
    """A tokenizer folder, read with the methods and the results of `transformers.AutoTokenizer.from_pretrained`.

    vocab_size: the largest id + 1. Raises FileNotFoundError or ValueError in one line for what is no such folder.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        self._plain = Tokenizer.load(path)
        self.vocab_size = self._plain.vocab_size
        file = path / "tokenizer.json" if path.is_dir() else path
        self._tokenizer = tokenizers.Tokenizer.from_file(str(file))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        config = file.parent / "tokenizer_config.json"
        options = json.loads(config.read_text(encoding="utf-8")) if config.exists() else {}
        self._tokenizer.encode_special_tokens = bool(options.get("split_special_tokens", False))
        wanted = bool(options.get("clean_up_tokenization_spaces", False))
        self.clean_up_tokenization_spaces = wanted and not isinstance(self._tokenizer.model, tokenizers.models.BPE)

    def __len__(self) -> int:
        return self.vocab_size

    def encode(self, text: str, add_special_tokens: bool = True, return_tensors: str | None = None) -> Any:
        """The ids of the text, and the </s> behind it unless add_special_tokens=False.

        A list of ints, or with return_tensors="pt" an int64 tensor (1, n).
        """
        ids = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return torch.tensor([ids], dtype=torch.int64) if return_tensors == "pt" else ids

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """The ids of each text and nothing else, as data to train on: "</s>" in a text is four characters."""
        return self._plain.encode_batch(texts)

    def decode(
        self,
        ids: Tensor | Sequence[int] | int,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> str:
        """The text that the ids spell; None cleans spaces up where the folder's tokenizer_config.json says so."""
        ids = ids.tolist() if isinstance(ids, Tensor) else ids
        ids = [ids] if isinstance(ids, int) else list(ids)
        text = self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
        clean_up = clean_up_tokenization_spaces
        if self.clean_up_tokenization_spaces if clean_up is None else clean_up:
            for old, new in CLEAN_UP:
                text = text.replace(old, new)
        return text


class AutoTokenizer:
    """A stand-in for `transformers.AutoTokenizer` that imports transformers only when it is called."""

    @staticmethod
    def from_pretrained(name: str | Path, *args: Any, **options: Any) -> Any:
        """What transformers makes of the folder or name; without transformers, a folder as a CourseTokenizer.

        Raises ImportError in one line where transformers is missing and the name is not that of a folder.
        """
        try:
            from transformers import AutoTokenizer as Real
        except ImportError:
            if Path(name).is_dir():
                return CourseTokenizer(name)
            advice = "only transformers can fetch it: pip install transformers"
            raise ImportError(f"{name} is not a folder, and {advice}") from None
        return Real.from_pretrained(name, *args, **options)


def encode(tokenizer: Any, text: str) -> list[int]:
    """The ids of the text and nothing behind it, by whatever tokenizer: the course's, this package's, transformers'."""
    if isinstance(tokenizer, Tokenizer):
        return tokenizer.encode(text)
    ids = tokenizer.encode(text, add_special_tokens=False)
    ids = getattr(ids, "ids", ids)  # an Encoding of the tokenizers library
    return torch.as_tensor(ids, dtype=torch.int64).flatten().tolist()


def decode(tokenizer: Any, ids: list[int]) -> str:
    """The text of the ids by whatever tokenizer, with special tokens where the tokenizer can keep them."""
    if isinstance(tokenizer, Tokenizer):
        return tokenizer.decode(ids)
    return tokenizer.decode(ids, skip_special_tokens=False)
