"""One model trained by 1, 2 and 4 processes: are the curves one? Writes benchmarks/results/curves.json and the figure.

    python benchmarks/curves.py            three minutes on two cores; docs/figures/curves.svg
    python benchmarks/curves.py --plot     the figure again from results/curves.json

The preset `minute` on storyworld for so many steps of 32 x 128, by `rhapsode train --processes N`, one thread each.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from report import FIGURES, about, panels, read, save_figure, write

from rhapsode.figure import COLOURS
from rhapsode.progress import say

PROCESSES = (1, 2, 4)
STEPS, ROWS = 300, 32
DATA = ["storyworld:20000", "--valid", "storyworld:100:valid", "--preset", "minute", "--set", "validations=6"]
FIGURE = FIGURES / "curves.svg"


def curve(folder: Path, count: int) -> dict[str, list[Any]]:
    """Steps and losses of a run by so many processes."""
    out = folder / f"by-{count}"
    command = [sys.executable, "-m", "rhapsode", "train", *DATA, "--sequences", str(STEPS * ROWS), "--out", str(out)]
    # One process has one thread, too: sums are made in another order on another number of threads.
    more = ["--processes", str(count), "--threads", str(count)]
    environment = {**os.environ, "RHAPSODE_CACHE": str(folder / "cache")}
    done = subprocess.run([*command, *more], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"training by {count} failed: {done.stderr.strip().splitlines()[-1]}")
    entries = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    found: dict[str, list[Any]] = {}
    for event, loss in (("train", "train_loss"), ("valid", "valid_loss")):
        own = [entry for entry in entries if entry["event"] == event]
        found |= {f"{event}_step": [e["step"] for e in own], f"{event}_loss": [e[loss] for e in own]}
    return found


def draw(result: dict[str, Any]) -> None:
    """The curves over each other, and how far each is from that of one process."""
    figure, (left, right) = panels("curves", 1, 2, figsize=(10, 4))
    one = result["curves"]["1"]
    for number, (count, found) in enumerate(result["curves"].items()):
        label = f"{count} process{'es' if count != '1' else ''}"
        width = 5 - 2 * number  # those drawn later do not cover the first
        left.plot(found["train_step"], found["train_loss"], color=COLOURS[number], linewidth=width, label=label)
        if count != "1":
            pairs = zip(found["train_loss"], one["train_loss"], strict=True)
            apart = [max(abs(own / other - 1), 1e-9) for own, other in pairs]
            right.plot(found["train_step"], apart, color=COLOURS[number], label=label)
    left.set(xlabel="step", ylabel="training loss, nats per token")
    right.set(xlabel="step", ylabel="relative difference from one process", yscale="log")
    left.legend()
    right.legend()
    save_figure(figure, FIGURE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", action="store_true", help="draw the figure again")
    if not parser.parse_args().plot:
        with tempfile.TemporaryDirectory() as folder:
            curves = {str(count): curve(Path(folder), count) for count in PROCESSES}
        apart = {}
        for count, found in curves.items():
            for kind in ("train_loss", "valid_loss"):
                pairs = zip(found[kind], curves["1"][kind], strict=True)
                apart[f"{count}, {kind}"] = max(abs(own / other - 1) for own, other in pairs)
        write("curves", {"format_version": 1, **about(), "largest_relative_difference": apart, "curves": curves})
        say(json.dumps(apart))
    draw(read("curves"))


if __name__ == "__main__":
    main()
