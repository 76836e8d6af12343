"""From what a user asked for to a run that is ready to train: presets, configs, data, tokenizer, held-out stories."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from rhapsode import storyworld
from rhapsode.model import ModelConfig
from rhapsode.progress import say
from rhapsode.recipe import OptimizerConfig, TrainConfig
from rhapsode.recipe.changes import SECTIONS, Sections, build, lay, merge, read_assignments, read_toml
from rhapsode.recipe.presets import PRESETS
from rhapsode.recipe.rules import TextSize, fit_preset
from rhapsode.run import Run, check_free
from rhapsode.sources import (
    CUT_AT,
    EVALUATION,
    READING_VERSION,
    TRAINING,
    FileSource,
    Source,
    SourceConfig,
    cache_root,
    files_state,
    is_place,
    open_source,
    shown,
)
from rhapsode.sources.generated import NAME as STORYWORLD
from rhapsode.sources.generated import GeneratedSource
from rhapsode.tokenizer import Tokenizer
from rhapsode.tokenizer.training import KINDS
from rhapsode.tokens import BatchConfig, Batcher, TokenStore, prepare, tokenizer_for
from rhapsode.train.plan import first_plan

HELD_OUT = 0.05
MOST_HELD_OUT_BYTES = 1_000_000  # all of it is scored ten times in a run
STORYWORLD_VALID = f"{STORYWORLD}:200:valid"


@dataclass(frozen=True)
class Request:
    """What `rhapsode train` was asked for; None and empty mean: not asked."""

    data: tuple[str, ...] = ()
    valid: str | None = None
    preset: str | None = None
    budget: dict[str, float] = field(default_factory=dict)
    tokenizer: str | None = None
    vocab_size: int | None = None
    config: str | None = None
    assignments: tuple[str, ...] = ()
    seed: int | None = None
    split: str = "auto"
    separator: str | None = None
    field: str | None = None
    format: str = "auto"


@dataclass(frozen=True)
class Ready:
    """A run and the data it trains on and is judged by."""

    run: Run
    train: TokenStore
    valid: TokenStore


@dataclass(frozen=True)
class Data:
    """What to train on and to be judged by; about: how to find it again, as run.json keeps it.

    floor_bits_per_byte: the validation text's entropy where that is known.
    """

    train: TokenStore
    valid: TokenStore
    tokenizer: Tokenizer
    about: dict[str, Any]
    floor_bits_per_byte: float | None


def begin(request: Request, out: Path) -> Ready:
    """Reads the data, makes what is missing of tokenizer and token stores, and creates the run directory.

    Raises ValueError or OSError with one line before anything is written to `out`.
    """
    check_free(out)
    data, sections, reasons = fitted(request)
    say(f"{reasons[0]}; --explain-preset tells what follows from that")
    optimizer = build(OptimizerConfig, sections["optimizer"])
    training = build(TrainConfig, sections["train"])
    batch = build(BatchConfig, sections["batch"])
    model = build(ModelConfig, {**sections["model"], "vocab_size": data.tokenizer.vocab_size})
    first_plan(training, optimizer.warmup_steps, Batcher(data.train, batch, training.seed))  # raises what train would
    configs = {"model": model, "optimizer": optimizer, "train": training, "batch": batch}
    asked = asdict(_from_anywhere(request)) | {"config_digest": _digest(request.config)}
    more = {"data": data.about, "request": asked, "floor_bits_per_byte": data.floor_bits_per_byte}
    run = create_run(out, configs, data.tokenizer, more)
    return Ready(run, data.train, data.valid)


def open_data(request: Request, seed: int) -> Data:
    """Makes, or finds in the cache, the tokenizer and the stores that the request names; seed: of what is held out.

    Raises ValueError or OSError with one line.
    """
    asked = SourceConfig(request.split, request.separator, request.field, request.format)
    locations = absolute(request.data) or [STORYWORLD]
    about: dict[str, Any] = {"locations": locations, "reading_version": READING_VERSION}
    about["files_state"] = files_state(locations, TRAINING, asked.format)
    source = open_source(list(request.data) or locations, asked)
    say(source.description)
    settled = source.resolved if isinstance(source, FileSource) else asked
    tokenizer = tokenizer_of(request, source)
    store = prepare(source, tokenizer)
    about["source_fingerprint"] = source.fingerprint()
    valid = [request.valid] if request.valid else []
    if not valid and isinstance(source, GeneratedSource):
        valid = [STORYWORLD_VALID]
    elif not valid and isinstance(source, FileSource):
        valid = list(source.validation)
    floor = None
    if valid:
        about["valid"] = absolute(valid)
        about["valid_files_state"] = files_state(about["valid"], EVALUATION, asked.format)
        valid_source = open_source(valid, asked, EVALUATION, settled)
        otherwise = "" if request.valid else " (--valid says otherwise)"
        say(f"validation: {valid_source.description}{otherwise}")
        if isinstance(valid_source, FileSource) and settled.split == "auto":  # the training data are no plain text
            settled = replace(settled, split=valid_source.resolved.split, separator=valid_source.resolved.separator)
        train_store, valid_store = store, prepare(valid_source, tokenizer)
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
        say(f"held out for validation: {size} (seed {seed}; --valid says otherwise)")
    about["source"] = asdict(settled)
    about["train_fingerprint"], about["valid_fingerprint"] = train_store.fingerprint, valid_store.fingerprint
    about["store_fingerprint"] = store.fingerprint
    about["description"] = source.description
    return Data(train_store, valid_store, tokenizer, about, floor)


def _instead_of_holding_out(source: Source) -> str:
    """What to do where there is one story that cannot be cut in two."""
    by_itself = "give validation data with --valid"
    if not isinstance(source, FileSource) or all(file.format != "text" for file in source.files):
        return by_itself
    if source.split == "file":
        return f"the text is too short for that: {by_itself}"
    return f"{by_itself}, or, if it is one long text, --split file"


def create_run(out: Path, configs: dict[str, Any], tokenizer: Tokenizer, more: dict[str, Any]) -> Run:
    """A run directory for these configs (by section), with whatever else is to stand in its run.json."""
    about = {section: asdict(configs[section]) for section in SECTIONS}
    return Run.create(out, {**about, "tokenizer": tokenizer.fingerprint, **more}, tokenizer)


def resume(out: Path, request: Request, as_begun: bool = False) -> Ready:
    """Opens a run to go on with; what the request names must be what the run was begun with.

    as_begun: whether to take data that have changed since from the cache, as they were, and to say so. Raises
    ValueError for another request, or for such data otherwise.
    """
    run = Run.open(out)
    if run.about.get("request") is None:
        raise ValueError(f"{out}: not begun by `rhapsode train`, so there is nothing to go on with")
    begun, data = {**asdict(Request()), **run.about["request"]}, run.about["data"]
    digest = begun.pop("config_digest", None)
    begun = asdict(_from_anywhere(Request(**begun)))
    if begun["data"]:
        begun["data"] = data["locations"]
    # What was not asked for was chosen all the same, and may be asked for by its name.
    preset = begun["preset"] or preset_of(Request(data=tuple(begun["data"])))
    seed = run.config("train", TrainConfig).seed
    begun |= {"seed": seed, "preset": preset}
    chosen = asdict(settings_of(data, str(out)))
    asked = asdict(_from_anywhere(request))
    if digest and asked["config"] == begun["config"] and _digest(request.config) != digest:
        raise ValueError(f"{request.config} has changed since {out} was begun; a resumed run cannot change its configs")
    for name, value in asked.items():
        unasked = value in (None, (), {}) or value == Request.__dataclass_fields__[name].default
        if not unasked and _plain(value) not in (_plain(begun[name]), chosen.get(name)):
            raise ValueError(
                f"{out} was begun with {name} {_plain(begun[name])!r}, not {_plain(value)!r};"
                " a resumed run cannot change it"
            )
    train_store, valid_store = reopen_data(data, run.tokenizer, seed, str(out), as_begun)
    return Ready(run, train_store, valid_store)


def reopen_data(
    about: dict[str, Any], tokenizer: Tokenizer, seed: int, where: str, as_begun: bool = False
) -> tuple[TokenStore, TokenStore]:
    """The (train, valid) stores that `open_data` told of in `about`; ValueError where the data are others by now.

    Files with the size and time of change that they had are not read. Of others the contents decide. What is gone, or
    came from standard input, is taken from the cache as long as that has it; with as_begun, what changed is too.
    """
    settings = settings_of(about, where)
    config = SourceConfig(field=settings.field, format=settings.format)

    def reopened(locations: list[str], wanted: tuple[str, ...], part: str, fingerprint: str) -> TokenStore:
        found, called = _find_store(fingerprint), ", ".join(map(shown, locations))
        state = files_state(locations, wanted, settings.format)
        known = about.get(f"{part}files_state")
        if found is not None and state is None:
            say(f"{called}: gone; using what the cache has of it ({found.description})")
        if found is not None and (state is None or known in (None, state)):
            return found
        if "-" in locations:
            raise ValueError(f"{where}: was begun on standard input, which the cache no longer has; begin a new run")
        source = open_source(locations, config, wanted, settings)
        same = source.fingerprint() == about.get(f"{part}source_fingerprint")
        if found is None:
            if not same and about.get("reading_version") == READING_VERSION:
                raise ValueError(_changed(where, source.description))
            return prepare(source, tokenizer) if same else other_version()
        if not same:
            if not as_begun:
                raise ValueError(_changed(where, source.description))
            say(f"{called}: changed since; using what the cache has of it, as it was")
        return found

    def other_version() -> NoReturn:
        raise ValueError(
            f"{where}: another version of rhapsode read the data for this run, which the cache no longer has; begin a"
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
    return f"{where}: the data have changed since the run began ({what}); begin a new run"


def settings_of(about: dict[str, Any], where: str) -> SourceConfig:
    """How a run's data were read, guesses included, from what `open_data` told of in `about`; `where` is for errors."""
    source = dict(about["source"])
    if "format" not in source:  # runs made before guesses were kept tell of them at the end of the description only
        description = about["description"].removesuffix(" (guessed; --split says otherwise)")
        told = {**CUT_AT, "separator": f"cut at {source['separator']!r}"}
        split = next((name for name, words in told.items() if description.endswith(f": {words}")), source["split"])
        separator = source["separator"] if split == "separator" else None
        source = {"split": split, "separator": separator, "field": source["field"]}
    try:
        return SourceConfig(**source)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: data.source: {error}") from None


