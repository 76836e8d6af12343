"""What each part of a recipe is worth: the recipe of a preset with one thing changed, on TinyStories.

    python benchmarks/ablations.py TRAIN.jsonl VALID.jsonl                       coffee: two hours of two cores
    python benchmarks/ablations.py TRAIN.jsonl VALID.jsonl --preset minute       an hour
    python benchmarks/ablations.py TRAIN.jsonl VALID.jsonl --preset minute --bytes 300000     a text that is read often
    python benchmarks/ablations.py TRAIN.jsonl VALID.jsonl --device cuda --at-once 6         coffee on a GPU: minutes
    python benchmarks/ablations.py --preset coffee --table                       the table; trains nothing

Everyone gets the same time: as many tokens as it reads while the recipe itself reads TOKENS, by the cost of a step that
parts.py measured side by side (results/parts.json). So it does not matter how fast the machine is while they train, or
what else it does, or whether a GPU trains them. --bytes: the recipe as it is fitted to the first stories of TRAIN, a
text that is read often, in a tokenizer trained on them. Bits per UTF-8 byte over all stories of VALID. Writes
results/ablations-PRESET[-BYTES].json after each run; what it has already, by the same recipe and as many tokens, is not
run again.
"""

import argparse
import os
import statistics
import sys
import tempfile
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from contender import stores
from pool import at_once
from quality import Data, ours, record, same_recipe, share
from recipe_changes import RECIPE, Change, Sections, changes_of
from report import about, over_seeds, read, write

from rhapsode.machine import device_name
from rhapsode.progress import say
from rhapsode.recipe.changes import merge
from rhapsode.recipe.presets import PRESETS, VOCAB_SIZES
from rhapsode.recipe.rules import TextSize, fit_preset
from rhapsode.sources import open_source
from rhapsode.tokenizer import train_tokenizer, training
from rhapsode.tokenizer.training import fitted_vocab_size
from rhapsode.tokens import prepare

TOKENS = 2_000_000  # of the recipe itself: coffee reads them in about four minutes on one core, minute in two
SEEDS = 3


def texts(files: dict[str, str], vocab_size: int, spaced: bool) -> Data:
    """Training and validation text in the tokenizer of a change."""
    if not spaced:
        tokenizer, made = stores(files, vocab_size)
    else:
        with mock.patch.object(training, "MOST_NAMES", -1.0):
            stories = (piece.text for piece in open_source((files["train"],)).pieces())
            tokenizer = train_tokenizer(stories, vocab_size=vocab_size)
        made = {name: prepare(open_source((file,)), tokenizer) for name, file in files.items()}
    return Data("tinystories", tokenizer, made["train"], made["valid"], made["valid"].num_bytes)


def trained(
    files: dict[str, str], recipe: Sections, often: bool, key: dict[str, Any], device: str = "cpu"
) -> dict[str, Any]:
    """One run of a change, as the results keep it; value: None where the loss was no number any more."""
    torch.set_num_threads(1)
    change = changes_of(recipe, often)[key["name"]]
    sections = merge(recipe, change.sections)
    found = {**key, "recipe": sections, **about(), "device": device_name(device)}
    with change.patch():
        try:
            data = texts(files, sections["model"]["vocab_size"], change.spaced)
            result = ours(sections, data, {"tokens": key["tokens"]}, key["seed"], 1, device)
        except FloatingPointError as error:
            return {**found, "value": None, "why": str(error).partition(";")[0]}
    return {**found, **record(data, result)}


def fitted(files: dict[str, str], preset: str) -> Sections:
    """What `rhapsode train --preset PRESET` would choose for these files, if it read as many tokens as here."""
    vocab_size = fitted_vocab_size(os.path.getsize(files["train"]), VOCAB_SIZES[preset])
    train = texts(files, vocab_size, spaced=False).train
    text = TextSize(train.num_tokens, train.num_stories)
    return merge(
        fit_preset(preset, text, {"train": {"tokens": TOKENS}}).sections, {"model": {"vocab_size": vocab_size}}
    )


def tokens_of(preset: str, name: str, change: Change) -> int:
    """What a change reads in the time of the recipe; raises ValueError where its cost was not measured."""
    if not (change.sections.keys() & {"model", "batch"} or change.sections.get("optimizer", {}).get("optimizer")):
        return TOKENS  # a step of it takes the same time
    measured = read("parts").get(f"{preset}, 1 threads", {"changes": {}})["changes"]
    if name not in measured:
        raise ValueError(
            f"first: python benchmarks/parts.py --preset {preset} --threads 1 --write (the cost of {name})"
        )
    return round(TOKENS / measured[name]["time"])


