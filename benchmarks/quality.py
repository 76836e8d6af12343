"""What a wall-clock budget buys: our presets against rivals with the same data, tokens, threads and minutes.

    python benchmarks/quality.py tinystories TRAIN.jsonl VALID.jsonl --minutes 2 --seeds 3
    python benchmarks/quality.py tinystories TRAIN.jsonl VALID.jsonl --minutes 2 --only lstm --peaks 1e-3 1e-2
    python benchmarks/quality.py shakespeare INPUT.txt --minutes 1.1667
    python benchmarks/quality.py tinystories --minutes 10 --plot     docs/figures/quality-tinystories-10.svg again

One after the other, with all cores; side_by_side.py compares two at once. Budgets are training time; validation is
excluded for all. TinyStories: bits per UTF-8 byte over all stories of VALID. Shakespeare: nats per character on the
last 10%, trained on the first 90%, in byte-level pieces, which lose nothing: all nats over all characters.
Tokenizers are trained on the training text: ours of as many pieces as `rhapsode train` chooses, modern's of as many as
tuning found, the others' of 1,024 (Shakespeare 512).
Writes benchmarks/results/quality-DATA-MINUTES.json after each run; what it has already, by the same recipe and with as
many looks, is not run again without --again, so that hours of it can be divided. A run takes the place of none but one
of the same recipe and commit.

Rivals, each tuned in good faith (what was tried stands in benchmarks/README.md): a decoder-only transformer in the
manner of GPT-2 (4 layers, 4 heads, 128 wide, context 128, batch 32; AdamW, betas 0.9 and 0.99, warm-up of 100 steps,
cosine to a twentieth of the peak), nn.LSTM of about as many parameters, the course's own model with its own recipe, and
`modern` with and without a copy head (modern.py): the transformer that has all the parts of our recipe.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from contender import RECIPES, Result, stores, train_rival
from report import FIGURES, about, over_seeds, panels, read, save_figure, write
from tuning import best_modern

from rhapsode.data import DataRequest
from rhapsode.evaluation import bits_per_byte
from rhapsode.figure import COLOURS, DASHES, MARKERS
from rhapsode.machine import graph_capture, keep_freed_memory
from rhapsode.model import ModelConfig
from rhapsode.progress import say
from rhapsode.recipe import OptimizerConfig, Recipe
from rhapsode.recipe.changes import build, merge
from rhapsode.recipe.presets import PRESETS
from rhapsode.sources import SourceConfig
from rhapsode.tokenizer import Tokenizer
from rhapsode.tokens import BatchConfig, TokenStore
from rhapsode.training import train_run
from rhapsode.training.start import TrainingRequest, choose_recipe, create_run


class Data(NamedTuple):
    """What everyone gets. unit: how many bytes or characters the validation data have."""

    name: str
    tokenizer: Tokenizer
    train: TokenStore
    valid: TokenStore
    unit: int


def ours(
    sections: dict[str, Any], data: Data, budget: dict[str, float], seed: int, looks: int, device: str = "cpu"
) -> Result:
    """Trains by the package's own door, budget as in TrainConfig; the last weights count, as for the rivals."""
    sections = {**sections, "train": {**budget, "seed": seed, "validations": looks, "prompt": ""}}
    recipe = Recipe.from_sections(sections, data.tokenizer.vocab_size)
    with tempfile.TemporaryDirectory() as folder:
        run = create_run(Path(folder) / "run", recipe, data.tokenizer, {})
        outcome = train_run(run, data.train, data.valid, device, capture=graph_capture(device, None))
        parameters = sum(p.numel() for p in run.load_model("last").parameters())
        curve = [
            (m["seconds"], m["valid_loss"] * data.valid.num_tokens) for m in run.metrics() if m["event"] == "valid"
        ]
    progress = outcome.progress
    return Result(parameters, progress.step, progress.tokens, progress.seconds, curve)


KEY = ("name", "seed", "peak", "preset", "threads")  # of a run, beside its recipe and its commit
NAMES = ("rhapsode", "modern, copy head", "modern", "transformer", "lstm", "course")
LABELS = {"rhapsode": "Rhapsode", "lstm": "nn.LSTM", "course": "the course's"}
PEAKS = {who: recipe["peak"] for who, recipe in RECIPES.items() if "peak" in recipe}
UNITS = {"tinystories": "bits per byte", "shakespeare": "nats per character"}
VOCAB_SIZES = {"tinystories": 1024, "shakespeare": 512}  # of the rivals that do not choose for themselves

COURSE: dict[str, dict[str, Any]] = {
    "model": {"kind": "plain", "embed_dim": 128, "hidden_dim": 256, "key_dim": 128, "value_dim": 128},
    "optimizer": {"optimizer": "adam", "learning_rate": 1e-3, "beta2": 0.999, "decay": "constant", "warmup_steps": 10},
    "batch": {"window": 128, "batch_size": 32},
}


def tinystories(train_file: str, valid_file: str, vocab_size: int = VOCAB_SIZES["tinystories"]) -> Data:
    """TinyStories with a tokenizer of so many pieces trained on the training text."""
    return data_of("tinystories", {"train": train_file, "valid": valid_file}, vocab_size)


