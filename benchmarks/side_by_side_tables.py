"""What side_by_side.py measured, as tables in Markdown and as the figure of ten minutes."""

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from questions import LOOKED_AT, UNITS, Contender, questions
from report import FIGURES, over_seeds, panels, save_figure

from rhapsode.figure import COLOURS, DASHES, MARKERS

Pair = dict[str, Any]
# What the second of a question must be beaten by: in the unit of the text, lower or (storyworld) higher.
BARS = {
    "tinystories, ten minutes": 0.07,
    "tinystories, two minutes": 0.08,
    "shakespeare, ten minutes": 0.035,
    "shakespeare, 70 s": 0.045,
}
LABELS = {"rhapsode": "Rhapsode", "before": "Rhapsode before", "lstm": "nn.LSTM", "course": "the course's"}
FIGURE = FIGURES / "side-by-side.svg"
LEAST_GAP = 0.05  # of the figure's height, between two labels
MINUTES = 10.0


def same(pair: Pair, question: str, seed: int, contenders: Sequence[Contender], commit: str | None = None) -> bool:
    """Whether a pair was made of this question and seed by these recipes, to its end; commit: None for any."""
    if (pair["question"], pair["seed"]) != (question, seed) or commit not in (None, pair["commit"]):
        return False
    made = [(run["who"], run["recipe"]) for run in pair["runs"]]
    return not failures(pair) and made == [(each.who, each.recipe) for each in contenders]


def failures(pair: Pair) -> list[str]:
    """Why runs of a pair came to nothing, but for training that diverged, which is a result."""
    return [run["why"] for run in pair["runs"] if run["value"] is None and not diverged(run["why"])]


def diverged(why: str) -> bool:
    """Whether this is what training says when a loss or a gradient is no number any more."""
    return " became nan" in why or " became inf" in why


def newest(pairs: Iterable[Pair], question: str) -> list[Pair]:
    """The pairs of a question that have the recipes of its last one, the last of each seed, by seed."""
    found = [pair for pair in pairs if pair["question"] == question and not failures(pair)]
    by_seed = {pair["seed"]: pair for pair in found if _recipes(pair) == _recipes(found[-1])}
    return [by_seed[seed] for seed in sorted(by_seed)]


def _recipes(pair: Pair) -> list[Any]:
    return [(run["who"], run["recipe"]) for run in pair["runs"]]


def print_tables(pairs: list[Pair]) -> None:
    """All questions that have a result."""
    for question in questions():
        found = newest(pairs, question.name)
        if found:
            print_question(found)


def print_question(found: list[Pair]) -> None:
    """A row for each seed, the mean below; the difference is of those that trained at the same time."""
    first = found[0]
    who, text = [run["who"] for run in first["runs"]], first["text"]
    how = "one core each, at once" if first["cores"] == 1 else f"alone, one after the other, {first['cores']} cores"
    commits = ", ".join(sorted({pair["commit"] for pair in found}))
    print(f"### {first['question']}\n\n{UNITS[text]}; {first['minutes']:g} minutes of training; {how}; {commits}\n")
    print(f"| seed | {' | '.join(who)} | difference | steps |\n|{'---|' * (len(who) + 3)}")
    for pair in found:
        values = [_shown(run["value"]) for run in pair["runs"]]
        steps = ", ".join(f"{run.get('steps', 0):,}" for run in pair["runs"])
        print(f"| {pair['seed']} | {' | '.join(values)} | {_shown(difference(pair), True)} | {steps} |")
    kept = [[value for pair in found if (value := pair["runs"][i]["value"]) is not None] for i in (0, 1)]
    means = [over_seeds(values) if values else "" for values in kept]
    differences = [value for pair in found if (value := difference(pair)) is not None]
    if differences:
        print(f"| mean | {' | '.join(means)} | {over_seeds(differences)} | |")
        bar = BARS.get(first["question"])
        if bar:
            reached = "reached" if -statistics.mean(differences) >= bar else "missed"
            print(f"\nThe bar is {bar:g} below: {reached}.")
    if text == "storyworld":
        print_storyworld(found)
    for pair in found:
        for run in pair["runs"]:
            if "yardstick" in run:
                bits, right = run["yardstick"]["bits_per_character"], run["yardstick"]["pairs"]
                fields = ", ".join(f"{name} {share:.1%}" for name, share in right.items() if ":" not in name)
                print(f"\n{run['who']}, seed {pair['seed']}: {bits} bits per character; minimal pairs: {fields}")
    print()


