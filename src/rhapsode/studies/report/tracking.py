"""The chapters of the study `tracking`: how many answers are right, by how far back what they need was told."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from rhapsode.studies.plans import TITLES
from rhapsode.studies.report.figures import Figure, Line, lines
from rhapsode.studies.statistics import Measured, measured

if TYPE_CHECKING:
    from rhapsode.studies.report.chapters import Outcomes

KEEPS = 0.9  # of the answers right: who has this share keeps track
GUESSER = "a guesser"


class Reach(NamedTuple):
    """A model's shares of right answers: over the last stretch that training reached, and over the last of all."""

    label: str
    near: Measured
    far: Measured


def stretches(outcomes: "Outcomes") -> list[dict[str, Any]]:
    """The stretches of lengths, of the first seed: first and last length, and a guesser's share."""
    found: list[dict[str, Any]] = outcomes.results[0]["tracking"]["stretches"]
    return found


def shares(outcomes: "Outcomes") -> list[list[float]]:
    """Of each stretch the share of right answers of each seed."""
    found = [[each["right"] for each in result["tracking"]["stretches"]] for result in outcomes.results]
    return [list(column) for column in zip(*found, strict=True)]


def near_and_far(outcomes: "Outcomes") -> tuple[int, int]:
    """Which stretch is the last that training reached to its end (the first, where it reached none), and which the last
    of all."""
    trained, found = outcomes.results[0]["tracking"]["trained"], stretches(outcomes)
    return max([i for i, each in enumerate(found) if each["last"] <= trained], default=0), len(found) - 1


def figure_of(part: str, found: "Sequence[Outcomes]", unit: str) -> Figure:
    """Shares of right answers against the ends of the stretches, a guesser's, and a mark where training ended.

    The mean over the seeds, with a band from the lowest to the highest. unit: of the lengths.
    """
    x = [each["last"] for each in stretches(found[0])]
    drawn = []
    for outcomes in found:
        columns = shares(outcomes)
        band = ([min(column) for column in columns], [max(c) for c in columns]) if len(outcomes.results) > 1 else ()
        drawn.append(Line(outcomes.setting.label, x, [measured(column).mean for column in columns], *band))
    drawn.append(Line(GUESSER, x, [each["chance"] for each in stretches(found[0])]))
    title, mark = f"{TITLES[part]}: answers right", found[0].results[0]["tracking"]["trained"]
    x_label = f"{unit}, the end of each stretch (logarithmic)"
    mark = (mark, "longest in training")
    return lines(f"{part}-right", title, x_label, "share right", drawn, log_x=True, mark=mark)


def rows_of(found: "Sequence[Outcomes]") -> list[list[str]]:
    """The table: a header, then a row for each model, with its shares over the stretches."""
    ends = [f"{each['first']} to {each['last']}" for each in stretches(found[0])]
    rows = [["model", *ends, "validation loss", "training s", "parameters", "seeds"]]
    for outcomes in found:
        right = [_share(measured(column)) for column in shares(outcomes)]
        loss, seconds = outcomes.last("valid_loss").text(4), outcomes.total("seconds").text(1)
        size = f"{outcomes.total('parameters').mean:,.0f}"
        rows.append([outcomes.setting.label, *right, loss, seconds, size, str(len(outcomes.results))])
    return rows


def chapter_sentences(found: "Sequence[Outcomes]", unit: str) -> list[str]:
    """What the shares show. unit: how a stretch of lengths is told, as in `after {} steps`."""
    near, far = near_and_far(found[0])
    places = stretches(found[0])
    reached = []
    for outcomes in found:
        columns = shares(outcomes)
        reached.append(Reach(outcomes.setting.label, measured(columns[near]), measured(columns[far])))
    spans = [unit.format(f"{places[i]['first']} to {places[i]['last']}") for i in (near, far)]
    return in_sentences(reached, (spans[0], spans[1]), (places[near]["chance"], places[far]["chance"]))


def in_sentences(found: Sequence[Reach], spans: tuple[str, str], chance: tuple[float, float]) -> list[str]:
    """The shares over two stretches in a sentence each; spans: the stretches in words; chance: a guesser's shares.

    >>> some = [Reach("Elman", Measured(1.0), Measured(0.99)), Reach("gated", Measured(0.98), Measured(0.5))]
    >>> print(*in_sentences(some, ("after 9 to 16 steps", "after 129 to 256 steps"), (0.5, 0.5)), sep=chr(10))
    As far as training goes, after 9 to 16 steps, Elman is right 100.0% of the time, gated 98.0%, a guesser 50.0%.
    Beyond, after 129 to 256 steps, Elman is right 99.0% of the time, gated 50.0%, a guesser 50.0%.
    """
    sentences = []
    for i, how in enumerate(("As far as training goes", "Beyond")):
        first, *rest = [f"{each.label} {{}}{_share(each.far if i else each.near)}" for each in found]
        others = ", ".join([first.format("is right ") + " of the time", *(each.format("") for each in rest)])
        sentences.append(f"{how}, {spans[i]}, {others}, {GUESSER} {chance[i]:.1%}.")
    return sentences


def verdicts(found: "Sequence[Outcomes]") -> list[str]:
    """Who keeps track beyond the lengths of training, who only over those, who not even there."""
    near, far = near_and_far(found[0])
    groups: tuple[list[str], list[str], list[str]] = ([], [], [])
    for outcomes in found:
        columns = shares(outcomes)
        right = [measured(columns[i]).mean >= KEEPS for i in (near, far)]
        groups[0 if right[1] else 1 if right[0] else 2].append(outcomes.setting.label)
    endings = (
        ("keeps track beyond the lengths of training", "keep track beyond the lengths of training"),
        ("keeps track over the lengths of training alone", "keep track over the lengths of training alone"),
        ("does not learn to keep track", "do not learn to keep track"),
    )
    return [
        f"{_names(names)} {one if len(names) == 1 else more}."
        for names, (one, more) in zip(groups, endings, strict=True)
        if names
    ]


def _share(value: Measured) -> str:
    spread = "" if value.spread is None else f" ± {100 * value.spread:.1f}"
    return f"{100 * value.mean:.1f}{spread}%"


def _names(names: Sequence[str]) -> str:
    text = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return text[0].upper() + text[1:]
