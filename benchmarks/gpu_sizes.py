"""What `gpu.py` measures, and how large: rows of its table, runs, and tiny ones of all for a machine without a GPU."""

import time
from dataclasses import dataclass

from rhapsode.bench import Workload, plain
from rhapsode.machine import Capture, cuda_graph, eager
from rhapsode.recipe.changes import Sections, merge
from rhapsode.recipe.presets import PRESETS
from rhapsode.studies.plans import RECIPE, SETTINGS

MOST_SECONDS = 285.0


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
class Setup:
    """Where it runs, and how large everything is. precisions: those that are timed."""

    device: str
    capture: Capture
    rows: tuple[Row, ...]
    precisions: tuple[str, ...]
    large: Sections
    coffee: Sections
    seeds: Sections
    texts: tuple[int, ...]
    tokens: int
    deadline: float

    def left(self) -> bool:
        """Whether there is time for more."""
        return time.monotonic() < self.deadline


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
    until = time.monotonic() + MOST_SECONDS
    if cpu:
        few: Sections = {"model": narrow, "batch": {"batch_size": 4, "window": 16}, "train": {"tokens": 64 * 20}}
        tiny_course = merge(course, tiny)
        parts = (tiny_course, merge(coffee, few), tiny_course)
        return Setup("cpu", eager, TINY_ROWS, ("float32",), *parts, texts=(1, 4), tokens=8, deadline=until)
    seeds: Sections = {"train": {"sequences": 32 * 400}, "batch": {"batch_size": 32, "form": "stream", "window": 128}}
    both = ("float32", "tf32")
    parts = (merge(course, large_sections), coffee, merge(course, seeds))
    return Setup("cuda", cuda_graph, ROWS, both, *parts, texts=(1, 8, 64), tokens=200, deadline=until)
