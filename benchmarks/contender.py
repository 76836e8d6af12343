"""How a rival trains: the same stores, minutes and threads as ours, by its own recipe.

    python benchmarks/contender.py '{"who": "lstm", "recipe": {}, "data": {"train": "a.jsonl", "valid": "b.jsonl"},
                                     "minutes": 0.1, "seed": 0}'

The program is what side_by_side.py starts, a process for each: it prints one JSON object.
"""

import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, fields
from functools import partial
from typing import Any, NamedTuple

import torch
from modern import Modern, ModernConfig
from quality_rivals import CONTEXT, LSTM, Transformer
from torch import nn
from yardstick import first_stories, yardstick

from rhapsode.machine import keep_freed_memory
from rhapsode.progress import bar
from rhapsode.recipe import OptimizerConfig
from rhapsode.sources import SourceConfig, open_source
from rhapsode.tokenizer import Tokenizer
from rhapsode.tokens import IGNORED, BatchConfig, Batcher, TokenStore, prepare, tokenizer_for
from rhapsode.training import Optimizers

Rival = Transformer | LSTM | Modern
BATCH_SIZE = 32  # of the transformer in the manner of GPT-2 and of the LSTM
TEXTS_AT_ONCE = 64  # that are scored beside each other
WARMUP_STEPS = {"transformer": 100, "lstm": 100, "modern": 50}
# The best peaks of those that were tried for two minutes on TinyStories; what was tried: benchmarks/README.md.
RECIPES: dict[str, dict[str, Any]] = {
    "transformer": {"vocab_size": 1024, "peak": 8e-3, "dropout": 0.0},
    "lstm": {"vocab_size": 1024, "peak": 4.8e-2, "dropout": 0.0},
    "modern": asdict(ModernConfig()),
}


class Result(NamedTuple):
    """What came of a training. curve: (seconds of training, nats summed over the validation data) at each look, the
    last at the end; tokens: that it was trained on."""

    parameters: int
    steps: int
    tokens: int
    seconds: float
    curve: list[tuple[float, float]]


def build_rival(who: str, recipe: dict[str, Any]) -> Rival:
    """A fresh model; ValueError for fields that the rival does not have."""
    known = RECIPES[who].keys()
    if recipe.keys() != known:
        raise ValueError(f"the recipe of {who} has the fields {', '.join(known)}, got {', '.join(recipe)}")
    if who == "modern":
        return Modern(ModernConfig(**recipe))
    return {"transformer": Transformer, "lstm": LSTM}[who](recipe["vocab_size"], recipe["dropout"])


def moved_by(who: str, model: Rival, recipe: dict[str, Any]) -> Callable[[int, float], None]:
    """The rival's optimiser: a function of the step and of the share of the time that is spent, which makes the update.

    modern has ours: Muon beside AdamW, falling linearly to nothing. The others: AdamW, cosine to a twentieth.
    """
    if who == "modern":
        known = {field.name for field in fields(OptimizerConfig)}
        ours = Optimizers(model, OptimizerConfig(**{name: recipe[name] for name in recipe.keys() & known}))

        def move(step: int, spent: float) -> None:
            ours.step(max(1e-6, min((step + 1) / WARMUP_STEPS[who], 1 - spent)))

        return move
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim != 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=recipe["peak"], betas=(0.9, 0.99), fused=True)

    def move_adam(step: int, spent: float) -> None:
        share = min((step + 1) / WARMUP_STEPS[who], 0.05 + 0.95 * (0.5 + 0.5 * math.cos(math.pi * spent)))
        for group in adam.param_groups:
            group["lr"] = recipe["peak"] * share
        adam.step()
        adam.zero_grad()

    return move_adam


