"""What a wall-clock budget buys: our presets against rivals with the same data, tokens, threads and minutes.

    python benchmarks/quality.py tinystories TRAIN.jsonl VALID.jsonl --minutes 2 --seeds 3
    python benchmarks/quality.py shakespeare INPUT.txt --minutes 1.1667

Budgets are training time; validation is excluded for all. TinyStories: bits per UTF-8 byte over all stories of
VALID, tokenizer of 1,024 pieces trained on TRAIN. Shakespeare: nats per character on the last 10%, trained on the
first 90%. Writes benchmarks/results/quality-DATA-MINUTES.json after each run; what it has already is not run
again without --again, so that hours of it can be divided.

Rivals, each tuned in good faith (what was tried stands in benchmarks/README.md): a decoder-only transformer in the
manner of GPT-2 (4 layers, 4 heads, 128 wide, context 128, batch 32; AdamW, betas 0.9 and 0.99, warm-up of 100 steps,
cosine from 2e-3 to 1e-4), nn.LSTM of about as many parameters, and the course's own model with its own recipe.
"""

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from report import about, read, write
from torch import Tensor, nn
from torch.nn import functional as F

from rhapsode.allocator import keep_freed_memory
from rhapsode.configs import build, merge
from rhapsode.evaluate import bits_per_byte, padded_batches, score
from rhapsode.model import ModelConfig
from rhapsode.presets import fit, tokens_read
from rhapsode.progress import bar, say
from rhapsode.sources import SourceConfig, open_source
from rhapsode.start import create_run
from rhapsode.tokenizer import Tokenizer
from rhapsode.tokens import IGNORED, BatchConfig, Batcher, TokenStore, prepare, tokenizer_for
from rhapsode.train import OptimizerConfig, TrainConfig, train

CONTEXT = 128


class Transformer(nn.Module):
    """Decoder-only, pre-norm, learned positions, GELU, tied embedding and head (Radford et al. 2019)."""

    def __init__(self, vocab_size: int, dropout: float, layers: int = 4, heads: int = 4, width: int = 128) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.tokens, self.places = nn.Embedding(vocab_size, width), nn.Embedding(CONTEXT, width)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm_1": nn.LayerNorm(width),
                    "qkv": nn.Linear(width, 3 * width),
                    "out": nn.Linear(width, width),
                    "norm_2": nn.LayerNorm(width),
                    "up": nn.Linear(width, 4 * width),
                    "down": nn.Linear(4 * width, width),
                }
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                scale = 0.02 / math.sqrt(2 * layers) if name.endswith(("out.weight", "down.weight")) else 0.02
                nn.init.normal_(parameter, std=scale)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def loss(self, tokens: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        """tokens, targets (B, T <= CONTEXT) -> cross-entropy in nats."""
        drop = self.dropout if self.training else 0.0
        x = F.dropout(self.tokens(tokens) + self.places.weight[: tokens.shape[1]], drop, self.training)
        for block in self.blocks:
            q, k, v = block["qkv"](block["norm_1"](x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            a = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=drop)
            x = x + F.dropout(block["out"](a.transpose(1, 2).flatten(2)), drop, self.training)
            x = x + F.dropout(block["down"](F.gelu(block["up"](block["norm_2"](x)))), drop, self.training)
        logits = F.linear(self.norm(x), self.tokens.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction=reduction)

    @torch.inference_mode()
    def nats(self, store: TokenStore) -> float:
        """Windows of CONTEXT tokens that move on by half: but for a story's first, each scores its second half."""
        total, half = 0.0, CONTEXT // 2
        for batch in padded_batches(store):
            inputs, targets = map(torch.from_numpy, batch)
            for start in range(0, max(1, inputs.shape[1] - half), half):
                window = slice(start, start + CONTEXT)
                expected = targets[:, window].clone()
                if start:
                    expected[:, :half] = IGNORED
                if (expected != IGNORED).any():
                    total += self.loss(inputs[:, window], expected, "sum").item()
        return total


class LSTM(nn.Module):
    """Embedding, two layers of nn.LSTM, head tied to the embedding."""

    def __init__(self, vocab_size: int, dropout: float, width: int = 224) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, width)
        nn.init.normal_(self.tokens.weight, std=0.05)
        self.rnn = nn.LSTM(width, width, num_layers=2, batch_first=True, dropout=dropout)
        self.drop = nn.Dropout(dropout)

    def loss(self, tokens: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        """tokens, targets (B, T) -> cross-entropy in nats."""
        y, _ = self.rnn(self.drop(self.tokens(tokens)))
        logits = F.linear(self.drop(y), self.tokens.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction=reduction)

    @torch.inference_mode()
    def nats(self, store: TokenStore) -> float:
        """Each story from its beginning to its end."""
        total = 0.0
        for inputs, targets in padded_batches(store):
            state = None
            for start in range(0, inputs.shape[1], 512):
                piece = slice(start, start + 512)
                y, state = self.rnn(self.tokens(torch.from_numpy(inputs[:, piece].copy())), state)
                logits = F.linear(y, self.tokens.weight).flatten(0, 1)
                expected = torch.from_numpy(targets[:, piece].copy()).flatten()
                total += F.cross_entropy(logits, expected, ignore_index=IGNORED, reduction="sum").item()
        return total


class Result(NamedTuple):
    """nats: summed over the validation data; curve: (seconds of training, nats) at each look."""

    parameters: int
    steps: int
    seconds: float
    nats: float
    curve: list[tuple[float, float]]


class Data(NamedTuple):
    """What everyone gets. unit: how many bytes or characters the validation data have."""

    name: str
    tokenizer: Tokenizer
    train: TokenStore
    valid: TokenStore
    unit: int


def rival(make: Callable[[], nn.Module], peak: float, data: Data, minutes: float, seed: int, looks: int) -> Result:
    """Trains a rival for so many minutes: AdamW, warm-up of 100 steps, cosine of the time to a twentieth."""
    torch.manual_seed(seed)
    model = make()
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim != 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.99), fused=True)
    batcher = Batcher(data.train, BatchConfig(CONTEXT, 32), seed)
    budget, spent, step = 60 * minutes, 0.0, 0
    curve: list[tuple[float, float]] = []
    with bar("training", budget, "s of training") as advance:
        while True:
            if spent >= budget * (len(curve) + 1) / looks:
                model.eval()
                curve.append((spent, model.nats(data.valid)))
                model.train()
                if len(curve) == looks:
                    break
            started = time.monotonic()
            batch = batcher.next()
            part = spent / budget
            rate = min((step + 1) / 100, 0.05 + 0.95 * (0.5 + 0.5 * math.cos(math.pi * part)))
            for group in optimizer.param_groups:
                group["lr"] = peak * rate
            loss = model.loss(batch.inputs, batch.targets)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
            took = time.monotonic() - started
            spent += took
            advance(took)
    return Result(sum(p.numel() for p in model.parameters()), step, spent, curve[-1][1], curve)


