"""What each part of the recipe is worth: the recipe of a preset with one thing changed, on TinyStories.

    python benchmarks/ablations.py TRAIN.jsonl VALID.jsonl                       minute: 70 minutes
    python benchmarks/ablations.py TRAIN.jsonl VALID.jsonl --preset coffee --alone --only "no feed-forward part"
    python benchmarks/ablations.py TRAIN.jsonl VALID.jsonl --bytes 300000 --only "one block" "no dropout"

Two train at once, with half of the cores each, for twice the minutes of the preset; --alone, one with all cores for its
minutes, and the runs of the recipe itself are those of quality.py. --bytes: the recipe as it is fitted to the first
stories of TRAIN, a text that is read often, in a tokenizer trained on them. Bits per UTF-8 byte over all stories of
VALID. Writes benchmarks/results/ablations-PRESET[-BYTES].json after each run; what it has already, by the same recipe,
is not run again without --again. Prints the table of docs/presets.md.
"""

import argparse
import math
import statistics
import tempfile
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any

import torch
from pool import at_once
from quality import ours, recipe_for, record, same_recipe, share, tinystories
from report import about, over_seeds, read, write

import rhapsode.model
from rhapsode.progress import say
from rhapsode.recipe.changes import merge
from rhapsode.recipe.presets import PRESETS

KEY = ("name", "seed", "threads", "minutes")  # of a run; a new one takes the place of one with the same
RECIPE = "the recipe"
DEFAULT_START = "recurrent matrices as PyTorch begins them"
KEPT = rhapsode.model.KEPT
CHANGES: dict[str, dict[str, dict[str, Any]]] = {
    RECIPE: {},
    DEFAULT_START: {},
    "no embeddings of pairs": {"model": {"pair_embeddings": 0}},
    "no attention": {"model": {"attention": "none"}},
    "four heads": {"model": {"num_heads": 4, "key_dim": 16, "value_dim": 32}},
    "no feed-forward part": {"model": {"feed_forward": 0}},
    "a feed-forward part": {"model": {"feed_forward": 2}},
    "no dropout": {"model": {"dropout": 0.0}},
    "one block": {"model": {"num_layers": 1}},
    "two blocks": {"model": {"num_layers": 2}},
    "two blocks, attention in the last": {"model": {"num_layers": 2, "attention": "last"}},
    "tanh for relu": {"model": {"activation": "tanh"}},
    "an output gate": {"model": {"gate": True}},
    "no output gate": {"model": {"gate": False}},
    "a gated recurrence, with its output gate": {"model": {"cell": "gated", "gate": True}},
    "an Elman recurrence": {"model": {"cell": "elman"}},
    "a copy head": {"model": {"copy_dim": 64}},
    "no copy head": {"model": {"copy_dim": 0}},
    "copy keys of 32": {"model": {"copy_dim": 32}},
    "head tied to the embedding": {"model": {"tie_embeddings": True}},
    "AdamW for the matrices too, at 2e-3": {"optimizer": {"optimizer": "adamw", "learning_rate": 2e-3}},
    "AdamW at 3e-3 beside Muon": {"optimizer": {"learning_rate": 3e-3}},
    "AdamW at 0.02 beside Muon": {"optimizer": {"learning_rate": 0.02}},
    "Muon at 0.04": {"optimizer": {"matrix_learning_rate": 0.04}},
    "weight decay of 0.1": {"optimizer": {"weight_decay": 0.1}},
    "no weight decay": {"optimizer": {"weight_decay": 0.0}},
    "cosine for linear decay": {"optimizer": {"decay": "cosine"}},
    "batches of 16": {"batch": {"batch_size": 16}},
    "batches of 64": {"batch": {"batch_size": 64}},
    "windows of 256, batches of 16": {"batch": {"window": 256, "batch_size": 16}},
    "windows of 128, batches of 32": {"batch": {"window": 128, "batch_size": 32}},
    "state carried across windows": {"batch": {"carry_state": True}},
}


def trained(files: list[str], sections: dict[str, Any], key: dict[str, Any]) -> dict[str, Any]:
    """One run, as the results keep it; value: None where the loss was no number any more. key: the fields of KEY."""
    torch.set_num_threads(key["threads"])
    rhapsode.model.KEPT = 0.0 if key["name"] == DEFAULT_START else KEPT
    data = tinystories(files[0], files[1])
    found = {**key, "recipe": sections, **about()}
    try:
        result = ours(sections, data, {"minutes": key["minutes"]}, key["seed"], looks=1)
    except FloatingPointError as error:
        return {**found, "value": None, "why": str(error).partition(";")[0]}
    return {**found, **record(data, result)}


