"""What a model does with a text: where it looks, and what it expects next."""

import gc
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from rhapsode.figure import LITERAL_TEXT
from rhapsode.files import replacing
from rhapsode.kernels.attention import attention_weights
from rhapsode.model import LanguageModel, SelfAttention
from rhapsode.tokenizer import Tokenizer

SHADES = " ░▒▓█"
MOST_CELLS = 128  # of an attention map, in each direction; and places of the picture of what is expected
PLACES_AT_ONCE = 512  # that get logits
ROWS_OF_TABLE = 1_000
MOST_COLUMNS = 20  # of the picture of what is expected: matplotlib draws no picture of any width
MOST_PIXELS = 3_000  # of a picture, in each direction: matplotlib takes some 25 bytes of memory for each pixel
ROWS_AT_ONCE = 64  # of the attention weights, over all the tokens before them


@dataclass(frozen=True)
class Reading:
    """A text as a model read it.

    tokens: printable pieces, the </s> before the text first (T of them). group: tokens to a cell of a map, 1 where
    there are at most MOST_CELLS tokens. attention: by name of the attending part, maps (N, M, M), M = ceil(T / group):
    how much of its look a group of tokens gives to each group, the mean over its tokens, so that each row sums to 1;
    with groups of one token these are the weights. log_probabilities: (T - 1,), of each token of the text after what
    stands before it, in nats. expected: for each of the T places the likeliest next tokens with their probabilities.
    """

    tokens: list[str]
    group: int
    attention: dict[str, Tensor]
    log_probabilities: list[float]
    expected: list[list[tuple[str, float]]]

    @property
    def labels(self) -> list[str]:
        """What stands beside the rows of a map: a token each, or the number and the first token of a group."""
        if self.group == 1:
            return self.tokens
        return [f"{place + 1:,} {self.tokens[place]}" for place in range(0, len(self.tokens), self.group)]


@torch.inference_mode()
def read(
    model: LanguageModel,
    tokenizer: Tokenizer,
    text: str,
    top: int = 5,
    on_tokens: Callable[[float], None] | None = None,
) -> Reading:
    """Runs the model over a text and keeps what it did; memory grows with the text's length, not with its square.

    on_tokens hears of progress. Raises ValueError for an empty text.
    """
    ids = [tokenizer.eos_id, *tokenizer.encode(text)]
    if len(ids) == 1:
        raise ValueError("the text to read must not be empty")
    with _recording(model, len(ids), on_tokens) as maps:
        x, after = model.features(torch.tensor([ids], device=next(model.parameters()).device))
    log_probabilities: list[float] = []
    expected: list[list[tuple[str, float]]] = []
    for begin in range(0, len(ids), PLACES_AT_ONCE):
        end = min(begin + PLACES_AT_ONCE, len(ids))
        logits = model.logits(x[:, begin:end], after.copies and after.copies.until(end))
        found = logits[0].double().log_softmax(-1).cpu()  # (places, V)
        came = torch.tensor(ids[begin + 1 : begin + 1 + len(found)])
        log_probabilities += found[: len(came)].gather(1, came[:, None])[:, 0].tolist()
        likeliest = found.topk(min(top, found.shape[1]))
        expected += [
            [(tokenizer.token_text(id), math.exp(value)) for id, value in zip(row_ids, row, strict=True)]
            for row_ids, row in zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
        ]
    tokens = [tokenizer.token_text(id) for id in ids]
    return Reading(tokens, _group(len(ids)), maps, log_probabilities, expected)


