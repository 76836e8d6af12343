"""`rhapsode prepare`, from Python: a token store of any text, ahead of the training that reads it.

In a file of its own, since it needs no PyTorch, whose import takes longer than a small text.
"""

import os

from rhapsode.arguments import Data, PathLike, data_request
from rhapsode.data import opened, tokenizer_of
from rhapsode.progress import say, silent
from rhapsode.sources import SourceConfig, location_of
from rhapsode.storyworld.source import STORYWORLD
from rhapsode.tokenizer import Tokenizer
from rhapsode.tokens import TokenStore
from rhapsode.tokens.shards import prepare_shards


def prepare_store(
    data: Data | None = None,
    out: PathLike = "store",
    *,
    workers: int = 1,
    tokenizer: PathLike | Tokenizer | None = None,
    vocab_size: int | None = None,
    cut: str = "auto",
    separator: str | None = None,
    field: str | None = None,
    format: str = "auto",
    show: bool = False,
) -> TokenStore:
    """Makes a token store of text, in shards, by `workers` processes, and returns it; `train` takes its folder as data.

    data, tokenizer, vocab_size, cut, separator, field, format: as for `train`. out: a new folder, or an address such as
    `s3://bucket/store`. A store that was begun is continued by the same call. show: progress on stderr. Raises
    ValueError or OSError with one line.
    """
    with silent(not show):
        request = data_request(data, None, tokenizer, vocab_size, SourceConfig(cut, separator, field, format))
        source = opened(request.data or (STORYWORLD,), request.reading)
        say(source.description)
        return prepare_shards(source, tokenizer_of(request, source), location_of(os.fspath(out)), workers)
