"""Plans: what is varied, what is fixed, what is shared, what is refused before anything is read."""

import pytest

from rhapsode.studies.plans import StudyRequest, plan_of


def test_the_course_studies_have_the_course_settings() -> None:
    """A wrong number here would make every report compare something else with the course's figures."""
    plan = plan_of(StudyRequest("all"))
    size, batch, sequences, temperature = plan.parts
    widths = [plan.cells[setting.cells[0]].sections["model"] for setting in size.settings]
    assert [(model["embed_dim"], model["hidden_dim"]) for model in widths] == [(n, n) for n in (64, 128, 256, 512)]
    assert {(model["key_dim"], model["value_dim"], model["kind"]) for model in widths} == {(128, 128, "plain")}
    sizes = [plan.cells[setting.cells[0]].sections["batch"]["batch_size"] for setting in batch.settings]
    assert sizes == [32, 64, 128, 256]
    counts = [plan.cells[setting.cells[0]].sections["train"]["sequences"] for setting in sequences.settings]
    assert counts == [10_000, 20_000, 50_000, 100_000]
    (large,) = (plan.cells[setting.cells[0]] for setting in temperature.settings)
    model = large.sections["model"]
    assert [model[key] for key in ("embed_dim", "hidden_dim", "key_dim", "value_dim")] == [512, 512, 256, 256]
    assert (large.sections["batch"]["batch_size"], large.sections["train"]["sequences"]) == (128, 250_000)
    assert [cell.name for cell in plan.cells.values() if cell.completions] == [large.name]
    assert {cell.sections["train"]["sequences"] for cell in plan.cells.values()} == {*counts, 250_000}


def test_equal_cells_are_one_cell() -> None:
    """Width 128, batch 128 and 50,000 sequences are one training: twice would be time lost."""
    plan = plan_of(StudyRequest("all"))
    shared = {plan.parts[0].settings[1].cells, plan.parts[1].settings[2].cells, plan.parts[2].settings[2].cells}
    assert shared == {("size-128",)}
    assert len(plan.cells) == 4 + 3 + 3 + 1


def test_scale_shrinks_all_sequences_in_proportion() -> None:
    plan = plan_of(StudyRequest("all"), 0.05)
    counts = sorted({cell.sections["train"]["sequences"] for cell in plan.cells.values()})
    assert counts == [500, 1_000, 2_500, 5_000, 12_500]
    assert [setting.label for setting in plan.parts[2].settings] == ["500", "1,000", "2,500", "5,000"]
    assert plan.cells == plan_of(StudyRequest("all", scale=0.05), 0.05).cells


def test_a_grid_has_all_combinations_and_all_seeds() -> None:
    request = StudyRequest("grid", vary=("hidden_dim=64,128", "activation=relu,tanh"), seeds=3, seed=5)
    (part,) = plan_of(request).parts
    assert part.fields == ("hidden_dim", "activation")
    assert [setting.values for setting in part.settings] == [
        {"hidden_dim": width, "activation": activation} for width in (64, 128) for activation in ("relu", "tanh")
    ]
    cells = plan_of(request).cells
    assert len(cells) == 12
    assert [cells[name].seed for name in part.settings[0].cells] == [5, 6, 7]


def test_a_varied_budget_takes_the_place_of_the_recipe_s() -> None:
    plan = plan_of(StudyRequest("grid", vary=("tokens=1000,2000",)), 0.5)
    assert [cell.sections["train"]["tokens"] for cell in plan.cells.values()] == [500, 1_000]
    assert all("sequences" not in cell.sections["train"] for cell in plan.cells.values())


def test_validation_reads_what_training_reads_or_whole_stories() -> None:
    """Cells whose batches differ in form must be scored on the same tokens, or their losses cannot be compared."""
    assert plan_of(StudyRequest("size")).valid_tokens == 128
    assert plan_of(StudyRequest("grid", vary=("window=15,31",))).valid_tokens == 32
    assert plan_of(StudyRequest("grid", vary=("form=first,stream",))).valid_tokens is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"study": "grid", "vary": ("hiden_dim=1,2",)}, "unknown field 'hiden_dim'"),
        ({"study": "grid", "vary": ("hidden_dim=1,x",)}, "hidden_dim must be a whole number, got 'x'"),
        ({"study": "grid", "vary": ("hidden_dim=0,1",)}, "hidden_dim must be at least 1, got 0"),
        ({"study": "grid", "vary": ("hidden_dim=8,8",)}, "a value appears twice"),
        ({"study": "grid", "vary": ("hidden_dim=8", "hidden_dim=9")}, "given twice"),
        ({"study": "grid", "vary": ("hidden_dim",)}, "not of the form"),
        ({"study": "grid", "vary": ("seed=1,2",)}, "--seeds"),
        ({"study": "grid", "vary": ("tokens=1", "epochs=1")}, "vary only one budget"),
        (
            {"study": "grid", "vary": ("hidden_dim=8",), "assignments": ("hidden_dim=9",)},
            "--set hidden_dim: the study grid",
        ),
        ({"study": "size", "assignments": ("embed_dim=9",)}, "--set embed_dim: the study size"),
        ({"study": "sequences", "assignments": ("minutes=9",)}, "--scale changes the sequences"),
        ({"study": "grid"}, "at least one --vary"),
        ({"study": "size", "vary": ("seed=1",)}, "--vary works only with"),
        ({"study": "size", "scale": 0.0}, "--scale must be greater than 0"),
        ({"study": "size", "scale": 1.0, "minutes": 1.0}, "one of --minutes and --scale"),
        ({"study": "size", "seeds": 0}, "--seeds must be >= 1"),
        ({"study": "sizes"}, "a study is one of"),
    ],
)
def test_wrong_requests_are_told_in_one_line(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        plan_of(StudyRequest(**arguments))
    assert "\n" not in str(caught.value)
