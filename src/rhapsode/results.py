"""What a model gives back: completions, scores, next tokens, attention; in a notebook each shows itself."""

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from rhapsode.state import State

MOST_SHOWN = 200  # tokens of a side of an attention map in a notebook
LEAST_SHOWN = 0.001  # of the probability that a token was copied from a place


def check_count(k: int) -> None:
    """Raises ValueError for a number of tokens below 1."""
    if k < 1:
        raise ValueError(f"k, the number of tokens, must be >= 1, got {k}")


@dataclass(frozen=True)
class NextToken:
    """A token that may come next. text: as tables show it (a blank is ▁); probability; log_probability in nats."""

    id: int
    text: str
    log_probability: float

    @property
    def probability(self) -> float:
        return math.exp(self.log_probability)


@dataclass(frozen=True)
class Completion:
    """What was written after a prompt: the new tokens only.

    prompt: what it continues. text: the new text, without a stop text. tokens: the new ids, an end token among them.
    log_probabilities: of each of them in nats, under the model itself (before temperature and filters).
    finish_reason: `stop` (the model ended the text, or a stop text came) or `length` (max_tokens).
    """

    prompt: str
    text: str
    tokens: list[int]
    log_probabilities: list[float]
    finish_reason: str
    _read: Callable[[], State] = field(repr=False, compare=False)
    _top: Callable[[int], list[list[NextToken]]] = field(repr=False, compare=False)

    @cached_property
    def state(self) -> State:
        """The model's memory after the prompt and the new tokens, to continue from; made when it is first asked for."""
        return self._read()

    def top(self, k: int = 5) -> list[list[NextToken]]:
        """For each new token the k likeliest that could have stood there, the likeliest first.

        The text is read again for it; what it says of a token that was drawn is what `log_probabilities` says. Raises
        ValueError where k is below 1.
        """
        check_count(k)
        return self._top(k)

    def __str__(self) -> str:
        return self.prompt + self.text

    def _repr_html_(self) -> str:
        prompt = f'<span style="opacity:.6">{html.escape(self.prompt)}</span>'
        return f'<div style="white-space:pre-wrap">{prompt}{html.escape(self.text)}</div>'


@dataclass(frozen=True)
class TextScore:
    """How well a model expects one text.

    nats: summed negative log-likelihood of its tokens, of the end of the text too. tokens: how many. bytes: of the text
    in UTF-8. unspelled_bytes: how many of them the tokenizer cannot spell; correction_bits: what it takes to say them
    beside the tokens (0 where nothing is missing). token_log_probabilities: of each token in nats, with per_token.
    """

    nats: float
    tokens: int
    bytes: int
    unspelled_bytes: int = 0
    correction_bits: int = 0
    token_log_probabilities: list[float] | None = None

    @property
    def bits_per_byte(self) -> float | None:
        """Compression in bits per UTF-8 byte, the corrections included; None for an empty text."""
        return (self.nats / math.log(2) + self.correction_bits) / self.bytes if self.bytes else None


@dataclass(frozen=True)
class Scores:
    """How well a model expects some texts: each of them, and all together under the same names."""

    texts: list[TextScore]

    @property
    def nats(self) -> float:
        """Summed over all texts."""
        return math.fsum(text.nats for text in self.texts)

    @property
    def tokens(self) -> int:
        """Of all texts."""
        return sum(text.tokens for text in self.texts)

    @property
    def bytes(self) -> int:
        """Of all texts, in UTF-8."""
        return sum(text.bytes for text in self.texts)

    @property
    def unspelled_bytes(self) -> int:
        """How many of the bytes the tokenizer cannot spell."""
        return sum(text.unspelled_bytes for text in self.texts)

    @property
    def correction_bits(self) -> int:
        """What it takes to say them beside the tokens, and where in which text; 0 where nothing is missing."""
        bits = sum(text.correction_bits - 1 for text in self.texts if text.correction_bits)
        return bits + len(self.texts) if bits else 0  # a bit ends the corrections of each text

    @property
    def bits_per_byte(self) -> float | None:
        """Of all texts together, the corrections included: a ratio of sums, never a mean of ratios.

        None where there is no byte.
        """
        return (self.nats / math.log(2) + self.correction_bits) / self.bytes if self.bytes else None

    @property
    def perplexity(self) -> float:
        """exp of the mean loss of a token; infinite where that is more than a float can hold."""
        mean = self.nats / self.tokens
        return math.exp(mean) if mean < 709 else math.inf