def ours(sections: dict[str, dict[str, Any]], data: Data, minutes: float, seed: int, looks: int) -> Result:
    """Trains by the package's own door; the last weights count, as for the rivals."""
    sections = merge(sections, {"train": {"minutes": minutes, "seed": seed, "validations": looks, "prompt": ""}})
    configs = {
        "model": build(ModelConfig, {**sections["model"], "vocab_size": data.tokenizer.vocab_size}),
        "optimizer": build(OptimizerConfig, sections["optimizer"]),
        "train": build(TrainConfig, sections["train"]),
        "batch": build(BatchConfig, sections["batch"]),
    }
    with tempfile.TemporaryDirectory() as folder:
        run = create_run(Path(folder) / "run", configs, data.tokenizer, {})
        outcome = train(run, data.train, data.valid)
        model = run.load_model("last")
        curve = [
            (m["seconds"], m["valid_loss"] * data.valid.num_tokens) for m in run.metrics() if m["event"] == "valid"
        ]
        nats = score(model, data.valid).nats
    parameters = sum(p.numel() for p in model.parameters())
    return Result(parameters, outcome.progress.step, outcome.progress.seconds, nats, curve)


UNITS = {"tinystories": "bits per byte", "shakespeare": "nats per character"}

COURSE: dict[str, dict[str, Any]] = {
    "model": {"kind": "plain", "embed_dim": 128, "hidden_dim": 256, "key_dim": 128, "value_dim": 128},
    "optimizer": {"optimizer": "adam", "learning_rate": 1e-3, "beta2": 0.999, "decay": "constant", "warmup_steps": 10},
    "batch": {"window": CONTEXT, "batch_size": 32},
}


def tinystories(train_file: str, valid_file: str) -> Data:
    """TinyStories with a tokenizer of 1,024 pieces trained on the training text."""
    source = open_source([train_file])
    tokenizer = tokenizer_for(source, "bpe", 1024)
    valid = prepare(open_source([valid_file]), tokenizer)
    return Data("tinystories", tokenizer, prepare(source, tokenizer), valid, valid.num_bytes)


