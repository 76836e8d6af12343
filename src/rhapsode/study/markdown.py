"""Texts and tables in Markdown, shown as they are."""

from collections.abc import Sequence

SPECIAL = ("\\", "|", "*", "_", "`", "<", ">", "#", "$", "~", "[", "]")  # $: mathematics, on many pages


def one_line(text: str) -> str:
    """A text for a cell of a table, or for one line of a list; nothing in it is markup."""
    for character in SPECIAL:
        text = text.replace(character, "\\" + character)
    return " " * text[:1].isspace() + " ".join(text.split())  # a completion may go on in the middle of a word


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; all cells are shown as they are."""
    lines = [header, *rows]
    head, *body = ("| " + " | ".join(one_line(cell) for cell in line) + " |" for line in lines)
    return "\n".join([head, "|" + "---|" * len(header), *body])
