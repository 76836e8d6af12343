"""What stands beside every result: the commit and the machine; where results go, and how tables and figures look."""

import json
import statistics
import subprocess
from pathlib import Path
from typing import Any

from rhapsode.files import write_text

HERE = Path(__file__).parent
RESULTS = HERE / "results"
FIGURES = HERE.parent / "docs" / "figures"


def about() -> dict[str, Any]:
    """The commit of the checkout ("-dirty" where its code is not what was committed), and what it runs on."""

    def git(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(["git", *arguments], cwd=HERE, capture_output=True, text=True, check=False)

    commit = git("rev-parse", "--short", "HEAD").stdout.strip()
    if git("diff", "--quiet", "HEAD", "--", "../src", "*.py").returncode:
        commit += "-dirty"
    from rhapsode.bench import machine  # and with it torch, which a child that measures its memory must not load

    return {"commit": commit, **machine()}


def over_seeds(values: list[float]) -> str:
    """The mean of a number, and its standard deviation where there are several."""
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{spread}"


def panels(name: str, rows: int, columns: int, **how: Any) -> tuple[Any, Any]:
    """A matplotlib figure, the same bytes each time it is drawn, and its axes; how: as `plt.subplots` takes it."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    plt.rcParams.update({"svg.hashsalt": name, "svg.fonttype": "path", "font.size": 10})
    return plt.subplots(rows, columns, layout="constrained", **how)


def save_figure(figure: Any, file: Path) -> None:
    """Writes it as SVG, with a grid and without a box."""
    for axes in figure.axes:
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata={"Date": None})


def write(name: str, result: dict[str, Any]) -> None:
    """Writes results/NAME.json, whole or not at all."""
    RESULTS.mkdir(exist_ok=True)
    write_text(RESULTS / f"{name}.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def read(name: str) -> dict[str, Any]:
    """Reads results/NAME.json; empty where there is none."""
    file = RESULTS / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
