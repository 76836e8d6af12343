"""What `gpu.py` measures, and how large: rows of its table, runs, and tiny ones of all for a machine without a GPU."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rhapsode.bench import Workload, plain
from rhapsode.machine import Capture, cuda_graph, eager
from rhapsode.progress import say
from rhapsode.recipe.changes import Sections, merge
from rhapsode.recipe.presets import PRESETS
from rhapsode.studies.plans import RECIPE, SETTINGS

MOST_SECONDS = 270.0  # of the five minutes: Python and PyTorch are loaded before, slowly where it is the first time


@dataclass(frozen=True)
class Row:
    """A row of the table: sizes of the plain model, rows of a batch, tokens of a window."""

    embed: int
    hidden: int
    head: int
    batch: int
    length: int = 128
    stepwise: bool = False

    @property
    def workload(self) -> Workload:
        name = f"{self.embed}, {self.hidden}, {self.head}, {self.batch}"
        name += f", T {self.length}" if self.length != 128 else ""
        return Workload(name, plain(self.embed, self.hidden, self.head), self.batch, self.length)


ROWS = (
    Row(128, 128, 128, 128, stepwise=True),
    Row(512, 512, 256, 128, stepwise=True),
    Row(128, 128, 128, 32),
    Row(128, 128, 128, 64),
    Row(128, 128, 128, 256),
    Row(64, 128, 32, 1, stepwise=True),
    Row(512, 512, 256, 32, 1024),
)
TINY_ROWS = (Row(8, 12, 6, 4, 16, stepwise=True),)


@dataclass(frozen=True)
class Loop:
    """A recurrence alone: its cell, its hidden size, how its products are made."""

    cell: str
    hidden: int
    precision: str = "float32"
    batch: int = 128
    length: int = 128

    @property
    def name(self) -> str:
        return f"{self.cell}, hidden {self.hidden}, batch {self.batch}"


LOOPS = (
    *(Loop("elman", hidden, precision) for hidden in (64, 128) for precision in ("float32", "tf32", "bfloat16")),
    *(Loop("elman", 128, precision, batch=1024) for precision in ("float32", "tf32", "bfloat16")),
    Loop("elman", 256, "bfloat16"),
    Loop("gated", 128),
    Loop("gated", 512),
)
TINY_LOOPS = (Loop("elman", 12, batch=4, length=6), Loop("gated", 5, "bfloat16", 4, 6))


@dataclass(frozen=True)
class Setup:
    """Where it runs, and how large everything is. precisions: those that are timed. failed: what did, and why."""

    device: str
    capture: Capture
    loops: tuple[Loop, ...]
    rows: tuple[Row, ...]
    precisions: tuple[str, ...]
    large: Sections
    coffee: Sections
    seeds: Sections
    texts: tuple[int, ...]
    tokens: int
    deadline: float
    failed: list[str] = field(default_factory=list)

    def left(self, seconds: float) -> bool:
        """Whether there is time for what takes so long."""
        return time.monotonic() + seconds < self.deadline

    @contextmanager
    def trying(self, what: str) -> Iterator[None]:
        """What fails within the block is written down, and the next thing is measured: a card is lent for minutes."""
        try:
            yield
        except Exception as error:  # whatever a driver, a compiler or a card may raise
            self.failed.append(f"{what}: {type(error).__name__}: {' '.join(str(error).split())[:500]}")
            say(f"FAILED {self.failed[-1]}")


def setup(cpu: bool) -> Setup:
    """The real sizes on a GPU, tiny ones on a CPU."""
    course = merge(RECIPE, {"train": {"validations": 1}})
    tiny: Sections = {
        "model": {"embed_dim": 8, "hidden_dim": 12, "key_dim": 6, "value_dim": 6},
        "train": {"sequences": 64},
        "batch": {"batch_size": 8, "window": 16, "form": "stream"},
    }
    large = SETTINGS["temperature"]["large"]
    sizes = ("embed_dim", "hidden_dim", "key_dim", "value_dim")
    large_sections: Sections = {
        "model": {name: large[name] for name in sizes},
        "train": {"sequences": large["sequences"]},
        "batch": {"batch_size": large["batch_size"], "form": "stream", "window": 128},
    }
    coffee = merge(PRESETS["coffee"], {"train": {"tokens": 6_000_000, "validations": 1, "prompt": ""}})
    narrow = {"embed_dim": 16, "hidden_dim": 16, "key_dim": 8, "value_dim": 8, "pair_embeddings": 50}
    if cpu:
        few: Sections = {"model": narrow, "batch": {"batch_size": 4, "window": 16}, "train": {"tokens": 64 * 20}}
        tiny_course = merge(course, tiny)
        parts = (tiny_course, merge(coffee, few), tiny_course)
        sizes_of_all = (TINY_LOOPS, TINY_ROWS, ("float32",), *parts)
        return Setup("cpu", eager, *sizes_of_all, texts=(1, 4), tokens=8, deadline=math.inf)
    until = time.monotonic() + MOST_SECONDS
    seeds: Sections = {"train": {"sequences": 32 * 400}, "batch": {"batch_size": 32, "form": "stream", "window": 128}}
    both = ("float32", "tf32")
    parts = (merge(course, large_sections), coffee, merge(course, seeds))
    return Setup("cuda", cuda_graph, LOOPS, ROWS, both, *parts, texts=(1, 8, 64), tokens=200, deadline=until)
