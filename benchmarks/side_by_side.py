"""Everything that is compared, two trainings at once, one core and one thread each: what is still missing, in order.

    python benchmarks/side_by_side.py TRAIN.jsonl VALID.jsonl INPUT.txt           hours; Ctrl-C stops, again resumes
    python benchmarks/side_by_side.py TRAIN.jsonl VALID.jsonl INPUT.txt --only "make story*" "modern*"
    python benchmarks/side_by_side.py TRAIN.jsonl VALID.jsonl INPUT.txt --list      what there is, what it will take
    python benchmarks/side_by_side.py --table                                       the results, in Markdown
    python benchmarks/side_by_side.py --plot            docs/figures/side-by-side.svg: ten minutes on TinyStories

TRAIN and VALID are TinyStories, INPUT tiny Shakespeare. The machine's pace changes from hour to hour, so differences
count, and only between two that trained at the same time. The questions, and who trains in which, stand in
questions.py; what modern is given was looked for by tuning.py. Each pair is added to results/side-by-side.jsonl
when both of it are done, with recipes, commit and machine. A pair counts as there if today's recipes are the same;
--fresh: if it was made by this commit, too. Nothing is ever replaced: the table shows the newest of a question.

All minutes are of training; validation is not counted. Runs on core 0 and 1, or the first two that it may use.
"""

import argparse
import contextlib
import fnmatch
import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import rich.progress
from lanes import Command, cores, run_lanes
from questions import BEFORE, Contender, Files, Question, contender, lay_out, questions
from report import RESULTS, about
from side_by_side_tables import failures, plot, print_tables, same

from rhapsode.files import write_text
from rhapsode.progress import console, say

NAME = "side-by-side.jsonl"


OnSeconds = Callable[[float], None]


class Job(NamedTuple):
    """Trainings that belong together. title: for people; minutes: about how long; run: does it, hears of the seconds
    that go by, and returns what failed."""

    title: str
    tier: float
    minutes: float
    run: Callable[[OnSeconds], list[str]]


def read_pairs() -> list[dict[str, Any]]:
    """All that was measured, in its order."""
    file = RESULTS / NAME
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def keep_pair(found: dict[str, Any]) -> None:
    """Adds a line to the results, in one rename."""
    lines = [json.dumps(each, ensure_ascii=False) for each in (*read_pairs(), found)]
    write_text(RESULTS / NAME, "\n".join(lines) + "\n")


