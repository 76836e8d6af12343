"""The report of a study: one page of HTML that needs nothing else, the same in Markdown, and a CSV of every point.

Both templates show the same chapters; all numbers in them come from the cells' results.
"""

import csv
import io
import re
from pathlib import Path
from typing import Any

from rhapsode.files import write_text
from rhapsode.studies.directory import Study, devices_of
from rhapsode.studies.plans import TITLES, Part, value_text
from rhapsode.studies.report import sentences
from rhapsode.studies.report.chapters import Table, chapters_of
from rhapsode.studies.report.markdown import markdown_table, one_line


def write_report(study: Study, failed: dict[str, str], facts: dict[str, str], publish: Path | None) -> Path:
    """Writes report.html, report.md, points.csv and figures/ into the study; returns the page's path.

    facts: what is to be told of machine, versions and commit. publish: a folder that gets NAME.md and NAME/*.svg
    as well, NAME being that of the study's directory. Raises ValueError where matplotlib or jinja2 is missing.
    """
    chapters = list(chapters_of(study).values())
    for chapter in chapters:
        for figure in chapter.figures:
            figure.save(study.path / "figures")
    write_text(study.path / "points.csv", points_csv(study))
    settings = settings_table(study, facts)
    about = {"study": study, "chapters": chapters, "settings": settings, "failed": failed}
    about["fence"] = "`" * max(3, 1 + max(map(len, re.findall("`+", study.about["command"])), default=0))
    about |= {"settings_table": markdown_table(settings.header, settings.rows)}
    about |= {"command": study.about["command"], "title": title_of(study), "reading": how_to_read(study)}
    write_text(study.path / "report.md", _render("report.md.jinja", about | {"figures": "figures"}))
    write_text(study.path / "report.html", _render("report.html.jinja", about))
    study.seal_report()
    if publish is not None:
        name = study.path.resolve().name
        publish.mkdir(parents=True, exist_ok=True)
        for chapter in chapters:
            for figure in chapter.figures:
                (publish / name).mkdir(exist_ok=True)
                write_text(publish / name / f"{figure.name}.svg", figure.svg)
        write_text(publish / f"{name}.md", _render("report.md.jinja", about | {"figures": name}))
    return study.path / "report.html"


def check_extras() -> None:
    """Raises ValueError with one line where the packages of the report are missing."""
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ValueError(f"a study's report needs {error.name}: pip install 'rhapsode[study]'") from None


