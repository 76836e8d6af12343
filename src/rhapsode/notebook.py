"""In a notebook, training shows itself: a bar, the rates, and the curve of the loss, drawn anew twice a second."""

import html
import sys
import time
from typing import Any

from rhapsode.training.events import Ended, Event, Started, Step, Validated

SECONDS_BETWEEN_PICTURES = 0.5
MOST_POINTS = 300  # of the curve
WIDTH, HEIGHT, MARGIN = 520, 150, 34
TRAINING, VALIDATION = "#2A8CCB", "#D55E00"  # seen on white and on black


def in_notebook() -> bool:
    """Whether this program is the kernel of a notebook, which can show pictures."""
    if "ipykernel" not in sys.modules:
        return False
    from ipykernel.zmqshell import ZMQInteractiveShell
    from IPython import get_ipython

    return isinstance(get_ipython(), ZMQInteractiveShell)  # Colab's is a kind of it


class LiveTraining:
    """Hears the events of a training, and shows it in the cell that runs."""

    def __init__(self) -> None:
        self.losses: list[tuple[int, float]] = []
        self.validations: list[Validated] = []
        self.every, self.shown, self.smooth, self.heard = 1, 0.0, 0.0, 0
        self.line, self.path, self.sample, self.share = "reading the text", "", "", 0.0
        self.handle: Any = None

    def begin(self) -> None:
        """Shows that something happens, while text is read and tokens are made of it."""
        self._show()

    def __call__(self, event: Event) -> None:
        """Takes an event; draws where it is time to."""
        if isinstance(event, Started):
            self.path = str(event.path)
            self.line = f"{event.parameters:,} parameters on {event.device}: {self.path}"
        elif isinstance(event, Step):
            self._take(event)
        elif isinstance(event, Validated):
            self.validations.append(event)
            self.sample = event.sample or ""
        elif isinstance(event, Ended):
            self._end(event)
        now = time.monotonic()
        if not isinstance(event, Step) or now - self.shown > SECONDS_BETWEEN_PICTURES:
            self.shown = now
            self._show()

    def _take(self, step: Step) -> None:
        self.heard += 1
        # Over a fortieth of the training: a longer mean would lag far behind the validation's loss in a short one.
        width = min(20, max(2, step.total_steps // 40)) if step.total_steps else 20
        self.smooth += (step.loss - self.smooth) / min(self.heard, width)
        if step.step % self.every == 0:
            self.losses.append((step.step, self.smooth))
            if len(self.losses) > MOST_POINTS:
                self.losses, self.every = self.losses[::2], 2 * self.every
        total = f" of {step.total_steps:,}" if step.total_steps else ""
        rate = step.tokens / max(step.seconds, 1e-9)
        left = ""
        if step.total_steps:
            self.share = step.step / step.total_steps
            left = f", {step.seconds / step.step * (step.total_steps - step.step):,.0f} s left"
        self.line = f"step {step.step:,}{total}: loss {self.smooth:.3f}, {rate:,.0f} tokens/s{left}"

    def _end(self, event: Ended) -> None:
        ends = {"budget": "", "patience": ", stopped early: no gain any more", "interrupted": ", stopped and saved"}
        self.line = f"{event.step:,} steps, {event.tokens:,} tokens{ends[event.reason]}"
        if self.validations:
            best = min(self.validations, key=lambda each: each.valid_loss)
            bits = "" if best.bits_per_byte is None else f", {best.bits_per_byte:.3f} bits per byte"
            self.line += f"; validation loss {best.valid_loss:.3f} nats per token{bits}"
        self.line += f"; kept in {self.path}"
        self.share = self.share if event.reason == "interrupted" else 1.0

    def _show(self) -> None:
        from IPython.display import HTML, display

        page = HTML(self.page())
        if self.handle is None:
            self.handle = display(page, display_id=True)
        else:
            self.handle.update(page)

    def page(self) -> str:
        """What is shown, as HTML; the model's text in it is text."""
        bar = f'<progress value="{self.share:.4f}" style="width:{WIDTH}px"></progress>'
        sample = f'<div style="opacity:.7;max-width:{WIDTH}px">{html.escape(self.sample)}</div>' if self.sample else ""
        return f"<div>{html.escape(self.line)}</div>{bar}{self._curve()}{sample}"

    def _curve(self) -> str:
        validations = [(each.step, each.valid_loss) for each in self.validations]
        points = self.losses + validations
        if len(self.losses) < 2:
            return ""
        last = max(step for step, _ in points)
        low, high = min(loss for _, loss in points), max(loss for _, loss in points)

        def place(step: int, loss: float) -> str:
            x = MARGIN + (WIDTH - MARGIN - 4) * step / last
            y = 4 + (HEIGHT - MARGIN) * (high - loss) / ((high - low) or 1)
            return f"{x:.1f},{y:.1f}"

        line = " ".join(place(*point) for point in self.losses)
        dots = "".join(
            '<circle cx="{}" cy="{}" r="3" fill="{}"/>'.format(*place(*point).split(","), VALIDATION)
            for point in validations
        )
        axis = HEIGHT - MARGIN + 4
        rules = "".join(
            f'<line x1="{MARGIN}" x2="{WIDTH}" y1="{y}" y2="{y}" stroke="currentColor" stroke-opacity="0.2"/>'
            for y in (4, axis)
        )
        labels = (
            f'<text x="0" y="12">{high:.2f}</text><text x="0" y="{axis}">{low:.2f}</text>'
            f'<text x="{MARGIN}" y="{HEIGHT - 8}">loss in nats per token: <tspan fill="{TRAINING}">training</tspan>,'
            f' <tspan fill="{VALIDATION}">validation</tspan>; step {last:,}</text>'
        )
        style = "font:10px sans-serif;fill:currentColor;display:block"
        return (
            f'<svg width="{WIDTH}" height="{HEIGHT}" style="{style}" role="img" aria-label="the loss during training">'
            f'{rules}<polyline points="{line}" fill="none" stroke="{TRAINING}" stroke-width="1.5"/>{dots}{labels}</svg>'
        )
