"""Parts of figures that several examples share; they draw on matplotlib axes that they are given."""

from typing import Any

import numpy as np

from rhapsode.textbook.explain.page import number

INK, ACCENT, SECOND, PALE = "#22303c", "#c8553d", "#2a6f97", "#e9eef2"


def grid(
    ax: Any,
    values: np.ndarray,
    title: str,
    patch: tuple[int, int, int, int] | None = None,
    colours: str = "RdBu_r",
    symmetric: bool = True,
) -> None:
    """A matrix as coloured cells with their numbers; `patch` (row, column, height, width) is framed.

    symmetric: white is 0 and the two ends are ± the largest absolute value; otherwise the scale starts at 0.
    """
    values = np.atleast_2d(values)
    largest = np.nanmax(np.abs(np.where(np.isfinite(values), values, np.nan)), initial=1e-12)
    # Paler than the colour map's ends, so that dark numbers stay readable on every cell.
    scale = 1.8 * largest
    ax.imshow(values, cmap=colours, vmin=-scale if symmetric else 0, vmax=scale)
    rows, columns = values.shape
    if values.size <= 150:
        size = float(np.clip(44 / columns, 6, 10))
        for i, j in np.ndindex(rows, columns):
            label = number(float(values[i, j])) if np.isfinite(values[i, j]) else "-∞"
            ax.text(j, i, label, ha="center", va="center", fontsize=size, color=INK)
    ax.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
    ax.grid(which="minor", color="white", linewidth=1.2 if values.size <= 150 else 0.3)
    ax.tick_params(which="both", length=0, labelbottom=False, labelleft=False)
    for side in ax.spines.values():
        side.set_visible(False)
    ax.set_title(title, fontsize=10, color=INK)
    if patch is not None:
        from matplotlib.patches import Rectangle

        row, column, height, width = patch
        ax.add_patch(
            Rectangle(
                (column - 0.5, row - 0.5),
                width,
                height,
                fill=False,
                edgecolor=ACCENT,
                linewidth=2.5,
                clip_on=False,
            )
        )


def plain(ax: Any, title: str, x: str, y: str) -> None:
    """Names for the axes of a chart, and no box around it."""
    ax.set_title(title, fontsize=10, color=INK)
    ax.set_xlabel(x, fontsize=9, color=INK)
    ax.set_ylabel(y, fontsize=9, color=INK)
    ax.tick_params(labelsize=8, colors=INK)
    ax.spines[["top", "right"]].set_visible(False)


def node(ax: Any, x: float, y: float, label: str, colour: str = PALE) -> None:
    """A labelled node of a graph."""
    box = {"boxstyle": "round,pad=0.45", "facecolor": colour, "edgecolor": INK, "linewidth": 0.8}
    ax.text(x, y, label, ha="center", va="center", fontsize=9, color=INK, bbox=box, zorder=3)


def arrow(
    ax: Any,
    start: tuple[float, float],
    end: tuple[float, float],
    label: str = "",
    colour: str = INK,
    bend: float = 0,
) -> None:
    """An arrow between two points, with a label beside its middle."""
    style = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.1, "connectionstyle": f"arc3,rad={bend}"}
    ax.annotate("", xy=end, xytext=start, arrowprops={**style, "shrinkA": 0, "shrinkB": 0}, zorder=1)
    if label:
        x, y = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
        upright = abs(start[0] - end[0]) < abs(start[1] - end[1])
        ax.text(
            x + (0.06 if upright else 0),
            y + (0 if upright else 0.09),
            label,
            ha="left" if upright else "center",
            va="center" if upright else "bottom",
            fontsize=8,
            color=colour,
        )
