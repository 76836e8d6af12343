"""Fits the cost model of `rhapsode plan` to measurements. Writes planning/machines.json and results/plan.json.

    python benchmarks/plan.py            three minutes on two cores that are otherwise idle; also docs/figures/plan.svg
    python benchmarks/plan.py --quick    a fifth of that, printed only
    python benchmarks/plan.py --plot     the figure again from results/plan.json

Steps of training are timed on one thread, and by two processes of one thread each with sums of gradients through gloo;
sums alone, of several sizes; and the writing of a checkpoint. Rates are fitted to some of the steps, in relative error,
and checked on others that the fit does not see. The GPU's steps were measured once, on an NVIDIA H200 with PyTorch 2.11
and prototypes of this program, on 26 November 2026 (plain model, vocabulary 1,024): they are fitted in the same way.
"""

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch._dynamo  # the first optimiser of a process asks for it: once, before they are forked
from report import FIGURES, HERE, about, panels, read, save_figure, write
from torch import distributed

from rhapsode.files import replacing
from rhapsode.machine import keep_freed_memory
from rhapsode.model import ModelConfig, build_model
from rhapsode.planning import Fleet, devices, forecast, links
from rhapsode.planning.costs import Demand, Device, Link, demand_of, seconds_by_part, seconds_of_sum, summed_bytes
from rhapsode.progress import say
from rhapsode.recipe import OptimizerConfig, Recipe
from rhapsode.recipe.changes import merge
from rhapsode.recipe.presets import PRESETS
from rhapsode.run import weights_of
from rhapsode.tensors import pack_tensors
from rhapsode.tokens import Batch, BatchConfig
from rhapsode.training import Optimizers
from rhapsode.training.gradients import BatchGradients
from rhapsode.training.group import ALONE, Group, together

MACHINES = HERE.parent / "src" / "rhapsode" / "planning" / "machines.json"
FIGURE = FIGURES / "plan.svg"
VOCAB_SIZE = 1024
SECONDS = 2.0  # for each point
HERE_ADDRESS = "127.0.0.1"
SUM_BYTES = (1 << 16, 1 << 20, 1 << 22, 1 << 24)


class Point(NamedTuple):
    """A step that is timed: sizes of a stacked model, rows and window of a batch."""

    embed: int
    hidden: int
    layers: int
    pairs: int
    feed_forward: int
    rows: int
    window: int


FITTED = (
    Point(64, 64, 1, 0, 0, 8, 64),
    Point(128, 128, 1, 0, 0, 32, 128),
    Point(192, 256, 1, 16384, 0, 32, 128),
    Point(192, 256, 1, 16384, 0, 8, 128),
    Point(224, 288, 1, 16384, 2, 32, 128),
    Point(384, 512, 2, 16384, 2, 16, 128),
    Point(128, 128, 2, 0, 0, 32, 256),
    Point(64, 128, 1, 4096, 0, 32, 128),
)
HELD_OUT = (
    Point(160, 224, 2, 16384, 2, 32, 128),
    Point(256, 256, 1, 0, 0, 16, 128),
    Point(96, 128, 1, 16384, 0, 32, 64),
    Point(320, 384, 1, 16384, 0, 32, 128),
)
BY_TWO = (
    Point(192, 256, 1, 16384, 0, 32, 128),
    Point(224, 288, 1, 16384, 2, 32, 128),
    Point(160, 224, 2, 16384, 2, 32, 128),
    Point(128, 128, 1, 0, 0, 64, 128),
)
# embed, hidden, key and value size, batch, window: milliseconds as the step is, and as one CUDA graph
GPU_STEPS = (
    (128, 128, 128, 128, 128, 11.2, 2.88),
    (512, 512, 256, 128, 128, 11.2, 5.20),
    (128, 128, 128, 32, 128, 11.7, 2.43),
    (128, 128, 128, 64, 128, 10.8, 2.67),
    (128, 128, 128, 256, 128, 11.2, 3.70),
    (64, 128, 32, 1, 128, 9.0, 1.13),
    (512, 512, 256, 32, 1024, 61.0, 24.2),
)
GPU_HELD_OUT = (3, 4)  # of them


