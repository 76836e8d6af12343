"""How fast does storyworld make training data? Writes benchmarks/results/storyworld.json.

    python benchmarks/storyworld.py                        up to 1,000,000 stories (823 MB of text)
    python benchmarks/storyworld.py --stories 20000 200000

First checks that the tokens of fragments are the tokens of the texts, and that the exact probabilities of a story's
tokens multiply to the story's. Then prints megabytes of text (UTF-8) per second: of texts, fragments and tokens in
memory (medians of three runs, tables and tokenizer made beforehand), and of whole stores on disk
(`rhapsode.tokens.prepare`, fsync included), each made once. Then how long the exact distribution of the next token
takes, alone and for all tokens of a story at once, and how long a new Python takes from its start to a small store,
tokenizer included.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from report import about, write

from rhapsode import storyworld
from rhapsode.storyworld.source import GeneratedSource
from rhapsode.tokenizer import Tokenizer
from rhapsode.tokens import prepare, tokenizer_for

VOCAB_SIZE = 1024
BATCH = storyworld.STORIES_PER_BATCH
IN_MEMORY = 10 * BATCH
SMALL = """
import sys
from pathlib import Path
from rhapsode.sources import open_source
from rhapsode.tokens import prepare, tokenizer_for
source, cache = open_source(["storyworld:2000"]), Path(sys.argv[1])
prepare(source, tokenizer_for(source, "bpe", 1024, cache), cache)
"""


def check(tokenizer: Tokenizer, table: storyworld.FragmentTokens) -> None:
    """500 stories by text, and 20 by the probabilities of their tokens."""
    tokens, offsets = table.tokens(*storyworld.sample_fragments(7, 500))
    for i, text in enumerate(storyworld.sample_batch(7, 500)):
        assert tokens[offsets[i] : offsets[i + 1]].tolist() == [*tokenizer.encode(text), tokenizer.eos_id]
    for seed in range(20):
        story = storyworld.sample(seed)
        truth = storyworld.next_tokens_along([*tokenizer.encode(story.text), tokenizer.eos_id], tokenizer)
        assert abs(truth.log_probabilities.sum() - story.log_probability) < 1e-9


def seconds(work: Callable[[], object], runs: int) -> float:
    """The median time of a run."""

    def once() -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    return statistics.median(once() for _ in range(runs))


def store_seconds(stories: int, tokenizer: Tokenizer) -> float:
    """The time of making a store from nothing."""
    with tempfile.TemporaryDirectory() as folder:
        return seconds(lambda: prepare(GeneratedSource(stories), tokenizer, Path(folder)), 1)


def prediction_milliseconds(tokenizer: Tokenizer, stories: int) -> dict[str, float]:
    """Per position, of stories not seen before: with all positions at once, and of whole prefixes alone."""
    texts = [tokenizer.encode(text) for text in storyworld.sample_batch(10**6, 2 * stories)]
    size = sum(len(ids) + 1 for ids in texts[:stories])
    along = seconds(lambda: [storyworld.next_tokens_along(ids, tokenizer) for ids in texts[:stories]], 1)
    alone = seconds(lambda: [storyworld.next_tokens(ids, tokenizer) for ids in texts[stories:]], 1)
    return {"along a story": round(1e3 * along / size, 3), "a whole story's last": round(1e3 * alone / stories, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--stories", type=int, nargs="+", default=[20_000, 200_000, 1_000_000])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = tokenizer_for(GeneratedSource(2_000), "bpe", VOCAB_SIZE, Path(folder))
    table = storyworld.fragment_tokens(tokenizer.encode, tokenizer.eos_id)
    check(tokenizer, table)
    print("checked: the same tokens by text and by fragments, and their probabilities")

    rates: dict[str, float] = {}

    def report(name: str, stories: int, spent: float) -> None:
        megabytes = stories * storyworld.entropy().bytes_per_story / 1e6
        rates[name] = round(megabytes / spent, 1)
        print(f"{name:44s} {megabytes / spent:8.1f} MB/s  ({spent:.2f} s)", flush=True)

    def every(make: Callable[[int], object]) -> None:
        for start in range(0, IN_MEMORY, BATCH):
            make(start)

    for name, make in (
        ("texts", lambda start: storyworld.sample_batch(start, BATCH)),
        ("fragments", lambda start: storyworld.sample_fragments(start, BATCH)),
        ("tokens", lambda start: table.tokens(*storyworld.sample_fragments(start, BATCH))),
    ):
        report(name, IN_MEMORY, seconds(partial(every, make), 3))
    for stories in arguments.stories:
        report(f"store of {stories:,}", stories, store_seconds(stories, tokenizer))
    milliseconds = prediction_milliseconds(tokenizer, 100)
    for name, spent in milliseconds.items():
        print(f"{'exact next token, ' + name:44s} {spent:8.3f} ms")

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
        "next_token_milliseconds": milliseconds,
        "small_store_seconds": round(small, 2),
    }
    write("storyworld", result)


if __name__ == "__main__":
    main()
