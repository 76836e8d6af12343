"""From what an engine makes of a text to what a client is told: parts that follow each other, or their sum."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rhapsode.decode import Alternative, Happening, PromptRead, Written
from rhapsode.decode.ending import SPELLING_CONTEXT
from rhapsode.tokenizer import Tokenizer
from rhapsode.trained import FINISH_REASONS


@dataclass(frozen=True)
class PromptTokens:
    """A prompt: its ids, without the begin token unless it has one itself, and its text if it came as one."""

    ids: Sequence[int]
    text: str | None

    def read(self, eos_id: int) -> list[int]:
        """What the model reads: a text begins with the end token, as in training; not with two of them."""
        return list(self.ids) if self.ids and self.ids[0] == eos_id else [eos_id, *self.ids]


@dataclass
class TextPart:
    """A part of a text: what came since the last one. The lists have an entry for each of its tokens.

    log_probabilities: in nats; None for the first token of a prompt, as are its `tops`. offsets: where a token begins
    in the whole text, in characters, stop texts counted. finish_reason: in the last part.
    """

    text: str = ""
    ids: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    log_probabilities: list[float | None] = field(default_factory=list)
    tops: list[dict[str, float] | None] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    finish_reason: str | None = None

    def extend(self, other: "TextPart") -> None:
        """Adds the part that follows this one."""
        self.text += other.text
        for name in ("ids", "names", "log_probabilities", "tops", "offsets"):
            getattr(self, name).extend(getattr(other, name))
        self.finish_reason = other.finish_reason


class Telling:
    """Makes the parts of one text from the engine's events.

    echo: whether the prompt's text comes first; top: how many of the likeliest tokens are told beside each, None where
    log-probabilities are not wanted; ends: whether nothing is written after the prompt.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: PromptTokens, echo: bool, top: int | None, ends: bool) -> None:
        self.tokenizer, self.prompt, self.echo, self.top, self.ends = tokenizer, prompt, echo, top, ends
        self.written = self.cached = 0
        self.nats = 0.0  # summed log-probability of what was written
        # What the text is in tokens, where they begin; the engine's own text keeps back what a stop text may claim.
        self._stream = tokenizer.stream()
        self._length = 0

    @property
    def mean_log_probability(self) -> float:
        """Of a token that was written; what the best of several is chosen by."""
        return self.nats / max(1, self.written)

    def part(self, events: Sequence[Happening]) -> TextPart:
        """What some events add."""
        part = TextPart()
        for event in events:
            if isinstance(event, PromptRead):
                self._read(event, part)
            elif isinstance(event, Written):
                self._write(event, part)
        return part

    def _read(self, event: PromptRead, part: TextPart) -> None:
        self.cached = min(event.cached, len(self.prompt.ids))
        if event.ended:
            part.finish_reason = FINISH_REASONS[event.ended]
        ids = self.prompt.ids
        if not self.echo:
            if self.top is not None:
                for id in self.prompt.read(self.tokenizer.eos_id)[-SPELLING_CONTEXT:]:
                    self._stream.push(id)
            return
        places, text = [], ""
        for id in ids:
            places.append(len(text))
            text += self._stream.push(id)
        if self.ends:
            text += self._stream.flush()
        if self.prompt.text is not None and text != self.prompt.text:
            text = self.prompt.text
            spans = self.tokenizer.spans(text)
            places = [start for start, _ in spans] if len(spans) == len(ids) else [min(p, len(text)) for p in places]
        part.text += text
        self._length = len(text)
        part.ids += ids
        if self.top is None:
            return
        part.names += [self.tokenizer.names[id] for id in ids]
        part.offsets += places
        for score in event.scores[len(event.scores) - len(ids) :]:
            part.log_probabilities.append(score.log_probability)
            part.tops.append(self._named(score.id, score.log_probability, score.top))
        if ids:
            part.log_probabilities[0] = part.tops[0] = None

    def _write(self, event: Written, part: TextPart) -> None:
        self.written += 1
        self.nats += event.log_probability
        part.text += event.text
        part.ids.append(event.id)
        part.log_probabilities.append(event.log_probability)
        if event.ended:
            part.finish_reason = FINISH_REASONS[event.ended]
        if self.top is None:
            return
        part.names.append(self.tokenizer.names[event.id])
        part.offsets.append(self._length)
        part.tops.append(self._named(event.id, event.log_probability, event.top))
        self._length += len(self._stream.push(event.id))

    def _named(self, id: int, value: float | None, top: Sequence[Alternative]) -> dict[str, float] | None:
        """The likeliest tokens by name, the likeliest first, and the token that stands there."""
        if value is None:
            return None
        names = self.tokenizer.names
        found = {names[each.id]: each.log_probability for each in top}
        found.setdefault(names[id], value)
        return found


def completion_choice(index: int, part: TextPart, with_log_probabilities: bool, with_ids: bool) -> dict[str, Any]:
    """A part in the shape of /v1/completions."""
    told = None
    if with_log_probabilities:
        told = {
            "tokens": part.names,
            "token_logprobs": part.log_probabilities,
            "top_logprobs": part.tops,
            "text_offset": part.offsets,
        }
    choice = {"index": index, "text": part.text, "logprobs": told, "finish_reason": part.finish_reason}
    return choice | {"token_ids": part.ids} if with_ids else choice


def chat_choice(
    index: int, part: TextPart, told: "Telling | None", with_ids: bool, delta: bool, first: bool
) -> dict[str, Any]:
    """A part in the shape of /v1/chat/completions: a message, or a delta of which the first has the role.

    told: whose part it is, where log-probabilities are wanted.
    """
    log_probabilities = None
    if told is not None:
        log_probabilities = {
            "content": [
                {
                    **_chat_token(told.tokenizer, name, value),
                    "top_logprobs": [_chat_token(told.tokenizer, *each) for each in (top or {}).items()],
                }
                for name, value, top in zip(part.names, part.log_probabilities, part.tops, strict=True)
            ]
        }
    message = {"role": "assistant", "content": part.text} if first or not delta else {"content": part.text}
    choice: dict[str, Any] = {"index": index, "delta" if delta else "message": message, "logprobs": log_probabilities}
    choice["finish_reason"] = part.finish_reason
    return choice | {"token_ids": part.ids} if with_ids else choice


def _chat_token(tokenizer: Tokenizer, name: str, value: float | None) -> dict[str, Any]:
    specials = (tokenizer.eos_id, tokenizer.pad_id, tokenizer.unk_id)
    if name in (tokenizer.names[id] for id in specials if id is not None):
        spelled = b""
    elif name.startswith("bytes:\\x"):
        spelled = bytes.fromhex(name.removeprefix("bytes:").replace("\\x", ""))
    else:
        spelled = name.replace("▁", " ").encode()
    return {"token": name, "logprob": value, "bytes": list(spelled)}


def usage(prompt_tokens: int, written: int, cached: int) -> dict[str, Any]:
    """The counts of an answer."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": written,
        "total_tokens": prompt_tokens + written,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