def _group(length: int) -> int:
    """Tokens to a cell of a map."""
    return -(-length // MOST_CELLS)


@contextmanager
def _recording(
    model: LanguageModel, length: int, on_tokens: Callable[[float], None] | None
) -> Iterator[dict[str, Tensor]]:
    """Yields what will be the maps (N, M, M) of each attending part once the model has read `length` tokens."""
    maps: dict[str, Tensor] = {}
    attending = {name: part for name, part in model.named_modules() if isinstance(part, SelfAttention)}

    def told(tokens: float) -> None:
        if on_tokens is not None:
            on_tokens(tokens / len(attending))

    def recorder(name: str) -> Callable[[SelfAttention, tuple[Tensor, ...]], None]:
        def before_it_attends(part: SelfAttention, read: tuple[Tensor, ...]) -> None:
            q, k, _ = part.project(read[0])
            maps[name] = map_of(q[0], k[0], _group(length), told)

        return before_it_attends

    hooks = [part.register_forward_pre_hook(recorder(name)) for name, part in attending.items()]
    try:
        yield maps
    finally:
        for hook in hooks:
            hook.remove()


def map_of(q: Tensor, k: Tensor, group: int, on_tokens: Callable[[float], None] | None = None) -> Tensor:
    """The attention weights of queries and keys (N, T, key_dim) by groups of tokens, as `Reading` has them: (N, M, M).

    ROWS_AT_ONCE rows of the T by T weights exist at once.
    """
    length = q.shape[1]
    cells = -(-length // group)
    found = torch.zeros(q.shape[0], cells, cells)
    for begin in range(0, length, ROWS_AT_ONCE):
        rows = q[:, begin : begin + ROWS_AT_ONCE]
        visible = begin + rows.shape[1]  # none looks further
        share = F.pad(attention_weights(rows, k[:, :visible]), (0, -visible % group))
        by_group = share.unflatten(-1, (-1, group)).sum(-1).cpu()
        found[:, :, : by_group.shape[-1]].index_add_(1, torch.arange(begin, visible) // group, by_group)
        if on_tokens:
            on_tokens(rows.shape[1])
    sizes = torch.tensor([min(group, length - begin) for begin in range(0, length, group)])
    return found / sizes[:, None]


def as_text(tokens: Sequence[str], attention: Tensor) -> str:
    """An attention map (T, T) in characters: a row a token, darker where it looks; rows scaled to their largest."""
    width = max(len(token) for token in tokens)
    lines = []
    for token, row in zip(tokens, attention.tolist(), strict=True):
        largest = max(row)
        shades = "".join(SHADES[round((len(SHADES) - 1) * weight / largest)] for weight in row)
        lines.append(f"{token:>{width}} {shades}".rstrip())
    return "\n".join(lines)


def about_groups(reading: Reading) -> str:
    """What a cell of the maps is, where it is more than a token; empty where it is one."""
    if reading.group == 1:
        return ""
    return f"{len(reading.tokens):,} tokens, {reading.group} per cell: the average of their attention weights"


def draw_reading(reading: Reading, folder: Path) -> list[Path]:
    """Saves a PNG per attention head and one of the next-token table; needs matplotlib. Returns the files.

    The table's picture shows the last MOST_CELLS places.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("pictures need matplotlib: pip install 'rhapsode[study]'") from None
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    with matplotlib.rc_context(LITERAL_TEXT), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # it is drawn as a box; nothing to be done
        for name, heads in reading.attention.items():
            for head, attention in enumerate(heads):
                figure = _map(reading, attention, f"Attention weights: {name}, head {head + 1}", Figure)
                files.append(_save(figure, folder / f"{name}-head-{head + 1}.png"))
        files.append(_save(_next_tokens(reading, Figure), folder / "next-tokens.png"))
    return files


def _save(figure: Any, file: Path) -> Path:
    with replacing(file) as temporary:
        figure.savefig(temporary, format="png", dpi=min(150.0, MOST_PIXELS / max(figure.get_size_inches())))
    gc.collect()  # a figure is part of circles of references, and its pixels stay till then
    return file


def _map(reading: Reading, attention: Tensor, title: str, figure_class: Any) -> Any:
    from matplotlib.colors import PowerNorm

    labels = reading.labels
    size = max(4.0, 0.22 * len(labels))
    figure = figure_class(figsize=(size + 1, size), layout="constrained")
    axes = figure.subplots()
    # By the square root: the first tokens have little to look at, and beside their weights all others would be pale.
    image = axes.imshow(attention.numpy(), cmap="Greys", norm=PowerNorm(0.5, vmin=0, vmax=float(attention.max())))
    axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=7)
    axes.set_yticks(range(len(labels)), labels, fontsize=7)
    axes.set(xlabel="looks at", ylabel="token", title="\n".join(filter(None, (title, about_groups(reading)))))
    figure.colorbar(image, ax=axes, shrink=0.6, label="weight")
    return figure


def _next_tokens(reading: Reading, figure_class: Any) -> Any:
    """The table as a picture: a row a place, a cell an expected token, darker where it is likelier."""
    count = len(reading.tokens)
    shown = range(max(0, count - MOST_CELLS), count)
    top = min(MOST_COLUMNS, len(reading.expected[0]))
    figure = figure_class(figsize=(2.4 + 1.3 * top, 0.8 + 0.24 * len(shown)), layout="constrained")
    axes = figure.subplots()
    probabilities = [[p for _, p in reading.expected[i][:top]] for i in shown]
    axes.imshow(probabilities, cmap="Greys", vmin=0, vmax=1, aspect="auto")
    for row, i in enumerate(shown):
        follows = reading.tokens[i + 1] if i + 1 < count else None
        for j, (token, p) in enumerate(reading.expected[i][:top]):
            style = {"weight": "bold"} if token == follows else {}
            colour = "white" if p > 0.5 else "black"
            axes.text(j, row, f"{token}  {p:.0%}", ha="center", va="center", fontsize=7, color=colour, **style)
    axes.set_yticks(range(len(shown)), [reading.tokens[i] for i in shown], fontsize=7)
    axes.set_xticks(range(top), [f"{n + 1}." for n in range(top)], fontsize=7)
    part = f", the last {len(shown)} of {count:,} positions" if len(shown) < count else ""
    axes.set(title=f"What the model expects next{part} (bold: the token that came)", ylabel="after")
    return figure


def next_token_tables(reading: Reading) -> Iterator[Table]:
    """The expected tokens at each place, for the terminal; what came is marked with an arrow.

    A long text has a table for every ROWS_OF_TABLE places, so that the first is there at once.
    """
    count = len(reading.tokens)
    for begin in range(0, count, ROWS_OF_TABLE):
        end = min(begin + ROWS_OF_TABLE, count)
        part = f", positions {begin + 1:,} to {end:,} of {count:,}" if count > ROWS_OF_TABLE else ""
        table = Table(title=f"what the model expects next{part}", title_justify="left")
        table.add_column("after", justify="right")
        table.add_column("came, at")
        for n in range(len(reading.expected[0])):
            table.add_column(f"{n + 1}.")
        for i in range(begin, end):
            follows = reading.tokens[i + 1] if i + 1 < count else None
            came = f"{follows} {math.exp(reading.log_probabilities[i]):.1%}" if follows is not None else ""
            cells = [f"{'→' if token == follows else ''}{token} {p:.0%}" for token, p in reading.expected[i]]
            table.add_row(reading.tokens[i], came, *cells)
        yield table
