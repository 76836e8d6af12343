"""Does work keep its pace while another program keeps a core busy? Writes benchmarks/results/neighbour.json.

    python benchmarks/neighbour.py                   all of it: eight minutes on two cores that are otherwise idle
    python benchmarks/neighbour.py --works train     training alone: four minutes
    python benchmarks/neighbour.py --quick           one short round, printed only
    python benchmarks/neighbour.py --before ""       without the training of before

Three do the same work, each in a process of its own, in turns, alone and beside a neighbour (`while True: pass`):

    chosen      threads chosen as the work goes, which is what everyone gets (src/rhapsode/threads.py)
    one         one thread throughout
    all         as many threads as cores throughout, which is what everyone got before

The works are the package's own: the training loop with the preset `minute`, `generate` with eight samples, `evaluate`,
and a small cell of a study. All of them are done alone first, then all beside the neighbour. Ratios are made within a
round, and medians over the rounds reported. Training is also timed from the moment that the neighbour comes, in a run
that began without it. --before COMMIT: the training of that commit beside them, by its own command line, from a
temporary `git archive`.
"""

import argparse
import contextlib
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from pace import DATA, Pace, contender
from race import DISTURBED, busy_seconds
from report import HERE, about, write
from rich.console import Console
from rich.table import Table

from rhapsode.progress import say

CHOSEN, ONE, ALL = "chosen", "one", "all"
BEFORE = "02642c6"
SECONDS = {"train": 4.0, "generate": 1.5, "evaluate": 1.5, "study": 0.0}  # of a turn; a study's is one cell
UNITS = {"train": "tokens/s", "generate": "tokens/s", "evaluate": "tokens/s", "study": "cells/s"}
FEW = {"train": 3, "generate": 3, "evaluate": 1, "study": 1}  # rounds of what is only there to compare with, and slow
BEFORE_ROUNDS = 2
ARRIVES, STAYS = 2.0, 6.0  # seconds: when the neighbour comes to a run that began without it, and how long both go on
BAR_BESIDE, BAR_IDLE = 0.8, 0.03
QUICK_SECONDS = 0.3
BUSY = """
import os
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(10_000_000):
        pass
"""


@contextlib.contextmanager
def neighbour() -> Iterator[None]:
    """Another process keeps one core busy within the block, and ends with this one whatever happens to it."""
    process = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        yield
    finally:
        process.kill()
        process.wait()


class Race:
    """The contenders' processes, and what others took of the cores while they worked alone."""

    def __init__(self, workers: dict[str, Any]) -> None:
        self.workers = workers
        self.others: list[float] = []

    def alone(self, who: str, work: str, seconds: float) -> float:
        """Units per second without a neighbour."""
        begun, busy_before = time.monotonic(), busy_seconds()
        pace = self._turn(who, work, seconds)
        busy_after = busy_seconds()
        if busy_before is not None and busy_after is not None:
            cores = (time.monotonic() - begun) * (os.cpu_count() or 1)
            self.others.append(max(0.0, busy_after - busy_before - pace.core_seconds) / cores)
        return pace.per_second()

    def beside(self, who: str, work: str, seconds: float) -> float:
        """Units per second beside the neighbour, which is there from the start."""
        with neighbour():
            time.sleep(0.2)
            return self._turn(who, work, seconds).per_second()

    def when_it_comes(self, who: str, arrives: float, seconds: float) -> float:
        """Tokens per second of training from the moment that a neighbour comes to it."""
        self.workers[who].send(("train", arrives + seconds))
        time.sleep(arrives)
        with neighbour():
            came = time.monotonic()
            return self.workers[who].recv().per_second(came)

    def _turn(self, who: str, work: str, seconds: float) -> Pace:
        self.workers[who].send((work, seconds))
        pace = self.workers[who].recv()
        assert isinstance(pace, Pace)
        return pace


def compare_alone(race: Race, work: str, rounds: int, few: int, seconds: float) -> dict[str, list[float]]:
    """Paces of everyone, round by round, on a machine that nobody else uses."""
    paces: dict[str, list[float]] = {CHOSEN: [], ALL: [], ONE: []}
    for round_ in range(rounds):
        for who in (CHOSEN, ALL)[:: 1 if round_ % 2 else -1]:  # who comes first changes from round to round
            paces[who].append(race.alone(who, work, seconds))
        if round_ < few:
            paces[ONE].append(race.alone(ONE, work, seconds))
        say(f"{work}, round {round_ + 1} of {rounds}, alone: {paces[CHOSEN][-1]:,.2f}, all {paces[ALL][-1]:,.2f}")
    return paces


