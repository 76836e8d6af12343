"""What the numbers show, worked out from the numbers.

Every function takes labels in their own order with what was measured, and returns a sentence. Two values differ if
they lie further apart than their spreads over seeds together, and than TIE where a spread is not known.
"""

import itertools
from collections.abc import Sequence

from rhapsode.studies.statistics import Measured

TIE = 0.005  # nats: less than this is called equal
TIE_TIME = 1.05  # a ratio of times below this is called equal


def differ(a: Measured, b: Measured, tie: float = TIE) -> bool:
    """Whether two measurements lie further apart than their spreads explain."""
    return abs(a.mean - b.mean) > max(tie, (a.spread or 0.0) + (b.spread or 0.0))


def trend(
    what: str,
    labels: Sequence[str],
    values: Sequence[Measured],
    tie: float = TIE,
    unit: str = "nats",
    digits: int = 3,
    within: str = "the spread over seeds",
) -> str:
    """Which way `what` goes from the first label to the last. within: what the spreads of the values are.

    >>> trend("Loss", ["32", "64"], [Measured(2.0), Measured(2.5)])
    'Loss rises, from 2.000 (32) to 2.500 (64), by 0.500 nats.'
    """
    unit = f" {unit}" if unit else ""
    first, last = values[0], values[-1]
    if len(values) == 1:
        return f"{what} is {first.text(digits)}{unit} ({labels[0]})."
    low = min(range(len(values)), key=lambda i: values[i].mean)
    high = max(range(len(values)), key=lambda i: values[i].mean)
    if not differ(values[low], values[high], tie):
        within = within if first.spread is not None else f"{tie:g}{unit}"
        between = f"{values[low].mean:.{digits}f} to {values[high].mean:.{digits}f}"
        return f"{what} is the same for all of them, within {within} ({between})."
    steps = [b.mean - a.mean for a, b in itertools.pairwise(values)]
    told = [differ(a, b, tie) for a, b in itertools.pairwise(values)]
    ends = f"from {first.mean:.{digits}f} ({labels[0]}) to {last.mean:.{digits}f} ({labels[-1]})"
    by = f"by {abs(last.mean - first.mean):.{digits}f}{unit}"
    for way, sign in (("falls", -1), ("rises", 1)):
        if all(sign * step > 0 for step in steps) and all(told):
            every = "" if len(values) == 2 else " at every step"
            return f"{what} {way}{every}, {ends}, {by}."
        one_way = all(sign * step > 0 or not large for step, large in zip(steps, told, strict=True))
        if one_way and sign * (last.mean - first.mean) > 0 and differ(first, last, tie):
            return f"{what} {way}, {ends}, {by}, though not every step is more than chance."
    lowest = f"lowest at {labels[low]} ({values[low].mean:.{digits}f})"
    highest = f"highest at {labels[high]} ({values[high].mean:.{digits}f})"
    return f"{what} goes up and down: {lowest}, {highest}."


def compare(a_label: str, b_label: str, seconds: tuple[float, float], losses: tuple[Measured, Measured]) -> str:
    """b against a, in time and in final validation loss.

    >>> compare("batch 32", "batch 256", (200.0, 100.0), (Measured(2.0), Measured(2.21)))
    'Batch 256 is 2.0x faster than batch 32 and ends 0.210 nats higher in validation loss.'
    """
    change = losses[1].mean - losses[0].mean
    if not differ(*losses):
        known = losses[0].spread is not None and losses[1].spread is not None
        ends = f"ends at the same validation loss ({'within the spread' if known else f'within {TIE:g} nats'})"
    else:
        ends = f"ends {abs(change):.3f} nats {'higher' if change > 0 else 'lower'} in validation loss"
    return f"{_capital(b_label)} is {faster(*seconds)} {a_label} and {ends}."


def faster(a: float, b: float) -> str:
    """How b stands to a in seconds: `1.9x faster than`, `1.2x slower than`, `as fast as`.

    >>> faster(2.0, 1.0), faster(1.0, 1.5), faster(1.0, 1.02)
    ('2.0x faster than', '1.5x slower than', 'as fast as')
    """
    ratio = max(a, b) / max(min(a, b), 1e-9)
    if ratio < TIE_TIME:
        return "as fast as"
    shown = f"{ratio:.1f}" if ratio >= 1.15 else f"{ratio:.2f}"
    return f"{shown}x {'faster' if b < a else 'slower'} than"


