"""Every write fails once: the n-th operation on a file fails, n = 1, 2, ..., until the work passes untouched.

For each way to fail, once only and for good: the work ends well or with one line that names a file of the user's and
says what to do; what was there before is still right; and the same work, begun again without faults, ends as if
nothing had been, with no temporary file left.
"""

import random
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from harness import Tally, Unit
from material import (
    Material,
    an_hour_passes,
    course_model,
    end_of,
    finished_study,
    leftovers,
    material,
    new_run,
    new_study,
    trained,
    using_cache,
)
from shim import ERRORS, INTERRUPTED, SHORT, Operation, Watched, failing, watching

import rhapsode
from rhapsode.progress import silent
from rhapsode.run import Run
from rhapsode.sources import open_source
from rhapsode.state import State
from rhapsode.studies.cell import run_cell
from rhapsode.studies.directory import Study
from rhapsode.studies.report import page
from rhapsode.studies.report.chapters import Chapter, chapters_of
from rhapsode.terminal import told
from rhapsode.tokens import TokenStore, prepare, shards, tokenizer_for
from rhapsode.tokens.shards import open_shards, prepare_shards

CURE = re.compile("make room|choose another|set RHAPSODE_CACHE|check it, or use another|can be written|permissions")
SMALL_TRIES = 6  # of a work in the suite, drawn from all
SMALL_SHARD = 2_300  # bytes of text, half of the stories


@dataclass(frozen=True)
class Work:
    """One kind of work. before: makes what must be there; act: does it; result: what came of it, to be compared.

    sweeps_after_an_hour: nobody holds a lock meanwhile, so what is left is removed when it must be a dead process's.
    tolerates: whether the work ends well, and as it would have, though this operation fails once.
    """

    name: str
    before: Callable[[Material, Path], Any]
    act: Callable[[Material, Path], Any]
    result: Callable[[Material, Path], Any]
    sweeps_after_an_hour: bool = False
    tolerates: Callable[[Operation], bool] = lambda operation: False


def _nothing(made: Material, folder: Path) -> None:
    pass


def _half_trained(made: Material, folder: Path) -> None:
    """A run of which half is done and saved."""

    class Enough(Exception):
        pass

    def stop(event: Any) -> None:
        if getattr(event, "step", 0) == 3 and type(event).__name__ == "Saved":
            raise Enough

    with suppress(Enough):
        trained(made, new_run(made, folder / "run"), on_event=stop)


def _train(made: Material, folder: Path) -> None:
    trained(made, Run.open(folder / "run"))


def _ended(made: Material, folder: Path) -> Any:
    return end_of(Run.open(folder / "run"))


def _of_a_save(operation: Operation) -> bool:
    """Of a checkpoint, the logs or run.json while a training is on: it says so, and tries again."""
    return operation.kind in ("write", "fsync", "rename", "chmod") or ".safetensors." in operation.path


def _create(made: Material, folder: Path) -> None:
    if not (folder / "runs" / "new").exists():
        new_run(made, folder / "runs" / "new")


def _created(made: Material, folder: Path) -> Any:
    run = Run.open(folder / "runs" / "new")
    assert run.tokenizer.fingerprint == made.tokenizer.fingerprint
    return run.recipe


def _prepare(made: Material, folder: Path) -> None:
    prepare(open_source([str(made.texts)]), made.tokenizer, folder / "cache" / "tokens")


def _prepared(made: Material, folder: Path) -> Any:
    store = TokenStore.open(next((folder / "cache" / "tokens").glob("store-*")))
    return store.fingerprint, store.tokens.tobytes(), store.offsets.tobytes()


def _prepare_shards(made: Material, folder: Path) -> None:
    with patch.object(shards, "SHARD_BYTES", SMALL_SHARD):
        prepare_shards(open_source([str(made.texts)]), made.tokenizer, str(folder / "stores" / "shards"))


def _shards_prepared(made: Material, folder: Path) -> Any:
    problems = [file.problem for file in rhapsode.check(folder / "stores" / "shards") if file.problem]
    assert not problems, problems
    store, tokenizer = open_shards(str(folder / "stores" / "shards"))
    return store.fingerprint, store.tokens[:].tobytes(), store.offsets.tobytes(), tokenizer.fingerprint


def _tokenizer(made: Material, folder: Path) -> None:
    tokenizer_for(open_source([str(made.texts)]), "bpe", 280, folder / "cache" / "tokens")


def _tokenizer_made(made: Material, folder: Path) -> Any:
    return tokenizer_for(open_source([str(made.texts)]), "bpe", 280, folder / "cache" / "tokens").fingerprint


def _model_file(made: Material, folder: Path) -> None:
    course_model(made, folder / "model.pt")


def _import(made: Material, folder: Path) -> None:
    if not (folder / "imported").exists():
        rhapsode.import_course_model(folder / "model.pt", folder / "imported", made.folder / "tokenizer")


def _imported(made: Material, folder: Path) -> Any:
    return rhapsode.load(folder / "imported").fingerprint


def _state(made: Material, folder: Path) -> None:
    rhapsode.load(folder / "imported").read("Once upon").save(folder / "state.safetensors")


def _read_state(made: Material, folder: Path) -> Any:
    loaded = State.load(folder / "state.safetensors")
    return loaded.fingerprint, {name: tensor.tolist() for name, tensor in loaded.tensors().items()}


def _trained_run(made: Material, folder: Path) -> None:
    trained(made, new_run(made, folder / "run"))


def _export(made: Material, folder: Path) -> None:
    rhapsode.export_html(folder / "run", folder / "page.html")


