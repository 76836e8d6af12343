"""What the parts of `make faults` share: they count tries and what was lost, and can be resumed.

    python tests/faults/harness.py                    every part at full size, 30 minutes each at most
    python tests/faults/harness.py writes power       these two
    python tests/faults/harness.py --small ...        in minutes, as the suite does it

A part is a list of units, each a name and a function of a seed and a folder that returns a Tally. After each unit the
part's JSON is written, and a part that was stopped continues with its next unit. Where the commit, the seed or the size
is another than in the JSON, it begins anew. Exit code 1: something was lost; 3: time is up, run it again.

Minutes at full size on two cores, as they were measured, stand in docs/reliability.md.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from rhapsode.files import write_text
from rhapsode.machine import commit, processor

RESULTS = Path(__file__).parent / "results"
MINUTES = 30.0
MOST_SHOWN = 20  # failures of a unit that are kept in words
FORMAT_VERSION = 1
PARTS = {  # name: (module, or module:group of its units; what it does)
    "writes": ("every_write", "every write, fsync, rename, open and mkdir fails, once and for good"),
    "processes": ("whole_processes", "the same in whole processes, by strace"),
    "power": ("power_cut", "power cuts on a simulated disk that forgets all that was not flushed"),
    "disks": ("disk_images", "power cuts on ext4 and xfs"),
    "damage-runs": ("damage:runs", "flipped bits, cut, swapped and newer files of runs"),
    "damage-studies": ("damage:studies", "the same of studies"),
    "damage-pages": ("damage:pages", "the same of offline pages"),
    "damage": ("damage:others", "the same of stores, tokenizers, states and models"),
    "kills-1": ("kills:1", "kills inside every write, and kills and signals at random moments: the first half"),
    "kills-2": ("kills:2", "kills and signals at random moments: the second half"),
    "hostile-texts": ("hostile:texts", "hostile texts and JSON, by a fuzzer"),
    "hostile-tables": ("hostile:tables", "hostile tables and packed files, by a fuzzer"),
    "hostile-settings": ("hostile:settings", "hostile settings, checksums and addresses, by a fuzzer"),
    "hostile-files": ("hostile:files", "hostile tokenizers, states, studies and stores, by a fuzzer"),
    "hostile-runs": ("hostile:runs", "hostile files of a run, by a fuzzer"),
    "hostile-models": ("hostile:models", "a hostile model.pt and hostile prompts, by a fuzzer"),
    "hostile-commands-1": ("hostile:commands-1", "hostile command lines, by a fuzzer: the first half"),
    "hostile-commands-2": ("hostile:commands-2", "hostile command lines, by a fuzzer: the second half"),
    "hostile-web": ("hostile:web", "hostile requests to the server and stories for its page, by a fuzzer"),
    "server": ("hostile_clients", "a server and clients that mean harm or are broken"),
    "numbers": ("numbers_at_the_edge", "numbers at the edge of what floats hold"),
    "together": ("two_at_once", "several processes at once"),
    "group": ("several_processes", "one model trained by several processes, of which one is killed or cut off"),
    "large-text": ("large:text", "a text of 10 GB"),
    "large-prompts": ("large:prompts", "a prompt of 100,000 tokens"),
    "large": ("large:other", "a line of 1 GB, a million files, long metrics"),
}


class NotHere(Exception):
    """The part cannot be run on this machine, for the reason in the message."""


@dataclass
class Tally:
    """tries: how many; survived: of them, as promised; lost: the others, in words; facts: other numbers of it."""

    tries: int = 0
    survived: int = 0
    lost: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def note(self, problem: str | None) -> None:
        """Counts one try; problem: what was lost, None for nothing."""
        self.tries += 1
        if problem is None:
            self.survived += 1
        elif len(self.lost) < MOST_SHOWN:
            self.lost.append(problem)

    def note_of(self, check: Callable[[], None], where: str) -> None:
        """Counts one try: survived if the check raises nothing."""
        try:
            check()
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            self.note(f"{where}: {type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})")
        else:
            self.note(None)


Unit = tuple[str, Callable[[int, Path], Tally]]


def run_part(name: str, results: Path, seed: int, small: bool, minutes: float, only: str = "") -> dict[str, Any]:
    """Runs what is left of a part, for so many minutes; returns what its JSON holds."""
    module, what = PARTS[name]
    file = results / f"{name}.json"
    about: dict[str, Any] = {"format_version": FORMAT_VERSION, "part": name, "what": what, "commit": commit()}
    about |= {"seed": seed, "size": "small" if small else "full"}
    before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    same = all(before.get(key) == value for key, value in about.items())
    record = (
        before if same else {**about, **machine(), "seconds": 0.0, "not_here": None, "complete": False, "units": []}
    )
    done = {unit["name"] for unit in record["units"]}
    deadline = time.monotonic() + 60 * minutes
    record["complete"] = True
    try:
        module, _, group = module.partition(":")
        units: Sequence[Unit] = import_module(module).units(small, *([group] if group else []))
    except NotHere as reason:
        record["not_here"], units = str(reason), []
    for unit, run in units:
        if unit in done or only not in unit:
            record["complete"] &= unit in done
            continue
        if time.monotonic() > deadline:
            record["complete"] = False
            break
        started = time.monotonic()
        try:
            with tempfile.TemporaryDirectory(prefix="rhapsode-faults-") as folder:
                tally = run(seed, Path(folder))
        except NotHere as reason:
            record["not_here"] = f"{unit}: {reason}"
            continue
        seconds = round(time.monotonic() - started, 1)
        record["units"].append({"name": unit, **asdict(tally), "seconds": seconds})
        record["seconds"] = round(record["seconds"] + seconds, 1)
        print(f"{name}: {unit}: {tally.survived:,} of {tally.tries:,} survived, {seconds:.0f} s", file=sys.stderr)
        for line in tally.lost:
            print(f"    LOST {line}", file=sys.stderr)
        results.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    results.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return record


def machine() -> dict[str, Any]:
    """What the numbers were made on."""
    import torch

    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__.split("+")[0],
        "date": time.strftime("%Y-%m-%d"),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="the parts to run; by default all")
    parser.add_argument("--small", action="store_true", help="the size of the suite")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for each part")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSONs")
    parser.add_argument("--only", default="", help="units with this in their name")
    asked = parser.parse_args()
    records = [
        run_part(name, asked.results, asked.seed, asked.small, asked.minutes, asked.only)
        for name in asked.parts or PARTS
    ]
    for record in records:
        if record["not_here"]:
            print(f"{record['part']}: not run here: {record['not_here']}", file=sys.stderr)
    if any(unit["lost"] for record in records for unit in record["units"]):
        return 1
    return 0 if all(record["complete"] for record in records) else 3


if __name__ == "__main__":
    sys.modules["harness"] = sys.modules["__main__"]  # the parts import it by its name
    sys.exit(main())