def preset_of(request: Request) -> str:
    """The name of the recipe; ValueError for one that there is not."""
    preset = request.preset or ("minute" if not request.data else "coffee")
    if preset not in PRESETS:
        raise ValueError(f"--preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    return preset


def fitted(request: Request) -> tuple[Data, Sections, list[str]]:
    """The request's data, the fields of all configs with the preset fitted to them, and what and why in lines.

    Raises ValueError or OSError with one line; a wrong field is told before the data are read.
    """
    name, own = preset_of(request), own_sections(request)
    sections = merge(PRESETS[name], own)
    build(ModelConfig, {**sections["model"], "vocab_size": 1})
    build(OptimizerConfig, sections["optimizer"])
    build(BatchConfig, sections["batch"])
    training = build(TrainConfig, sections["train"])
    data = open_data(request, training.seed)
    recipe = fit_preset(name, TextSize(data.train.num_tokens, data.train.num_stories), own)
    sections = merge(recipe.sections, own)
    lines = [recipe.text]
    for section, fields in sections.items():
        for key, value in fields.items():
            why = "your choice" if key in own[section] else recipe.reasons.get(key, f"as in {name}")
            lines.append(f"{key} {value}: {why}")
    return data, sections, lines


def own_sections(request: Request) -> Sections:
    """The fields that a user chose: the TOML file, then flags, then --set."""
    own = read_toml(Path(request.config)) if request.config else {}
    if len(request.budget) > 1:
        names = " and ".join(f"--{name}" for name in request.budget)
        raise ValueError(f"a budget is one of minutes, tokens, sequences, epochs; got {names}")
    flags = {**request.budget, **({} if request.seed is None else {"seed": request.seed})}
    return lay(lay(own, {"train": flags}), read_assignments(request.assignments))


def tokenizer_of(request: Request, source: Source) -> Tokenizer:
    """The tokenizer that was named, or one trained on the source."""
    named = request.tokenizer
    if named is None or named in KINDS:
        return tokenizer_for(source, named or "bpe", 1024 if request.vocab_size is None else request.vocab_size)
    if request.vocab_size is not None:
        raise ValueError("--vocab-size is for a tokenizer that is trained; --tokenizer names a finished one")
    return Tokenizer.load(Path(named))


def _find_store(fingerprint: str) -> TokenStore | None:
    """A store that is still in the cache, found without reading its source again."""
    folder = cache_root() / "tokens" / f"store-{fingerprint[:32]}"
    try:
        return TokenStore.open(folder)
    except (OSError, ValueError, KeyError):
        return None


def absolute(locations: Sequence[str]) -> list[str]:
    """Locations that mean the same from another working directory."""
    return [os.path.abspath(location) if is_place(location) else location for location in locations]


def _from_anywhere(request: Request) -> Request:
    """The request with locations and paths that mean the same from another working directory."""
    tokenizer = request.tokenizer
    return replace(
        request,
        data=tuple(absolute(request.data)),
        valid=request.valid and absolute([request.valid])[0],
        tokenizer=tokenizer if tokenizer is None or tokenizer in KINDS else os.path.abspath(tokenizer),
        config=request.config and os.path.abspath(request.config),
    )


def _digest(config: str | None) -> str | None:
    """What tells one TOML file from a changed one."""
    return hashlib.sha256(Path(config).read_bytes()).hexdigest() if config else None


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
