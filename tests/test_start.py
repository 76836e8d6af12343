"""From a request to a run: what is held out, which layer has the last word, what a resumed run may not change."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rhapsode import storyworld
from rhapsode.model import ModelConfig, build_model
from rhapsode.recipe import OptimizerConfig, TrainConfig
from rhapsode.recipe.changes import build, merge
from rhapsode.recipe.presets import PRESETS
from rhapsode.run import Run
from rhapsode.sources import cache_root
from rhapsode.start import Request, begin, fitted, own_sections, resume
from rhapsode.tokens import BatchConfig

TINY = ("embed_dim=4", "hidden_dim=4", "key_dim=4", "value_dim=4", "num_layers=1", "pair_embeddings=0")
TINY = (*TINY, "window=8", "batch_size=2")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RHAPSODE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def request_(small: Any, tmp_path: Path) -> Request:
    """A tiny run on a copy of the small stories."""
    file = tmp_path / "stories.jsonl"
    shutil.copy(small.file, file)
    return Request((str(file),), budget={"sequences": 4}, vocab_size=300, assignments=TINY)


def test_held_out_share(request_: Request, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch stories that are learnt and scored, a draw that another run repeats, and silence about it."""
    ready = begin(request_, tmp_path / "run")
    assert (ready.train.num_stories, ready.valid.num_stories) == (95, 5)
    assert not set(ready.train.indices) & set(ready.valid.indices)
    assert f"held out for validation: 5 stories, {ready.valid.num_bytes:,} bytes (seed 0;" in capsys.readouterr().err
    again = begin(request_, tmp_path / "again")
    other = begin(replace(request_, seed=1), tmp_path / "other")
    assert again.valid.fingerprint == ready.valid.fingerprint != other.valid.fingerprint
    resumed = resume(tmp_path / "run", Request())
    assert resumed.train.fingerprint == ready.train.fingerprint
    assert resumed.valid.indices.tolist() == ready.valid.indices.tolist()


def test_validation_data_of_its_own(request_: Request, tmp_path: Path) -> None:
    """Would catch a share held out although there are validation data, or read by another tokenizer."""
    valid = tmp_path / "valid.jsonl"
    valid.write_text('{"text": "One story."}\n')
    ready = begin(replace(request_, valid=str(valid)), tmp_path / "run")
    assert (ready.train.num_stories, ready.valid.num_stories) == (100, 1)
    tokenizer = ready.run.tokenizer
    assert ready.valid.story(0).tolist() == [*tokenizer.encode("One story."), tokenizer.eos_id]
    assert resume(tmp_path / "run", request_).valid.fingerprint == ready.valid.fingerprint


def test_storyworld_is_judged_by_its_own_split(tmp_path: Path) -> None:
    """Would catch training stories that are scored as unseen."""
    ready = begin(
        Request(("storyworld:60",), budget={"sequences": 2}, assignments=TINY, vocab_size=300), tmp_path / "r"
    )
    tokenizer = ready.run.tokenizer
    texts = [tokenizer.decode(ready.valid.story(i).tolist()) for i in range(3)]
    assert texts == list(storyworld.sample_batch(0, 3, "valid"))
    assert (ready.train.num_stories, ready.valid.num_stories) == (60, 200)


def test_the_last_word(tmp_path: Path) -> None:
    """Would catch layers in the wrong order: preset, then file, then flags, then --set."""
    file = tmp_path / "config.toml"
    file.write_text("[model]\nembed_dim = 10\nhidden_dim = 11\n[train]\nepochs = 2\nseed = 5\n")
    asked = Request(("x",), preset="minute", config=str(file), seed=6, assignments=("hidden_dim=12",))
    sections = merge(PRESETS["minute"], own_sections(asked))
    assert (sections["model"]["embed_dim"], sections["model"]["hidden_dim"]) == (10, 12)
    assert sections["model"]["key_dim"] == PRESETS["minute"]["model"]["key_dim"]
    assert sections["train"] == {"epochs": 2.0, "seed": 6}
    assert own_sections(replace(asked, budget={"tokens": 9}))["train"] == {"tokens": 9, "seed": 6}
    assert own_sections(replace(asked, assignments=("minutes=3",)))["train"] == {"minutes": 3.0, "seed": 6}
    with pytest.raises(ValueError, match=r"a budget is one of .* got --tokens and --minutes"):
        own_sections(replace(asked, budget={"tokens": 9, "minutes": 1.0}))
    with pytest.raises(ValueError, match="--preset must be one of minute, coffee, overnight, got 'tea'"):
        fitted(Request(preset="tea"))


def test_a_user_s_layers_take_nothing_from_each_other(tmp_path: Path) -> None:
    """Would catch a rate in the file that is lost to `--set optimizer=adamw` with the preset's, and a field that the
    user asked for in the file and that is dropped silently for one in --set that cannot stand beside it."""
    file = tmp_path / "config.toml"
    file.write_text("[optimizer]\nlearning_rate = 0.005\n[batch]\ncarry_state = true\n")
    asked = Request(("x",), preset="coffee", config=str(file))
    adamw = merge(PRESETS["coffee"], own_sections(replace(asked, assignments=("optimizer=adamw",))))
    assert adamw["optimizer"] == {"optimizer": "adamw", "learning_rate": 0.005, "weight_decay": 0.1}
    with pytest.raises(ValueError, match="carry_state needs form stream"):
        fitted(replace(asked, assignments=("form=first",)))


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_configs(preset: str) -> None:
    """Would catch a preset with a field that is no more, or one without a warm-up to be timed in."""
    sections = PRESETS[preset]
    model = build(ModelConfig, {**sections["model"], "vocab_size": 1024})
    assert sum(p.numel() for p in build_model(model, 0).parameters()) > 100_000
    assert build(TrainConfig, sections["train"]).minutes > 0
    assert build(OptimizerConfig, sections["optimizer"]).warmup_steps >= 10
    assert build(BatchConfig, sections["batch"]).form == "stream"


