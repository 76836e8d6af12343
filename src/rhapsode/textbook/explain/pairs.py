"""Worked example: the row of each pair of tokens in a table that is too small for all of them."""

from typing import Any

import numpy as np

from rhapsode.textbook import pairs as chapter
from rhapsode.textbook.explain import drawing
from rhapsode.textbook.explain.page import Heading, Illustration, Lines, PageBlock, Text, WorkedExample, number, table

TOKENS, ROWS = np.array([3, 1, 4, 1, 5, 3, 1]), 11
WIDEST = 12  # a vocabulary whose pairs are shown one by one
LARGEST = 2000  # a vocabulary whose pairs are counted


def pairs(
    tokens: np.ndarray = TOKENS,
    rows: int = ROWS,
    before: int | None = None,
    cut: int | None = None,
    vocabulary: int | None = None,
) -> WorkedExample:
    """tokens (T,), ids below `vocabulary` (the largest id and one, if None); before: the token before the first.

    cut: after how many tokens the sequence is cut, half of them if None. Raises ValueError for what cannot be.
    """
    if rows < 1:
        raise ValueError(f"rows must be >= 1, got {rows}")
    ids = {"tokens": tokens, "before": np.array([before or 0])}
    largest = max(int(values.max()) for values in ids.values())
    size = min(LARGEST, max(0, largest) + 1) if vocabulary is None else vocabulary
    if not 1 <= size <= LARGEST:
        raise ValueError(f"vocabulary must be between 1 and {LARGEST}, got {size}")
    for name, values in ids.items():
        if values.min() < 0 or values.max() >= size:
            wrong = values.min() if values.min() < 0 else values.max()
            raise ValueError(f"{name} must be >= 0 and below {size}, got {wrong}")
    T = len(tokens)
    cut = T // 2 if cut is None else cut
    if not 0 <= cut < T:
        raise ValueError(f"cut must be between 0 and {T - 1}, got {cut}")

    start = None if before is None else np.array([before])
    found = chapter.pair_rows(tokens[None], rows, start)[0]
    previous = [0 if before is None else before, *(int(token) for token in tokens[:-1])]
    table_of_all = np.array(
        [chapter.pair_rows(np.arange(size)[:, None], rows, np.full(size, p))[:, 0] for p in range(size)]
    )
    hit = len(np.unique(table_of_all))
    blocks: list[PageBlock] = [
        Text(
            f"`row(p, c) = ({chapter.BEFORE:,} p + {chapter.ITSELF:,} c) mod R` with R = {rows} rows for the "
            f"{size}·{size} = {size * size:,} pairs of a vocabulary of {size}."
        ),
        Heading("1. The row of each token and the one before it"),
        Lines(
            table(
                ["t", "before", "token", "sum", f"mod {rows}"],
                [
                    [str(t + 1), str(p), str(c), _sum(p, int(c)), str(found[t])]
                    for t, (p, c) in enumerate(zip(previous, tokens, strict=True))
                ],
            )
        ),
        Text(
            "Before the first token there is none, and id 0 stands for it."
            if before is None
            else f"Before the first token there was {before}, which the state remembers."
        ),
        Heading("2. The gradient of a row"),
        Text("A row's gradient is the sum over all places that read it, whichever pair they are:"),
        Lines(_sums(found, previous, tokens)),
        Heading("3. All pairs"),
        Lines(_all(table_of_all, rows)),
        Text(
            f"The {size * size:,} pairs hit {hit:,} of the {rows:,} rows. If each row were as likely as any other, it "
            f"would be {number(round(chapter.expected_rows(size * size, rows), 2))} on average. " + _columns(size, rows)
        ),
    ]
    if T > 1:
        blocks += _cut(tokens, rows, start, found, cut)
    if size <= 4 * WIDEST:
        blocks.append(
            Illustration(
                "Each pair's row: the token before down the side, the token itself along the top.",
                lambda canvas: _draw(canvas, table_of_all),
                (7.0, 5.0),
            )
        )
    return WorkedExample("Pairs of tokens, by a hash", blocks)


def _sum(p: int, c: int) -> str:
    total = chapter.BEFORE * p + chapter.ITSELF * c
    return f"{chapter.BEFORE:,}·{p} + {chapter.ITSELF:,}·{c} = {total:,}"


def _sums(found: np.ndarray, previous: list[int], tokens: np.ndarray) -> list[str]:
    lines = []
    for r in np.unique(found):
        places = np.flatnonzero(found == r)
        different = {(previous[t], int(tokens[t])) for t in places}
        shared = "" if len(different) == 1 else f"    shared by the pairs {', '.join(map(str, sorted(different)))}"
        lines.append(f"dL/dP[{r}] = " + " + ".join(f"dL/dx_{t + 1}" for t in places) + shared)
    return lines


def _all(rows_of_pairs: np.ndarray, rows: int) -> list[str]:
    size = len(rows_of_pairs)
    if size <= WIDEST:
        lines = [[f"before {p}", *(str(int(r)) for r in line)] for p, line in enumerate(rows_of_pairs)]
        return table(["", *(f"token {c}" for c in range(size))], lines)
    counts = np.bincount(rows_of_pairs.ravel(), minlength=rows)
    return [f"pairs in a row: {counts.min()} at least, {counts.max()} at most, {number(counts.mean())} on average"]


def _columns(size: int, rows: int) -> str:
    if rows >= size and rows % chapter.ITSELF:
        return "Pairs with the same token before never share a row: there are at least as many rows as tokens."
    return "Pairs with the same token before share rows, too: there are fewer rows than tokens, or 7,919 divides them."


def _cut(tokens: np.ndarray, rows: int, start: np.ndarray | None, found: np.ndarray, cut: int) -> list[PageBlock]:
    remembered = start if cut == 0 else tokens[cut - 1 : cut]
    rest = chapter.pair_rows(tokens[None, cut:], rows, remembered)[0]
    forgotten = chapter.pair_rows(tokens[None, cut:], rows)[0]
    return [
        Heading(f"4. Cut after {cut} token{'s' * (cut != 1)}"),
        Lines(
            table(
                ["rows after the cut", ""],
                [
                    ["uncut", " ".join(map(str, found[cut:]))],
                    ["with the token before in the state", " ".join(map(str, rest))],
                    ["without it", " ".join(map(str, forgotten))],
                ],
                left=2,
            )
        ),
    ]


def _draw(canvas: Any, rows_of_pairs: np.ndarray) -> None:
    ax = canvas.subplots()
    drawing.draw_grid(ax, rows_of_pairs, "", colours="viridis_r", symmetric=False)
    ax.set_xlabel("token", fontsize=9)
    ax.set_ylabel("token before", fontsize=9)
