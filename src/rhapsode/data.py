"""The text of a training, as token stores: made of what was asked for, and found again when a run is resumed."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from rhapsode import storyworld
from rhapsode.files import cache_root
from rhapsode.progress import say
from rhapsode.recorded import read_config
from rhapsode.sources import (
    ALL_GUESSED,
    CUT_AT,
    EVALUATION,
    READING_VERSION,
    TRAINING,
    FileSource,
    Source,
    SourceConfig,
    files_state,
    is_place,
    is_remote,
    open_source,
    shown,
)
from rhapsode.sources.remote import fetch
from rhapsode.storyworld.source import STORYWORLD, GeneratedSource
from rhapsode.tokenizer import Tokenizer
from rhapsode.tokenizer.training import KINDS
from rhapsode.tokens import TokenStore, prepare, tokenizer_for
from rhapsode.tokens.places import Place
from rhapsode.tokens.shards import MANIFEST, PreparedSource, is_prepared

HELD_OUT = 0.05
MOST_HELD_OUT_BYTES = 1_000_000  # all of it is scored ten times in a run
STORYWORLD_VALID = f"{STORYWORLD}:200:valid"
IN_MEMORY = "(texts given in Python)"  # where a location would stand


@dataclass(frozen=True)
class DataRequest:
    """What to train on and to be judged by.

    data, valid: locations, as `rhapsode.sources.open_source` takes them, or a source; nothing: storyworld, and a share
    that is held out. tokenizer: a folder, the kind to train, or a tokenizer; vocab_size: of one that is trained.
    reading: how files are read and cut.
    """

    data: tuple[str, ...] | Source = ()
    valid: tuple[str, ...] | Source = ()
    tokenizer: str | Tokenizer | None = None
    vocab_size: int | None = None
    reading: SourceConfig = ALL_GUESSED

    def recorded(self) -> dict[str, Any]:
        """The request as run.json keeps it: with locations that mean the same from another working directory."""
        tokenizer = self.tokenizer
        if isinstance(tokenizer, Tokenizer):
            tokenizer = tokenizer.fingerprint
        elif tokenizer is not None and tokenizer not in KINDS and not is_remote(tokenizer):
            tokenizer = os.path.abspath(tokenizer)
        valid = locations_of(self.valid)
        return {
            "data": locations_of(self.data),
            "valid": valid[0] if len(valid) == 1 else valid or None,
            "tokenizer": tokenizer,
            "vocab_size": self.vocab_size,
            **asdict(self.reading),
        }


@dataclass(frozen=True)
class TrainingData:
    """What to train on and to be judged by; about: how to find it again, as run.json keeps it.

    floor_bits_per_byte: the validation text's entropy where that is known. prepared: whether the text was tokenized
    before, by `rhapsode prepare`.
    """

    train: TokenStore
    valid: TokenStore
    tokenizer: Tokenizer
    about: dict[str, Any]
    floor_bits_per_byte: float | None
    prepared: bool


def open_data(request: DataRequest, seed: int, most_tokens: int | None = None) -> TrainingData:
    """Makes, or finds in the cache, the tokenizer and the stores that the request names; seed: of what is held out.

    most_tokens: of a vocabulary whose size the request leaves open, which is then fitted to the text; None: 1,024.

    Raises ValueError or OSError with one line.
    """
    asked = request.reading
    locations = locations_of(request.data) or [STORYWORLD]
    about: dict[str, Any] = {"locations": locations, "reading_version": READING_VERSION}
    about["files_state"] = _state(locations, TRAINING, asked.format)
    source = opened(request.data or (STORYWORLD,), asked)
    say(source.description)
    settled = source.resolved if isinstance(source, FileSource) else asked
    tokenizer = tokenizer_of(request, source, most_tokens)
    store = _store_of(source, tokenizer)
    about["source_fingerprint"] = source.fingerprint()
    valid = request.valid
    if not valid and isinstance(source, GeneratedSource):
        valid = (STORYWORLD_VALID,)
    elif not valid and isinstance(source, FileSource):
        valid = source.validation
    floor = None
    if valid:
        about["valid"] = locations_of(valid)
        about["valid_files_state"] = _state(about["valid"], EVALUATION, asked.format)
        valid_source = opened(valid, asked, EVALUATION, settled)
        otherwise = "" if request.valid else " (to use other data: --valid)"
        say(f"validation: {valid_source.description}{otherwise}")
        if isinstance(valid_source, FileSource) and settled.split == "auto":  # the training data are no plain text
            settled = replace(settled, split=valid_source.resolved.split, separator=valid_source.resolved.separator)
        train_store, valid_store = store, _store_of(valid_source, tokenizer)
        about["valid_source_fingerprint"] = valid_source.fingerprint()
        if isinstance(valid_source, GeneratedSource):
            floor = storyworld.entropy(valid_source.split).bits_per_byte
    else:
        share = min(HELD_OUT, MOST_HELD_OUT_BYTES / max(1, store.num_bytes))
        about["held_out"] = share
        try:
            train_store, valid_store = store.hold_out(share, seed)
        except ValueError as error:
            raise ValueError(f"{source.description}: {error}; {_instead_of_holding_out(source)}") from None
        count = valid_store.num_stories
        what = "the end" if store.num_stories == 1 else "1 story" if count == 1 else f"{count:,} stories"
        size = f"{what}, {valid_store.num_bytes:,} bytes"
        say(f"held out for validation: {size} (seed {seed}; to use other data: --valid)")
    about["source"] = asdict(settled)
    about["train_fingerprint"], about["valid_fingerprint"] = train_store.fingerprint, valid_store.fingerprint
    about["store_fingerprint"] = store.fingerprint
    about["description"] = source.description
    return TrainingData(train_store, valid_store, tokenizer, about, floor, isinstance(source, PreparedSource))


def _instead_of_holding_out(source: Source) -> str:
    """What to do where there is one story that cannot be cut in two."""
    by_itself = "give validation data with --valid"
    if not isinstance(source, FileSource) or all(file.format != "text" for file in source.files):
        return by_itself
    if source.split == "file":
        return f"the text is too short to be cut in two: {by_itself}"
    return f"{by_itself}, or, if it is one long text, --cut file"


def opened(
    data: tuple[str, ...] | Source,
    reading: SourceConfig,
    wanted: Sequence[str] = TRAINING,
    like: SourceConfig | None = None,
) -> Source:
    """The source itself, or the one behind the locations."""
    if isinstance(data, tuple) and len(data) == 1 and is_prepared(data[0]):
        return PreparedSource(data[0])
    return open_source(list(data), reading, wanted, like) if isinstance(data, tuple) else data


def _state(locations: list[str], wanted: Sequence[str], format: str) -> str | None:
    """As `files_state`; of a prepared store, its manifest tells whether it is still the same."""
    if len(locations) == 1 and is_prepared(locations[0]):
        return hashlib.sha256(Place(locations[0]).read(MANIFEST).encode()).hexdigest()
    return files_state(locations, wanted, format)


def _store_of(source: Source, tokenizer: Tokenizer) -> TokenStore:
    """The store of a source, prepared before or now."""
    if not isinstance(source, PreparedSource):
        return prepare(source, tokenizer)
    if source.tokenizer.fingerprint != tokenizer.fingerprint:
        raise ValueError(f"{source.description}: was prepared with another tokenizer than the one to train with")
    return source.store


def locations_of(data: tuple[str, ...] | Source) -> list[str]:
    """The locations, as they mean the same from another working directory; a word for texts in memory."""
    return absolute(data) if isinstance(data, tuple) else [IN_MEMORY]


def reopen_data(
    about: dict[str, Any], tokenizer: Tokenizer, seed: int, where: str, as_begun: bool = False
) -> tuple[TokenStore, TokenStore]:
    """The (train, valid) stores that `open_data` told of in `about`; ValueError where the data are others by now.

    Files with the size and time of change that they had are not read. Of others the contents decide. What is gone, or
    came from standard input, is taken from the cache as long as that has it; with as_begun, what changed is too.
    """
    settings = reading_settings(about, where)
    config = SourceConfig(field=settings.field, format=settings.format)

    def reopened(locations: list[str], wanted: tuple[str, ...], part: str, fingerprint: str) -> TokenStore:
        found, called = _find_store(fingerprint), ", ".join(map(shown, locations))
        if len(locations) == 1 and is_prepared(locations[0]):
            prepared = PreparedSource(locations[0])
            if prepared.store.fingerprint != fingerprint:
                raise ValueError(_changed(where, prepared.description))
            return prepared.store
        if locations == [IN_MEMORY]:
            if found is None:
                raise ValueError(
                    f"{where}: was started on {IN_MEMORY[1:-1]}, which are no longer in the cache; pass them again"
                )
            return found
        state = files_state(locations, wanted, settings.format)
        known = about.get(f"{part}files_state")
        if found is not None and state is None:
            say(f"{called}: no longer there; using the copy in the cache ({found.description})")
        if found is not None and (state is None or known in (None, state)):
            return found
        if "-" in locations:
            raise ValueError(
                f"{where}: was started on standard input, which is no longer in the cache; start a new run"
            )
        source = open_source(locations, config, wanted, settings)
        same = source.fingerprint() == about.get(f"{part}source_fingerprint")
        if found is None:
            if not same and about.get("reading_version") == READING_VERSION:
                raise ValueError(_changed(where, source.description))
            return prepare(source, tokenizer) if same else other_version()
        if not same:
            if not as_begun:
                raise ValueError(_changed(where, source.description))
            say(f"{called}: has changed since; using the earlier version from the cache")
        return found

    def other_version() -> NoReturn:
        raise ValueError(
            f"{where}: its data were read by another version of rhapsode and are no longer in the cache; start a"
            " new run"
        )

    if "valid" in about:
        locations = [about["valid"]] if isinstance(about["valid"], str) else about["valid"]
        train_store = reopened(about["locations"], TRAINING, "", about["train_fingerprint"])
        valid_store = reopened(locations, EVALUATION, "valid_", about["valid_fingerprint"])
    else:
        whole = reopened(about["locations"], TRAINING, "", about["store_fingerprint"])
        train_store, valid_store = whole.hold_out(about["held_out"], seed)
    if [train_store.fingerprint, valid_store.fingerprint] != [about["train_fingerprint"], about["valid_fingerprint"]]:
        other_version()
    return train_store, valid_store


def _changed(where: str, what: str) -> str:
    return f"{where}: the data have changed since the run was started ({what}); start a new run"


def reading_settings(about: dict[str, Any], where: str) -> SourceConfig:
    """How a run's data were read, guesses included, from what `open_data` told of in `about`; `where` is for errors."""
    source = dict(about["source"])
    if "format" not in source:  # runs made before guesses were kept tell of them at the end of the description only
        description = about["description"].removesuffix(" (guessed; --cut says otherwise)")
        told = {**CUT_AT, "separator": f"cut at {source['separator']!r}"}
        split = next((name for name, words in told.items() if description.endswith(f": {words}")), source["split"])
        separator = source["separator"] if split == "separator" else None
        source = {"split": split, "separator": separator, "field": source["field"]}
    return read_config(SourceConfig, source, where, "data.source")


