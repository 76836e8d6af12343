"""What a model copies: of each token of a text, how probable it is that it was copied, and from where."""

import html
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from rich.table import Table

from rhapsode.figure import COLOURS
from rhapsode.files import replacing
from rhapsode.inspection.reading import PLACES_AT_ONCE, ROWS_OF_TABLE
from rhapsode.model import LanguageModel
from rhapsode.results import LEAST_SHOWN, CopyMap
from rhapsode.tokenizer import Tokenizer

COPIED = 0.5  # from this probability on a word is a copied one
SOURCES_OF_TABLE = 3
LINE, CHARACTER, MARGIN = 46, 8.4, 24  # the picture's line height, the width of a character, its margin
COLUMNS, PLAIN = 84, "#222222"


@torch.inference_mode()
def copy_map(model: LanguageModel, tokenizer: Tokenizer, text: str) -> CopyMap:
    """Runs the model over a text. Raises ValueError for an empty text, and for a model that has no copy head."""
    head = model.copy_head
    if head is None:
        raise ValueError("this model has no copy head: it was trained with copy_dim = 0")
    ids = [tokenizer.eos_id, *tokenizer.encode(text)]
    if len(ids) == 1:
        raise ValueError("the text to read must not be empty")
    tokens = torch.tensor([ids], device=next(model.parameters()).device)
    x, state = model.features(tokens)
    assert state.copies is not None
    probabilities, gates = [0.0], [0.0]
    sources: list[list[tuple[int, float]]] = [[]]
    for begin in range(0, len(ids) - 1, PLACES_AT_ONCE):
        now = slice(begin, min(begin + PLACES_AT_ONCE, len(ids) - 1))  # the places before the tokens that are told of
        targets = tokens[:, now.start + 1 : now.stop + 1]
        origins = head.origins(model.lm_head(x[:, now]), x[:, now], state.copies.until(now.stop), targets)[0]
        gates += head.gate(x[0, now])[:, 0].sigmoid().tolist()
        probabilities += origins.sum(1).clamp(max=1).tolist()
        for row in origins:
            places = row.gt(LEAST_SHOWN).nonzero()[:, 0]
            order = places[row[places].argsort(descending=True, stable=True)]
            sources.append(list(zip(order.tolist(), row[order].tolist(), strict=True)))
    return CopyMap([tokenizer.token_text(id) for id in ids], gates, probabilities, sources)


def copy_table(copies: CopyMap) -> Iterator[Table]:
    """For the terminal: each token, how probable it is that it was copied, and the likeliest places it came from.

    A long text has a table for every ROWS_OF_TABLE tokens, so that the first is there at once.
    """
    for begin in range(1, len(copies.tokens), ROWS_OF_TABLE):
        table = Table(title="what the model copies", title_justify="left")
        table.add_column("", justify="right")
        table.add_column("token")
        table.add_column("copied", justify="right")
        table.add_column("from")
        for place in range(begin, min(begin + ROWS_OF_TABLE, len(copies.tokens))):
            came_from = ", ".join(
                f"{source} {copies.tokens[source]} {share:.0%}"
                for source, share in copies.sources[place][:SOURCES_OF_TABLE]
                if share >= 0.005
            )
            table.add_row(str(place), copies.tokens[place], f"{copies.probabilities[place]:.0%}", came_from)
        yield table


class CopiedWord(NamedTuple):
    """A word of a text. copied: how probable it is that any of its tokens was. source: where that is at least COPIED,
    the number of the word that it came from."""

    text: str
    copied: float
    source: int | None


