"""One of everything that Rhapsode writes, small: what the parts break."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import rhapsode
from rhapsode import storyworld
from rhapsode.course.model import RNNLanguageModel
from rhapsode.progress import silent
from rhapsode.recipe import Recipe
from rhapsode.run import Run
from rhapsode.sources import open_source
from rhapsode.studies.directory import Study
from rhapsode.studies.plans import StudyRequest
from rhapsode.tensors import checksum
from rhapsode.tokenizer import Tokenizer, train_tokenizer
from rhapsode.tokens import TokenStore, prepare
from rhapsode.training import train_run
from rhapsode.training.start import create_run

SECTIONS: dict[str, dict[str, Any]] = {
    "model": {"kind": "stacked", "embed_dim": 8, "hidden_dim": 10, "key_dim": 4, "value_dim": 6,
              "num_layers": 2, "num_heads": 2, "attention": "last", "pair_embeddings": 50, "dropout": 0.1},
    "train": {"sequences": 24, "validations": 3, "checkpoint_seconds": 0.0, "prompt": ""},
    "batch": {"window": 8, "batch_size": 4, "carry_state": True},
}  # fmt: skip
STEPS = 6


@dataclass(frozen=True)
class Material:
    """texts: a file of stories; the rest made of them. cache: where tokens/ is below."""

    folder: Path
    texts: Path
    tokenizer: Tokenizer
    train: TokenStore
    valid: TokenStore

    @property
    def cache(self) -> Path:
        return self.folder / "cache"


@contextmanager
def using_cache(folder: Path) -> Iterator[None]:
    """Within the block, the cache is in this folder."""
    before = os.environ.get("RHAPSODE_CACHE")
    os.environ["RHAPSODE_CACHE"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["RHAPSODE_CACHE"]
        else:
            os.environ["RHAPSODE_CACHE"] = before


def material(folder: Path) -> Material:
    """Sixty beginnings of stories with a tokenizer and stores, in a new folder."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    texts = [text[:60] for text in storyworld.sample_batch(0, 60)]
    file = folder / "stories.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    with silent():
        tokenizer = train_tokenizer(texts, "bpe", 280)
        tokenizer.save(folder / "tokenizer")
        train, valid = prepare(open_source([str(file)]), tokenizer, folder / "cache" / "tokens").hold_out(0.1, seed=0)
    return Material(folder, file, tokenizer, train, valid)


def new_run(made: Material, path: Path, seed: int = 0) -> Run:
    """A run of a tiny model that has all kinds of tensors in its checkpoint; not trained yet."""
    sections = {**SECTIONS, "train": {**SECTIONS["train"], "seed": seed}}
    recipe = Recipe.from_sections(sections, made.tokenizer.vocab_size)
    return create_run(path, recipe, made.tokenizer, {})


def trained(made: Material, run: Run, **more: Any) -> Run:
    """The run at its end."""
    with silent():
        train_run(run, made.train, made.valid, show=False, **more)
    return run


def trained_from_file(made: Material, path: Path) -> rhapsode.Model:
    """A run that `rhapsode.train` made of the file, with all that is recorded of its data."""
    budgets = {"sequences": 24, "model": SECTIONS["model"], "batch": SECTIONS["batch"], "threads": 1}
    with using_cache(made.cache):
        return rhapsode.train(made.texts, out=path, vocab_size=280, train={"validations": 3, "prompt": ""}, **budgets)


def new_study(made: Material, path: Path) -> Study:
    """A study of two cells, not run yet."""
    return finished_study(made, path, run=False)


def finished_study(made: Material, path: Path, run: bool = True, seed: int = 0, report: bool = True) -> Study:
    """A study of two cells with its report, which takes seconds; without run, its directory alone."""
    from rhapsode.studies import whole
    from rhapsode.studies.cell import run_cell

    request = StudyRequest(
        "grid",
        (str(made.texts),),
        vocab_size=280,
        vary=("learning_rate=0.001,0.01",),
        assignments=("embed_dim=8", "hidden_dim=8", "key_dim=4", "value_dim=4", "sequences=64", "batch_size=4",
                     "window=16", "validations=2"),
        valid_stories=4,
        seed=seed,
    )  # fmt: skip
    with silent(), using_cache(made.cache):
        study = whole._begin(request, path, 1, "cpu")
        with study.lock():
            for cell in study.plan.cells.values() if run else ():
                run_cell(study, cell, 1)  # as `run_study` does in processes that take seconds to start
            if run and report:
                whole.write_report(study, {}, whole._facts(), None)
        return study


def course_model(made: Material, path: Path, seed: int = 0) -> Path:
    """A model.pt of the course, with the tokenizer's vocabulary."""
    torch.manual_seed(seed)
    torch.save(RNNLanguageModel(4, 5, made.tokenizer.vocab_size, 3, 2), path)
    return path


def end_of(run: Run) -> dict[str, Any]:
    """All that a run came to, apart from times: digests of the weights, and the lines of metrics."""
    found: dict[str, Any] = {}
    for name in ("last", "best"):
        checkpoint = run.load(name)
        found[name] = None if checkpoint is None else checksum(checkpoint.tensors, "")
    found["metrics"] = [{k: v for k, v in entry.items() if k != "seconds"} for entry in run.metrics()]
    return found


def an_hour_passes(folder: Path) -> None:
    """All that killed processes left unfinished is as if they had been killed two hours ago."""
    for name in leftovers(folder):
        os.utime(folder / name, (time.time() - 7200,) * 2)


def leftovers(folder: Path) -> list[str]:
    """Temporary files and folders below a folder; locks are none."""
    found = (path for path in folder.rglob(".*") if path.name != ".lock")
    return sorted(str(path.relative_to(folder)) for path in found)
