"""How fast is a training step, and how do its time and memory grow? Writes benchmarks/results/.

    python benchmarks/training.py                    training.json: ours against three yardsticks, side by side
    python benchmarks/training.py --quick            the same in half a minute, without the large one, printed only
    python benchmarks/training.py --growth           growth.json and docs/figures/growth.svg: against T, batch, hidden
    python benchmarks/training.py --plot             docs/figures/growth.svg again from growth.json

What is measured, and how, is in race.py; the rivals are in rivals.py.
"""

import argparse
import math
import statistics
from pathlib import Path
from typing import Any

from race import OURS, as_table, measure, take_turns
from report import FIGURES, about, panels, read, save_figure, write
from rich.console import Console
from rivals import RIVALS

from rhapsode.bench import WORKLOADS, Workload, plain
from rhapsode.figure import COLOURS, DASHES, MARKERS
from rhapsode.progress import say

FIGURE = FIGURES / "growth.svg"
STEPWISE_LIMIT = 512  # tokens: the memory of the stepwise algorithm grows with their square

# For each axis, its points; the sizes that stand still are in `growth_workload`.
AXES = {
    "tokens": (128, 256, 512, 1024, 2048, 4096),
    "batch": (1, 4, 16, 64, 256),
    "hidden": (32, 64, 128, 256, 512, 1024),
}
LABELS = {
    "tokens": "tokens T in a window (batch 4, hidden 128)",
    "batch": "batch size (T 128, hidden 128)",
    "hidden": "hidden size (T 128, batch 16)",
}
LINES = {OURS: "rhapsode", "nn.RNN": "nn.RNN, SDPA, cross_entropy", "stepwise": "stepwise"}
STYLES: dict[str, dict[str, Any]] = {
    name: {"color": COLOURS[i], "marker": MARKERS[i], "linestyle": DASHES[i], "label": label}
    for i, (name, label) in enumerate(LINES.items())
}


def growth_workload(axis: str, size: int) -> Workload:
    """The workload at one point of an axis: one size is the point's, the others stand still."""
    if axis == "tokens":
        return Workload(f"T {size}", plain(128, 128, 128), batch_size=4, length=size)
    if axis == "batch":
        return Workload(f"batch {size}", plain(128, 128, 128), batch_size=size)
    return Workload(f"hidden {size}", plain(size, size, size), batch_size=16)


def measure_growth(seconds: float) -> dict[str, Any]:
    """Median seconds and peak megabytes of a step at every point of AXES."""
    growth: dict[str, Any] = {}
    for axis, sizes in AXES.items():
        growth[axis] = []
        for size in sizes:
            workload = growth_workload(axis, size)
            say(workload.name)
            names = [n for n in (OURS, *RIVALS) if n != "stepwise" or workload.length <= STEPWISE_LIMIT]
            turns = take_turns(workload, names, seconds)
            growth[axis].append(
                {
                    "size": size,
                    "seconds": {name: statistics.median(times[name] for times in turns.rounds) for name in names},
                    "peak_megabytes": turns.peak_megabytes,
                    "share_of_cores_taken_by_others": turns.others,
                }
            )
    return growth


def plot(growth: dict[str, Any], path: Path) -> None:
    """Two rows (time, memory) of three log-log panels (tokens, batch, hidden size); writes an SVG."""
    from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

    figure, axes = panels("growth", 2, 3, figsize=(12, 7), sharex="col")
    quantities = (("seconds", 1e3, "ms per training step"), ("peak_megabytes", 1, "peak memory of a step, MB"))
    for row, (quantity, unit, label) in zip(axes, quantities, strict=True):
        for ax, points in zip(row, growth.values(), strict=True):
            for name, style in STYLES.items():
                known = [(p["size"], unit * p[quantity][name]) for p in points if name in p[quantity]]
                ax.plot(*zip(*known, strict=True), linewidth=1.8, markersize=6, **style)
            sizes = [p["size"] for p in points]
            draw_slopes(ax, sizes, unit * points[-1][quantity][OURS])
            ax.set_xscale("log", base=2)
            ax.set_yscale("log")
            ax.xaxis.set_major_locator(FixedLocator(sizes))
            ax.xaxis.set_minor_locator(NullLocator())
            ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            ax.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
            ax.yaxis.set_minor_formatter(NullFormatter())
        row[0].set_ylabel(label)
    for ax, axis in zip(axes[1], growth, strict=True):
        ax.set_xlabel(LABELS[axis])
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    save_figure(figure, path)
    say(f"wrote {path}")


def draw_slopes(ax: Any, sizes: list[int], last: float) -> None:
    """Thin grey guides below our curve's end: what linear and quadratic growth would look like."""
    begin, end = sizes[-1] / 4, sizes[-1]
    for power, name in ((1, "linear"), (2, "quadratic")):
        top = last / 4
        ax.plot([begin, end], [top / math.pow(4, power), top], color="0.45", linewidth=0.9)
        ax.annotate(
            name,
            (begin, top / math.pow(4, power)),
            textcoords="offset points",
            xytext=(-4, 0),
            ha="right",
            va="center",
            fontsize=8,
            color="0.35",
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, help="how long each workload is timed (60; a point of --growth: 3)")
    parser.add_argument("--quick", action="store_true", help="6 seconds a workload, without the large one; prints only")
    parser.add_argument("--growth", action="store_true", help="time and memory against T, batch and hidden size")
    parser.add_argument("--plot", action="store_true", help="draw the figure again from growth.json")
    arguments = parser.parse_args()
    if arguments.growth:
        write("growth", {**about(), "growth": measure_growth(arguments.seconds or 3)})
    if arguments.growth or arguments.plot:
        plot(read("growth")["growth"], FIGURE)
        return
    result = measure(
        arguments.seconds or (6 if arguments.quick else 60), WORKLOADS[::2] if arguments.quick else WORKLOADS
    )
    if not arguments.quick:
        write("training", {**about(), **result})
    Console().print(as_table(result))


if __name__ == "__main__":
    main()