def shakespeare(file: str, folder: Path) -> Data:
    """One long text by characters: its first 90% to train on, its last 10% to score."""
    text = Path(file).read_text(encoding="utf-8")
    cut = int(0.9 * len(text))
    parts = {"train.txt": text[:cut], "valid.txt": text[cut:]}
    for name, part in parts.items():
        (folder / name).write_text(part, encoding="utf-8")
    whole = SourceConfig(split="file")
    source = open_source([str(folder / "train.txt")], whole)
    tokenizer = tokenizer_for(source, "characters", 1024)
    valid = prepare(open_source([str(folder / "valid.txt")], whole), tokenizer)
    return Data("shakespeare", tokenizer, prepare(source, tokenizer), valid, len(parts["valid.txt"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=["tinystories", "shakespeare"])
    parser.add_argument("files", nargs="+")
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", nargs="+", help="names of those to run")
    parser.add_argument("--preset", help="the preset to run for us; otherwise by the minutes")
    parser.add_argument("--looks", type=int, default=4, help="validations on the way")
    parser.add_argument("--again", action="store_true", help="run also what the results have already")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.data == "tinystories":
            data = tinystories(*arguments.files)
        else:
            data = shakespeare(*arguments.files, Path(folder))
        compare(data, arguments)


def compare(data: Data, arguments: argparse.Namespace) -> None:
    """Runs everyone with every seed in turn, writes the JSON after each run, and prints the table."""
    minutes, looks = arguments.minutes, arguments.looks
    preset = arguments.preset or ("minute" if minutes < 5 else "coffee")
    recipe = recipe_for(data, preset, minutes)
    vocab_size, dropout = data.tokenizer.vocab_size, recipe["model"].get("dropout", 0.0)
    contenders: dict[str, Callable[[int], Result]] = {
        "rhapsode": lambda seed: ours(recipe, data, minutes, seed, looks),
        "transformer": lambda seed: rival(lambda: Transformer(vocab_size, dropout), 2e-3, data, minutes, seed, looks),
        "lstm": lambda seed: rival(lambda: LSTM(vocab_size, dropout), 3e-3, data, minutes, seed, looks),
        "course": lambda seed: ours(COURSE, data, minutes, seed, looks),
    }
    name = f"quality-{data.name}-{minutes:g}"
    keep_freed_memory()  # for the rivals too
    conditions = {"preset": preset, "looks": looks, **about()}
    kept = read(name).get("runs", [])
    for seed in range(arguments.seeds):
        for who, run in contenders.items():
            there = [r for r in kept if (r["name"], r["seed"], r["preset"]) == (who, seed, preset)]
            if (there and not arguments.again) or (arguments.only and who not in arguments.only):
                continue
            found = {"name": who, "seed": seed, **record(data, run(seed)), **conditions}
            say(f"{who}, seed {seed}: {found['value']:.4f} after {found['seconds']} s")
            kept = [r for r in kept if r not in there] + [found]
            write(name, {"data": data.name, "unit": UNITS[data.name], "minutes": minutes, "runs": kept})
    print(f"{data.name}, {minutes:g} minutes of training: {UNITS[data.name]}")
    for who in contenders:
        runs = [r for r in kept if (r["name"], r["preset"]) == (who, preset)]
        values = [r["value"] for r in runs]
        if values:
            spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
            mean, size = statistics.mean(values), runs[0]["parameters"]
            print(f"{who:12} {mean:.4f}{spread}, {len(values)} seeds, {size:,} parameters")


def recipe_for(data: Data, preset: str, minutes: float) -> dict[str, dict[str, Any]]:
    """What `rhapsode train --preset PRESET --minutes MINUTES` would choose for these data."""
    num_tokens = data.train.num_tokens
    read = tokens_read(preset, {"minutes": minutes}, CONTEXT, num_tokens)
    return fit(preset, num_tokens, read, stop_early=False).sections


def record(data: Data, result: Result) -> dict[str, Any]:
    """A result as the JSON keeps it, losses in the unit of the data."""
    return {
        "value": round(measure(data, result.nats), 4),
        "parameters": result.parameters,
        "steps": result.steps,
        "seconds": round(result.seconds, 1),
        "curve": [(round(seconds, 1), round(measure(data, nats), 4)) for seconds, nats in result.curve],
    }


def measure(data: Data, nats: float) -> float:
    """Bits per byte, or nats per character."""
    return bits_per_byte(nats, data.unit) if data.name == "tinystories" else nats / data.unit


if __name__ == "__main__":
    main()