def compare_beside(race: Race, work: str, rounds: int, few: int, seconds: float) -> dict[str, list[float]]:
    """The same beside the neighbour, who goes after each turn."""
    paces: dict[str, list[float]] = {CHOSEN: [], ONE: [], ALL: []}
    for round_ in range(rounds):
        for who in (CHOSEN, ONE)[:: 1 if round_ % 2 else -1]:
            paces[who].append(race.beside(who, work, seconds))
        if round_ < few:
            paces[ALL].append(race.beside(ALL, work, seconds))
        say(f"{work}, round {round_ + 1} of {rounds}, beside: {paces[CHOSEN][-1]:,.2f}, one {paces[ONE][-1]:,.2f}")
    return paces


def outcome(work: str, idle: dict[str, list[float]], beside: dict[str, list[float]]) -> dict[str, Any]:
    """Medians of one work's paces, and the ratios that count."""
    return {
        "work": work,
        "unit": UNITS[work],
        "idle": {who: statistics.median(paces) for who, paces in idle.items()},
        "beside": {who: statistics.median(paces) for who, paces in beside.items()},
        "beside_chosen_over_one": ratio(beside[CHOSEN], beside[ONE]),
        "idle_chosen_over_all": ratio(idle[CHOSEN], idle[ALL]),
        "beside_all_over_one": ratio(beside[ALL], beside[ONE][: len(beside[ALL])]),
    }


def ratio(ones: list[float], others: list[float]) -> dict[str, Any]:
    """The median of the pairs' ratios, its 95% interval by order statistics, and the ratios themselves."""
    ratios = [one / other for one, other in zip(ones, others, strict=True)]
    low, high = median_interval(ratios)
    return {
        "median": round(statistics.median(ratios), 4),
        "interval": [low and round(low, 4), high and round(high, 4)],
        "pairs": [round(each, 4) for each in ratios],
    }


def median_interval(values: list[float]) -> tuple[float | None, float | None]:
    """The narrowest pair of order statistics that holds the median with a probability of at least 95%, whatever the
    distribution; (None, None) for fewer than six values, of which no pair does."""
    count, below, rank = len(values), 0.0, 0
    while below + math.comb(count, rank) / 2**count <= 0.025:
        below += math.comb(count, rank) / 2**count
        rank += 1
    if rank == 0:
        return None, None
    ordered = sorted(values)
    return ordered[rank - 1], ordered[-rank]


def keeps_pace(result: dict[str, Any]) -> dict[str, bool]:
    """Whether the two bars are reached."""
    median, (low, high) = result["idle_chosen_over_all"]["median"], result["idle_chosen_over_all"]["interval"]
    holds_one = low is not None and low <= 1 <= high
    return {
        "beside": result["beside_chosen_over_one"]["median"] >= BAR_BESIDE,
        "idle": median >= 1 - BAR_IDLE or holds_one,
    }


def before(commit: str, threads: int, rounds: int, minutes: float = 0.1) -> dict[str, Any] | None:
    """Tokens per second that the training of a commit makes, idle and beside the neighbour; None without history."""
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(["git", "archive", commit, "src"], cwd=HERE.parent, capture_output=True, check=False)
        if archive.returncode:
            say(f"commit {commit} is not in this checkout's history: measured without the training of before")
            return None
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        paces: dict[str, list[float]] = {"idle": [], "beside": []}
        trained(folder, threads, 0.02)  # makes the token store
        for _ in range(rounds):
            paces["idle"].append(trained(folder, threads, minutes))
            with neighbour():
                paces["beside"].append(trained(folder, threads, minutes))
            say(f"before ({commit}): idle {paces['idle'][-1]:,.0f}, beside {paces['beside'][-1]:,.0f} tokens/s")
    fall = ratio(paces["beside"], paces["idle"])
    return {"commit": commit, **{how: statistics.median(p) for how, p in paces.items()}, "beside_over_idle": fall}


def trained(folder: str, threads: int, minutes: float) -> float:
    """Tokens per second of `rhapsode train` as it stands in folder/src."""
    out = Path(folder) / "run"
    shutil.rmtree(out, ignore_errors=True)
    train_it = ["train", *DATA, "--valid", "storyworld:4:valid", "--preset", "minute", "--minutes", str(minutes)]
    command = [sys.executable, "-c", "from rhapsode.cli import main; main()", *train_it, "--set", "validations=1"]
    own = {"PYTHONPATH": f"{folder}/src", "OMP_NUM_THREADS": str(threads), "RHAPSODE_CACHE": f"{folder}/cache"}
    done = subprocess.run([*command, "--out", str(out)], env={**os.environ, **own}, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"the training of before failed: {done.stderr.strip().splitlines()[-1]}")
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return metrics[-1]["tokens"] / metrics[-1]["seconds"]


