"""The study of what is kept track of: a fair comparison, right shares, sentences that follow them."""

import doctest
from pathlib import Path
from typing import Any

import pytest
import torch
from made_up import made_up_result, made_up_study
from torch import Tensor, nn

from rhapsode.cells import GatedCell
from rhapsode.model import ModelConfig, build_model
from rhapsode.run import Run
from rhapsode.studies import cell as cell_process
from rhapsode.studies import whole
from rhapsode.studies.directory import Study
from rhapsode.studies.plans import StudyRequest, plan_of
from rhapsode.studies.report import tracking as report
from rhapsode.studies.report.chapters import chapters_of
from rhapsode.studies.report.page import write_report
from rhapsode.studies.tasks import TASKS
from rhapsode.studies.tracking import COMPARED, LENGTH, TRACKED, answers_right
from rhapsode.tokens import BatchConfig

RIGHT = {"Elman": (1.0, 0.99), "gated": (0.95, 0.52), "attention alone": (0.6, 0.5)}  # as in training, and beyond


def test_the_three_have_as_many_parameters_and_steps() -> None:
    """Would catch a comparison that size or another recipe decides: parameters are equal within 1%."""
    plan = plan_of(StudyRequest("tracking"))
    assert [part.name for part in plan.parts] == list(TRACKED)
    for part in plan.parts:
        cells = [plan.cells[setting.cells[0]] for setting in part.settings]
        assert [setting.label for setting in part.settings] == list(COMPARED)
        assert {cell.task for cell in cells} == {part.name}
        for section in ("optimizer", "train", "batch"):
            assert len({str(cell.sections[section]) for cell in cells}) == 1
        models = [build_model(ModelConfig(**cell.sections["model"], vocab_size=9)) for cell in cells]
        counts = [sum(p.numel() for p in model.parameters()) for model in models]
        assert max(counts) <= 1.01 * min(counts)
        assert [cell.sections["model"]["cell"] for cell in cells] == ["elman", "gated", "none"]
        assert [cell.sections["model"]["attention"] for cell in cells] == ["none", "none", "all"]
    assert len(plan.cells) == 3 * len(TRACKED)


def test_tasks_do_not_change_the_cells_of_other_studies() -> None:
    """Would catch finished cells of studies begun before that are trained again, since their identity is another."""
    assert all(cell.task == "" for cell in plan_of(StudyRequest("all")).cells.values())


def test_it_takes_no_data() -> None:
    with pytest.raises(ValueError, match="tracking makes its own data"):
        StudyRequest("tracking", data=("stories.txt",))
    with pytest.raises(ValueError, match="--set cell: the study parity sets this field itself"):
        plan_of(StudyRequest("tracking", assignments=("cell=gated",)))


class Knows(nn.Module):
    """Answers a task as it is asked, up to a number of steps; then always 0."""

    def __init__(self, task: str, steps: int) -> None:
        super().__init__()
        self.task, self.steps, self.nothing = TASKS[task], steps, nn.Parameter(torch.zeros(1))

    def forward(self, tokens: Tensor) -> tuple[Tensor, None]:
        answers = torch.from_numpy(self.task.answers(tokens.numpy()))
        answers[:, self.steps :] = 0
        return nn.functional.one_hot(answers, self.task.vocab_size).float(), None


@pytest.mark.parametrize("task", TASKS)
def test_who_knows_is_right_and_who_guesses_is_right_by_chance(task: str) -> None:
    """Would catch shares over the wrong steps, and answers of one step compared with those of the next."""
    model: Any = Knows(task, 32)
    stretches = answers_right(model, task, seed=0)["stretches"]
    assert [(each["first"], each["last"]) for each in stretches[:3]] == [(1, 8), (9, 16), (17, 32)]
    assert [each["right"] for each in stretches[:3]] == [1.0] * 3
    for each in stretches[3:]:
        assert each["right"] == pytest.approx(1 / TASKS[task].outcomes, abs=0.02)
        assert each["chance"] == 1 / TASKS[task].outcomes


