"""What a study varies: parts of settings, each setting trained with one seed or several, every training a cell.

    plan = plan_of(StudyRequest("batch", scale=0.05))
    plan.parts[0].settings[0].cells          names of cells, one per seed
    plan.cells["batch-32"].sections          the fields of its configs

Two settings whose configs are equal share their cells, also across the parts of `all`: nothing is trained twice.
"""

import itertools
import json
import re
from dataclasses import dataclass, field, replace
from typing import Any

from rhapsode.recipe import BUDGETS
from rhapsode.recipe.changes import SECTIONS, Sections, build, merge, parse_value, read_assignments, section_of
from rhapsode.seeds import check_seed
from rhapsode.studies.tasks import BOXES, COUNT
from rhapsode.studies.tracking import TRACKED, models_of, recipe_of
from rhapsode.terminal import literal

# The course's recipe on the package's own data and batches: 128 tokens of each story, Adam at a constant rate.
RECIPE: Sections = {
    "model": {"kind": "plain", "embed_dim": 128, "hidden_dim": 128, "key_dim": 128, "value_dim": 128},
    "optimizer": {
        "optimizer": "adam",
        "learning_rate": 1e-3,
        "beta2": 0.999,
        "warmup_steps": 0,
        "decay": "constant",
        "clip_norm": 1.0,
    },
    "train": {"sequences": 50_000, "validations": 10, "prompt": ""},
    "batch": {"form": "first", "window": 127, "batch_size": 128},
}

COURSE = ("size", "batch", "sequences", "temperature")
STUDIES = (*COURSE, "all", "grid", "tracking")
TITLES = {
    "size": "Model size",
    "batch": "Batch size",
    "sequences": "Number of sequences",
    "temperature": "The large model and temperature",
    "grid": "Grid",
    "tracking": "Keeping track",
    "parity": "Parity",
    "counter": f"A counter modulo {COUNT}",
    "boxes": f"Swapping objects between {BOXES} boxes",
    "references": "Storyworld's references",
}
Values = dict[str, Any]


def _widths(width: int) -> Values:
    return {"embed_dim": width, "hidden_dim": width}


SETTINGS: dict[str, dict[str, Values]] = {
    "size": {str(width): _widths(width) for width in (64, 128, 256, 512)},
    "batch": {str(size): {"batch_size": size} for size in (32, 64, 128, 256)},
    "sequences": {f"{count:,}": {"sequences": count} for count in (10_000, 20_000, 50_000, 100_000)},
    "temperature": {
        "large": {**_widths(512), "key_dim": 256, "value_dim": 256, "batch_size": 128, "sequences": 250_000}
    },
}


@dataclass(frozen=True)
class StudyRequest:
    """What `rhapsode study` was asked for.

    study: one of STUDIES. vary: `field=value,value` texts, for grid. scale: multiplies every budget. minutes: the
    time to fit into, instead of a scale (None: no limit). valid_stories: most stories that a validation scores,
    0 for all, None for the default. The rest is as in `rhapsode train`.
    """

    study: str
    data: tuple[str, ...] = ()
    valid: str | None = None
    tokenizer: str | None = None
    vocab_size: int | None = None
    vary: tuple[str, ...] = ()
    assignments: tuple[str, ...] = ()
    scale: float | None = None
    minutes: float | None = None
    seeds: int = 1
    seed: int = 0
    valid_stories: int | None = None
    split: str = "auto"
    separator: str | None = None
    field: str | None = None
    format: str = "auto"

    def __post_init__(self) -> None:
        if self.study not in STUDIES:
            raise ValueError(f"a study is one of {', '.join(STUDIES)}, got {self.study!r}")
        if self.scale is not None and not 0 < self.scale < float("inf"):
            raise ValueError(f"--scale must be greater than 0, got {self.scale}")
        if self.minutes is not None and not 0 < self.minutes < float("inf"):
            raise ValueError(f"--minutes must be greater than 0, got {self.minutes}")
        if self.minutes is not None and self.scale is not None:
            raise ValueError("--minutes chooses the scale itself: give one of --minutes and --scale")
        if self.seeds < 1:
            raise ValueError(f"--seeds must be >= 1, got {self.seeds}")
        check_seed(self.seed, "--seed", self.seeds)
        if self.valid_stories is not None and self.valid_stories < 0:
            raise ValueError(f"--valid-stories must be >= 0 (0 for all), got {self.valid_stories}")
        if self.study == "grid" and not self.vary:
            raise ValueError("a grid needs at least one --vary field=value,value")
        if self.study != "grid" and self.vary:
            raise ValueError(
                f"--vary works only with `rhapsode study grid`; {self.study} varies what the course varied"
            )
        if self.study == "tracking" and (self.data or self.valid):
            raise ValueError("tracking makes its own data: tasks, and storyworld for references; give it none")


@dataclass(frozen=True)
class Cell:
    """One training. sections: the fields of its configs. completions: whether it is to write texts at the end. task:
    what of TRACKED it is trained for and asked about; the empty text for one that is trained on the study's data alone.
    """

    name: str
    sections: Sections
    completions: bool = False
    task: str = ""

    @property
    def seed(self) -> int:
        return int(self.sections["train"]["seed"])


@dataclass(frozen=True)
class Setting:
    """A point of a part: what it is called, the varied fields with their values, and its cells, one per seed."""

    label: str
    values: Values
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Part:
    """A chapter of the report."""

    name: str
    fields: tuple[str, ...]
    settings: tuple[Setting, ...]