def runs_of(name: str) -> list[dict[str, Any]]:
    """What is there, but for runs of before, which had minutes in place of tokens."""
    return [run for run in read(name).get("runs", []) if "tokens" in run]


def is_run(run: dict[str, Any], name: str, seed: int, recipe: dict[str, Any], tokens: int) -> bool:
    """Whether a run is that of a change of the recipe, a seed and so many tokens."""
    return (run["name"], run["seed"], run["tokens"]) == (name, seed, tokens) and same_recipe(run["recipe"], recipe)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", metavar="FILE", help="TRAIN.jsonl VALID.jsonl")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="coffee")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--only", nargs="+", metavar="CHANGE", help="names of those to run beside the recipe")
    parser.add_argument("--bytes", type=int, help="train on so much of TRAIN, the preset fitted to it")
    parser.add_argument("--device", default="cpu", help="what trains: cpu or cuda")
    parser.add_argument("--at-once", type=int, default=2, metavar="N", help="how many train at once")
    parser.add_argument("--table", action="store_true", help="print the table of what is there; trains nothing")
    arguments = parser.parse_args()
    name = f"ablations-{arguments.preset}" + (f"-{arguments.bytes}" if arguments.bytes else "")
    if arguments.table:
        print_table(runs_of(name))
        return 0
    if len(arguments.files) != 2:
        parser.error("name TRAIN.jsonl VALID.jsonl")
    with tempfile.TemporaryDirectory() as folder:
        files = dict(zip(("train", "valid"), arguments.files, strict=True))
        recipe = merge(PRESETS[arguments.preset], {"model": {"vocab_size": VOCAB_SIZES[arguments.preset]}})
        if arguments.bytes:
            files["train"] = str(share(files["train"], arguments.bytes, Path(folder)))
            recipe = fitted(files, arguments.preset)
        often = bool(arguments.bytes)
        changes = changes_of(recipe, often)
        unknown = set(arguments.only or ()) - set(changes)
        if unknown:
            parser.error(f"{min(unknown)!r} is no change of this recipe; there are {', '.join(changes)}")
        wanted = [RECIPE, *(arguments.only or [each for each in changes if each != RECIPE])]
        kept = runs_of(name)
        orders = []
        try:
            for seed in range(arguments.seeds):
                for each in wanted:
                    tokens = tokens_of(arguments.preset, each, changes[each])
                    sections = merge(recipe, changes[each].sections)
                    if not any(is_run(run, each, seed, sections, tokens) for run in kept):
                        orders.append({"name": each, "seed": seed, "tokens": tokens})
        except ValueError as error:
            parser.error(str(error))
        with at_once(arguments.at_once) as pool:
            futures = [pool.submit(trained, files, recipe, often, key, arguments.device) for key in orders]
            for number, future in enumerate(as_completed(futures), 1):
                found = future.result()
                say(f"{number} of {len(orders)}: {found['name']}, seed {found['seed']}: {found['value']}")
                place = found["name"], found["seed"]
                kept = [run for run in kept if (run["name"], run["seed"]) != place] + [found]
                write(name, {"preset": arguments.preset, "bytes": arguments.bytes, "runs": kept})
    print_table(runs_of(name))
    return 0


def print_table(runs: list[dict[str, Any]]) -> None:
    """Markdown: what was changed, bits per byte (mean and spread over seeds), how much that is above the recipe's
    run of the same seed, tokens, parameters."""
    base = {run["seed"]: run["value"] for run in runs if run["name"] == RECIPE}
    print("| changed | bits per byte | worse by | tokens | parameters |\n|---|---|---|---|---|")
    for change in dict.fromkeys(run["name"] for run in runs):
        found = sorted((run for run in runs if run["name"] == change), key=lambda run: run["seed"])
        failed = [run["why"] for run in found if run["value"] is None]
        if failed:
            print(f"| {change} | {len(failed)} of {len(found)}: {failed[0]} | | | |")
            continue
        worse = [run["value"] - base[run["seed"]] for run in found if base.get(run["seed"]) is not None]
        values, beside = over_seeds([run["value"] for run in found]), over_seeds(worse) if change != RECIPE else ""
        tokens = statistics.mean(run["tokens"] for run in found)
        print(f"| {change} | {values} | {beside} | {tokens:,.0f} | {found[0]['parameters']:,} |")


if __name__ == "__main__":
    sys.exit(main())