def _exported(made: Material, folder: Path) -> Any:
    (found,) = rhapsode.check(folder / "page.html")
    assert found.problem is None, found.problem
    return (folder / "page.html").read_bytes()


def _begin_study(made: Material, folder: Path) -> None:
    if not (folder / "study" / "study.json").exists():
        new_study(made, folder / "study")


def _begun_study(made: Material, folder: Path) -> Any:
    return Study.open(folder / "study").request


def _cell(made: Material, folder: Path) -> None:
    study = Study.open(folder / "study")
    with study.lock():
        for cell in list(study.plan.cells.values())[:1]:
            if study.result(cell) is None:
                run_cell(study, cell, 1)


def _cell_done(made: Material, folder: Path) -> Any:
    study = Study.open(folder / "study")
    (result,) = study.results()
    points = [{key: value for key, value in point.items() if key != "seconds"} for point in result["points"]]
    return points, result["completions"]


def _finished(made: Material, folder: Path) -> None:
    if not (made.folder / "study").exists():
        finished_study(made, made.folder / "study")
    shutil.copytree(made.folder / "study", folder / "study")


def _report(made: Material, folder: Path) -> None:
    study = Study.open(folder / "study")
    with study.lock(), patch.object(page, "chapters_of", lambda study: _chapters(made.folder / "study")):
        page.write_report(study, {}, {"machine": "any"}, None)


@cache
def _chapters(study: Path) -> dict[str, Chapter]:
    """Drawn once: seconds of work that writes nothing."""
    return chapters_of(Study.open(study))


def _reported(made: Material, folder: Path) -> Any:
    problems = [file.problem for file in rhapsode.check(folder / "study") if file.problem]
    assert not problems, problems
    return (folder / "study" / "points.csv").read_bytes()


def _import_first(made: Material, folder: Path) -> None:
    _model_file(made, folder)
    _import(made, folder)


WORKS = [
    Work("training and its saves", _half_trained, _train, _ended, tolerates=_of_a_save),
    Work("creating a run", _nothing, _create, _created),
    Work("preparing text", _nothing, _prepare, _prepared),
    Work("preparing shards of text", _nothing, _prepare_shards, _shards_prepared),
    Work("training a tokenizer", _nothing, _tokenizer, _tokenizer_made),
    Work("importing a model", _model_file, _import, _imported),
    Work("saving a state", _import_first, _state, _read_state, True),
    Work("exporting a page", _trained_run, _export, _exported, True),
    Work("beginning a study", _nothing, _begin_study, _begun_study),
    Work("a study's cell", _begin_study, _cell, _cell_done),
    Work("a study's report", _finished, _report, _reported),
]
WAYS = [(error, good) for error in ERRORS for good in (False, True)] + [
    (SHORT, False),
    (SHORT, True),
    (INTERRUPTED, False),
]


def units(small: bool) -> list[Unit]:
    return [(work.name, partial(try_work, work, SMALL_TRIES if small else 0)) for work in WORKS]


def try_work(work: Work, most: int, seed: int, folder: Path) -> Tally:
    """most: tries, drawn from all; 0: all."""
    made = material(folder / "made")
    before = folder / "before"
    before.mkdir()
    with silent(), using_cache(folder / "cache-of-all"):
        work.before(made, before)
        undisturbed = folder / "undisturbed"
        shutil.copytree(before, undisturbed)
        done: list[Operation] = []
        with watching(Watched(undisturbed, lambda number, operation: done.append(operation))):
            work.act(made, undisturbed)
        expected = work.result(made, undisturbed)
        cases = [(number, *way) for number in range(1, len(done) + 1) for way in WAYS]
        if most and len(cases) > most:
            cases = random.Random(f"{seed} {work.name}").sample(cases, most)
        tally = Tally(facts={"operations": len(done), "ways": len(WAYS)})
        for number, error, for_good in cases:
            operation = done[number - 1]
            where = f"{work.name}: {error}{' for good' if for_good else ''} at {number} ({operation.kind})"
            tolerated = not for_good and work.tolerates(operation)
            case = partial(_one, work, made, before, folder / "now", (number, error, for_good), tolerated, expected)
            tally.note_of(case, where)
            tally.facts["had to end well"] = tally.facts.get("had to end well", 0) + tolerated
    return tally


def _one(
    work: Work, made: Material, before: Path, now: Path, case: tuple[int, str, bool], tolerated: bool, expected: Any
) -> None:
    shutil.rmtree(now, ignore_errors=True)
    shutil.copytree(before, now)
    number, error, for_good = case
    ended = True
    with watching(Watched(now, failing(number, error, for_good))):
        try:
            work.act(made, now)
        except OSError as caught:
            ended = False
            message = told(caught)
    if not ended:
        assert not tolerated, f"did not end well, though it failed once only: {message}"
        assert error not in (SHORT, INTERRUPTED), f"failed for a {error}: {message}"
        assert CURE.search(message), f"does not say what to do: {message}"
        assert ".making-" not in message, f"names a temporary file: {message}"
        if work.name == "training and its saves":  # what was saved before is there
            checkpoint = Run.open(now / "run").load("last")
            assert checkpoint is not None
            assert checkpoint.progress["step"] >= 3
    elif tolerated or work.name != "training and its saves":
        assert work.result(made, now) == expected, "ended well, with another result"
    if work.sweeps_after_an_hour:
        an_hour_passes(now)
    work.act(made, now)
    assert work.result(made, now) == expected, "another result afterwards"
    assert not leftovers(now), leftovers(now)
