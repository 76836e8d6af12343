"""Several processes at once, and clocks that jump: one waits or is told so, nothing is mixed, nothing is lost."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from unittest.mock import patch

from harness import Tally, Unit
from material import (
    end_of,
    finished_study,
    leftovers,
    material,
    new_run,
    new_study,
    trained,
    trained_from_file,
    using_cache,
)

from rhapsode.progress import silent
from rhapsode.run import Run, held
from rhapsode.sources import open_source
from rhapsode.studies.directory import Study
from rhapsode.tokens import TokenStore, prepare

ROUNDS, SMALL_ROUNDS = 20, 1
CHILD = """
import sys
sys.path[:0] = sys.argv[1:2]
from pathlib import Path
from rhapsode.tokenizer import Tokenizer
from rhapsode.sources import open_source
"""
PREPARE = (
    CHILD
    + """
from rhapsode.tokens import prepare
tokenizer = Tokenizer.load(Path(sys.argv[3]))
for _ in range(int(sys.argv[5])):
    store = prepare(open_source([sys.argv[2]]), tokenizer, Path(sys.argv[4]))
    print(store.fingerprint, store.tokens.sum(), flush=True)
"""
)
TRAIN = (
    CHILD
    + """
import material
from rhapsode.run import Run
made = material.material(Path(sys.argv[2]))
print("ready", flush=True)
sys.stdin.readline()
try:
    material.trained(made, Run.open(Path(sys.argv[3])))
    print("trained")
except BlockingIOError as error:
    print(f"refused: {error}")
