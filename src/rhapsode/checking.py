"""Is everything still as it was written? Every file of a run, a study, a token store, a tokenizer, a state, an export.

What Rhapsode reads it checks when it reads it; here all is read, without changing anything.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rhapsode.course import load_course_model
from rhapsode.export.html import check_offline_page, is_offline_page
from rhapsode.export.network import unpacked_network
from rhapsode.export.packed import is_packed
from rhapsode.files import CHECKSUMS, cache_root, digest_of_file, read_checksums
from rhapsode.model import ModelConfig
from rhapsode.progress import silent
from rhapsode.recorded import read_sealed
from rhapsode.run import CHECKPOINTS, Run, recorded_tokenizer
from rhapsode.state import State
from rhapsode.studies.directory import REPORT_TITLE, Study
from rhapsode.studies.plans import Cell
from rhapsode.tensors import metadata_in
from rhapsode.tokenizer import Tokenizer
from rhapsode.tokens import TokenStore
from rhapsode.tokens.shards import MANIFEST, PLAN, open_shards

SEALED, READ, TEXT = "checksum", "readable, has no checksum", "text, not checked"


@dataclass(frozen=True)
class CheckedFile:
    """A file and what is wrong with it. how: what it was compared with. problem: one line, None where it is intact."""

    path: Path
    how: str
    problem: str | None

    def __str__(self) -> str:
        return f"{self.path}: intact ({self.how})" if self.problem is None else f"DAMAGED  {self.problem}"


def check_files(path: Path) -> list[CheckedFile]:
    """Checks a run, a study, a token store, a tokenizer folder, a saved state, a model.pt, a page or a packed model.

    A run's or a study's token stores in the cache are checked too. Raises FileNotFoundError or ValueError where the
    path is none of these.
    """
    with silent():
        if (path / "run.json").exists():
            return list(_run(path))
        if (path / "study.json").exists():
            return list(_study(path))
        if (path / "store.json").exists():
            return list(_store(path))
        if (path / MANIFEST).exists():
            return list(_prepared(path))
        if (path / "tokenizer.json").exists():
            how = SEALED if (path / CHECKSUMS).exists() else READ
            listed = list(_listed(path, None)) if (path / CHECKSUMS).exists() else []
            return [*listed, _checked(path, how, lambda: Tokenizer.load(path))]
        if path.is_file():
            return [_file(path)]
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or directory")
    raise ValueError(f"{path}: neither a run, nor a study, a token store, a tokenizer, a state, a model.pt or a page")


def _checked(path: Path, how: str, read: Callable[[], Any]) -> CheckedFile:
    try:
        read()
    except (ValueError, OSError) as error:
        words = " ".join(str(error).split())
        return CheckedFile(path, how, words if str(path) in words else f"{path}: {words}")
    return CheckedFile(path, how, None)


def _run(path: Path) -> Iterator[CheckedFile]:
    found = _checked(path / "run.json", _how_sealed(path / "run.json"), lambda: _whole(Run.open(path)))
    yield found
    if found.problem is not None:
        return
    run = Run.open(path)
    if "tokenizer" in run.about or (path / "tokenizer").exists():
        recorded = run.about.get("tokenizer"), run.about.get("tokenizer_files")
        size = run.model_config.vocab_size
        yield from _tokenizer(path / "tokenizer", *recorded, size, path / "run.json")
    for name in CHECKPOINTS:
        if (path / f"{name}.safetensors").exists() or name in run.about.get("checkpoints", []):
            yield _checkpoint(run, name)
    if run.metrics_path.exists() or run.changed_metrics():
        how = SEALED if _says(path / "last.safetensors", "metrics_sha256") else READ
        found = _checked(run.metrics_path, how, lambda: _metrics(run))
        if found.problem is None and (torn := run.torn_metrics()):
            told = f"line {torn} on is torn, which was written after the last checkpoint, where training goes on"
            found = replace(found, how=f"{how}; {told}")
        yield found
    if (path / "log.txt").exists():
        yield CheckedFile(path / "log.txt", TEXT, None)
    if (path / "page.html").exists():
        yield _file(path / "page.html")
    yield from _stores_of(run.about.get("data", {}))


def _whole(run: Run) -> None:
    run.config("model", ModelConfig)
    _ = run.recipe


def _checkpoint(run: Run, name: str) -> CheckedFile:
    def read() -> None:
        found = run.load(name)
        assert found is not None
        run.check_fits(found.tensors)

    file = run.path / f"{name}.safetensors"
    return _checked(file, SEALED if _says(file, "sha256") else READ, read)


def _says(file: Path, field: str) -> bool:
    """Whether the metadata of a checkpoint have a field."""
    try:
        return field in metadata_in(file.read_bytes())
    except (OSError, ValueError, KeyError, RecursionError):
        return True  # then it is damaged


def _metrics(run: Run) -> None:
    run.metrics()
    if changed := run.changed_metrics():
        raise ValueError(changed)


def _tokenizer(
    folder: Path, fingerprint: str | None, files: dict[str, str] | None, vocab_size: int, record: Path
) -> Iterator[CheckedFile]:
    for name, digest in (files or {}).items():
        yield _digest(folder / name, digest, record.name)
    how = SEALED if files else READ
    yield _checked(folder, how, lambda: recorded_tokenizer(folder, fingerprint, files, vocab_size, record))


def _digest(file: Path, digest: str, record: str) -> CheckedFile:
    def read() -> None:
        if digest_of_file(file) != digest:
            raise ValueError(f"{file}: damaged, or changed: its SHA-256 is not the one in {record}")

    return _checked(file, SEALED, read)


def _stores_of(data: dict[str, Any]) -> Iterator[CheckedFile]:
    """The token stores of a run or a study that are in the cache."""
    for field in ("store_fingerprint", "valid_fingerprint"):
        folder = cache_root() / "tokens" / f"store-{data.get(field, '')[:32]}"
        if field in data and folder.is_dir():
            yield from _store(folder)


def _store(folder: Path) -> Iterator[CheckedFile]:
    if (folder / CHECKSUMS).exists():
        yield from _listed(folder, folder.name)
    yield _checked(folder, SEALED if (folder / CHECKSUMS).exists() else READ, lambda: TokenStore.open(folder))


def _prepared(folder: Path) -> Iterator[CheckedFile]:
    """A store of shards, as `rhapsode prepare` makes it."""
    for shard in sorted(folder.glob("shard-*")):
        yield from _store(shard)
    if (folder / "tokenizer" / CHECKSUMS).exists():
        yield from _listed(folder / "tokenizer", None)
    yield _checked(folder / PLAN, READ, lambda: read_sealed(folder / PLAN))
    yield _checked(folder, SEALED, lambda: open_shards(str(folder)))


def _listed(folder: Path, title: str | None) -> Iterator[CheckedFile]:
    """The files in a folder's SHA256SUMS."""

    def read() -> None:
        listed = read_checksums(folder)
        if listed is not None and title is not None and listed[0] != title:
            raise ValueError(f"{folder / CHECKSUMS}: belongs to {listed[0]}, not to {title}")

    found = _checked(folder / CHECKSUMS, READ, read)
    yield found
    listed = read_checksums(folder) if found.problem is None else None
    for name, digest in (listed[1] if listed else {}).items():
        yield _digest(folder / name, digest, CHECKSUMS)