def data_of(name: str, files: dict[str, str], vocab_size: int) -> Data:
    """The texts in pieces of a tokenizer that is trained on the first; files: as in contender.stores."""
    tokenizer, texts = stores(files, vocab_size)
    characters = len(Path(files["valid"]).read_text(encoding="utf-8")) if name == "shakespeare" else 0
    return Data(name, tokenizer, texts["train"], texts["valid"], characters or texts["valid"].num_bytes)


def share(file: str, size: int, folder: Path) -> Path:
    """A file with the first stories of a JSONL file, `size` bytes of text or a little less."""
    path = folder / f"{size}.jsonl"
    taken, lines = 0, []
    with open(file, encoding="utf-8") as stream:
        for line in stream:
            taken += len(json.loads(line)["text"].encode())
            if taken > size:
                break
            lines.append(line)
    path.write_text("".join(lines), encoding="utf-8")
    return path


def shakespeare(file: str, folder: Path) -> dict[str, str]:
    """One long text: its first 90%, which are there to train on, and its last 10%, as files of their own."""
    text = Path(file).read_text(encoding="utf-8")
    cut = int(0.9 * len(text))
    for name, part in (("train.txt", text[:cut]), ("valid.txt", text[cut:])):
        (folder / name).write_text(part, encoding="utf-8")
    return {"train": str(folder / "train.txt"), "valid": str(folder / "valid.txt"), "cut": "file"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=sorted(UNITS))
    parser.add_argument("files", nargs="*", help="TRAIN.jsonl VALID.jsonl, or INPUT.txt")
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=NAMES, help="names of those to run")
    parser.add_argument("--peaks", nargs="+", type=float, help="peak rates for the rivals instead of the chosen ones")
    parser.add_argument("--preset", choices=sorted(PRESETS), help="the preset to run for us; otherwise by the minutes")
    parser.add_argument("--looks", type=int, default=1, help="validations on the way")
    parser.add_argument("--again", action="store_true", help="run also what the results have already")
    parser.add_argument("--plot", action="store_true", help="draw the curves of the results again, run nothing")
    arguments = parser.parse_args()
    name = f"quality-{arguments.data}-{arguments.minutes:g}"
    if not arguments.plot:
        if len(arguments.files) != (2 if arguments.data == "tinystories" else 1):
            parser.error("name TRAIN.jsonl VALID.jsonl for tinystories, INPUT.txt for shakespeare")
        with tempfile.TemporaryDirectory() as folder:
            if arguments.data == "tinystories":
                files = dict(zip(("train", "valid"), arguments.files, strict=True))
            else:
                files = shakespeare(arguments.files[0], Path(folder))
            compare(name, files, arguments)
    results = read(name)
    print_table(results)
    plot(results, FIGURES / f"{name}.svg")


def compare(name: str, files: dict[str, str], arguments: argparse.Namespace) -> None:
    """Runs everyone with every seed in turn; writes the JSON after each run."""
    minutes, looks = arguments.minutes, arguments.looks
    preset = arguments.preset or ("minute" if minutes < 5 else "coffee")
    own = chosen(files, preset, minutes)
    fitted = {"dropout": own["model"]["dropout"]}
    by_hand = {who: {**RECIPES[who], **fitted, "vocab_size": VOCAB_SIZES[arguments.data]} for who in PEAKS}
    fitted |= {field: own["optimizer"][field] for field in ("learning_rate", "weight_decay")}
    fitted = {} if arguments.data == "tinystories" else fitted  # where tuning found them
    modern = {who: {**best_modern("copy" in who), **fitted} for who in NAMES if who.startswith("modern")}
    course = merge(COURSE, {"model": {"vocab_size": VOCAB_SIZES[arguments.data]}})
    recipes: dict[str, dict[str, Any]] = {"rhapsode": own, "course": course, **by_hand, **modern}
    data: dict[int, Data] = {}  # by the size of the vocabulary
    keep_freed_memory()  # for the rivals too
    conditions = {"looks": looks, **about()}
    kept = read(name).get("runs", [])

    def run(who: str, recipe: dict[str, Any], seed: int) -> tuple[Data, Result]:
        size = recipe["model"]["vocab_size"] if "model" in recipe else recipe["vocab_size"]
        if size not in data:
            data[size] = data_of(arguments.data, files, size)
        texts = data[size]
        if "model" in recipe:
            return texts, ours(recipe, texts, {"minutes": minutes}, seed, looks)
        kind = who.partition(",")[0]
        return texts, train_rival(kind, recipe, texts.train, texts.valid, {"minutes": minutes}, seed, looks)[1]

    for seed in range(arguments.seeds):
        for who in arguments.only or NAMES:
            for peak in (arguments.peaks or [PEAKS[who]]) if who in PEAKS else [None]:
                recipe = {**recipes[who], **({"peak": peak} if peak else {})}
                ours_by = preset if who == "rhapsode" else None
                key = dict(zip(KEY, (who, seed, peak, ours_by, torch.get_num_threads()), strict=True))
                same = [r for r in kept if all(r[f] == key[f] for f in KEY) and same_recipe(r["recipe"], recipe)]
                if any(r["looks"] >= looks for r in same) and not arguments.again:
                    continue
                found = {**key, "recipe": recipe, **record(*run(who, recipe, seed)), **conditions}
                say(f"{who}, seed {seed}: {found['value']:.4f} after {found['seconds']} s")
                replaced = [r for r in same if r["commit"] == found["commit"]]
                kept = [r for r in kept if r not in replaced] + [found]
                write(name, {"data": arguments.data, "unit": UNITS[arguments.data], "minutes": minutes, "runs": kept})


