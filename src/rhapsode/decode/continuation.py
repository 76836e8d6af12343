"""How a text goes on: a prompt is read in pieces, then drawn token after token, several samples side by side.

Decoding keeps the state and its growing cache; what stands before is read once. The weights are folded once (fold.py).
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from rhapsode.decode.filters import keep_min_p, keep_top_k, keep_top_p, penalise_repetition
from rhapsode.fold import Folded
from rhapsode.model import LanguageModel
from rhapsode.seeds import check_seed, seeded_generator
from rhapsode.state import State
from rhapsode.threads import ThreadChooser, chosen_threads
from rhapsode.tokenizer import Tokenizer

SPELLING_CONTEXT = 32  # ids before a new one that decide how it is spelled: more than a character has bytes
PIECE = 512  # tokens of a prompt that are read at once


@dataclass(frozen=True)
class SampleConfig:
    """How text is drawn.

    max_tokens 0 writes nothing. temperature 0 is greedy. top_k, top_p, min_p: 0, 1.0 and 0.0 leave all tokens in.
    repetition_penalty: above 1 makes tokens that are there already less likely. stop: texts at which writing ends, left
    out themselves. seed: sample i of a call is drawn with seed + i, whatever the others are. frequency_penalty,
    presence_penalty: taken off a token's logit for each time, and once, that it was written (not: in the prompt).
    logit_bias: id -> what is added to its logit, before anything else.
    """

    max_tokens: int = 256
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.max_tokens < 0:
            raise ValueError(f"max_tokens must be >= 0, got {self.max_tokens}")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be >= 0, got {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be >= 0 (0 for all), got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p must be in [0, 1], got {self.min_p}")
        if not 0 < self.repetition_penalty < float("inf"):
            raise ValueError(f"repetition_penalty must be > 0, got {self.repetition_penalty}")
        for name in ("frequency_penalty", "presence_penalty"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be a finite number, got {getattr(self, name)}")
        for id, bias in self.logit_bias.items():
            if id < 0 or not math.isfinite(bias):
                raise ValueError(f"logit_bias must give finite numbers for token ids, got {bias} for {id}")
        check_seed(self.seed)
        if "" in self.stop:
            raise ValueError("stop must not be an empty text")


def choose_token(logits: Tensor, config: SampleConfig, seen: Tensor, generator: torch.Generator) -> int:
    """The next token after logits (V,), with the ids seen so far (n,); the generator draws on the CPU.

    Raises FloatingPointError for logits that are not numbers: the model that made them is spoilt.
    """
    logits = logits.double().cpu()
    if not logits.isfinite().all():
        raise FloatingPointError("the model's logits are not finite numbers, so its training failed")
    if config.repetition_penalty != 1 and len(seen):
        logits = penalise_repetition(logits, seen, config.repetition_penalty)
    if config.temperature == 0:
        return int(logits.argmax())
    # Less the largest, which changes no probability: divided by a tiny temperature it stays a number.
    logits = keep_top_k((logits - logits.max()) / config.temperature, config.top_k)
    logits = keep_min_p(keep_top_p(logits, config.top_p), config.min_p)
    return int(torch.multinomial(logits.softmax(0), 1, generator=generator))


class Written(NamedTuple):
    """One token of sample number `sample`: its id, its natural log-probability under the model itself (before any
    temperature or filter), and the text that is now certain, which may be empty. ended: None, or why this was
    the last: `end of text`, `stop`, `length`.
    """

    sample: int
    id: int
    log_probability: float
    text: str
    ended: str | None


@torch.inference_mode()
def read_text(model: LanguageModel | Folded, tokenizer: Tokenizer, text: str, state: State | None = None) -> State:
    """The state after a text: with its ids (1, S) and the logits (1, V) of what comes next.

    state: None where the text begins, after </s> as in training; else what `read_text` gave for what stands before it.
    Read in pieces, so that memory does not grow with the square of a long text.
    """
    if state is None:
        ids = [tokenizer.eos_id, *tokenizer.encode(text)]
    else:
        ids = tokenizer.encode_batch([text], [True])[0].tolist()
    if not ids:
        assert state is not None
        return state
    tokens = torch.tensor([ids], device=device_of(model))
    return read_tokens(model, tokens, state)


@torch.inference_mode()
def read_tokens(model: LanguageModel | Folded, tokens: Tensor, state: State | None = None) -> State:
    """The state after tokens (B, T), T >= 1, and after what `state` has read before them; with ids and logits."""
    before = None if state is None else state.ids
    fingerprint = "" if state is None else state.fingerprint
    logits = torch.empty(0)
    for piece in tokens.split(PIECE, dim=1):
        logits, state = model(piece, state)
    assert state is not None
    ids = tokens if before is None else torch.cat((before, tokens), dim=1)
    return replace(state, logits=logits[:, -1], ids=ids, fingerprint=fingerprint)


def device_of(model: LanguageModel | Folded) -> torch.device:
    """Where the model's weights are."""
    return next((model.model if isinstance(model, Folded) else model).parameters()).device


