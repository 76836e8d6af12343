"""Races of training steps: ours beside its rivals and the machine's own rate, in turns, each in a process of its own.

    stepwise    (a) the course's algorithm: a loop over timesteps, then a loop of attention steps
    nn.RNN      (b) the same model on PyTorch's own RNN, attention and cross-entropy
    product     (c) what the machine can do at all: its rate in the product of two 2048 x 2048 matrices in float32

All start from the same weights; losses and gradients are checked equal before anything is timed. A training step is
zero_grad, loss, backward, clipping and Adam, the same for all. Each contender trains in a process of its own, so that
its memory is what it would be if it trained alone: what the allocator keeps for one changes the speed of another. They
take turns, each round a burst of steps each, while the others sleep, so that a change of the machine's speed hits all
of them; ratios are made within a round, and medians over the rounds are reported. Rounds in which anyone else took more
than DISTURBED of the cores are left out, while enough others remain.
"""

import contextlib
import math
import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.table import Table
from rivals import RIVALS
from torch import Tensor, nn

from rhapsode.bench import (
    PRODUCT_SIZE,
    WORKLOADS,
    Workload,
    batches,
    machine,
    own_loss,
    product,
    step_flops,
    training_step,
)
from rhapsode.machine import keep_freed_memory
from rhapsode.model import LanguageModel, ModelConfig, PlainModel, build_model
from rhapsode.progress import say

OURS, PRODUCT = "rhapsode", "product"
CHECKED_ROWS = 16  # of a batch, in the comparison of losses and gradients
BURST_SECONDS = 0.5  # a round times each contender for at least this long
FEWEST_ROUNDS = 5
DISTURBED = 0.05
TOLERANCE = 1e-4  # relative, float32


def measure(seconds: float, workloads: tuple[Workload, ...] = WORKLOADS) -> dict[str, Any]:
    """The whole result as JSON-ready values: the machine, and for each workload medians, ratios and peak memory.

    Raises ValueError if a rival's loss or gradients differ from ours: a speed on wrong numbers is not reported.
    """
    load = round(os.getloadavg()[0], 2)
    races = []
    for workload in workloads:
        say(workload.name)
        races.append(race(workload, seconds))
    return {"format_version": 1, **machine(), "load_average_before": load, "settings": races}


def contenders(config: ModelConfig) -> dict[str, nn.Module]:
    """Ours first, then the rivals, all with the same weights."""
    ours = build_model(config, seed=0)
    assert isinstance(ours, PlainModel)
    return {OURS: ours, **{name: make(ours) for name, make in RIVALS.items()}}