def chosen(files: dict[str, str], preset: str, minutes: float) -> dict[str, dict[str, Any]]:
    """The recipe that `rhapsode train` chooses for a text, by section, but for its budget."""
    reading = SourceConfig(split=files.get("cut", "auto"))
    data = DataRequest((files["train"],), (files["valid"],), reading=reading)
    recipe = choose_recipe(TrainingRequest(data, preset, {"train": {"minutes": minutes}})).recipe
    return {name: fields for name, fields in recipe.to_dict().items() if name != "train"}


def alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two runs differ in the seed alone."""
    same = all(one[field] == other[field] for field in KEY if field != "seed")
    return same and same_recipe(one["recipe"], other["recipe"])


def print_table(results: dict[str, Any]) -> None:
    """Markdown: who, at which peak rate, mean and spread over seeds, parameters, steps, commit; a row for a recipe."""
    print(f"{results['data']}, {results['minutes']:g} minutes of training, {results['unit']}\n")
    print("| who | peak rate | mean | seeds | parameters | steps | commit |\n|---|---|---|---|---|---|---|")
    rows: list[list[dict[str, Any]]] = []
    for run in sorted(results["runs"], key=lambda r: NAMES.index(r["name"])):
        of_run = [row for row in rows if alike(row[0], run)]
        if of_run:
            of_run[0].append(run)
        else:
            rows.append([run])
    for found in rows:
        who, peak, preset = found[0]["name"], found[0]["peak"], found[0]["preset"]
        values = [r["value"] for r in found]
        rate = "its own" if peak is None else f"{peak:g}"
        commits = ", ".join(sorted({r["commit"] for r in found}))
        steps = statistics.mean(r["steps"] for r in found)
        title = f"{who}, {preset}" if preset else who
        size = f"{found[0]['parameters']:,} | {steps:,.0f} | {commits}"
        print(f"| {title} | {rate} | {over_seeds(values)} | {len(values)} | {size} |")


def plot(results: dict[str, Any], file: Path) -> None:
    """Loss over the minutes of training, everyone's best recipe, one seed; nothing where no run looked."""
    looked = [r for r in results["runs"] if len(r["curve"]) > 3]
    if not looked:
        return
    looked = [r for r in looked if r["seed"] == min(r["seed"] for r in looked)]
    best = {r["name"]: r for r in sorted(looked, key=lambda r: -r["value"])}  # the last of a name, the lowest
    figure, axes = panels(file.stem, 1, 1, figsize=(7.5, 4.4))
    for who, colour, dash, marker in zip(NAMES, COLOURS, DASHES, MARKERS, strict=False):
        if who not in best:
            continue
        minutes, values = zip(*((seconds / 60, value) for seconds, value in best[who]["curve"]), strict=True)
        axes.plot(minutes, values, color=colour, linestyle=dash, marker=marker, markersize=4, linewidth=1.6)
        axes.annotate(
            f"{LABELS.get(who, who)} {values[-1]:.3f}",
            (minutes[-1], values[-1]),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            color=colour,
        )
    axes.set(xlabel="minutes of training on two cores", ylabel=f"{results['unit']}, unseen text")
    axes.set_xticks([tick for tick in axes.get_xticks() if 0 <= tick <= results["minutes"]])
    axes.set_xlim(0, results["minutes"] * 1.32)
    save_figure(figure, file)


def meaning(recipe: dict[str, Any]) -> tuple[Any, ...]:
    """The configs of a recipe but for its budget, defaults included."""
    model = build(ModelConfig, {"vocab_size": VOCAB_SIZES["tinystories"], **recipe["model"]})
    return model, build(OptimizerConfig, recipe["optimizer"]), build(BatchConfig, recipe["batch"])


def same_recipe(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two recipes mean the same; of a rival's, whether they are equal."""
    if "model" not in one or "model" not in other:
        return one == other
    try:
        return meaning(one) == meaning(other)
    except ValueError:  # a field that is no more
        return False


def record(data: Data, result: Result) -> dict[str, Any]:
    """A result as the JSON keeps it, losses in the unit of the data."""
    return {
        "value": round(measure(data, result.curve[-1][1]), 4),
        "parameters": result.parameters,
        "steps": result.steps,
        "seconds": round(result.seconds, 1),
        "curve": [(round(seconds, 1), round(measure(data, nats), 4)) for seconds, nats in result.curve],
    }


def measure(data: Data, nats: float) -> float:
    """Bits per byte, or nats per character."""
    return bits_per_byte(nats, data.unit) if data.name == "tinystories" else nats / data.unit


if __name__ == "__main__":
    main()