def test_nothing_is_written_for_a_wrong_request(request_: Request, tmp_path: Path) -> None:
    """Would catch data that are read, or a directory that is made, before a wrong field is told."""
    out = tmp_path / "run"
    wrong = [
        replace(request_, assignments=("hidden_dim=0",)),
        replace(request_, assignments=("learning_rate=-1",)),
        replace(request_, assignments=("window=0",)),
        replace(request_, budget={"minutes": -1.0}),
        replace(request_, config=str(tmp_path / "none.toml")),
        replace(request_, data=(str(tmp_path / "none.txt"),)),
        replace(request_, split="chapter"),
        replace(request_, preset="tea"),
        replace(request_, tokenizer=str(tmp_path / "none")),
        replace(request_, vocab_size=0),
        replace(request_, assignments=(*TINY, "batch_size=5000")),
        replace(request_, valid=str(tmp_path / "none.txt")),
        replace(request_, budget={"minutes": 1.0}, assignments=(*TINY, "warmup_steps=3")),
    ]
    for number, request in enumerate(wrong):
        with pytest.raises((ValueError, OSError)) as caught:
            begin(request, out)
        assert len(str(caught.value).splitlines()) == 1
        assert not out.exists()
        assert number > 4 or not cache_root().exists()  # the first five are told before the data are read
    begin(request_, out)
    cache = cache_root()
    shutil.rmtree(cache)
    with pytest.raises(FileExistsError, match="holds a run"):
        begin(request_, out)
    assert not cache.exists()  # told before the data are read


def test_resume_is_for_the_same_request(request_: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a changed wish that is silently ignored, and the same command refused."""
    out = tmp_path / "run"
    begin(request_, out)
    resume(out, request_)
    resume(out, Request())
    monkeypatch.chdir(tmp_path.parent)
    resume(out, Request())
    changes: dict[str, Any] = {
        "budget": {"sequences": 5},
        "seed": 7,
        "vocab_size": 400,
        "assignments": ("hidden_dim=5",),
        "data": ("elsewhere",),
        "preset": "minute",
        "valid": "elsewhere",
        "split": "line",
    }
    for field, value in changes.items():
        with pytest.raises(ValueError, match=f"was begun with {field} .* a resumed run cannot change it"):
            resume(out, replace(request_, **{field: value}))


def test_resume_names_what_it_had_anyway(request_: Request, tmp_path: Path) -> None:
    """Would catch a default that is refused when it is spelt out, and a TOML file that says something else by now."""
    toml = tmp_path / "recipe.toml"
    toml.write_text("[model]\nembed_dim = 6\n")
    out, asked = tmp_path / "run", replace(request_, config=str(toml), seed=None)
    begin(asked, out)
    resume(out, replace(asked, seed=0, preset="coffee"))
    toml.write_text("[model]\nembed_dim = 7\n")
    resume(out, Request())
    with pytest.raises(ValueError, match=r"recipe\.toml has changed since .* was begun"):
        resume(out, asked)


def test_resume_without_the_cache(request_: Request, tmp_path: Path) -> None:
    """Would catch a run that cannot go on after the cache was emptied, or that goes on with other data."""
    out = tmp_path / "run"
    ready = begin(request_, out)
    shutil.rmtree(cache_root())
    assert resume(out, Request()).train.fingerprint == ready.train.fingerprint
    shutil.rmtree(cache_root())
    with open(request_.data[0], "a", encoding="utf-8") as stream:
        stream.write(json.dumps({"text": "One more."}) + "\n")
    with pytest.raises(ValueError, match=r"the data have changed since the run began .*; begin a new run"):
        resume(out, Request())


def test_data_are_found_from_another_folder(request_: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch relative paths in run.json, and the corpus looked for in a folder that is called like it."""
    (tmp_path / "storyworld:40").mkdir()
    monkeypatch.chdir(tmp_path)
    begin(replace(request_, data=("stories.jsonl",)), tmp_path / "run")
    begin(Request(("storyworld:40",), budget={"sequences": 2}, assignments=TINY, valid="stories.jsonl"), tmp_path / "s")
    monkeypatch.chdir(tmp_path.parent)
    shutil.rmtree(cache_root())
    assert resume(tmp_path / "run", Request()).train.num_stories == 95
    assert Run.open(tmp_path / "s").about["data"]["locations"] == ["storyworld:40"]
    assert Run.open(tmp_path / "s").about["data"]["valid"] == [str(tmp_path / "stories.jsonl")]


def test_run_that_train_did_not_begin(tmp_path: Path) -> None:
    Run.create(tmp_path / "run", {"model": {}}, None)
    with pytest.raises(ValueError, match="not begun by `rhapsode train`"):
        resume(tmp_path / "run", Request())