def gap(label: str, train: Measured, valid: Measured) -> str:
    """How far validation is from training at the end.

    >>> gap("100,000 sequences", Measured(2.0), Measured(2.25))
    'At 100,000 sequences validation loss is 0.250 nats above training loss.'
    """
    if not differ(train, valid):
        return f"At {label} validation and training loss are equal within {TIE:g} nats."
    distance = valid.mean - train.mean
    if distance < 0:
        why = "because training loss is a mean over the last part of the run, not a measurement at its end"
        return f"At {label} validation loss is {-distance:.3f} nats below training loss, {why}."
    return f"At {label} validation loss is {distance:.3f} nats above training loss."


def lowest(sequences: Sequence[float], losses: Sequence[float]) -> str:
    """Whether the validation loss of a run was lowest at its end; losses at these numbers of sequences.

    >>> lowest([100, 200, 300], [3.0, 2.0, 2.5])
    'The validation loss was lowest after 200 sequences, at 2.000, and ends 0.500 nats above that.'
    >>> lowest([100, 200, 300], [3.0, 2.0, 1.5])
    'The validation loss was lowest at the end.'
    """
    place = min(range(len(losses)), key=lambda i: losses[i])
    above = losses[-1] - losses[place]
    if above <= TIE:
        return "The validation loss was lowest at the end" + (f", within {TIE:g} nats." if above else ".")
    at = f"after {sequences[place]:,.0f} sequences, at {losses[place]:.3f}"
    return f"The validation loss was lowest {at}, and ends {above:.3f} nats above that."


def times_read(epochs: Sequence[float]) -> str:
    """How often the data were read.

    >>> times_read([0.5, 0.9])
    'No sequence was seen twice: training took 0.50 to 0.90 epochs.'
    >>> times_read([0.5, 2.34])
    'Training took 0.50 to 2.34 epochs, each in a new order.'
    """
    low, high = min(epochs), max(epochs)
    between = f"{low:.2f}" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f} to {high:.2f}"
    if high <= 1:
        return f"No sequence was seen twice: training took {between} epochs."
    return f"Training took {between} epochs, each in a new order."


def best(labels: Sequence[str], values: Sequence[Measured]) -> str:
    """Which of the settings ends lowest, and whether the next one is really worse.

    >>> best(["relu", "tanh"], [Measured(2.0, 0.01), Measured(2.5, 0.02)])
    'The lowest validation loss is 2.000 ± 0.010 (relu), 0.500 nats below the next (tanh).'
    """
    order = sorted(range(len(values)), key=lambda i: values[i].mean)
    first = f"The lowest validation loss is {values[order[0]].text()} ({labels[order[0]]})"
    if len(order) == 1:
        return f"{first}."
    a, b = values[order[0]], values[order[1]]
    if not differ(a, b):
        why = "the spread over seeds" if a.spread is not None else f"{TIE:g} nats"
        return f"{first}, which is no more than {why} below the next ({labels[order[1]]})."
    return f"{first}, {b.mean - a.mean:.3f} nats below the next ({labels[order[1]]})."


def against(ours: float, theirs: float, what: str) -> str:
    """Our ratio of times beside the course's.

    >>> against(1.9, 6.1, "from batch 32 to 256")
    "From batch 32 to 256 the course's GPU became 6.1x faster, this machine 1.9x faster."
    """

    def told(ratio: float) -> str:
        if 1 / TIE_TIME < ratio < TIE_TIME:
            return "no faster"
        return f"{ratio:.1f}x faster" if ratio > 1 else f"{1 / ratio:.1f}x slower"

    return f"{_capital(what)} the course's GPU became {told(theirs)}, this machine {told(ours)}."


def one_seed(seeds: int) -> str:
    """What to keep in mind of the seeds.

    >>> one_seed(1)
    'One seed each: the spread is not known, so small differences may be chance.'
    """
    if seeds == 1:
        return "One seed each: the spread is not known, so small differences may be chance."
    return f"Each setting was trained with {seeds} seeds; ± is the standard deviation over them."


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
