"""Side by side: what is looked for, what is missing, what counts as there, and lanes that end when they should."""

import importlib
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="needs benchmarks/ beside the package")


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    report = importlib.import_module("report")
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")


def module(name: str) -> Any:
    return importlib.import_module(name)


# Looking for modern's sizes


def bowl(config: dict[str, Any]) -> float:
    """A loss whose lowest value is at a width of 224, two layers, a rate of 0.01; nothing else matters."""
    return 1 + abs(math.log2(config["width"] / 224)) + abs(config["layers"] - 2) + abs(config["learning_rate"] - 0.01)


def played(most: int, loss: Any = bowl) -> list[tuple[dict[str, Any], float]]:
    """A search with at most so many runs: each configuration with its loss, in the order of trying."""
    searched = module("searched")
    tried: list[tuple[dict[str, Any], float]] = []
    begun = [searched.MODERN.start, *searched.MODERN.drawn(9, seed=0)]
    while configs := searched.MODERN.following(begun, most, tried):
        known = {searched.key_of(config) for config, _ in tried}
        assert not known & {searched.key_of(config) for config in configs}  # nothing is tried twice
        tried += [(config, loss(config)) for config in configs]
    return tried


def test_the_search_finds_the_bottom_and_ends_there() -> None:
    """Would catch a search that stops one step early, or walks back and forth."""
    tried = played(1000)
    best, value = min(tried, key=lambda one: one[1])
    assert value == 1
    assert (best["width"], best["layers"], best["learning_rate"]) == (224, 2, 0.01)
    assert len(tried) < 120
    assert len(played(40)) == 40


def test_the_search_goes_on_from_its_results() -> None:
    """Would catch a search that begins anew, or ends, where it was stopped in the middle of a round."""
    space, tried = module("searched").MODERN, played(1000)
    begun = [space.start, *space.drawn(9, seed=0)]
    for count in (3, 10, 15, 40):
        asked = space.following(begun, 1000, tried[:count])
        assert asked
        assert not any(config == other for config in asked for other, _ in tried[:count])
    assert space.following(begun, 1000, tried) == []


def test_training_that_diverged_is_never_the_best() -> None:
    tried = played(1000, lambda config: math.inf if config["learning_rate"] > 0.01 else bowl(config))
    assert min(tried, key=lambda one: one[1])[0]["learning_rate"] == 0.01


def test_what_cannot_be_is_not_tried() -> None:
    """Would catch a run that ends in an error after the machine was waited for: 8 heads of an odd size."""
    space = module("searched").MODERN
    config = {**space.start, "width": 96, "heads": 4}
    assert [each["heads"] for each in space.neighbours(config, "heads", space.steps["heads"])] == [2, 8]
    assert space.neighbours({**config, "heads": 8}, "width", (90, 96, 100)) == []


def test_our_own_recipe_is_looked_for_in_the_same_way() -> None:
    """Would catch a field of the search that no recipe has, and a start that is not the preset."""
    searched = module("searched")
    for config in [searched.OURS.start, *searched.OURS.drawn(20, seed=0)]:
        recipe = searched.recipe_of(config)
        assert recipe.model.vocab_size == config["vocab_size"]
        assert (recipe.batch.batch_size, recipe.batch.window) == (config["batch_size"], searched.WINDOW)
        assert recipe.optimizer.matrix_learning_rate == config["matrix_learning_rate"]
    assert len(searched.OURS.beside(searched.OURS.start)) == 16


def test_the_best_modern_is_the_best_that_was_tried() -> None:
    """Would catch a rival that is run as it was first guessed, while a better one is known."""
    tuning = module("tuning")
    start = module("searched").MODERN.start
    assert tuning.best_modern(True) == start
    other = {**start, "width": 160}
    for config, value in ((start, 0.9), (other, 0.8), ({**other, "layers": 3}, None)):
        tuning.keep({"who": "modern, copy head", "recipe": config, "value": value})
    assert tuning.best_modern(True) == other
    assert tuning.best_modern(False) == {**other, "copy_dim": 0}  # begins where the other has got to
    tuning.keep({"who": "modern", "recipe": {**other, "copy_dim": 0, "layers": 1}, "value": 0.95})
    assert tuning.best_modern(False)["layers"] == 1
    assert tuning.best_modern(True) == other


