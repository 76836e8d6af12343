"""From a request to a run: what is held out, which layer has the last word, what a resumed run may not change."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from asking import TINY, asked

from rhapsode import storyworld
from rhapsode.files import cache_root
from rhapsode.model import ModelConfig, build_model
from rhapsode.recipe import OptimizerConfig, TrainConfig
from rhapsode.recipe.changes import build, merge, own_sections
from rhapsode.recipe.presets import PRESETS
from rhapsode.run import Run
from rhapsode.tokens import BatchConfig
from rhapsode.training.start import begin, choose_recipe, resume


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RHAPSODE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def wish() -> dict[str, Any]:
    """The options of a tiny run."""
    return {"budget": {"sequences": 4}, "vocab_size": 300}


@pytest.fixture
def file(small: Any, tmp_path: Path) -> str:
    """The small stories, where a test may change them."""
    return str(shutil.copy(small.file, tmp_path / "stories.jsonl"))


def test_held_out_share(file: str, wish: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch stories that are learnt and scored, a draw that another run repeats, and silence about it."""
    ready = begin(asked(file, **wish), tmp_path / "run")
    assert (ready.train.num_stories, ready.valid.num_stories) == (95, 5)
    assert not set(ready.train.indices) & set(ready.valid.indices)
    assert f"held out for validation: 5 stories, {ready.valid.num_bytes:,} bytes (seed 0;" in capsys.readouterr().err
    again = begin(asked(file, **wish), tmp_path / "again")
    other = begin(asked(file, **wish, seed=1), tmp_path / "other")
    assert again.valid.fingerprint == ready.valid.fingerprint != other.valid.fingerprint
    resumed = resume(tmp_path / "run")
    assert resumed.train.fingerprint == ready.train.fingerprint
    assert resumed.valid.indices.tolist() == ready.valid.indices.tolist()


def test_validation_data_of_its_own(file: str, wish: dict[str, Any], tmp_path: Path) -> None:
    """Would catch a share held out although there are validation data, or read by another tokenizer."""
    valid = tmp_path / "valid.jsonl"
    valid.write_text('{"text": "One story."}\n')
    ready = begin(asked(file, **wish, valid=str(valid)), tmp_path / "run")
    assert (ready.train.num_stories, ready.valid.num_stories) == (100, 1)
    tokenizer = ready.run.tokenizer
    assert ready.valid.story(0).tolist() == [*tokenizer.encode("One story."), tokenizer.eos_id]
    assert resume(tmp_path / "run", asked(file, **wish, valid=str(valid))).valid.fingerprint == ready.valid.fingerprint


def test_storyworld_is_judged_by_its_own_split(tmp_path: Path) -> None:
    """Would catch training stories that are scored as unseen."""
    ready = begin(asked("storyworld:60", budget={"sequences": 2}, vocab_size=300), tmp_path / "r")
    tokenizer = ready.run.tokenizer
    texts = [tokenizer.decode(ready.valid.story(i).tolist()) for i in range(3)]
    assert texts == list(storyworld.sample_batch(0, 3, "valid"))
    assert (ready.train.num_stories, ready.valid.num_stories) == (60, 200)


def test_the_last_word(tmp_path: Path) -> None:
    """Would catch layers in the wrong order: preset, then file, then flags, then --set."""
    file = tmp_path / "config.toml"
    file.write_text("[model]\nembed_dim = 10\nhidden_dim = 11\n[train]\nepochs = 2\nseed = 5\n")
    own = own_sections(file, {}, 6, ["hidden_dim=12"])
    sections = merge(PRESETS["minute"], own)
    assert (sections["model"]["embed_dim"], sections["model"]["hidden_dim"]) == (10, 12)
    assert sections["model"]["key_dim"] == PRESETS["minute"]["model"]["key_dim"]
    assert sections["train"] == {"epochs": 2.0, "seed": 6}
    assert own_sections(file, {"tokens": 9}, 6, [])["train"] == {"tokens": 9, "seed": 6}
    assert own_sections(file, {}, 6, ["minutes=3"])["train"] == {"minutes": 3.0, "seed": 6}
    with pytest.raises(ValueError, match=r"give only one budget \(.*\), got --tokens and --minutes"):
        own_sections(file, {"tokens": 9, "minutes": 1.0}, None, None)
    with pytest.raises(ValueError, match="--preset must be one of minute, coffee, got 'tea'"):
        choose_recipe(asked(preset="tea"))