def print_storyworld(found: list[Pair]) -> None:
    """What else storyworld tells: kinds of references, distances, stories of the grammar."""
    kinds = ("name", "kind", "colour", "pronoun")
    distances = next((list(run["distance"]) for pair in found for run in pair["runs"] if "distance" in run), [])
    header = ["seed", "who", "bits per byte", *kinds, *(f"{name} words" for name in distances), "stories, new"]
    print(f"\n| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for pair in found:
        for run in (run for run in pair["runs"] if run["value"] is not None):
            shares = [f"{run['kind'][name]:.1%}" for name in kinds if name in run["kind"]]
            shares += [f"{share:.1%}" for share in run["distance"].values()]
            stories = "{parsed} of {total}, {new}".format(**run["stories"])
            print(f"| {pair['seed']} | {run['who']} | {run['bits_per_byte']} | {' | '.join(shares)} | {stories} |")


def difference(pair: Pair) -> float | None:
    """The first's value less the second's; None where one of them has none."""
    one, other = (run["value"] for run in pair["runs"])
    return None if one is None or other is None else one - other


def _shown(value: float | None, signed: bool = False) -> str:
    return "diverged" if value is None else f"{value:{'+' if signed else ''}.4f}"


def plot(pairs: list[Pair]) -> None:
    """Loss over ten minutes of training on TinyStories, seed 0, one core; everyone's newest run."""
    runs: dict[str, dict[str, Any]] = {}
    for question in questions():
        if question.text == "tinystories" and question.minutes == MINUTES and not question.alone:
            for pair in newest(pairs, question.name)[:1]:
                runs |= {run["who"]: run for run in pair["runs"] if run["value"] is not None and run["who"] not in runs}
    if not runs:
        raise SystemExit("nothing to draw yet: no ten minutes of TinyStories in the results")
    figure, axes = panels("side-by-side", 1, 1, figsize=(7.5, 4.6))
    ends = []
    for (who, run), colour, dash, marker in zip(runs.items(), COLOURS, DASHES, MARKERS, strict=False):
        minutes, values = zip(*((seconds / 60, value) for seconds, value in run["curve"]), strict=True)
        axes.plot(minutes, values, color=colour, linestyle=dash, marker=marker, markersize=4, linewidth=1.6)
        ends.append((values[-1], f"{LABELS.get(who, who)} {values[-1]:.3f}", colour))
    axes.set(xlabel="minutes of training on one core", ylabel=f"bits per byte, {LOOKED_AT} unseen stories")
    axes.set_xlim(0, MINUTES * 1.45)
    axes.set_xticks(range(0, int(MINUTES) + 1, 2))
    low, high = axes.get_ylim()
    places = apart([value for value, _, _ in ends], LEAST_GAP * (high - low))
    for (value, label, colour), place in zip(ends, places, strict=True):
        axes.annotate(label, (MINUTES, value), xytext=(MINUTES * 1.03, place), va="center", color=colour)
    save_figure(figure, FIGURE)
    print(FIGURE)


def apart(values: Sequence[float], gap: float) -> list[float]:
    """The values moved as little as need be, so that no two are nearer than the gap; in the order given."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    groups: list[list[int]] = []
    centres: list[float] = []
    for i in order:
        groups.append([i])
        centres.append(values[i])
        while len(groups) > 1 and centres[-1] - centres[-2] < gap * (len(groups[-1]) + len(groups[-2])) / 2:
            groups[-2:] = [groups[-2] + groups[-1]]
            centres[-2:] = [statistics.mean(values[j] for j in groups[-1])]
    places = [0.0] * len(values)
    for group, centre in zip(groups, centres, strict=True):
        for rank, i in enumerate(group):
            places[i] = centre + gap * (rank - (len(group) - 1) / 2)
    return places