def test_every_run_stands_in_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch a run that diverged and is not told of."""
    tuning = module("tuning")
    run = {"who": "modern", "recipe": {**module("searched").MODERN.start, "copy_dim": 0}, "value": None}
    tuning.keep(run)
    tuning.keep({**run, "recipe": {**run["recipe"], "width": 96}, "value": 0.75, "tokens": 90, "parameters": 45})
    tuning.print_table("modern")
    out = capsys.readouterr().out.replace("*", "")
    assert "| diverged |  |  |" in out
    assert "| 0.7500 | 90 | 45 |" in out
    assert "the search goes on" in out


@pytest.mark.parametrize(("kind", "product", "width"), [("modern", 1, "width"), ("rhapsode", 8, "embed_dim")])
def test_everyone_gets_the_same_time(kind: str, product: int, width: str) -> None:
    """Would catch a cost that does not grow with what is computed, and a search that begins without any."""
    cost, searched, report = module("step_cost"), module("searched"), module("report")
    start = searched.SPACES[kind].start
    with pytest.raises(ValueError, match=rf"first: python benchmarks/step_cost\.py {kind}"):
        cost.cost_of(kind, start)
    weights = [0.0] * len(cost.KINDS[kind].terms(start))
    weights[product] = 1e-6
    report.write(f"cost-{kind}", {"weights": weights, "measured": {searched.key_of(start): 0.7}})
    assert cost.cost_of(kind, start) == 0.7
    small, large = ({**start, width: size, "vocab_size": 4096} for size in (96, 192))
    grown = 4 if kind == "modern" else 2
    assert cost.cost_of(kind, large) == pytest.approx(grown * cost.cost_of(kind, small))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("who", "tiny"),
    [
        ("modern, copy head", {"width": 16, "window": 16, "batch_tokens": 64, "pair_embeddings": 64}),
        ("rhapsode", {"embed_dim": 8, "hidden_dim": 8, "batch_size": 1}),
    ],
)
def test_a_search_trains_what_is_missing(
    who: str, tiny: dict[str, Any], tmp_path: Path, small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a program that no longer runs, a minute after a GPU was waited for."""
    tuning, cost, searched = module("tuning"), module("step_cost"), module("searched")
    monkeypatch.setenv("RHAPSODE_CACHE", str(tmp_path / "cache"))
    files, kind = {"train": str(small.file), "valid": str(small.file)}, tuning.kind_of(who)
    config = {**searched.SPACES[kind].start, "vocab_size": 300, **tiny}
    found = tuning.trained(who, files, config, 640, "cpu")
    assert found["steps"] == {"modern": 10, "rhapsode": 2}[kind]
    assert 0 < found["value"] < 9
    monkeypatch.setattr(cost, "ROUNDS", 2)
    assert cost.measured(kind, [config])[0] > 0
    assert tuning.runs_of(who) == []


# What counts as there


def pair(seed: int, ours: dict[str, Any], value: float | None = 0.8, commit: str = "a", **more: Any) -> dict[str, Any]:
    runs = [
        {"who": "rhapsode", "recipe": ours, "value": value, "steps": 10, "parameters": 5, **more},
        {"who": "before", "recipe": {"commit": "b"}, "value": 0.9, "steps": 20, "parameters": 5},
    ]
    return {"question": "tinystories, ten minutes", "text": "tinystories", "minutes": 10, "seed": seed, "cores": 1,
            "commit": commit, "runs": runs}  # fmt: skip


def test_a_pair_counts_for_its_recipes_its_seed_and_if_wanted_its_commit() -> None:
    """Would catch a row that an earlier recipe made, and hours that are run again for a commit of the docs."""
    tables, questions = module("side_by_side_tables"), module("questions")
    recipes = {"rhapsode": {"a": 1}, "before": {"commit": "b"}}
    there = [questions.Contender(who, recipe, None, None) for who, recipe in recipes.items()]
    name = "tinystories, ten minutes"
    assert tables.same(pair(0, {"a": 1}), name, 0, there)
    assert not tables.same(pair(0, {"a": 2}), name, 0, there)
    assert not tables.same(pair(1, {"a": 1}), name, 0, there)
    assert not tables.same(pair(0, {"a": 1}), "another", 0, there)
    assert tables.same(pair(0, {"a": 1}, commit="x"), name, 0, there)
    assert not tables.same(pair(0, {"a": 1}, commit="x"), name, 0, there, "a")
    assert not tables.same(pair(0, {"a": 1}, None, why="killed by SIGKILL"), name, 0, there)
    assert tables.same(pair(0, {"a": 1}, None, why="the loss became nan at step 3; this was not"), name, 0, there)


