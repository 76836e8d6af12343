"""How fast storyworld makes training data: text, fragments, and tokens in two processes.

    python benchmarks/storyworld.py [MEGABYTES]

First checks that the tokens of fragments are the tokens of the texts, then prints megabytes of text (UTF-8)
per second: medians of three runs, tables and tokenizer made beforehand.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from rhapsode import storyworld

STORIES_PER_BATCH = 8_192
_tables: dict[str, storyworld.FragmentTokens] = {}


def make_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=2_048, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(storyworld.sample_batch(0, 2_000), trainer)
    return tokenizer


def load_tables(tokenizer_json: str) -> None:
    """Runs once in each process, so that the timed work is generation alone."""
    tokenizer = Tokenizer.from_str(tokenizer_json)
    _tables["tokens"] = storyworld.fragment_tokens(lambda text: tokenizer.encode(text).ids)
    storyworld.sample_fragments(0, 100)


def tokens_of_batch(seed_start: int) -> int:
    """Makes one batch in tokens and says how many there are."""
    tokens, _ = _tables["tokens"].tokens(*storyworld.sample_fragments(seed_start, STORIES_PER_BATCH))
    return len(tokens)


def seconds(work: Callable[[], object]) -> float:
    def once() -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    return statistics.median(once() for _ in range(3))


def main() -> None:
    megabytes = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    tokenizer = make_tokenizer()
    load_tables(tokenizer.to_str())
    tokens, offsets = _tables["tokens"].tokens(*storyworld.sample_fragments(7, 500))
    for i, text in enumerate(storyworld.sample_batch(7, 500)):
        assert tokens[offsets[i] : offsets[i + 1]].tolist() == tokenizer.encode(text).ids
    print("checked: 500 stories have the same tokens by fragments and by text")

    batch_megabytes = sum(len(text.encode()) for text in storyworld.sample_batch(0, STORIES_PER_BATCH)) / 1e6
    starts = [int(start) for start in np.arange(round(megabytes / batch_megabytes)) * STORIES_PER_BATCH]
    total = len(starts) * batch_megabytes

    def report(name: str, spent: float) -> None:
        print(f"{name:36s} {total / spent:8.1f} MB/s  ({total:.0f} MB of text)")

    report("texts, one process", seconds(lambda: [storyworld.sample_batch(s, STORIES_PER_BATCH) for s in starts]))
    fragments = seconds(lambda: [storyworld.sample_fragments(s, STORIES_PER_BATCH) for s in starts])
    report("fragments, one process", fragments)
    report("tokens, one process", seconds(lambda: [tokens_of_batch(s) for s in starts]))
    with ProcessPoolExecutor(2, initializer=load_tables, initargs=(tokenizer.to_str(),)) as pool:
        list(pool.map(tokens_of_batch, starts[:2]))
        report("tokens, two processes", seconds(lambda: list(pool.map(tokens_of_batch, starts))))
    print(f"{os.cpu_count()} cores, NumPy {np.__version__}, Python {sys.version.split()[0]}")


if __name__ == "__main__":
    main()
