"""`rhapsode bench`: how fast this machine trains, in tokens per second and as a share of what it can do at all.

That is its rate in the product of two 2048 x 2048 matrices in float32. A training step is zero_grad, loss, backward,
clipping and Adam. Steps and products take turns, a burst of each a round, so that a change of the machine's speed hits
both; the share is made within a round, and medians over the rounds are reported.
"""

import itertools
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from rhapsode.inspection.cost import flops_per_token
from rhapsode.machine import keep_freed_memory
from rhapsode.model import LanguageModel, ModelConfig, build_model
from rhapsode.progress import say, show

PRODUCT_SIZE = 2048
BURST_SECONDS = 0.5  # a round times each for at least this long
FEWEST_ROUNDS = 5
BATCHES = 16  # different ones in turn, so that the model does not overfit to one and gradients stay ordinary numbers
BUSY = 0.2  # of the cores that were at work for others before the start: worth a word


@dataclass(frozen=True)
class Workload:
    """What is measured: a model and the shape (batch_size, length) of its batches, in tokens."""

    name: str
    config: ModelConfig
    batch_size: int
    length: int = 128


def plain(embed_dim: int, hidden_dim: int, head_dim: int) -> ModelConfig:
    """A plain model with vocabulary 1024 and keys and values of one size."""
    return ModelConfig(1024, "plain", embed_dim, hidden_dim, head_dim, head_dim)


WORKLOADS = (
    Workload("embed 128, hidden 128, dk = dv 128, batch 128", plain(128, 128, 128), 128),
    Workload("embed 512, hidden 512, dk = dv 256, batch 128", plain(512, 512, 256), 128),
    Workload("embed 64, hidden 128, dk = dv 32, batch 1", plain(64, 128, 32), 1),
)


def bench(quick: bool = False, as_json: bool = False, seconds: float = 60.0) -> None:
    """Measures and prints a table to stdout, or with as_json one JSON object.

    seconds: how long each workload is timed. quick: at most 6 seconds each, and without the large one.
    """
    result = measure(min(6.0, seconds) if quick else seconds, WORKLOADS[::2] if quick else WORKLOADS)
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        show(as_table(result))


def measure(seconds: float, workloads: tuple[Workload, ...] = WORKLOADS) -> dict[str, Any]:
    """The whole result as JSON-ready values: the machine, and for each workload medians over its rounds."""
    keep_freed_memory()  # as `rhapsode train` does
    load = os.getloadavg()[0]
    if load > BUSY * (os.cpu_count() or 1):
        say(f"other programs are busy on this computer (load average {load:.1f}): the speeds come out too low")
    rows = []
    for workload in workloads:
        say(workload.name)
        rows.append(measure_workload(workload, seconds))
    return {"format_version": 2, **machine(), "load_average_before": round(load, 2), "settings": rows}


def measure_workload(workload: Workload, seconds: float) -> dict[str, Any]:
    """Times training steps and products in turns for `seconds`, and at least for FEWEST_ROUNDS rounds."""
    model = build_model(workload.config, seed=0)
    works = (training_step(model, own_loss(model), batches(workload)), product())
    calls = [calls_in_burst(work) for work in works]
    rounds: list[tuple[float, ...]] = []
    ends = time.monotonic() + seconds
    while len(rounds) < FEWEST_ROUNDS or time.monotonic() < ends:
        rounds.append(tuple(burst(work, count) for work, count in zip(works, calls, strict=True)))
    flops, product_flops = step_flops(workload), 2 * PRODUCT_SIZE**3
    step, multiplication = (statistics.median(times) for times in zip(*rounds, strict=True))
    return {
        "name": workload.name,
        **asdict(workload.config),
        "batch_size": workload.batch_size,
        "length": workload.length,
        "rounds": len(rounds),
        "milliseconds_per_step": round(1e3 * step, 3),
        "tokens_per_second": round(workload.batch_size * workload.length / step),
        "product_gigaflops_per_second": round(product_flops / multiplication / 1e9, 1),
        "share_of_product_rate": round(statistics.median(flops / s / (product_flops / p) for s, p in rounds), 3),
    }


def calls_in_burst(work: Callable[[], None]) -> int:
    """How many calls of `work` fill a burst; makes three on the way: an optimiser's state is there from the second."""
    work()
    work()
    return max(1, math.ceil(BURST_SECONDS / burst(work, 1)))


def burst(work: Callable[[], None], calls: int) -> float:
    """Seconds per call of `work`, called so many times."""
    if calls > 1:
        work()  # untimed: brings back the caches that the other has taken
    begun = time.perf_counter()
    for _ in range(calls):
        work()
    return (time.perf_counter() - begun) / calls


def machine() -> dict[str, Any]:
    """What is measured on."""
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def own_loss(model: LanguageModel) -> Callable[[Tensor, Tensor], Tensor]:
    """The model's loss of a batch, without the state that it returns beside it."""
    return lambda tokens, targets: model.loss(tokens, targets)[0]


def batches(workload: Workload) -> list[tuple[Tensor, Tensor]]:
    """Random (tokens, targets), each (B, T)."""
    generator = torch.Generator().manual_seed(1)
    shape = (BATCHES, workload.batch_size, workload.length + 1)
    ids = torch.randint(workload.config.vocab_size, shape, generator=generator)
    return [(rows[:, :-1], rows[:, 1:]) for rows in ids]


def training_step(
    model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], data: list[tuple[Tensor, Tensor]]
) -> Callable[[], None]:
    """A function that trains the model on the next batch: gradient norm clipped at 1, fused Adam."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
    turn = itertools.cycle(data)

    def step() -> None:
        optimizer.zero_grad()
        loss(*next(turn)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()

    return step


def product() -> Callable[[], None]:
    """One product of two square matrices in float32."""
    a, b, out = (torch.rand(PRODUCT_SIZE, PRODUCT_SIZE) for _ in range(3))

    def multiply() -> None:
        torch.mm(a, b, out=out)

    return multiply


def step_flops(workload: Workload) -> int:
    """Floating-point operations of a training step: three forward passes over windows that start from nothing."""
    window = sum(flops_per_token(workload.config, visible) for visible in range(1, workload.length + 1))
    return 3 * workload.batch_size * window


def as_table(result: dict[str, Any]) -> Table:
    """The result for the terminal."""
    table = Table(
        title="Training steps on this machine", caption=f"{result['machine']}, torch {result['torch']}, medians"
    )
    table.add_column(f"vocabulary 1024, {WORKLOADS[0].length} tokens")
    for heading in ("tokens/s", "share of the matrix product's rate"):
        table.add_column(heading, justify="right")
    for row in result["settings"]:
        table.add_row(row["name"], f"{row['tokens_per_second']:,}", f"{row['share_of_product_rate']:.0%}")
    return table