"""
)


def units(small: bool) -> list[Unit]:
    rounds = SMALL_ROUNDS if small else ROUNDS
    return [
        ("two trainings in one directory", partial(two_trainings, rounds)),
        ("a cache that four processes share and another cleans", partial(shared_cache, rounds)),
        ("a store that is made again while a training reads it", store_made_again),
        ("locks of dead processes", dead_locks),
        ("a study and a person in one cell", study_and_person),
        ("a clock that jumps", jumping_clock),
    ]


def _child(code: str, *arguments: str | Path | int, **more: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", code, str(Path(__file__).parent), *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.PIPE}
    return subprocess.Popen(command, text=True, **pipes, env={**os.environ, "OMP_NUM_THREADS": "1"})  # type: ignore[call-overload]


def two_trainings(rounds: int, seed: int, folder: Path) -> Tally:
    """Three at once: one trains, the others are told that it does; the end is that of one alone."""
    made, tally = material(folder / "made"), Tally()
    expected = end_of(trained(made, new_run(made, folder / "alone")))
    for number in range(rounds):
        path = folder / f"run-{number}"
        new_run(made, path)
        children = [_child(TRAIN, folder / f"made-{i}", path) for i in range(3)]
        for child in children:
            assert child.stdout is not None
            child.stdout.readline()
        said = []
        for child in children:
            assert child.stdin is not None
            child.stdin.write("\n")
            child.stdin.flush()
        for child in children:
            out, err = child.communicate()
            said.append(out.strip() if child.returncode == 0 else err[-300:])

        def check(path: Path = path, said: list[str] = said) -> None:
            assert "trained" in said, said
            others = [line for line in said if line != "trained"]
            assert all(line.startswith("refused:") and "another process is training" in line for line in others), said
            assert end_of(Run.open(path)) == expected
            assert not leftovers(path)

        tally.note_of(check, f"round {number + 1}")
    return tally


def shared_cache(rounds: int, seed: int, folder: Path) -> Tally:
    """Four processes prepare the same text again and again, while its store is removed, damaged and removed."""
    made, draw, tally = material(folder / "made"), random.Random(seed), Tally()
    cache = folder / "shared"
    with silent():
        expected = prepare(open_source([str(made.texts)]), made.tokenizer, folder / "expected")
    wanted = f"{expected.fingerprint} {expected.tokens.sum()}"
    times = 5 * rounds + 5
    children = [_child(PREPARE, made.texts, made.folder / "tokenizer", cache, times) for _ in range(4)]
    removed = 0
    while any(child.poll() is None for child in children):
        time.sleep(draw.uniform(0, 0.02))
        for store in cache.glob("store-*"):
            if draw.random() < 0.5:
                aside = cache / f"removed-{removed}"
                with_luck(lambda store=store, aside=aside: os.rename(store, aside))
                shutil.rmtree(aside, ignore_errors=True)
            else:
                # Replaced, not overwritten: a file that is cut while it is mapped ends every program that reads it.
                damaged = cache / f"damaged-{removed}"
                damaged.write_bytes(b"damaged")
                with_luck(lambda store=store, damaged=damaged: os.replace(damaged, store / "tokens.bin"))
            removed += 1
    for number, child in enumerate(children):
        out, err = child.communicate()
        lines = out.split("\n")[:-1]
        ended = child.returncode == 0 or "is removed or damaged again and again" in err
        good = ended and set(lines) <= {wanted} and (lines or child.returncode)
        tally.note(None if good else f"process {number + 1}: {set(lines)}, {err[-300:]}")
    tally.facts = {"removed or damaged": removed, "prepared": 4 * times}
    return tally


def with_luck(action: Callable[[], object]) -> None:
    """Does what another process may have done first."""
    with suppress(OSError):
        action()


def store_made_again(seed: int, folder: Path) -> Tally:
    """The store is removed and made again while a run trains on it: what was mapped stays what it was."""
    made, tally = material(folder / "made"), Tally()
    expected = end_of(trained(made, new_run(made, folder / "alone")))
    run = new_run(made, folder / "run")

    def disturb(event: object) -> None:
        if type(event).__name__ == "Step":
            shutil.rmtree(made.cache / "tokens")
            with silent():
                prepare(open_source([str(made.texts)]), made.tokenizer, made.cache / "tokens")

    trained(made, run, on_event=disturb)
    tally.note(None if end_of(run) == expected else "another end")
    return tally


def dead_locks(seed: int, folder: Path) -> Tally:
    """A process that is killed while it holds a lock leaves the file, not the lock."""
    made, tally = material(folder / "made"), Tally()
    for what, path in (
        ("a run", new_run(made, folder / "run").path),
        ("a study", new_study(made, folder / "study").path),
    ):
        code = "import sys, time; from pathlib import Path; from rhapsode.run import held\n"
        code += "with held(Path(sys.argv[2]), 'taken'): print('held', flush=True); time.sleep(600)"
        child = _child(code, path)
        assert child.stdout is not None
        child.stdout.readline()

        def taken(path: Path = path) -> None:
            message = "two processes hold it"
            try:
                with held(path, "another process has it"):
                    pass
            except BlockingIOError as error:
                message = str(error)
            assert "another process has it; wait for it or stop it" in message

        def free(path: Path = path) -> None:
            with held(path, "another process has it"):
                pass

        tally.note_of(taken, f"{what}, held")
        child.kill()
        child.wait()
        tally.note_of(free, f"{what}, killed")
    return tally


def study_and_person(seed: int, folder: Path) -> Tally:
    """A person trains in a cell's directory while the study wants it: the cell waits, or fails with a reason."""
    from rhapsode.studies import cell as cells

    made, tally = material(folder / "made"), Tally()
    with using_cache(made.cache), silent(), patch.object(cells, "SECONDS_FOR_ANOTHER", 0.2):
        study = new_study(made, folder / "study")
        (first, second) = list(study.plan.cells.values())[:2]
        with patch.object(cells, "_train_when_free", side_effect=KeyboardInterrupt), suppress(KeyboardInterrupt):
            cells.run_cell(study, first, 1)

        def refused() -> None:
            message = ""
            with held(study.cell_path(first), "the person's"):
                try:
                    cells.run_cell(study, first, 1)
                except BlockingIOError as error:
                    message = str(error)
            assert "another process is training in it" in message, message

        def afterwards() -> None:
            cells.run_cell(study, first, 1)
            cells.run_cell(study, second, 1)
            assert len(Study.open(folder / "study").results()) == 2

        tally.note_of(refused, "while the person trains")
        tally.note_of(afterwards, "afterwards")
    return tally


def jumping_clock(seed: int, folder: Path) -> Tally:
    """The wall clock jumps by years and back: training, saving and preparing end as they would have."""
    made, draw, tally = material(folder / "made"), random.Random(seed), Tally()
    expected = end_of(trained(made, new_run(made, folder / "alone")))
    real = time.time

    def jumping() -> float:
        return max(1.0, real() + draw.choice((0, -1e9, 3600, 4e8, -86400)))

    def train() -> None:
        run = trained(made, new_run(made, folder / "run"))
        assert end_of(run) == expected
        assert all(entry["seconds"] >= 0 for entry in run.metrics())
        again = trained_from_file(made, folder / "from-file")
        assert again.metrics[-1]["valid_loss"] > 0

    def make_store() -> None:
        with silent():
            store = prepare(open_source([str(made.texts)]), made.tokenizer, folder / "cache")
        assert TokenStore.open(next((folder / "cache").glob("store-*"))).fingerprint == store.fingerprint
        assert not leftovers(folder / "cache")

    def study() -> None:
        assert json.loads((finished_study(made, folder / "study", report=False).path / "study.json").read_text())

    with patch("time.time", jumping):
        for check in (train, make_store, study):
            tally.note_of(check, f"{check.__name__} while the clock jumps")
    return tally
