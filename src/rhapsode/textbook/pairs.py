"""Embeddings of token pairs, by a hash.

A pair of neighbouring tokens says more than either: after `New`, `York` is another word. A table with a row for every
pair would need V² rows, ten million where V = 3,200. So the pairs share R rows, and a hash says which (after
Svenstrup et al. 2017, arXiv 1709.03933):

    row(p, c) = (1,000,003 p + 7,919 c) mod R        p: the token before (0 for the first), c: the token itself
    x_t = E[w_t] + P[row(w_{t-1}, w_t)]              E (V, D), P (R, D); P is 0 at first: a pair says nothing yet

Both factors are prime, so the hash spreads neighbouring ids over the table. Two pairs that differ by Δp and Δc share a
row exactly if 1,000,003 Δp + 7,919 Δc is a multiple of R. Hence pairs with the same first token never do, where R ≥ V
and R is no multiple of 7,919. Where the rows are as good as random, n different pairs hit

    R (1 - (1 - 1/R)^n)

of them on average. What two pairs that share a row mean, the network tells apart by E[w_t], unless they share that,
too.

Backwards, a row's gradient is the sum over all places that read it, whichever pair they are:

    dL/dP[r] = Σ_{t: row_t = r} dL/dx_t

Where a sequence is cut, the token before the cut is part of the state: without it the first pair after the cut
would be another.
"""

import numpy as np

BEFORE, ITSELF = 1_000_003, 7_919


def pair_rows(tokens: np.ndarray, rows: int, before: np.ndarray | None = None) -> np.ndarray:
    """The row (B, T) of each token of tokens (B, T) and the token before it, in a table of `rows` rows.

    before: the token (B,) before the first, or None at the beginning, where id 0 stands for it.
    Raises ValueError if rows < 1.
    """
    if rows < 1:
        raise ValueError(f"rows must be >= 1, got {rows}")
    found = np.empty(tokens.shape, dtype=np.int64)
    for b, sequence in enumerate(tokens):
        p = 0 if before is None else int(before[b])
        for t, c in enumerate(sequence):
            found[b, t] = (BEFORE * p + ITSELF * int(c)) % rows  # Python's integers: none is too large
            p = int(c)
    return found


def expected_rows(pairs: int, rows: int) -> float:
    """How many of `rows` rows that many different pairs hit on average, if each row is as likely as any other."""
    return rows * (1 - (1 - 1 / rows) ** pairs)
