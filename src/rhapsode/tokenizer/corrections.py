"""What token ids do not hold of their text, and what it costs to say it: the way from the decoded ids to the text.

A tokenizer that lacks characters, lower-cases or drops blanks gives ids from which the text does not come back, and
a loss over such ids alone is no compression of the text. Beside the ids, a list of corrections makes it one. Each
correction is a bit 1, three numbers and bytes: how many decoded characters after the last correction, how many
characters to drop there, how many bytes to put there, and these bytes, 8 bits each. A bit 0 ends the list of a
story. A number n >= 0 is written as Elias' gamma code of n + 1 (Elias 1975, "Universal codeword sets"). Whatever
corrections are found, cheapest or not, they are a code for the whole text, so the sum is an upper bound.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

AGREEMENT = 4  # characters that must be alike for two places to be taken for the same
NEAR, FAR, PROBE = 24, 8192, 16  # how far to look for such a place, in characters: all of it, or by a sample
# How many characters of the text and of the decoded to pass over: the least first, and what the ids lack rather than
# what they have too much.
STEPS = sorted(
    ((more, skipped) for more in range(NEAR + 1) for skipped in range(NEAR + 1) if more or skipped),
    key=lambda step: (sum(step), abs(step[0] - step[1]), step[1]),
)


class Corrections(NamedTuple):
    """num_bytes: UTF-8 bytes of the text that the decoded ids lack; bits: the price of all corrections.

    tail: decoded characters since the last correction, from which the next piece of a story counts.
    """

    num_bytes: int
    bits: int
    tail: int


def corrections(text: str, decoded: str, unknown: Sequence[tuple[int, int]] = (), tail: int = 0) -> Corrections:
    """The price of the corrections that make `decoded` the text.

    unknown: spans of the text, ascending, that the ids are known to lack. tail: that of the piece before.
    """
    if text == decoded:
        return Corrections(0, 0, tail + len(decoded))
    num_bytes = bits = done = 0
    for start, end, inserted in found(text, decoded, unknown):
        count = len(inserted.encode())
        num_bytes += count
        bits += 1 + _gamma(tail + start - done) + _gamma(end - start) + _gamma(count) + 8 * count
        tail, done = 0, end
    return Corrections(num_bytes, bits, tail + len(decoded) - done)


def _gamma(n: int) -> int:
    """Bits of Elias' gamma code for n + 1."""
    return 2 * (n + 1).bit_length() - 1


def found(text: str, decoded: str, unknown: Sequence[tuple[int, int]] = ()) -> Iterator[tuple[int, int, str]]:
    """Corrections as (start, end, what to put there in place of decoded[start:end]), ascending, never touching."""
    known: list[str] = []
    holes: list[tuple[int, int]] = []  # (place in the known text, characters that are missing there)
    begin = length = 0
    for start, end in unknown:
        start = max(start, begin)
        if start < end:
            known.append(text[begin:start])
            length += start - begin
            if holes and holes[-1][0] == length:
                holes[-1] = (length, holes[-1][1] + end - start)
            else:
                holes.append((length, end - start))
            begin = end
    rest = "".join([*known, text[begin:]])
    i = 0
    missing = ahead = 0  # characters of the holes passed; by how many the decoded text is ahead of the known one
    for first, last, start, end in [*_differences(rest, decoded), (len(rest) + 1,) * 4]:
        while i < len(holes) and holes[i][0] < first:
            place, count = holes[i]
            yield place + ahead, place + ahead, text[place + missing : place + missing + count]
            i, missing = i + 1, missing + count
        if first <= len(rest):
            begin = first + missing
            while i < len(holes) and holes[i][0] <= last:
                i, missing = i + 1, missing + holes[i][1]
            yield start, end, text[begin : last + missing]
            ahead = end - last


def _differences(text: str, decoded: str) -> Iterator[tuple[int, int, int, int]]:
    """Where the two differ, as (start, end) in the text and (start, end) in the decoded; found in one walk forward."""
    i = j = 0
    while True:
        alike = _alike(text, i, decoded, j)
        i, j = i + alike, j + alike
        if i == len(text) and j == len(decoded):
            return
        more, skipped = _step(text, i, decoded, j)
        yield i, i + more, j, j + skipped
        i, j = i + more, j + skipped


def _alike(text: str, i: int, decoded: str, j: int) -> int:
    """How many characters are the same from here on."""
    most = min(len(text) - i, len(decoded) - j)
    n, step = 0, 64
    while n < most:
        step = min(step, most - n)
        if text[i + n : i + n + step] == decoded[j + n : j + n + step]:
            n, step = n + step, min(2 * step, 1 << 16)
        elif step == 1:
            return n
        else:
            step //= 2
    return n


def _step(text: str, i: int, decoded: str, j: int) -> tuple[int, int]:
    """How many characters of each to pass over until both say the same again; all, if they never seem to."""
    left, right = len(text) - i, len(decoded) - j
    for more, skipped in STEPS:
        if more <= left and skipped <= right:
            seen = text[i + more : i + more + AGREEMENT]
            if seen == decoded[j + skipped : j + skipped + AGREEMENT] and (seen or (more, skipped) == (left, right)):
                return more, skipped
    for more in range(0, min(left - PROBE, FAR), PROBE):
        place = decoded.find(text[i + more : i + more + PROBE], j, j + FAR)
        if place >= 0 and (more or place > j):
            return more, place - j
    return left, right
