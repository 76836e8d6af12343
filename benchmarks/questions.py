"""What side_by_side.py compares: the questions in their order of worth, and how each contender trains and is scored.

rhapsode                this checkout, by its own command line: what a user gets
before                  commit 02642c6, by its own command line, from a `git archive` with a PYTHONPATH of its own
modern[, copy head]     the transformer with all our recipe's parts (modern.py), the best that tuning.py found
transformer, lstm       rivals tuned by hand (quality_rivals.py)
course                  the course's model and recipe, by our command line
"""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
from contender import RECIPES
from lanes import Command
from quality import COURSE, shakespeare
from report import HERE
from tuning import best_modern
from yardstick import FIRST, first_lines

from rhapsode.data import DataRequest
from rhapsode.progress import silent
from rhapsode.recipe.changes import read_assignments
from rhapsode.sources import SourceConfig
from rhapsode.threads import fixed_threads
from rhapsode.training.start import TrainingRequest, choose_recipe

BEFORE = "02642c6"
LOOKS, LOOKED_AT = 10, 300  # validations on the way, and how many stories of TinyStories they score
STORIES, WRITTEN = 300, 200  # of storyworld's split valid that are asked about, and how many a model writes
UNITS = {"tinystories": "bits per byte", "shakespeare": "nats per character", "storyworld": "references right"}
SCORING_MINUTES = {"tinystories": 1.5, "shakespeare": 0.5, "storyworld": 3.0}  # of a pair, starting included; about
HAND_TUNED = ("transformer", "lstm")


