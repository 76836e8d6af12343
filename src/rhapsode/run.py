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

import errno
import hashlib
import json
import os
import platform
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from filelock import FileLock, Timeout
from torch import Tensor

import rhapsode
from rhapsode.files import digest_of_file, making, naming, replacing, sweep, write_text
from rhapsode.model import LanguageModel, ModelConfig, build_model
from rhapsode.progress import say
from rhapsode.recipe import Recipe
from rhapsode.recipe.changes import SECTIONS
from rhapsode.recorded import check_run, read_config, read_entries, read_versioned, sealed
from rhapsode.tensors import metadata_in, pack_tensors, unpack_tensors
from rhapsode.tokenizer import Tokenizer
from rhapsode.tokenizer.coding import TOKENIZER_FILES

FORMAT_VERSION = 1
CHECKPOINTS = ("best", "last")
SECONDS_FOR_A_LOOK = 1.0  # for which the look of another process, `is_training`, may hold a run on a busy machine
PUT_BACK = "restore the tokenizer folder that was made with it"
_Config = TypeVar("_Config")


class Checkpoint(NamedTuple):
    """tensors: by name, as they were saved; progress: JSON beside them."""

    tensors: dict[str, Tensor]
    progress: dict[str, Any]


class Run:
    """A run directory. about: the contents of run.json, of which configs are read by who needs them."""

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self.path, self.about = path, about
        self._metrics_read = 0, hashlib.sha256()  # bytes of metrics.jsonl that are saved, and their digest

    @classmethod
    def create(
        cls, path: Path, about: dict[str, Any], tokenizer: Tokenizer | None, model: LanguageModel | None = None
    ) -> "Run":
        """A new run, with the model as its best if there is one already; the directory appears whole.

        Raises FileExistsError where there is something already.
        """
        versions = {"rhapsode": rhapsode.__version__, "torch": torch.__version__, "python": platform.python_version()}
        about = {"format_version": FORMAT_VERSION, "created": time.strftime("%Y-%m-%d %H:%M:%S"), **about}
        about |= {"versions": versions, "id": uuid.uuid4().hex}  # the checkpoints bear it too
        with whole_directory(path) as temporary:
            if tokenizer is not None:
                tokenizer.save(temporary / "tokenizer")
                about["tokenizer_files"] = file_digests(temporary / "tokenizer")
            write_text(temporary / "run.json", as_json(about))
            if model is not None:
                making = cls(temporary, about)
                making.save_best(model, {"step": 0})
                about = making.about
        return cls(path, about)

    @classmethod
    def open(cls, path: Path) -> "Run":
        """Opens a run directory; raises FileNotFoundError, or ValueError where it is damaged or too new."""
        path = Path(path)
        if not (path / "run.json").is_file():
            what = "no run.json in it" if path.is_dir() else "no such directory"
            raise FileNotFoundError(f"{path}: {what}; a run is a directory that `rhapsode train` made")
        about = read_versioned(path / "run.json", FORMAT_VERSION)
        check_run(about, path / "run.json")
        return cls(path, about)

    def update(self, **fields: Any) -> None:
        """Writes run.json again with some fields changed."""
        about = {**self.about, **fields}
        write_text(self.path / "run.json", as_json(about))
        self.about = about

    @cached_property
    def model_config(self) -> ModelConfig:
        """The shape of the run's model."""
        return self.config("model", ModelConfig)

    def config(self, section: str, kind: type[_Config]) -> _Config:
        """The config in a section of run.json; ValueError naming the file and the field that is wrong."""
        return read_config(kind, self.about.get(section), str(self.path / "run.json"), section)

    @cached_property
    def recipe(self) -> Recipe | None:
        """What the run is trained with; None for a model that was trained elsewhere (`rhapsode import`).

        Raises ValueError naming run.json and the field where it is not a recipe.
        """
        if "optimizer" not in self.about:
            return None
        return Recipe(**{name: self.config(name, kind) for name, kind in SECTIONS.items()})

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The run's tokenizer; raises ValueError where it has none, or where the folder holds another one."""
        folder = self.path / "tokenizer"
        if not folder.is_dir():
            if "tokenizer" in self.about:
                raise ValueError(f"{folder}: no such folder; {PUT_BACK}")
            raise ValueError(f"{self.path}: this run has no tokenizer, because it was trained on token ids")
        recorded = self.about.get("tokenizer"), self.about.get("tokenizer_files")
        return recorded_tokenizer(folder, *recorded, self.model_config.vocab_size, self.path / "run.json")

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def log_path(self) -> Path:
        return self.path / "log.txt"

    def metrics(self) -> list[dict[str, Any]]:
        """What metrics.jsonl holds; lines that a kill or a power cut left torn after the last checkpoint are left out.

        Raises ValueError naming the line where another one is no entry.
        """
        if changed := self.changed_metrics():
            say(changed)
        return self._metrics()[0]

    def torn_metrics(self) -> int | None:
        """The number of the line after the last checkpoint from which on metrics.jsonl is torn; None for none."""
        return self._metrics()[1]

    def _metrics(self) -> tuple[list[dict[str, Any]], int | None]:
        about = self._saved_metrics()
        return read_entries(self.metrics_path, None if about is None else about[0])

    def _saved_metrics(self) -> tuple[int, str | None] | None:
        """How many bytes of metrics.jsonl the last checkpoint knows, and their digest (earlier versions have none);
        None where the checkpoint is damaged or missing, which is told where it is read."""
        file = self.path / "last.safetensors"
        if not file.exists() and "last" not in self.about.get("checkpoints", []):
            return 0, None
        try:
            with file.open("rb") as stream:
                head = stream.read(8)
                about = metadata_in(head + stream.read(int.from_bytes(head, "little")))
            size = json.loads(about["progress"]).get("metrics_bytes", 0)
            return (size, about.get("metrics_sha256")) if type(size) is int and size >= 0 else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, MemoryError, RecursionError):
            return None

    def changed_metrics(self) -> str | None:
        """What is to be said where metrics.jsonl is not what it was at the last checkpoint; None where it is."""
        size, wanted = self._saved_metrics() or (0, None)
        if wanted is None:
            return None
        if not self.metrics_path.exists():
            return f"{self.metrics_path}: missing"
        if hashlib.sha256(self.metrics_path.read_bytes()[:size]).hexdigest() == wanted:
            return None
        return f"{self.metrics_path}: damaged, or edited: its first {size:,} bytes are not what they were when saved"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the run for this process; raises BlockingIOError where another one has it.

        Reads run.json again, which another process may have written meanwhile, and sweeps up what killed ones left.
        """
        with held(self.path, "another process is training in it"):
            self.about = Run.open(self.path).about
            sweep(self.path, ("run.json", "last.safetensors", "best.safetensors"))
            yield

    def is_training(self) -> bool:
        """Whether a process holds the run to train in it."""
        try:
            if not (self.path / ".lock").exists():
                return False
            with held(self.path, "", 0.1):  # as another one that looks
                return False
        except BlockingIOError:
            return True
        except OSError:  # gone meanwhile, or another user's
            return False

    def save_last(self, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
        """Commits a checkpoint; metrics.jsonl reaches the disk before it does."""
        more: dict[str, str] = {}
        if self.metrics_path.exists():
            with self.metrics_path.open("rb") as stream, naming(self.metrics_path):
                os.fsync(stream.fileno())
                size = os.fstat(stream.fileno()).st_size
                begin, digest = self._metrics_read if self._metrics_read[0] <= size else (0, hashlib.sha256())
                stream.seek(begin)
                digest.update(stream.read(size - begin))
            self._metrics_read = size, digest
            progress = {**progress, "metrics_bytes": size}
            more["metrics_sha256"] = digest.hexdigest()
        self._save("last", tensors, progress, more)

    def save_best(self, model: LanguageModel, progress: dict[str, Any]) -> None:
        """Writes the weights as the best so far."""
        self._save("best", weights_of(model), progress)

    def _save(
        self, name: str, tensors: dict[str, Tensor], progress: dict[str, Any], more: dict[str, str] | None = None
    ) -> None:
        about = {"format_version": str(FORMAT_VERSION), "progress": json.dumps(progress), **(more or {})}
        if "id" in self.about:
            about["run"] = self.about["id"]
        with replacing(self.path / f"{name}.safetensors") as temporary:
            # Not save_file: that writes to a hidden file of its own first, which a kill would leave for good.
            temporary.write_bytes(pack_tensors(tensors, about, signed="progress"))
        if name not in (known := self.about.get("checkpoints", [])):
            self.update(checkpoints=[*known, name])  # one that is missing later was lost

    def load(self, name: str) -> Checkpoint | None:
        """A checkpoint, None if there is none yet; ValueError where its file is damaged, missing or another run's."""
        file = self.path / f"{name}.safetensors"
        if not file.exists():
            if name in self.about.get("checkpoints", []):
                raise ValueError(f"{file}: missing; restore it, or use the other checkpoint")
            return None
        # Read in one piece: safe_open opens a file twice, and a process that trains may replace it in between.
        content = file.read_bytes()
        try:
            tensors, about = unpack_tensors(content, "progress", format_version=str(FORMAT_VERSION))
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
        try:
            progress = json.loads(about["progress"])
            if not isinstance(progress, dict):
                raise ValueError("its progress is not a JSON object")
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file}: damaged or not a checkpoint ({error})") from None
        if "run" in about and about["run"] != self.about.get("id"):  # the shapes may be the same
            raise ValueError(f"{file}: belongs to another run; put this run's own file back")
        return Checkpoint(tensors, progress)

    def cut_metrics(self, checkpoint: Checkpoint | None) -> None:
        """Cuts metrics.jsonl back to what it was at the checkpoint, where training goes on; to nothing if at none."""
        if self.metrics_path.exists():
            size = checkpoint.progress.get("metrics_bytes", 0) if checkpoint else 0
            kept = self.metrics_path.read_bytes()[:size]
            os.truncate(self.metrics_path, kept.rfind(b"\n") + 1)  # a file that was cut may end in half a line

    def load_model(self, checkpoint: str = "best", device: torch.device | str = "cpu") -> LanguageModel:
        """The trained model, ready to be used; `best` falls back to `last` in a run that never validated.

        Raises FileNotFoundError where nothing was saved yet.
        """
        if checkpoint not in CHECKPOINTS:
            raise ValueError(f"checkpoint must be one of {', '.join(CHECKPOINTS)}, got {checkpoint!r}")
        found = self.load(checkpoint) or self.load("last")
        if found is None:
            raise FileNotFoundError(
                f"{self.path}: no checkpoint yet; continue training with rhapsode train --resume --out {self.path}"
            )
        self.check_fits(found.tensors)
        model = build_model(self.model_config, seed=0)
        load_weights(model, found.tensors, str(self.path))
        return model.to(device).eval()

    def check_fits(self, tensors: dict[str, Tensor]) -> None:
        """Raises ValueError where saved weights are not those of the model in run.json, whose memory is not taken."""
        try:
            with torch.device("meta"):
                model = build_model(self.model_config)
        except (TypeError, RuntimeError) as error:  # a size beyond all numbers
            reason = str(error).splitlines()[0]
            raise ValueError(f"{self.path / 'run.json'}: model: cannot be built ({reason})") from None
        check_same_shapes(model, below("model/", tensors), str(self.path))


