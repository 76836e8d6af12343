"""What the judge measured (judge.py), for people: tables for a terminal, and a figure of recall."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from rhapsode.figure import COLOURS, DASHES, LITERAL_TEXT, MARKERS
from rhapsode.files import replacing
from rhapsode.storyworld import Accuracy


def tables(measured: Mapping[str, Any]) -> list[Table]:
    """What `summary` gave, as tables for a terminal."""
    made = []
    if "excess" in measured:
        made.append(_excess_table(measured["excess"]))
    if "recall" in measured:
        recall = measured["recall"]
        made.append(_recall_table(recall, "by_distance", "words since it was mentioned"))
        made.append(_recall_table(recall, "by_kind", "kind of reference"))
    if "generated" in measured:
        made += _generated_tables(measured["generated"])
    return made


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    return table


def _excess_table(floors: Mapping[str, Any]) -> Table:
    table = _table(
        "distance to the floor, in bits per byte",
        *("split", "loss", "floor of the split", "floor of these stories", "excess", "excess bits per story"),
    )
    for split, row in floors.items():
        numbers = (row["bits_per_byte"], row["floor_bits_per_byte"], row["sample_floor_bits_per_byte"])
        excess = f"{row['excess_bits_per_byte']:.4f}", f"{row['excess_bits_per_story']:.1f}"
        table.add_row(split, *(f"{number:.4f}" for number in numbers), *excess)
    return table


def _recall_table(recall: Mapping[str, Any], part: str, name: str) -> Table:
    table = _table(f"accuracy at references, {part.replace('_', ' ')}", name, *recall, "chance", "references")
    everything = [(key, [split[part].get(key) for split in recall.values()]) for key in _keys(recall, part)]
    everything.append(("all", [split["overall"] for split in recall.values()]))
    for key, cells in everything:
        shares = ["" if cell is None else f"{cell['accuracy']:.1%}" for cell in cells]
        there = [cell for cell in cells if cell is not None]
        number = sum(cell["references"] for cell in there)
        guesses = [cell["chance"] * cell["references"] for cell in there if "chance" in cell]
        guess = f"{sum(guesses) / number:.1%}" if len(guesses) == len(there) else ""
        table.add_row(key, *shares, guess, f"{number:,}", end_section=key == everything[-2][0])
    return table


def _keys(recall: Mapping[str, Any], part: str) -> list[str]:
    """The rows of all splits, in the order of the first that has them; bins of distances by size."""
    keys = list(dict.fromkeys(key for split in recall.values() for key in split[part]))
    return sorted(keys, key=lambda key: int(key.rstrip("+").split("-")[0])) if part == "by_distance" else sorted(keys)


def _generated_tables(report: Mapping[str, Any]) -> list[Table]:
    counts = Table(title="stories that the model wrote", title_justify="left", show_header=False)
    counts.add_column(justify="left")
    counts.add_column(justify="right")
    counts.add_row("written", f"{report['total']:,}")
    counts.add_row("follow the grammar", f"{report['parsed']:,} ({report['parsed'] / max(report['total'], 1):.0%})")
    counts.add_row("of which not in training", f"{report['new']:,}")
    counts.add_row("of which distinct", f"{report['distinct']:,}")
    if report["words_before_break"] is None:
        return [counts]
    counts.add_row("words before the others go wrong", f"{report['words_before_break']:.0f}")
    breaks = Table(title="where the others go wrong", title_justify="left")
    breaks.add_column("reason")
    breaks.add_column("stories", justify="right")
    breaks.add_column("for example")
    for reason, number in report["breaks"].items():
        example = report["examples"][reason].replace(f"{reason}: ", "")
        breaks.add_row(reason, f"{number:,}", example)
    return [counts, breaks]


MOST_CURVES = 4  # more would lie on each other


def plot_recall(accuracies: Mapping[str, Accuracy], path: Path, chance: Accuracy | None = None) -> None:
    """Draws the share of right references over the distance to what they refer to, one line for each entry.

    path: where to, its suffix (.png, .svg, .pdf) says as what. Bars are 95% intervals (Wilson 1927). chance: what
    `storyworld.chance` gave for one of the sets of stories. Raises ValueError without matplotlib, and for more lines
    than can be told apart.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError(f"figures need {error.name}: pip install 'rhapsode[study]'") from error
    if not 1 <= len(accuracies) <= MOST_CURVES:
        raise ValueError(f"a figure of recall has 1 to {MOST_CURVES} lines, got {len(accuracies)}")
    bins = {name: int(name.rstrip("+").split("-")[0]) for each in accuracies.values() for name in each.by_distance}
    names = sorted(bins, key=bins.__getitem__)
    # A fixed salt makes the ids, and so the file, the same each time.
    with matplotlib.rc_context(
        LITERAL_TEXT | {"svg.hashsalt": "recall", "font.family": "DejaVu Sans", "font.size": 10}
    ):
        figure = Figure(figsize=(7, 4.2), layout="constrained")
        axes = figure.add_subplot()
        for i, (label, accuracy) in enumerate(accuracies.items()):
            there = [name for name in names if name in accuracy.by_distance]
            shares = [accuracy.by_distance[name][0] for name in there]
            intervals = [_wilson(*accuracy.by_distance[name]) for name in there]
            below = [share - low for share, (low, _) in zip(shares, intervals, strict=True)]
            above = [high - share for share, (_, high) in zip(shares, intervals, strict=True)]
            axes.errorbar(
                [names.index(name) + 0.06 * (i - (len(accuracies) - 1) / 2) for name in there],
                shares,
                yerr=[below, above],
                color=COLOURS[i],
                marker=MARKERS[i],
                markersize=6,
                linestyle=DASHES[i],
                linewidth=1.8,
                elinewidth=1,
                capsize=2,
                label=f"{label} ({accuracy.overall[1]:,} references)",
            )
        if chance is not None:
            there = [name for name in names if name in chance.by_distance]
            guessed = [chance.by_distance[name][0] for name in there]
            axes.plot(
                [names.index(name) for name in there], guessed, color="0.45", linewidth=1.2, linestyle=(0, (2, 2))
            )
            place = (names.index(there[0]), guessed[0])
            axes.annotate("chance", place, (0, -4), color="0.35", va="top", textcoords="offset points")
        axes.set_xticks(range(len(names)), [name.replace("-", "–") for name in names])
        axes.set_xlabel("words between the reference and what it refers to")
        axes.set_ylabel("right word more likely than every wrong one")
        axes.set_ylim(0, 1.03)
        axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
        axes.grid(axis="y", color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title("Recall of what the story said earlier", loc="left")
        figure.legend(frameon=False, loc="outside lower center", ncols=2, handlelength=3.2)
        with replacing(path) as temporary:
            figure.savefig(temporary, format=path.suffix[1:].lower() or "png", dpi=150, metadata=_no_date(path))


def _no_date(path: Path) -> dict[str, None]:
    return {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix.lower(), {})


def _wilson(share: float, number: int) -> tuple[float, float]:
    """The 95% interval of a share that was counted over `number` cases."""
    z = 1.96
    middle = (share + z * z / (2 * number)) / (1 + z * z / number)
    reach = z / (1 + z * z / number) * math.sqrt(share * (1 - share) / number + z * z / (4 * number * number))
    return max(0.0, min(middle - reach, share)), min(1.0, max(middle + reach, share))
