"""Two processes or two threads? Writes benchmarks/results/processes.json.

    python benchmarks/processes.py              eight minutes on two cores that are otherwise idle
    python benchmarks/processes.py --quick      one short round, printed only

`rhapsode train storyworld` by the preset `minute`, as a user starts it: with threads chosen as the work goes, which is
what everyone gets, and with `--processes 2`, a thread each; in turns, idle and beside a neighbour that keeps one core
busy. Ratios are made within a round, and medians over the rounds reported. First both train the same steps, and nothing
is timed unless their losses agree to TOLERANCE.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from neighbour import neighbour, ratio
from report import about, write
from rich.console import Console
from rich.table import Table

from rhapsode.progress import say

THREADS, PROCESSES = "threads", "processes"
CONTENDERS: dict[str, list[str]] = {THREADS: [], PROCESSES: ["--processes", "2"]}
DATA = ["storyworld:20000", "--valid", "storyworld:4:valid", "--set", "validations=1", "--set", "prompt="]
MINUTES = 0.3  # of a run
ROUNDS = 5
CHECKED_STEPS = 20
TOLERANCE = 1e-4
BAR = 1.1  # times as fast, idle and beside the neighbour, for processes to become what everyone gets


def trained(folder: Path, who: str, preset: str, *budget: str) -> list[dict[str, Any]]:
    """The metrics of a run."""
    out = folder / f"run-{len(list(folder.glob('run-*')))}"
    command = [sys.executable, "-m", "rhapsode", "train", *DATA, "--preset", preset, *budget, "--out", str(out)]
    own = {**os.environ, "RHAPSODE_CACHE": str(folder / "cache")}
    done = subprocess.run([*command, *CONTENDERS[who]], env=own, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"training by {who} failed: {done.stderr.strip().splitlines()[-1]}")
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def pace(folder: Path, who: str, preset: str, minutes: float) -> float:
    """Tokens per second of training."""
    last = trained(folder, who, preset, "--minutes", f"{minutes:g}")[-1]
    return last["tokens"] / last["seconds"]


def disagreement(folder: Path, preset: str) -> float:
    """The largest relative difference of the losses of the same steps."""
    curves = [
        [entry["train_loss"] for entry in trained(folder, who, preset, "--sequences", str(32 * CHECKED_STEPS))]
        for who in CONTENDERS
    ]
    return max(abs(one / other - 1) for one, other in zip(*curves, strict=True))


def measure(preset: str, minutes: float, rounds: int) -> dict[str, Any]:
    """The whole result as JSON-ready values."""
    load = round(os.getloadavg()[0], 2)
    paces: dict[str, dict[str, list[float]]] = {how: {who: [] for who in CONTENDERS} for how in ("idle", "beside")}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        apart = disagreement(folder, preset)
        if not apart < TOLERANCE:
            raise ValueError(f"the losses of threads and processes differ by {apart:.1e}: nothing is timed")
        for how in paces:  # idle first: who worked beside a neighbour a moment ago does not yet trust that it is gone
            for round_ in range(rounds):
                for who in [*CONTENDERS][:: 1 if round_ % 2 else -1]:
                    if how == "idle":
                        paces[how][who].append(pace(folder, who, preset, minutes))
                    else:
                        with neighbour():
                            paces[how][who].append(pace(folder, who, preset, minutes))
                last = ", ".join(f"{who} {paces[how][who][-1]:,.0f}" for who in CONTENDERS)
                say(f"round {round_ + 1} of {rounds}, {how}: {last} tokens/s")
    found: dict[str, Any] = {"format_version": 1, **about(), "load_average_before": load, "preset": preset}
    found |= {"rounds": rounds, "minutes": minutes, "largest_difference_of_losses": apart, "bar": BAR}
    for how, each in paces.items():
        medians = {who: round(statistics.median(values)) for who, values in each.items()}
        found[how] = {**medians, "processes_over_threads": ratio(each[PROCESSES], each[THREADS])}
    found["reached"] = all(found[how]["processes_over_threads"]["median"] >= BAR for how in paces)
    return found


def as_table(result: dict[str, Any]) -> Table:
    """The result for the terminal."""
    table = Table(title=f"{result['preset']}, tokens per second", caption=f"{result['machine']}, medians")
    for heading in ("", THREADS, PROCESSES, "ratio"):
        table.add_column(heading, justify="right")
    for how in ("idle", "beside"):
        row = result[how]
        table.add_row(how, *(f"{row[who]:,}" for who in CONTENDERS), f"{row['processes_over_threads']['median']:.2f}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="minute")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--minutes", type=float, default=MINUTES, help="of each run")
    parser.add_argument("--quick", action="store_true", help="one short round; prints only")
    asked = parser.parse_args()
    rounds, minutes = (1, 0.05) if asked.quick else (asked.rounds, asked.minutes)
    result = measure(asked.preset, minutes, rounds)
    if not asked.quick:
        write("processes", result)
    Console().print(as_table(result))
    verdict = "reached: make processes the default" if result["reached"] else "missed: threads stay the default"
    Console().print(f"the bar is {BAR}, idle and beside: {verdict}")


if __name__ == "__main__":
    main()
