"""Configs from TOML, from --set and from a run: names and types, and which layer has the last word."""

import dataclasses
from collections import Counter
from pathlib import Path

import pytest

from rhapsode.model import ModelConfig
from rhapsode.recipe import OptimizerConfig, TrainConfig
from rhapsode.recipe.changes import SECTIONS, build, fields_of, merge, read_assignments, read_toml, section_of
from rhapsode.tokens import BatchConfig


def toml(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "config.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_toml(tmp_path: Path) -> None:
    """Would catch a value that loses its type, and a whole number refused where a float is meant."""
    text = '[model]\nkind = "stacked"\ngate = true\n[optimizer]\nlearning_rate = 1\n[train]\ntokens = 1_000\n[batch]\n'
    sections = read_toml(toml(tmp_path, text))
    assert sections["model"] == {"kind": "stacked", "gate": True}
    assert sections["optimizer"] == {"learning_rate": 1.0}
    assert isinstance(sections["optimizer"]["learning_rate"], float)
    assert build(TrainConfig, sections["train"]) == TrainConfig(tokens=1000)


def test_toml_with_a_byte_order_mark(tmp_path: Path) -> None:
    """Would catch a file as Windows' editors save it that is refused as no TOML."""
    assert read_toml(toml(tmp_path, "\ufeff[train]\r\ntokens = 9\r\n")) == {"train": {"tokens": 9}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[model]\nhiden_dim = 3", r"config\.toml: unknown field 'model\.hiden_dim' \(model: kind, embed_dim"),
        ("[train]\nhidden_dim = 3", r"unknown field 'train\.hidden_dim'"),
        ("[model]\nvocab_size = 3", r"unknown field 'model\.vocab_size'"),
        ("[modle]\nhidden_dim = 3", r"'modle' is not a table of a config; the tables are \[model\], \[optimizer\]"),
        ("hidden_dim = 3", "'hidden_dim' is not a table of a config"),
        ("[model]\nhidden_dim = 3.0", r"config\.toml, \[model\]: hidden_dim must be a whole number, got 3\.0"),
        ("[model]\nhidden_dim = true", "hidden_dim must be a whole number, got True"),
        ('[model]\ngate = "yes"', "gate must be true or false, got 'yes'"),
        ("[model]\nkind = 1", "kind must be a text, got 1"),
        ('[train]\nminutes = "5"', "minutes must be a number, got '5'"),
        ("[train]\nminutes = false", "minutes must be a number, got False"),
        ("[train\nminutes = 5", r"config\.toml: not TOML"),
        ("[train]\nminutes = \x00", "not TOML"),
        (f"[train]\nminutes = {'1' * 5000}", r"config\.toml: not TOML: Exceeds the limit"),
        (f"[train]\nminutes = {'[' * 5000}", r"config\.toml: not TOML: .*recursion"),
    ],
)
def test_toml_that_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    """Would catch a misspelt field that is silently left out."""
    with pytest.raises(ValueError, match=message):
        read_toml(toml(tmp_path, text))


def test_assignments() -> None:
    """Would catch a text taken for a number, and a field found in the wrong section."""
    given = ["hidden_dim=1_024", "gate=True", "train.minutes=2", "prompt=a = b ", "decay=cosine", "learning_rate=3e-4"]
    assert read_assignments(given) == {
        "model": {"hidden_dim": 1024, "gate": True},
        "train": {"minutes": 2.0, "prompt": "a = b"},
        "optimizer": {"decay": "cosine", "learning_rate": 3e-4},
    }


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("hidden_dim", "--set hidden_dim: not of the form field=value"),
        ("hidden_dim=", "--set hidden_dim=: hidden_dim must be a whole number, got ''"),
        ("hidden_dim=2.5", r"hidden_dim must be a whole number, got '2\.5'"),
        ("gate=1", "gate must be true or false, got '1'"),
        ("dropout=much", "dropout must be a number, got 'much'"),
        ("lr=1", r"--set lr=1: unknown field 'lr' \(model: .*learning_rate"),
        ("train.hidden_dim=3", r"unknown field 'train\.hidden_dim'"),
        ("vocab_size=3", "unknown field 'vocab_size'"),
    ],
)
def test_assignments_that_are_wrong(assignment: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_assignments([assignment])


def test_a_name_means_one_field() -> None:
    """Would catch two sections with a field of one name: --set would take the first, whichever was meant."""
    names = Counter(name for section in SECTIONS for name in fields_of(section))
    assert set(names.values()) == {1}
    for section in SECTIONS:
        for name in fields_of(section):
            assert section_of(name, "") == section_of(f"{section}.{name}", "") == (section, name)


def test_every_field_has_a_type_that_can_be_written() -> None:
    """Would catch a new field, such as a tuple, that neither TOML nor --set can give."""
    assert {kind for section in SECTIONS for kind in fields_of(section).values()} == {int, float, str, bool}
    for kind in (ModelConfig, OptimizerConfig, TrainConfig, BatchConfig):
        assert kind in SECTIONS.values()
        assert dataclasses.is_dataclass(kind)


def test_a_budget_takes_the_place_of_another() -> None:
    """Would catch a preset's minutes that stay beside the user's tokens, and a budget lost to another field."""
    preset = {"train": {"minutes": 10.0, "patience": 3}, "model": {"hidden_dim": 8}}
    assert merge(preset, {"train": {"tokens": 500}})["train"] == {"tokens": 500, "patience": 3}
    assert merge(preset, {"train": {"seed": 1}})["train"] == {"minutes": 10.0, "patience": 3, "seed": 1}
    assert merge(preset, {"train": {"minutes": 2.0}})["train"]["minutes"] == 2.0
    assert merge(preset, {"model": {"kind": "plain"}})["model"] == {"hidden_dim": 8, "kind": "plain"}
    assert preset == {"train": {"minutes": 10.0, "patience": 3}, "model": {"hidden_dim": 8}}
    stacked = {"model": {"kind": "stacked", "num_layers": 2, "pair_embeddings": 9, "hidden_dim": 8}}
    assert merge(stacked, {"model": {"kind": "plain"}})["model"] == {"hidden_dim": 8, "kind": "plain"}
    with pytest.raises(ValueError, match=r"exactly one of .*got tokens and epochs"):
        build(TrainConfig, merge(preset, {"train": {"tokens": 500, "epochs": 1.0}})["train"])


def test_an_optimizer_takes_nothing_from_a_preset_that_is_not_for_it() -> None:
    """Would catch `--set optimizer=adam` that fails by a field that nobody asked for, and one that diverges at the rate
    of embeddings beside Muon; and a user's own rate that is lost with the preset's."""
    preset = {"optimizer": {"learning_rate": 0.02, "weight_decay": 0.1}}
    adam, adamw = {"optimizer": "adam"}, {"optimizer": "adamw"}
    assert merge(preset, {"optimizer": adam})["optimizer"] == adam
    assert merge(preset, {"optimizer": adamw})["optimizer"] == {"weight_decay": 0.1, **adamw}
    assert merge(preset, {"optimizer": {"optimizer": "muon"}})["optimizer"]["learning_rate"] == 0.02
    own = {"optimizer": {**adam, "learning_rate": 1e-3}}
    assert merge(merge(preset, own), {"optimizer": adam}) == merge(preset, own) == merge({}, own)
    with pytest.raises(ValueError, match="weight_decay"):
        build(OptimizerConfig, merge(preset, {"optimizer": {**adam, "weight_decay": 0.1}})["optimizer"])


def test_first_windows_carry_no_state_that_a_preset_chose() -> None:
    """Would catch `--set form=first` on long stories that fails by a field that nobody asked for."""
    carrying = {"batch": {"window": 8, "carry_state": True}}
    assert merge(carrying, {"batch": {"form": "first"}})["batch"] == {"window": 8, "form": "first"}
    with pytest.raises(ValueError, match="carry_state needs form stream"):
        build(BatchConfig, merge(carrying, {"batch": {"form": "first", "carry_state": True}})["batch"])


def test_build_rejects_what_a_newer_version_wrote() -> None:
    """Would catch an unknown field of a run.json that is ignored, or ends in a traceback."""
    with pytest.raises(ValueError, match=r"run\.json: TrainConfig has no field 'mood' \(it has checkpoint_seconds"):
        build(TrainConfig, {"tokens": 1, "mood": "good"}, "run.json")
