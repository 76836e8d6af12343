"""Texts and tables in Markdown, shown as they are."""

import re
from collections.abc import Sequence

from rhapsode.terminal import literal

SPECIAL = re.compile(r"[\\`*\[\]<>#|$~&]|\b_|_\b")  # $: mathematics, on many pages


def one_line(text: str) -> str:
    """A text for a cell of a table, or for one line of a list; nothing in it is markup."""
    begins = " " * text[:1].isspace()  # a completion may go on in the middle of a word
    return begins + literal(SPECIAL.sub(r"\\\g<0>", " ".join(text.split())))


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; all cells are shown as they are."""
    lines = [header, *rows]
    head, *body = ("| " + " | ".join(one_line(cell) for cell in line) + " |" for line in lines)
    return "\n".join([head, "|" + "---|" * len(header), *body])