def copied_words(copies: CopyMap) -> list[CopiedWord]:
    """The words of a text, the </s> before it first."""
    tokens = copies.tokens
    begins = [
        place
        for place, token in enumerate(tokens)
        if place <= 1 or not token[:1].isalnum() or not tokens[place - 1][-1:].isalnum()
    ]
    spans = [range(begin, end) for begin, end in zip(begins, [*begins[1:], len(tokens)], strict=True)]
    word_of = {place: number for number, span in enumerate(spans) for place in span}
    words = []
    for span in spans:
        text = "".join(tokens[place] for place in span)
        copied = 1 - math.prod(1 - copies.probabilities[place] for place in span)
        best = max((source[::-1] for place in span for source in copies.sources[place]), default=None)
        lettered = any(character.isalpha() for character in text)
        is_copied = lettered and copied >= COPIED and best is not None
        words.append(CopiedWord(text, copied, word_of[best[1]] if is_copied and best is not None else None))
    return words


def draw_copies(copies: CopyMap, file: Path) -> Path:
    """Saves the text as an SVG in which each copied word points to the word that it was copied from; returns the file.

    A word and all that goes back to it have one colour; copied words are bold.
    """
    words = copied_words(copies)
    roots: list[int] = []  # of each word, the first of those that it goes back to
    for number, word in enumerate(words):
        roots.append(number if word.source is None else roots[word.source])
    copied_from = dict.fromkeys(root for number, root in enumerate(roots) if root != number)
    colours = {root: COLOURS[i % len(COLOURS)] for i, root in enumerate(copied_from)}
    shapes: list[str] = []
    middles = [(0.0, 0.0)]  # of each word, that at its foot; </s> is not drawn
    x, y = float(MARGIN), float(MARGIN + LINE)
    for number, word in enumerate(words[1:], start=1):
        for i, part in enumerate(word.text.replace("▁", " ").split("\\n")):
            bare = part.strip(" ")
            if i or x + CHARACTER * len(part) > MARGIN + CHARACTER * COLUMNS:
                x, y = float(MARGIN), y + (LINE if x > MARGIN else LINE / 2)
            elif x > MARGIN:
                x += CHARACTER * (len(part) - len(part.lstrip(" ")))
            width = CHARACTER * len(bare)
            middles[number:] = [(x + width / 2, y)]
            if bare:
                colour, weight = colours.get(roots[number], PLAIN), "" if word.source is None else ' font-weight="bold"'
                title = "" if word.source is None else f"<title>{html.escape(bare)}: copied, {word.copied:.0%}</title>"
                shapes.append(
                    f'<text x="{x:.1f}" y="{y:.1f}" textLength="{width:.1f}" lengthAdjust="spacingAndGlyphs"'
                    f' fill="{colour}"{weight}>{html.escape(bare)}{title}</text>'
                )
            x += width
        if word.source:
            shapes.append(_arrow(middles[number], middles[word.source], colours[roots[number]], word.copied))
    width, height = 2 * MARGIN + CHARACTER * COLUMNS, y + MARGIN
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}"'
        ' font-family="monospace" font-size="14"><rect width="100%" height="100%" fill="white"/>'
    )
    with replacing(file) as temporary:
        temporary.write_text("\n".join([head, *shapes, "</svg>", ""]), encoding="utf-8")
    return file


def _arrow(start: tuple[float, float], end: tuple[float, float], colour: str, share: float) -> str:
    """A curve from above a word to above another, or to below it where that stands on an earlier line."""
    (x, y), (to_x, to_y) = start, end
    y -= 13
    if to_y == start[1]:
        to_y -= 13
        top = y - min(22, 8 + abs(x - to_x) / 12)
        curve, tip = f"C {x:.1f} {top:.1f} {to_x:.1f} {top:.1f} {to_x:.1f} {to_y:.1f}", "l -3 -5 h 6 z"
    else:
        to_y += 5
        curve, tip = f"C {x:.1f} {y - 18:.1f} {to_x:.1f} {to_y + 18:.1f} {to_x:.1f} {to_y:.1f}", "l -3 5 h 6 z"
    line = f'<path d="M {x:.1f} {y:.1f} {curve}" fill="none" stroke="{colour}" stroke-width="1.5"'
    return (
        f'{line} stroke-opacity="{0.7 * share:.2f}"/><path d="M {to_x:.1f} {to_y:.1f} {tip}" fill="{colour}"'
        f' fill-opacity="{0.7 * share:.2f}"/>'
    )
