"""What a part of the model costs: a training step of a preset without it, or with another, beside the preset's own.

    python benchmarks/parts.py                                    coffee, a minute
    python benchmarks/parts.py --preset minute --threads 1 --only "no copy head"

A step is that of `rhapsode train`: loss, backward, clipping, Muon and AdamW, on windows of random tokens whose
frequencies fall as 1 / rank. First the loss and all gradients of each are compared with those of the plain form. Then
they take turns, a burst of steps each; ratios are made within a round, and medians over the rounds are printed.
"""

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from report import about
from torch import Tensor, nn

from rhapsode.bench import burst
from rhapsode.kernels import form
from rhapsode.machine import keep_freed_memory
from rhapsode.model import LanguageModel, build_model
from rhapsode.progress import say
from rhapsode.recipe import Recipe
from rhapsode.recipe.presets import PRESETS, VOCAB_SIZES
from rhapsode.training.optimizer import Optimizers

PRESET = "the preset"
CHANGES: dict[str, dict[str, Any]] = {
    PRESET: {},
    "no copy head": {"copy_dim": 0},
    "no output gate": {"gate": False},
    "an Elman recurrence, no output gate": {"cell": "elman", "gate": False},
    "no attention": {"attention": "none"},
    "no feed-forward part": {"feed_forward": 0},
    "no embeddings of pairs": {"pair_embeddings": 0},
    "one block": {"num_layers": 1},
}
BATCHES = 8
CALLS_IN_BURST = 3
FEWEST_ROUNDS = 5
TOLERANCE = 1e-4  # relative, float32


def recipe_of(preset: str, change: dict[str, Any], vocab_size: int) -> Recipe:
    """The preset's recipe with some fields of its model changed."""
    return Recipe.from_sections(PRESETS[preset], vocab_size).with_changes(model=change)


def windows(recipe: Recipe) -> list[tuple[Tensor, Tensor]]:
    """Batches of (tokens, targets)."""
    generator = torch.Generator().manual_seed(1)
    frequencies = 1 / torch.arange(1, recipe.model.vocab_size + 1)
    shape = (BATCHES, recipe.batch.batch_size, recipe.batch.window + 1)
    ids = torch.multinomial(frequencies, torch.Size(shape).numel(), replacement=True, generator=generator).view(shape)
    return [(rows[:, :-1], rows[:, 1:]) for rows in ids]


def largest_difference(model: LanguageModel, tokens: Tensor, targets: Tensor) -> float:
    """Between the two forms, of the loss and of all gradients, relative to their norm or a hundredth of the whole's."""
    found = []
    for kind in ("plain", "fast"):
        with form(kind):
            loss, _ = model.loss(tokens, targets)
        found.append([loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))])
    floor = nn.utils.get_total_norm(found[0][1:]) / 100
    return max(float((a - b).norm() / torch.maximum(a.norm(), floor)) for a, b in zip(*found, strict=True))


def training_step(recipe: Recipe, data: list[tuple[Tensor, Tensor]]) -> Callable[[], None]:
    """A function that trains a model on the next batch."""
    model, turn = build_model(recipe.model, seed=0), itertools.cycle(data)
    optimizers = Optimizers(model, recipe.optimizer)

    def step() -> None:
        model.loss(*next(turn))[0].backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.optimizer.clip_norm)
        optimizers.step(0.01)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="coffee")
    parser.add_argument("--only", nargs="+", choices=CHANGES, metavar="CHANGE", help="beside the preset itself")
    parser.add_argument("--vocab-size", type=int, help="otherwise the preset's")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=60.0)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    names = [PRESET, *(arguments.only or [name for name in CHANGES if name != PRESET])]
    vocab_size = arguments.vocab_size or VOCAB_SIZES[arguments.preset]
    recipes = {name: recipe_of(arguments.preset, CHANGES[name], vocab_size) for name in names}
    data = windows(recipes[PRESET])
    for name, recipe in recipes.items():
        difference = largest_difference(build_model(recipe.model, seed=0), *data[0])
        say(f"{name}: the forms differ by {difference:.0e}")
        if not difference < TOLERANCE:
            raise ValueError(f"{name}: the fast form differs from the plain one by {difference:.1e}")
    steps = {name: training_step(recipe, data) for name, recipe in recipes.items()}
    rounds: list[dict[str, float]] = []
    for step in steps.values():
        step()
    ends = time.monotonic() + arguments.seconds
    while len(rounds) < FEWEST_ROUNDS or time.monotonic() < ends:
        rounds.append({name: burst(step, CALLS_IN_BURST) for name, step in steps.items()})
    tokens = data[0][0].numel()
    print(f"{arguments.preset}, {arguments.threads} threads, {len(rounds)} rounds, {json.dumps(about())}\n")
    print("| | milliseconds per step | tokens/s | of the preset's time | quartiles |\n|---|---|---|---|---|")
    for name in names:
        seconds = statistics.median(times[name] for times in rounds)
        ratios = sorted(times[name] / times[PRESET] for times in rounds)
        middle, low, high = (ratios[int(share * (len(ratios) - 1))] for share in (0.5, 0.25, 0.75))
        print(f"| {name} | {1e3 * seconds:.1f} | {tokens / seconds:,.0f} | {middle:.3f} | {low:.3f} to {high:.3f} |")


if __name__ == "__main__":
    main()
