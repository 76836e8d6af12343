"""How fast is a text prepared, and in how much memory? Writes benchmarks/results/prepare.json.

    python benchmarks/prepare.py                          1 GB of generated stories
    python benchmarks/prepare.py --megabytes 200 --repeat stories.txt

The text is read, a tokenizer is trained on it, and the token store is made, in a process of its own whose
peak resident memory is reported; then a second process finds both in the cache. Nothing is reported
unless stories drawn at random decode to the text they came from.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from report import about, write

SEPARATOR = "<|endoftext|>"


def generated_stories(seed: int = 0) -> Iterator[str]:
    """Endless stories of made-up words: 30,000 of them, some as frequent as `the`, most of them rare."""
    numbers = random.Random(seed)
    consonants, vowels = "bcdfghklmnprstvw", "aeiou"
    words = [
        "".join(numbers.choice(consonants) + numbers.choice(vowels) for _ in range(numbers.randint(1, 4)))
        for _ in range(30_000)
    ]
    frequencies = [1 / (rank + 2) for rank in range(len(words))]
    pool = numbers.choices(words, frequencies, k=2_000_000)
    while True:
        lines = []
        for _ in range(numbers.randint(2, 12)):
            begin = numbers.randrange(len(pool) - 20)
            lines.append(" ".join(pool[begin : begin + numbers.randint(4, 20)]).capitalize() + ".")
        yield "\n".join(lines)


def repeated(path: Path) -> Iterator[str]:
    """The stories of a given source, over and over."""
    from rhapsode.sources import open_source

    while True:
        yield from open_source([str(path)]).stories()  # type: ignore[misc]


def write_text(stories: Iterator[str], path: Path, size: int) -> None:
    written = 0
    with path.open("w", encoding="utf-8") as stream:
        for story in stories:
            written += stream.write(f"{story}\n{SEPARATOR}\n")
            if written >= size:
                return


def child(text: str, cache: str, kind: str, vocab_size: int) -> None:
    """Prepares the text, checks the store, and prints what it took."""
    from rhapsode.sources import open_source
    from rhapsode.tokens import prepare, tokenizer_for

    started = time.perf_counter()
    source = open_source([text])
    tokenizer = tokenizer_for(source, kind, vocab_size, Path(cache))
    trained = time.perf_counter()
    store = prepare(source, tokenizer, Path(cache))
    ended = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    for i, story in enumerate(islice(source.stories(), 1000)):
        assert tokenizer.decode(store.story(i).tolist()) == story, f"story {i} does not come back from the store"
    print(
        json.dumps(
            {
                "tokenizer_seconds": trained - started,
                "prepare_seconds": ended - trained,
                "peak_rss_bytes": peak,
                "stories": store.num_stories,
                "text_bytes": store.num_bytes,
                "tokens": store.num_tokens,
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--repeat", type=Path, help="repeat the stories of this file instead of generating some")
    parser.add_argument("--kind", default="bpe")
    parser.add_argument("--vocab-size", type=int, default=1024)
    parser.add_argument("--child", nargs=2, metavar=("TEXT", "CACHE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        text_file, cache = arguments.child
        child(text_file, cache, arguments.kind, arguments.vocab_size)
        return

    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "stories.txt"
        stories = repeated(arguments.repeat) if arguments.repeat else generated_stories()
        write_text(stories, text, arguments.megabytes * 1_000_000)
        command = [
            sys.executable,
            __file__,
            "--kind",
            arguments.kind,
            "--vocab-size",
            str(arguments.vocab_size),
        ]
        runs = [
            json.loads(subprocess.check_output([*command, "--child", str(text), str(Path(folder) / "cache")]))
            for _ in range(2)
        ]
        size = text.stat().st_size
    first, second = runs
    result = {
        "format_version": 1,
        **about(),
        "text": arguments.repeat.name if arguments.repeat else "generated",
        "tokenizer": f"{arguments.kind} {arguments.vocab_size}",
        "file_bytes": size,
        **first,
        "megabytes_per_second": round(size / 1e6 / first["prepare_seconds"], 2),
        "bytes_per_token": round(first["text_bytes"] / first["tokens"], 3),
        "peak_rss_megabytes": round(first["peak_rss_bytes"] / 1e6),
        "second_run_seconds": second["tokenizer_seconds"] + second["prepare_seconds"],
    }
    write("prepare", result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
