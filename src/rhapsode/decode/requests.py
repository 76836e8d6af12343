"""What is asked of a decoding engine, and what it says."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from rhapsode.decode.config import SampleConfig
from rhapsode.seeds import check_seed
from rhapsode.state import State
from rhapsode.tokenizer import Tokenizer

DEFAULT = SampleConfig()
MOST_SAMPLES = 100_000  # of one prompt in one call, which are kept side by side


@dataclass(frozen=True, eq=False)
class GenerationRequest:
    """One text to be continued, or scored.

    ids: the tokens to read, the begin token first where a text begins (`prompt_ids`); may be empty after a state that
    holds logits. state: what stands before them, of one row, with its ids. top: how many of the likeliest tokens are
    given with each token, with their log-probabilities. score_prompt: whether the ids are scored, too; with
    config.max_tokens = 0 nothing else is done. keep_state: whether `Engine.state` will be asked for.
    """

    ids: Sequence[int]
    config: SampleConfig = DEFAULT
    state: State | None = None
    top: int = 0
    score_prompt: bool = False
    keep_state: bool = False

    @property
    def context(self) -> list[int]:
        """All tokens that the new ones continue, those that the state has read first."""
        before = [] if self.state is None or self.state.ids is None else self.state.ids[0].tolist()
        return [*before, *map(int, self.ids)]

    def check(self, vocab_size: int, max_context: int | None) -> None:
        """Raises ValueError where a model of this vocabulary cannot do it, or within so many tokens."""
        state, biased = self.state, self.config.logit_bias
        wrong = next((id for id in (*self.ids, *biased) if not 0 <= id < vocab_size), None)
        if wrong is not None:
            raise ValueError(f"token ids must be from 0 to {vocab_size - 1}, got {wrong}")
        if self.top < 0:
            raise ValueError(f"top must be >= 0, got {self.top}")
        if state is not None and (state.ids is None or state.logits is None or len(state.ids) != 1):
            raise ValueError("a state to continue from must hold exactly one text, with its ids and logits")
        if state is None and not self.ids:
            raise ValueError("there is nothing to read: give at least one token, or a state")
        length = len(self.context)
        if max_context is not None and length > max_context:
            raise ValueError(f"the text has {length:,} tokens, the most that are read are {max_context:,}")


class Alternative(NamedTuple):
    """A token that could have stood in a place, and its natural log-probability under the model itself."""

    id: int
    log_probability: float


class TokenScore(NamedTuple):
    """What the model thinks of a token that it was given: its log-probability in nats, None for the first token of a
    text, which nothing predicts; top: the likeliest tokens in its place, the likeliest first."""

    id: int
    log_probability: float | None
    top: tuple[Alternative, ...] = ()


class PromptRead(NamedTuple):
    """The ids of a request are read: how many, and how many of them were known from an earlier request.

    scores: one for each id where the request asked for them. ended: `length` where no token is to be written.
    """

    ticket: int
    tokens: int
    cached: int
    scores: tuple[TokenScore, ...] = ()
    ended: str | None = None


class Written(NamedTuple):
    """One token that was drawn: its id, its natural log-probability under the model itself (before any temperature,
    penalty or filter), and the text that is now certain, which may be empty. ended: None, or why this was the last:
    `end of text`, `stop`, `length`. top: the likeliest tokens in its place, the likeliest first.
    """

    ticket: int
    id: int
    log_probability: float
    text: str
    ended: str | None
    top: tuple[Alternative, ...] = ()


class Failed(NamedTuple):
    """A request that cannot be continued, and why; it has ended, and no other is harmed."""

    ticket: int
    error: Exception


Happening = PromptRead | Written | Failed


@dataclass
class Counters:
    """What an engine has done since it was made.

    prompt_tokens: read or known; cached_tokens: those of them that were known; prefix_hits: requests with such tokens;
    prefix_bytes: memory that saved prefixes take now. written_tokens, steps, and requests by how they ended.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    prefix_hits: int = 0
    prefix_bytes: int = 0
    written_tokens: int = 0
    steps: int = 0
    ended: dict[str, int] = field(default_factory=dict)


def prompt_ids(tokenizer: Tokenizer, text: str, state: State | None = None) -> list[int]:
    """The tokens of a text: after the begin token (</s>, as in training), or as it continues what `state` has read."""
    if state is None:
        return [tokenizer.eos_id, *tokenizer.encode(text)]
    return tokenizer.encode_batch([text], [True])[0].tolist()


def samples(request: GenerationRequest, count: int) -> list[GenerationRequest]:
    """The requests that continue one prompt `count` times: sample i draws with seed + i, whatever the others are.

    Raises ValueError for a count below 1 or above MOST_SAMPLES, and where the last seed is beyond 2^64 - 1.
    """
    if count < 1:
        raise ValueError(f"the number of samples must be >= 1, got {count}")
    if count > MOST_SAMPLES:
        raise ValueError(
            f"the number of samples must be at most {MOST_SAMPLES:,}, got {count:,}: draw more with another seed"
        )
    config = request.config
    check_seed(config.seed, count=count)
    return [replace(request, config=replace(config, seed=config.seed + i)) for i in range(count)]