def current(run: dict[str, Any], recipe: dict[str, Any], threads: int, minutes: float) -> bool:
    """Whether a run was made under these conditions, and of the recipe with its one change."""
    if (run["threads"], run["minutes"]) != (threads, minutes) or run["name"] not in CHANGES:
        return False
    return same_recipe(run["recipe"], merge(recipe, CHANGES[run["name"]]))


def recipe_alone(preset: str, threads: int) -> list[dict[str, Any]]:
    """The runs of a preset as it is that quality.py has, with all cores, one at a time."""
    minutes = PRESETS[preset]["train"]["minutes"]
    runs = read(f"quality-tinystories-{minutes:g}").get("runs", [])
    runs = [{**run, "name": RECIPE, "minutes": minutes} for run in runs if run["preset"] == preset]
    return [run for run in runs if current(run, PRESETS[preset], threads, minutes)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs=2)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="minute")
    parser.add_argument("--seeds", type=int, default=3)
    only = "names of those to run beside the recipe"
    parser.add_argument("--only", nargs="+", choices=CHANGES, metavar="CHANGE", help=only)
    parser.add_argument("--alone", action="store_true", help="one at a time, with all cores")
    parser.add_argument("--bytes", type=int, help="train on so much of TRAIN, the preset fitted to it")
    parser.add_argument("--again", action="store_true", help="run also what the results have already")
    arguments = parser.parse_args()
    workers = 1 if arguments.alone else 2
    threads = max(1, torch.get_num_threads() // workers)
    minutes = PRESETS[arguments.preset]["train"]["minutes"]
    baseline = []
    if arguments.alone:
        if arguments.bytes:
            parser.error("--alone is for the preset as it stands, --bytes for one that is fitted")
        if arguments.only == [RECIPE]:
            parser.error("--alone takes the runs of the recipe from quality.py; name a change")
        baseline = recipe_alone(arguments.preset, threads)
        if not baseline:
            parser.error(f"--alone needs the runs of {arguments.preset} itself, and quality.py has none yet")
    with tempfile.TemporaryDirectory() as folder:
        name, recipe, files = f"ablations-{arguments.preset}", PRESETS[arguments.preset], arguments.files
        if arguments.bytes:
            name, files = f"{name}-{arguments.bytes}", [str(share(files[0], arguments.bytes, Path(folder))), files[1]]
        data = tinystories(files[0], files[1])  # now, so that all find the token store
        if arguments.bytes:
            recipe = recipe_for(data, arguments.preset, minutes)
        changes = arguments.only or [
            name for name, change in CHANGES.items() if not change or not same_recipe(merge(recipe, change), recipe)
        ]
        changes = [change for change in changes if change != RECIPE]
        if not arguments.alone:
            changes = [RECIPE, *changes]
        kept = read(name).get("runs", [])
        there = [run for run in kept if current(run, recipe, threads, workers * minutes)]
        wanted = [
            dict(zip(KEY, (change, seed, threads, workers * minutes), strict=True))
            for seed in range(arguments.seeds)
            for change in changes
            if arguments.again or not any((run["name"], run["seed"]) == (change, seed) for run in there)
        ]
        with at_once(workers) as pool:
            futures = [pool.submit(trained, files, merge(recipe, CHANGES[key["name"]]), key) for key in wanted]
            for future in as_completed(futures):
                found = future.result()
                say(f"{found['name']}, seed {found['seed']}: {found['value']}")
                kept = [run for run in kept if any(run[field] != found[field] for field in KEY)] + [found]
                write(name, {"preset": arguments.preset, "bytes": arguments.bytes, "runs": kept})
    print_table(baseline + [run for run in kept if current(run, recipe, threads, workers * minutes)])


def print_table(runs: list[dict[str, Any]]) -> None:
    """Markdown: what was changed, bits per byte (mean and spread over seeds), what that costs, steps, parameters."""
    bases = [run["value"] for run in runs if run["name"] == RECIPE and run["value"] is not None]
    base = statistics.mean(bases) if bases else math.nan
    print("| changed | bits per byte | worse by | steps | parameters |\n|---|---|---|---|---|")
    for change in CHANGES:
        found = [run for run in runs if run["name"] == change]
        failed = [run["why"] for run in found if run["value"] is None]
        if failed:
            print(f"| {change} | {len(failed)} of {len(found)}: {failed[0]} | | | |")
        elif found:
            values = [run["value"] for run in found]
            steps = statistics.mean(run["steps"] for run in found)
            mean = statistics.mean(values)
            print(
                f"| {change} | {over_seeds(values)} | {mean - base:+.4f} | {steps:,.0f} | {found[0]['parameters']:,} |"
            )


if __name__ == "__main__":
    main()
