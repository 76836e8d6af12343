"""The sizes, rates, window and vocabulary of `modern`, looked for run by run.

    python benchmarks/tuning.py                                         what was tried, as a table; trains nothing
    python benchmarks/tuning.py TRAIN.jsonl VALID.jsonl                 what is missing: hours of two cores
    python benchmarks/tuning.py TRAIN.jsonl VALID.jsonl --device cuda --at-once 6       the same on a GPU: minutes

Every configuration trains for the same time, counted in tokens: as many as it reads on one core while our `coffee`
reads TOKENS (four minutes), by the cost of a step that modern_cost.py measured. Seed 0, scored on the first 500 stories
of VALID. First FIRST configurations, START and others drawn by chance; then, again and again, all that are one field
away from the best so far, until none of them is better or MOST were tried. With a copy head first; without, it begins
where that one ended. Each run is added to results/tuning-modern.json when it is done, so that the search goes on where
it was stopped.
"""

import argparse
import math
import random
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from modern import ModernConfig
from pool import at_once
from report import about, read, write

from rhapsode.evaluation import bits_per_byte
from rhapsode.machine import device_name
from rhapsode.progress import say

NAME = "tuning-modern"
COPY_DIM = 64
TOKENS = 2_000_000  # of coffee
FIRST = 40
MOST = {"modern, copy head": 110, "modern": 30}
SPACE: dict[str, Sequence[Any]] = {
    "width": (96, 128, 160, 192, 224, 256, 320),
    "vocab_size": (1024, 2048, 4096),
    "layers": (1, 2, 3, 4),
    "feed_forward": (1, 2, 3, 4),
    "window": (64, 128, 256, 512),
    "batch_tokens": (2048, 4096, 8192),
    "learning_rate": (0.005, 0.01, 0.02, 0.04),
    "matrix_learning_rate": (0.005, 0.01, 0.02, 0.04),
    "heads": (2, 4, 8),
}
# Where the best lay at an edge of SPACE, one step beyond it.
WIDER = {**SPACE, "batch_tokens": (1024, 2048, 4096, 8192)}
WIDER |= dict.fromkeys(("learning_rate", "matrix_learning_rate"), (0.005, 0.01, 0.02, 0.04, 0.08))
START = asdict(ModernConfig(copy_dim=COPY_DIM))
Config = dict[str, Any]


def drawn(count: int, seed: int) -> list[Config]:
    """So many different configurations by chance, with a copy head."""
    draw, found = random.Random(seed), dict[str, Config]()
    while len(found) < count:
        config = {**START, **{field: draw.choice(steps) for field, steps in SPACE.items()}}
        if _can_be(config):
            found[key_of(config)] = config
    return list(found.values())


def following(begun: list[Config], most: int, tried: Sequence[tuple[Config, float]]) -> list[Config]:
    """Which configurations are to be tried next: what the search begins with, then what is beside the best that was
    tried; none where all of that was tried, or so many were.

    tried: each with its loss; infinite where training diverged.
    """
    known = {key_of(config) for config, _ in tried}
    wanted = [config for config in begun if key_of(config) not in known]
    if not wanted:
        best, _ = min(tried, key=lambda one: one[1])
        beside = [each for field, steps in WIDER.items() for each in neighbours(best, field, steps)]
        wanted = [config for config in beside if key_of(config) not in known]
    return wanted[: max(0, most - len(tried))]


def neighbours(config: Config, field: str, steps: Sequence[Any]) -> list[Config]:
    """The configuration with the field one step lower, and one step higher; those that cannot be are left out."""
    place = steps.index(config[field])
    moved = [{**config, field: steps[i]} for i in (place - 1, place + 1) if 0 <= i < len(steps)]
    return [each for each in moved if _can_be(each)]


def _can_be(config: Config) -> bool:
    try:
        ModernConfig(**config)
    except ValueError:
        return False
    return True


def key_of(config: Config) -> str:
    """A configuration as the name of its result."""
    return ", ".join(f"{name} {config[name]:g}" for name in sorted(config))


def runs_of(who: str) -> list[dict[str, Any]]:
    """What was tried, in its order."""
    return [run for run in read(NAME).get("runs", []) if run["who"] == who]


