"""The sizes, rates, window and vocabulary of `modern`, looked for at the budget, run by run.

    python benchmarks/tuning.py                     what was tried, as a table, and what comes next; trains nothing

side_by_side.py trains what is asked for here, two at once, one core each, seed 0, scored on the first 500 stories of
VALID, and writes each run to results/tuning-modern.json. The search goes along one field at a time, from START: the two
neighbours of the best so far train side by side, the better of them takes its place if it is better, and the search
goes on in that direction, two steps at once, until nothing is better; then the next field follows. It ends when no
neighbour is left that was not tried, or after RUNS. With a copy head first; without, it starts where that one ended.
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from modern import ModernConfig
from report import read, write

NAME = "tuning-modern"
COPY_DIM = 64
RUNS = {"modern, copy head": 24, "modern": 12}  # at each budget; ours had no more
# In the order in which they are visited: what decides most comes first.
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
START = asdict(ModernConfig(copy_dim=COPY_DIM))
Config = dict[str, Any]


def search(
    start: Config, space: Mapping[str, Sequence[Any]], values: Mapping[str, float]
) -> tuple[Config, list[Config]]:
    """The best configuration so far, and which are to be tried next: at most two, none where the search has ended.

    values: the loss of each that was tried, by `key_of`; infinite where training diverged. The search is played again
    from its start, so that it can be stopped anywhere.
    """
    best, unchanged, fields = start, 0, list(space)
    if key_of(best) not in values:
        first = [config for config in neighbours(best, fields[0], space[fields[0]]) if key_of(config) not in values]
        return best, [best, *first[:1]]
    while unchanged < len(fields):
        field = fields[0]
        beside = neighbours(best, field, space[field])
        missing = [config for config in beside if key_of(config) not in values]
        if missing:
            further = neighbours(missing[0], field, space[field]) if len(missing) == 1 else []
            new = [config for config in further if config != best and key_of(config) not in values]
            return best, [*missing, *new]
        better = min([best, *beside], key=lambda config: values[key_of(config)])
        if better is best:
            unchanged, fields = unchanged + 1, [*fields[1:], field]
        else:
            best, unchanged = better, 0
    return best, []


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


def runs_of(minutes: float, who: str) -> list[dict[str, Any]]:
    """What was tried at a budget, in its order."""
    return [run for run in read(NAME).get("runs", []) if (run["minutes"], run["who"]) == (minutes, who)]


def next_to_try(minutes: float, who: str) -> list[Config]:
    """What of `modern` or `modern, copy head` is to be tried next at a budget: at most two, none at the end."""
    start = START
    if who == "modern":
        start = {**best_modern(minutes, True), "copy_dim": 0}
    tried = runs_of(minutes, who)
    values = {key_of(run["recipe"]): math.inf if run["value"] is None else run["value"] for run in tried}
    _, following = search(start, SPACE, values)
    return following[: max(0, RUNS[who] - len(tried))]


def best_modern(minutes: float, copy_head: bool) -> Config:
    """The best that was found at the budget, or at the one nearest to it that was searched; START where none was."""
    who = "modern, copy head" if copy_head else "modern"
    budgets = {run["minutes"] for run in read(NAME).get("runs", []) if run["who"] == who}
    nearest = min(budgets, key=lambda other: abs(math.log(other / minutes)), default=minutes)
    tried = [run for run in runs_of(nearest, who) if run["value"] is not None]
    if not tried:
        return START if copy_head else {**best_modern(minutes, True), "copy_dim": 0}
    best: Config = min(tried, key=lambda run: run["value"])["recipe"]
    return best


def keep(run: dict[str, Any]) -> None:
    """Adds a run to the results."""
    write(NAME, {"runs": [*read(NAME).get("runs", []), run]})


def print_table(minutes: float, who: str) -> None:
    """Markdown: every run in its order, what was varied from the start, what it came to."""
    best, following = best_modern(minutes, who != "modern"), next_to_try(minutes, who)
    names = [name for name in START if name in SPACE]
    print(f"{who}, {minutes:g} minutes\n\n| {' | '.join(names)} | bits per byte | steps | tokens/s |")
    print("|---" * (len(names) + 3) + "|")
    for run in runs_of(minutes, who):
        value = "diverged" if run["value"] is None else f"{run['value']:.4f}"
        shown = f"**{value}**" if run["recipe"] == best else value
        pace = f"{run['tokens'] / run['seconds']:,.0f}" if run["value"] is not None else ""
        steps = f"{run['steps']:,}" if run["value"] is not None else ""
        fields = " | ".join(f"{run['recipe'][name]:g}" for name in names)
        print(f"| {fields} | {shown} | {steps} | {pace} |")
    left = f"next: {'; '.join(map(key_of, following))}" if following else "the search has ended"
    print(f"\n{left}\n")


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    runs = read(NAME).get("runs", [])
    for minutes in sorted({run["minutes"] for run in runs}):
        for who in RUNS:
            print_table(minutes, who)
    if not runs:
        print("nothing was tried yet: side_by_side.py trains it")


if __name__ == "__main__":
    main()
