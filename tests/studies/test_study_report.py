"""The report of made-up studies: all their numbers, all their labels, and nothing from elsewhere."""

import csv
import html.parser
import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from made_up import made_up_losses, made_up_study

import rhapsode
from rhapsode.studies.directory import Study
from rhapsode.studies.plans import StudyRequest
from rhapsode.studies.report.chapters import chapters_of
from rhapsode.studies.report.figures import MOST_LINES, Line, dots, lines
from rhapsode.studies.report.markdown import one_line
from rhapsode.studies.report.page import write_report

SVG = "{http://www.w3.org/2000/svg}"
VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(html.parser.HTMLParser):
    """Tags must close in order; ids must be there once."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attributes: list) -> None:
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "data", "poster", "srcset"):
                self.links.append(value)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("studies")
    study = made_up_study(folder / "all", StudyRequest("all", scale=0.05))
    write_report(study, {}, {"machine": "a <b> & c"}, folder / "published")
    return study


def test_the_page_needs_nothing_else(everything: Study) -> None:
    text = (everything.path / "report.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    page.close()
    assert page.open == []
    assert len(set(page.ids)) == len(page.ids)
    assert all(link.startswith("#") for link in page.links)
    assert {link[1:] for link in page.links} <= set(page.ids)
    assert {"<script", "@import", "<link", "<iframe"}.isdisjoint(re.findall(r"<script|@import|<link|<iframe", text))
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))
    namespaces = set(re.findall(r"https?://[^\"'\s<]+", text))
    assert namespaces <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "a <b> & c" in page.text  # escaped, since the parser gives it back as text
    assert "little girl <named> Lily & her" in page.text


def test_both_forms_have_the_numbers_of_the_csv(everything: Study) -> None:
    """Each cell's final losses, rounded as the tables round, come out of the CSV again."""
    with (everything.path / "points.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    page = (everything.path / "report.html").read_text(encoding="utf-8")
    markdown = (everything.path / "report.md").read_text(encoding="utf-8")
    last = {(row["part"], row["setting"]): row for row in rows}
    assert len(last) == 4 + 4 + 4 + 1
    for (part, setting), row in last.items():
        cell = everything.plan.cells[row["cell"]]
        train, valid, seconds = made_up_losses(cell)
        assert (float(row["train_loss"]), float(row["valid_loss"])) == (train, valid)
        for number in (f"{train:.4f}", f"{valid:.4f}", f"{seconds:,.1f}", f"{int(row['sequences']):,}"):
            assert f"<td>{number}</td>" in page, (part, setting)
            assert f"| {number} |" in markdown, (part, setting)
    assert len(rows) == sum(
        len(everything.result(everything.plan.cells[name])["points"])  # type: ignore[index]
        for part in everything.plan.parts
        for setting in part.settings
        for name in setting.cells
    )


def test_the_course_figures_stand_beside_ours_with_their_caveat(everything: Study) -> None:
    markdown = (everything.path / "report.md").read_text(encoding="utf-8")
    for number in ("241.8", "124.2", "61.0", "39.7", "2.032871", "2.285386", "777.4"):
        assert f"| {number} |" in markdown
    assert markdown.count("losses on different texts cannot be compared") == 2


def test_completions_at_each_temperature(everything: Study) -> None:
    """Three that were drawn; at temperature 0 one, which three times would be."""
    markdown = (everything.path / "report.md").read_text(encoding="utf-8")
    assert markdown.count("- **Once upon a time there was a** little girl") == 1 + 3 + 3
    assert "rises at every step, from 0.225 (temperature 0) to 0.865 (temperature 0.8)" in markdown


def test_a_notebook_shows_what_the_report_shows(everything: Study) -> None:
    """Would catch texts taken for markup, and the bytes of a picture told as text."""
    chapter = chapters_of(everything)["temperature"]
    report = (everything.path / "report.md").read_text(encoding="utf-8")
    shown = [piece._repr_markdown_() for piece in (*chapter.tables, *chapter.completions)]
    assert len(shown) == 5
    assert all(piece in report for piece in shown)
    assert "<named>" not in "".join(shown)
    assert one_line("costs $5 or $6 | *really* [so] ~~no~~") == (r"costs \$5 or \$6 \| \*really\* \[so\] \~\~no\~\~")
    for figure in chapter.figures:
        png, size = figure._repr_png_()
        assert png == (everything.path / "figures" / f"{figure.name}.png").read_bytes()
        assert size == {"width": 700}
        assert len(repr(figure)) < 1_000


def test_published_form_is_markdown_with_its_pictures(everything: Study) -> None:
    folder = everything.path.parent / "published"
    markdown = (folder / "all.md").read_text(encoding="utf-8")
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", markdown)
    assert len(pictures) == 6
    assert all((folder / picture).is_file() and picture.endswith(".svg") for picture in pictures)
    assert sorted(path.suffix for path in folder.rglob("*") if path.is_file()) == [".md", *[".svg"] * 6]


def test_every_figure_has_title_labels_and_legend(everything: Study) -> None:
    figures = sorted((everything.path / "figures").glob("*.svg"))
    assert len(figures) == 6
    for figure in figures:
        texts = _texts(figure.read_text(encoding="utf-8"))
        assert "nats per token" in texts, figure
        assert {"sequences seen", "training sequences (logarithmic)"} & set(texts), figure
        assert (figure.with_suffix(".png")).read_bytes()[:4] == b"\x89PNG"
    for name in ("train", "valid"):
        texts = _texts((everything.path / "figures" / f"size-{name}.svg").read_text(encoding="utf-8"))
        assert [text for text in texts if text in ("64", "128", "256", "512")] == ["64", "128", "256", "512"]
        assert texts[-1] == "512" or "embed = hidden" in texts
        assert any(text.endswith("loss by model size") for text in texts)


def test_a_failed_cell_is_told_and_the_rest_is_shown(tmp_path: Path) -> None:
    study = made_up_study(tmp_path / "size", StudyRequest("size", scale=0.05))
    (study.cell_path(study.plan.cells["size-256"]) / "result.json").unlink()
    write_report(study, {"size-256": "the loss became nan at step 2"}, {}, None)
    markdown = (study.path / "report.md").read_text(encoding="utf-8")
    assert "1 of 4 cells failed" in markdown
    assert "the loss became nan at step 2" in markdown
    ends = [made_up_losses(study.plan.cells[name])[1] for name in ("size-64", "size-512")]
    assert f"from {ends[0]:.3f} (64) to {ends[1]:.3f} (512)" in markdown
    assert "\n| 256 |" not in markdown


def test_seeds_give_mean_and_spread(tmp_path: Path) -> None:
    """Seeds 0, 1, 2 end 0.001 apart: the mean is that of seed 1, the standard deviation 0.001."""
    request = StudyRequest("grid", vary=("hidden_dim=64,128", "activation=relu,tanh"), seeds=3)
    study = made_up_study(tmp_path / "grid", request)
    write_report(study, {}, {}, None)
    markdown = (study.path / "report.md").read_text(encoding="utf-8")
    cell = study.plan.cells[study.plan.parts[0].settings[0].cells[1]]
    assert f"| {made_up_losses(cell)[1]:.4f} ± 0.0010 |" in markdown
    assert "which is no more than the spread over seeds below the next" in markdown
    assert "by hidden_dim falls" in markdown
    assert "by activation is the same for all of them" in markdown


def test_the_full_scale_with_seeds_reads_right(tmp_path: Path) -> None:
    """Would catch texts that were written for a part of the scale and one seed."""
    study = made_up_study(tmp_path / "temperature", StudyRequest("temperature", scale=1.0, seeds=2, seed=4), 1.0)
    write_report(study, {}, {}, None)
    markdown = (study.path / "report.md").read_text(encoding="utf-8")
    assert "| scale | the full number of sequences |" in markdown
    assert "The texts below are by the model of seed 4." in markdown
    assert "At 250,112 sequences validation loss is 0.064 nats above training loss." in markdown
    (study.cell_path(study.plan.cells["temperature-large-seed4"]) / "result.json").unlink()
    write_report(study, {"temperature-large-seed4": "killed"}, {}, None)
    assert "The texts below" not in (study.path / "report.md").read_text(encoding="utf-8")


def test_a_result_of_another_plan_is_no_result(tmp_path: Path) -> None:
    """A marker that lies would put one study's numbers into another's report."""
    study = made_up_study(tmp_path / "size", StudyRequest("size", scale=0.05))
    cells = study.plan.cells
    stolen = (study.cell_path(cells["size-64"]) / "result.json").read_bytes()
    (study.cell_path(cells["size-512"]) / "result.json").write_bytes(stolen)
    assert study.result(cells["size-64"]) is not None
    assert study.result(cells["size-512"]) is None
    (study.cell_path(cells["size-64"]) / "result.json").write_bytes(stolen[: len(stolen) // 2])
    assert study.result(cells["size-64"]) is None


@pytest.mark.parametrize("given", [{"separator": "<|endoftext|>", "field": "text"}, {"field": "text"}, {}])
def test_a_study_that_an_earlier_version_began(given: dict[str, str], tmp_path: Path) -> None:
    """Before there were formats, separator and field had defaults in words. Would catch a KeyError where one of them is
    not there."""
    made_up_study(tmp_path / "size", StudyRequest("size", scale=0.05))
    file = tmp_path / "size" / "study.json"
    about = json.loads(file.read_text(encoding="utf-8"))
    for name in ("format", "separator", "field"):
        del about["request"][name]
    about["request"] |= given
    del about["sha256"]
    file.write_text(json.dumps(about), encoding="utf-8")
    assert Study.open(file.parent).request == StudyRequest("size", scale=0.05)


@pytest.mark.parametrize("other", [StudyRequest("size", scale=0.05, seed=1), StudyRequest("batch", scale=0.05)])
def test_check_misses_the_study_of_a_study_json(other: StudyRequest, tmp_path: Path) -> None:
    """Would catch a study.json of another study, intact in itself, whose cells are not those that lie there."""
    study = made_up_study(tmp_path / "size", StudyRequest("size", scale=0.05))
    made_up_study(tmp_path / "other", other)

    def problems() -> list[str]:
        return [file.problem for file in rhapsode.check(study.path) if file.problem and "of study.json" in file.problem]

    assert not problems()
    shutil.copy(tmp_path / "other" / "study.json", study.path)
    assert len(problems()) == len(study.plan.cells)


def test_lines_are_told_apart_without_colour() -> None:
    figure = lines("x", "T", "a", "b", [Line(str(i), [1, 2], [i, i + 1]) for i in range(MOST_LINES)])
    dashes = re.findall(r"stroke-dasharray: ([^;\"]+)", figure.svg)
    assert len(set(dashes)) == MOST_LINES - 1  # and one line is solid
    with pytest.raises(ValueError, match="1 to 8 lines"):
        lines("x", "T", "a", "b", [Line(str(i), [1], [1]) for i in range(MOST_LINES + 1)])


def test_figures_are_the_same_each_time_and_described() -> None:
    made = [dots("x", "Title & more", "nats", [Line("valid", [], [1.5, 2.5])], ["one", "two"]) for _ in range(2)]
    assert made[0].svg == made[1].svg
    root = ElementTree.fromstring(made[0].svg)
    assert root.get("role") == "img"
    assert root.find(f"{SVG}title").text == "Title & more"  # type: ignore[union-attr]
    assert {"one", "two", "valid", "nats", "Title & more"} <= set(_texts(made[0].svg))
    assert "one 1.500; two 2.500" in made[0].alt


def _texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg.encode()).iter(f"{SVG}text")]


NASTY = ["a|b", "a b", "`c`", "$$", "$x^$", "<i>d", "[e](f)", "&lt;", "\x1b[31mg", "*h*", "~~i~~", "_j"]


def test_what_a_user_wrote_is_shown_as_it_is(tmp_path: Path) -> None:
    """Would catch a `|` that makes another column, `$` that breaks a figure, HTML and escape sequences that are obeyed,
    and two settings whose names look alike trained as one."""
    study = made_up_study(tmp_path / "s", StudyRequest("grid", vary=("prompt=" + ",".join(NASTY),), valid_stories=7))
    assert len(study.plan.cells) == len(NASTY)
    study.about["data"]["description"] = "x|`y`$z$\udcff<b>.txt"
    study.about["command"] = "rhapsode study --vary 'prompt=```'"
    write_report(study, {}, {}, None)
    text = (study.path / "report.md").read_text(encoding="utf-8")
    assert "\n````\nrhapsode study --vary 'prompt=```'\n````\n" in text
    rows = [line for line in text.splitlines() if line.startswith("| prompt ")]
    assert len(rows) == len(NASTY)
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {9}
    prose = text.replace("\n````\nrhapsode study --vary 'prompt=```'\n````\n", "")
    assert not re.search(r"(?<!\\)[$`~<&\[]", re.sub(r"!\[.*?\]\(figures/[^)]*\)|\*\*", "", prose))
    page = Page()
    page.feed((study.path / "report.html").read_text(encoding="utf-8"))
    for label in NASTY:
        assert f"prompt {label}".replace("\x1b", r"\x1b") in page.text
    assert r"x|`y`$z$\udcff<b>.txt" in page.text
    assert "\x1b" not in page.text
    assert page.open == []
    drawn = ElementTree.parse(study.path / "figures" / "grid-final.svg")
    shown = {"".join(element.itertext()).strip() for element in drawn.iter(f"{SVG}text")}
    assert {f"prompt {label}".replace("\x1b", r"\x1b") for label in NASTY} <= shown