def measure(names: list[str], threads: int, rounds: int, commit: str, quick: bool) -> dict[str, Any]:
    """The whole result as JSON-ready values."""
    load = round(os.getloadavg()[0], 2)
    with contextlib.ExitStack() as stack:
        workers = {
            who: stack.enter_context(contender(names, count, fixed, quick))
            for who, count, fixed in ((CHOSEN, threads, False), (ONE, 1, True), (ALL, threads, True))
        }
        for worker in workers.values():
            worker.recv()
        race = Race(workers)
        settings = {n: (rounds, min(FEW[n], rounds), QUICK_SECONDS if quick else SECONDS[n]) for n in names}
        # First everything alone: who worked beside a neighbour a moment ago does not yet trust that it is gone.
        idle = {name: compare_alone(race, name, *setting) for name, setting in settings.items()}
        beside = {name: compare_beside(race, name, *setting) for name, setting in settings.items()}
        works = [outcome(name, idle[name], beside[name]) for name in names]
        for result in works:
            if result["work"] == "train":
                when, stays = (QUICK_SECONDS, QUICK_SECONDS) if quick else (ARRIVES, STAYS)
                paces = [race.when_it_comes(CHOSEN, when, stays) for _ in range(min(FEW["train"], rounds))]
                result["after_it_comes"] = statistics.median(paces)
                result["after_it_comes_over_one"] = round(result["after_it_comes"] / result["beside"][ONE], 4)
    for result in works:
        result["keeps_pace"] = keeps_pace(result)
    others = round(statistics.mean(race.others), 3) if race.others else None
    found = {"format_version": 1, **about(), "load_average_before": load, "threads_at_most": threads, "rounds": rounds}
    found |= {"share_of_cores_taken_by_others_while_idle": others, "works": works}
    return found | {"before": before(commit, threads, BEFORE_ROUNDS) if commit and "train" in names else None}


def as_table(result: dict[str, Any]) -> Table:
    """The result for the terminal; an interval in brackets, where there are rounds enough for one."""
    caption = f"{result['machine']}, torch {result['torch']}, at most {result['threads_at_most']} threads, medians"
    table = Table(title="Pace alone and beside a busy neighbour", caption=caption)
    table.add_column("")
    for heading in (CHOSEN, ALL, ONE, "ratio"):
        table.add_column(heading, justify="right")
    table.add_column("bar")
    for row in result["works"]:
        alone, beside, keeps = row["idle_chosen_over_all"], row["beside_chosen_over_one"], row["keeps_pace"]
        interval = "" if alone["interval"][0] is None else " ({:.3f} to {:.3f})".format(*alone["interval"])
        digits = 2 if row["unit"] == "cells/s" else 0
        for how, found, of in (
            ("idle", f"{alone['median']:.3f}{interval}", f"of all, at least {1 - BAR_IDLE:.2f} or holds 1"),
            ("beside", f"{beside['median']:.2f}", f"of one, at least {BAR_BESIDE}"),
        ):
            paces = (f"{row[how][who]:,.{digits}f}" for who in (CHOSEN, ALL, ONE))
            verdict = "reached" if keeps[how] else "missed"
            table.add_row(f"{row['work']}, {row['unit']}, {how}", *paces, found, f"{of}: {verdict}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--works", nargs="+", choices=SECONDS, default=[*SECONDS], metavar="WORK", help="some of them")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="those of `all`")
    parser.add_argument("--before", default=BEFORE, metavar="COMMIT", help="whose training to set beside ours")
    parser.add_argument("--quick", action="store_true", help="one short round, without that of before; prints only")
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.threads < 1:
        parser.error("--rounds and --threads must be at least 1")
    if arguments.threads == 1:
        say("one thread: all three are the same; unset OMP_NUM_THREADS, or use --threads")
    rounds, commit = (1, "") if arguments.quick else (arguments.rounds, arguments.before)
    result = measure(arguments.works, arguments.threads, rounds, commit, arguments.quick)
    if not arguments.quick:
        write("neighbour", result)
    console = Console()
    others = result["share_of_cores_taken_by_others_while_idle"]
    if others is not None and others > DISTURBED:
        say(f"other programs took {others:.0%} of the cores while nobody should have: measure again on an idle machine")
    console.print(as_table(result))
    for row in result["works"]:
        if "after_it_comes" in row:
            console.print(f"{row['work']} from the moment that it comes: {row['after_it_comes_over_one']:.2f} of one")
    if result["before"]:
        old = result["before"]
        fall = old["beside_over_idle"]["median"]
        console.print(f"train at {old['commit']}: idle {old['idle']:,.0f}, beside {old['beside']:,.0f} ({fall:.3f})")


if __name__ == "__main__":
    main()