def config_of(point: Point) -> ModelConfig:
    sizes = {"embed_dim": point.embed, "hidden_dim": point.hidden, "num_layers": point.layers}
    more = {"key_dim": 64, "value_dim": 64, "attention": "last", "feed_forward": point.feed_forward}
    return ModelConfig(VOCAB_SIZE, "stacked", pair_embeddings=point.pairs, **sizes, **more)  # type: ignore[arg-type]


def step_seconds(point: Point, group: Group, seconds: float) -> float:
    """The median time of a whole step: loss, gradients, their sum, clipping, update."""
    torch.manual_seed(0)
    model = build_model(config_of(point), seed=0)
    batch_config = BatchConfig(point.window, point.rows)
    gradients, optimizers = BatchGradients(model, batch_config, group), Optimizers(model, OptimizerConfig())
    ids = torch.randint(0, VOCAB_SIZE, (point.rows, point.window + 1))[gradients.rows]
    batch = Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), True, point.rows * point.window)
    times: list[float] = []
    until = time.monotonic() + seconds
    while True:
        begun = time.perf_counter()
        group.sum([gradients.of(batch)])
        gradients.finish()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizers.step(1e-6)
        times.append(time.perf_counter() - begun)
        if group.sum([time.monotonic() > until])[0] and len(times) > 4:
            return statistics.median(times[2:])


