"""From what a user asked for to a run that is ready to train: presets, configs, data, tokenizer, held-out stories."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rhapsode import storyworld
from rhapsode.model import ModelConfig
from rhapsode.progress import say
from rhapsode.recipe import OptimizerConfig, TrainConfig
from rhapsode.recipe.changes import SECTIONS, Sections, build, lay, merge, read_assignments, read_toml
from rhapsode.recipe.presets import PRESETS
from rhapsode.recipe.rules import TextSize, fit_preset
from rhapsode.recorded import read_config
from rhapsode.run import Run, check_free
from rhapsode.sources import Source, SourceConfig, cache_root, open_source
from rhapsode.sources.generated import NAME as STORYWORLD
from rhapsode.sources.generated import GeneratedSource, is_generated
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
    separator: str = "<|endoftext|>"
    field: str = "text"


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
    asked = asdict(request) | {"config_digest": _digest(request.config)}
    more = {"data": data.about, "request": asked, "floor_bits_per_byte": data.floor_bits_per_byte}
    run = create_run(out, configs, data.tokenizer, more)
    return Ready(run, data.train, data.valid)


def open_data(request: Request, seed: int) -> Data:
    """Makes, or finds in the cache, the tokenizer and the stores that the request names; seed: of what is held out.

    Raises ValueError or OSError with one line.
    """
    source_config = SourceConfig(request.split, request.separator, request.field)
    locations = list(request.data) or [STORYWORLD]
    source = open_source(locations, source_config)
    say(source.description)
    tokenizer = tokenizer_of(request, source)
    store = prepare(source, tokenizer)
    about: dict[str, Any] = {
        "locations": [_absolute(location) for location in locations],
        "source": asdict(source_config),
    }
    valid_location = request.valid or (STORYWORLD_VALID if isinstance(source, GeneratedSource) else None)
    floor = None
    if valid_location:
        about["valid"] = _absolute(valid_location)
        valid_source = open_source([valid_location], source_config)
        train_store, valid_store = store, prepare(valid_source, tokenizer)
        if isinstance(valid_source, GeneratedSource):
            floor = storyworld.entropy(valid_source.split).bits_per_byte
    else:
        share = min(HELD_OUT, MOST_HELD_OUT_BYTES / max(1, store.num_bytes))
        about["held_out"] = share
        train_store, valid_store = store.hold_out(share, seed)
        count = valid_store.num_stories
        what = "the end" if store.num_stories == 1 else "1 story" if count == 1 else f"{count:,} stories"
        size = f"{what}, {valid_store.num_bytes:,} bytes"
        say(f"held out for validation: {size} (seed {seed}; --valid says otherwise)")
    about["train_fingerprint"], about["valid_fingerprint"] = train_store.fingerprint, valid_store.fingerprint
    about["store_fingerprint"] = store.fingerprint
    about["description"] = source.description
    return Data(train_store, valid_store, tokenizer, about, floor)


def create_run(out: Path, configs: dict[str, Any], tokenizer: Tokenizer, more: dict[str, Any]) -> Run:
    """A run directory for these configs (by section), with whatever else is to stand in its run.json."""
    about = {section: asdict(configs[section]) for section in SECTIONS}
    return Run.create(out, {**about, "tokenizer": tokenizer.fingerprint, **more}, tokenizer)


def resume(out: Path, request: Request) -> Ready:
    """Opens a run to go on with; what the request names must be what the run was begun with.

    Raises ValueError for another request or for data that have changed since.
    """
    run = Run.open(out)
    begun, asked = run.about.get("request"), asdict(request)
    if begun is None:
        raise ValueError(f"{out}: not begun by `rhapsode train`, so there is nothing to go on with")
    # What was not asked for was chosen all the same, and may be asked for by its name.
    preset = begun["preset"] or preset_of(Request(data=tuple(begun["data"])))
    seed = run.config("train", TrainConfig).seed
    begun = {**asdict(Request()), **begun, "seed": seed, "preset": preset}
    digest = begun.get("config_digest")
    if digest and request.config == begun["config"] and _digest(request.config) != digest:
        raise ValueError(f"{request.config} has changed since {out} was begun; a resumed run cannot change its configs")
    for name, value in asked.items():
        default = Request.__dataclass_fields__[name]
        unasked = value in (None, (), {}) or value == default.default
        if not unasked and _plain(value) != _plain(begun[name]):
            raise ValueError(
                f"{out} was begun with {name} {begun[name]!r}, not {_plain(value)!r}; a resumed run cannot change it"
            )
    train_store, valid_store = reopen_data(run.about["data"], run.tokenizer, seed, str(out))
    return Ready(run, train_store, valid_store)


def reopen_data(about: dict[str, Any], tokenizer: Tokenizer, seed: int, where: str) -> tuple[TokenStore, TokenStore]:
    """The (train, valid) stores that `open_data` told of in `about`; ValueError where the data are others by now."""
    config = read_config(SourceConfig, about["source"], where, "data.source")
    store = _find_store(about["store_fingerprint"]) or prepare(open_source(about["locations"], config), tokenizer)
    if "valid" in about:
        train_store = store
        valid_store = _find_store(about["valid_fingerprint"]) or prepare(
            open_source([about["valid"]], config), tokenizer
        )
    else:
        train_store, valid_store = store.hold_out(about["held_out"], seed)
    for name, found in (("train", train_store), ("valid", valid_store)):
        if found.fingerprint != about[f"{name}_fingerprint"]:
            raise ValueError(
                f"{where}: the data have changed since the run began ({found.description}); begin a new run"
            )
    return train_store, valid_store


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
            why = "as asked for" if key in own[section] else recipe.reasons.get(key, f"as in {name}")
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


def _absolute(location: str) -> str:
    """A location that means the same from another working directory."""
    return os.path.abspath(location) if os.path.exists(location) and not is_generated(location) else location


def _digest(config: str | None) -> str | None:
    """What tells one TOML file from a changed one."""
    return hashlib.sha256(Path(config).read_bytes()).hexdigest() if config else None


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
