"""Parts of a recipe: fields by section, from a preset, a TOML file or `field=value`, laid over each other.

    sections = {"model": {...}, "train": {...}, "batch": {...}}
    merge(sections, lay(read_toml(path), read_assignments(["hidden_dim=256"])))     a user's own over a preset
    build(TrainConfig, sections["train"])

Each config is a small frozen dataclass that checks its own values; here only names and types are checked.
"""

import dataclasses
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from rhapsode.model import STACKED_ONLY, ModelConfig
from rhapsode.recipe.configs import BUDGETS, OptimizerConfig, TrainConfig
from rhapsode.tokens import BatchConfig

SECTIONS: dict[str, type] = {
    "model": ModelConfig,
    "optimizer": OptimizerConfig,
    "train": TrainConfig,
    "batch": BatchConfig,
}
Sections = dict[str, dict[str, Any]]
_Config = TypeVar("_Config")


def fields_of(section: str) -> dict[str, type]:
    """The fields of a section that a user may set, with their types."""
    # The tokenizer decides the vocabulary; --vocab-size is the way to choose it.
    return {field.name: field.type for field in dataclasses.fields(SECTIONS[section]) if field.name != "vocab_size"}  # type: ignore[misc]


def types_of(section: str) -> dict[str, type]:
    """All fields of a section, with their types."""
    return {field.name: field.type for field in dataclasses.fields(SECTIONS[section])}  # type: ignore[misc]


def checked(sections: Mapping[str, Any], where: str) -> Sections:
    """The sections, if every name is one and every value has its field's type; ValueError names what is not."""
    found: Sections = {}
    for section, fields in sections.items():
        if section not in SECTIONS:
            raise ValueError(
                f"{where}: {section!r} is not a section of a recipe; the sections are {', '.join(SECTIONS)}"
            )
        if not isinstance(fields, Mapping):
            raise ValueError(f"{where}: {section} must be a dict of fields, got {fields!r}")
        for field, value in fields.items():
            section_of(f"{section}.{field}", where)
            found.setdefault(section, {})[field] = typed(section, field, value, f"{where}, {section}")
    return found


def section_of(name: str, where: str) -> tuple[str, str]:
    """(section, field) of a field's name, plain or as `section.field`; ValueError lists what there is."""
    section, _, field = name.rpartition(".")
    found = [key for key in SECTIONS if field in fields_of(key) and section in ("", key)]
    if not found:
        known = "; ".join(f"{key}: {', '.join(fields_of(key))}" for key in SECTIONS)
        raise ValueError(f"{where}: unknown field {name!r} ({known})")
    return found[0], field


def read_toml(path: Path) -> Sections:
    """Reads the tables [model], [optimizer], [train], [batch]; ValueError names file, table and field."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:  # not TOML, not UTF-8, too long a number; nested too deep
        raise ValueError(f"{path}: not TOML: {error}") from None
    sections: Sections = {}
    for section, fields in content.items():
        if section not in SECTIONS or not isinstance(fields, dict):
            raise ValueError(
                f"{path}: {section!r} is not a table of a config; the tables are [{'], ['.join(SECTIONS)}]"
            )
        for field, value in fields.items():
            section_of(f"{section}.{field}", str(path))
            sections.setdefault(section, {})[field] = typed(section, field, value, f"{path}, [{section}]")
    return sections


def read_assignments(assignments: Iterable[str]) -> Sections:
    """Reads `field=value` texts, such as those of --set."""
    sections: Sections = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise ValueError(f"--set {assignment}: not of the form field=value")
        section, field = section_of(name.strip(), f"--set {assignment}")
        sections.setdefault(section, {})[field] = parse_value(section, field, text.strip(), f"--set {assignment}")
    return sections


def parse_value(section: str, field: str, text: str, where: str) -> Any:
    """The value of a field written as text, such as `256`, `tanh` or `true`."""
    kind = fields_of(section)[field]
    if kind is str:
        return text
    words = {"true": True, "false": False}
    try:
        value = words[text.lower()] if kind is bool else int(text.replace("_", "")) if kind is int else float(text)
    except (KeyError, ValueError):
        raise ValueError(f"{where}: {field} must be {_called(kind)}, got {text!r}") from None
    return value


def typed(section: str, field: str, value: Any, where: str) -> Any:
    """The value, if it has the field's type (an integer will do where a float is meant)."""
    kind = types_of(section)[field]
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise ValueError(f"{where}: {field} must be {_called(kind)}, got {value!r}")
    return value


def _called(kind: type) -> str:
    return {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}[kind]


# (section, field, value) -> the fields of that section which this value of that field has no use for: it has none of
# them, or their values were found for another (the rate of embeddings beside Muon is no rate for matrices).
WITHOUT = {
    ("model", "kind", "plain"): STACKED_ONLY,
    ("optimizer", "optimizer", "adam"): ("weight_decay", "learning_rate"),
    ("optimizer", "optimizer", "adamw"): ("learning_rate",),
    ("batch", "form", "first"): ("carry_state",),
}


def lay(sections: Sections, over: Mapping[str, Mapping[str, Any]]) -> Sections:
    """`sections` with the fields of `over` laid over them; a budget takes the place of another budget."""
    laid = {section: {**sections.get(section, {}), **over.get(section, {})} for section in SECTIONS}
    train = over.get("train", {})
    if any(field in train for field in BUDGETS):
        displaced = [field for field in BUDGETS if field not in train]
        laid["train"] = {field: value for field, value in laid["train"].items() if field not in displaced}
    return laid


def merge(sections: Sections, over: Mapping[str, Mapping[str, Any]]) -> Sections:
    """As `lay`, and what a new value in `over` has no use for (WITHOUT) is not taken from below."""
    merged = lay(sections, over)
    for (section, field, value), fields in WITHOUT.items():
        own = over.get(section, {})
        if own.get(field) == value != sections.get(section, {}).get(field):
            for name in fields:
                if name not in own:
                    merged[section].pop(name, None)
    return merged


def build(kind: type[_Config], fields: Mapping[str, Any], where: str = "config") -> _Config:
    """A config from its fields; ValueError for one that it does not have (written by a newer version, say)."""
    known = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(fields) - known)
    if unknown:
        raise ValueError(f"{where}: {kind.__name__} has no field {unknown[0]!r} (it has {', '.join(sorted(known))})")
    return kind(**fields)


def own_sections(
    config: Path | None, budgets: Mapping[str, float], seed: int | None, assignments: Iterable[str] | None
) -> Sections:
    """The fields that a user chose on the command line: the TOML file, then flags, then `field=value` texts."""
    own = read_toml(config) if config else {}
    if len(budgets) > 1:
        names = " and ".join(f"--{name}" for name in budgets)
        raise ValueError(f"give only one budget ({', '.join(f'--{name}' for name in BUDGETS)}), got {names}")
    flags = {**budgets, **({} if seed is None else {"seed": seed})}
    return lay(lay(own, {"train": flags}), read_assignments(assignments or ()))
