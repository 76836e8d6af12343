"""Numbers about numbers, and about texts: mean and spread over seeds; variety and repetition of completions."""

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple


class Measured(NamedTuple):
    """A mean, and the sample standard deviation around it; spread None: measured once, so it is not known."""

    mean: float
    spread: float | None = None

    def text(self, digits: int = 3) -> str:
        """`2.513`, or `2.513 ± 0.004`."""
        spread = "" if self.spread is None else f" ± {self.spread:.{digits}f}"
        return f"{self.mean:,.{digits}f}{spread}"


def measured(values: Sequence[float]) -> Measured:
    """Mean and sample standard deviation (divided by n - 1); ValueError for no values."""
    if not values:
        raise ValueError("no values to take the mean of")
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return Measured(mean)
    return Measured(mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)))


def ngrams(tokens: Sequence[Hashable], n: int) -> list[tuple[Hashable, ...]]:
    """All n-grams of the tokens, in order."""
    if n < 1:
        raise ValueError(f"n must be >= 1, got {n}")
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def distinct(tokens: Sequence[Hashable], n: int) -> float | None:
    """distinct-n: different n-grams as a share of all n-grams; 1 where none comes twice, None for fewer than n tokens.

    After Li et al. 2016 (arXiv 1510.03055), who divide by the number of words; here by that of the n-grams, so that
    1 can be reached for every n. It falls as texts grow longer: compare texts of one length.
    """
    grams = ngrams(tokens, n)
    return len(set(grams)) / len(grams) if grams else None


def repetition(tokens: Sequence[Hashable], n: int = 4) -> float | None:
    """Share of n-grams that were there before in the same text: seq-rep-n of Welleck et al. 2020 (arXiv 1908.04319).

    None for fewer than n tokens.
    """
    share = distinct(tokens, n)
    return None if share is None else 1 - share