def file_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of a tokenizer folder, by name; files that are no part of a tokenizer do not count."""
    names = (name for name in TOKENIZER_FILES if (folder / name).is_file())
    return {name: digest_of_file(folder / name) for name in names}


def recorded_tokenizer(
    folder: Path, fingerprint: str | None, files: dict[str, str] | None, vocab_size: int, record: Path
) -> Tokenizer:
    """The tokenizer in the folder; ValueError where it is not the one that `record` tells of.

    It is where its files are the same to the byte, or where its fingerprint is (files that were written anew). Records
    of earlier versions have no digests of files, and their fingerprint may be that of an earlier version: there the
    size of the vocabulary decides, and a line says that no more is known.
    """
    tokenizer = Tokenizer.load(folder, checked=not files)  # the record's digests say whose it is, too
    found = file_digests(folder)
    same = (files is not None and found == files) or tokenizer.fingerprint == fingerprint
    if not same and files is not None:
        name = next((name for name in TOKENIZER_FILES if found.get(name) != files.get(name)), TOKENIZER_FILES[0])
        had, has = (digests.get(name, "none")[:12] for digests in (files, found))
        raise ValueError(
            f"{folder / name}: a different tokenizer (SHA-256 {has}, but {record.name} has {had}); {PUT_BACK}"
        )
    if tokenizer.vocab_size != vocab_size:
        raise ValueError(
            f"{folder}: a different tokenizer, of {tokenizer.vocab_size:,} tokens, but the model has {vocab_size:,};"
            f" {PUT_BACK}"
        )
    if not same and fingerprint is not None:
        say(
            f"{folder}: fingerprint {tokenizer.fingerprint[:12]}, {record.name} has {fingerprint[:12]}: a"
            " different tokenizer, or one saved by an earlier version"
        )
    return tokenizer


def weights_of(model: LanguageModel) -> dict[str, Tensor]:
    """The weights as they are saved: `model/NAME`; a head tied to the embedding is saved once."""
    named = {f"model/{name}": parameter.detach() for name, parameter in model.named_parameters()}
    return {name: tensor.cpu().contiguous() for name, tensor in named.items()}


def load_weights(model: LanguageModel, tensors: dict[str, Tensor], where: str) -> None:
    """Puts saved weights into a model; ValueError where names or shapes are others."""
    saved = below("model/", tensors)
    check_same_shapes(model, saved, where)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(saved[name])


def check_same_shapes(model: LanguageModel, saved: dict[str, Tensor], where: str) -> None:
    """Raises ValueError where the saved weights have other names or shapes than the model's."""
    own = {name: parameter.shape for name, parameter in model.named_parameters()}
    if own != {name: tensor.shape for name, tensor in saved.items()}:
        raise ValueError(f"{where}: the saved weights do not match the model config in run.json")


