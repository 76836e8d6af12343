"""The chapters of a report, one per part of the plan: sentences, figures, tables, completions, of cells' results."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rhapsode.studies.directory import Study
from rhapsode.studies.plans import TITLES, Part, Setting, value_text
from rhapsode.studies.report import sentences, tracking
from rhapsode.studies.report.figures import MOST_LINES, Figure, Line, dots, lines
from rhapsode.studies.report.markdown import markdown_table, one_line
from rhapsode.studies.statistics import Measured, measured
from rhapsode.studies.tracking import REFERENCES, TRACKED

COURSE_CAVEAT = (
    "The course's numbers come from one GPU and from its full data set, which is not this one; losses on"
    " different texts cannot be compared, and times only on one machine."
)
COURSE_SECONDS = {32: 241.8, 64: 124.2, 128: 61.0, 256: 39.7}  # for 50,000 sequences
COURSE_SEQUENCES = 50_000
COURSE_LARGE = {"sequences": 250_000, "train": 2.032871, "valid": 2.285386, "seconds": 777.4}
LOSS, TRAIN_LOSS = "nats per token", "Training loss"
AXIS = "sequences seen"
WHAT = {
    "size": "embed = hidden",
    "batch": "batch size",
    "sequences": "sequences",
    "temperature": "model",
    "grid": "setting",
}


@dataclass(frozen=True)
class Table:
    """header and rows of text; note: a line below."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def markdown(self) -> str:
        note = f"\n\n{self.note}" if self.note else ""
        return f"**{self.title}**\n\n{markdown_table(self.header, self.rows)}{note}"

    _repr_markdown_ = markdown  # how a notebook shows it


@dataclass(frozen=True)
class Completions:
    """The texts written at one temperature."""

    temperature: float
    prompt: str
    texts: Sequence[str]
    note: str = ""

    def markdown(self) -> str:
        head = f"**Temperature {self.temperature:g}**" + (f" {self.note}" if self.note else "")
        texts = (f"- **{one_line(self.prompt)}**{one_line(text)}" for text in self.texts)
        return "\n".join([head, "", *texts])

    _repr_markdown_ = markdown  # how a notebook shows them


@dataclass(frozen=True)
class Chapter:
    """A part of the study, as both templates show it."""

    name: str
    title: str
    sentences: Sequence[str]
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    completions: Sequence[Completions] = ()


@dataclass(frozen=True)
class Outcomes:
    """What the finished cells of a setting came to; settings without a finished cell have none.

    points: of each seed, in the order of the plan.
    """

    setting: Setting
    results: Sequence[dict[str, Any]] = field(repr=False)

    def last(self, key: str) -> Measured:
        """A number of the last validation, over the seeds."""
        return measured([result["points"][-1][key] for result in self.results])

    def total(self, key: str) -> Measured:
        """A number of the whole run, over the seeds."""
        return measured([result[key] for result in self.results])

    def curve(self, key: str) -> Line:
        """A loss against the sequences seen; mean over the seeds, with a band from the lowest to the highest."""
        count = min(len(result["points"]) for result in self.results)
        columns = [[result["points"][i][key] for result in self.results] for i in range(count)]
        x = [point["sequences"] for point in self.results[0]["points"][:count]]
        y = [measured(column).mean for column in columns]
        if len(self.results) == 1:
            return Line(self.setting.label, x, y)
        return Line(self.setting.label, x, y, [min(column) for column in columns], [max(c) for c in columns])


def chapters_of(study: Study) -> dict[str, Chapter]:
    """All chapters, by the names of the plan's parts."""
    return {part.name: chapter_of(study, part) for part in study.plan.parts}


def chapter_of(study: Study, part: Part) -> Chapter:
    """The part's chapter, made of the cells that are finished."""
    found = []
    for setting in part.settings:
        results = [result for name in setting.cells if (result := study.result(study.plan.cells[name]))]
        if results:
            found.append(Outcomes(setting, results))
    if not found:
        return Chapter(part.name, TITLES[part.name], ["No cell of this part is finished."])
    make: dict[str, Callable[[Study, Part, list[Outcomes]], Chapter]] = {
        "size": _size,
        "batch": _batch,
        "sequences": _sequences,
        "temperature": _temperature,
        "grid": _grid,
        **dict.fromkeys(TRACKED, _tracking),
    }
    return make[part.name](study, part, found)