def loss_of(model: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """A contender's loss of a batch: ours returns its state beside it; the rivals have none."""
    return own_loss(model) if isinstance(model, LanguageModel) else model.loss


def check_agreement(models: dict[str, Any], tokens: Tensor, targets: Tensor) -> float:
    """The largest relative difference between a rival's loss or gradient of a parameter and ours.

    A gradient's difference is taken relative to its norm, or to a hundredth of the whole gradient's norm where that is
    more: the key bias moves all scores of a query alike, so that its gradient is rounding noise around 0.
    Raises ValueError if it exceeds TOLERANCE, naming the rival and what differs. Leaves no gradients behind.
    """
    expected: dict[str, Tensor] = {}
    largest = 0.0
    for name, model in models.items():
        loss = loss_of(model)(tokens, targets)
        loss.backward()
        named = model.named_gradients() if name != OURS else {n: p.grad for n, p in model.named_parameters()}
        values = {"the loss": loss.detach(), **named}
        if not expected:
            expected = values
            floor = nn.utils.get_total_norm(named.values()) / 100
        if values.keys() != expected.keys():
            raise ValueError(f"{name} has other parameters: {sorted(values.keys() ^ expected.keys())}")
        for what, value in values.items():
            difference = float((value - expected[what]).norm() / torch.maximum(expected[what].norm(), floor))
            if not difference <= TOLERANCE:
                raise ValueError(f"{name}: {what} differs from ours by {difference:.1e}, allowed is {TOLERANCE}")
            largest = max(largest, difference)
        model.zero_grad()
    return largest


def race(workload: Workload, seconds: float) -> dict[str, Any]:
    """Checks that all contenders agree, then times them in turns for `seconds`: medians, ratios, peak memory."""
    names = [OURS, *RIVALS]
    few = replace(workload, batch_size=min(workload.batch_size, CHECKED_ROWS))
    difference = check_agreement(contenders(workload.config), *batches(few)[0])
    turns = take_turns(workload, [*names, PRODUCT], seconds)
    names = [name for name in names if turns.peak_megabytes[name] is not None]
    flops, tokens, product_flops = step_flops(workload), workload.batch_size * workload.length, 2 * PRODUCT_SIZE**3
    median = {name: statistics.median(times[name] for times in turns.rounds) for name in [*names, PRODUCT]}
    shares = [flops / times[OURS] / (product_flops / times[PRODUCT]) for times in turns.rounds]
    return {
        "name": workload.name,
        **asdict(workload.config),
        "batch_size": workload.batch_size,
        "length": workload.length,
        "largest_relative_difference": difference,
        "rounds": len(turns.rounds),
        "rounds_left_out": turns.left_out,
        "share_of_cores_taken_by_others": turns.others,
        "milliseconds_per_step": {name: round(1e3 * median[name], 3) for name in names},
        "tokens_per_second": {name: round(tokens / median[name]) for name in names},
        "times_as_fast_as": {
            name: round(statistics.median(times[name] / times[OURS] for times in turns.rounds), 2)
            for name in names
            if name != OURS
        },
        "product_gigaflops_per_second": round(product_flops / median[PRODUCT] / 1e9, 1),
        "share_of_product_rate": round(statistics.median(shares), 3),
        "peak_megabytes": {name: peak for name, peak in turns.peak_megabytes.items() if name != PRODUCT},
    }


class Turns(NamedTuple):
    """What contenders took: seconds per step in each round kept, the rounds left out, others' share of the cores in
    those kept (None where the system does not say), and the megabytes by which each process grew while it trained; None
    for a contender that the system killed, as it does where memory ends."""

    rounds: list[dict[str, float]]
    left_out: int
    others: float | None
    peak_megabytes: dict[str, int | None]


def take_turns(workload: Workload, names: list[str], seconds: float) -> Turns:
    """Lets the named contenders train in turns for `seconds`, and at least for FEWEST_ROUNDS rounds."""
    peaks: dict[str, int | None] = {}
    calls: dict[str, int] = {}
    rounds: list[tuple[float | None, dict[str, float]]] = []
    with contextlib.ExitStack() as stack:
        workers = {name: stack.enter_context(started(workload, name)) for name in names}
        for name, worker in list(workers.items()):
            try:
                peaks[name] = round(worker.recv() / 1e6)
            except EOFError:
                say(f"{name} was killed, perhaps because memory ended: left out")
                peaks[name] = None
                del workers[name]
        for name, worker in workers.items():
            worker.send(1)
            calls[name] = max(1, math.ceil(BURST_SECONDS / worker.recv()[0]))
        ends = time.monotonic() + seconds
        while len(rounds) < FEWEST_ROUNDS or time.monotonic() < ends:
            began, busy_before, own = time.perf_counter(), busy_seconds(), 0.0
            times = {}
            for name, worker in workers.items():
                worker.send(calls[name])
                times[name], used = worker.recv()
                own += used
            busy, share = busy_seconds(), None
            if busy is not None and busy_before is not None:
                cores = (time.perf_counter() - began) * (os.cpu_count() or 1)
                share = max(0.0, busy - busy_before - own) / cores
            rounds.append((share, times))
    quiet = [(share, times) for share, times in rounds if share is None or share <= DISTURBED]
    kept = quiet if len(quiet) >= FEWEST_ROUNDS else rounds
    known = [share for share, _ in kept if share is not None]
    others = round(statistics.mean(known), 3) if known else None
    return Turns([times for _, times in kept], len(rounds) - len(kept), others, peaks)


@contextlib.contextmanager
def started(workload: Workload, name: str) -> Iterator[Any]:
    """A connection to a contender in a new process; the process ends with the block."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve_turns, args=(theirs, workload, name), daemon=True)
    process.start()
    theirs.close()  # so that the end of the process is the end of the connection
    try:
        yield ours
    finally:
        process.kill()
        process.join()


def serve_turns(connection: Any, workload: Workload, name: str) -> None:
    """A contender's process: sends the bytes that it grew by; then for each number of steps that it receives, the
    seconds per step and the core-seconds that it used."""
    keep_freed_memory()  # for everyone, as `rhapsode train` does: PyTorch's RNN gains most by it
    if name == PRODUCT:
        step = product()
    else:
        model = contenders(workload.config)[name]
        step = training_step(model, loss_of(model), batches(workload))
        torch.mm(torch.ones(256, 256), torch.ones(256, 256))  # the matrix library's own buffers
    before = resident_bytes()
    for _ in range(2):  # the optimiser's state is there from the second step on
        step()
    connection.send(resident_bytes(peak=True) - before)
    while True:
        calls, used_before = connection.recv(), core_seconds()
        if calls > 1:
            step()  # untimed: brings back the caches that the others have taken
        began = time.perf_counter()
        for _ in range(calls):
            step()
        connection.send(((time.perf_counter() - began) / calls, core_seconds() - used_before))


def core_seconds() -> float:
    """What this process has used of the cores since it started."""
    return sum(os.times()[:2])


def busy_seconds() -> float | None:
    """Core-seconds that anyone has used since the machine started; None where the system does not say."""
    try:
        fields = Path("/proc/stat").read_text(encoding="utf-8").splitlines()[0].split()[1:]
    except OSError:
        return None
    user, nice, system, _, _, irq, soft_irq, steal = (int(field) for field in fields[:8])
    return (user + nice + system + irq + soft_irq + steal) / os.sysconf("SC_CLK_TCK")


def resident_bytes(peak: bool = False) -> int:
    """Resident memory of this process, now or at its highest.

    From /proc where there is one: ru_maxrss of a process that was started by a larger one begins at the larger one's.
    """
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:" if peak else "VmRSS:")[1].split()[0]) * 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def as_table(result: dict[str, Any]) -> Table:
    """The result for the terminal."""
    table = Table(
        title="A training step, side by side", caption=f"{result['machine']}, torch {result['torch']}, medians"
    )
    table.add_column(f"vocabulary 1024, {WORKLOADS[0].length} tokens")
    for heading in ("tokens/s", "vs stepwise (a)", "vs nn.RNN (b)", "share of product (c)", "peak MB: ours, a, b"):
        table.add_column(heading, justify="right")
    for row in result["settings"]:
        ratios, peaks = row["times_as_fast_as"], row["peak_megabytes"]
        table.add_row(
            row["name"],
            f"{row['tokens_per_second'][OURS]:,}",
            *(f"{ratios[name]:.2f}x" if name in ratios else "-" for name in ("stepwise", "nn.RNN")),
            f"{row['share_of_product_rate']:.0%}",
            ", ".join(f"{peaks[name]:,}" for name in (OURS, "stepwise", "nn.RNN") if peaks.get(name)) or "-",
        )
    return table
