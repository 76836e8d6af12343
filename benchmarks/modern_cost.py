"""What a training step of `modern` costs at any size, beside one of our `coffee`: so tuning.py gives all the same time.

    python benchmarks/modern_cost.py       an idle machine, five minutes; writes results/modern-cost.json

Ours and a configuration take turns, a step each, one thread; the ratio is made within a round, and medians over the
rounds count. Measured are the configurations that the search begins with, and all that are one field away from its
start. The time of a token is then a sum of terms (`terms`) whose weights are fitted to those that take less than DEAR
times as long as coffee, but for every CHECKED-th of them, and the result says by how much those are missed.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from contender import build_rival, moved_by
from modern import Modern
from parts import recipe_of, training_step, windows
from recipe_changes import RECIPE
from report import about, read, write
from torch import nn
from tuning import SPACE, START, Config, first, key_of, neighbours

from rhapsode.machine import keep_freed_memory
from rhapsode.progress import bar, say

NAME = "modern-cost"
DEAR = 2.5  # nothing that costs so much is near the best at equal time
CHECKED = 6
ROUNDS, SECONDS = 9, 8.0  # a configuration is timed for so many rounds, or so many seconds


def terms(config: Config) -> list[float]:
    """What a token's time is a sum of, but for weights: products, attention, elementwise work, head, optimisers."""
    layers, width, vocab, window = (config[name] for name in ("layers", "width", "vocab_size", "window"))
    inner, copies = 4 + 2 * config["feed_forward"], config["copy_dim"]
    matrices = layers * inner * width**2
    looked_up = (2 * vocab + config["pair_embeddings"]) * width
    return [
        1.0,
        matrices,
        layers * width * window,
        layers * config["heads"] * window,
        layers * width * inner,
        width * vocab,
        vocab,
        width,
        copies * width,
        (copies > 0) * window,
        looked_up / config["batch_tokens"],
        matrices / config["batch_tokens"],
        matrices * width / config["batch_tokens"],
    ]


def costs(configs: list[Config], weights: list[float]) -> np.ndarray:
    """The time of a token, coffee's being 1."""
    return np.array([terms(config) for config in configs]) @ np.array(weights)


def cost_of(config: Config) -> float:
    """The time of a token of this configuration, a token of coffee being 1; ValueError where it was not measured."""
    known = read(NAME)
    if not known:
        raise ValueError("first: python benchmarks/modern_cost.py, for what a step of modern costs on this machine")
    return float(known["measured"].get(key_of(config)) or costs([config], known["weights"])[0])


def step_of(config: Config) -> Callable[[], None]:
    """A function that trains modern on the next batch."""
    model = build_rival("modern", config)
    assert isinstance(model, Modern)
    move, size = moved_by("modern", model, config), (model.config.batch_size, model.config.window)
    generator = torch.Generator().manual_seed(1)
    frequencies = 1 / torch.arange(1, config["vocab_size"] + 1)
    rows = torch.multinomial(frequencies, size[0] * (size[1] + 1), True, generator=generator).view(size[0], -1)

    def step() -> None:
        model.loss(rows[:, :-1], rows[:, 1:]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        move(50, 0.5)

    return step


def measured(configs: list[Config]) -> list[float]:
    """The cost of each."""
    recipe = recipe_of("coffee", RECIPE)
    data = windows(recipe)
    ours, tokens = training_step(recipe, data), data[0][0].numel()
    found = []
    with bar("measuring", len(configs), "configuration") as advance:
        for config in configs:
            theirs, rounds, began = step_of(config), list[float](), time.monotonic()
            while len(rounds) <= ROUNDS and (len(rounds) < 3 or time.monotonic() < began + SECONDS):
                rounds.append(seconds(theirs) / seconds(ours))
            ratio = statistics.median(rounds[1:])
            found.append(ratio * tokens / config["batch_tokens"])
            advance(1)
    return found


def seconds(step: Callable[[], None]) -> float:
    """What a step takes."""
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    starts = (START, {**START, "copy_dim": 0})
    beside = [neighbours(config, field, steps) for config in starts for field, steps in SPACE.items()]
    configs = {key_of(config): config for config in (*first("modern, copy head"), *starts, *itertools.chain(*beside))}
    taken = dict(zip(configs, measured(list(configs.values())), strict=True))
    near = [key for key in configs if taken[key] < DEAR]
    checked = near[::CHECKED]
    fitted = [key for key in near if key not in checked]
    rows = np.array([terms(configs[key]) for key in fitted]) / np.array([[taken[key]] for key in fitted])
    scale = np.linalg.norm(rows, axis=0)  # of rows in which a relative error counts
    weights = list(np.linalg.lstsq(rows / scale, np.ones(len(fitted)), rcond=1e-6)[0] / scale)
    missed = np.abs(costs([configs[key] for key in checked], weights) / [taken[key] for key in checked] - 1)
    middle, most = float(np.median(missed)), float(missed.max())
    say(f"{len(configs)} measured; {len(checked)} of them, not fitted, are missed by {middle:.1%}, {most:.1%} at most")
    found: dict[str, Any] = {"weights": weights, "missed_by": {"median": middle, "most": most}}
    write(NAME, {**about(), "threads": 1, **found, "measured": {key: round(cost, 4) for key, cost in taken.items()}})


if __name__ == "__main__":
    main()