def _render(template: str, about: dict[str, Any]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    html = ".html" in template
    environment = Environment(
        loader=PackageLoader("rhapsode.studies.report"), autoescape=html, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["one_line"] = one_line
    text = environment.get_template(template).render(about).rstrip() + "\n"
    return text.encode("utf-8", "backslashreplace").decode()  # a file's name may hold bytes that are no text


def title_of(study: Study) -> str:
    """The headline of the page."""
    name = study.request.study
    if name == "all":
        return "The course's studies"
    if name == "grid":
        return "Study: " + " by ".join(study.plan.parts[0].fields)
    return f"Study: {TITLES[name].lower()}"


def how_to_read(study: Study) -> list[str]:
    """How to read the numbers, in sentences."""
    if study.request.study == "tracking":
        return [
            "A guesser is right by chance alone; answers are those of the last checkpoint.",
            "Losses are in nats per answer, in the references' part per token.",
            "Seconds count training only, not validation and start-up.",
            sentences.one_seed(study.request.seeds),
        ]
    validations = {cell.sections["train"]["validations"] for cell in study.plan.cells.values()}
    count = validations.pop() if len(validations) == 1 else None
    share = "tenth of the run" if count == 10 else f"1/{count} of the run" if count else "stretch of the run"
    return [
        "Losses are in nats per token.",
        "Training loss is the mean over all tokens since the validation before; the final one is over the last"
        f" {share}.",
        f"Validation loss is {validated_on(study)}.",
        "Seconds count training only, not validation and start-up.",
        sentences.one_seed(study.request.seeds),
    ]


def validated_on(study: Study) -> str:
    """What the validation loss is a mean over."""
    count = study.about["valid_sequences"]
    which = "all" if count == study.about["data"]["valid_stories_there"] else "a seeded sample of"
    stories = f"{which} {count:,} validation stories"
    length = study.plan.valid_tokens
    if length is None:
        return f"the mean over every token of {stories}, each story from a fresh state"
    return (
        f"the mean over the first {length} tokens of {stories}, of which all but the first are predicted, just as in"
        " training, each story from a fresh state"
    )


def points_csv(study: Study) -> str:
    """Every point of every finished cell, once for each part that it belongs to, with all digits."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    keys = ("step", "sequences", "tokens", "seconds", "train_loss", "valid_loss")
    writer.writerow(["part", "setting", "cell", "seed", *keys])
    for part in study.plan.parts:
        for setting in part.settings:
            for name in setting.cells:
                cell = study.plan.cells[name]
                for point in (study.result(cell) or {"points": []})["points"]:
                    writer.writerow([part.name, setting.label, name, cell.seed, *(repr(point[key]) for key in keys)])
    return stream.getvalue()


def settings_table(study: Study, facts: dict[str, str]) -> Table:
    """What the study was run with, and on."""
    about, request = study.about, study.request
    first = next(iter(study.plan.cells.values())).sections
    varied = {name for part in study.plan.parts for name in part.fields}
    everywhere = [cell.sections for cell in study.plan.cells.values()]
    constants = ", ".join(
        f"{name} {value_text(value)}"
        for section in ("model", "optimizer", "train", "batch")
        for name, value in first[section].items()
        if name not in varied | {"prompt", "seed"} and value != ""
        if all(sections[section].get(name) == value for sections in everywhere)
    )
    data = about["data"]
    valid = f"{data['valid_stories_there']:,} stories, {about['valid_sequences']:,} scored"
    source = f"{data['description']} ({data['num_stories']:,} stories)"
    tracks = request.study == "tracking"
    if tracks:
        source = f"for each task, sequences drawn anew; for references, {source}"
    results = study.results()
    used = sorted({result["threads"] for result in results} | {result["threads_begun"] for result in results})
    rows = [
        ["training data", source],
        ["validation data", f"{data['valid_description']} ({valid})"],
        ["tokenizer", f"{about['tokenizer_kind']}, {about['vocab_size']:,} tokens"],
        ["the same in all cells", constants],
        *([f"in {part.name}", _common_fields(study, part)] for part in study.plan.parts if tracks),
        ["scale", _scale(study)],
        ["seeds", f"{request.seeds}, starting at {request.seed}"],
        ["cells", f"{len(results)} of {len(study.plan.cells)} finished, {_at_once(about)}"],
        ["device", ", ".join(sorted({name for result in results for name in devices_of(result)})) or study.device],
        ["threads per cell", ", ".join(map(str, used)) or "-"],
        *([name, value] for name, value in facts.items()),
    ]
    return Table("Settings", ("what", "value"), rows)


def _at_once(about: dict[str, Any]) -> str:
    if about.get("together"):
        return f"those of one shape side by side, at most {about['jobs']} such groups at once: seconds are of a group"
    return f"at most {about['jobs']} at once"


def _common_fields(study: Study, part: Part) -> str:
    """The fields of a part's cells that are not varied, but for those of the model."""
    sections = study.plan.cells[part.settings[0].cells[0]].sections
    return ", ".join(
        f"{name} {value_text(value)}"
        for section in ("optimizer", "train", "batch")
        for name, value in sections[section].items()
        if name not in ("prompt", "seed", "validations")
    )


def _scale(study: Study) -> str:
    scale, minutes = study.about["scale"], study.request.minutes
    what = "the full number of sequences" if scale == 1 else f"{scale:g} of the full number of sequences"
    return what + ("" if minutes is None else f", chosen to fit into {minutes:g} minutes")