def test_a_user_s_layers_take_nothing_from_each_other(tmp_path: Path) -> None:
    """Would catch a rate in the file that is lost to `--set optimizer=adamw` with the preset's, and a field that the
    user asked for in the file and that is dropped silently for one in --set that cannot stand beside it."""
    file = tmp_path / "config.toml"
    file.write_text("[optimizer]\nlearning_rate = 0.005\n[batch]\ncarry_state = true\n")
    adamw = merge(PRESETS["coffee"], own_sections(file, {}, None, ["optimizer=adamw"]))
    assert adamw["optimizer"] == {"optimizer": "adamw", "learning_rate": 0.005, "weight_decay": 0.1}
    with pytest.raises(ValueError, match="carry_state needs form stream"):
        choose_recipe(asked("x", preset="coffee", config=file, assignments=("form=first",)))


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_configs(preset: str) -> None:
    """Would catch a preset with a field that is no more, or one without a warm-up to be timed in."""
    sections = PRESETS[preset]
    model = build(ModelConfig, {**sections["model"], "vocab_size": 1024})
    assert sum(p.numel() for p in build_model(model, 0).parameters()) > 100_000
    assert build(TrainConfig, sections["train"]).minutes > 0
    assert build(OptimizerConfig, sections["optimizer"]).warmup_steps >= 10
    assert build(BatchConfig, sections["batch"]).form == "stream"


def test_nothing_is_written_for_a_wrong_request(file: str, wish: dict[str, Any], tmp_path: Path) -> None:
    """Would catch data that are read, or a directory that is made, before a wrong field is told."""
    out = tmp_path / "run"
    wrong: list[dict[str, Any]] = [
        {"assignments": ("hidden_dim=0",)},
        {"assignments": ("learning_rate=-1",)},
        {"assignments": ("window=0",)},
        {"budget": {"minutes": -1.0}},
        {"config": tmp_path / "none.toml"},
        {"split": "chapter"},
        {"preset": "tea"},
        {"tokenizer": str(tmp_path / "none")},
        {"vocab_size": 0},
        {"assignments": (*TINY, "batch_size=5000")},
        {"valid": str(tmp_path / "none.txt")},
        {"budget": {"minutes": 1.0}, "assignments": (*TINY, "warmup_steps=3")},
    ]
    for number, change in enumerate(wrong):
        with pytest.raises((ValueError, OSError)) as caught:
            begin(asked(file, **{**wish, **change}), out)
        assert len(str(caught.value).splitlines()) == 1
        assert not out.exists()
        assert number > 6 or not cache_root().exists()  # the first seven are told before the data are read
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        begin(asked(str(tmp_path / "none.txt"), **wish), out)
    begin(asked(file, **wish), out)
    cache = cache_root()
    shutil.rmtree(cache)
    with pytest.raises(FileExistsError, match="holds a run"):
        begin(asked(file, **wish), out)
    assert not cache.exists()  # told before the data are read


