"""How fast does storyworld make training data? Writes benchmarks/results/storyworld.json.

    python benchmarks/storyworld.py                        up to 1,000,000 stories (823 MB of text)
    python benchmarks/storyworld.py --stories 20000 200000

First checks that the tokens of fragments, made by one process and by two, are the tokens of the texts. Then prints
megabytes of text (UTF-8) per second: of texts, fragments and tokens in memory (medians of three runs, tables and
tokenizer made beforehand), and of whole stores on disk (`rhapsode.tokens.prepare`, start of the processes and fsync
included), each made once by one process and once by two. The last line is how long a new Python takes from its
start to a small store, tokenizer included.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from report import about, write

from rhapsode import storyworld
from rhapsode.sources import GeneratedSource
from rhapsode.storyworld import parallel
from rhapsode.tokenizer import Tokenizer
from rhapsode.tokens import prepare, tokenizer_for

VOCAB_SIZE = 1024
IN_MEMORY = 10 * parallel.STORIES_PER_BATCH
SMALL = """
import sys
from pathlib import Path
from rhapsode.sources import open_source
from rhapsode.tokens import prepare, tokenizer_for
source, cache = open_source(["storyworld:2000"]), Path(sys.argv[1])
prepare(source, tokenizer_for(source, "bpe", 1024, cache), cache)
"""


def check(tokenizer: Tokenizer, table: storyworld.FragmentTokens) -> None:
    """500 stories by text, and 30,000 by one process and by two."""
    tokens, offsets = table.tokens(*storyworld.sample_fragments(7, 500))
    for i, text in enumerate(storyworld.sample_batch(7, 500)):
        assert tokens[offsets[i] : offsets[i + 1]].tolist() == [*tokenizer.encode(text), tokenizer.eos_id]
    one, two = (list(storyworld.token_batches(table, 0, 30_000, processes=n)) for n in (1, 2))
    for batch, other in zip(one, two, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(batch, other, strict=True))


def seconds(work: Callable[[], object], runs: int) -> float:
    """The median time of a run."""

    def once() -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    return statistics.median(once() for _ in range(runs))


def store_seconds(stories: int, processes: int, tokenizer: Tokenizer) -> float:
    """The time of making a store from nothing."""
    parallel.PARALLEL_FROM = 0 if processes > 1 else stories + 1
    parallel.MOST_PROCESSES = processes
    with tempfile.TemporaryDirectory() as folder:
        return seconds(lambda: prepare(GeneratedSource(stories), tokenizer, Path(folder)), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--stories", type=int, nargs="+", default=[20_000, 200_000, 1_000_000])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = tokenizer_for(GeneratedSource(2_000), "bpe", VOCAB_SIZE, Path(folder))
    table = storyworld.fragment_tokens(tokenizer.encode, tokenizer.eos_id)
    check(tokenizer, table)
    print("checked: the same tokens by text, by fragments, and in two processes")

    rates: dict[str, float] = {}

    def report(name: str, stories: int, spent: float) -> None:
        megabytes = stories * storyworld.entropy().bytes_per_story / 1e6
        rates[name] = round(megabytes / spent, 1)
        print(f"{name:44s} {megabytes / spent:8.1f} MB/s  ({spent:.2f} s)", flush=True)

    starts = range(0, IN_MEMORY, parallel.STORIES_PER_BATCH)
    size = parallel.STORIES_PER_BATCH
    for name, make in (
        ("texts", lambda start: storyworld.sample_batch(start, size)),
        ("fragments", lambda start: storyworld.sample_fragments(start, size)),
        ("tokens", lambda start: table.tokens(*storyworld.sample_fragments(start, size))),
    ):
        report(f"{name}, one process", IN_MEMORY, seconds(lambda make=make: [make(start) for start in starts], 3))
    for stories in arguments.stories:
        for processes in (1, 2):
            name = f"store of {stories:,}, {'one process' if processes == 1 else 'two processes'}"
            report(name, stories, store_seconds(stories, processes, tokenizer))

    def from_nothing() -> None:
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([sys.executable, "-c", SMALL, folder], check=True, stderr=subprocess.DEVNULL)

    small = seconds(from_nothing, 3)
    print(f"from starting Python to a store of 2,000 stories: {small:.2f} s")
    result = {
        "format_version": 1,
        **about(),
        "tokenizer": f"bpe {VOCAB_SIZE}",
        "megabytes_per_second": rates,
        "small_store_seconds": round(small, 2),
    }
    write("storyworld", result)


if __name__ == "__main__":
    main()