def test_nothing_that_was_measured_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a run that takes the place of one of another recipe: the table has the newest, the file has all."""
    side_by_side, tables = module("side_by_side"), module("side_by_side_tables")
    monkeypatch.setattr(side_by_side, "RESULTS", module("report").RESULTS)
    made = [pair(0, {"a": 1}), pair(1, {"a": 1}), pair(0, {"a": 2}), pair(1, {"a": 2}, 0.7), pair(0, {"a": 2}, 0.75)]
    for each in made:
        side_by_side.keep_pair(each)
    assert side_by_side.read_pairs() == made
    assert tables.newest(made, "tinystories, ten minutes") == [made[4], made[3]]


def test_the_table_has_every_seed_and_its_difference(capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch a difference of means over other seeds, and a bar that is reached in the wrong direction."""
    tables = module("side_by_side_tables")
    lost = pair(2, {"a": 2}, None, why="the loss became nan at step 3")
    tables.print_tables([pair(0, {"a": 2}, 0.8), pair(1, {"a": 2}, 0.84), lost])
    out = capsys.readouterr().out
    assert "| 0 | 0.8000 | 0.9000 | -0.1000 | 10, 20 |" in out
    assert "| 1 | 0.8400 | 0.9000 | -0.0600 |" in out
    assert "| 2 | diverged | 0.9000 | diverged |" in out
    assert "| mean | 0.8200 ± 0.0283 | 0.9000 ± 0.0000 | -0.0800 ± 0.0283 |" in out
    assert "The bar is 0.07 below: reached." in out
    tables.print_tables([pair(0, {"a": 2}, 1.0)])
    assert "missed" in capsys.readouterr().out


def test_labels_of_the_figure_do_not_lie_on_one_another() -> None:
    """Would catch a label that another covers, and labels that change places."""
    apart = module("side_by_side_tables").apart
    for values in ([0.7, 0.71, 0.705, 0.9], [1.0, 1.0, 1.0], [3.0, 2.0, 1.0], [0.5]):
        places = apart(values, 0.05)
        order = sorted(range(len(values)), key=places.__getitem__)
        assert all(places[j] - places[i] >= 0.05 - 1e-9 for i, j in itertools.pairwise(order))
        assert all(values[i] <= values[j] for i, j in itertools.pairwise(order))
    assert apart([3.0, 2.0, 1.0], 0.05) == [3.0, 2.0, 1.0]


def test_the_figure_is_drawn_from_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a figure of an hour's numbers that ends in an error."""
    pytest.importorskip("matplotlib")
    tables = module("side_by_side_tables")
    monkeypatch.setattr(tables, "FIGURE", tmp_path / "figure.svg")
    curve = [[60.0 * i, 2.0 - i / 10] for i in range(1, 11)]
    made = pair(0, {"a": 1})
    for run in made["runs"]:
        run["curve"] = curve
    tables.plot([made])
    assert "<svg" in (tmp_path / "figure.svg").read_text()
    with pytest.raises(SystemExit, match="nothing to draw"):
        tables.plot([])


# The questions


def test_questions_come_in_their_order_of_worth() -> None:
    """Would catch a question that two have the name of: the second would count as there."""
    questions = module("questions").questions()
    assert len({question.name for question in questions}) == len(questions)
    assert [question.tier for question in questions] == sorted(question.tier for question in questions)
    assert all(len(question.contenders) == 2 for question in questions)
    assert {question.preset for question in questions if question.minutes == 10} == {"coffee"}


def lay_out(tmp_path: Path, small: Any) -> Any:
    play = tmp_path / "play.txt"
    play.write_text("To be, or not to be: that is the question.\n" * 50, encoding="utf-8")
    return module("questions").lay_out(str(small.file), str(small.file), str(play), tmp_path)


