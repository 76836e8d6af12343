"""What the part `damage` damages: everything that Rhapsode writes, how it is made and what its users read in it."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import page_reader
from material import Material, course_model, finished_study, new_run, trained

import rhapsode
from rhapsode.course import load_course_model
from rhapsode.export.network import packed_network, unpacked_network
from rhapsode.recorded import RUN_SCHEMA
from rhapsode.run import Run
from rhapsode.sources import open_source
from rhapsode.state import State
from rhapsode.studies.cell import run_cell
from rhapsode.studies.directory import Study
from rhapsode.tensors import checksum
from rhapsode.tokenizer import Tokenizer, train_tokenizer
from rhapsode.tokens import TokenStore, prepare, shards, tokenizer_for
from rhapsode.tokens.shards import open_shards, prepare_shards


@dataclass(frozen=True)
class Kind:
    """A thing on disk. make: it and, with another seed, its twin; use: what it holds, as its users read it.

    group: of `make faults`. small: tries in the suite. share: at full size, of the tries at random places; the others
    are all made. of_another: whether a file is one that another kind has as well, so that a small share is enough.
    """

    name: str
    make: Callable[[Material, Path, int], Path]
    use: Callable[[Path], Any]
    group: str
    small: int
    share: float = 1.0
    of_another: Callable[[str], bool] = lambda name: False


def _run(made: Material, path: Path, seed: int) -> Path:
    return trained(made, new_run(made, path, seed)).path


def _use_run(path: Path) -> Any:
    run = Run.open(path)
    found: list[Any] = [run.recipe, run.tokenizer.fingerprint, run.tokenizer.encode("Once upon a time, </s>")]
    for name in ("best", "last"):
        checkpoint = run.load(name)
        if checkpoint is not None:
            run.check_fits(checkpoint.tensors)
            found += [name, checksum(checkpoint.tensors, json.dumps(checkpoint.progress))]
    model = run.load_model()
    found.append(checksum({name: p.detach() for name, p in model.named_parameters()}, ""))
    known = {*RUN_SCHEMA, "versions", "thread_plan"}  # an unknown field is no other value
    about = {key: value for key, value in run.about.items() if key in known or f"{key}?" in known}
    return [*found, run.metrics(), about]


def _store(made: Material, path: Path, seed: int) -> Path:
    (store,) = (made.cache / "tokens").glob("store-*")
    if seed:
        other = _other_texts(made, path.with_suffix(".jsonl"))
        prepare(open_source([str(other)]), made.tokenizer, path.parent / f"{path.name}-cache")
        (store,) = (path.parent / f"{path.name}-cache").glob("store-*")
    target = path / store.name
    shutil.copytree(store, target)
    return target


def _other_texts(made: Material, file: Path) -> Path:
    """A text of the same length."""
    texts = made.texts.read_text().splitlines(keepends=True)
    file.write_text("".join([*texts[1:], texts[0]]))
    return file


def _use_store(path: Path) -> Any:
    store = TokenStore.open(path)
    arrays = (store.tokens, store.offsets, store.byte_counts, store._marks, store.unspelled)
    return [array.tobytes() for array in arrays], store._about


def _shards(made: Material, path: Path, seed: int) -> Path:
    texts = _other_texts(made, path.with_suffix(".jsonl")) if seed else made.texts
    with patch.object(shards, "SHARD_BYTES", 3_000):
        prepare_shards(open_source([str(texts)]), made.tokenizer, str(path))
    return path


# What shards.json says; an unknown field is no other value.
OF_SHARDS = ("format_version", "description", "fingerprint", "source_fingerprint", "tokenizer_fingerprint", "has_text")
OF_SHARDS += ("dtype", "vocab_size", "eos_id", "num_stories", "num_tokens", "num_bytes", "shards")


def _use_shards(path: Path) -> Any:
    store, tokenizer = open_shards(str(path))
    arrays = (store.tokens[:], store.offsets, store.byte_counts, store._marks, store.unspelled)
    about = {name: value for name, value in store._about.items() if name in OF_SHARDS}
    return [array.tobytes() for array in arrays], about, tokenizer.fingerprint


def _tokenizer(made: Material, path: Path, seed: int) -> Path:
    texts = made.texts.read_text().splitlines()
    train_tokenizer(texts[30 * seed : 30 * seed + 30], "bpe", 270).save(path)
    return path


def _use_tokenizer(path: Path) -> Any:
    tokenizer = Tokenizer.load(path)
    return tokenizer.fingerprint, tokenizer.encode("Once upon a time"), tokenizer.eos_id, tokenizer.pad_id


def _cached_tokenizer(made: Material, path: Path, seed: int) -> Path:
    tokenizer_for(open_source([str(made.texts)]), "bpe", 270 + seed, path)
    return next(path.glob("tokenizer-*"))


def _study(made: Material, path: Path, seed: int) -> Path:
    finished_study(made, path, seed=seed)
    return path


def _use_study(path: Path) -> Any:
    study = Study.open(path)
    for cell in study.plan.cells.values():
        if study.result(cell) is None:  # it is finished again
            run_cell(study, cell, 1)
    found: list[Any] = [study.request, study.tokenizer().fingerprint]
    found += [{name: result[name] for name in ("points", "completions", "seconds")} for result in study.results()]
    found += [_use_run(study.cell_path(cell)) for cell in study.plan.cells.values()]
    problems = [file.problem for file in rhapsode.check(path) if file.problem]
    if problems:
        raise ValueError(problems[0])
    return found


def _state(made: Material, path: Path, seed: int) -> Path:
    run = trained(made, new_run(made, path.with_name(f"{path.name}-run"), seed))
    path.mkdir()
    rhapsode.load(run.path).read("Once upon").save(path / "state.safetensors")
    return path / "state.safetensors"


def _use_state(path: Path) -> Any:
    state = State.load(path)
    try:
        rhapsode.load(path.parent.parent / "good-run").next_tokens("and", state=state)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return checksum(state.tensors(), state.fingerprint)


def _model_pt(made: Material, path: Path, seed: int) -> Path:
    path.mkdir()
    return course_model(made, path / "model.pt", seed)


def _use_model_pt(path: Path) -> Any:
    model = load_course_model(path)
    return checksum({name: tensor.detach() for name, tensor in model.state_dict().items()}, repr(model))


def _packed(made: Material, path: Path, seed: int) -> Path:
    path.mkdir()
    network = rhapsode.load(_run(made, path.with_name(f"{path.name}-run"), seed)).network
    (path / "model.packed").write_bytes(packed_network(network))
    return path / "model.packed"


def _use_packed(path: Path) -> Any:
    try:
        network = unpacked_network(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return checksum({name: p.detach() for name, p in network.named_parameters()}, repr(network.config))


def _page(made: Material, path: Path, seed: int) -> Path:
    path.mkdir()
    rhapsode.export_html(_run(made, path.with_name(f"{path.name}-run"), seed), path / "page.html")
    return path / "page.html"


def _of_a_shard(name: str) -> bool:
    return name.startswith("shard-") or _of_a_tokenizer(name)


def _of_a_tokenizer(name: str) -> bool:
    return "tokenizer/" in name


def _of_a_cells_run(name: str) -> bool:
    return (name.startswith("cells/") and not name.endswith("/result.json")) or _of_a_tokenizer(name)


KINDS = [
    Kind("a run", _run, _use_run, "runs", 100),
    Kind("a token store", _store, _use_store, "others", 60),
    Kind("a store of shards", _shards, _use_shards, "others", 40, of_another=_of_a_shard),
    Kind("a tokenizer", _tokenizer, _use_tokenizer, "others", 60),
    Kind("a tokenizer in the cache", _cached_tokenizer, _use_tokenizer, "others", 30),
    Kind("a study", _study, _use_study, "studies", 8, 0.25, _of_a_cells_run),
    Kind("a saved state", _state, _use_state, "others", 50),
    Kind("a model.pt", _model_pt, _use_model_pt, "others", 40),
    Kind("a packed model", _packed, _use_packed, "others", 40),
    Kind("an offline page", _page, page_reader.seen, "pages", 4),
]