def words_of(change: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """A change of a recipe, by section, as words of our command line."""
    fields = [(f"{section}.{name}", value) for section, part in change.items() for name, value in part.items()]
    return tuple(word for name, value in fields for word in ("--set", f"{name}={value}"))


class Question(NamedTuple):
    """Contenders that train on one text for so many minutes: two at once, one core each; alone, one after the other,
    as many threads as they choose. tier: the lower, the sooner."""

    name: str
    text: str
    minutes: float
    contenders: tuple[str, ...]
    tier: float
    seeds: int = 3
    alone: bool = False

    @property
    def preset(self) -> str:
        """Ours for so many minutes."""
        return "minute" if self.minutes < 3 else "coffee"

    @property
    def expected_minutes(self) -> float:
        """How long one seed takes, scoring included."""
        each = self.minutes + SCORING_MINUTES[self.text]
        return each * len(self.contenders) if self.alone else each


def questions() -> list[Question]:
    """All of them. Bars first, then the rivals, two cores, what is far behind anyway."""
    both, ours = ("rhapsode", "before"), "rhapsode"
    bars = [
        Question("tinystories, ten minutes", "tinystories", 10, both, 1),
        Question("make story", "storyworld", 1, both, 1),
        Question("tinystories, two minutes", "tinystories", 2, both, 1),
        Question("shakespeare, ten minutes", "shakespeare", 10, both, 1),
        Question("shakespeare, 70 s", "shakespeare", 70 / 60, both, 1),
        Question("storyworld, ten minutes", "storyworld", 10, both, 1),
    ]
    rivals = [
        Question(f"{who}, ten minutes", "tinystories", 10, (ours, who), 3) for who in ("modern, copy head", "modern")
    ]
    alone = [
        question._replace(
            name=f"{question.name}, all cores",
            tier=1 if question.name == "make story" else 5,  # its bar is of the minute that a user waits
            seeds=3 if question.name == "make story" else 1,
            alone=True,
        )
        for question in (*bars, rivals[0])
    ]
    behind = [
        Question("transformer and lstm, ten minutes", "tinystories", 10, HAND_TUNED, 6),
        Question("course, ten minutes", "tinystories", 10, (ours, "course"), 6),
        Question("modern, copy head, two minutes", "tinystories", 2, (ours, "modern, copy head"), 6),
    ]
    return sorted([*bars, *rivals, *alone, *behind], key=lambda question: question.tier)


@dataclass(frozen=True)
class Files:
    """What everyone trains on and is scored on; the folder goes when the measurement ends."""

    train: str
    valid: str
    folder: Path

    @property
    def looks(self) -> str:
        """The first stories of the validation text, for validations on the way."""
        return str(self.folder / "looks.jsonl")

    @property
    def first(self) -> str:
        """The first stories of the validation text, for characters, and for tuning."""
        return str(self.folder / "first.jsonl")

    def trained_on(self, text: str) -> list[str]:
        """The words that name what is trained on, and what is looked at on the way."""
        if text == "tinystories":
            return [self.train, "--valid", self.looks]
        if text == "shakespeare":
            return [str(self.folder / "train.txt"), "--valid", self.scored_on(text)[0], "--split", "file"]
        return ["storyworld"]

    def scored_on(self, text: str) -> list[str]:
        """The words that name what is scored at the end, and how."""
        if text == "tinystories":
            return [self.valid, "--checkpoint", "last"]
        if text == "shakespeare":
            return [str(self.folder / "valid.txt"), "--split", "file", "--checkpoint", "last"]
        return [f"storyworld:{STORIES}:valid", "--generate", str(WRITTEN), "--temperature", "0.8"]

    def before(self) -> dict[str, str] | None:
        """The surroundings of commit 02642c6: its package and a cache of its own; None where history is missing."""
        place = self.folder / "before"
        if not place.exists():
            archive = subprocess.run(
                ["git", "archive", BEFORE, "src"], cwd=HERE.parent, capture_output=True, check=False
            )
            if archive.returncode:
                return None
            place.mkdir()
            subprocess.run(["tar", "-x", "-C", str(place)], input=archive.stdout, check=True)
        return {"PYTHONPATH": str(place / "src"), "RHAPSODE_CACHE": str(place / "cache")}


def lay_out(train: str, valid: str, play: str, folder: Path) -> Files:
    """Cuts the texts into the parts that are needed; raises OSError or ValueError where one cannot be read."""
    for name, count in (("looks", LOOKED_AT), ("first", FIRST)):
        (folder / f"{name}.jsonl").write_text("".join(first_lines(valid, count)), encoding="utf-8")
    shakespeare(play, folder)
    return Files(os.path.abspath(train), os.path.abspath(valid), folder)


OWN = {"PYTHONPATH": str(HERE.parent / "src")}
PROGRAM = [sys.executable, "-c", "from rhapsode.cli import main; main()"]


class Contender(NamedTuple):
    """One that trains. recipe: all that decides it but the seed; commands: in a folder of its own, with a seed; result:
    what they left there, in the unit of the text as `value`."""

    who: str
    recipe: dict[str, Any]
    commands: Callable[[Path, int], list[Command]]
    result: Callable[[Path], dict[str, Any]]


def contender(who: str, question: Question, files: Files) -> Contender | None:
    """Whoever bears this name; None where it cannot be had (history is missing).

    Raises ValueError where our command line refuses its words.
    """
    kind = who.partition(", ")[0]
    if kind in RECIPES:
        return rival(who, question, files)
    words = ["--preset", question.preset, "--minutes", f"{question.minutes:.15g}", "--set", "prompt="]
    words += ["--set", f"validations={LOOKS}"]
    if kind == "before":
        surroundings = files.before()
        if surroundings is None:
            return None
        if question.text == "shakespeare":
            words += ["--vocab-size", "512"]  # as its README has it
        recipe: dict[str, Any] = {"commit": BEFORE, "words": words}
        return own(who, recipe, [*words], surroundings, question, files)
    if kind == "course":
        words += words_of(COURSE)
    return own(who, chosen(tuple(words), question, files), words, OWN, question, files)


def own(
    who: str, recipe: dict[str, Any], words: list[str], surroundings: dict[str, str], question: Question, files: Files
) -> Contender:
    """One that trains by `rhapsode train` and is scored by `rhapsode evaluate`, of this or another commit."""

    def commands(folder: Path, seed: int) -> list[Command]:
        run = str(folder / "run")
        train = ["train", *files.trained_on(question.text), *words, "--seed", str(seed), "--out", run]
        if surroundings != OWN:
            make_stores(tuple(files.trained_on(question.text)), tuple(words), tuple(surroundings.items()))
        evaluate = ["evaluate", run, *files.scored_on(question.text), "--json"]
        asked = [
            Command([*PROGRAM, *train], folder / "train.out", surroundings),
            Command([*PROGRAM, *evaluate], folder / "score.json", surroundings),
        ]
        if who == "rhapsode" and question.text == "tinystories":
            measure = [sys.executable, str(HERE / "yardstick.py"), run, files.first, "--checkpoint", "last", "--json"]
            asked.append(Command(measure, folder / "yardstick.json", surroundings))
        return asked

    def result(folder: Path) -> dict[str, Any]:
        return run_result(folder, question, files)

    return Contender(who, recipe, commands, result)


@cache
def make_stores(data: tuple[str, ...], words: tuple[str, ...], surroundings: tuple[tuple[str, str], ...]) -> None:
    """Tokens for another commit, made before it trains, so that both of a pair begin at once; `chosen` made ours."""
    command = [*PROGRAM, "train", *data, *words, "--explain-preset"]
    subprocess.run(command, env={**os.environ, **dict(surroundings)}, capture_output=True, check=False)


def rival(who: str, question: Question, files: Files) -> Contender:
    """One that contender.py trains."""
    kind, _, copy_head = who.partition(", ")
    recipe = best_modern(bool(copy_head)) if kind == "modern" else RECIPES[kind]

    def commands(folder: Path, seed: int) -> list[Command]:
        data = {"train": files.train, "valid": files.valid, "looks": files.looks, "first": files.first}
        order = {"who": kind, "recipe": recipe, "data": data, "minutes": question.minutes, "seed": seed, "looks": LOOKS}
        return [rival_command(order, folder)]

    return Contender(who, recipe, commands, rival_result)


def rival_command(order: dict[str, Any], folder: Path) -> Command:
    """The program of contender.py with its order."""
    return Command([sys.executable, str(HERE / "contender.py"), json.dumps(order)], folder / "rival.json", OWN)


def rival_result(folder: Path) -> dict[str, Any]:
    """What contender.py printed, in bits per byte; value None where training diverged."""
    found = json.loads((folder / "rival.json").read_text(encoding="utf-8"))
    if found["nats"] is None:
        return {"value": None, "why": found["why"]}
    bits = 1 / (math.log(2) * found["bytes_of_looks"])
    curve = [[round(seconds, 1), round(nats * bits, 4)] for seconds, nats in found["curve"]]
    value = found["nats"] / math.log(2) / found["bytes"]
    kept = {name: found[name] for name in ("parameters", "steps", "tokens", "yardstick") if name in found}
    return {"value": round(value, 4), "seconds": round(found["seconds"], 1), "curve": curve, **kept}


def run_result(folder: Path, question: Question, files: Files) -> dict[str, Any]:
    """What a run directory and the JSON of `rhapsode evaluate` say."""
    with (folder / "run" / "metrics.jsonl").open(encoding="utf-8") as stream:
        metrics = [json.loads(line) for line in stream]
    with safetensors.safe_open(folder / "run" / "best.safetensors", "numpy") as weights:
        shapes = [weights.get_slice(name).get_shape() for name in weights.keys()]  # noqa: SIM118 (no mapping)
    score = json.loads((folder / "score.json").read_text(encoding="utf-8"))
    last = metrics[-1]
    found: dict[str, Any] = {
        "parameters": sum(math.prod(shape) for shape in shapes),
        "steps": last["step"],
        "tokens": last["tokens"],
        "seconds": round(last["seconds"], 1),
    }
    factor = 1.0  # from bits per byte to the unit of the text
    if question.text == "storyworld":
        found |= storyworld_result(score)
    else:
        if question.text == "shakespeare":
            text = Path(files.scored_on("shakespeare")[0]).read_text(encoding="utf-8")
            factor = math.log(2) * score["bytes"] / len(text)
        found["value"] = round(score["bits_per_byte"] * factor, 4)
    curve = [(m["seconds"], m["bits_per_byte"]) for m in metrics if m["event"] == "valid"]
    found["curve"] = [[round(seconds, 1), round(bits * factor, 4)] for seconds, bits in curve]
    if (folder / "yardstick.json").exists():
        found["yardstick"] = json.loads((folder / "yardstick.json").read_text(encoding="utf-8"))
    return found


def storyworld_result(score: dict[str, Any]) -> dict[str, Any]:
    """References right in all, of each kind and at each distance; the excess; how many stories are of the grammar."""
    recall, excess, written = score["recall"]["valid"], score["excess"]["valid"], score["generated"]
    shares = {
        part: {name: round(cell["accuracy"], 4) for name, cell in recall[f"by_{part}"].items()}
        for part in ("kind", "distance")
    }
    return {
        "value": round(recall["overall"]["accuracy"], 4),
        **shares,
        "bits_per_byte": round(excess["bits_per_byte"], 4),
        "excess": round(excess["excess_bits_per_byte"], 4),
        "stories": {name: written[name] for name in ("total", "parsed", "new")},
    }


@cache
def chosen(words: tuple[str, ...], question: Question, files: Files) -> dict[str, Any]:
    """The recipe that `rhapsode train` makes of these words for the question's text, the seed left out."""
    assignments = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    own = read_assignments(assignments)
    own.setdefault("train", {})["minutes"] = question.minutes
    data, _, *valid = files.trained_on(question.text)[:3] if question.text != "storyworld" else ("storyworld", "")
    reading = SourceConfig(split="file" if question.text == "shakespeare" else "auto")
    request = DataRequest((data,), tuple(valid), reading=reading)
    with silent(), fixed_threads(None if question.alone else 1):
        made = choose_recipe(TrainingRequest(request, question.preset, own))
    recipe = made.recipe.to_dict()
    del recipe["train"]["seed"]
    return {**recipe, "tokenizer": made.data.tokenizer.fingerprint[:16]}