def test_a_gated_entry_only_ever_comes_nearer_to_another_past() -> None:
    """Why it cannot count: after the same inputs, two pasts differ by less, and never the other way round."""
    torch.manual_seed(0)
    cell = GatedCell(5, 6).double()
    one, other = torch.randn(2, 1, 6, dtype=torch.float64)
    for _ in range(10):
        input = 3 * torch.randn(1, 5, dtype=torch.float64)
        before = one - other
        one, other = cell(input, one), cell(input, other)
        assert ((one - other).sign() == before.sign()).all()
        assert ((one - other).abs() < before.abs()).all()


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A tracking study whose shares are RIGHT, with two seeds one per cent apart."""
    study = made_up_study(tmp_path_factory.mktemp("studies") / "tracking", StudyRequest("tracking", seeds=2))
    for part in study.plan.parts:
        for setting in part.settings:
            near, far = RIGHT[setting.label]
            for seed, name in enumerate(setting.cells):
                shares = {(9, 16): near, (17, 128): (near + far) / 2, (129, 256): far}
                stretches = [
                    {"first": first, "last": last, "right": share - 0.01 * seed, "chance": 0.5}
                    for (first, last), share in shares.items()
                ]
                result = made_up_result(study.plan.cells[name], 1.0, 1.1, 2.0)
                study.finish(study.plan.cells[name], result | {"tracking": {"stretches": stretches, "trained": LENGTH}})
    return study


def test_the_sentences_follow_the_shares(made_up: Study) -> None:
    """Would catch a verdict that says the same whatever was measured."""
    assert doctest.testmod(report) == (0, 2)
    chapter = chapters_of(made_up)["boxes"]
    assert chapter.sentences == [
        "As far as training goes, after 9 to 16 steps, Elman is right 99.5 ± 0.7% of the time, gated 94.5 ± 0.7%,"
        " attention alone 59.5 ± 0.7%, a guesser 50.0%.",
        "Beyond, after 129 to 256 steps, Elman is right 98.5 ± 0.7% of the time, gated 51.5 ± 0.7%, attention alone"
        " 49.5 ± 0.7%, a guesser 50.0%.",
        "Elman keeps track beyond the lengths of training.",
        "Gated keeps track over the lengths of training alone.",
        "Attention alone does not learn to keep track.",
    ]
    references = chapters_of(made_up)["references"].sentences
    assert len(references) == 2
    assert "129 to 256 words after it was told" in references[1]


def test_the_report_shows_every_share_and_where_training_ended(made_up: Study) -> None:
    write_report(made_up, {}, {}, None)
    page = (made_up.path / "report.md").read_text(encoding="utf-8")
    assert "| Elman | 99.5 ± 0.7% | 99.0 ± 0.7% | 98.5 ± 0.7% | 1.1000" in page
    assert "| in boxes | learning_rate 0.01, sequences" in page
    figure = (made_up.path / "figures" / "parity-right.svg").read_text(encoding="utf-8")
    for text in ("attention alone", "a guesser", "longest in training"):
        assert text in figure


def test_cells_are_trained_asked_and_left_alone_once_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Would catch a cell of a task that reads the study's text, and one of references that is asked about a task."""
    monkeypatch.setenv("RHAPSODE_CACHE", str(tmp_path_factory.getbasetemp() / "tracking-cache"))
    sizes = ("embed_dim=8", "feed_forward=1", "window=12", "batch_size=4", "validations=2", "warmup_steps=1")
    request = StudyRequest("tracking", vocab_size=300, assignments=sizes, scale=1e-4, valid_stories=2)
    study = whole._begin(request, tmp_path / "study", 1, "cpu")
    names = ["parity-Elman", "boxes-attention-alone", "references-gated"]
    for name in names:
        cell = study.plan.cells[name]
        assert cell_process.run_cell(study, cell, 1) == "budget"
        result = study.result(cell)
        assert result is not None
        assert [point["step"] for point in result["points"]][-1] == -(-cell.sections["train"]["sequences"] // 4)
        found = result["tracking"]
        assert all(0 <= each["right"] <= 1 for each in found["stretches"])
        run = Run.open(study.cell_path(cell))
        if cell.task in TASKS:
            assert run.model_config.vocab_size == TASKS[cell.task].vocab_size
            assert found["trained"] == 12 == run.config("batch", BatchConfig).window
            assert found["stretches"][-1]["last"] == 256
        else:
            assert run.model_config.vocab_size == study.about["vocab_size"]
            assert 0 < found["trained"] < 12
    assert [cell.name for cell in study.plan.cells.values() if study.result(cell)] == names