def compare(question: Question, seed: int, who: list[Contender], on_seconds: OnSeconds) -> list[str]:
    """Trains and scores the contenders with a seed, at once or (alone) one after the other, and keeps what came.

    Returns what failed.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folders = [Path(temporary) / str(i) for i in range(len(who))]
        for folder in folders:
            folder.mkdir()
        commands = [each.commands(folder, seed) for each, folder in zip(who, folders, strict=True)]
        failed = in_turns(commands, on_seconds) if question.alone else run_lanes(commands, True, on_seconds)
        runs: list[dict[str, Any]] = []
        for each, folder, failure in zip(who, folders, failed, strict=True):
            result = {"value": None, "why": failure} if failure else each.result(folder)
            runs.append({"who": each.who, "recipe": each.recipe, **result})
            say(f"  {each.who}: {result['why'] if result['value'] is None else result['value']}")
    conditions = {"cores": len(cores()) if question.alone else 1, "at": time.strftime("%Y-%m-%d %H:%M"), **about()}
    del conditions["threads"]  # of this process, which trains nothing
    found = {"question": question.name, "text": question.text, "minutes": question.minutes, "seed": seed}
    found |= {**conditions, "runs": runs}
    keep_pair(found)
    return failures(found)


def in_turns(commands: list[list[Command]], on_seconds: OnSeconds) -> list[str | None]:
    """Each contender alone on the whole machine."""
    begun = time.monotonic()
    whole: OnSeconds = lambda _: on_seconds(time.monotonic() - begun)  # noqa: E731
    return [run_lanes([lane], False, whole)[0] for lane in commands]


def comparison(question: Question, seed: int, files: Files, pairs: list[dict[str, Any]], fresh: bool) -> Job | None:
    """The job of a question and a seed; None where it is there, or where there is nothing to compare."""
    who = [contender(name, question, files) for name in question.contenders]
    if None in who:
        return None
    there = [each for each in who if each is not None]
    commit = about()["commit"] if fresh else None
    if any(same(pair, question.name, seed, there, commit) for pair in pairs):
        return None
    title = f"{question.name}, seed {seed}: {' | '.join(question.contenders)}"
    return Job(title, question.tier, question.expected_minutes, partial(compare, question, seed, there))


def missing(files: Files, arguments: argparse.Namespace, tried: set[str]) -> list[Job]:
    """All jobs that are still to be done, the most worth first; tried: titles that failed in this run."""
    pairs, only = read_pairs(), arguments.only
    jobs: list[tuple[float, int, Job]] = []
    wanted = [question for question in questions() if any(fnmatch.fnmatch(question.name, each) for each in only)]
    for question in wanted:
        found = (comparison(question, seed, files, pairs, arguments.fresh) for seed in range(question.seeds))
        jobs += [(question.tier, seed, job) for seed, job in enumerate(found) if job]
    jobs.sort(key=lambda each: each[:2])
    return [job for _, _, job in jobs if job.title not in tried]


def work(files: Files, arguments: argparse.Namespace) -> int:
    """Does what is missing until nothing is; returns the exit code: 1 where something failed."""
    tried: set[str] = set()
    began, done, expected = time.monotonic(), 0, 0.0
    while jobs := missing(files, arguments, tried):
        job, left = jobs[0], sum(each.minutes for each in jobs)
        slower = (time.monotonic() - began) / 60 / expected if expected > 5 else 1.0
        say(f"{job.title} ({done} done, {len(jobs)} left, about {duration(left * slower)})")
        with progress(60 * job.minutes * slower) as on_seconds:
            failed = job.run(on_seconds)
        done, expected = done + 1, expected + job.minutes
        if failed:
            tried.add(job.title)
    end = f"failed: {'; '.join(sorted(tried))}" if tried else "nothing is missing"
    say(f"{done} done in {duration((time.monotonic() - began) / 60)}; {end}")
    return 1 if tried else 0


@contextlib.contextmanager
def progress(seconds: float) -> Any:
    """Yields what hears of the seconds that have gone by: a bar on a terminal, nothing elsewhere."""
    columns = (rich.progress.BarColumn(), rich.progress.TaskProgressColumn(), rich.progress.TimeRemainingColumn())
    with rich.progress.Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=seconds)
        yield lambda gone: bar.update(task, completed=gone)


def duration(minutes: float) -> str:
    """Minutes for people."""
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def print_list(jobs: list[Job]) -> None:
    """What is missing, and how long it will take."""
    total = 0.0
    for job in jobs:
        total += job.minutes
        print(f"{duration(job.minutes):>8}  {duration(total):>8}  {job.title}")
    print(f"about {duration(total)} in all, on two cores that nobody else uses")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", metavar="FILE", help="TRAIN.jsonl VALID.jsonl INPUT.txt")
    parser.add_argument("--only", nargs="+", default=["*"], metavar="NAME", help="names of questions; * ?")
    parser.add_argument("--fresh", action="store_true", help="count only what this commit made")
    parser.add_argument("--list", action="store_true", help="what is missing, with minutes; trains nothing")
    parser.add_argument("--table", action="store_true", help="the results in Markdown; trains nothing")
    parser.add_argument("--plot", action="store_true", help="the figure of ten minutes; trains nothing")
    arguments = parser.parse_args()
    if arguments.table or arguments.plot:
        (print_tables if arguments.table else plot)(read_pairs())
        return 0
    if len(arguments.files) != 3:
        parser.error("name TRAIN.jsonl VALID.jsonl INPUT.txt")
    with tempfile.TemporaryDirectory() as folder:
        try:
            train, valid, play = arguments.files
            files = lay_out(train, valid, play, Path(folder))
            if files.before() is None:
                say(f"commit {BEFORE} is not in this checkout's history: what is compared with it is left out")
            if arguments.list:
                print_list(missing(files, arguments, set()))
                return 0
            return work(files, arguments)
        except (OSError, ValueError) as error:
            parser.error(str(error))
        except KeyboardInterrupt:
            say("stopped; the pair that was training is not kept, all before it is: the same command resumes")
            return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