@torch.inference_mode()
def write(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: str,
    config: SampleConfig = SampleConfig(),
    count: int = 1,
    state: State | None = None,
) -> Iterator[Written]:
    """Continues the prompt `count` times, all at once; yields the tokens of all samples, step by step.

    Text begins after </s>, as in training, or after what `state` has read (as `read_text` gives it, one row). The
    joined texts of a sample never hold a broken character or a part of a stop text. Raises ValueError for a prompt that
    the model must not see, for count < 1, and where the last sample's seed is beyond 2^64 - 1.
    """
    if count < 1:
        raise ValueError(f"the number of samples must be >= 1, got {count}")
    check_seed(config.seed, count=count)
    with chosen_threads() as threads:
        yield from _write(model, tokenizer, prompt, config, count, state, threads)


def _write(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: str,
    config: SampleConfig,
    count: int,
    state: State | None,
    threads: ThreadChooser,
) -> Iterator[Written]:
    folded, device = model.folded(), device_of(model)
    state = read_text(folded, tokenizer, prompt, state)
    assert state.ids is not None
    assert state.logits is not None
    before = state.ids[0].tolist()
    logits, state = state.logits.expand(count, -1), replace(state, ids=None, logits=None).rows([0] * count)
    samples = [_Sample(i, tokenizer, before, config) for i in range(count)]
    while True:
        for row, sample in zip(logits, samples, strict=True):
            yield sample.take(row)
        going = [row for row, sample in enumerate(samples) if sample.ended is None]
        if not going:
            return
        if len(going) < len(samples):
            samples, state = [samples[row] for row in going], state.rows(going)
        begun = time.perf_counter()
        tokens = torch.tensor([[sample.last] for sample in samples], device=device)
        logits, state = folded(tokens, state)
        logits = logits[:, -1]
        threads.worked("token", time.perf_counter() - begun)


def write_texts(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: str,
    config: SampleConfig = SampleConfig(),
    count: int = 1,
    on_tokens: Callable[[int], None] | None = None,
) -> list[str]:
    """The texts that `write` writes after the prompt; on_tokens hears of progress."""
    texts = [""] * count
    for written in write(model, tokenizer, prompt, config, count):
        texts[written.sample] += written.text
        if on_tokens:
            on_tokens(1)
    return texts


class _Sample:
    """One text in the making."""

    def __init__(self, index: int, tokenizer: Tokenizer, before: list[int], config: SampleConfig) -> None:
        self.index, self.config, self.eos_id = index, config, tokenizer.eos_id
        self.generator = seeded_generator(config.seed + index)
        # The begin token is no text; a model cannot repeat it.
        self.seen = set(before[1:]) if config.repetition_penalty != 1 else set()
        self.last, self.left = -1, config.max_tokens
        self.stream = tokenizer.stream()
        for id in before[-SPELLING_CONTEXT:]:
            self.stream.push(id)  # so that the first new piece is spelled as it is after what stands before
        self.held = ""
        self.ended: str | None = None

    def take(self, logits: Tensor) -> Written:
        """Chooses a token by logits (V,)."""
        seen = torch.tensor(list(self.seen), dtype=torch.long)
        id = choose_token(logits, self.config, seen, self.generator)
        log_probability = float(logits[id].double() - logits.double().logsumexp(0))
        self.last, self.left = id, self.left - 1
        if self.config.repetition_penalty != 1:
            self.seen.add(id)
        self.held += self.stream.push(id)
        if id == self.eos_id:
            self.ended = "end of text"
        elif self.left == 0:
            self.ended = "length"
        return Written(self.index, id, log_probability, self._certain(), self.ended)

    def _certain(self) -> str:
        """The held text that no stop text can still claim; finds the stop texts, too."""
        if self.ended:
            self.held += self.stream.flush()
        found = [place for text in self.config.stop if (place := self.held.find(text)) >= 0]
        if found:
            self.ended = "stop"
            certain, self.held = self.held[: min(found)], ""
            return certain
        keep = 0
        if not self.ended:
            beginnings = (text[:n] for text in self.config.stop for n in range(1, len(text)))
            keep = max((len(part) for part in beginnings if self.held.endswith(part)), default=0)
        certain, self.held = self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
        return certain
