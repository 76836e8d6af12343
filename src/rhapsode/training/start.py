"""From what a user asked for to a run that is ready to train: data, the preset fitted to them, a run directory."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from rhapsode.data import IN_MEMORY, DataRequest, TrainingData, open_data, reading_settings, reopen_data
from rhapsode.machine import memory_bytes
from rhapsode.model import ModelConfig, build_model
from rhapsode.progress import say
from rhapsode.recipe import BUDGETS, Recipe
from rhapsode.recipe.changes import Sections, merge
from rhapsode.recipe.presets import PRESETS, VOCAB_SIZES
from rhapsode.recipe.rules import TextSize, fit_preset
from rhapsode.run import Run, check_free
from rhapsode.tokenizer import Tokenizer
from rhapsode.tokenizer.training import KINDS
from rhapsode.tokens import Batcher, TokenStore, prepare
from rhapsode.training.plan import first_plan

BYTES_PER_PARAMETER = 16  # weight, gradient and two moments


@dataclass(frozen=True)
class TrainingRequest:
    """What a user asked for; what is empty is chosen. own: fields of the recipe by section, laid over the preset's."""

    data: DataRequest = field(default_factory=DataRequest)
    preset: str | None = None
    own: Sections = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Whether nothing at all was asked for."""
        return self.data == DataRequest() and self.preset is None and not any(self.own.values())


@dataclass(frozen=True)
class Ready:
    """A run and the data it trains on and is judged by."""

    run: Run
    train: TokenStore
    valid: TokenStore


@dataclass(frozen=True)
class Chosen:
    """The data and the recipe of a training. reasons: in lines, how often the text is read, and of each field why."""

    data: TrainingData
    recipe: Recipe
    reasons: list[str]


def begin(request: TrainingRequest, out: Path, processes: int = 1) -> Ready:
    """Reads the data, makes what is missing of tokenizer and token stores, and creates the run directory.

    processes: as `choose_recipe` takes it. Raises ValueError or OSError with one line before anything is written to
    `out`.
    """
    check_free(out)
    chosen = choose_recipe(request, processes)
    say(f"{chosen.reasons[0]}; --explain-preset shows how the preset is fitted to that")
    data, recipe = chosen.data, chosen.recipe
    batcher = Batcher(data.train, recipe.batch, recipe.train.seed)
    first_plan(recipe.train, recipe.optimizer.warmup_steps, batcher)  # raises what training would
    _check_memory(recipe.model)
    asked = request.data.recorded() | {"preset": preset_of(request)}
    more = {"data": data.about, "request": asked, "floor_bits_per_byte": data.floor_bits_per_byte}
    return Ready(create_run(out, recipe, data.tokenizer, more), data.train, data.valid)


def _check_memory(config: ModelConfig) -> None:
    """Raises ValueError where the model alone, with its gradient and its optimiser's state, is more than there is."""
    try:
        with torch.device("meta"):
            count = sum(parameter.numel() for parameter in build_model(config).parameters())
    except (TypeError, RuntimeError):
        count = 2**63  # beyond all numbers
    needed, there = BYTES_PER_PARAMETER * count, memory_bytes()
    if there is not None and needed > there:
        raise ValueError(
            f"a model of {count:,} parameters needs {needed / 1e9:,.1f} GB of memory to train, this machine has"
            f" {there / 1e9:,.1f}; choose a smaller embed_dim, hidden_dim or vocabulary"
        )


def create_run(out: Path, recipe: Recipe, tokenizer: Tokenizer | None, more: dict[str, Any]) -> Run:
    """A run directory for this recipe, with whatever else is to stand in its run.json; no tokenizer: for bare ids."""
    spelled = {"tokenizer": tokenizer.fingerprint} if tokenizer is not None else {}
    return Run.create(out, {**recipe.to_dict(), **spelled, **more}, tokenizer)


def choose_recipe(request: TrainingRequest, processes: int = 1) -> Chosen:
    """The request's data, and its preset fitted to them with the user's own fields laid over it.

    processes: so many will train it, each with as many threads as this one has.
    Raises ValueError or OSError with one line; a wrong field is told before the data are read.
    """
    name, own = preset_of(request), request.own
    seed = Recipe.from_sections(merge(PRESETS[name], own), vocab_size=1).train.seed
    data = open_data(request.data, seed, VOCAB_SIZES[name])
    text, threads = TextSize(data.train.num_tokens, data.train.num_stories), processes * torch.get_num_threads()
    fitted = fit_preset(name, text, own, threads)
    sections, vocab_size = merge(fitted.sections, own), data.tokenizer.vocab_size
    wanted = own.get("model", {}).get("vocab_size", vocab_size)
    if wanted != vocab_size:
        fitting = f"recipe.with_changes(model={{'vocab_size': {vocab_size}}})"
        raise ValueError(f"the recipe has vocab_size {wanted}, the tokenizer {vocab_size}: take {fitting}")
    lines = [fitted.text, f"vocab_size {vocab_size}: {_why_vocabulary(request.data, data, name)}"]
    for section, fields in sections.items():
        for key, value in fields.items():
            why = "your choice" if key in own.get(section, {}) else fitted.reasons.get(key, f"as in {name}")
            lines.append(f"{key} {value}: {why}")
    return Chosen(data, Recipe.from_sections(sections, vocab_size), lines)


