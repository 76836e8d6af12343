"""Parts of figures that several examples share; they draw on matplotlib axes that they are given."""

from typing import Any

import numpy as np

from rhapsode.textbook.explain.page import number

INK, ACCENT, SECOND, PALE = "#22303c", "#c8553d", "#2a6f97", "#e9eef2"


def draw_grid(
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
                zorder=5,
            )
        )


def bare_axes(ax: Any, title: str, x: str, y: str) -> None:
    """Names for the axes of a chart, and no box around it."""
    ax.set_title(title, fontsize=10, color=INK)
    ax.set_xlabel(x, fontsize=9, color=INK)
    ax.set_ylabel(y, fontsize=9, color=INK)
    ax.tick_params(labelsize=8, colors=INK)
    ax.spines[["top", "right"]].set_visible(False)


def node(ax: Any, x: float, y: float, label: str, colour: str = PALE) -> Any:
    """A labelled node of a graph; returns what `arrow` connects."""
    box = {"boxstyle": "round,pad=0.45", "facecolor": colour, "edgecolor": INK, "linewidth": 0.8}
    return ax.text(x, y, label, ha="center", va="center", fontsize=9, color=INK, bbox=box, zorder=2)


def arrow(ax: Any, start: Any, end: Any, label: str = "", colour: str = INK, bend: float = 0) -> None:
    """An arrow from the edge of one node to the edge of another, with a label beside its middle."""
    (x_0, y_0), (x_1, y_1) = start.get_position(), end.get_position()
    style = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.1, "connectionstyle": f"arc3,rad={bend}"}
    ends = {"patchA": start.get_bbox_patch(), "patchB": end.get_bbox_patch(), "shrinkA": 2, "shrinkB": 2}
    # Above the nodes, whose outlines are known once they are drawn.
    ax.annotate("", xy=(x_1, y_1), xytext=(x_0, y_0), arrowprops={**style, **ends}, zorder=3)
    if label:
        upright = abs(x_0 - x_1) < abs(y_0 - y_1)
        ax.annotate(
            label,
            xy=((x_0 + x_1) / 2, (y_0 + y_1) / 2),
            xytext=(5, 0) if upright else (0, 4),
            textcoords="offset points",
            ha="left" if upright else "center",
            va="center" if upright else "bottom",
            fontsize=8,
            color=colour,
        )


def note(ax: Any, x: float, y: float, text: str, **alignment: str) -> None:
    """Small text in the accent colour: a gradient beside the node or arrow that it belongs to."""
    ax.text(x, y, text, fontsize=7.5, color=ACCENT, zorder=4, **alignment)