def test_history_that_is_missing_leaves_its_questions_out(
    tmp_path: Path, small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RHAPSODE_CACHE", str(tmp_path / "cache"))
    side_by_side, questions = module("side_by_side"), module("questions")
    monkeypatch.setattr(questions, "BEFORE", "no such commit")
    files = lay_out(tmp_path, small)
    assert files.before() is None
    assert side_by_side.comparison(questions.questions()[0], 0, files, [], False) is None


@pytest.mark.slow
def test_a_pair_is_trained_scored_and_kept(tmp_path: Path, small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a command that no longer runs, an hour after the measurement was begun."""
    monkeypatch.setenv("RHAPSODE_CACHE", str(tmp_path / "cache"))
    side_by_side, questions, report = module("side_by_side"), module("questions"), module("report")
    monkeypatch.setattr(side_by_side, "RESULTS", report.RESULTS)
    monkeypatch.setattr(questions, "LOOKS", 2)
    tiny = {"vocab_size": 300, "width": 16, "window": 16, "batch_tokens": 64, "pair_embeddings": 64}
    space = module("searched").MODERN
    monkeypatch.setattr(module("tuning"), "MODERN", space._replace(start={**space.start, **tiny}))
    files = lay_out(tmp_path, small)
    question = questions.Question("tiny", "tinystories", 0.02, ("rhapsode", "modern, copy head"), 1, alone=True)
    job = side_by_side.comparison(question, 0, files, [], False)
    assert job.run(lambda seconds: None) == []
    (made,) = side_by_side.read_pairs()
    ours, modern = made["runs"]
    for run in made["runs"]:
        assert 0 < run["value"] < 9
        assert 1 <= len(run["curve"]) <= 2  # on a busy machine, both looks come at the end
        assert run["curve"][-1][1] == pytest.approx(run["value"], abs=2e-4)  # here both are of the same stories
        assert run["yardstick"]["stories"] == 100
    assert ours["recipe"]["model"]["kind"] == "stacked"
    assert modern["recipe"]["copy_dim"] > 0
    assert side_by_side.comparison(question, 0, files, [made], False) is None  # there
    assert json.loads((report.RESULTS / "side-by-side.jsonl").read_text().splitlines()[0]) == made


# Lanes


def command(lanes: Any, folder: Path, name: str, code: str) -> Any:
    return lanes.Command([sys.executable, "-c", code], folder / name)


def test_lanes_run_at_once_and_their_commands_in_turn(tmp_path: Path) -> None:
    """Would catch lanes that wait for one another: each ends only once the other has begun."""
    lanes = module("lanes")
    meet = (
        "import pathlib, time; pathlib.Path('{0}').touch(); end = time.time() + 60\n"
        "while not pathlib.Path('{1}').exists():\n    assert time.time() < end; time.sleep(0.02)\nprint('met')"
    )
    one, other = tmp_path / "one", tmp_path / "other"
    after = "import pathlib; print(pathlib.Path('{0}').read_text().strip() + ' before')"
    found = lanes.run_lanes(
        [
            [
                command(lanes, tmp_path, "first.out", meet.format(one, other)),
                command(lanes, tmp_path, "second.out", after.format(tmp_path / "first.out")),
            ],
            [command(lanes, tmp_path, "third.out", meet.format(other, one))],
        ],
        pinned=False,
    )
    assert found == [None, None]
    assert (tmp_path / "second.out").read_text().strip() == "met before"


def test_a_lane_that_fails_says_why_and_goes_no_further(tmp_path: Path) -> None:
    """Would catch a failure that stops the other lane, and one that nobody hears of."""
    lanes = module("lanes")
    code = "import sys; print('noise', file=sys.stderr); sys.exit('no such file')"
    wrong = [command(lanes, tmp_path, "wrong.out", code), command(lanes, tmp_path, "never.out", "print(1)")]
    right = [command(lanes, tmp_path, "right.out", "print(2)")]
    assert lanes.run_lanes([wrong, right], pinned=False) == ["no such file", None]
    assert not (tmp_path / "never.out").exists()
    assert (tmp_path / "right.out").read_text() == "2\n"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs a system that pins processes to cores")
def test_a_pinned_lane_has_one_core_and_one_thread(tmp_path: Path) -> None:
    """Would catch two trainings that share a core, and threads that wait for each other."""
    lanes = module("lanes")
    code = "import os, torch; print(sorted(os.sched_getaffinity(0)), torch.get_num_threads())"
    here = lanes.cores()
    count = min(2, len(here))
    work = [[command(lanes, tmp_path, f"{i}.out", code)] for i in range(count)]
    assert lanes.run_lanes(work) == [None] * count
    said = [(tmp_path / f"{i}.out").read_text().strip() for i in range(count)]
    assert said == [f"[{core}] 1" for core in here[:count]]
    with pytest.raises(ValueError, match="at once need a core each"):
        lanes.run_lanes([work[0]] * (len(here) + 1))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent is gone")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_nothing_goes_on_when_the_measurement_is_stopped(tmp_path: Path, how: signal.Signals) -> None:
    """Would catch a training that goes on after Ctrl-C, or a kill, and slows down whatever is measured next."""
    code = (
        "import lanes, pathlib, sys\n"
        "lane = [lanes.Command([sys.executable, '-c', 'import time; time.sleep(600)'], pathlib.Path('out'))]\n"
        "lanes.run_lanes([lane], pinned=False)"
    )
    environment = {**os.environ, "PYTHONPATH": f"{FOLDER}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (children := psutil.Process(process.pid).children()) or "sleep" not in " ".join(children[0].cmdline()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(how)
    process.wait(60)
    psutil.wait_procs(children, timeout=60)
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)