def _study(path: Path) -> Iterator[CheckedFile]:
    found = _checked(path / "study.json", _how_sealed(path / "study.json"), lambda: Study.open(path))
    yield found
    if found.problem is not None:
        return
    study = Study.open(path)
    recorded = study.about["tokenizer_fingerprint"], study.about.get("tokenizer_files"), study.about["vocab_size"]
    yield from _tokenizer(path / "tokenizer", *recorded, path / "study.json")
    seen: set[Path] = set()
    for cell in study.plan.cells.values():
        folder = study.cell_path(cell)
        if folder.is_dir():
            for checked in _run(folder):
                if checked.path not in seen:  # a store that cells share
                    yield checked
                seen.add(checked.path)
        file = study.result_file(cell)
        if file.exists():
            yield _checked(file, _how_sealed(file), partial(_check_result, study, cell))
    cells = {study.cell_path(cell) for cell in study.plan.cells.values()}
    for folder in sorted((path / "cells").glob("*")):
        if folder.is_dir() and folder not in cells and not folder.name.startswith("."):
            yield CheckedFile(folder, READ, f"{folder}: no cell of the study of study.json; one of both is another's")
    if (path / CHECKSUMS).exists():
        yield from _listed(path, REPORT_TITLE)
    yield from (checked for checked in _stores_of(study.about["data"]) if checked.path not in seen)


def _check_result(study: Study, cell: Cell) -> None:
    """ValueError where what a cell wrote at its end is damaged, or was written by another one."""
    if study.written(cell).get("cell") != study.identity(cell):
        file = study.result_file(cell)
        raise ValueError(f"{file}: written for another study than that of study.json; the cell would be finished again")


def _how_sealed(file: Path) -> str:
    try:
        return SEALED if "sha256" in read_sealed(file) else READ
    except (OSError, ValueError):
        return SEALED


def _file(path: Path) -> CheckedFile:
    content = path.read_bytes()
    if content[:2] == b"PK":
        return _checked(path, SEALED, lambda: load_course_model(path))
    if is_packed(content) or path.suffix == ".packed":
        return _checked(path, SEALED, lambda: unpacked_network(content))
    if is_offline_page(content) or path.suffix == ".html":
        whole: list[bool] = []
        found = _checked(path, SEALED, lambda: whole.append(check_offline_page(content)))
        return replace(found, how=f"{SEALED} of its data alone") if whole == [False] else found
    return _checked(path, SEALED if _says(path, "sha256") else READ, lambda: State.load(path))
