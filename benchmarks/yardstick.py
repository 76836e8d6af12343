"""A model beside others of its size: bits per character of TinyStories, and minimal pairs of grammar.

    python benchmarks/yardstick.py RUN VALID.jsonl           the first 500 stories of VALID; a table
    python benchmarks/yardstick.py RUN VALID.jsonl --json    one JSON object

Bits per character: all nats of the stories, of their ends too, over all their characters. Minimal pairs: 100 of each
paradigm of rhapsode.minimal_pairs, seed 0, through `model.score`. What others published stands in docs/presets.md: it
is of other stories of the same kind, so it says in which region a number lies, and ranks nobody.
"""

import argparse
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import rhapsode
from rhapsode.minimal_pairs import pair_accuracy, sample_pairs

FIRST = 500  # stories of the validation file
PAIRS = 100  # of each paradigm


def yardstick(stories: Sequence[str], nats: Callable[[list[str]], Sequence[float]]) -> dict[str, Any]:
    """Bits per character of stories, and the shares of minimal pairs; nats: what each of some texts costs."""
    characters = sum(map(len, stories))
    bits = sum(nats(list(stories))) / math.log(2)
    pairs = {name: round(share, 4) for name, share in pair_accuracy(sample_pairs(0, PAIRS), nats).items()}
    return {
        "stories": len(stories),
        "characters": characters,
        "bits_per_character": round(bits / characters, 4),
        "pairs": pairs,
    }


def first_lines(file: str, count: int = FIRST) -> list[str]:
    """The first lines of a JSONL file."""
    with open(file, encoding="utf-8") as stream:
        return [line for line, _ in zip(stream, range(count), strict=False)]


def first_stories(file: str) -> list[str]:
    """The texts of the first lines of a JSONL file."""
    return [json.loads(line)["text"] for line in first_lines(file)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run directory")
    parser.add_argument("valid", help="JSONL with the field text")
    parser.add_argument("--checkpoint", choices=("best", "last"), default="best")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    arguments = parser.parse_args()
    model = rhapsode.load(arguments.run, checkpoint=arguments.checkpoint, device="cpu")
    found = yardstick(first_stories(arguments.valid), lambda texts: [text.nats for text in model.score(texts).texts])
    if arguments.json:
        print(json.dumps(found))
        return
    print(f"{found['stories']} stories, {found['characters']:,} characters: {found['bits_per_character']} bits each\n")
    print("| minimal pairs | right |\n|---|---|")
    for name, share in found["pairs"].items():
        print(f"| {name} | {share:.1%} |")


if __name__ == "__main__":
    main()
