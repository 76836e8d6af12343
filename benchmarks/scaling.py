"""How often to read a text, how large a model, how much dropout and decay? Small runs behind presets.fit.

    python benchmarks/scaling.py TRAIN.jsonl VALID.jsonl      some 40 runs of half a minute to some minutes, two at once
    python benchmarks/scaling.py --plot                       docs/figures/scaling.svg again from scaling.json

Every run has the recipe of the preset `minute`, two blocks with attention in the last, but for what is varied, reads
its share of the text so many times, the learning rate coming down to nothing over them, and has one core. The
tokenizer is trained on the share, as a user's would be. Writes benchmarks/results/scaling.json after each run; what
it has already, by the same recipe, is not run again without --again.

The law: bits(D) = floor + (D_0 / D)^b, for D bytes of text and the best of the settings tried.
"""

import argparse
import math
import tempfile
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pool import at_once
from quality import Data, ours, record, same_recipe, share
from report import FIGURES, about, panels, read, save_figure, write

from rhapsode.figure import COLOURS, MARKERS
from rhapsode.progress import say
from rhapsode.recipe.changes import merge
from rhapsode.recipe.rules import TextSize, fit_preset, rows_for_pairs
from rhapsode.sources import open_source
from rhapsode.tokens import prepare, tokenizer_for

BYTES = (30_000, 100_000, 300_000, 1_000_000, 3_000_000)
NARROW, MIDDLE, WIDE = (96, 128), (192, 256), (288, 384)  # embed_dim, hidden_dim
VALID_STORIES = 200
FIGURE = FIGURES / "scaling.svg"


class Setting(NamedTuple):
    """What a run varies. epochs: how often the share is read; pairs: whether pairs of tokens are embedded; rate: the
    peak learning rate of AdamW; decay: of the weights; blocks: how many, attention in the last.
    """

    bytes: int
    epochs: float
    dropout: float = 0.0
    widths: tuple[int, int] = MIDDLE
    pairs: bool = True
    rate: float = 0.02
    decay: float = 0.1
    blocks: int = 2


def reread(size: int, epochs: float, dropout: float = 0.3) -> Setting:
    """The recipe for a text that is read often."""
    return Setting(size, epochs, dropout, rate=3e-3, decay=0.3)


def compared() -> list[Setting]:
    """The settings of which decay, dropout, widths and blocks are varied."""
    return [reread(BYTES[1], 20.0), reread(BYTES[2], 20.0), reread(BYTES[3], 10.0)]


def grid() -> list[Setting]:
    """The most telling first: few readings and many, what the second recipe changes, decay, dropout, widths, blocks."""
    small, some, large, larger = BYTES[1:]
    middle = compared()
    return [
        *(Setting(size, epochs) for size in BYTES[:4] for epochs in (2.5, 5.0)),
        *(reread(size, epochs) for size in (small, some) for epochs in (5.0, 10.0, 20.0, 40.0)),
        *(setting._replace(dropout=0.1) for setting in middle),
        *(reread(large, epochs) for epochs in (5.0, 10.0, 20.0)),
        *(reread(BYTES[0], epochs) for epochs in (10.0, 20.0, 40.0)),
        *(setting._replace(decay=decay) for setting in middle[:2] for decay in (0.0, 0.1, 1.0)),
        middle[2]._replace(decay=0.0),
        *(setting._replace(dropout=0.2) for setting in middle[:2]),
        reread(large, 20.0, 0.2),
        *(setting._replace(widths=widths) for setting in middle for widths in (NARROW, WIDE)),
        *(setting._replace(blocks=1) for setting in middle),
        middle[1]._replace(rate=0.02),
        middle[1]._replace(pairs=False),
        *(Setting(larger, epochs) for epochs in (2.5, 5.0)),
    ]


def recipe(setting: Setting, num_tokens: int) -> dict[str, dict[str, Any]]:
    """What a setting means for a share of so many tokens, in short stories."""
    fitted = fit_preset("minute", TextSize(num_tokens, num_tokens), {"train": {"epochs": setting.epochs}}).sections
    embed_dim, hidden_dim = setting.widths
    varied = {
        "embed_dim": embed_dim,
        "hidden_dim": hidden_dim,
        "num_layers": setting.blocks,
        "attention": "last",
        "dropout": setting.dropout,
        "pair_embeddings": rows_for_pairs("minute", num_tokens) if setting.pairs else 0,
    }
    optimizer = {"learning_rate": setting.rate, "weight_decay": setting.decay}
    return merge(fitted, {"model": varied, "optimizer": optimizer})


def setting_of(run: dict[str, Any]) -> Setting:
    """What a run varied, from the results."""
    return Setting(**{field: run[field] for field in Setting._fields} | {"widths": tuple(run["widths"])})


def current(run: dict[str, Any]) -> bool:
    """Whether a run has the recipe that its setting means now."""
    return same_recipe(run["recipe"], recipe(setting_of(run), run["tokens"]))


