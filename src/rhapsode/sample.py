"""Writing: how the next token is chosen from logits, and a model's continuation of a prompt.

The filters are pure functions on logits (V,), applied in this order: repetition penalty (Keskar et al. 2019),
temperature, top-k (Fan et al. 2018), top-p (Holtzman et al. 2020), min-p (Nguyen et al. 2024). Decoding keeps the
state and its growing cache; the prefix is read once.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from rhapsode.model import LanguageModel, State
from rhapsode.seeds import check_seed, seeded_generator
from rhapsode.tokenizer import Tokenizer

LONG_PROMPT = 512  # tokens


@dataclass(frozen=True)
class SampleConfig:
    """How text is drawn.

    temperature 0 is greedy. top_k, top_p, min_p: 0, 1.0 and 0.0 leave all tokens in. repetition_penalty: above 1
    makes tokens that are there already less likely. stop: texts at which writing ends, left out themselves.
    seed: sample i of a call is drawn with seed + i, whatever the others are.
    """

    max_tokens: int = 256
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be >= 1, got {self.max_tokens}")
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
        check_seed(self.seed)
        if "" in self.stop:
            raise ValueError("stop must not be an empty text")


def penalise_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Divides positive and multiplies negative logits of the ids in `seen` by the penalty."""
    chosen = logits[seen]
    return logits.scatter(0, seen, torch.where(chosen > 0, chosen / penalty, chosen * penalty))


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """All but the k largest become -inf; what is equal to the k-th stays."""
    if k == 0 or k >= len(logits):
        return logits
    return logits.masked_fill(logits < logits.topk(k).values[-1], -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keeps the fewest tokens, the likeliest first, whose probabilities reach p together; at least one."""
    if p == 1:
        return logits
    ordered, order = logits.sort(descending=True)
    probabilities = ordered.softmax(0)
    before = probabilities.cumsum(0) - probabilities  # what the likelier ones have reached
    return logits.masked_fill(torch.zeros_like(logits, dtype=torch.bool).scatter(0, order, before >= p), -torch.inf)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Keeps tokens at least p times as likely as the likeliest."""
    if p == 0:
        return logits
    probabilities = logits.softmax(0)
    return logits.masked_fill(probabilities < p * probabilities.max(), -torch.inf)


def choose(logits: Tensor, config: SampleConfig, seen: Tensor, generator: torch.Generator) -> int:
    """The next token after logits (V,), with the ids seen so far (n,); the generator draws on the CPU.

    Raises FloatingPointError for logits that are not numbers: the model that made them is spoilt.
    """
    logits = logits.double().cpu()
    if not logits.isfinite().all():
        raise FloatingPointError("the model's logits are not finite numbers; its training went wrong")
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
def write(
    model: LanguageModel, tokenizer: Tokenizer, prompt: str, config: SampleConfig = SampleConfig(), count: int = 1
) -> Iterator[Written]:
    """Continues the prompt `count` times, all at once; yields the tokens of all samples, step by step.

    Text begins after </s>, as in training. The joined texts of a sample never hold a broken character or a
    part of a stop text. Raises ValueError for a prompt that the model must not see, for count < 1, and where the last
    sample's seed is beyond 2^64 - 1.
    """
    if count < 1:
        raise ValueError(f"the number of samples must be >= 1, got {count}")
    check_seed(config.seed, count=count)
    device = next(model.parameters()).device
    prompt_ids = [tokenizer.eos_id, *tokenizer.encode(prompt)]
    logits, state = _after(model, torch.tensor([prompt_ids], device=device))
    logits, state = logits.expand(count, -1), state.rows([0] * count)
    samples = [_Sample(i, tokenizer, prompt_ids[1:], config) for i in range(count)]
    while True:
        for row, sample in zip(logits, samples, strict=True):
            yield sample.take(row)
        going = [row for row, sample in enumerate(samples) if sample.ended is None]
        if not going:
            return
        if len(going) < len(samples):
            samples, state = [samples[row] for row in going], state.rows(going)
        tokens = torch.tensor([sample.ids[-1] for sample in samples], device=device)
        logits, state = model.step(tokens, state)


def _after(model: LanguageModel, tokens: Tensor) -> tuple[Tensor, State]:
    """tokens (B, T) -> (the logits after the last (B, V), the state after them); of a long prompt only the end gets
    logits, so that memory does not grow with T V.
    """
    if tokens.shape[1] <= LONG_PROMPT:
        logits, state = model(tokens)
        return logits[:, -1], state
    x, state = model.features(tokens)
    return F.linear(*model.scores(x[:, -1])), state


def complete(
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

    def __init__(self, index: int, tokenizer: Tokenizer, prompt_ids: list[int], config: SampleConfig) -> None:
        self.index, self.config, self.eos_id = index, config, tokenizer.eos_id
        self.generator = seeded_generator(config.seed + index)
        self.ids = list(prompt_ids)
        self.seen = set(prompt_ids) if config.repetition_penalty != 1 else set()
        self.most = len(prompt_ids) + config.max_tokens
        self.stream = tokenizer.stream()
        for id in prompt_ids:
            self.stream.push(id)  # so that the first new piece is spelled as it is after the prompt
        self.held = ""
        self.ended: str | None = None

    def take(self, logits: Tensor) -> Written:
        """Chooses a token by logits (V,)."""
        id = choose(logits, self.config, torch.tensor(list(self.seen), dtype=torch.long), self.generator)
        log_probability = float(logits[id].double() - logits.double().logsumexp(0))
        self.ids.append(id)
        if self.config.repetition_penalty != 1:
            self.seen.add(id)
        self.held += self.stream.push(id)
        if id == self.eos_id:
            self.ended = "end of text"
        elif len(self.ids) >= self.most:
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
