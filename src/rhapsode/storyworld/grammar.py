"""A grammar: facts, scenes and plot skeletons, and how they are read from text.

A story is derived by choosing a skeleton (a sequence of scenes), a value for each fact that its scenes
mention, and a wording for each slot of each scene. See docs/storyworld.md for the equations.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from rhapsode.storyworld.template import Choice, Domain, Element, LineCompiler, Literal, Mention, Wording


@dataclass(frozen=True, eq=False)
class Variable:
    """A fact of a story. Each rule about another fact applies in the skeletons that have both.

    only: property that the value must have. differs: facts of the same domain with another value.
    fits, avoids: (fact, property): the property's value is, or is not, the same as the other fact's.
    combined_with: the fact with which some combinations are held out of training.
    """

    name: str
    domain: Domain
    only: str = ""
    differs: tuple[str, ...] = ()
    fits: tuple[tuple[str, str], ...] = ()
    avoids: tuple[tuple[str, str], ...] = ()
    combined_with: str = ""

    @cached_property
    def related(self) -> tuple[str, ...]:
        names = (*self.differs, *(name for name, _ in self.fits + self.avoids), self.combined_with)
        return tuple(dict.fromkeys(name for name in names if name))


@dataclass(frozen=True, eq=False)
class Scene:
    """A paragraph, or its continuation where `lead` is a space: slots in order, each a choice of lines."""

    name: str
    lead: str
    slots: tuple[Choice, ...]


@dataclass(frozen=True, eq=False)
class Skeleton:
    """A plot: its scenes in order, and the facts that they mention, parents before children."""

    name: str
    weight: int
    held_out: bool
    scenes: tuple[Scene, ...]
    variables: tuple[Variable, ...]

    def parents(self, variable: Variable) -> tuple[Variable, ...]:
        """The facts of this skeleton on which the variable's distribution depends."""
        return tuple(other for other in self.variables if other.name in variable.related)


def held_out_combination(value: int, other: int) -> bool:
    """Whether training never combines the two values: one pair in nine, at least one for each value."""
    return (value + 4 * other) % 9 == 0


def is_allowed(variable: Variable, value: int, other: Variable, other_value: int) -> bool:
    """Whether the rules of `variable` let it have `value` beside `other_value`."""
    if other.name in variable.differs and value == other_value:
        return False
    for rules, wanted in ((variable.fits, True), (variable.avoids, False)):
        for name, key in rules:
            if name != other.name:
                continue
            same = variable.domain.properties[key][value] == other.domain.properties[key][other_value]
            if same != wanted:
                return False
    return True


def mentions(elements: Iterable[Element]) -> Iterator[Mention]:
    """All mentions in the elements, in all wordings."""
    for element in elements:
        if isinstance(element, Mention):
            yield element
        elif isinstance(element, Choice):
            for option in element.options:
                yield from mentions(option)


def fragment_texts(elements: Iterable[Element]) -> Iterator[str]:
    """All fragments of text in the elements, in all wordings."""
    for element in elements:
        if isinstance(element, Literal):
            yield element.text
        elif isinstance(element, Mention):
            yield from element.texts
        else:
            for option in element.options:
                yield from fragment_texts(option)


def bare_word(unit: str) -> str:
    """A word in lower case, without punctuation around it and without the possessive 's."""
    return re.sub(r"[^\w'-]+", "", unit).strip("'-").lower().removesuffix("'s")


@dataclass(frozen=True, eq=False)
class Grammar:
    """Facts and skeletons; `corpus.load_grammar` gives the one in the package."""

    variables: Mapping[str, Variable]
    skeletons: tuple[Skeleton, ...]

    @cached_property
    def scenes(self) -> tuple[Scene, ...]:
        return tuple(dict.fromkeys(scene for skeleton in self.skeletons for scene in skeleton.scenes))

    @cached_property
    def vocabulary(self) -> frozenset[str]:
        """All words of all stories, as `bare_word` gives them."""
        texts = (text for scene in self.scenes for text in fragment_texts(scene.slots))
        return frozenset(bare_word(unit) for text in texts for unit in text.split()) - {""}


def facts_told(wording: Wording) -> set[str]:
    """The facts whose values a wording tells, whatever its inner choices are."""
    found: set[str] = set()
    for element in wording:
        if isinstance(element, Mention) and element.reveals:
            found.add(element.variable)
        elif isinstance(element, Choice):
            found |= set.intersection(*(facts_told(option) for option in element.options))
    return found


