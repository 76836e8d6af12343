"""A recipe: all that decides a training beside the text, its tokenizer and the machine."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from rhapsode.model import ModelConfig
from rhapsode.recipe.changes import SECTIONS, Sections, build, checked, merge, typed, types_of
from rhapsode.recipe.configs import OptimizerConfig, TrainConfig
from rhapsode.recorded import read_config
from rhapsode.tokens import BatchConfig


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The shape of a model, how its weights move, how long it trains, on which batches. A value: compare it, keep it.

    recipe.with_changes(model={"hidden_dim": 256}, train={"minutes": 5})
    Recipe.from_dict(recipe.to_dict()) == recipe
    """

    model: ModelConfig
    optimizer: OptimizerConfig
    train: TrainConfig
    batch: BatchConfig

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], where: str = "recipe") -> "Recipe":
        """The recipe that `to_dict` took apart; `where` names the source in errors, a file for instance.

        Raises ValueError for a section or field that is missing, unknown, of another type, or has a value that cannot
        be.
        """
        unknown = sorted(set(content) - set(SECTIONS))
        if unknown:
            raise ValueError(
                f"{where}: {unknown[0]!r} is not a section of a recipe; the sections are {', '.join(SECTIONS)}"
            )
        for section in SECTIONS:
            if section not in content:
                raise ValueError(f"{where}: the section {section} is missing")
            fields = content[section]
            missing = [name for name in types_of(section) if isinstance(fields, Mapping) and name not in fields]
            if missing:
                raise ValueError(f"{where}: the field {section}.{missing[0]} is missing")
        parts: dict[str, Any] = {name: read_config(kind, content[name], where, name) for name, kind in SECTIONS.items()}
        return cls(**parts)

    @classmethod
    def from_sections(cls, sections: Sections, vocab_size: int) -> "Recipe":
        """The recipe of some fields by section; fields that are not there have their defaults.

        Raises ValueError for a field that there is not, or a value that cannot be.
        """
        with_vocabulary = {**sections, "model": {**sections.get("model", {}), "vocab_size": vocab_size}}
        return cls(**{section: build(kind, with_vocabulary.get(section, {})) for section, kind in SECTIONS.items()})

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """All fields by section, as plain numbers, texts and truth values: what run.json keeps."""
        return dataclasses.asdict(self)

    def with_changes(self, **sections: Mapping[str, Any]) -> "Recipe":
        """The recipe with some fields changed: `model={...}`, `optimizer={...}`, `train={...}`, `batch={...}`.

        vocab_size may be among those of the model, to fit a tokenizer. A budget takes the place of another; what a new
        `kind`, `optimizer` or `form` has no use for is dropped.
        Raises ValueError for a field that there is not, or a value that cannot be.
        """
        model = sections.get("model")
        vocab_size = self.model.vocab_size
        if isinstance(model, Mapping) and "vocab_size" in model:
            vocab_size = typed("model", "vocab_size", model["vocab_size"], "with_changes, model")
            sections = {**sections, "model": {name: model[name] for name in model if name != "vocab_size"}}
        merged = merge(self.to_dict(), checked(sections, "with_changes"))
        return Recipe.from_sections(merged, vocab_size)