@dataclass(frozen=True)
class StudyPlan:
    """All parts of a study, and all its cells by name, in the order in which they run."""

    parts: tuple[Part, ...]
    cells: dict[str, Cell] = field(default_factory=dict)

    @property
    def valid_tokens(self) -> int | None:
        """How many tokens of a story a validation reads: as many as training does where all cells have the
        course's form, so that both losses are of the same tokens; None, whole stories, where some cell has not."""
        batches = [cell.sections["batch"] for cell in self.cells.values()]
        if any(batch["form"] != "first" for batch in batches):
            return None
        return max(batch["window"] for batch in batches) + 1


def plan_of(request: StudyRequest, scale: float = 1.0) -> StudyPlan:
    """The plan that the request asks for, with every budget times `scale`.

    Raises ValueError with one line for a field that there is not, a value that its config refuses, or a field that
    is both fixed and varied.
    """
    fixed = read_assignments(request.assignments)
    base = merge(RECIPE, fixed)
    plan = StudyPlan(())
    parts = {"all": COURSE, "tracking": TRACKED}.get(request.study, (request.study,))
    for name in parts:
        if name in TRACKED:
            plan = _with_part(plan, name, models_of(name), merge(recipe_of(name), fixed), fixed, request, scale)
            continue
        settings = _grid(request.vary) if name == "grid" else SETTINGS[name]
        plan = _with_part(plan, name, settings, base, fixed, request, scale)
    return plan


def _with_part(
    plan: StudyPlan,
    name: str,
    settings: dict[str, Values],
    base: Sections,
    fixed: Sections,
    request: StudyRequest,
    scale: float,
) -> StudyPlan:
    cells = dict(plan.cells)
    task = name if name in TRACKED else ""
    known = {json.dumps([cell.task, cell.sections], sort_keys=True): cell.name for cell in cells.values()}
    fields = tuple(dict.fromkeys(key for values in settings.values() for key in values))
    made = []
    for label, values in settings.items():
        over: Sections = {}
        for key, value in values.items():
            section, plain = section_of(key, f"--vary {key}")
            if plain in fixed.get(section, {}) or (plain in BUDGETS and set(BUDGETS) & set(fixed.get("train", {}))):
                hint = "; --scale changes the sequences" if plain in BUDGETS else ""
                raise ValueError(f"--set {plain}: the study {name} sets this field itself{hint}")
            over.setdefault(section, {})[plain] = value
        names = []
        for seed in range(request.seed, request.seed + request.seeds):
            sections = _scaled(merge(merge(base, over), {"train": {"seed": seed}}), scale)
            _check(sections, f"{name} {label}")
            slug = re.sub(r"[^A-Za-z0-9.]+", "-", label.replace(",", "") if name == "sequences" else label).strip("-")
            cell = f"{name}-{slug}" + (f"-seed{seed}" if request.seeds > 1 else "")
            first, alike = cell, itertools.count(2)
            while cell in cells and cells[cell].sections != sections:  # `a|b` beside `a b`
                cell = f"{first}-{next(alike)}"
            cell = known.setdefault(json.dumps([task, sections], sort_keys=True), cell)
            completions = name == "temperature" or (cell in cells and cells[cell].completions)
            cells[cell] = Cell(cell, sections, completions, task)
            names.append(cell)
        made.append(Setting(_label(name, label, values, scale), values, tuple(names)))
    return replace(plan, parts=(*plan.parts, Part(name, fields, tuple(made))), cells=cells)


def _grid(vary: tuple[str, ...]) -> dict[str, Values]:
    """All combinations of the values, the last field changing fastest, by their labels."""
    axes: dict[str, list[Any]] = {}
    for text in vary:
        name, equals, values = text.partition("=")
        if not equals:
            raise ValueError(f"--vary {text}: not of the form field=value,value")
        section, plain = section_of(name.strip(), f"--vary {text}")
        if plain == "seed":
            raise ValueError("--vary seed: use --seeds N instead, and the report has the mean and the spread over them")
        if plain in axes:
            raise ValueError(f"--vary {plain} is given twice; list all its values in one")
        axes[plain] = [parse_value(section, plain, value.strip(), f"--vary {text}") for value in values.split(",")]
        if len({repr(value) for value in axes[plain]}) < len(axes[plain]):
            raise ValueError(f"--vary {text}: a value appears twice")
    if len(set(axes) & set(BUDGETS)) > 1:
        raise ValueError(
            f"vary only one budget ({', '.join(BUDGETS)}); --vary names {' and '.join(set(axes) & set(BUDGETS))}"
        )
    combinations = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    return {
        ", ".join(f"{name} {value_text(value)}" for name, value in values.items()): values for values in combinations
    }


def value_text(value: Any) -> str:
    """A value of a field, as people write it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else literal(str(value))


def _label(part: str, label: str, values: Values, scale: float) -> str:
    """In `sequences` the label is what is trained on, not what the course's scale would be."""
    return f"{_times(values['sequences'], scale):,}" if part == "sequences" else label


def _scaled(sections: Sections, scale: float) -> Sections:
    train = dict(sections["train"])
    for name in BUDGETS:
        if train.get(name):
            train[name] = _times(train[name], scale) if isinstance(train[name], int) else train[name] * scale
    return {**sections, "train": train}


def _times(count: int, scale: float) -> int:
    return max(1, round(count * scale))


def _check(sections: Sections, where: str) -> None:
    """Builds the configs once, so that a wrong value is told before anything is read or trained."""
    try:
        for section, kind in SECTIONS.items():
            build(kind, {**sections[section], **({"vocab_size": 1} if section == "model" else {})})
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