def tokenizer_of(request: DataRequest, source: Source, most_tokens: int | None = None) -> Tokenizer:
    """The tokenizer that was named, or one trained on the source; most_tokens: as for `open_data`."""
    named = request.tokenizer
    if isinstance(source, PreparedSource) and named is None and request.vocab_size is None:
        return source.tokenizer
    if isinstance(named, Tokenizer):
        if request.vocab_size is not None:
            raise ValueError("vocab_size needs a tokenizer to be trained; this one is trained already")
        return named
    if named is None or named in KINDS:
        size = next(size for size in (request.vocab_size, most_tokens, 1024) if size is not None)
        fit = request.vocab_size is None and most_tokens is not None
        return tokenizer_for(source, named or "bpe", size, fit=fit)
    if request.vocab_size is not None:
        raise ValueError("--vocab-size needs a tokenizer to be trained; --tokenizer names one that is trained already")
    return Tokenizer.load(fetch(named) if is_remote(named) else Path(named))


def _find_store(fingerprint: str) -> TokenStore | None:
    """A store that is still in the cache, found without reading its source again."""
    folder = cache_root() / "tokens" / f"store-{fingerprint[:32]}"
    try:
        store = TokenStore.open(folder)
    except OSError:
        return None
    except ValueError as error:
        say(str(error))
        return None
    return store if store.fingerprint == fingerprint else None


def absolute(locations: Sequence[str]) -> list[str]:
    """Locations that mean the same from another working directory."""
    return [os.path.abspath(location) if is_place(location) else location for location in locations]
