"""What a part of a recipe costs: a training step of a preset without it, or with another, beside the preset's own.

    python benchmarks/parts.py                                    coffee, two threads, two minutes; prints only
    python benchmarks/parts.py --preset minute --only "no copy head"
    python benchmarks/parts.py --threads 1 --write                results/parts.json, which ablations.py goes by

A step is that of `rhapsode train`: loss, backward, clipping, Muon and AdamW, on windows of random tokens whose
frequencies fall as 1 / rank. First the loss and all gradients of each are compared with those of the plain form. Then
each takes turns with the preset's own, a step each, one right after the other; medians of these ratios count.
"""

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable

import torch
from recipe_changes import CHANGES, RECIPE, changes_of
from report import about, read, write
from torch import Tensor, nn

from rhapsode.bench import burst
from rhapsode.kernels import form
from rhapsode.machine import keep_freed_memory
from rhapsode.model import LanguageModel, build_model
from rhapsode.progress import say
from rhapsode.recipe import Recipe
from rhapsode.recipe.presets import PRESETS, VOCAB_SIZES
from rhapsode.tokens import BatchConfig
from rhapsode.training.optimizer import Optimizers

NAME = "parts"
BATCHES = 8
FEWEST_ROUNDS = 5
TOLERANCE = 1e-4  # relative, float32


def recipe_of(preset: str, change: str) -> Recipe:
    """The preset's recipe with one thing changed."""
    return Recipe.from_sections(PRESETS[preset], VOCAB_SIZES[preset]).with_changes(**CHANGES[change].sections)


def windows(vocab_size: int, batch: BatchConfig) -> list[tuple[Tensor, Tensor]]:
    """Batches of (tokens, targets)."""
    generator = torch.Generator().manual_seed(1)
    frequencies = 1 / torch.arange(1, vocab_size + 1)
    shape = (BATCHES, batch.batch_size, batch.window + 1)
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
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--write", action="store_true", help=f"keep the ratios in results/{NAME}.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    slower = [name for name, each in changes_of(PRESETS[arguments.preset], often=False).items() if each.sections]
    names = [RECIPE, *(arguments.only or slower)]
    recipes = {name: recipe_of(arguments.preset, name) for name in names}
    data = {name: windows(recipe.model.vocab_size, recipe.batch) for name, recipe in recipes.items()}
    for name, recipe in recipes.items():
        difference = largest_difference(build_model(recipe.model, seed=0), *data[name][0])
        say(f"{name}: the forms differ by {difference:.0e}")
        if not difference < TOLERANCE:
            raise ValueError(f"{name}: the fast form differs from the plain one by {difference:.1e}")
    steps = {name: training_step(recipe, data[name]) for name, recipe in recipes.items()}
    for step in steps.values():
        step()
    pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    ends = time.monotonic() + arguments.seconds
    while len(pairs[RECIPE]) < FEWEST_ROUNDS or time.monotonic() < ends:
        for name, step in steps.items():
            pairs[name].append((burst(steps[RECIPE], 1), burst(step, 1)))
    tokens = {name: batches[0][0].numel() for name, batches in data.items()}
    print(f"{arguments.preset}, {arguments.threads} threads, {len(pairs[RECIPE])} rounds, {json.dumps(about())}\n")
    print("| | milliseconds per step | tokens/s | a token's time, of the recipe's | quartiles |\n|---|---|---|---|---|")
    found = {}
    for name in names:
        seconds = statistics.median(changed for _, changed in pairs[name])
        ratios = sorted(tokens[RECIPE] / tokens[name] * changed / own for own, changed in pairs[name])
        middle, low, high = (round(ratios[int(share * (len(ratios) - 1))], 3) for share in (0.5, 0.25, 0.75))
        print(f"| {name} | {1e3 * seconds:.1f} | {tokens[name] / seconds:,.0f} | {middle} | {low} to {high} |")
        found[name] = {"time": middle, "quartiles": [low, high]}
    if arguments.write:
        key = f"{arguments.preset}, {arguments.threads} threads"
        measured = {**about(), "threads": arguments.threads, "rounds": len(pairs[RECIPE]), "changes": found}
        write(NAME, {**read(NAME), key: measured})


if __name__ == "__main__":
    main()
