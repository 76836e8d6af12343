"""rhapsode.train and the other functions: what they take and refuse, and that the command line gives the same."""

import csv
import json
import os
import signal
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import rhapsode
from rhapsode import cli
from rhapsode.course import RNNLanguageModel
from rhapsode.recipe import Recipe
from rhapsode.run import Run
from rhapsode.training import Ended, Event, Interrupted, Saved, Started, Step, Validated

MODEL = {
    **{"kind": "stacked", "embed_dim": 8, "hidden_dim": 10, "key_dim": 4, "value_dim": 6},
    **{"num_layers": 1, "attention": "all", "feed_forward": 0, "pair_embeddings": 50},
}
BATCH = {"window": 8, "batch_size": 4, "carry_state": False}
WANTED: dict[str, Any] = {
    **{"model": MODEL, "batch": BATCH, "train": {"validations": 2}},
    **{"sequences": 40, "vocab_size": 300, "device": "cpu"},
}
FLAGS = [f"--set={name}={value}" for name, value in {**MODEL, **BATCH, "validations": 2}.items()]
FLAGS = [*FLAGS, "--sequences=40", "--vocab-size=300", "--device=cpu"]


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty working directory, and a cache of this test's own."""
    monkeypatch.setenv("RHAPSODE_CACHE", str(tmp_path / "cache"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


@pytest.fixture
def texts(small: Any) -> list[str]:
    return [json.loads(line)["text"] for line in small.file.read_text().splitlines()]


# -- what it takes ---------------------------------------------------------------------------------------------------


def test_text_comes_in_every_form_that_means_the_same(small: Any, texts: list[str]) -> None:
    """The same stories give the same model; would catch a story that is lost, cut or read twice on one of the ways."""
    halves = [Path("a.jsonl"), Path("b.jsonl")]
    lines = small.file.read_text().splitlines(keepends=True)
    halves[0].write_text("".join(lines[:60]))
    halves[1].write_text("".join(lines[60:]))
    ways: dict[str, Any] = {
        "str": str(small.file),
        "path": small.file,
        "paths": halves,
        "glob": (path for path in halves),
        "list": texts,
        "tuple": tuple(texts),
        "generator": (text for text in texts),
    }
    models = {name: rhapsode.train(data, out=name, **WANTED) for name, data in ways.items()}
    assert {model.fingerprint for model in models.values()} == {models["str"].fingerprint}
    assert all((Path(name) / "best.safetensors").exists() for name in ways)


class Watched(str):
    """A text of which one can see whether it is still in memory."""


def test_texts_are_read_once_and_are_not_kept() -> None:
    """Would catch a list made of the iterable, which would not fit into memory; and a second reading."""
    alive: weakref.WeakSet[Watched] = weakref.WeakSet()
    most = 0

    def stories() -> Iterator[str]:
        nonlocal most
        for i in range(500):
            text = Watched(f"Story {i} is about a cat, a dog and a bird.\nIt has two lines.")
            alive.add(text)
            most = max(most, len(alive))
            yield text

    model = rhapsode.train(stories(), out="run", **WANTED)
    assert most <= 4
    assert model.run is not None
    assert model.run.about["data"]["description"].startswith("texts given in Python: 500 stories")


def test_a_text_is_a_story_whatever_is_in_it() -> None:
    """Would catch blank lines, separators, JSON and line ends in a text that cut it into several stories."""
    odd = ["One.\n\nTwo.<|endoftext|>Three.\r\nFour.", '{"text": "no record"}', "a\tb,c\u2028d 🐈\x85e", "  x  "] * 10
    model = rhapsode.train(odd, valid=["One.\n\nTwo."], out="run", **WANTED)
    assert model.run is not None
    assert "40 stories" in model.run.about["data"]["description"]
    assert rhapsode.evaluate(model)["stories"] == 1


def test_a_recipe_is_all_of_it(small: Any) -> None:
    """A recipe trains to what its fields do; would catch a field that a preset or a default takes the place of."""
    by_fields = rhapsode.train(small.file, out="fields", **WANTED)
    recipe = by_fields.recipe
    assert recipe is not None
    assert recipe.model.vocab_size == 300
    by_recipe = rhapsode.train(small.file, recipe=recipe, out="recipe", device="cpu")
    assert by_recipe.recipe == recipe
    assert by_recipe.fingerprint == by_fields.fingerprint
    other = rhapsode.train(small.file, recipe=recipe.with_changes(train={"seed": 1}), out="other", device="cpu")
    assert other.fingerprint != by_recipe.fingerprint
    again = rhapsode.train(small.file, recipe=recipe, out="fields", resume=True)
    assert again.fingerprint == by_fields.fingerprint


def test_a_recipe_fits_its_tokenizer_or_is_refused(small: Any) -> None:
    """Would catch a model of another vocabulary than its recipe says."""
    sections = {"model": MODEL, "batch": BATCH, "train": {"sequences": 40}}
    recipe = Recipe.from_sections(sections, vocab_size=299)
    for options, there in (
        ({"tokenizer": small.tokenizer}, 300),
        ({"tokenizer": "characters"}, 55),
        ({"recipe": recipe.with_changes(model={"vocab_size": 9000})}, 663),
    ):
        wanted = options.get("recipe", recipe)
        message = rf"has vocab_size {wanted.model.vocab_size}, the tokenizer {there}: take recipe\.with_changes\("
        with pytest.raises(ValueError, match=message):
            rhapsode.train(small.file, out="run", **{"recipe": recipe, **options})
    fitting = recipe.with_changes(model={"vocab_size": 300})
    assert fitting == Recipe.from_sections(sections, vocab_size=300)
    model = rhapsode.train(small.file, recipe=fitting, tokenizer=small.tokenizer, out="run", device="cpu")
    assert model.recipe == fitting


def test_tokenizers(small: Any, texts: list[str]) -> None:
    """An object, its folder and the kind: the first two are the same one."""
    wanted = {name: value for name, value in WANTED.items() if name != "vocab_size"}
    small.tokenizer.save(Path("tokenizer"))
    models = [
        rhapsode.train(texts, tokenizer=given, out=f"run{i}", **wanted)
        for i, given in enumerate((small.tokenizer, Path("tokenizer"), "tokenizer"))
    ]
    assert {model.tokenizer.fingerprint for model in models} == {small.tokenizer.fingerprint}
    assert len({model.fingerprint for model in models}) == 1
    kind = rhapsode.train(texts, tokenizer="characters", out="characters", **wanted)
    assert kind.tokenizer.kind == "characters"


def test_validation_text_is_what_it_is_judged_by(small: Any, texts: list[str]) -> None:
    """Would catch validation text that is trained on too, or a share that is held out beside it."""
    own = ["A quite different text is here.", "And one more."]
    model = rhapsode.train(texts, valid=iter(own), out="run", **WANTED)
    with_end = model.score(own)
    assert rhapsode.evaluate(model)["nats"] == pytest.approx(with_end.nats, rel=1e-6)
    assert model.metrics[-1]["bits_per_byte"] == pytest.approx(with_end.bits_per_byte, rel=1e-6)
    assert rhapsode.train(small.file, valid=small.file, out="files", **WANTED).run is not None


def test_without_out_a_directory_is_made(texts: list[str]) -> None:
    first, second = (rhapsode.train(texts, **WANTED) for _ in range(2))
    assert first.path is not None
    assert second.path is not None
    assert first.path.parent == second.path.parent == Path("runs")
    assert first.path != second.path


def test_it_returns_what_load_returns(texts: list[str]) -> None:
    """The best checkpoint, not the last: the longer it trains on stories, the less it expects other letters."""
    model = rhapsode.train(texts, valid=["ZQX#QZ%XQ" * 9] * 3, out="run", **WANTED)
    losses = [line["valid_loss"] for line in model.metrics if line["event"] == "valid"]
    assert losses[0] < losses[1]
    assert model.fingerprint == rhapsode.load("run", device="cpu").fingerprint
    assert model.fingerprint != rhapsode.load("run", checkpoint="last", device="cpu").fingerprint
    assert rhapsode.evaluate(model)["nats_per_token"] == pytest.approx(losses[0], rel=1e-6)


# -- what happens on the way -----------------------------------------------------------------------------------------


def test_events_in_order_with_their_values(texts: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    """Would catch an event that is late, left out or tells other numbers than metrics.jsonl; and any noise."""
    events: list[Event] = []
    model = rhapsode.train(texts, out="run", on_event=events.append, **WANTED)
    assert capfd.readouterr() == ("", "")
    kinds = [type(event) for event in events]
    assert kinds == [Started, *[Step] * 5, Validated, Saved, *[Step] * 5, Validated, Saved, Ended]
    started, ended = events[0], events[-1]
    assert isinstance(started, Started)
    assert isinstance(ended, Ended)
    assert (started.path, started.device, started.step, started.total_steps) == (Path("run"), "cpu", 0, 10)
    assert started.parameters == sum(parameter.numel() for parameter in model.network.parameters())
    steps = [event for event in events if isinstance(event, Step)]
    assert [step.step for step in steps] == list(range(1, 11))
    assert [step.tokens for step in steps] == [32 * i for i in range(1, 11)]
    assert [step.seconds for step in steps] == sorted(step.seconds for step in steps)
    validated = [event for event in events if isinstance(event, Validated)]
    recorded = [line for line in model.metrics if line["event"] == "valid"]
    assert [(v.step, v.train_loss, v.valid_loss, v.bits_per_byte, v.best) for v in validated] == [
        (line["step"], line["train_loss"], line["valid_loss"], line["bits_per_byte"], line["best"]) for line in recorded
    ]
    assert validated[0].train_loss == pytest.approx(sum(step.loss for step in steps[:5]) / 5)
    assert all(event.sample is not None and event.sample.startswith("Once upon a time") for event in validated)
    assert [event.step for event in events if isinstance(event, Saved)] == [5, 10]
    assert (ended.reason, ended.step, ended.tokens) == ("budget", 10, 320)


def test_show_talks_on_stderr(texts: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    rhapsode.train(texts, out="run", show=True, **WANTED)
    out, err = capfd.readouterr()
    assert out == ""
    assert "texts given in Python: 100 stories" in err
    assert "run directory: run" in err


def stop_at(step: int) -> Callable[[Event], None]:
    """Ctrl-C once this step is done."""

    def happened(event: Event) -> None:
        if isinstance(event, Step) and event.step == step:
            os.kill(os.getpid(), signal.SIGINT)

    return happened


def weights(path: str, checkpoint: str = "last") -> dict[str, torch.Tensor]:
    return Run.open(Path(path)).load_model(checkpoint).state_dict()


def test_a_stopped_training_is_saved_and_resumes_exactly(texts: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    """Would catch a batch that is skipped or seen twice, a state of the optimizer that is lost, another order."""
    wanted = {**WANTED, "batch": {**BATCH, "carry_state": True}, "train": {"validations": 3}}
    whole = rhapsode.train(iter(texts), out="whole", **wanted)
    for stop in (4, 7):
        with pytest.raises(Interrupted, match="stopped and saved in cut; resume it with: ") as caught:
            rhapsode.train(iter(texts), out="cut", resume=True, on_event=stop_at(stop), **wanted)
        assert isinstance(caught.value, KeyboardInterrupt)
        assert Run.open(Path("cut")).load("last").progress["step"] == stop  # type: ignore[union-attr]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    steps: list[int] = []
    resumed = rhapsode.train(
        out="cut", resume=True, on_event=lambda event: steps.append(event.step) if isinstance(event, Step) else None
    )
    assert steps == [8, 9, 10]
    assert resumed.fingerprint == whole.fingerprint
    for checkpoint in ("best", "last"):
        expected, found = weights("whole", checkpoint), weights("cut", checkpoint)
        assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert [line.get("valid_loss") for line in resumed.metrics] == [line.get("valid_loss") for line in whole.metrics]
    assert capfd.readouterr() == ("", "")
    before = Path("cut/last.safetensors").read_bytes()
    finished = rhapsode.train(texts, out="cut", resume=True, **wanted)  # the same call again only loads it
    assert finished.fingerprint == whole.fingerprint
    assert Path("cut/last.safetensors").read_bytes() == before


def test_a_resumed_run_is_of_the_same_text_and_fields(texts: list[str]) -> None:
    """Would catch a run that goes on with other stories, or with a field that the call did not have before."""
    rhapsode.train(texts, out="run", **WANTED)
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    for data, options, message in (
        (texts[1:], {}, "started on other texts"),
        (texts, {"seed": 3}, "started with seed 0, not 3"),
        (texts, {"model": {**MODEL, "embed_dim": 9}}, "started with embed_dim 8, not 9"),
        (texts, {"vocab_size": 301}, "started with vocab_size 300, not 301"),
    ):
        with pytest.raises(ValueError, match=message):
            rhapsode.train(data, out="run", resume=True, **{**WANTED, **options})
    with pytest.raises(ValueError, match="to resume a run, name its directory: out="):
        rhapsode.train(texts, resume=True, **WANTED)
    with pytest.raises(FileExistsError, match="run holds a run"):
        rhapsode.train(texts, out="run", **WANTED)
    with pytest.raises(FileNotFoundError, match="none: no such directory"):
        rhapsode.train(out="none", resume=True)
    assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before


def test_what_a_listener_raises_comes_out(texts: list[str]) -> None:
    """Would catch an error of the caller's own function that is lost, or that leaves the directory locked."""

    def angry(event: Event) -> None:
        if isinstance(event, Validated):
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        rhapsode.train(texts, out="run", on_event=angry, **WANTED)
    assert rhapsode.train(out="run", resume=True).metrics[-1]["step"] == 10


# -- what is refused -------------------------------------------------------------------------------------------------

RECIPE = Recipe.from_sections({"model": MODEL, "batch": BATCH, "train": {"sequences": 40}}, vocab_size=300)
PLAIN = {"sequences": 40}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no text": ({"data": []}, "data: empty, there is no text in it"),
    "an empty generator": ({"data": iter(())}, "data: empty, there is no text in it"),
    "blank texts": ({"data": [" ", "\n"]}, "no stories, there are no texts or only blank ones"),
    "no validation text": ({"valid": []}, "valid: empty, there is no text in it"),
    "a number among texts": ({"data": ["a", "b", 7]}, "texts given in Python: item 2 must be a str, got int"),
    "half of a character": ({"data": ["a", "b\ud83d"]}, "item 1: half of a surrogate pair at 1"),
    "file names as str": ({"data": ["here.txt"]}, "'here.txt' is the name of a file: pass files as pathlib.Path"),
    "a path among texts": ({"data": ["a", Path("here.txt")]}, "item 1 must be a str, got PosixPath"),
    "a text among paths": ({"data": [Path("here.txt"), "a"]}, "data: item 1 must be a path like those before it"),
    "a text alone": ({"data": "One day.\nAnother day."}, r"data: a single str names a file; pass texts as a list"),
    "a long text alone": ({"data": "One day. " * 99}, r"data: a single str names a file; pass texts as a list"),
    "a number": ({"data": 5}, "data must be a file's name or path, or an iterable of texts, got int"),
    "bytes": ({"data": b"One day."}, "data must be a file's name or path, or an iterable of texts, got bytes"),
    "a missing file": ({"data": "nowhere.txt"}, "nowhere.txt: no such file"),
    "two budgets": ({"tokens": 5}, r"give only one budget \(.*\), got tokens and sequences"),
    "an unknown field": ({"model": {"width": 3}}, r"train: unknown field 'model\.width' \(model: kind"),
    "a text for a number": ({"model": {"embed_dim": "8"}}, "model: embed_dim must be a whole number, got '8'"),
    "no dict": ({"model": 8}, "train: model must be a dict of fields, got 8"),
    "a value that cannot be": ({"model": {"embed_dim": 0}}, "embed_dim must be at least 1, got 0"),
    "an unknown preset": ({"preset": "tea"}, "preset must be one of minute, coffee, got 'tea'"),
    "an unknown device": ({"device": "abacus"}, "device must be one of auto, cpu, cuda, mps, got 'abacus'"),
    "recipe and section": ({"recipe": RECIPE, "model": MODEL}, "recipe= already sets every field: change it with"),
    "recipe and budget": ({"recipe": RECIPE}, "recipe= already sets every field: change it with"),
    "recipe and seed": ({"recipe": RECIPE, "seed": 1, "sequences": None}, "recipe= already sets every field"),
    "recipe and preset": (
        {"recipe": RECIPE, "preset": "coffee"},
        "recipe= already sets every field, so preset= has no effect",
    ),
    "recipe and vocabulary": (
        {"recipe": RECIPE, "vocab_size": 310, "sequences": None},
        "vocab_size 310, but the recipe has 300",
    ),
    "recipe as dict": ({"recipe": RECIPE.to_dict()}, r"recipe must be a Recipe, got dict; Recipe\.from_dict makes one"),
    "no tokenizer": ({"tokenizer": 7}, "tokenizer must be a folder, a Tokenizer or one of bpe, unigram, characters"),
    "a missing tokenizer": ({"tokenizer": "nowhere"}, "nowhere: no such file; a tokenizer is a folder"),
    "no threads": ({"threads": 0}, "threads must be at least 1, got 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_one_line_and_nothing_is_written(
    name: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Would catch a traceback from below, a silent choice of storyworld, and a directory that is half written."""
    options, message = REFUSED[name]
    Path("here.txt").write_text("One story is here.\n\nAnd another one.\n")
    wanted: dict[str, Any] = {"data": Path("here.txt"), "out": "run", "sequences": 40, **options}
    with pytest.raises((ValueError, OSError), match=message) as caught:
        rhapsode.train(**wanted)
    assert len(str(caught.value).splitlines()) == 1
    assert sorted(path.name for path in folder.iterdir()) == ["here.txt"]
    assert capfd.readouterr() == ("", "")


def test_evaluate_and_study_refuse_texts(tiny_run: Path) -> None:
    with pytest.raises(ValueError, match=r"evaluate scores files; score texts with model\.score"):
        rhapsode.evaluate(tiny_run, ["a text"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="a study reads files: write the texts to a file first"):
        rhapsode.study("batch", ["a text"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="a study is one of size, batch, "):
        rhapsode.study("everything")


# -- the same by the command line ------------------------------------------------------------------------------------

Call = Callable[..., SimpleNamespace]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    """Calls the command line; gives what it wrote to stdout."""

    def run(*arguments: str) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", ["rhapsode", *arguments])
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        out, err = capfd.readouterr()
        assert code == 0, err
        return SimpleNamespace(out=out, err=err)

    return run


def test_the_verb_train_gives_the_same(call: Call, small: Any) -> None:
    model = rhapsode.train(small.file, out="python", seed=3, **WANTED)
    assert call("train", str(small.file), "--out", "verb", "--seed", "3", *FLAGS).out == "verb\n"
    verb = rhapsode.load("verb", device="cpu")
    assert verb.fingerprint == model.fingerprint
    assert verb.recipe == model.recipe
    timed = ("seconds", "tokens_per_second")
    assert [{k: v for k, v in line.items() if k not in timed} for line in verb.metrics] == [
        {k: v for k, v in line.items() if k not in timed} for line in model.metrics
    ]
    lines = call("train", str(small.file), "--explain-preset", "--minutes=2", "--seed=3", "--set=embed_dim=9").out
    assert lines.splitlines() == rhapsode.explain_preset(small.file, minutes=2, seed=3, model={"embed_dim": 9})
    assert "embed_dim 9: your choice" in lines
    assert "minutes 2.0: your choice" in lines


def test_the_verb_generate_gives_the_same(call: Call, tiny_run: Path) -> None:
    model = rhapsode.load(tiny_run, device="cpu")
    out = model.generate("Once", n=2, max_tokens=9, temperature=0.9, top_k=40, stop=["z"], seed=4)
    flags = ["--max-tokens=9", "-t0.9", "--top-k=40", "--stop=z", "--seed=4", "--device=cpu"]
    found = json.loads(call("generate", str(tiny_run), "Once", "-n2", "--json", *flags).out)
    assert found["prompt"] == "Once"
    for sample, each in zip(found["samples"], out, strict=True):
        assert sample["text"] == each.text
        assert [token["id"] for token in sample["tokens"]] == each.tokens
        assert [token["log_probability"] for token in sample["tokens"]] == each.log_probabilities
        assert sample["log_probability"] == pytest.approx(sum(each.log_probabilities))
    assert call("generate", str(tiny_run), "Once", "-n1", *flags).out == f"{out[0]}\n"
    assert call("generate", str(tiny_run), "Once", "-n2", *flags).out == f"{out[0]}\n\n{out[1]}\n"


def test_the_verb_evaluate_gives_the_same(call: Call, small: Any, tiny_run: Path) -> None:
    """On files, on the run's own text, and on storyworld with stories of the model's own."""
    model = rhapsode.load(tiny_run, device="cpu")
    rhapsode.train(small.file, out="run", **WANTED)
    cases: list[tuple[Any, list[str], dict[str, Any], list[str]]] = [
        (model, [str(small.file)], {"data": small.file}, []),
        ("run", [], {}, []),
        ("run", ["b.txt"], {"data": Path("b.txt"), "cut": "line"}, ["--cut=line"]),
        (
            *(tiny_run, ["storyworld:3:valid"], {"data": "storyworld:3:valid", "generate": 2, "seed": 5}),
            ["--generate=2", "--seed=5"],
        ),
    ]
    Path("b.txt").write_text("One story.\nAnother one.\n")
    for given, words, options, flags in cases:
        found = rhapsode.evaluate(given, **options, device="cpu")
        path = str(model.path if given is model else given)
        assert json.loads(call("evaluate", path, *words, "--json", "--device=cpu", *flags).out) == json.loads(
            json.dumps(found)
        )
    assert "recall" in found
    assert found["generated"]["total"] == 2


def test_the_verb_import_gives_the_same(call: Call, small: Any) -> None:
    torch.save(RNNLanguageModel(5, 7, small.tokenizer.vocab_size, 3, 4), "model.pt")
    small.tokenizer.save(Path("tokenizer"))
    model = rhapsode.import_course_model("model.pt", "python", tokenizer="tokenizer")
    assert call("import", "model.pt", "verb", "--tokenizer", "tokenizer").out == "verb\n"
    assert rhapsode.load("verb", device="cpu").fingerprint == model.fingerprint
    assert model.recipe is None
    with pytest.raises(FileExistsError, match="python holds a run"):
        rhapsode.import_course_model("model.pt", "python", tokenizer="tokenizer")
    with pytest.raises(ValueError, match=r"nothing\.pt: no such file"):
        rhapsode.import_course_model("nothing.pt", "new")
    assert not Path("new").exists()


@pytest.mark.slow
def test_the_verb_study_gives_the_same(call: Call, small: Any, capfd: pytest.CaptureFixture[str]) -> None:
    """Would catch an option that means something else in Python, a Path that cannot be kept, and talk on stderr."""
    fixed = ["kind=plain", "embed_dim=4", "hidden_dim=4", "key_dim=4", "value_dim=4", "window=8", "validations=1"]
    fixed = [*fixed, "sequences=40"]
    small.tokenizer.save(Path("tokenizer"))
    finished = rhapsode.study(
        "grid",
        small.file,
        vary=["batch_size=4,8"],
        assignments=fixed,
        valid=small.file,
        tokenizer=Path("tokenizer"),
        device="cpu",
        out="python",
        publish="pages",
    )
    assert capfd.readouterr() == ("", "")
    assert (finished.failed, finished.page) == ({}, Path("python/report.html"))
    assert Path("pages/python.md").exists()
    words = ["study", "grid", str(small.file), "--vary", "batch_size=4,8", f"--valid={small.file}"]
    words += ["--tokenizer=tokenizer", "--device=cpu", "--out=verb", *(f"--set={each}" for each in fixed)]
    assert call(*words).out == "verb/report.html\n"
    losses = [[point["valid_loss"] for point in points(each)] for each in ("python", "verb")]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 2


def points(study: str) -> list[dict[str, str]]:
    with Path(study, "points.csv").open(newline="") as file:
        return list(csv.DictReader(file))
