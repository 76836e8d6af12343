"""How long work shows itself: a live bar on a terminal, now and then a quiet line elsewhere; always on stderr."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

console = Console(stderr=True, highlight=False)

SECONDS_BETWEEN_LINES = 15.0


def say(message: str) -> None:
    """Prints one line of talk to stderr, without markup or wrapping."""
    console.print(message, markup=False, soft_wrap=True)


@contextmanager
def bar(description: str, total: float | None, unit: str = "") -> Iterator[Callable[[float], None]]:
    """Yields `advance(amount)`: a bar with rate and ETA on a terminal, a line every 15 seconds elsewhere.

    total: the amount that means done, in `unit`s (None if unknown). The rate is the mean since the start.
    """
    started = last_line = time.monotonic()
    done = 0.0

    def rate() -> str:
        return f"{done / max(time.monotonic() - started, 1e-9):,.1f} {unit}/s"

    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[rate]}"))
        with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
            task = progress.add_task(description, total=total, rate="")

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