def below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with the prefix, under the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def check_free(path: Path) -> None:
    """Raises an OSError with one line where a new run cannot be made: something is there, or nothing can be."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        what = "holds a run: resume it with --resume, or" if (path / "run.json").exists() else "already exists:"
        raise FileExistsError(f"{path} {what} choose another directory")
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise PermissionError(f"{path}: cannot be created, {above} is not a writable directory")


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
    try:
        with making(path) as temporary:
            yield temporary
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            check_free(path)  # another process was faster
        raise


@contextmanager
def held(directory: Path, taken: str, seconds: float | None = None) -> Iterator[None]:
    """Holds a directory for this process; BlockingIOError saying that it is `taken` where another one does.

    seconds: how long to wait for it, SECONDS_FOR_A_LOOK where none are named.
    """
    lock = FileLock(directory / ".lock")
    try:
        lock.acquire(timeout=SECONDS_FOR_A_LOOK if seconds is None else seconds)
    except Timeout:
        raise BlockingIOError(f"{directory}: {taken}; wait for it or stop it") from None
    try:
        yield
    finally:
        lock.release()


def as_json(about: dict[str, Any]) -> str:
    """The text of run.json and its like, sealed; a file's name that is no text is in escapes, which read back."""
    about = sealed(about)
    text = json.dumps(about, indent=2, ensure_ascii=False)
    return (text if _is_text(text) else json.dumps(about, indent=2)) + "\n"


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