def _size(study: Study, part: Part, found: list[Outcomes]) -> Chapter:
    labels, valid, seconds = _labels(found), _valid(found), [o.total("seconds").mean for o in found]
    told = [sentences.trend("Final validation loss", labels, valid)]
    if len(found) > 1:
        smaller, larger = found[0].total("parameters").mean, found[-1].total("parameters").mean
        told.append(
            f"The largest model has {larger / smaller:.1f}x the parameters of the smallest and takes"
            f" {seconds[-1] / seconds[0]:.1f}x its time."
        )
    told += [sentences.gap(f"{WHAT[part.name]} {labels[-1]}", found[-1].last("train_loss"), valid[-1]), *_common(found)]
    return Chapter(part.name, TITLES["size"], told, _curves(part, found), [_table(part, found)])


def _batch(study: Study, part: Part, found: list[Outcomes]) -> Chapter:
    labels, valid, seconds = _labels(found), _valid(found), [o.total("seconds").mean for o in found]
    told = []
    if len(found) > 1:
        ends = (f"batch {labels[0]}", f"batch {labels[-1]}")
        told.append(sentences.compare(*ends, (seconds[0], seconds[-1]), (valid[0], valid[-1])))
    told.append(sentences.trend("Training time", labels, [o.total("seconds") for o in found], 0.0, "s", 1))
    told.append(sentences.trend("Final validation loss", labels, valid))
    known = [o for o in found if o.setting.values["batch_size"] in COURSE_SECONDS]
    rows = []
    for outcomes in known:
        size = outcomes.setting.values["batch_size"]
        own, theirs = outcomes.total("seconds"), COURSE_SECONDS[size]
        count = outcomes.last("sequences").mean
        row = [str(size), own.text(1), f"{count:,.0f}", f"{count / own.mean:,.1f}"]
        rows.append([*row, f"{theirs:,.1f}", f"{COURSE_SEQUENCES / theirs:,.1f}"])
    if len(known) > 1:
        first, last = known[0], known[-1]
        sizes = [o.setting.values["batch_size"] for o in (first, last)]
        # Sequences per second, since a large batch rounds the number of sequences up.
        rates = [o.last("sequences").mean / o.total("seconds").mean for o in (first, last)]
        theirs = COURSE_SECONDS[sizes[0]] / COURSE_SECONDS[sizes[1]]
        told.append(sentences.against(rates[1] / rates[0], theirs, f"from batch {sizes[0]} to {sizes[1]}"))
    header = ("batch size", "s here", "sequences", "sequences/s", "s, course", "sequences/s, course")
    course = Table("Total time, beside the course's", header, rows, COURSE_CAVEAT)
    tables = [_table(part, found), course]
    return Chapter(part.name, TITLES["batch"], [*told, *_common(found)], _curves(part, found), tables)


def _sequences(study: Study, part: Part, found: list[Outcomes]) -> Chapter:
    labels, valid = [f"{label} sequences" for label in _labels(found)], _valid(found)
    train = [o.last("train_loss") for o in found]
    told = [
        sentences.trend("Final validation loss", labels, valid),
        sentences.trend("Final training loss", labels, train),
        sentences.gap(labels[-1], train[-1], valid[-1]),
        *_common(found),
    ]
    counts = [o.last("sequences").mean for o in found]
    drawn = [_finals(name, counts, values) for name, values in (("training", train), ("validation", valid))]
    title = "Final loss by number of training sequences"
    figure = lines("sequences-final", title, "training sequences (logarithmic)", LOSS, drawn, log_x=True)
    return Chapter(part.name, TITLES["sequences"], told, [figure], [_table(part, found)])


