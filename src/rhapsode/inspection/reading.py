"""What a model does with a text: where it looks, and what it expects next."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from rich.text import Text
from torch import Tensor

from rhapsode.model import LanguageModel, SelfAttention
from rhapsode.state import Cache
from rhapsode.tokenizer import Tokenizer

SHADES = " ░▒▓█"


@dataclass(frozen=True)
class Reading:
    """A text as a model read it.

    tokens: printable pieces, the </s> before the text first (T of them). attention: by name of the attending
    part, weights (N, T, T), row t over the tokens it looked at. log_probabilities: (T - 1,), of each token of
    the text after what stands before it, in nats. expected: for each of the T places the likeliest next
    tokens with their probabilities.
    """

    tokens: list[str]
    attention: dict[str, Tensor]
    log_probabilities: list[float]
    expected: list[list[tuple[str, float]]]


@torch.inference_mode()
def read(model: LanguageModel, tokenizer: Tokenizer, text: str, top: int = 5) -> Reading:
    """Runs the model over a text and keeps what it did. Raises ValueError for an empty text."""
    ids = [tokenizer.eos_id, *tokenizer.encode(text)]
    if len(ids) == 1:
        raise ValueError("the text to read must not be empty")
    seen: dict[str, Tensor] = {}
    attending = {name: part for name, part in model.named_modules() if isinstance(part, SelfAttention)}
    for name, part in attending.items():
        part.look = _recording(part.look, name, seen)  # type: ignore[method-assign]
    try:
        logits, _ = model(torch.tensor([ids], device=next(model.parameters()).device))
    finally:
        for part in attending.values():
            del part.look  # the class's own again
    log_probabilities = logits[0].double().log_softmax(-1).cpu()
    likeliest = log_probabilities.topk(min(top, log_probabilities.shape[1]))
    return Reading(
        [tokenizer.token_text(id) for id in ids],
        {name: each[0].cpu() for name, each in seen.items()},
        log_probabilities[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist(),
        [
            [(tokenizer.token_text(id), math.exp(value)) for id, value in zip(row_ids, row, strict=True)]
            for row_ids, row in zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
        ],
    )


def _recording(look: Callable[..., Any], name: str, seen: dict[str, Tensor]) -> Callable[..., Any]:
    def recorded(q: Tensor, k: Tensor, v: Tensor, cache: Cache | None) -> Any:
        seen[name] = weights(q, k)
        return look(q, k, v, cache)

    return recorded


def weights(q: Tensor, k: Tensor) -> Tensor:
    """The attention weights of queries and keys (B, N, T, key_dim), no cache: (B, N, T, T), each row sums to 1."""
    scores = q @ k.mT / math.sqrt(k.shape[-1])
    later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
    return scores.masked_fill(later, -torch.inf).softmax(-1)


def as_text(tokens: Sequence[str], attention: Tensor) -> str:
    """An attention map (T, T) in characters: a row a token, darker where it looks; rows scaled to their largest."""
    width = max(len(token) for token in tokens)
    lines = []
    for token, row in zip(tokens, attention.tolist(), strict=True):
        largest = max(row)
        shades = "".join(SHADES[round((len(SHADES) - 1) * weight / largest)] for weight in row)
        lines.append(f"{token:>{width}} {shades}".rstrip())
    return "\n".join(lines)


def draw(reading: Reading, folder: Path) -> list[Path]:
    """Saves a PNG per attention head and one of the next-token table; needs matplotlib. Returns the files."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("pictures need matplotlib: pip install 'rhapsode[study]'") from None
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, heads in reading.attention.items():
        for head, attention in enumerate(heads):
            size = max(4.0, 0.22 * len(reading.tokens))
            figure = Figure(figsize=(size + 1, size), layout="constrained")
            axes = figure.subplots()
            image = axes.imshow(attention.numpy(), cmap="Greys", vmin=0)
            axes.set_xticks(range(len(reading.tokens)), reading.tokens, rotation=90, fontsize=7)
            axes.set_yticks(range(len(reading.tokens)), reading.tokens, fontsize=7)
            axes.set(xlabel="looks at", ylabel="token", title=f"Attention weights: {name}, head {head + 1}")
            figure.colorbar(image, ax=axes, shrink=0.6, label="weight")
            files.append(folder / f"{name}-head-{head + 1}.png")
            figure.savefig(files[-1], dpi=150)
    files.append(folder / "next-tokens.png")
    _next_tokens(reading, Figure).savefig(files[-1], dpi=150)
    return files


def _next_tokens(reading: Reading, figure_class: Any) -> Any:
    """The table as a picture: a row a place, a cell an expected token, darker where it is likelier."""
    top = len(reading.expected[0])
    figure = figure_class(figsize=(2.4 + 1.3 * top, 0.8 + 0.24 * len(reading.tokens)), layout="constrained")
    axes = figure.subplots()
    probabilities = [[p for _, p in row] for row in reading.expected]
    axes.imshow(probabilities, cmap="Greys", vmin=0, vmax=1, aspect="auto")
    for i, row in enumerate(reading.expected):
        follows = reading.tokens[i + 1] if i + 1 < len(reading.tokens) else None
        for j, (token, p) in enumerate(row):
            style = {"weight": "bold"} if token == follows else {}
            colour = "white" if p > 0.5 else "black"
            axes.text(j, i, f"{token}  {p:.0%}", ha="center", va="center", fontsize=7, color=colour, **style)
    axes.set_yticks(range(len(reading.tokens)), reading.tokens, fontsize=7)
    axes.set_xticks(range(top), [f"{n + 1}." for n in range(top)], fontsize=7)
    axes.set(title="What the model expects next (bold: what came)", ylabel="after")
    return figure


def next_token_table(reading: Reading) -> Table:
    """The expected tokens at each place, for the terminal; what came is marked with an arrow."""
    table = Table(title="what the model expects next", title_justify="left")
    table.add_column("after", justify="right")
    table.add_column("came, at")
    for n in range(len(reading.expected[0])):
        table.add_column(f"{n + 1}.")
    for i, row in enumerate(reading.expected):
        follows = reading.tokens[i + 1] if i + 1 < len(reading.tokens) else None
        came = f"{follows} {math.exp(reading.log_probabilities[i]):.1%}" if follows is not None else ""
        cells = [f"{'→' if token == follows else ''}{token} {p:.0%}" for token, p in row]
        table.add_row(*(Text(cell) for cell in (reading.tokens[i], came, *cells)))
    return table
