"""A run directory: all that a training run leaves, written so that it can be killed at any moment.

    run.json            what was asked for: configs, data, versions; and the plan, how many steps that makes
    tokenizer/          the tokenizer folder
    last.safetensors    the point to go on from: weights, optimiser, generators, progress, in one file
    best.safetensors    the weights with the lowest validation loss so far
    metrics.jsonl       one object per report or validation
    log.txt             what was told on the way
    .lock               held by the process that trains

Every file but the two logs is replaced as a whole. A checkpoint is one file, so one rename commits it; it knows
how long metrics.jsonl was, and what a killed process wrote after it is cut off.
"""

import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from filelock import FileLock, Timeout
from torch import Tensor

import rhapsode
from rhapsode.atomic import replacing, write_text
from rhapsode.model import LanguageModel, ModelConfig, build_model
from rhapsode.recipe import Recipe
from rhapsode.tokenizer import Tokenizer

FORMAT_VERSION = 1
CHECKPOINTS = ("best", "last")


class Checkpoint(NamedTuple):
    """tensors: by name, as they were saved; progress: JSON beside them."""

    tensors: dict[str, Tensor]
    progress: dict[str, Any]


class Run:
    """A run directory. about: the contents of run.json, of which configs are read by who needs them."""

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self.path, self.about = path, about

    @classmethod
    def create(
        cls, path: Path, about: dict[str, Any], tokenizer: Tokenizer | None, model: LanguageModel | None = None
    ) -> "Run":
        """A new run, with the model as its best if there is one already; the directory appears whole.

        Raises FileExistsError where there is something already.
        """
        versions = {"rhapsode": rhapsode.__version__, "torch": torch.__version__, "python": platform.python_version()}
        about = {"format_version": FORMAT_VERSION, "created": time.strftime("%Y-%m-%d %H:%M:%S"), **about}
        about |= {"versions": versions}
        with whole_directory(path) as temporary:
            if tokenizer is not None:
                tokenizer.save(temporary / "tokenizer")
            write_text(temporary / "run.json", as_json(about))
            if model is not None:
                cls(temporary, about).save_best(model, {"step": 0})
        return cls(path, about)

    @classmethod
    def open(cls, path: Path) -> "Run":
        """Opens a run directory; raises FileNotFoundError, or ValueError where it is damaged or too new."""
        path = Path(path)
        if not (path / "run.json").is_file():
            what = "no run.json in it" if path.is_dir() else "no such directory"
            raise FileNotFoundError(f"{path}: {what}; a run is a directory that `rhapsode train` made")
        return cls(path, read_versioned(path / "run.json", FORMAT_VERSION))

    def update(self, **fields: Any) -> None:
        """Writes run.json again with some fields changed."""
        self.about = {**self.about, **fields}
        write_text(self.path / "run.json", as_json(self.about))

    @cached_property
    def model_config(self) -> ModelConfig:
        """The shape of the run's model."""
        try:
            return ModelConfig(**self.about["model"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"{self.path / 'run.json'}: not a model config this program knows ({error})") from None

    @cached_property
    def recipe(self) -> Recipe | None:
        """What the run is trained with; None for a model that was trained elsewhere (`rhapsode import`).

        Raises ValueError naming run.json and the field where it is not a recipe.
        """
        names: tuple[str, ...] = ("model", "optimizer", "train", "batch")
        sections = {name: self.about[name] for name in names if name in self.about}
        if sections.keys() == {"model"}:
            return None
        return Recipe.from_dict(sections, str(self.path / "run.json"))

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The run's tokenizer; raises ValueError for a run on bare token ids that has none."""
        if not (self.path / "tokenizer").is_dir():
            raise ValueError(f"{self.path}: this run has no tokenizer, it was trained on bare token ids")
        return Tokenizer.load(self.path / "tokenizer")

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    def metrics(self) -> list[dict[str, Any]]:
        """What metrics.jsonl holds; a line that a killed process left half is left out."""
        if not self.metrics_path.exists():
            return []
        lines = self.metrics_path.read_bytes().split(b"\n")[:-1]
        return [json.loads(line) for line in lines]

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the run for this process; raises BlockingIOError where another one has it.

        Reads run.json again, which another process may have written meanwhile, and sweeps up what killed ones left.
        """
        with held(self.path, "another process is training in it"):
            self.about = Run.open(self.path).about
            for name in ("run.json", "last.safetensors", "best.safetensors"):
                for leftover in self.path.glob(f".{name}.*"):
                    leftover.unlink()
            yield

    def save_last(self, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
        """Commits a checkpoint; metrics.jsonl reaches the disk before it does."""
        if self.metrics_path.exists():
            with self.metrics_path.open("rb") as stream:
                os.fsync(stream.fileno())
                progress = {**progress, "metrics_bytes": os.fstat(stream.fileno()).st_size}
        self._save("last", tensors, progress)

    def save_best(self, model: LanguageModel, progress: dict[str, Any]) -> None:
        """Writes the weights as the best so far."""
        self._save("best", weights_of(model), progress)

    def _save(self, name: str, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
        metadata = {"format_version": str(FORMAT_VERSION), "progress": json.dumps(progress)}
        with replacing(self.path / f"{name}.safetensors") as temporary:
            # Not save_file: that writes to a hidden file of its own first, which a kill would leave for good.
            temporary.write_bytes(safetensors.torch.save(tensors, metadata))

    def load(self, name: str) -> Checkpoint | None:
        """A checkpoint, None if there is none yet; ValueError where its file is damaged."""
        file = self.path / f"{name}.safetensors"
        if not file.exists():
            return None
        # Read in one piece: safe_open opens a file twice, and a process that trains may replace it in between.
        content = file.read_bytes()
        try:
            tensors = safetensors.torch.load(content)
            return Checkpoint(tensors, progress_in(content))
        except (safetensors.SafetensorError, TypeError, KeyError, ValueError) as error:
            raise ValueError(f"{file}: damaged or not a checkpoint ({error})") from None

    def load_last(self) -> Checkpoint | None:
        """The checkpoint to go on from; cuts metrics.jsonl back to what it was then."""
        checkpoint = self.load("last")
        if self.metrics_path.exists():
            size = checkpoint.progress.get("metrics_bytes", 0) if checkpoint else 0
            os.truncate(self.metrics_path, min(size, self.metrics_path.stat().st_size))  # never longer, with zeros
        return checkpoint

    def load_model(self, checkpoint: str = "best", device: torch.device | str = "cpu") -> LanguageModel:
        """The trained model, ready to be used; `best` falls back to `last` in a run that never validated.

        Raises FileNotFoundError where nothing was saved yet.
        """
        if checkpoint not in CHECKPOINTS:
            raise ValueError(f"checkpoint must be one of {', '.join(CHECKPOINTS)}, got {checkpoint!r}")
        found = self.load(checkpoint) or self.load("last")
        if found is None:
            raise FileNotFoundError(f"{self.path}: nothing saved yet; train it on with --resume --out {self.path}")
        model = build_model(self.model_config, seed=0)
        load_weights(model, found.tensors, str(self.path))
        return model.to(device).eval()


def progress_in(content: bytes) -> dict[str, Any]:
    """The progress in the metadata of a checkpoint's bytes: 8 bytes of length, a JSON header, the tensors."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return json.loads(header["__metadata__"]["progress"])


def weights_of(model: LanguageModel) -> dict[str, Tensor]:
    """The weights as they are saved: `model/NAME`; a head tied to the embedding is saved once."""
    named = {f"model/{name}": parameter.detach() for name, parameter in model.named_parameters()}
    return {name: tensor.cpu().contiguous() for name, tensor in named.items()}


def load_weights(model: LanguageModel, tensors: dict[str, Tensor], where: str) -> None:
    """Puts saved weights into a model; ValueError where names or shapes are others."""
    own = dict(model.named_parameters())
    saved = below("model/", tensors)
    if {name: p.shape for name, p in own.items()} != {name: tensor.shape for name, tensor in saved.items()}:
        raise ValueError(f"{where}: the saved weights do not fit the model config of run.json")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(saved[name])


def below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with the prefix, under the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def check_free(path: Path) -> None:
    """Raises an OSError with one line where a new run cannot be made: something is there, or nothing can be."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        what = "holds a run; --resume goes on with it" if (path / "run.json").exists() else "is there already"
        raise FileExistsError(f"{path} {what}; choose another directory")
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise PermissionError(f"{path}: cannot be made, {above} is no directory that can be written")


def new_directory(parent: Path = Path("runs")) -> Path:
    """The next free directory under runs/, named by date and number."""
    day = time.strftime("%Y-%m-%d")
    taken = {path.name for path in parent.glob(f"{day}-*")} if parent.is_dir() else set()
    return parent / next(f"{day}-{i}" for i in range(1, 10**6) if f"{day}-{i}" not in taken)


@contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """Yields a temporary directory beside `path`, where nothing may be yet; it becomes `path` at the end, or is gone.

    Raises what `check_free` raises, also where another process was faster.
    """
    check_free(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        temporary.chmod(0o755)
        yield temporary
        try:
            if path.is_dir():
                path.rmdir()  # empty, or check_free would have told
            os.rename(temporary, path)
        except OSError:
            check_free(path)  # another process was faster
            raise
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def read_versioned(file: Path, version: int) -> dict[str, Any]:
    """A JSON object with a format_version; ValueError where it is damaged or of another version."""
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
        found = about["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: damaged ({error})") from None
    if found != version:
        raise ValueError(f"{file.parent}: format_version {found}, this program reads {version}")
    return about


@contextmanager
def held(directory: Path, taken: str) -> Iterator[None]:
    """Holds a directory for this process; BlockingIOError saying that it is `taken` where another one does."""
    lock = FileLock(directory / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise BlockingIOError(f"{directory}: {taken}; wait for it or stop it") from None
    try:
        yield
    finally:
        lock.release()


def as_json(about: dict[str, Any]) -> str:
    """The text of run.json and its like."""
    return json.dumps(about, indent=2, ensure_ascii=False) + "\n"