def _temperature(study: Study, part: Part, found: list[Outcomes]) -> Chapter:
    from rhapsode.studies.cell import COMPLETION_TOKENS, COMPLETIONS, PROMPT

    own = found[0]
    train, valid, seconds = own.last("train_loss"), own.last("valid_loss"), own.total("seconds")
    count, curve = own.last("sequences").mean, own.curve("valid_loss")
    theirs = COURSE_LARGE
    told = [
        f"The large model ends at a training loss of {train.text()} and a validation loss of {valid.text()},"
        f" after {count:,.0f} sequences and {seconds.text(1)} s.",
        sentences.gap(f"{count:,.0f} sequences", train, valid),
        sentences.lowest(curve.x, curve.y),
        *_trends_of_texts(own),
        *_common(found),
    ]
    rows = [
        ["here", f"{count:,.0f}", train.text(4), valid.text(4), seconds.text(1), f"{count / seconds.mean:,.1f}"],
        [
            "course",
            f"{theirs['sequences']:,}",
            f"{theirs['train']:.6f}",
            f"{theirs['valid']:.6f}",
            f"{theirs['seconds']:,.1f}",
            f"{theirs['sequences'] / theirs['seconds']:,.1f}",
        ],
    ]
    header = ("", "sequences", "training loss", "validation loss", "s", "sequences/s")
    course = Table("The large model, beside the course's", header, rows, COURSE_CAVEAT)
    note = (
        f"Means over {COMPLETIONS} completions of at most {COMPLETION_TOKENS} tokens for each seed (only one at"
        " temperature 0, where nothing is random). distinct-n: share of distinct n-grams within a completion;"
        " repetition: share of 4-grams that occurred before; log-probability: natural, per token, under the model"
        " itself."
    )
    if len(own.results) > 1:
        cells = [study.plan.cells[name] for name in own.setting.cells]
        note += f" The texts below are by the model of seed {next(c.seed for c in cells if study.result(c))}."
    numbers = ("temperature", "distinct-1", "distinct-2", "distinct-3", "repetition", "log-probability")
    texts = Table("Variety of the completions", numbers, [_numbers_of_texts(own, i) for i in range(3)], note)
    completions = [
        Completions(
            entry["temperature"],
            PROMPT,
            [_visible(text) for text in entry["texts"]],
            "" if entry["temperature"] else "Nothing is random at temperature 0, so there is only one completion.",
        )
        for entry in own.results[0]["completions"]
    ]
    figures = [
        lines("temperature-loss", "The large model: loss during training", AXIS, LOSS, _train_and_valid(own)),
    ]
    return Chapter(part.name, TITLES["temperature"], told, figures, [course, texts], completions)


def _grid(study: Study, part: Part, found: list[Outcomes]) -> Chapter:
    labels, valid, train = _labels(found), _valid(found), [o.last("train_loss") for o in found]
    told = [sentences.best(labels, valid)]
    if len(part.fields) == 1:
        told.append(sentences.trend("Final validation loss", labels, valid))
    else:
        complete = [o for o in found if len(o.results) == len(o.setting.cells)]
        told += [_marginal(name, complete) for name in part.fields if len(complete) == len(part.settings)]
    told += _common(found)
    figures = _curves(part, found) if len(found) <= MOST_LINES else []
    whiskers = [_finals(name, (), values) for name, values in (("training", train), ("validation", valid))]
    figures.append(dots("grid-final", "Final loss of each setting", LOSS, whiskers, labels))
    return Chapter(part.name, TITLES["grid"], told, figures, [_table(part, found)])


def _tracking(study: Study, part: Part, found: list[Outcomes]) -> Chapter:
    unit, span = ("words", "{} words after it was told") if part.name == REFERENCES else ("steps", "after {} steps")
    said = tracking.chapter_sentences(found, span)
    said += [] if part.name == REFERENCES else tracking.verdicts(found)  # of references, nobody is right about all
    header, *rows = tracking.rows_of(found)
    table = Table(f"Answers right, by {unit}", header, rows)
    return Chapter(part.name, TITLES[part.name], said, [tracking.figure_of(part.name, found, unit)], [table])


def _marginal(name: str, found: list[Outcomes]) -> str:
    """The final validation loss for each value of a field, averaged over everything else."""
    groups: dict[str, list[float]] = {}
    for outcomes in found:
        groups.setdefault(value_text(outcomes.setting.values[name]), []).append(outcomes.last("valid_loss").mean)
    means = [Measured(measured(group).mean) for group in groups.values()]
    return sentences.trend(f"Averaged over the other fields, the validation loss by {name}", list(groups), means)


def _common(found: list[Outcomes]) -> list[str]:
    return [sentences.times_read([result["epochs"] for outcomes in found for result in outcomes.results])]