def _why_vocabulary(request: DataRequest, data: TrainingData, preset: str) -> str:
    """Why the vocabulary has so many tokens."""
    if request.vocab_size is not None:
        return "your choice"
    if request.tokenizer not in (None, *KINDS) or data.prepared:
        return "its tokenizer's"
    if data.tokenizer.vocab_size == VOCAB_SIZES[preset]:
        return f"as in {preset}"
    return f"instead of {VOCAB_SIZES[preset]}: by the size and the letters of the text"


def preset_of(request: TrainingRequest) -> str:
    """The name of the preset; ValueError for one that there is not."""
    preset = request.preset or ("minute" if request.data.data == () else "coffee")
    if preset not in PRESETS:
        raise ValueError(f"--preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    return preset


def resume(out: Path, request: TrainingRequest | None = None, as_begun: bool = False, kind: type[Run] = Run) -> Ready:
    """Opens a run to train it on; what the request names must be what the run was begun with.

    as_begun: whether to take data that have changed since from the cache, as they were, and to say so. kind: how the
    run is opened. Raises ValueError for another request, or for such data otherwise.
    """
    run = kind.open(out)
    if run.about.get("request") is None or run.recipe is None:
        raise ValueError(f"{out}: was not started by `rhapsode train`, so it cannot be resumed")
    request, recorded = request or TrainingRequest(), run.recipe.to_dict()
    for section, fields in request.own.items():
        for name, value in fields.items():
            if recorded[section][name] != value:
                was = next(each for each in BUDGETS if recorded["train"][each]) if name in BUDGETS else name
                refuse(out, f"{was} {recorded[section][was]!r}", f"{name if was != name else ''} {value!r}".strip())
    begun, data = run.about["request"], run.about["data"]
    preset = begun["preset"] or preset_of(TrainingRequest(DataRequest(tuple(begun["data"]))))
    if request.preset not in (None, preset):
        refuse(out, f"preset {preset!r}", repr(request.preset))
    _check_same_data(out, run, request.data)
    for source in (request.data.data, request.data.valid):
        if not isinstance(source, tuple):  # texts in memory: made again where the cache has lost them
            prepare(source, run.tokenizer)
    seed = run.recipe.train.seed
    train_store, valid_store = reopen_data(data, run.tokenizer, seed, str(out), as_begun)
    return Ready(run, train_store, valid_store)


def refuse(out: Path, begun: str, asked: str) -> None:
    """Raises the ValueError of a run that was begun otherwise."""
    raise ValueError(f"{out} was started with {begun}, not {asked}; a resumed run cannot change that")


def _check_same_data(out: Path, run: Run, request: DataRequest) -> None:
    """ValueError where the request names other data, or reads them otherwise, than the run was begun with."""
    begun, data = {**DataRequest().recorded(), **run.about["request"]}, run.about["data"]
    chosen = {**vars(reading_settings(data, str(out))), "vocab_size": run.tokenizer.vocab_size}
    if begun["data"]:
        begun["data"] = data["locations"]
    asked, unasked = request.recorded(), DataRequest().recorded()
    for part, source in (("", request.data), ("valid_", request.valid)):
        if not isinstance(source, tuple) and source.fingerprint() != data.get(f"{part}source_fingerprint"):
            raise ValueError(f"{out}: was started on other texts than those {IN_MEMORY[1:-1].removeprefix('texts ')}")
    if request.tokenizer is not None and request.tokenizer not in KINDS:
        named = (
            request.tokenizer if isinstance(request.tokenizer, Tokenizer) else Tokenizer.load(Path(request.tokenizer))
        )
        if named.fingerprint != run.tokenizer.fingerprint:
            refuse(out, f"tokenizer {begun['tokenizer']!r}", repr(asked["tokenizer"]))
        del asked["tokenizer"]
    for name, value in asked.items():
        if value != unasked[name] and value not in (_absolute_if(name, begun[name]), chosen.get(name)):
            refuse(out, f"{name} {begun[name]!r}", repr(value))


def _absolute_if(name: str, value: Any) -> Any:
    """A location that an earlier version kept as it was typed."""
    return DataRequest(valid=(value,)).recorded()["valid"] if name == "valid" and value else value
