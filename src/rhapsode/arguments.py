"""What a caller of the Python API gave, as what the rooms below take; a ValueError in one line where it cannot be."""

import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

from rhapsode.recipe import BUDGETS, Recipe
from rhapsode.recipe.changes import Sections, checked, lay
from rhapsode.sources import Source, SourceConfig, is_remote, location_of
from rhapsode.sources.memory import source_of_texts
from rhapsode.tokenizer import Tokenizer
from rhapsode.tokenizer.training import KINDS
from rhapsode.training.data import DataRequest
from rhapsode.training.start import TrainingRequest

LONGEST_FILE_NAME = 255  # bytes of a file's name, on any common disk

PathLike = str | os.PathLike[str]
Data = PathLike | Iterable[str] | Iterable[os.PathLike[str]]
Locations = PathLike | Iterable[os.PathLike[str]]
Section = Mapping[str, Any]


def training_request(
    wanted: tuple[Data | None, Data | None, PathLike | Tokenizer | None, int | None, SourceConfig],
    preset: str | None,
    recipe: Recipe | None,
    sections: Mapping[str, Section | None],
    budget: Mapping[str, Any],
    seed: int | None,
) -> TrainingRequest:
    """The arguments of `train` as what the rooms below take; files are read no sooner than they are needed."""
    data, valid, tokenizer, vocab_size, reading = wanted
    if recipe is not None and preset is not None:
        raise ValueError("recipe= already sets every field, so preset= has no effect: give only one of them")
    own = _own(recipe, sections, {name: value for name, value in budget.items() if value is not None}, seed)
    if tokenizer is not None and not isinstance(tokenizer, Tokenizer):
        if not isinstance(tokenizer, str | os.PathLike):
            kinds = ", ".join(KINDS)
            raise ValueError(f"tokenizer must be a folder, a Tokenizer or one of {kinds}, got {tokenizer!r}")
        tokenizer = location_of(os.fspath(tokenizer))
    if recipe is not None and (tokenizer is None or tokenizer in KINDS):
        if vocab_size not in (None, recipe.model.vocab_size):
            raise ValueError(f"vocab_size {vocab_size}, but the recipe has {recipe.model.vocab_size}: leave it out")
        vocab_size = recipe.model.vocab_size
    texts, judged = data_of(data, "data"), data_of(valid, "valid")
    return TrainingRequest(DataRequest(texts, judged, tokenizer, vocab_size, reading), preset, own)


def _own(recipe: Recipe | None, sections: Mapping[str, Section | None], budget: Section, seed: int | None) -> Sections:
    """The fields that were chosen, by section."""
    if len(budget) > 1:
        raise ValueError(f"give only one budget ({', '.join(BUDGETS)}), got {' and '.join(budget)}")
    given = checked({name: fields for name, fields in sections.items() if fields}, "train")
    flags = checked({"train": {**budget, **({} if seed is None else {"seed": seed})}}, "train")
    if recipe is None:
        return lay(given, flags)
    if not isinstance(recipe, Recipe):
        raise ValueError(f"recipe must be a Recipe, got {type(recipe).__name__}; Recipe.from_dict makes one of a dict")
    if given or flags:
        raise ValueError("recipe= already sets every field: change it with recipe.with_changes, or leave recipe= out")
    return recipe.to_dict()


def data_of(data: Data | None, name: str) -> tuple[str, ...] | Source:
    """Locations, or a source of texts in memory; ValueError where one could be taken for the other."""
    if data is None:
        return ()
    if isinstance(data, str | os.PathLike):
        location = location_of(os.fspath(data))
        if is_remote(location):
            return (location,)
        if not os.path.lexists(location) and (
            "\n" in location or max(len(os.fsencode(part)) for part in location.split(os.sep)) > LONGEST_FILE_NAME
        ):
            raise ValueError(f"{name}: a single str names a file; pass texts as a list, even a single one: [text]")
        return (location,)
    if not isinstance(data, Iterable) or isinstance(data, bytes):
        raise ValueError(f"{name} must be a file's name or path, or an iterable of texts, got {type(data).__name__}")
    items: Iterator[Any] = iter(data)
    first = next(items, None)
    if first is None:
        raise ValueError(f"{name}: empty, there is no text in it")
    if isinstance(first, os.PathLike):
        return tuple(_location(item, name, place) for place, item in enumerate((first, *items)))
    if isinstance(data, list | tuple) and all(_is_file(item) for item in data):
        raise ValueError(f"{name}: {data[0]!r} is the name of a file: pass files as pathlib.Path, texts as str")
    return source_of_texts(chain((first,), items))


def _location(item: object, name: str, place: int) -> str:
    if not isinstance(item, os.PathLike):
        raise ValueError(f"{name}: item {place} must be a path like those before it, got {type(item).__name__}")
    return location_of(os.fspath(item))


def _is_file(item: object) -> bool:
    named = isinstance(item, str) and (os.path.exists(item) or (is_remote(item) and not any(map(str.isspace, item))))
    return isinstance(item, os.PathLike) or named
