"""The plots of a study, as SVG whose text is text, and as PNG.

Lines differ in colour, dashes and markers, and each is in the legend.
"""

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from rhapsode.figure import COLOURS, DASHES, LITERAL_TEXT, MARKERS
from rhapsode.files import replacing, write_text

MOST_LINES = len(COLOURS)
WIDTH, HEIGHT = 7.0, 4.4  # inches
MARK_COLOUR = "#7F7F7F"
PNG_DOTS_PER_INCH = 150


@dataclass(frozen=True)
class Line:
    """A labelled line; low and high: the ends of a band around it, or of whiskers, empty for none."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True)
class Figure:
    """A drawn plot. svg: the text of the file, to be put into a page too. alt: what it shows, in words."""

    name: str
    title: str
    alt: str
    svg: str = field(repr=False)
    png: bytes = field(repr=False)

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        """How a notebook shows it: at 100 dots an inch, sharper where the screen is."""
        return self.png, {"width": round(100 * WIDTH)}

    def save(self, folder: Path) -> None:
        """Writes NAME.svg and NAME.png."""
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / f"{self.name}.svg", '<?xml version="1.0" encoding="utf-8"?>\n' + self.svg)
        with replacing(folder / f"{self.name}.png") as temporary:
            temporary.write_bytes(self.png)


def lines(
    name: str,
    title: str,
    x_label: str,
    y_label: str,
    drawn: Sequence[Line],
    legend: str = "",
    log_x: bool = False,
    mark: tuple[float, str] | None = None,
) -> Figure:
    """A plot of lines; mark: a place on the x-axis, and what is there.

    Raises ValueError for no line, or for more than can be told apart.
    """
    if not 0 < len(drawn) <= MOST_LINES:
        raise ValueError(f"a plot has 1 to {MOST_LINES} lines, got {len(drawn)}")
    with _drawing(name):
        figure, axes = _axes(title, x_label, y_label, HEIGHT)
        for i, line in enumerate(drawn):
            style = {"color": COLOURS[i], "linestyle": DASHES[i], "marker": MARKERS[i], "markersize": 5}
            axes.plot(line.x, line.y, label=line.label, linewidth=1.8, **style)
            if line.low:
                axes.fill_between(line.x, line.low, line.high, color=COLOURS[i], alpha=0.15, linewidth=0)
        if mark is not None:
            axes.axvline(mark[0], label=mark[1], color=MARK_COLOUR, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
        if log_x:
            _log_ticks(axes, sorted({x for line in drawn for x in line.x}))
        else:
            axes.set_xlim(left=0)
            axes.xaxis.set_major_formatter(_thousands())
        axes.legend(title=legend or None, frameon=True, handlelength=3.5)
        ends = "; ".join(f"{line.label} ends at {line.y[-1]:.3f}" for line in drawn)
        return _drawn(figure, name, title, f"{title}. {y_label} against {x_label}: {ends}.")


def dots(name: str, title: str, x_label: str, drawn: Sequence[Line], labels: Sequence[str]) -> Figure:
    """Values beside their labels, one row each, a marker per line (each with a value for every label)."""
    with _drawing(name):
        figure, axes = _axes(title, x_label, "", max(HEIGHT * 0.6, 1.4 + 0.36 * len(labels)))
        rows = range(len(labels))
        for i, line in enumerate(drawn):
            style = {"color": COLOURS[i], "marker": MARKERS[i], "markersize": 7}
            axes.plot(line.y, rows, label=line.label, linestyle="none", **style)
            if line.low:
                axes.hlines(rows, line.low, line.high, color=COLOURS[i], linewidth=1.5)
        axes.set_yticks(rows, labels)
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.legend(frameon=True)
        values = "; ".join(f"{label} {drawn[-1].y[row]:.3f}" for row, label in enumerate(labels))
        return _drawn(figure, name, title, f"{title}. {drawn[-1].label}: {values}.")


@contextmanager
def _drawing(name: str) -> Iterator[None]:
    """matplotlib's settings for a plot of that name, while it is made and while it is saved."""
    try:
        import matplotlib
    except ImportError:
        raise ValueError("the report of a study needs matplotlib: pip install 'rhapsode[study]'") from None
    with (
        matplotlib.rc_context(LITERAL_TEXT | {"svg.fonttype": "none", "svg.hashsalt": name}),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the SVG has it as text all the same
        yield


def _axes(title: str, x_label: str, y_label: str, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=12, loc="left")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(True, color="#d9d9d9", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _thousands() -> Any:
    from matplotlib.ticker import FuncFormatter

    return FuncFormatter(lambda value, _: f"{value:,.0f}")


def _log_ticks(axes: Any, places: Sequence[float]) -> None:
    """Ticks where there are values, and nowhere else."""
    axes.set_xscale("log")
    axes.set_xticks(places, [f"{x:,.0f}" for x in places])
    axes.minorticks_off()


def _drawn(figure: Any, name: str, title: str, alt: str) -> Figure:
    """Renders the plot. The SVG holds no date and no reference, and its ids begin with its name, since several SVGs
    stand in one page."""
    svg, png = io.StringIO(), io.BytesIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(svg, format="svg", metadata=nothing)
    figure.savefig(png, format="png", dpi=PNG_DOTS_PER_INCH)
    text = svg.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1), count=1
    )
    described = f'role="img" aria-labelledby="{name}-title {name}-alt"'
    head = f'<title id="{name}-title">{escape(title)}</title>\n <desc id="{name}-alt">{escape(alt)}</desc>'
    text = re.sub(r"<svg([^>]*)>", rf"<svg\1 {described}>" + "\n " + head.replace("\\", "\\\\"), text, count=1)
    return Figure(name, title, alt, text, png.getvalue())