def sum_seconds(size: int, group: Group, seconds: float) -> float:
    """The median time of a sum of so many bytes."""
    numbers = torch.zeros(size // 4)
    times: list[float] = []
    until = time.monotonic() + seconds
    while True:
        begun = time.perf_counter()
        group.wait(group.start_sum(numbers))
        times.append(time.perf_counter() - begun)
        if group.sum([time.monotonic() > until])[0] and len(times) > 4:
            return statistics.median(times)


def by_two(work: Callable[[Group], Any]) -> Any:
    """What `work` gives in the first of two processes."""
    wait = timedelta(seconds=60)
    store = distributed.TCPStore(HERE_ADDRESS, 0, None, True, wait, wait_for_workers=False)
    forking = multiprocessing.get_context("fork")
    here, there = forking.Pipe(duplex=False)

    def run(rank: int) -> None:
        torch.set_num_threads(1)
        own = distributed.TCPStore(HERE_ADDRESS, store.port, None, False, wait)
        with together(own, rank, 2, "cpu", 60.0) as group:
            found = work(group)
        if rank == 0:
            there.send(found)

    processes = [forking.Process(target=run, args=(rank,)) for rank in range(2)]
    for process in processes:
        process.start()
    found = here.recv()
    for process in processes:
        process.join()
    return found


def fit(columns: Sequence[Sequence[float]], times: Sequence[float]) -> list[float]:
    """Prices >= 0 of what the columns count, that give the times with the least squared relative error."""
    whole = np.array(columns, float) / np.array(times)[:, None]
    best: tuple[float, list[float]] = (np.inf, [])
    for chosen in range(1, 1 << whole.shape[1]):  # with so few, all sets of those that are not 0 can be tried
        inside = [i for i in range(whole.shape[1]) if chosen >> i & 1]
        prices, *_ = np.linalg.lstsq(whole[:, inside], np.ones(len(times)), rcond=None)
        if (prices >= 0).all():
            off = float(((whole[:, inside] @ prices - 1) ** 2).sum())
            if off < best[0]:
                full = [0.0] * whole.shape[1]
                for place, price in zip(inside, prices, strict=True):
                    full[place] = float(price)
                best = off, full
    return best[1]


def device_of(name: str, demands: Sequence[Demand], times: Sequence[float], overlapped: bool) -> Device:
    """A device with the fitted rates; its error is still to be found."""
    if overlapped:  # launches are all there is to see
        prices = [0.0, 0.0, fit([[each.launches] for each in demands], times)[0]]
    else:
        prices = fit([[each.flops, each.optimizer_bytes, each.launches] for each in demands], times)
    flops, moved, launch = (1 / price if i < 2 and price else price for i, price in enumerate(prices))
    sizes = [each.flops for each in demands]
    return Device(name, flops or 1e18, moved or 1e18, launch, overlapped, 0.0, min(sizes), max(sizes))


def predicted(demand: Demand, device: Device) -> float:
    return sum(seconds_by_part(demand, device).values())


def gpu_demand(row: tuple[float, ...]) -> Demand:
    embed, hidden, key, rows, window = (int(number) for number in row[:5])
    config = ModelConfig(VOCAB_SIZE, embed_dim=embed, hidden_dim=hidden, key_dim=key, value_dim=key)
    return demand_of(config, rows, window)


def gpus() -> tuple[dict[str, Device], list[dict[str, Any]]]:
    """The GPU as the step is, and with the step as one graph; and all points, for the table and the figure."""
    found: dict[str, Device] = {}
    points: list[dict[str, Any]] = []
    for name, column, overlapped in (("gpu-graph", 6, False), ("gpu", 5, True)):
        rows = [(gpu_demand(row), row[column] / 1e3, i in GPU_HELD_OUT) for i, row in enumerate(GPU_STEPS)]
        seen = [(demand, seconds) for demand, seconds, held in rows if not held]
        device = device_of(name, [demand for demand, _ in seen], [seconds for _, seconds in seen], overlapped)
        if overlapped:  # what the work takes is known from the graph
            graph = found["gpu-graph"]
            device = replace(device, flops_per_second=graph.flops_per_second, bytes_per_second=graph.bytes_per_second)
        own = [point(name, demand.flops, seconds, predicted(demand, device), held) for demand, seconds, held in rows]
        found[name] = replace(device, error=worst(own))
        points += own
    return found, points


def point(what: str, flops: float, seconds: float, expected: float, held_out: bool) -> dict[str, Any]:
    return {"what": what, "flops": flops, "seconds": seconds, "predicted": expected, "held_out": held_out}


def worst(points: Sequence[dict[str, Any]]) -> float:
    """The largest relative error on points that were held out."""
    errors = [abs(p["predicted"] / p["seconds"] - 1) for p in points if p["held_out"]]
    return round(max(errors), 3)


def measure(seconds: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what machines.json is to hold, what results/plan.json is to hold)."""
    timed = {each: step_seconds(each, ALONE, seconds) for each in (*FITTED, *HELD_OUT)}
    demands = {each: demand_of(config_of(each), each.rows, each.window) for each in timed}
    cpu = device_of("cpu", [demands[each] for each in FITTED], [timed[each] for each in FITTED], overlapped=False)
    points = [
        point("cpu", demands[each].flops, took, predicted(demands[each], cpu), each in HELD_OUT)
        for each, took in timed.items()
    ]
    cpu = replace(cpu, error=worst(points))
    say(f"one thread: {cpu}")
    sums = by_two(lambda group: [sum_seconds(size, group, seconds / 4) for size in SUM_BYTES])
    per_byte, latency = fit([[size, 2.0] for size in SUM_BYTES], sums)
    link = Link("loopback", 1 / per_byte, latency, 0.0)
    twos = by_two(lambda group: [step_seconds(each, group, seconds) for each in BY_TWO])
    two_points = []
    for each, took in zip(BY_TWO, twos, strict=True):
        half = demand_of(config_of(each), each.rows // 2, each.window)
        summed = seconds_of_sum(summed_bytes(config_of(each), each.rows * each.window), 2, link)
        two_points.append(point("cpu, two processes", half.flops, took, predicted(half, cpu) + summed, True))
    link = replace(link, error=worst(two_points))
    say(f"two processes: {link}")
    with tempfile.TemporaryDirectory() as folder:
        tensors = weights_of(build_model(config_of(FITTED[5]), seed=0))
        size = sum(tensor.nbytes for tensor in tensors.values())
        begun = time.perf_counter()
        with replacing(Path(folder) / "last.safetensors") as temporary:
            temporary.write_bytes(pack_tensors(tensors, {"progress": "{}"}, signed="progress"))
        disk = size / (time.perf_counter() - begun)
    of_gpu, gpu_points = gpus()
    named = {"cpu": cpu, **of_gpu}
    machines = {
        "format_version": 1,
        "devices": {name: {k: v for k, v in asdict(each).items() if k != "name"} for name, each in named.items()},
        "links": {"loopback": {k: v for k, v in asdict(link).items() if k != "name"}},
        "disk_bytes_per_second": disk,
    }
    sums_seen = [{"bytes": size, "seconds": took} for size, took in zip(SUM_BYTES, sums, strict=True)]
    errors = {name: each.error for name, each in named.items()} | {"loopback": link.error}
    result = {"format_version": 1, **about(), "largest_error_on_held_out_points": errors, "sums": sums_seen}
    return machines, result | {"points": [*points, *two_points, *gpu_points]}


def draw(result: dict[str, Any]) -> None:
    """Predicted against measured; and what many machines would make, with the range."""
    from rhapsode.figure import COLOURS, MARKERS

    figure, (left, right) = panels("plan", 1, 2, figsize=(10.5, 4.6))
    for number, what in enumerate(dict.fromkeys(p["what"] for p in result["points"])):
        for held_out in (False, True):
            own = [p for p in result["points"] if p["what"] == what and p["held_out"] == held_out]
            if own:
                label = f"{what}, {'held out' if held_out else 'fitted'}"
                left.plot(
                    [1e3 * p["seconds"] for p in own],
                    [1e3 * p["predicted"] for p in own],
                    MARKERS[number % len(MARKERS)],
                    color=COLOURS[number % len(COLOURS)],
                    fillstyle="full" if held_out else "none",
                    linestyle="",
                    label=label,
                )
    ends = [1e3 * min(p["seconds"] for p in result["points"]), 1e3 * max(p["seconds"] for p in result["points"])]
    left.plot(ends, ends, color="0.6", linewidth=0.8)
    left.set(xscale="log", yscale="log", xlabel="milliseconds of a step, measured", ylabel="predicted")
    left.legend(fontsize=7)
    counts = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
    for number, (device, link) in enumerate((("cpu", "10gbit"), ("gpu", "100gbit"), ("gpu-graph", "100gbit"))):
        low, middle, high = [], [], []
        for count in counts:
            sections = merge(PRESETS["coffee"], {"batch": {"batch_size": 32 * count}})
            recipe = Recipe.from_sections(sections, VOCAB_SIZE)
            found = forecast(recipe, 1e12, Fleet(devices()[device], links()[link], count))
            low.append(found.tokens_per_second / found.factor)
            middle.append(found.tokens_per_second)
            high.append(found.tokens_per_second * found.factor)
        colour = COLOURS[number % len(COLOURS)]
        right.plot(counts, middle, color=colour, marker=MARKERS[number % len(MARKERS)], label=f"{device}, {link}")
        right.fill_between(counts, low, high, color=colour, alpha=0.2, linewidth=0)
    right.axvline(20, color="0.6", linewidth=0.8, linestyle="--")
    right.text(21, right.get_ylim()[0], " extrapolated", fontsize=7, va="bottom")
    right.set(xscale="log", yscale="log", xlabel="processes, 32 rows each", ylabel="tokens per second, coffee")
    right.legend(fontsize=7)
    save_figure(figure, FIGURE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a fifth of the time; prints only")
    parser.add_argument("--plot", action="store_true", help="draw the figure again")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    if not asked.plot:
        machines, result = measure(SECONDS / 5 if asked.quick else SECONDS)
        print(json.dumps(result["largest_error_on_held_out_points"]))
        if asked.quick:
            print(json.dumps(machines, indent=1))
            return
        MACHINES.write_text(json.dumps(machines, indent=1) + "\n", encoding="utf-8")
        write("plan", result)
    draw(read("plan"))
    say(f"{FIGURE.name}: drawn")


if __name__ == "__main__":
    main()
