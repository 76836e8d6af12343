"""The served runs: loaded on first use, reloaded when training has a better checkpoint, unloaded to make room."""

import asyncio
import os
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from rhapsode.api import load
from rhapsode.decode import Engine
from rhapsode.model import LanguageModel
from rhapsode.progress import say
from rhapsode.run import CHECKPOINTS, Run
from rhapsode.serve.failures import Refusal
from rhapsode.storyworld.source import is_generated, open_generated
from rhapsode.terminal import told
from rhapsode.trained import Model

CHECKPOINT_LOOK_SECONDS = 1.0  # at the checkpoint of a run that is loaded
Stamp = tuple[int, int, int]  # of a file: its number, when it was changed, its size


@dataclass(eq=False)
class LoadedModel:
    """A model in memory with its engine. stamp: of the checkpoint that it came from; texts: handed over, not ended."""

    model: Model
    engine: Engine
    stamp: Stamp | None
    texts: int = 0
    broken: bool = False
    used: float = field(default_factory=time.monotonic)

    @property
    def bytes(self) -> int:
        """Memory that it takes while it does nothing: its weights, the engine's own, and beginnings of texts."""
        weights = sum(each.numel() * each.element_size() for each in self.model.network.parameters())
        return 2 * weights + self.engine.counters.prefix_bytes


class ServedRun:
    """A run that is served under a name, in memory or not."""

    def __init__(self, name: str, path: Path) -> None:
        self.name, self.path = name, path
        self.run = Run.open(path)
        self.loaded: LoadedModel | None = None
        self.looked = 0.0
        self.loading = asyncio.Lock()

    @cached_property
    def storyworld_split(self) -> str | None:
        """The split of storyworld that the run was trained on; None for other text."""
        if "storyworld" in self.run.about:
            return self.run.about["storyworld"]
        locations = self.run.about.get("data", {}).get("locations", [])
        if len(locations) == 1 and is_generated(locations[0]):
            return open_generated(locations[0]).split
        return None

    @cached_property
    def network_on_paper(self) -> LanguageModel:
        """The model without memory for its weights: what it is made of."""
        import torch

        from rhapsode.model import build_model

        with torch.device("meta"):
            return build_model(self.run.model_config)

    def stamp(self, checkpoint: str) -> Stamp | None:
        """Which file a load would read now; None where there is none."""
        for name in dict.fromkeys((checkpoint, "last")):
            try:
                found = os.stat(self.path / f"{name}.safetensors")
            except OSError:
                continue
            return found.st_ino, found.st_mtime_ns, found.st_size
        return None


class ServedModels:
    """All runs that are served, by name.

    most_bytes: memory for models; where it is not enough, those that were not used for longest, and have nothing to do,
    are given up first.
    """

    def __init__(
        self,
        paths: list[Path],
        *,
        checkpoint: str = "best",
        max_rows: int,
        max_context: int,
        most_bytes: int,
    ) -> None:
        """Raises ValueError or OSError where a path is no run."""
        if checkpoint not in CHECKPOINTS:
            raise ValueError(f"checkpoint must be one of {', '.join(CHECKPOINTS)}, got {checkpoint!r}")
        self.runs = {name: ServedRun(name, path) for name, path in named(paths).items()}
        self.checkpoint, self.most_bytes = checkpoint, most_bytes
        self.max_rows, self.max_context = max_rows, max_context

    def find(self, name: str | None) -> ServedRun:
        """The run of a name, or the only one; Refusal where there is no such run, or several and no name."""
        if name is None and len(self.runs) == 1:
            return next(iter(self.runs.values()))
        if name is None:
            raise Refusal(400, f"model must be one of {', '.join(self.runs)}", "model")
        if name not in self.runs:
            served = ", ".join(self.runs)
            raise Refusal(404, f"there is no model {name[:80]!r} here; there is {served}", "model", "model_not_found")
        return self.runs[name]

    async def use(self, served: ServedRun) -> LoadedModel:
        """The run's model as it is on the disk now, loaded if need be; what runs on an earlier one ends there.

        Raises Refusal where it cannot be loaded. It works for its caller even if it is given up meanwhile.
        """
        async with served.loading:
            current = served.loaded
            if current is not None and not current.broken:
                current.used = time.monotonic()
                if current.used - served.looked < CHECKPOINT_LOOK_SECONDS:
                    return current
                served.looked = current.used
                if served.stamp(self.checkpoint) in (current.stamp, None):  # None: the directory is gone
                    return current
            try:
                served.loaded = await asyncio.to_thread(self._load, served)
            except (ValueError, OSError) as error:
                if current is not None and not current.broken:
                    say(f"{served.name}: keeps its earlier checkpoint: {told(error)}")
                    return current
                raise Refusal(
                    404, f"{served.name} cannot be loaded: {told(error)}", "model", "model_not_found"
                ) from None
            if current is not None:
                say(f"{served.name}: reloaded, its checkpoint is newer")
            served.looked = time.monotonic()
            self.make_room(served)
            return served.loaded

    def _load(self, served: ServedRun) -> LoadedModel:
        stamp = served.stamp(self.checkpoint)  # before the weights: if they change meanwhile, they are read once more
        model = load(served.path, checkpoint=self.checkpoint, device="cpu")  # where engines compute
        _ = model.fingerprint  # takes a while
        # The begin token does not count for a client.
        engine = Engine(model.network, model.tokenizer, max_rows=self.max_rows, max_context=self.max_context + 1)
        return LoadedModel(model, engine, stamp)

    def make_room(self, kept: ServedRun) -> None:
        """Gives up models until the memory is enough; not the one that is kept, and none that has work."""
        in_memory = [run for run in self.runs.values() if run.loaded is not None]
        taken = sum(run.loaded.bytes for run in in_memory if run.loaded)
        idle = [run for run in in_memory if run is not kept and run.loaded and not run.loaded.texts]
        for run in sorted(idle, key=lambda each: each.loaded.used if each.loaded else 0.0):
            if taken <= self.most_bytes:
                return
            assert run.loaded is not None
            taken -= run.loaded.bytes
            run.loaded = None

    @property
    def in_memory(self) -> int:
        """How many models are loaded."""
        return sum(run.loaded is not None for run in self.runs.values())


def named(paths: list[Path]) -> dict[str, Path]:
    """A name for each run: its directory's, or its whole path where two directories have one name.

    Raises ValueError where a run is given twice.
    """
    found: dict[str, Path] = {}
    names = [path.resolve().name for path in paths]
    for path, name in zip(paths, names, strict=True):
        name = name if names.count(name) == 1 else str(path)
        if name in found:
            raise ValueError(f"{path}: this run is given twice")
        found[name] = path
    return found


def physical_memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def about_run(served: ServedRun) -> dict[str, Any]:
    """What a list of models tells of a run."""
    config = served.run.model_config
    return {
        "kind": config.kind,
        "parameters": sum(parameter.numel() for parameter in served.network_on_paper.parameters()),
        "vocab_size": config.vocab_size,
        "storyworld": served.storyworld_split is not None,
        "training": served.run.is_training(),
        "name": served.name,
        "end": _end_of_text(served.run),
    }


def _end_of_text(run: Run) -> str | None:
    """What the tokenizer calls the end of a text; None where it cannot be read, which a request will be told."""
    try:
        return run.tokenizer.token_text(run.tokenizer.eos_id)
    except (OSError, ValueError):
        return None
