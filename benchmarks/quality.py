"""What a wall-clock budget buys: our presets against rivals with the same data, tokens, threads and minutes.

    python benchmarks/quality.py tinystories TRAIN.jsonl VALID.jsonl --minutes 2 --seeds 3
    python benchmarks/quality.py tinystories TRAIN.jsonl VALID.jsonl --minutes 2 --only lstm --peaks 1e-3 1e-2
    python benchmarks/quality.py shakespeare INPUT.txt --minutes 1.1667
    python benchmarks/quality.py tinystories --minutes 10 --plot     docs/figures/quality-tinystories-10.svg again

Budgets are training time; validation is excluded for all. TinyStories: bits per UTF-8 byte over all stories of
VALID, tokenizer of 1,024 pieces trained on TRAIN. Shakespeare: nats per character on the last 10%, trained on the
first 90%, tokenizer of 512 pieces, which lose nothing: the nats of all pieces over all characters.
Writes benchmarks/results/quality-DATA-MINUTES.json after each run; what it has already, by the same recipe and with as
many looks, is not run again without --again, so that hours of it can be divided.

Rivals, each tuned in good faith (what was tried stands in benchmarks/README.md): a decoder-only transformer in the
manner of GPT-2 (4 layers, 4 heads, 128 wide, context 128, batch 32; AdamW, betas 0.9 and 0.99, warm-up of 100 steps,
cosine to a twentieth of the peak), nn.LSTM of about as many parameters, and the course's own model with its own recipe.
"""

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from quality_rivals import CONTEXT, LSTM, Transformer
from report import FIGURES, about, over_seeds, panels, read, save_figure, write
from torch import nn

from rhapsode.evaluation import bits_per_byte
from rhapsode.figure import COLOURS, DASHES, MARKERS
from rhapsode.machine import keep_freed_memory
from rhapsode.model import ModelConfig
from rhapsode.progress import bar, say
from rhapsode.recipe import OptimizerConfig, Recipe
from rhapsode.recipe.changes import build
from rhapsode.recipe.presets import PRESETS
from rhapsode.recipe.rules import TextSize, fit_preset
from rhapsode.sources import SourceConfig, open_source
from rhapsode.tokenizer import Tokenizer
from rhapsode.tokens import BatchConfig, Batcher, TokenStore, prepare, tokenizer_for
from rhapsode.training import train_run
from rhapsode.training.start import create_run


class Result(NamedTuple):
    """curve: (seconds of training, nats summed over the validation data) at each look, the last at the end."""

    parameters: int
    steps: int
    seconds: float
    curve: list[tuple[float, float]]


class Data(NamedTuple):
    """What everyone gets. unit: how many bytes or characters the validation data have."""

    name: str
    tokenizer: Tokenizer
    train: TokenStore
    valid: TokenStore
    unit: int


def rival(
    make: Callable[[], Transformer | LSTM], peak: float, data: Data, minutes: float, seed: int, looks: int
) -> Result:
    """Trains a rival for so many minutes: AdamW, warm-up of 100 steps, cosine of the time to a twentieth."""
    torch.manual_seed(seed)
    model = make()
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim != 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.99), fused=True)
    batcher = Batcher(data.train, BatchConfig(CONTEXT, 32), seed)
    budget, spent, step = 60 * minutes, 0.0, 0
    curve: list[tuple[float, float]] = []
    with bar("training", budget, "s of training") as advance:
        while True:
            if spent >= budget * (len(curve) + 1) / looks:
                model.eval()
                curve.append((spent, model.nats(data.valid)))
                model.train()
                if len(curve) == looks:
                    break
            started = time.monotonic()
            batch = batcher.next()
            part = spent / budget
            rate = min((step + 1) / 100, 0.05 + 0.95 * (0.5 + 0.5 * math.cos(math.pi * part)))
            for group in optimizer.param_groups:
                group["lr"] = peak * rate
            loss = model.loss(batch.inputs, batch.targets)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
            took = time.monotonic() - started
            spent += took
            advance(took)
    return Result(sum(p.numel() for p in model.parameters()), step, spent, curve)