def train_rival(
    who: str,
    recipe: dict[str, Any],
    train: TokenStore,
    valid: TokenStore,
    budget: dict[str, float],
    seed: int,
    looks: int,
    device: str = "cpu",
) -> tuple[Rival, Result]:
    """Trains for a budget of `minutes`, validation not counted, or of `tokens`.

    Raises FloatingPointError where the loss is no number.
    """
    torch.manual_seed(seed)
    model = build_rival(who, recipe).to(device)
    move = moved_by(who, model, recipe)
    batches = BatchConfig(CONTEXT, BATCH_SIZE)
    if isinstance(model, Modern):
        batches = BatchConfig(model.config.window, model.config.batch_size)
    batcher, tokens = Batcher(train, batches, seed), batches.window * batches.batch_size
    seconds, step = 0.0, 0
    curve: list[tuple[float, float]] = []

    def spent() -> float:
        return seconds / (60 * budget["minutes"]) if "minutes" in budget else step * tokens / budget["tokens"]

    with bar("training", 100.0, "% of the budget") as advance:
        while len(curve) < looks:
            before = spent()
            if before >= (len(curve) + 1) / looks:
                model.eval()
                curve.append((seconds, model.nats(valid)))
                model.train()
                continue
            started = time.monotonic()
            batch = batcher.next()
            loss = model.loss(batch.inputs.to(device), batch.targets.to(device))
            if not math.isfinite(loss.item()):
                raise FloatingPointError(f"the loss became {loss.item()} at step {step + 1}")
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            move(step, before)
            step += 1
            seconds += time.monotonic() - started
            advance(100 * (spent() - before))
    sizes = (p.numel() for p in model.parameters())
    return model.eval(), Result(sum(sizes), step, step * tokens, seconds, curve)


def stores(data: dict[str, Any], vocab_size: int) -> tuple[Tokenizer, dict[str, TokenStore]]:
    """The tokenizer trained on the text at data["train"], and each text as a store. cut: as in SourceConfig."""
    config = SourceConfig(split=data.get("cut", "auto"))
    opened = {name: open_source([path], config) for name, path in data.items() if name != "cut"}
    tokenizer = tokenizer_for(opened["train"], "bpe", vocab_size)
    return tokenizer, {name: prepare(source, tokenizer) for name, source in opened.items()}


@torch.inference_mode()
def nats_of_texts(model: Modern, tokenizer: Tokenizer, texts: list[str]) -> list[float]:
    """What each text costs, its end included, in nats, as the rival is scored."""
    costs: list[float] = []
    for begin in range(0, len(texts), TEXTS_AT_ONCE):
        rows = [[*tokenizer.encode(text), tokenizer.eos_id] for text in texts[begin : begin + TEXTS_AT_ONCE]]
        targets = torch.full((len(rows), max(map(len, rows))), IGNORED)
        for row, ids in enumerate(rows):
            targets[row, : len(ids)] = torch.tensor(ids)
        inputs = nn.functional.pad(targets, (1, -1), value=tokenizer.eos_id).clamp(min=0)
        costs += model.token_nats(inputs, targets).double().sum(1).tolist()
    return costs


def main(order: dict[str, Any]) -> dict[str, Any]:
    """Trains what is ordered, scores it on data["valid"], and looks on the way at data["looks"] where that is there.

    data["first"]: stories whose characters are counted too, of modern alone.
    """
    keep_freed_memory()
    who, files = order["who"], dict(order["data"])
    recipe = {**RECIPES[who], **order["recipe"]}
    first = files.pop("first", None)
    tokenizer, texts = stores(files, recipe["vocab_size"])
    valid = texts["valid"]
    found: dict[str, Any] = {"bytes": valid.num_bytes, "tokens_of_valid": valid.num_tokens, "nats": None}
    try:
        looks = order.get("looks", 1)
        looked_at = texts.get("looks", valid)
        model, result = train_rival(
            who, recipe, texts["train"], looked_at, {"minutes": order["minutes"]}, order["seed"], looks
        )
    except FloatingPointError as error:
        return {**found, "why": str(error)}
    found |= {"nats": result.curve[-1][1] if looked_at is valid else model.nats(valid)}
    if first is not None and isinstance(model, Modern):
        found["yardstick"] = yardstick(first_stories(first), partial(nats_of_texts, model, tokenizer))
    return {**found, **result._asdict(), "bytes_of_looks": looked_at.num_bytes}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
