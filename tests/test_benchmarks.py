"""The benchmarks: all can be imported, rivals compute what we compute, and a run counts for its recipe alone."""

import importlib
import itertools
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from rhapsode.bench import Workload, batches
from rhapsode.kernels.copying import copy_cross_entropy
from rhapsode.model import ModelConfig
from rhapsode.recipe import Recipe
from rhapsode.recipe.changes import merge
from rhapsode.recipe.presets import PRESETS

SMALL = Workload("small", ModelConfig(23, embed_dim=5, hidden_dim=7, key_dim=3, value_dim=4), 2, length=11)
FOLDER = Path(__file__).parents[1] / "benchmarks"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="needs benchmarks/ beside the package")


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))


@pytest.mark.parametrize("name", sorted(file.stem for file in FOLDER.glob("*.py")))
def test_imports(name: str) -> None:
    """Would catch a name that has moved in the package: a benchmark of an hour is not run after each change."""
    assert importlib.import_module(name).__doc__


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_rivals_have_our_loss_and_gradients(batch_size: int, activation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a rival that is fast because it computes something else; float64, all sizes different."""
    race = importlib.import_module("race")
    monkeypatch.setattr(race, "TOLERANCE", 1e-11)
    config = ModelConfig(23, embed_dim=5, hidden_dim=7, key_dim=3, value_dim=4, activation=activation)
    models = {name: model.double() for name, model in race.contenders(config).items()}
    assert list(models) == ["rhapsode", "stepwise", "nn.RNN"]
    tokens, targets = batches(Workload("", config, batch_size, length=6))[0]
    assert race.check_agreement(models, tokens, targets) > 0


def test_a_rival_with_wrong_numbers_is_named() -> None:
    """A speed-up on wrong numbers must not be reported."""
    race = importlib.import_module("race")
    models = race.contenders(SMALL.config)
    with torch.no_grad():
        models["nn.RNN"].out.weight[0, 0] += 0.5
    with pytest.raises(ValueError, match=r"nn\.RNN: .* differs from ours by"):
        race.check_agreement(models, *batches(SMALL)[0])


def test_turns_are_taken_and_the_killed_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every contender has a time in every round; one whose process ends is named and does not stop the others."""
    race = importlib.import_module("race")
    monkeypatch.setattr(race, "BURST_SECONDS", 1e-5)
    turns = race.take_turns(SMALL, ["nobody", "rhapsode"], seconds=0.0)
    assert turns.peak_megabytes["nobody"] is None
    assert turns.peak_megabytes["rhapsode"] is not None
    assert len(turns.rounds) + turns.left_out == race.FEWEST_ROUNDS
    assert all(times.keys() == {"rhapsode"} and times["rhapsode"] > 0 for times in turns.rounds)


def test_the_figure_of_growth_is_drawn_from_its_numbers(tmp_path: Path) -> None:
    """The figure's code runs on the form of data that the measurement writes."""
    pytest.importorskip("matplotlib")
    training = importlib.import_module("training")
    growth = {
        axis: [
            {"size": n, "seconds": dict.fromkeys(training.STYLES, n / 9), "peak_megabytes": {"rhapsode": n}}
            for n in sizes
        ]
        for axis, sizes in training.AXES.items()
    }
    training.plot(growth, tmp_path / "figures" / "growth.svg")
    assert (tmp_path / "figures" / "growth.svg").read_text().count("<svg") == 1


def test_the_interval_of_a_median_holds_it_often_enough() -> None:
    """Oracle: all 2^n ways in which n values can lie below or above the median; would catch a rank too far inside."""
    neighbour = importlib.import_module("neighbour")
    assert neighbour.median_interval([3.0, 1.0, 2.0]) == (None, None)
    for count in (6, 7, 9, 12):
        low, high = neighbour.median_interval([float(n) for n in range(count, 0, -1)])
        below = [sum(way) for way in itertools.product((0, 1), repeat=count)]
        coverage = [statistics.mean(rank <= n <= count - rank for n in below) for rank in range(count)]
        assert coverage[int(low)] >= 0.95 > coverage[int(low) + 1]
        assert low + high == count + 1


def test_a_pace_is_of_the_marks_after_a_moment() -> None:
    """Would catch a first piece that is counted without its time, and one from before the neighbour came."""
    pace = importlib.import_module("pace").Pace([(10.0, 5.0), (11.0, 7.0), (12.0, 9.0), (16.0, 13.0)], 0.0)
    assert pace.per_second() == (13 - 5) / (16 - 10)
    assert pace.per_second(11.5) == (13 - 9) / (16 - 12)
    assert pace.per_second(15.0) == (13 - 9) / (16 - 12)  # one piece alone: the one that was at work


def test_the_bars_of_the_neighbour() -> None:
    """Would catch a bar that nothing misses: 80% beside the neighbour, 3% or an interval that holds 1 alone."""
    neighbour = importlib.import_module("neighbour")

    def keeps(idle: list[float], beside: list[float]) -> dict[str, bool]:
        alone, near = (neighbour.ratio(each, [1.0] * len(each)) for each in (idle, beside))
        return neighbour.keeps_pace({"idle_chosen_over_all": alone, "beside_chosen_over_one": near})

    assert keeps([0.98] * 9, [0.81] * 9) == {"idle": True, "beside": True}
    assert keeps([0.96] * 9, [0.79] * 9) == {"idle": False, "beside": False}
    assert keeps([0.8, 0.81, 0.82, 0.83, 0.84, 0.85, 0.86, 1.01, 1.02], [1.0])["idle"]


@pytest.mark.slow
def test_works_are_done_in_turns(capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch a work that no longer runs: the measurement of twelve minutes is not made after each change."""
    neighbour = importlib.import_module("neighbour")
    result = neighbour.measure(["train", "generate", "evaluate", "study"], 1, 1, "", quick=True)
    assert [row["work"] for row in result["works"]] == ["train", "generate", "evaluate", "study"]
    for row in result["works"]:
        assert all(pace > 0 for how in ("idle", "beside") for pace in row[how].values())
    assert result["works"][0]["after_it_comes_over_one"] > 0
    assert neighbour.before("no such commit", 1, 1) is None
    assert "not in this checkout's history" in capsys.readouterr().err
    assert neighbour.as_table(result).row_count == 8


def test_recipes_are_compared_by_what_they_mean() -> None:
    """Would catch hours that are run again for a default written out, and a result that is kept for another recipe."""
    same_recipe = importlib.import_module("quality").same_recipe
    preset = PRESETS["coffee"]
    assert same_recipe(preset, merge(preset, {"model": {"num_heads": 1, "dropout": 0.0}}))
    assert not same_recipe(preset, merge(preset, {"model": {"num_layers": 1}}))
    assert not same_recipe(preset, merge(preset, {"batch": {"window": 64}}))
    assert not same_recipe({**preset, "model": {**preset["model"], "a field of old": 3}}, preset)
    assert same_recipe({"dropout": 0.1}, {"dropout": 0.1})
    assert not same_recipe({"dropout": 0.1}, {"dropout": 0.2})
    assert not same_recipe({"dropout": 0.1}, preset)


@pytest.mark.parametrize("often", [False, True])
def test_every_change_is_one_of_the_recipe(often: bool) -> None:
    """Would catch a field that has another name by now, after the machine was waited for, and a change of nothing."""
    changes = importlib.import_module("recipe_changes")
    for preset in PRESETS.values():
        found = changes.changes_of(preset, often)
        assert next(iter(found)) == changes.RECIPE
        for name, change in found.items():
            recipe = Recipe.from_sections(preset, 300).with_changes(**change.sections)
            assert (recipe != Recipe.from_sections(preset, 300)) == bool(change.sections), name
            with change.patch():
                pass
    assert "no feed-forward part" not in changes.changes_of(PRESETS["minute"], often=False)


def test_copies_within_a_story_are_those_of_one_story_at_a_time() -> None:
    """The copies of a window of two stories, kept apart, beside the package's own for each story. Would catch a mask
    that is off by one."""
    changes = importlib.import_module("recipe_changes")
    generator = torch.Generator().manual_seed(0)
    ids = torch.tensor([[5, 7, 5, 1, 7, 5, 7, 7]])  # 1 ends a story
    targets = torch.tensor([[7, 5, 1, 7, 5, 7, 7, 5]])
    x, q, k = (torch.randn(1, 8, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    weight, gate = torch.randn(9, 4, generator=generator, dtype=torch.float64), torch.zeros(1, 8, dtype=torch.float64)
    whole = changes.within_stories(x, weight, None, q, k, gate, ids, targets, "none")
    parts = []
    for part, keys in ((slice(0, 3), slice(0, 3)), (slice(4, 8), slice(4, 8))):
        given = (q[:, part], k[:, keys], gate[:, part], ids[:, keys], targets[:, part], "none")
        parts.append(copy_cross_entropy(x[:, part], weight, None, *given))
    assert torch.allclose(torch.cat((whole[:, :3], whole[:, 4:]), 1), torch.cat(parts, 1))
    cut = changes.within_stories(x[:, 2:], weight, None, q[:, 2:], k, gate[:, 2:], ids, targets[:, 2:], "none")
    assert torch.allclose(cut, whole[:, 2:])  # of a text that was begun before
    alone = -(x[:, 3] @ weight.T).log_softmax(-1)[:, 7] + math.log(2)  # a story's first token can only be known
    assert torch.allclose(whole[:, 3], alone)


def test_a_run_counts_for_its_recipe_seed_and_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a row of the table that an earlier recipe, or half of the time, made, and a change that gets as many
    tokens as the recipe though its steps take longer."""
    ablations, report = importlib.import_module("ablations"), importlib.import_module("report")
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    preset = PRESETS["coffee"]
    change = ablations.changes_of(preset, False)["no feed-forward part"]
    recipe = merge(preset, change.sections)
    run: dict[str, Any] = {"name": "no feed-forward part", "seed": 0, "tokens": 9, "recipe": recipe}
    assert ablations.is_run(run, "no feed-forward part", 0, recipe, 9)
    assert not ablations.is_run(run, "no feed-forward part", 1, recipe, 9)
    assert not ablations.is_run(run, "no feed-forward part", 0, recipe, 8)
    assert not ablations.is_run(run, "no feed-forward part", 0, preset, 9)
    with pytest.raises(ValueError, match=r"parts\.py --preset coffee --threads 1 --write"):
        ablations.tokens_of("coffee", "no feed-forward part", change)
    report.write("parts", {"coffee, 1 threads": {"changes": {"no feed-forward part": {"time": 0.8}}}})
    assert ablations.tokens_of("coffee", "no feed-forward part", change) == 2_500_000
    assert ablations.tokens_of("coffee", ablations.RECIPE, ablations.Change({})) == 2_000_000


@pytest.mark.slow
def test_an_ablation_trains_and_is_kept(
    tmp_path: Path, small: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch two hours that end in an error; a patch that does not reach the model; a run that is made twice."""
    ablations = importlib.import_module("ablations")
    monkeypatch.setenv("RHAPSODE_CACHE", str(tmp_path / "cache"))
    files = {"train": str(small.file), "valid": str(small.file)}
    recipe = merge(PRESETS["minute"], {"model": {"vocab_size": 300, "embed_dim": 8, "hidden_dim": 8}})
    recipe = merge(recipe, {"batch": {"window": 16, "batch_size": 2}})
    names = (ablations.RECIPE, "copies within a story alone", "names with the space before them", "no copy head")
    runs = [ablations.trained(files, recipe, False, {"name": name, "seed": 0, "tokens": 640}) for name in names]
    assert [run["steps"] for run in runs] == [20] * 4
    values = [run["value"] for run in runs]
    assert all(0 < value < 9 for value in values)
    assert values[1] != values[0]
    ablations.print_table(runs)
    assert capsys.readouterr().out.count("\n| ") == 4


@pytest.mark.parametrize("name", sorted(file.stem for file in FOLDER.glob("results/quality-*.json")))
def test_the_table_of_the_results_that_are_committed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch an hour of measuring that ends in an error, for a field that an older run lacks."""
    quality, report = importlib.import_module("quality"), importlib.import_module("report")
    results = report.read(name)
    quality.print_table(results)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| rhapsode")]
    assert len(rows) == 1  # all seeds of one recipe
    assert "| 3 |" in rows[0]


def test_the_figure_shows_one_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a figure of three curves and three labels for everyone, over one another."""
    pytest.importorskip("matplotlib")
    quality = importlib.import_module("quality")
    lines = []
    monkeypatch.setattr(quality, "save_figure", lambda figure, file: lines.extend(figure.axes[0].lines))
    curve = [[60.0 * i, 2.0 - i / 10] for i in range(1, 5)]
    runs = [
        {"name": who, "peak": None, "seed": seed, "value": 1.6, "curve": curve}
        for who in ("rhapsode", "course")
        for seed in (0, 1, 2)
    ]
    quality.plot({"runs": runs, "unit": "bits per byte", "minutes": 4.0}, tmp_path / "figure.svg")
    assert len(lines) == 2