def trained(train: str, valid: str, setting: Setting) -> dict[str, Any]:
    """One run, as the results keep it."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        source = open_source([str(share(train, setting.bytes, Path(folder)))])
        tokenizer = tokenizer_for(source, "bpe", 1024)
        store = prepare(source, tokenizer)
        lines = Path(valid).read_text(encoding="utf-8").splitlines(keepends=True)[:VALID_STORIES]
        (Path(folder) / "valid.jsonl").write_text("".join(lines), encoding="utf-8")
        valid_store = prepare(open_source([str(Path(folder) / "valid.jsonl")]), tokenizer)
        data = Data("tinystories", tokenizer, store, valid_store, valid_store.num_bytes)
        sections = recipe(setting, store.num_tokens)
        result = ours(sections, data, {"epochs": setting.epochs}, seed=0, looks=5)
    return {
        **setting._asdict(),
        "widths": [*setting.widths],
        "tokens": store.num_tokens,
        "recipe": sections,
        **record(data, result),
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


def best(runs: list[dict[str, Any]], **wanted: Any) -> float:
    """The least bits per byte among the runs that have these fields; infinite where there are none."""
    return min((r["value"] for r in runs if all(r[name] == value for name, value in wanted.items())), default=math.inf)


def plot(runs: list[dict[str, Any]]) -> None:
    """Left: bits per byte over the size of the text, the law, three widths. Right: over how often it is read."""
    figure, (left, right) = panels("scaling", 1, 2, figsize=(11, 4.6))
    sizes = [size for size in BYTES if math.isfinite(best(runs, bytes=size))]
    bits = [best(runs, bytes=size) for size in sizes]
    floor, scale, power = law([float(size) for size in sizes], bits)
    dense = np.geomspace(sizes[0], sizes[-1], 60)
    label = f"{floor:.2f} + ({scale:,.0f} / bytes)^{power:.2f}"
    left.plot(dense / 1e6, floor + (scale / dense) ** power, color="#7F7F7F", linewidth=1.2, label=label)
    left.plot([size / 1e6 for size in sizes], bits, ".", color="#7F7F7F", label="best of all settings", markersize=9)
    for widths, colour, marker in zip((NARROW, MIDDLE, WIDE), COLOURS, MARKERS, strict=False):
        found = [(s.bytes / 1e6, best(runs, **{**s._asdict(), "widths": [*widths]})) for s in compared()]
        found = [(size, value) for size, value in found if math.isfinite(value)]
        name = f"embed {widths[0]}, hidden {widths[1]}, dropout 0.3"
        left.plot(*zip(*found, strict=True), marker, color=colour, label=name, markersize=5)
    left.set(xscale="log", xticks=[size / 1e6 for size in BYTES], xticklabels=[f"{size / 1e6:g}" for size in BYTES])
    left.minorticks_off()
    left.set(xlabel="megabytes of text", ylabel="bits per byte, unseen stories")
    left.legend(frameon=False, fontsize=8)
    for size, colour, marker in zip(sizes, COLOURS, MARKERS, strict=False):
        for setting, dash, name in ((Setting(size, 0.0), "--", "few readings"), (reread(size, 0.0), "-", "many")):
            kind = {**setting._asdict(), "widths": [*MIDDLE]}
            del kind["epochs"]
            line = sorted((r["epochs"], r["value"]) for r in runs if all(r[field] == kind[field] for field in kind))
            if len(line) > 1:
                label = f"{size / 1e6:g} MB, recipe for {name}"
                style = {"color": colour, "linestyle": dash, "marker": marker, "markersize": 4}
                right.plot(*zip(*line, strict=True), label=label, linewidth=1.4, **style)
    right.set(xscale="log", xlabel="times that the text is read", ylabel="bits per byte, unseen stories")
    right.set_xticks([2.5, 5, 10, 20, 40], ["2.5", "5", "10", "20", "40"])
    right.minorticks_off()
    right.legend(frameon=False, fontsize=7, ncols=2)
    save_figure(figure, FIGURE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help="TRAIN.jsonl VALID.jsonl")
    parser.add_argument("--again", action="store_true", help="run also what the results have already")
    parser.add_argument("--plot", action="store_true", help="draw the figure again from scaling.json")
    arguments = parser.parse_args()
    runs = read("scaling").get("runs", [])
    if not arguments.plot:
        if len(arguments.files) != 2:
            parser.error("name TRAIN.jsonl and VALID.jsonl, or --plot")
        train_file, valid_file = arguments.files
        there = [] if arguments.again else [setting_of(run) for run in runs if current(run)]
        wanted = [setting for setting in grid() if setting not in there]
        with at_once(2) as pool:
            futures = [pool.submit(trained, train_file, valid_file, setting) for setting in wanted]
            for future in as_completed(futures):
                found = future.result()
                runs = [run for run in runs if setting_of(run) != setting_of(found)] + [found]
                say(", ".join(f"{field} {found[field]}" for field in Setting._fields) + f": {found['value']}")
                write("scaling", {"runs": runs})
    plot(runs)


if __name__ == "__main__":
    main()
