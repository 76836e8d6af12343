"""What a training step costs at any size, beside one of a reference: so that tuning.py gives everyone the same time.

    python benchmarks/step_cost.py modern         an idle machine, ten minutes; writes results/cost-modern.json
    python benchmarks/step_cost.py rhapsode

The reference and a configuration take turns, a step each, one thread, one right after the other; medians of these
ratios count. Measured are the configurations that the search begins with, and all that are one field away from its
start. The time of a token is then a sum of terms whose weights are fitted to those that take less than DEAR times as
long as the reference, but for every CHECKED-th of them, and the result says by how much those are missed.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from contender import build_rival, moved_by
from modern import Modern
from parts import training_step, windows
from report import about, read, write
from searched import SPACES, WINDOW, Config, key_of, recipe_of
from torch import nn
from tuning import first

from rhapsode.machine import keep_freed_memory
from rhapsode.progress import bar, say
from rhapsode.recipe import Recipe
from rhapsode.recipe.presets import MODEL, OPTIMIZER
from rhapsode.tokens import BatchConfig

DEAR = 2.5  # nothing that costs so much is near the best at equal time
CHECKED = 6
ROUNDS, SECONDS = 9, 8.0  # a configuration is timed for so many rounds, or so many seconds
PAIRS = MODEL["pair_embeddings"]
# The preset coffee as it was when the first search began; it stays, so that what was measured can be compared.
REFERENCE: dict[str, dict[str, Any]] = {
    "model": {**MODEL, "embed_dim": 160, "hidden_dim": 224, "value_dim": 128, "feed_forward": 2},
    "optimizer": OPTIMIZER,
    "train": {"epochs": 1.0},
    "batch": {"window": 256, "batch_size": 16},
}
Step = Callable[[], object]


def terms_of_modern(config: Config) -> list[float]:
    """What a token's time is a sum of, but for weights: products, attention, elementwise work, head, optimisers."""
    layers, width, vocab, window = (config[name] for name in ("layers", "width", "vocab_size", "window"))
    inner, copies = 4 + 2 * config["feed_forward"], config["copy_dim"]
    matrices, tokens = layers * inner * width**2, config["batch_tokens"]
    return [
        *(1.0, matrices, layers * width * window, layers * config["heads"] * window, layers * width * inner),
        *(width * vocab, vocab, width, copies * width, (copies > 0) * window),
        *((2 * vocab + PAIRS) * width / tokens, matrices / tokens, matrices * width / tokens),
    ]


def terms_of_ours(config: Config) -> list[float]:
    """The same of our own recipe."""
    layers, embed, hidden, vocab = (config[name] for name in ("num_layers", "embed_dim", "hidden_dim", "vocab_size"))
    fed, tokens = config["feed_forward"] * embed, WINDOW * config["batch_size"]
    matrices = layers * (4 * hidden + 2 * fed) * embed
    return [
        *(1.0, layers * hidden * embed, layers * fed * embed, layers * hidden, layers * fed, layers * embed),
        *(hidden * config["value_dim"], config["value_dim"], embed * vocab, vocab, embed),
        *((2 * vocab + PAIRS) * embed / tokens, matrices / tokens, matrices * embed / tokens, layers / tokens),
    ]


def step_of_modern(config: Config) -> tuple[Step, int]:
    """A function that trains modern on the next batch, and how many tokens that has."""
    model = build_rival("modern", config)
    assert isinstance(model, Modern)
    move = moved_by("modern", model, config)
    turn = itertools.cycle(windows(config["vocab_size"], BatchConfig(model.config.window, model.config.batch_size)))

    def step() -> None:
        model.loss(*next(turn)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        move(50, 0.5)

    return step, config["batch_tokens"]


def step_of_ours(config: Config) -> tuple[Step, int]:
    """The same of our own recipe."""
    return step_of_recipe(recipe_of(config))


def step_of_recipe(recipe: Recipe) -> tuple[Step, int]:
    """The same of any recipe."""
    data = windows(recipe.model.vocab_size, recipe.batch)
    return training_step(recipe, data), data[0][0].numel()


class Kind(NamedTuple):
    """How one that is searched is timed, and what its time is made of."""

    step: Callable[[Config], tuple[Step, int]]
    terms: Callable[[Config], list[float]]


KINDS = {"modern": Kind(step_of_modern, terms_of_modern), "rhapsode": Kind(step_of_ours, terms_of_ours)}


def costs(kind: str, configs: list[Config], weights: list[float]) -> np.ndarray:
    """The time of a token, the reference's being 1."""
    return np.array([KINDS[kind].terms(config) for config in configs]) @ np.array(weights)


def cost_of(kind: str, config: Config) -> float:
    """The time of a token of a configuration, the reference's being 1; ValueError where nothing was measured."""
    known = read(f"cost-{kind}")
    if not known:
        raise ValueError(f"first: python benchmarks/step_cost.py {kind}, for what its steps cost on this machine")
    return float(known["measured"].get(key_of(config)) or costs(kind, [config], known["weights"])[0])


def measured(kind: str, configs: list[Config]) -> list[float]:
    """The cost of each."""
    reference, tokens = step_of_recipe(Recipe.from_sections(REFERENCE, vocab_size=2048))
    found = []
    with bar("measuring", len(configs), "configuration") as advance:
        for config in configs:
            (step, count), rounds, began = KINDS[kind].step(config), list[float](), time.monotonic()
            while len(rounds) <= ROUNDS and (len(rounds) < 3 or time.monotonic() < began + SECONDS):
                rounds.append(seconds(step) / seconds(reference))
            found.append(statistics.median(rounds[1:]) * tokens / count)
            advance(1)
    return found


def seconds(step: Step) -> float:
    """What a step takes."""
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    kind = parser.parse_args().kind
    torch.set_num_threads(1)
    keep_freed_memory()
    space, starts = SPACES[kind], [SPACES[kind].start]
    if kind == "modern":
        starts.append({**space.start, "copy_dim": 0})
    begun = first("modern, copy head" if kind == "modern" else kind)
    wanted = [*begun, *starts, *(each for start in starts for each in space.beside(start))]
    configs = {key_of(config): config for config in wanted}
    taken = dict(zip(configs, measured(kind, list(configs.values())), strict=True))
    near = [key for key in configs if taken[key] < DEAR]
    checked = near[::CHECKED]
    fitted = [key for key in near if key not in checked]
    rows = np.array([KINDS[kind].terms(configs[key]) for key in fitted]) / np.array([[taken[key]] for key in fitted])
    scale = np.linalg.norm(rows, axis=0)  # of rows in which a relative error counts
    weights = list(np.linalg.lstsq(rows / scale, np.ones(len(fitted)), rcond=1e-6)[0] / scale)
    missed = np.abs(costs(kind, [configs[key] for key in checked], weights) / [taken[key] for key in checked] - 1)
    middle, most = float(np.median(missed)), float(missed.max())
    say(f"{len(configs)} measured; {len(checked)} of them, not fitted, are missed by {middle:.1%}, {most:.1%} at most")
    found: dict[str, Any] = {"weights": weights, "missed_by": {"median": middle, "most": most}}
    found["measured"] = {key: round(cost, 4) for key, cost in taken.items()}
    write(f"cost-{kind}", {**about(), "threads": 1, **found})


if __name__ == "__main__":
    main()