def _labels(found: list[Outcomes]) -> list[str]:
    return [outcomes.setting.label for outcomes in found]


def _valid(found: list[Outcomes]) -> list[Measured]:
    return [outcomes.last("valid_loss") for outcomes in found]


# -- figures and tables ----------------------------------------------------------------------------------------------


def _curves(part: Part, found: list[Outcomes]) -> list[Figure]:
    """Training and validation loss against the sequences seen, a line per setting."""
    by = {"size": "by model size", "batch": "by batch size"}.get(part.name, f"by {', '.join(part.fields)}")
    return [
        lines(f"{part.name}-{name}", f"{title} {by}", AXIS, LOSS, [o.curve(key) for o in found], WHAT[part.name])
        for name, title, key in (
            ("train", TRAIN_LOSS, "train_loss"),
            ("valid", "Validation loss", "valid_loss"),
        )
    ]


def _train_and_valid(outcomes: Outcomes) -> list[Line]:
    return [
        Line(name, line.x, line.y, line.low, line.high)
        for name, line in (
            ("training", outcomes.curve("train_loss")),
            ("validation", outcomes.curve("valid_loss")),
        )
    ]


def _finals(label: str, x: Sequence[float], values: Sequence[Measured]) -> Line:
    """Final losses as one line, with a standard deviation to both sides where there is one."""
    y = [value.mean for value in values]
    if all(value.spread is None for value in values):
        return Line(label, x, y)
    low = [value.mean - (value.spread or 0.0) for value in values]
    return Line(label, x, y, low, [value.mean + (value.spread or 0.0) for value in values])


def _table(part: Part, found: list[Outcomes]) -> Table:
    """All settings of a part, one a row."""
    header = (
        WHAT[part.name],
        "training loss",
        "validation loss",
        "training s",
        "sequences seen",
        "epochs",
        "parameters",
        "seeds",
    )
    rows = [
        [
            outcomes.setting.label,
            outcomes.last("train_loss").text(4),
            outcomes.last("valid_loss").text(4),
            outcomes.total("seconds").text(1),
            f"{outcomes.last('sequences').mean:,.0f}",
            f"{outcomes.total('epochs').mean:.2f}",
            f"{outcomes.total('parameters').mean:,.0f}",
            str(len(outcomes.results)),
        ]
        for outcomes in found
    ]
    return Table("Final losses and time", header, rows)


def _visible(text: str) -> str:
    return text if text.strip() else " (only white space)" if text else " (empty: the text ended immediately)"


def _numbers_of_texts(outcomes: Outcomes, i: int) -> list[str]:
    temperature = outcomes.results[0]["completions"][i]["temperature"]
    return [
        f"{temperature:g}",
        *(_text_number(outcomes, i, "distinct", n).text(3).split(" ")[0] for n in ("1", "2", "3")),
        f"{_text_number(outcomes, i, 'repetition').mean:.3f}",
        f"{_text_number(outcomes, i, 'log_probability').mean:.3f}",
    ]


def _text_number(outcomes: Outcomes, i: int, name: str, n: str | None = None) -> Measured:
    """Mean over all completions of all seeds, with its standard error as the spread; 0 spread for what is certain."""
    values = []
    for result in outcomes.results:
        numbers = result["completions"][i][name]
        values += [value for value in (numbers if n is None else numbers[n]) if value is not None]
    if not values:
        return Measured(float("nan"))
    found = measured(values)
    return Measured(found.mean, (found.spread or 0.0) / math.sqrt(len(values)))


def _trends_of_texts(outcomes: Outcomes) -> list[str]:
    """How variety, repetition and probability move with the temperature."""
    entries = outcomes.results[0]["completions"]
    labels = [f"temperature {entry['temperature']:g}" for entry in entries]
    told = []
    for what, name, n, unit in (
        ("The distinct-2 of completions", "distinct", "2", ""),
        ("Their repetition", "repetition", None, ""),
        ("Their mean log-probability per token", "log_probability", None, "nats"),
    ):
        values = [_text_number(outcomes, i, name, n) for i in range(len(entries))]
        told.append(sentences.trend(what, labels, values, 0.005, unit, within="their standard errors"))
    return told
