"""Damage: bits flipped, files cut short, longer, empty, another's, from a newer version, gone.

Of everything that Rhapsode writes. Each damage is harmless (all values are what they were) or named (one line with the
file in it); never a traceback, never other numbers. `rhapsode check` must say so of every file that has a checksum.
"""

import io
import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import page_reader
from harness import Tally, Unit
from material import Material, course_model, finished_study, material, new_run, trained, trained_from_file, using_cache

import rhapsode
from rhapsode import progress
from rhapsode.course import load_course_model
from rhapsode.recorded import RUN_SCHEMA
from rhapsode.run import Run
from rhapsode.sources import open_source
from rhapsode.state import State
from rhapsode.studies.cell import run_cell
from rhapsode.studies.directory import Study
from rhapsode.tensors import checksum
from rhapsode.terminal import told
from rhapsode.tokenizer import Tokenizer
from rhapsode.tokens import TokenStore, tokenizer_for

BODY_FLIPS, CUTS = 200, 60
Damage = Callable[[bytes], bytes | None]  # the damaged contents; None: the file is gone
NOT_COMPARED = ("log.txt", ".lock")  # text for people


@dataclass(frozen=True)
class Kind:
    """A thing on disk. make: it and, with another seed, its twin; use: what it holds, as its users read it."""

    name: str
    make: Callable[[Material, Path, int], Path]
    use: Callable[[Path], Any]
    small: int  # tries in the suite
    share: float = 1.0  # of all tries, at full size


def _run(made: Material, path: Path, seed: int) -> Path:
    return trained(made, new_run(made, path, seed)).path


def _run_of_file(made: Material, path: Path, seed: int) -> Path:
    trained_from_file(made, path)
    return path


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
    if seed:  # the same length, another text
        texts = made.texts.read_text().splitlines(keepends=True)
        other = path.with_suffix(".jsonl")
        other.write_text("".join([*texts[1:], texts[0]]))
        from rhapsode.tokens import prepare

        prepare(open_source([str(other)]), made.tokenizer, path.parent / f"{path.name}-cache")
        (store,) = (path.parent / f"{path.name}-cache").glob("store-*")
    target = path / store.name
    shutil.copytree(store, target)
    return target


def _use_store(path: Path) -> Any:
    store = TokenStore.open(path)
    arrays = (store.tokens, store.offsets, store.byte_counts, store._marks, store.unspelled)
    return [array.tobytes() for array in arrays], store._about


def _tokenizer(made: Material, path: Path, seed: int) -> Path:
    texts = made.texts.read_text().splitlines()
    from rhapsode.tokenizer import train_tokenizer

    train_tokenizer(texts[30 * seed : 30 * seed + 30], "bpe", 270).save(path)
    return path


def _use_tokenizer(path: Path) -> Any:
    tokenizer = Tokenizer.load(path)
    return tokenizer.fingerprint, tokenizer.encode("Once upon a time"), tokenizer.eos_id, tokenizer.pad_id


def _cached_tokenizer(made: Material, path: Path, seed: int) -> Path:
    tokenizer_for(open_source([str(made.texts)]), "bpe", 270 + seed, path)
    return next(path.glob("tokenizer-*"))


def _use_cached_tokenizer(texts: Path, path: Path) -> Any:
    return tokenizer_for(open_source([str(texts)]), "bpe", 270, path.parent).fingerprint


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
    return course_model(made, path / "model.pt")


def _use_model_pt(path: Path) -> Any:
    model = load_course_model(path)
    return checksum({name: tensor.detach() for name, tensor in model.state_dict().items()}, repr(model))


def _packed(made: Material, path: Path, seed: int) -> Path:
    from rhapsode.export.network import packed_network

    path.mkdir()
    network = rhapsode.load(_run(made, path.with_name(f"{path.name}-run"), 0)).network
    (path / "model.packed").write_bytes(packed_network(network))
    return path / "model.packed"


