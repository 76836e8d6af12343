"""Hostile input by a coverage-guided fuzzer, atheris: so many inputs for each parser of parsers.py.

    python tests/faults/hostile.py PARSER INPUTS SEED FOLDER       one parser, in a process of its own

Each input may take SECONDS and the process MEGABYTES, or the fuzzer ends with the input that did. What else is wrong is
collected, and the fuzzer goes on.
"""

import json
import random
import re
import subprocess
import sys
import time
import traceback
from functools import partial
from pathlib import Path
from typing import Any

from harness import MOST_SHOWN, NotHere, Tally, Unit

INPUTS = 100_000
SMALL = 500
GROUPS = {  # parts of half an hour at most; what stands in two has half of its inputs in each
    "texts": ("text", "JSON", "JSON Lines", "a file of unknown kind"),
    "tables": ("CSV", "TSV", "Parquet", "gzip", "zstandard"),
    "settings": ("SHA256SUMS", "TOML", "--set", "a Hub address"),
    "files": ("tokenizer.json", "a saved state", "study.json", "store.json"),
    "runs": ("a checkpoint", "run.json", "metrics.jsonl"),
    "models": ("model.pt", "a prompt"),
    "commands-1": ("the command line",),
    "commands-2": ("the command line",),
    "web": ("an HTTP request", "an HTTP body", "a saved story", "a link to a story"),
}
READ_BY, COMPUTED_BY = ["rhapsode"], [f"rhapsode.{room}" for room in ("decode", "kernels", "model", "storyworld")]
SECONDS, MEGABYTES = 20, 4096
LONGEST = {"a prompt": 1 << 9}  # bytes; every token of a prompt is computed, and others try the long ones
LONGEST_ELSE = 1 << 16


def units(small: bool, group: str) -> list[Unit]:
    try:
        import atheris  # noqa: F401
    except ImportError:
        raise NotHere("atheris is not installed: pip install -r tests/faults/requirements.lock") from None
    from parsers import PARSERS

    found = []
    for name in (name for name in GROUPS[group] if name in PARSERS):
        parts = [each for each, names in GROUPS.items() if name in names]
        inputs = SMALL if small else INPUTS // len(parts)
        found.append((name, partial(fuzz, name, inputs, parts.index(group))))
    return found


def fuzz(name: str, inputs: int, part: int, seed: int, folder: Path) -> Tally:
    """part: which of several with the same parser; each draws others."""
    command = [sys.executable, __file__, name, str(inputs), str(seed + 1000 * part), str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, errors="replace", cwd=folder)
    report = folder / "report.json"
    found: dict[str, Any] = json.loads(report.read_text()) if report.exists() else {"tries": 0, "lost": {}}
    tally = Tally(found["tries"], found["tries"] - sum(found["lost"].values()))
    tally.lost = [f"{name}: {what} ({count} times)" for what, count in found["lost"].items()][:MOST_SHOWN]
    if result.returncode or found["tries"] < inputs:
        end = [line for line in result.stderr.splitlines() if "ERROR" in line or "Error" in line][-1:]
        tally.note(f"{name}: the fuzzer ended with {result.returncode} after {found['tries']:,}: {end}")
    coverage = re.findall(r"cov: (\d+)", result.stderr)
    tally.facts = {"taken": found.get("taken", 0), "refused": found.get("refused", 0)}
    tally.facts |= {"coverage": int(coverage[-1]) if coverage else 0}
    tally.facts |= {"milliseconds an input": round(1000 * found.get("seconds", 0.0) / max(1, found["tries"]), 2)}
    return tally


def main(arguments: list[str]) -> None:
    import atheris

    name, inputs, seed, folder = arguments[0], int(arguments[1]), arguments[2], Path(arguments[3])
    with atheris.instrument_imports(include=[*READ_BY, "json", "tomllib", "zipfile", "csv"], exclude=COMPUTED_BY):
        import parsers
    corpus = folder / "corpus"
    corpus.mkdir(exist_ok=True)
    good = parsers.good(name)
    for number, data in enumerate(good):
        (corpus / f"good-{number}").write_bytes(data)
        parsers.feed(name, data)  # what has to be made for it is made before the clock runs
    begun = time.monotonic()
    counts = {"taken": 0, "refused": 0}
    lost: dict[str, int] = {}

    def report() -> None:
        tries = sum(counts.values()) + sum(lost.values())
        seconds = time.monotonic() - begun
        (folder / "report.json").write_text(json.dumps({"tries": tries, "lost": lost, "seconds": seconds, **counts}))

    def one(data: bytes) -> None:
        try:
            counts[parsers.feed(name, data)] += 1
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a panic of the tokenizers library is no Exception
            place = traceback.extract_tb(error.__traceback__)[-1]
            what = f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}: {str(error)[:150]}"
            lost[what] = lost.get(what, 0) + 1
            if lost[what] == 1:
                (folder / f"lost-{len(lost)}").write_bytes(data)
        tries = sum(counts.values()) + sum(lost.values())
        if tries % 1000 == 0 or tries >= inputs:
            report()

    options = [
        f"-runs={inputs}",
        f"-seed={int(seed) + 1}",
        f"-max_len={LONGEST.get(name, LONGEST_ELSE)}",
        f"-timeout={SECONDS}",
        "-mutate_depth=3",
        "-len_control=0",
    ]
    options += [f"-rss_limit_mb={MEGABYTES}", f"-artifact_prefix={folder}/"]

    def changed(data: bytes, most: int, number: int) -> bytes:
        """Bytes as the fuzzer changes them, or a value of JSON; half of these of good input, which the fuzzer forgets
        where it sees nothing of what a parser does (those in Node)."""
        draw = random.Random(number)
        if draw.random() < 0.5:
            return atheris.Mutate(data, most)
        base = draw.choice(good) if draw.random() < 0.5 else data
        change = [(draw.choice((0, 2, 4, 5, 5, 5)), draw.randrange(10**6), draw.randrange(10**6)) for _ in range(2)]
        return parsers.mutated(base, change)[:most]

    atheris.Setup([sys.argv[0], *options, str(corpus)], one, custom_mutator=changed)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