def ours(sections: dict[str, Any], data: Data, budget: dict[str, float], seed: int, looks: int) -> Result:
    """Trains by the package's own door, budget as in TrainConfig; the last weights count, as for the rivals."""
    sections = {**sections, "train": {**budget, "seed": seed, "validations": looks, "prompt": ""}}
    recipe = Recipe.from_sections(sections, data.tokenizer.vocab_size)
    with tempfile.TemporaryDirectory() as folder:
        run = create_run(Path(folder) / "run", recipe, data.tokenizer, {})
        outcome = train_run(run, data.train, data.valid)
        parameters = sum(p.numel() for p in run.load_model("last").parameters())
        curve = [
            (m["seconds"], m["valid_loss"] * data.valid.num_tokens) for m in run.metrics() if m["event"] == "valid"
        ]
    return Result(parameters, outcome.progress.step, outcome.progress.seconds, curve)


KEY = ("name", "seed", "peak", "preset", "threads")  # of a run; a new one takes the place of one with the same
NAMES = ("rhapsode", "transformer", "lstm", "course")
LABELS = {"rhapsode": "Rhapsode", "transformer": "transformer", "lstm": "nn.LSTM", "course": "the course's"}
RIVALS: dict[str, type[Transformer] | type[LSTM]] = {"transformer": Transformer, "lstm": LSTM}
PEAKS = {"transformer": 8e-3, "lstm": 4.8e-2}  # the best of those that were tried for two minutes
UNITS = {"tinystories": "bits per byte", "shakespeare": "nats per character"}

COURSE: dict[str, dict[str, Any]] = {
    "model": {"kind": "plain", "embed_dim": 128, "hidden_dim": 256, "key_dim": 128, "value_dim": 128},
    "optimizer": {"optimizer": "adam", "learning_rate": 1e-3, "beta2": 0.999, "decay": "constant", "warmup_steps": 10},
    "batch": {"window": CONTEXT, "batch_size": 32},
}


def tinystories(train_file: str, valid_file: str) -> Data:
    """TinyStories with a tokenizer of 1,024 pieces trained on the training text."""
    source = open_source([train_file])
    tokenizer = tokenizer_for(source, "bpe", 1024)
    valid = prepare(open_source([valid_file]), tokenizer)
    return Data("tinystories", tokenizer, prepare(source, tokenizer), valid, valid.num_bytes)


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


def shakespeare(file: str, folder: Path) -> Data:
    """One long text, in 512 pieces trained on its first 90%, which are there to train on; its last 10% are scored."""
    text = Path(file).read_text(encoding="utf-8")
    cut = int(0.9 * len(text))
    parts = {"train.txt": text[:cut], "valid.txt": text[cut:]}
    for name, part in parts.items():
        (folder / name).write_text(part, encoding="utf-8")
    whole = SourceConfig(split="file")
    source = open_source([str(folder / "train.txt")], whole)
    tokenizer = tokenizer_for(source, "bpe", 512)
    valid = prepare(open_source([str(folder / "valid.txt")], whole), tokenizer)
    return Data("shakespeare", tokenizer, prepare(source, tokenizer), valid, len(parts["valid.txt"]))


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
            data = (
                tinystories(*arguments.files)
                if arguments.data == "tinystories"
                else shakespeare(arguments.files[0], Path(folder))
            )
            compare(name, data, arguments)
    results = read(name)
    print_table(results)
    plot(results, FIGURES / f"{name}.svg")