def _check_introductions(skeleton: Skeleton) -> None:
    """A fact's first slot must reveal its value in every wording: then the text determines all facts."""
    known: set[str] = set()
    for scene in skeleton.scenes:
        for number, slot in enumerate(scene.slots, 1):
            new = {mention.variable for mention in mentions([slot])} - known
            for option in slot.options:
                if missing := new - facts_told(option):
                    raise ValueError(
                        f"skeleton {skeleton.name}: slot {number} of scene {scene.name} introduces "
                        f"{', '.join(sorted(missing))}, but one of its lines does not tell the value"
                    )
            known |= new


def read_domains(text: str, where: str) -> dict[str, Domain]:
    """Domains from text: "domain NAME: it | form | form:kind | =property | weight", then a row per value."""
    domains: dict[str, Domain] = {}
    for block in text.split("\n\n"):
        rows = [line for line in block.splitlines() if line.strip() and not line.startswith("#")]
        if not rows:
            continue
        name, _, header = rows[0].removeprefix("domain ").partition(":")
        columns = [column.strip() for column in header.split("|")]
        table = [[cell.strip() for cell in row.split("|")] for row in rows[1:]]
        for row, cells in zip(rows[1:], table, strict=True):
            if len(cells) != len(columns):
                raise ValueError(f"{where}: domain {name} wants {len(columns)} cells, got {len(cells)} in {row!r}")
        forms: dict[str, tuple[str, ...]] = {}
        kinds: dict[str, str] = {}
        properties: dict[str, tuple[str, ...]] = {}
        weights = (1,) * len(table)
        for number, column in enumerate(columns):
            column_cells = tuple(row[number] for row in table)
            if column == "weight":
                weights = tuple(int(cell) for cell in column_cells)
            elif column.startswith("="):
                properties[column[1:]] = column_cells
            else:
                form, _, kind = column.partition(":")
                forms[form], kinds[form] = column_cells, kind or name
        domains[name] = Domain(name, forms, kinds, weights, properties)
    return domains


def read_scenes(text: str, variables: Mapping[str, Variable], where: str) -> dict[str, Scene]:
    """Scenes from text: "scene NAME" ("+NAME" continues the paragraph), then slots parted by blank lines."""
    domains = {name: variable.domain for name, variable in variables.items()}
    scenes: dict[str, Scene] = {}
    for part in ("\n" + text).split("\nscene ")[1:]:
        header, _, body = part.partition("\n")
        name = header.strip().lstrip("+^")
        lead = {"+": " ", "^": ""}.get(header.strip()[0], "\n\n")  # "^NAME" opens a story
        compiler = LineCompiler(domains, f"{where}, scene {name}")
        slots: list[Choice] = []
        for block in body.split("\n\n"):
            lines = [line.strip() for line in block.splitlines() if line.strip() and not line.startswith("#")]
            if lines:
                slots.append(compiler.slot(lines, " " if slots else lead))
        if name in scenes:
            raise ValueError(f"{where}: scene {name} is there twice")
        scenes[name] = Scene(name, lead, tuple(slots))
    return scenes


def read_skeletons(
    text: str, scenes: Mapping[str, Scene], variables: Mapping[str, Variable], where: str
) -> tuple[Skeleton, ...]:
    """Skeletons from text: "NAME WEIGHT: scene scene ...", with "held out" after the weight where it is."""
    skeletons = []
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        header, _, path = line.partition(":")
        name, weight, *rest = header.split()
        missing = [scene for scene in path.split() if scene not in scenes]
        if missing:
            raise ValueError(f"{where}: skeleton {name} names scenes that do not exist: {', '.join(missing)}")
        chosen = tuple(scenes[scene] for scene in path.split())
        named = {m.variable for scene in chosen for m in mentions(scene.slots)}
        facts = tuple(variable for key, variable in variables.items() if key in named)
        skeleton = Skeleton(name, int(weight), rest == ["held", "out"], chosen, facts)
        _check_introductions(skeleton)
        skeletons.append(skeleton)
    if len({skeleton.scenes for skeleton in skeletons}) < len(skeletons):
        raise ValueError(f"{where}: two skeletons have the same scenes")
    return tuple(skeletons)