def first(who: str) -> list[Config]:
    """What the search begins with."""
    return [{**best_modern(True), "copy_dim": 0}] if who == "modern" else [START, *drawn(FIRST - 1, seed=0)]


def next_to_try(who: str) -> list[Config]:
    """What of `modern` or `modern, copy head` is to be tried next; none at the end."""
    tried = [(run["recipe"], math.inf if run["value"] is None else run["value"]) for run in runs_of(who)]
    return following(first(who), MOST[who], tried)


def best_modern(copy_head: bool) -> Config:
    """The best that was found; START where none was."""
    tried = [run for run in runs_of("modern, copy head" if copy_head else "modern") if run["value"] is not None]
    if not tried:
        return START if copy_head else {**best_modern(True), "copy_dim": 0}
    best: Config = min(tried, key=lambda run: run["value"])["recipe"]
    return best


def trained(files: dict[str, str], recipe: Config, tokens: int, device: str) -> dict[str, Any]:
    """One run, as the results keep it; value: None where the loss was no number any more."""
    from contender import stores, train_rival

    torch.set_num_threads(1)
    _, texts = stores(files, recipe["vocab_size"])
    valid = texts["valid"]
    try:
        _, result = train_rival("modern", recipe, texts["train"], valid, {"tokens": tokens}, 0, 1, device)
    except FloatingPointError as error:
        return {"recipe": recipe, "value": None, "why": str(error).partition(";")[0]}
    value = round(bits_per_byte(result.curve[-1][1], valid.num_bytes), 4)
    sizes = {"parameters": result.parameters, "steps": result.steps, "tokens": result.tokens}
    return {"recipe": recipe, "value": value, **sizes}


def keep(run: dict[str, Any]) -> None:
    """Adds a run to the results."""
    write(NAME, {"runs": [*read(NAME).get("runs", []), run]})


def search(files: dict[str, str], device: str, workers: int) -> None:
    """Trains what is missing until nothing is."""
    from modern_cost import cost_of

    where = {name: value for name, value in about().items() if name in ("commit", "machine")}
    where["device"] = device_name(device)
    with at_once(workers) as pool:
        for who in MOST:
            while configs := next_to_try(who):
                orders = [(config, round(TOKENS / cost_of(config))) for config in configs]
                futures = [pool.submit(trained, files, config, tokens, device) for config, tokens in orders]
                for future in as_completed(futures):
                    keep({"who": who, **future.result(), **where})
                best = min(run["value"] for run in runs_of(who) if run["value"] is not None)
                say(f"{who}: {len(runs_of(who))} tried, the best {best}")


def print_table(who: str) -> None:
    """Markdown: every run in its order, what was varied, what it came to."""
    names = [name for name in START if name in SPACE]
    print(f"{who}\n\n| {' | '.join(names)} | bits per byte | tokens | parameters |")
    print("|---" * (len(names) + 3) + "|")
    for run in runs_of(who):
        value = "diverged" if run["value"] is None else f"{run['value']:.4f}"
        shown = f"**{value}**" if run["recipe"] == best_modern(who != "modern") else value
        sizes = ["" if run["value"] is None else f"{run[name]:,}" for name in ("tokens", "parameters")]
        cells = [*(f"{run['recipe'][name]:g}" for name in names), shown, *sizes]
        print(f"| {' | '.join(cells)} |")
    print("\nthe search has ended\n" if not next_to_try(who) else "\nthe search goes on\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", metavar="FILE", help="TRAIN.jsonl VALID.jsonl")
    parser.add_argument("--device", default="cpu", help="what trains: cpu or cuda")
    parser.add_argument("--at-once", type=int, default=2, metavar="N", help="how many train at once")
    arguments = parser.parse_args()
    if not arguments.files:
        for who in MOST:
            print_table(who)
        return 0
    if len(arguments.files) != 2:
        parser.error("name TRAIN.jsonl VALID.jsonl, or nothing")
    from yardstick import FIRST as SCORED

    train, valid = arguments.files
    with tempfile.TemporaryDirectory() as folder:
        try:
            scored = Path(folder) / "first.jsonl"
            with open(valid, encoding="utf-8") as stream:
                scored.write_text("".join(line for line, _ in zip(stream, range(SCORED), strict=False)), "utf-8")
            search({"train": train, "valid": str(scored)}, arguments.device, arguments.at_once)
        except (OSError, ValueError) as error:
            parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
