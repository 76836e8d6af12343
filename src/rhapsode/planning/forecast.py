"""From a recipe, a number of tokens and of machines to times, as ranges: what a training takes, and what breaks first.

Within ten times what was measured (in FLOPs of a step, in processes), a time is off by the fit's error on held-out
points; beyond, by as much more for each further factor of ten, and it is marked as extrapolated.
"""

import math
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from rhapsode.planning.costs import (
    SAVED_BYTES,
    STEP_OVER_FORWARD,
    Device,
    Link,
    demand_of,
    disk_bytes_per_second,
    parameters_of,
    seconds_by_part,
    seconds_of_sum,
    summed_bytes,
)
from rhapsode.recipe import Recipe

LARGEST_PLAN = 1e18  # tokens
MEASURED_PROCESSES = 2
TRUSTED = 10.0  # times what was measured
TOKEN_BYTES = 2  # of a store on disk
BYTES_PER_TOKEN = 3.0  # of text, roughly, with a vocabulary of a thousand
DAYS_BETWEEN_FAILURES = 300.0  # of one machine
RESTART_SECONDS = 120.0
FEW_ROWS = 8  # of a process: below, matrix products run far below the rate that was measured


@dataclass(frozen=True)
class Fleet:
    """What trains: machines with so many processes each, of one device, and the link between them.

    Raises ValueError for numbers below 1.
    """

    device: Device
    link: Link
    machines: int = 1
    processes_per_machine: int = 1

    def __post_init__(self) -> None:
        for name in ("machines", "processes_per_machine"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def processes(self) -> int:
        return self.machines * self.processes_per_machine


@dataclass(frozen=True)
class Forecast:
    """What a training would take. seconds: of a step, by what they go into; total_seconds: of all of it.

    factor: the truth is expected between total / factor and total x factor. notes: what breaks first, and what to do.
    """

    seconds: dict[str, float]
    steps: int
    tokens_per_second: float
    efficiency: float
    total_seconds: float
    factor: float
    extrapolated: bool
    summed_bytes: float
    checkpoint_bytes: float
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        low, high = self.total_seconds / self.factor, self.total_seconds * self.factor
        return {**vars(self), "total_seconds_low": low, "total_seconds_high": high}


def forecast(recipe: Recipe, tokens: float, fleet: Fleet, valid_tokens: float = 300_000) -> Forecast:
    """What it would take to train on so many tokens; valid_tokens are scored at each validation.

    Raises ValueError for tokens not above 0 or above LARGEST_PLAN, and where the batch has fewer rows than there are
    processes.
    """
    if not 0 < tokens <= LARGEST_PLAN:
        raise ValueError(f"tokens must be above 0 and at most {LARGEST_PLAN:g}, got {tokens:g}")
    model, batch, train = recipe.model, recipe.batch, recipe.train
    count = fleet.processes
    if batch.batch_size < count:
        raise ValueError(
            f"batch_size {batch.batch_size} has fewer rows than the {count:,} processes: use --set batch_size={count}"
            " or more"
        )
    rows, batch_tokens = math.ceil(batch.batch_size / count), batch.batch_size * batch.window
    demand = demand_of(model, rows, batch.window)
    summed = summed_bytes(model, batch_tokens)
    seconds = seconds_by_part(demand, fleet.device)
    seconds["sum of gradients"] = seconds_of_sum(summed, count, fleet.link)
    steps = max(1, round(tokens / batch_tokens))
    alone = sum(seconds_by_part(demand_of(model, batch.batch_size, batch.window), fleet.device).values())
    parameters, _ = parameters_of(model)
    saved = SAVED_BYTES * parameters
    training = steps * sum(seconds.values())
    scoring = demand_of(model, 1, batch.window).flops / batch.window / STEP_OVER_FORWARD * valid_tokens
    validating = train.validations * scoring / fleet.device.flops_per_second / count
    saves = train.validations + training / max(1.0, train.checkpoint_seconds)
    saving = saves * saved / disk_bytes_per_second()
    failures = (training + validating + saving) / 86_400 / DAYS_BETWEEN_FAILURES * fleet.machines
    restarting = failures * (RESTART_SECONDS + train.checkpoint_seconds / 2)
    total = training + validating + saving + restarting
    beyond = _beyond(demand.flops, count, fleet.device)
    error = max(fleet.device.error, fleet.link.error if count > 1 else 0.0)
    factor = (1 + error) ** (1 + math.log10(beyond))
    parts = {"validation": validating, "saving": saving, "restarts": restarting}
    notes = _notes(seconds, parts, training, rows, count, failures, tokens, saved)
    return Forecast(
        seconds,
        steps,
        tokens / total,
        alone / count / sum(seconds.values()),
        total,
        factor,
        beyond > 1,
        summed,
        saved,
        notes,
    )


def _beyond(flops: float, processes: int, device: Device) -> float:
    """How many times further than what is trusted; 1 within that."""
    largest = max(flops / device.most_flops, device.least_flops / flops, processes / MEASURED_PROCESSES)
    return max(1.0, largest / TRUSTED)


def _notes(
    seconds: dict[str, float],
    parts: dict[str, float],
    training: float,
    rows: int,
    count: int,
    failures: float,
    tokens: float,
    saved: float,
) -> list[str]:
    """What breaks first, and what one would do then; the gravest first."""
    step = sum(seconds.values())
    found: list[tuple[float, str]] = []
    share = seconds["sum of gradients"] / step
    if share > 0.2:
        cure = "a larger batch_size, for fewer sums of a token; then a faster link, or gradients in 16 bits"
        found.append((share, f"the sum of gradients takes {share:.0%} of a step: {cure}"))
    share = seconds["launches"] / step
    if share > 0.3:
        cure = "more rows for each process, or on a GPU the whole step as one graph"
        found.append((share, f"starting the operations takes {share:.0%} of a step: {cure}"))
    share = seconds["optimiser"] / step
    if share > 0.3:
        cure = "a larger batch_size, or an optimiser that is divided among the processes"
        found.append((share, f"the optimiser takes {share:.0%} of a step, the same in every process: {cure}"))
    if rows < FEW_ROWS and count > 1:
        found.append((0.5, f"{rows} rows are left for each process: matrix products become slow; a larger batch_size"))
    share = parts["saving"] / max(training, 1e-9)
    if share > 0.1:
        cure = "--set checkpoint_seconds=600, or checkpoints written by all processes"
        found.append((share, f"saving {saved / 1e6:,.0f} MB takes {share:.0%} of the training: {cure}"))
    if parts["validation"] > 0.1 * training:
        found.append((0.2, "validation takes more than a tenth of the training: --set validations=3, or less text"))
    if failures > 1:
        cure = "torchrun --max-restarts, and a run directory that all machines see"
        found.append((0.1, f"about {failures:,.0f} failures of a machine on the way: {cure}"))
    store = tokens * TOKEN_BYTES
    if store > 1e11:
        text = f"{store / 1e12:.1f} TB of tokens, of some {tokens * BYTES_PER_TOKEN / 1e12:,.1f} TB of text"
        found.append((0.05, f"{text}, if none is read twice: prepare it in shards, and read those by range"))
    return [note for _, note in sorted(found, key=lambda each: -each[0])]


def duration(seconds: float) -> str:
    """A length of time for people: `40 s`, `3.1 minutes`, `2.4 days`, `31 years`."""
    for unit, size in (("years", 365.25 * 86_400), ("days", 86_400.0), ("hours", 3_600.0), ("minutes", 60.0)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.1f} s"


def forecast_table(found: Forecast, fleet: Fleet, tokens: float) -> Table:
    """A forecast for the terminal."""
    title = f"{tokens:,.0f} tokens on {fleet.machines:,} x {fleet.processes_per_machine} {fleet.device.name}"
    table = Table(title=title, title_justify="left")
    for heading in ("", "value", "range"):
        table.add_column(heading, justify="left" if not heading else "right")

    def row(name: str, value: float, form: Any, ranged: bool = True) -> None:
        spread = f"{form(value / found.factor)} to {form(value * found.factor)}" if ranged else ""
        table.add_row(name, form(value), spread)

    for part, seconds in found.seconds.items():
        row(f"a step: {part}", seconds, lambda s: f"{1e3 * s:,.2f} ms")
    row("a step", sum(found.seconds.values()), lambda s: f"{1e3 * s:,.2f} ms")
    row("tokens per second", found.tokens_per_second, lambda value: f"{value:,.0f}")
    row("all of it", found.total_seconds, duration)
    hours = found.total_seconds * fleet.processes / 3600
    row(f"hours of a {fleet.device.name}", hours, lambda value: f"{value:,.1f}")
    row("steps", found.steps, lambda value: f"{value:,.0f}", ranged=False)
    row("share of N times one", found.efficiency, lambda value: f"{value:.0%}", ranged=False)
    row("bytes of a sum", found.summed_bytes, lambda value: f"{value / 1e6:,.2f} MB", ranged=False)
    row("bytes of a checkpoint", found.checkpoint_bytes, lambda value: f"{value / 1e6:,.1f} MB", ranged=False)
    if found.extrapolated:
        table.caption = "extrapolated: more than ten times what was measured"
    return table
