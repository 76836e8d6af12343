"""What a run or a study wrote about itself, read back: JSON of the right shape, or one line naming file and field.

Such a file carries `sha256`, of all its other fields: a flipped bit in a number would be another number.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin

from rhapsode.terminal import literal

_Config = TypeVar("_Config")
Schema = Any  # a type, a tuple of types, [the schema of each item], or {name: schema}, `name?` where it may be missing

NUMBER = (int, float)
ENTRY = {"event": str, "step": int, "sequences": int, "tokens": int, "seconds": NUMBER, "train_loss": NUMBER}
TYPE_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "an object",
    NoneType: "null",
}


def read_versioned(file: Path, version: int) -> dict[str, Any]:
    """A JSON object with a format_version; ValueError where it is damaged or of another version."""
    about = read_sealed(file)
    if "format_version" not in about:
        raise ValueError(f"{file}: damaged (it has no format_version)")
    found = about["format_version"]
    if found != version:
        raise ValueError(
            f"{file.parent}: format_version {literal(str(found))[:40]}, but this version of rhapsode reads {version}"
        )
    check_seal(about, file)
    return about


def read_sealed(file: Path) -> dict[str, Any]:
    """A JSON object as it stands in a file, its seal too; ValueError where it is not one."""
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(f"{file}: damaged (nested too deeply)") from None
    except ValueError as error:
        raise ValueError(f"{file}: damaged ({error})") from None
    if not isinstance(about, dict):
        raise ValueError(f"{file}: damaged (it holds no JSON object)")
    return about


def sealed(about: Mapping[str, Any]) -> dict[str, Any]:
    """The fields, and `sha256` of them all."""
    return {**about, "sha256": _seal_of(about)}


def check_seal(about: dict[str, Any], file: Path) -> None:
    """Takes `sha256` out of the fields; ValueError where it is not theirs. Files of earlier versions have none."""
    seal = about.pop("sha256", None)
    if seal is not None and seal != _seal_of(about):
        raise ValueError(
            f"{file}: damaged, or edited: it does not match its sha256; restore it, or, if the change is yours, remove"
            " the field sha256"
        )


def _seal_of(about: Mapping[str, Any]) -> str:
    as_read = json.loads(json.dumps(dict(about)))
    return hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()


def read_entries(file: Path, saved: int | None) -> tuple[list[dict[str, Any]], int | None]:
    """The entries of a metrics.jsonl, and the number of the line at which they end because the file is torn there.

    saved: how many bytes a checkpoint knows; a line that begins after them may be torn, None: no line may. Half a line
    at the end always may. Raises ValueError naming the line where another one is no entry.
    """
    if not file.exists():
        return [], None
    *lines, half = file.read_bytes().split(b"\n")
    entries: list[dict[str, Any]] = []
    begin = 0
    for number, line in enumerate(lines, start=1):
        try:
            entries.append(_entry(line, f"{file}, line {number}"))
        except ValueError:
            if saved is None or begin < saved:
                raise
            return entries, number
        begin += len(line) + 1
    return entries, len(lines) + 1 if half else None


def _entry(line: bytes, where: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError(f"{where}: damaged, not JSON; remove the line") from None
    check_schema(entry, ENTRY, where)
    if entry["event"] == "valid":
        check_schema(entry, {"valid_loss": NUMBER}, where)
    return entry


def check_schema(value: Any, schema: Schema, where: str, field: str = "") -> None:
    """Raises ValueError naming the first field that is missing or of another type; unknown fields are no mistake."""
    if isinstance(schema, dict):
        _check_type(value, dict, where, field)
        for name, inner in schema.items():
            plain = name.removesuffix("?")
            path = f"{field}.{plain}".removeprefix(".")
            if plain in value:
                check_schema(value[plain], inner, where, path)
            elif plain == name:
                raise ValueError(f"{where}: the field {path} is missing")
    elif isinstance(schema, list):
        _check_type(value, list, where, field)
        for i, item in enumerate(value):
            check_schema(item, schema[0], where, f"{field}[{i}]")
    else:
        _check_type(value, schema, where, field)


def _check_type(value: Any, kinds: type | tuple[type, ...], where: str, field: str) -> None:
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    # True is an int to Python, not to a reader of JSON; a whole number will do where any number will.
    fits = isinstance(value, kinds + ((int,) if float in kinds else ()))
    if not fits or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join(TYPE_NAMES[kind] for kind in kinds if not (kind is int and float in kinds))
        shown = repr(value)
        raise ValueError(f"{where}: {field or 'all of it'} must be {wanted}, got {shown[:60]}")


def _check_hint(value: Any, hint: Any, where: str, field: str) -> None:
    """As the annotation of a dataclass has it: simple types, one of several, texts in a row; of others, anything."""
    several = get_args(hint)
    if get_origin(hint) is UnionType and all(each in TYPE_NAMES for each in several):
        _check_type(value, several, where, field)
    elif get_origin(hint) is tuple and several == (str, ...):
        check_schema(list(value) if isinstance(value, tuple) else value, [str], where, field)
    elif hint in TYPE_NAMES:
        _check_type(value, hint, where, field)


def read_config(kind: type[_Config], fields: Any, where: str, section: str) -> _Config:
    """A config from a section of a file; ValueError naming the file and what is wrong with which field.

    Fields with a default may be missing: files of earlier versions lack some.
    """
    check_schema(fields, dict, where, section)
    known = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name, value in fields.items():
        if name not in known:
            raise ValueError(f"{where}: {section} has the field {name!r}, which this version of rhapsode does not know")
        _check_hint(value, known[name].type, where, f"{section}.{name}")
    for name, field in known.items():
        needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if needed and name not in fields:
            raise ValueError(f"{where}: the field {section}.{name} is missing")
    try:
        return kind(**fields)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {section}: {error}") from None


RUN_SCHEMA: Mapping[str, Schema] = {
    "model": dict,
    "optimizer?": dict,
    "train?": dict,
    "batch?": dict,
    "tokenizer?": str,
    "tokenizer_files?": dict,
    "plan?": [[int]],
    "threads?": int,
    "floor_bits_per_byte?": (float, NoneType),
    "request?": {"data": [str], "preset": (str, NoneType)},
    "storyworld?": str,
    "data?": {
        "locations": [str],
        "source": dict,
        "store_fingerprint": str,
        "train_fingerprint": str,
        "valid_fingerprint": str,
        "valid?": (str, list),
        "held_out?": float,
    },
    "study?": str,
    "id?": str,
    "checkpoints?": [str],
    "task?": str,
}


def check_run(about: dict[str, Any], file: Path) -> None:
    """Raises ValueError with one line where the contents of a run.json cannot be those of a run."""
    where = str(file)
    check_schema(about, RUN_SCHEMA, where)
    if "request" in about:
        check_schema(about, {"data": dict}, where)
        if "valid" not in about["data"] and "held_out" not in about["data"]:
            raise ValueError(f"{where}: the field data.held_out is missing")
    if "request" in about or "study" in about:
        check_schema(about, {"optimizer": dict, "train": dict, "batch": dict}, where)
        if "task" not in about:  # whose ids are no text
            check_schema(about, {"tokenizer": str}, where)
    for i, entry in enumerate(about.get("plan", [])):
        if len(entry) != 2 or min(entry) < 0 or entry[1] < 1:
            raise ValueError(f"{where}: plan[{i}] must be [step, number of steps], got {entry}")
