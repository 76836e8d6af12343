"""How much faster is a text prepared by several processes? Writes benchmarks/results/prepare_shards.json.

    python benchmarks/prepare_shards.py                    1 GB of generated stories by 1 and by 2 processes: 12 minutes
    python benchmarks/prepare_shards.py --megabytes 50     a minute, printed only

`rhapsode prepare TEXT --out STORE --workers N`, with a tokenizer that is trained before, in turns; the memory of its
processes together is looked at ten times a second, what they share counted once each. Nothing is reported unless
stories drawn at random decode to the text they came from, and all stores hold the same ids. Beside it, what two
processes could reach at best: two such commands at once that know nothing of each other, each of half as much text.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
from prepare import generated_stories, write_text
from report import about, write

from rhapsode.progress import say
from rhapsode.sources import open_source
from rhapsode.tokens import tokenizer_for
from rhapsode.tokens.shards import open_shards

WORKERS = (1, 2)
ROUNDS = 2
FULL_MEGABYTES = 1000
CHECKED = 2_000  # stories
BAR = 1.8  # times as fast by two processes as by one


def memory_of(process: psutil.Process) -> int:
    """Bytes of a process and its children; pages that several share count for each by its part."""
    total = 0
    for each in [process, *process.children(recursive=True)]:
        try:
            total += each.memory_full_info().pss
        except psutil.Error:
            continue
    return total


def started(text: Path, tokenizer: Path, out: Path, workers: int) -> subprocess.Popen[bytes]:
    """The command, with one thread in each of its processes, also where it is only one."""
    command = [sys.executable, "-m", "rhapsode", "prepare", str(text), "--out", str(out), "--workers", str(workers)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
    return subprocess.Popen([*command, "--tokenizer", str(tokenizer)], env=environment, stderr=subprocess.PIPE)


def ended(process: subprocess.Popen[bytes]) -> None:
    """Waits for it; ValueError where it failed."""
    _, errors = process.communicate()
    if process.returncode:
        raise ValueError(f"rhapsode prepare failed: {errors.decode().strip().splitlines()[-1]}")


def apart(half: Path, tokenizer: Path, folder: Path) -> float:
    """Seconds of two commands at once that know nothing of each other, each of half of the text."""
    begun = time.monotonic()
    for process in [started(half, tokenizer, folder / f"apart-{i}", 1) for i in range(2)]:
        ended(process)
    for i in range(2):
        shutil.rmtree(folder / f"apart-{i}")
    return round(time.monotonic() - begun, 2)


def prepared(text: Path, tokenizer: Path, out: Path, workers: int) -> dict[str, float]:
    """Seconds that it took, and the most memory that all processes had together."""
    begun, most = time.monotonic(), 0
    process = started(text, tokenizer, out, workers)
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            most = max(most, memory_of(watched))
        except psutil.Error:
            break
        time.sleep(0.1)
    ended(process)
    return {"seconds": round(time.monotonic() - begun, 2), "peak_megabytes": round(most / 1e6)}


def checked(text: Path, out: Path) -> str:
    """SHA-256 of all ids; ValueError where stories do not decode to what they were made of."""
    store, tokenizer = open_shards(str(out))
    stories = open_source([str(text)]).stories()
    draw = random.Random(0)
    for place, story in enumerate(islice(stories, CHECKED)):
        if draw.random() < 0.1 and tokenizer.decode(store.story(place)[:-1].tolist()) != story:
            raise ValueError(f"story {place} of {out} does not decode to what it was made of")
    digest = hashlib.sha256()
    for begin in range(0, store.num_tokens, 1 << 22):
        digest.update(store.tokens[begin : begin + (1 << 22)].tobytes())
    return digest.hexdigest()


def measure(megabytes: int, rounds: int) -> dict[str, Any]:
    """The whole result as JSON-ready values."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text, half, tokenizer = folder / "stories.txt", folder / "half.txt", folder / "tokenizer"
        write_text(generated_stories(), text, megabytes * 1_000_000)
        write_text(generated_stories(), half, megabytes * 500_000)
        tokenizer_for(open_source([str(text)]), cache_dir=folder / "cache").save(tokenizer)
        found: dict[int, list[dict[str, float]]] = {workers: [] for workers in WORKERS}
        digests, at_best = set(), []
        for round_ in range(rounds):
            for workers in WORKERS:
                out = folder / f"store-{workers}-{round_}"
                found[workers].append(prepared(text, tokenizer, out, workers))
                digests.add(checked(text, out))
                say(f"round {round_ + 1} of {rounds}, {workers} workers: {found[workers][-1]}")
            at_best.append(apart(half, tokenizer, folder))
            say(f"round {round_ + 1} of {rounds}, two commands, half of the text each: {at_best[-1]} s")
        if len(digests) > 1:
            raise ValueError("the stores hold different ids: nothing is reported")
        size = text.stat().st_size
    best = {workers: min(each["seconds"] for each in rounds) for workers, rounds in found.items()}
    result = {"format_version": 1, **about(), "file_bytes": size, "rounds": {str(n): each for n, each in found.items()}}
    ratio = round(best[WORKERS[0]] / best[WORKERS[-1]], 3)
    rates = {str(n): round(size / 1e6 / seconds, 2) for n, seconds in best.items()}
    result |= {"two_commands_seconds": at_best, "two_commands_speed_up": round(best[WORKERS[0]] / min(at_best), 3)}
    return result | {"megabytes_per_second": rates, "speed_up": ratio, "reached": ratio >= BAR}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=FULL_MEGABYTES)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    asked = parser.parse_args()
    result = measure(asked.megabytes, asked.rounds)
    if asked.megabytes == FULL_MEGABYTES:
        write("prepare_shards", result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
