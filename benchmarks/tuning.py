"""The sizes, rates, batches and vocabulary of `modern` and of our own recipe, looked for run by run, in the same way.

    python benchmarks/tuning.py                                         what was tried, as tables; trains nothing
    python benchmarks/tuning.py TRAIN.jsonl VALID.jsonl                 what is missing: hours of two cores
    python benchmarks/tuning.py TRAIN.jsonl VALID.jsonl --device cuda --at-once 6       the same on a GPU: minutes
    python benchmarks/tuning.py TRAIN.jsonl VALID.jsonl --only rhapsode

Every configuration trains for the same time, counted in tokens: what it reads on one core while the reference of
step_cost.py reads TOKENS (some four minutes), by the cost of a step that step_cost.py measured. Seed 0, scored on the
first 500 stories of VALID. First BEGUN configurations, the start and others drawn by chance (searched.py); then, again
and again, all that are one field away from the best so far, until none of them is better or MOST were tried. `modern`
without a copy head begins where the one with it ended. Each run is added to results/tuning-KIND.json when it is done,
so that the search goes on where it was stopped.
"""

import argparse
import math
import sys
import tempfile
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any

import torch
from pool import at_once
from report import about, read, write
from searched import MODERN, SPACES, Config, sections_of

from rhapsode.evaluation import bits_per_byte
from rhapsode.machine import device_name
from rhapsode.progress import say

TOKENS = 2_000_000  # of the reference
BEGUN = 40
MOST = {"modern, copy head": 110, "modern": 30, "rhapsode": 110}


def kind_of(who: str) -> str:
    """modern or rhapsode."""
    return who.partition(",")[0]


def runs_of(who: str) -> list[dict[str, Any]]:
    """What was tried, in its order."""
    return [run for run in read(f"tuning-{kind_of(who)}").get("runs", []) if run["who"] == who]


def first(who: str) -> list[Config]:
    """What the search begins with."""
    if who == "modern":
        return [{**best_modern(True), "copy_dim": 0}]
    space = SPACES[kind_of(who)]
    return [space.start, *space.drawn(BEGUN - 1, seed=0)]


def next_to_try(who: str) -> list[Config]:
    """What is to be tried next; nothing at the end."""
    tried = [(run["recipe"], math.inf if run["value"] is None else run["value"]) for run in runs_of(who)]
    return SPACES[kind_of(who)].following(first(who), MOST[who], tried)


def best_of(who: str) -> Config | None:
    """The best that was tried; None where nothing was."""
    tried = [run for run in runs_of(who) if run["value"] is not None]
    best: Config | None = min(tried, key=lambda run: run["value"])["recipe"] if tried else None
    return best


def best_modern(copy_head: bool) -> Config:
    """The best `modern` that was found; the start where none was."""
    if copy_head:
        return best_of("modern, copy head") or MODERN.start
    return best_of("modern") or {**best_modern(True), "copy_dim": 0}


def trained(who: str, files: dict[str, str], config: Config, tokens: int, device: str) -> dict[str, Any]:
    """One run, as the results keep it; value: None where the loss was no number any more."""
    from contender import stores, train_rival
    from quality import Data, ours

    torch.set_num_threads(1)
    tokenizer, texts = stores(files, config["vocab_size"])
    valid = texts["valid"]
    budget: dict[str, float] = {"tokens": tokens}
    try:
        if kind_of(who) == "modern":
            _, result = train_rival("modern", config, texts["train"], valid, budget, 0, 1, device)
        else:
            data = Data("tinystories", tokenizer, texts["train"], valid, valid.num_bytes)
            result = ours(sections_of(config), data, budget, 0, 1, device)
    except FloatingPointError as error:
        return {"recipe": config, "value": None, "why": str(error).partition(";")[0]}
    value = round(bits_per_byte(result.curve[-1][1], valid.num_bytes), 4)
    sizes = {"parameters": result.parameters, "steps": result.steps, "tokens": result.tokens}
    return {"recipe": config, "value": value, **sizes}


def keep(run: dict[str, Any]) -> None:
    """Adds a run to the results."""
    name = f"tuning-{kind_of(run['who'])}"
    write(name, {"runs": [*read(name).get("runs", []), run]})


def search(who: str, files: dict[str, str], device: str, workers: int) -> None:
    """Trains what is missing until nothing is."""
    from step_cost import cost_of

    where = {name: value for name, value in about().items() if name in ("commit", "machine")}
    where["device"] = device_name(device)
    with at_once(workers) as pool:
        while configs := next_to_try(who):
            orders = [(config, round(TOKENS / cost_of(kind_of(who), config))) for config in configs]
            futures = [pool.submit(trained, who, files, config, tokens, device) for config, tokens in orders]
            for future in as_completed(futures):
                keep({"who": who, **future.result(), **where})
            best = min((run["value"] for run in runs_of(who) if run["value"] is not None), default=None)
            say(f"{who}: {len(runs_of(who))} tried, the best {best}")


def print_table(who: str) -> None:
    """Markdown: every run in its order, what was varied, what it came to."""
    names = list(SPACES[kind_of(who)].steps)
    print(f"{who}\n\n| {' | '.join(names)} | bits per byte | tokens | parameters |")
    print("|---" * (len(names) + 3) + "|")
    for run in runs_of(who):
        value = "diverged" if run["value"] is None else f"{run['value']:.4f}"
        shown = f"**{value}**" if run["recipe"] == best_of(who) else value
        sizes = ["" if run["value"] is None else f"{run[name]:,}" for name in ("tokens", "parameters")]
        cells = [*(f"{run['recipe'][name]:g}" for name in names), shown, *sizes]
        print(f"| {' | '.join(cells)} |")
    print("\nthe search has ended\n" if not next_to_try(who) else "\nthe search goes on\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", metavar="FILE", help="TRAIN.jsonl VALID.jsonl")
    parser.add_argument("--only", nargs="+", choices=MOST, default=list(MOST), metavar="WHO", help=", ".join(MOST))
    parser.add_argument("--device", default="cpu", help="what trains: cpu or cuda")
    parser.add_argument("--at-once", type=int, default=2, metavar="N", help="how many train at once")
    arguments = parser.parse_args()
    if not arguments.files:
        for who in arguments.only:
            print_table(who)
        return 0
    if len(arguments.files) != 2:
        parser.error("name TRAIN.jsonl VALID.jsonl, or nothing")
    from yardstick import first_lines

    train, valid = arguments.files
    with tempfile.TemporaryDirectory() as folder:
        try:
            scored = Path(folder) / "first.jsonl"
            scored.write_text("".join(first_lines(valid)), encoding="utf-8")
            for who in arguments.only:
                search(who, {"train": train, "valid": str(scored)}, arguments.device, arguments.at_once)
        except (OSError, ValueError) as error:
            parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
