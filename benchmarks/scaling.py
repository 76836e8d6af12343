"""How much text, how large a model, how much dropout? Small runs on shares of a text, from which presets.fit was made.

    python benchmarks/scaling.py TRAIN.jsonl VALID.jsonl      some 45 runs of a minute, two at once
    python benchmarks/scaling.py --plot                       docs/figures/scaling.svg again from scaling.json

Every run has the recipe of the preset `minute` but for what is varied, and one core. The tokenizer is trained on the
share, as a user's would be. A run's result is the best of ten validations, as a run directory keeps it. Writes
benchmarks/results/scaling.json after each run; what it has already is not run again.

The law: bits(D) = floor + (D_0 / D)^b, for D bytes of text and the best dropout of those tried.
"""

import argparse
import json
import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import torch
from quality import Data, ours, record
from report import FIGURES, about, read, write

from rhapsode.configs import merge
from rhapsode.palette import COLOURS, MARKERS
from rhapsode.presets import PRESETS, fit, tokens_read
from rhapsode.progress import say
from rhapsode.sources import open_source
from rhapsode.tokens import prepare, tokenizer_for

BYTES = (30_000, 100_000, 300_000, 1_000_000, 3_000_000)
WIDTHS = ((96, 128), (192, 256), (288, 384))  # embed_dim, hidden_dim
DROPOUTS = (0.0, 0.2, 0.4)
MINUTES = 1.0
VALID_STORIES = 200
FIGURE = FIGURES / "scaling.svg"


def share(file: str, size: int, folder: Path) -> Path:
    """A file with the first stories of a JSONL file, `size` bytes of text or a little less."""
    path = folder / f"{size}.jsonl"
    taken, lines = 0, []
    with open(file, encoding="utf-8") as stream:
        for line in stream:
            taken += len(json.loads(line)["text"].encode())
            if taken > size:
                break
            lines.append(line)
    path.write_text("".join(lines), encoding="utf-8")
    return path


def trained(train: str, valid: str, size: int, widths: tuple[int, int], dropout: float) -> dict[str, Any]:
    """One run, as the results keep it."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        source = open_source([str(share(train, size, Path(folder)))])
        tokenizer = tokenizer_for(source, "bpe", 1024)
        store = prepare(source, tokenizer)
        lines = Path(valid).read_text(encoding="utf-8").splitlines(keepends=True)[:VALID_STORIES]
        (Path(folder) / "valid.jsonl").write_text("".join(lines), encoding="utf-8")
        valid_store = prepare(open_source([str(Path(folder) / "valid.jsonl")]), tokenizer)
        data = Data("tinystories", tokenizer, store, valid_store, valid_store.num_bytes)
        fitted = fit("minute", store.num_tokens, tokens_read("minute", {"minutes": MINUTES}, 128, store.num_tokens))
        varied = {"embed_dim": widths[0], "hidden_dim": widths[1], "dropout": dropout}
        recipe = merge(PRESETS["minute"], {"model": varied, "batch": fitted.sections["batch"]})
        result = ours(recipe, data, MINUTES, 0, looks=10)
    curve = record(data, result)["curve"]
    tokens = result.steps * recipe["batch"]["window"] * recipe["batch"]["batch_size"]
    return {
        "bytes": size,
        "embed_dim": widths[0],
        "hidden_dim": widths[1],
        "dropout": dropout,
        "value": min(value for _, value in curve),
        "tokens": store.num_tokens,
        "epochs": round(tokens / store.num_tokens, 2),
        "epochs_at_best": round(tokens / store.num_tokens * min(curve, key=lambda c: c[1])[0] / curve[-1][0], 2),
        "curve": curve,
        **about(),
    }


def law(sizes: list[float], bits: list[float]) -> tuple[float, float, float]:
    """(floor, D_0, b) of bits = floor + (D_0 / D)^b, by least squares of the logarithm over a grid of floors."""
    best: tuple[float, float, float, float] | None = None
    for floor in np.linspace(0, min(bits) - 0.01, 200):
        slope, offset = np.polyfit(np.log(sizes), np.log(np.array(bits) - floor), 1)
        error = float(np.square(np.exp(offset + slope * np.log(sizes)) + floor - bits).sum())
        if best is None or error < best[0]:
            best = (error, float(floor), float(np.exp(-offset / slope)), float(-slope))
    assert best is not None
    return best[1:]


def plot(runs: list[dict[str, Any]]) -> None:
    """Left: bits per byte over the size of the text, with the law. Right: what dropout does at each size."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    plt.rcParams.update({"svg.hashsalt": "scaling", "font.size": 10})
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    for (embed, hidden), colour, marker in zip(WIDTHS, COLOURS, MARKERS, strict=False):
        of_width = [run for run in runs if run["embed_dim"] == embed]
        sizes = sorted({run["bytes"] for run in of_width})
        bits = [min(run["value"] for run in of_width if run["bytes"] == size) for size in sizes]
        if len(sizes) < 4:
            continue
        floor, scale, power = law(sizes, bits)
        label = f"embed {embed}, hidden {hidden}: {floor:.2f} + ({scale:,.0f} / D)^{power:.2f}"
        left.plot([s / 1e6 for s in sizes], bits, marker, color=colour, label=label)
        dense = np.geomspace(sizes[0], sizes[-1], 60)
        left.plot(dense / 1e6, floor + (scale / dense) ** power, color=colour, linewidth=1.2)
    left.set(xscale="log", xlabel="megabytes of text", ylabel="bits per byte, unseen stories")
    left.legend(frameon=False, fontsize=8)
    middle = [run for run in runs if run["embed_dim"] == WIDTHS[1][0]]
    for size, colour, marker in zip(BYTES, COLOURS, MARKERS, strict=False):
        line = sorted((run["dropout"], run["value"], run["epochs"]) for run in middle if run["bytes"] == size)
        if line:
            label = f"{size / 1e6:g} MB, read {line[0][2]:.1f} times"
            right.plot([d for d, _, _ in line], [v for _, v, _ in line], marker=marker, color=colour, label=label)
    right.set(xlabel=f"dropout (embed {WIDTHS[1][0]}, hidden {WIDTHS[1][1]})", ylabel="bits per byte, unseen stories")
    right.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help="TRAIN.jsonl VALID.jsonl")
    parser.add_argument("--plot", action="store_true", help="draw the figure again from scaling.json")
    arguments = parser.parse_args()
    runs = read("scaling").get("runs", [])
    if not arguments.plot:
        if len(arguments.files) != 2:
            parser.error("name TRAIN.jsonl and VALID.jsonl, or --plot")
        there = {(run["bytes"], run["embed_dim"], run["dropout"]) for run in runs}
        order = (WIDTHS[1], WIDTHS[0], WIDTHS[2])  # the most telling first
        grid = [(size, widths, dropout) for widths in order for size in BYTES for dropout in DROPOUTS]
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
            futures = [
                pool.submit(trained, *arguments.files, size, widths, dropout)
                for size, widths, dropout in grid
                if (size, widths[0], dropout) not in there
            ]
            for future in as_completed(futures):
                runs.append(future.result())
                last = runs[-1]
                say(f"{last['bytes']:,} bytes, embed {last['embed_dim']}, dropout {last['dropout']}: {last['value']}")
                write("scaling", {"minutes": MINUTES, "runs": runs})
    plot(runs)


if __name__ == "__main__":
    main()