def compare(name: str, data: Data, arguments: argparse.Namespace) -> None:
    """Runs everyone with every seed in turn; writes the JSON after each run."""
    minutes, looks = arguments.minutes, arguments.looks
    preset = arguments.preset or ("minute" if minutes < 5 else "coffee")
    recipe = recipe_for(data, preset, minutes)
    vocab_size, dropout = data.tokenizer.vocab_size, recipe["model"].get("dropout", 0.0)
    recipes = {"rhapsode": recipe, "course": COURSE, **{who: {"dropout": dropout} for who in RIVALS}}
    keep_freed_memory()  # for the rivals too
    conditions = {"looks": looks, **about()}
    kept = read(name).get("runs", [])

    def run(who: str, peak: float | None, seed: int) -> Result:
        if who in RIVALS and peak is not None:
            return rival(lambda: RIVALS[who](vocab_size, dropout), peak, data, minutes, seed, looks)
        return ours(recipes[who], data, {"minutes": minutes}, seed, looks)

    for seed in range(arguments.seeds):
        for who in arguments.only or NAMES:
            for peak in (arguments.peaks or [PEAKS[who]]) if who in RIVALS else [None]:
                ours_by = preset if who == "rhapsode" else None
                key = dict(zip(KEY, (who, seed, peak, ours_by, torch.get_num_threads()), strict=True))
                same = [r for r in kept if all(r[field] == key[field] for field in KEY)]
                there = [r for r in same if r["looks"] >= looks and same_recipe(r["recipe"], recipes[who])]
                if there and not arguments.again:
                    continue
                found = {**key, "recipe": recipes[who], **record(data, run(who, peak, seed)), **conditions}
                say(f"{who}, seed {seed}: {found['value']:.4f} after {found['seconds']} s")
                kept = [r for r in kept if r not in same] + [found]
                write(name, {"data": data.name, "unit": UNITS[data.name], "minutes": minutes, "runs": kept})


def alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two runs differ in the seed alone."""
    same = all(one[field] == other[field] for field in KEY if field != "seed")
    return same and same_recipe(one["recipe"], other["recipe"])


def print_table(results: dict[str, Any]) -> None:
    """Markdown: who, at which peak rate, mean and spread over seeds, parameters and steps."""
    print(f"{results['data']}, {results['minutes']:g} minutes of training, {results['unit']}\n")
    print("| who | peak rate | mean | seeds | parameters | steps |\n|---|---|---|---|---|---|")
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
        steps = statistics.mean(r["steps"] for r in found)
        title = f"{who}, {preset}" if preset else who
        size = f"{found[0]['parameters']:,} | {steps:,.0f}"
        print(f"| {title} | {rate} | {over_seeds(values)} | {len(values)} | {size} |")


def plot(results: dict[str, Any], file: Path) -> None:
    """Loss over the minutes of training, everyone at the best rate, one seed; nothing where no run looked."""
    looked = [r for r in results["runs"] if len(r["curve"]) > 3]
    if not looked:
        return
    looked = [r for r in looked if r["seed"] == min(r["seed"] for r in looked)]
    best = {r["name"]: r["peak"] for r in sorted(looked, key=lambda r: -r["value"])}  # the last of a name, the lowest
    looked = [r for r in looked if r["peak"] == best[r["name"]]]
    figure, axes = panels(file.stem, 1, 1, figsize=(7.5, 4.4))
    for who, colour, dash, marker in zip(NAMES, COLOURS, DASHES, MARKERS, strict=False):
        for run in (r for r in looked if r["name"] == who):
            minutes, values = zip(*((seconds / 60, value) for seconds, value in run["curve"]), strict=True)
            axes.plot(minutes, values, color=colour, linestyle=dash, marker=marker, markersize=4, linewidth=1.6)
            axes.annotate(
                f"{LABELS[who]} {values[-1]:.3f}",
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


def recipe_for(data: Data, preset: str, minutes: float) -> dict[str, dict[str, Any]]:
    """What `rhapsode train --preset PRESET --minutes MINUTES` would choose for these data."""
    text = TextSize(data.train.num_tokens, data.train.num_stories)
    return fit_preset(preset, text, {"train": {"minutes": minutes}}).sections


def meaning(recipe: dict[str, Any]) -> tuple[Any, ...]:
    """The configs of a recipe but for its budget, defaults included."""
    model = build(ModelConfig, {**recipe["model"], "vocab_size": 1})
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