@dataclass(frozen=True)
class AttentionMap:
    """Where a model looked while it read a text.

    tokens: as tables show them, the </s> before the text first (T of them). weights: by name of the part that attends,
    float arrays (N heads, T, T); row t sums to 1 over the tokens that token t looked at.
    """

    tokens: list[str]
    weights: dict[str, Any]

    def _repr_html_(self) -> str:
        parts = []
        count = min(len(self.tokens), MOST_SHOWN)
        for name, heads in self.weights.items():
            for number, head in enumerate(heads, start=1):
                parts.append(f"<p>{html.escape(name)}, head {number}: each row attends to the columns</p>")
                parts.append(_heat_map(self.tokens[:count], head[:count, :count].tolist()))
        if count < len(self.tokens):
            parts.append(f"<p>the first {count} of {len(self.tokens):,} tokens</p>")
        return "".join(parts) or "<p>this model has no attention</p>"


@dataclass(frozen=True)
class CopyMap:
    """What a model with a copy head copied while it read a text, and from where.

    tokens: as tables show them, the </s> before the text first (T of them). gates: of each, how much the model wanted
    to copy before it saw which token came; probabilities: how probable it then is that this one was copied and not
    chosen from the vocabulary (0 for the first). sources: where from, likeliest first, as pairs of a place in tokens
    and a probability, which sum to that of the token, but for places of less than LEAST_SHOWN.
    """

    tokens: list[str]
    gates: list[float]
    probabilities: list[float]
    sources: list[list[tuple[int, float]]]

    def _repr_html_(self) -> str:
        parts = []
        for place, token in enumerate(self.tokens[1:], start=1):
            share, title = self.probabilities[place], ""
            if self.sources[place]:
                source, most = self.sources[place][0]
                where = f"{share:.0%} copied, {most:.0%} from token {source}: {self.tokens[source]}"
                title = f' title="{html.escape(where)}"'
            shown = html.escape(token.replace("▁", " "))
            parts.append(f'<span{title} style="background:rgba(0,114,178,{0.5 * share:.2f})">{shown}</span>')
        return f'<div style="white-space:pre-wrap">{"".join(parts)}</div>'


def _heat_map(tokens: Sequence[str], weights: Sequence[Sequence[float]]) -> str:
    """An SVG: a square for each pair, the fuller the larger the weight; its numbers on hovering."""
    size, left = 14, 8 * min(16, max(map(len, tokens)))
    width, height = left + size * len(tokens), left + size * len(tokens)
    shapes = []
    for i, row in enumerate(weights):
        y = left + size * i
        label = html.escape(tokens[i][:16])
        shapes.append(f'<text x="{left - 4}" y="{y + size - 4}" text-anchor="end">{label}</text>')
        x = left + size * i + size - 4
        shapes.append(f'<text transform="translate({x},{left - 4}) rotate(-90)">{label}</text>')
        for j, weight in enumerate(row[: i + 1]):
            if weight >= 0.005:
                title = html.escape(f"{tokens[i]} attends to {tokens[j]}: {weight:.0%}")
                place = f'x="{left + size * j}" y="{y}" width="{size}" height="{size}"'
                shapes.append(f'<rect {place} fill-opacity="{weight:.2f}"><title>{title}</title></rect>')
    style = "font:10px monospace;fill:currentColor"
    return f'<svg width="{width}" height="{height}" style="{style}">{"".join(shapes)}</svg>'
