"""What stands in a run.json: of the right shape, or one line that names the field."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from rhapsode.model import ModelConfig
from rhapsode.recipe import OptimizerConfig, TrainConfig
from rhapsode.recorded import check_run, check_schema, read_config
from rhapsode.studies.plans import StudyRequest
from rhapsode.tokens import BatchConfig

WHOLE: dict[str, Any] = {
    "format_version": 1,
    "model": asdict(ModelConfig(5)),
    "optimizer": asdict(OptimizerConfig()),
    "train": asdict(TrainConfig(tokens=5)),
    "batch": asdict(BatchConfig()),
    "tokenizer": "ab",
    "plan": [[0, 10]],
    "threads": 1,
    "floor_bits_per_byte": None,
    "request": {"data": ["a.txt"], "preset": None, "config": None},
    "data": {
        "locations": ["/a.txt"],
        "source": {},
        "held_out": 0.05,
        "store_fingerprint": "a",
        "train_fingerprint": "b",
        "valid_fingerprint": "c",
    },
}


def without(about: dict[str, Any], path: str) -> dict[str, Any]:
    name, _, rest = path.partition(".")
    return {**about, name: without(about[name], rest)} if rest else {k: v for k, v in about.items() if k != name}


def changed(about: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    name, _, rest = path.partition(".")
    return {**about, name: changed(about[name], rest, value) if rest else value}


def test_a_whole_one_is_taken() -> None:
    """Would catch a run that is refused for a field of a later version, or for lacking what imported runs lack."""
    check_run(WHOLE, Path("run.json"))
    check_run(changed(WHOLE, "data.more", 3) | {"later": [1]}, Path("run.json"))
    check_run({"format_version": 1, "model": {}, "tokenizer": "a", "imported": "model.pt"}, Path("run.json"))


@pytest.mark.parametrize(
    "field",
    ["model", "optimizer", "train", "batch", "tokenizer", "data", "data.locations", "data.source", "data.held_out"]
    + [f"data.{name}_fingerprint" for name in ("store", "train", "valid")]
    + ["request.data", "request.preset"],
)
def test_a_missing_field_is_named(field: str) -> None:
    with pytest.raises(ValueError, match=rf"^x/run\.json: the field {field} is missing$"):
        check_run(without(WHOLE, field), Path("x/run.json"))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model", [], r"model must be an object, got \[\]"),
        ("data", 5, "data must be an object, got 5"),
        ("data.locations", "a", "data.locations must be a list, got 'a'"),
        ("data.locations", ["a", 5], r"data.locations\[1\] must be a text, got 5"),
        ("data.held_out", True, "data.held_out must be a number, got True"),
        ("threads", "two", "threads must be a whole number, got 'two'"),
        ("threads", 2.5, "threads must be a whole number, got 2.5"),
        ("plan", [[0]], r"plan\[0\] must be \[step, number of steps\], got \[0\]"),
        ("plan", [[0, 0]], r"plan\[0\] must be"),
        ("plan", {}, "plan must be a list, got {}"),
        ("floor_bits_per_byte", "low", "floor_bits_per_byte must be a number or null, got 'low'"),
        ("request", None, "request must be an object, got None"),
    ],
)
def test_a_wrong_field_is_named(field: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^x/run\.json: {message}"):
        check_run(changed(WHOLE, field, value), Path("x/run.json"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "the field model.vocab_size is missing"),
        (
            {"vocab_size": 5, "flavour": 1},
            "model has the field 'flavour', which this version of rhapsode does not know",
        ),
        ({"vocab_size": "5"}, "model.vocab_size must be a whole number, got '5'"),
        ({"vocab_size": True}, "model.vocab_size must be a whole number, got True"),
        ({"vocab_size": 5, "gate": 1}, "model.gate must be true or false, got 1"),
        ({"vocab_size": 0}, "model: vocab_size must be at least 1, got 0"),
        (None, "model must be an object, got None"),
    ],
)
def test_a_wrong_config_is_named(fields: Any, message: str) -> None:
    """Would catch a TypeError of a comparison in the config, far from the file that it came from."""
    with pytest.raises(ValueError, match=f"^run.json: {message}$"):
        read_config(ModelConfig, fields, "run.json", "model")
    assert read_config(ModelConfig, {"vocab_size": 5, "dropout": 0}, "run.json", "model").dropout == 0


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("assignments", [1.5], r"request.assignments\[0\] must be a text, got 1.5"),
        ("assignments", None, "request.assignments must be a list, got None"),
        ("valid", 3, "request.valid must be a text or null, got 3"),
        ("minutes", "2", "request.minutes must be a number or null, got '2'"),
    ],
)
def test_a_config_of_texts_and_of_what_may_be_null(field: str, value: Any, message: str) -> None:
    """Would catch an AttributeError of whoever takes each of them for a text."""
    with pytest.raises(ValueError, match=f"^study.json: {message}$"):
        read_config(StudyRequest, {"study": "size", field: value}, "study.json", "request")
    right = {"study": "grid", "minutes": 2, "vary": ("a=1",)}
    found = read_config(StudyRequest, right, "study.json", "request")
    assert (found.minutes, found.vary) == (2, ("a=1",))


def test_a_long_value_is_cut() -> None:
    with pytest.raises(ValueError, match=r"got 'x{59}$"):
        check_schema({"a": "x" * 5000}, {"a": int}, "run.json")