def test_resume_is_for_the_same_request(
    file: str, wish: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a changed wish that is silently ignored, and the same command refused."""
    out = tmp_path / "run"
    begin(asked(file, **wish), out)
    resume(out, asked(file, **wish))
    resume(out)
    monkeypatch.chdir(tmp_path.parent)
    resume(out)
    changes: dict[str, dict[str, Any]] = {
        "sequences 4, not 5": {"budget": {"sequences": 5}},
        "sequences 4, not tokens 5": {"budget": {"tokens": 5}},
        "seed 0, not 7": {"seed": 7},
        "vocab_size 300, not 400": {"vocab_size": 400},
        "hidden_dim 4, not 5": {"assignments": ("hidden_dim=5",)},
        "preset 'coffee', not 'minute'": {"preset": "minute"},
        "valid None, not '.*elsewhere'": {"valid": "elsewhere"},
        "split 'auto', not 'line'": {"split": "line"},
        "tokenizer None, not 'characters'": {"tokenizer": "characters"},
    }
    for told, change in changes.items():
        with pytest.raises(ValueError, match=f"was started with {told}; a resumed run cannot change that"):
            resume(out, asked(file, **{**wish, **change}))
    with pytest.raises(ValueError, match=r"was started with data \['.*stories.jsonl'\], not \['.*elsewhere'\]"):
        resume(out, asked("elsewhere", **wish))


def test_resume_names_what_it_had_anyway(file: str, wish: dict[str, Any], tmp_path: Path) -> None:
    """Would catch a default that is refused when it is spelt out, and a TOML file that says something else by now."""
    toml = tmp_path / "recipe.toml"
    toml.write_text("[model]\nembed_dim = 6\n")
    out, options = tmp_path / "run", {**wish, "config": toml, "assignments": TINY[1:]}
    begin(asked(file, **options), out)
    resume(out, asked(file, **options, seed=0, preset="coffee"))
    tokenizer = Run.open(out).path / "tokenizer"
    resume(out, asked(file, **{**options, "vocab_size": None}, tokenizer=str(tokenizer)))
    toml.write_text("[model]\nembed_dim = 7\n")
    resume(out)
    with pytest.raises(ValueError, match="was started with embed_dim 6, not 7; a resumed run cannot change that"):
        resume(out, asked(file, **options))


def test_a_run_of_an_earlier_version_is_resumed(file: str, wish: dict[str, Any], tmp_path: Path) -> None:
    """Would catch a run.json whose request has the command line's texts, as it was written before, and is refused."""
    out = tmp_path / "run"
    begin(asked(file, **wish), out)
    run = Run.open(out)
    earlier = {
        "budget": {"sequences": 4},
        "config": None,
        "assignments": list(TINY),
        "seed": None,
        "config_digest": None,
    }
    run.update(request={**run.about["request"], **earlier})
    resume(out)
    resume(out, asked(file, **wish))
    with pytest.raises(ValueError, match="hidden_dim 4, not 5"):
        resume(out, asked(assignments=("hidden_dim=5",)))


def test_resume_without_the_cache(file: str, wish: dict[str, Any], tmp_path: Path) -> None:
    """Would catch a run that cannot go on after the cache was emptied, or that goes on with other data."""
    out = tmp_path / "run"
    ready = begin(asked(file, **wish), out)
    shutil.rmtree(cache_root())
    assert resume(out).train.fingerprint == ready.train.fingerprint
    shutil.rmtree(cache_root())
    with open(file, "a", encoding="utf-8") as stream:
        stream.write(json.dumps({"text": "One more."}) + "\n")
    with pytest.raises(ValueError, match=r"the data have changed since the run was started .*; start a new run"):
        resume(out)


def test_data_are_found_from_another_folder(
    file: str, wish: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch relative paths in run.json, and the corpus looked for in a folder that is called like it."""
    (tmp_path / "storyworld:40").mkdir()
    monkeypatch.chdir(tmp_path)
    begin(asked("stories.jsonl", **wish), tmp_path / "run")
    begin(asked("storyworld:40", budget={"sequences": 2}, valid="stories.jsonl"), tmp_path / "s")
    monkeypatch.chdir(tmp_path.parent)
    shutil.rmtree(cache_root())
    assert resume(tmp_path / "run").train.num_stories == 95
    assert Run.open(tmp_path / "s").about["data"]["locations"] == ["storyworld:40"]
    assert Run.open(tmp_path / "s").about["data"]["valid"] == [str(tmp_path / "stories.jsonl")]


def test_run_that_train_did_not_begin(tmp_path: Path) -> None:
    Run.create(tmp_path / "run", {"model": {}}, None)
    with pytest.raises(ValueError, match="was not started by `rhapsode train`"):
        resume(tmp_path / "run")