def _use_packed(path: Path) -> Any:
    from rhapsode.export.network import unpacked_network

    try:
        network = unpacked_network(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return checksum({name: p.detach() for name, p in network.named_parameters()}, repr(network.config))


def _page(made: Material, path: Path, seed: int) -> Path:
    path.mkdir()
    if seed:  # another whole page is another page
        return Path(shutil.copy(path.with_name("good") / "page.html", path))
    rhapsode.export_html(_run(made, path.with_name("page-run"), 0), path / "page.html")
    return path / "page.html"


KINDS = [
    Kind("a run", _run, _use_run, 100),
    Kind("a token store", _store, _use_store, 60),
    Kind("a tokenizer", _tokenizer, _use_tokenizer, 60),
    Kind("a tokenizer in the cache", _cached_tokenizer, _use_tokenizer, 30),
    Kind("a study", _study, _use_study, 8, 0.05),
    Kind("a saved state", _state, _use_state, 50),
    Kind("a model.pt", _model_pt, _use_model_pt, 40),
    Kind("a packed model", _packed, _use_packed, 40),
    Kind("an offline page", _page, page_reader.seen, 6, 0.4),
]


def units(small: bool) -> list[Unit]:
    return [(kind.name, partial(damage_kind, kind, small)) for kind in KINDS]


def damage_kind(kind: Kind, small: bool, seed: int, folder: Path) -> Tally:
    made = material(folder / "made")
    console = progress.console
    with using_cache(made.cache):
        console.file = io.StringIO()
        good = kind.make(made, folder / "good", 0)
        twin = kind.make(made, folder / "twin", 1)
        now = folder / "now" / good.name
        baseline = kind.use(good)
        tally, counts = Tally(), Counter()
        draw = random.Random(f"{seed} {kind.name}")
        cases: list[tuple[str, str, Damage]] = []
        for name in _files_of(good):
            other = twin / name if name else twin
            content = (good / name if name else good).read_bytes()
            damages = _damages(Path(name or good).name, content, other.read_bytes() if other.exists() else None, draw)
            cases += [(name, what, damage) for what, damage in damages]
        rare = [case for case in cases if not case[1].startswith(("bit", "cut to"))]
        many = [case for case in cases if case[1].startswith(("bit", "cut to"))]
        if small:
            cases = draw.sample(rare, min(kind.small // 2, len(rare))) + draw.sample(many, kind.small // 2)
        else:
            cases = rare + draw.sample(many, int(kind.share * len(many)))
        for name, what, damage in cases:
            content = (good / name if name else good).read_bytes()
            damaged, file = damage(content), now / name if name else now
            _put(good, now)
            _write_damage(file, damaged)
            console.file = io.StringIO()
            outcome = _outcome(kind, now, file, baseline, what, content == damaged)
            counts[outcome if outcome in ("named", "harmless") else "lost"] += 1
            lost = f"{kind.name}, {name or file.name}: {what}: {outcome}"
            tally.note(None if outcome in ("named", "harmless") else lost)
        tally.facts = dict(sorted(counts.items()))
        console.file = None  # type: ignore[assignment]
    return tally


def _files_of(good: Path) -> list[str]:
    if good.is_file():
        return [""]
    files = (path for path in sorted(good.rglob("*")) if path.is_file() and path.name not in NOT_COMPARED)
    return [str(path.relative_to(good)) for path in files]


def _put(good: Path, now: Path) -> None:
    shutil.rmtree(now.parent, ignore_errors=True)
    now.parent.mkdir()
    if good.is_dir():
        shutil.copytree(good, now)
    else:
        shutil.copy(good, now)


def _write_damage(file: Path, damaged: bytes | None) -> None:
    if damaged is None:
        file.unlink()
    else:
        file.write_bytes(damaged)


def _damages(name: str, content: bytes, twin: bytes | None, draw: random.Random) -> Iterator[tuple[str, Damage]]:
    """Everything that can happen to a file, in words and as what makes it of the file's contents."""
    header = _header_length(name, content)
    places = list(range(header))
    places += sorted(draw.sample(range(header, len(content)), min(BODY_FLIPS, len(content) - header)))
    for place in places:
        bit = draw.randrange(8)
        yield f"bit {bit} of byte {place}", partial(_flipped, place, bit)
    lengths = {0, 1, 7, 8, 9, header - 1, header, header + 1, len(content) - 1, len(content) // 2}
    lengths |= {draw.randrange(len(content)) for _ in range(CUTS)} if content else set()
    for length in sorted(length for length in lengths if 0 <= length < len(content)):
        yield f"cut to {length} bytes", partial(_cut, length)
    yield "zeros at the end", lambda content: content + bytes(512)
    yield "all zeros", lambda content: bytes(len(content))
    yield "gone", lambda content: None
    if twin is not None and twin != content:
        yield "another's", lambda content: twin
    if newer := _newer(name, content):
        yield "newer", lambda content: newer


def _cut(length: int, content: bytes) -> bytes:
    return content[:length]


def _flipped(place: int, bit: int, content: bytes) -> bytes:
    return content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]


def _header_length(name: str, content: bytes) -> int:
    """All of a text; of tensors and arrays, what stands before the numbers."""
    if name.endswith(".safetensors"):
        return 8 + int.from_bytes(content[:8], "little")
    if name.endswith(".npy"):
        return min(128, len(content))
    if name.endswith((".json", ".jsonl", "SHA256SUMS")):
        return min(len(content), 6000)
    return min(256, len(content))


def _newer(name: str, content: bytes) -> bytes | None:
    for old, new in (
        (b'"format_version": 1', b'"format_version": 9'),
        (b'"format_version": 2', b'"format_version": 9'),
        (b'"format_version":"1"', b'"format_version":"9"'),
        (b'"rhapsode_state":"1"', b'"rhapsode_state":"9"'),
    ):
        if old in content:
            return content.replace(old, new)
    return None


def _outcome(kind: Kind, path: Path, file: Path, baseline: Any, what: str, same: bool) -> str:
    """`named`, `harmless`, or what went wrong."""
    try:
        value = kind.use(path)
    except (ValueError, OSError) as error:
        message = told(error)
        if len(message.splitlines()) != 1 or len(message) > 2000:
            return f"not one line: {message!r}"
        outcome = "named" if str(path) in message else f"named without the path: {message}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    else:
        said = progress.console.file.getvalue()  # type: ignore[attr-defined]
        outcome = "harmless" if value == baseline else "named" if file.name in said else "other values, in silence"
    if not same and not (path == file and what == "another's"):  # which is intact in itself
        try:
            problems = [each.problem for each in rhapsode.check(path) if each.problem]
        except (ValueError, OSError):
            problems = ["named"]
        except Exception as error:
            return f"check: {type(error).__name__}: {error}"
        if outcome == "named" and not problems:
            return "rhapsode check finds nothing"
    return outcome
