"""How long work shows itself: a live bar on a terminal, now and then a quiet line elsewhere; always on stderr."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import pairwise
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from rhapsode.terminal import literal


class LiteralConsole(Console):
    """A console on which text is text, in lines, tables and titles: no markup, no `:emoji:`, no escape sequences."""

    def render_str(self, text: str, **options: Any) -> Text:
        """The text with what a terminal would obey spelled out."""
        return super().render_str(literal(text), **(options | {"markup": False, "emoji": False}))


console = LiteralConsole(stderr=True, highlight=False, markup=False, emoji=False)

SECONDS_BETWEEN_LINES = 15.0
_talks: ContextVar[bool] = ContextVar("talks", default=True)


@contextmanager
def silent(when: bool = True) -> Iterator[None]:
    """Within the block nothing is shown, neither lines nor bars; when: False changes nothing."""
    token = _talks.set(_talks.get() and not when)
    try:
        yield
    finally:
        _talks.reset(token)


def say(message: str) -> None:
    """Prints one line of talk to stderr, without wrapping."""
    if _talks.get():
        console.print(message, soft_wrap=True)


def show(table: Table) -> None:
    """Prints a table to stdout."""
    LiteralConsole(markup=False, emoji=False).print(table)


@contextmanager
def bar(description: str, total: float | None, unit: str = "") -> Iterator[Callable[[float], None]]:
    """Yields `advance(amount)`: a bar with rate and ETA on a terminal, a line every 15 seconds elsewhere.

    total: the amount that means done, in `unit`s (None if unknown). The rate is the mean since the start.
    """
    if not _talks.get():
        yield lambda amount: None
        return
    started = last_line = time.monotonic()
    done = 0.0

    def rate() -> str:
        return f"{done / max(time.monotonic() - started, 1e-9):,.1f} {unit}/s"

    if console.is_terminal:
        rate_column = TextColumn("{task.fields[rate]}", markup=False)
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), rate_column)
        # Left to itself, rich sends stdout through this console: to the screen, even where stdout is a file.
        live = Progress(
            *columns, TimeRemainingColumn(), console=console, transient=True, redirect_stdout=sys.stdout.isatty()
        )
        with live as progress:
            task = progress.add_task(literal(description), total=total, rate="")

            def advance(amount: float) -> None:
                nonlocal done
                done += amount
                progress.update(task, completed=done, rate=rate())

            yield advance
    else:

        def advance(amount: float) -> None:
            nonlocal done, last_line
            done += amount
            now = time.monotonic()
            if now - last_line >= SECONDS_BETWEEN_LINES:
                last_line = now
                share = f"{done / total:.0%}, " if total else ""
                say(f"{description}: {share}{rate()}")
                sys.stderr.flush()

        yield advance


SPARKS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """The values as a line of small bars, averaged down to `width` of them; highest value, highest bar."""
    if not values:
        return ""
    width = min(width, len(values))
    edges = [round(i * len(values) / width) for i in range(width + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(SPARKS) - 1) / (high - low) if high > low else 0.0
    return "".join(SPARKS[round((mean - low) * scale)] for mean in means)


class TrainingDisplay:
    """What training shows: on a terminal a live bar with loss, rate, ETA and a small loss curve; else lines.

    past: losses that were reported before a resume. enabled=False shows nothing.
    """

    def __init__(self, past: Sequence[float], enabled: bool = True) -> None:
        enabled = enabled and _talks.get()
        self.losses, self.enabled = list(past), enabled
        self.smooth: float | None = None
        self.live = enabled and console.is_terminal
        self.told = self.shown = time.monotonic()
        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[numbers]}", markup=False),
            TimeRemainingColumn(),
            console=console,
        )
        self.task = self.bar.add_task("training", total=None, numbers="")
        self.scored = 0

    def __enter__(self) -> "TrainingDisplay":
        if self.live:
            self.view = Live(self.bar, console=console, transient=True, refresh_per_second=4)
            self.view.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.view.__exit__(None, None, None)

    def say(self, line: str) -> None:
        """A line that stays."""
        self.scored = 0
        self.told = time.monotonic()
        if self.enabled:
            say(line)

    def sample(self, line: str) -> None:
        """A text that the model wrote; only people at a terminal want it now."""
        if self.live:
            console.print(line, style="italic")

    def step(self, step: int, total: int, loss: float, tokens: int, seconds: float) -> None:
        """After each step: the loss is smoothed here; seconds and tokens are those of training so far."""
        if not self.enabled:
            return
        self.smooth = loss if self.smooth is None else 0.95 * self.smooth + 0.05 * loss
        known = total < 10**12
        if step * 200 // total > (step - 1) * 200 // total or not known:
            self.losses.append(self.smooth)
        now = time.monotonic()
        numbers = f"loss {self.smooth:.3f}  {tokens / max(seconds, 1e-9):,.0f} tokens/s"
        if self.live and now - self.shown > 0.25:
            self.shown = now
            self.bar.update(self.task, completed=step, total=total if known else None, numbers=numbers)
            self.bar.update(self.task, description="training")
            curve = f"{sparkline(self.losses)} {max(self.losses):.2f} to {self.smooth:.2f}" if self.losses else ""
            self.view.update(Group(self.bar, Text(f"loss     {curve}", style="cyan")))
        elif not self.live and now - self.told > SECONDS_BETWEEN_LINES:
            self.told = now
            left = f", {seconds / step * (total - step):,.0f} s left" if known else ""
            say(f"step {step:,}{f' of {total:,}' if known else ''}: {numbers}{left}")
            sys.stderr.flush()

    def validating(self, tokens: int, total: int) -> None:
        """After each piece of a validation: `tokens` more of `total`."""
        self.scored += tokens
        if self.live:
            self.bar.update(self.task, description=f"validating {min(1, self.scored / max(1, total)):.0%}")
