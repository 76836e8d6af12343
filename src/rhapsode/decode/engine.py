"""The decoding engine: requests join and leave one running batch; what each gets does not depend on the others.

    engine = Engine(network, tokenizer)
    ticket = engine.submit(GenerationRequest(prompt_ids(tokenizer, "Once upon a time"), SampleConfig(seed=3)))
    while engine.busy:
        for event in engine.step():        # PromptRead, Written, Failed; each names its request's ticket
            ...

Tokens, log-probabilities and texts of a request are equal to the bit whether it runs alone or among others, whenever it
came, and whether the beginning of its prompt was read before. Several samples of one prompt are several requests;
sample i draws with seed + i.

An engine is driven by one thread: none of its methods may be called while another one runs.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch

from rhapsode.decode.continuation import SampleConfig, _Sample, device_of, read_tokens
from rhapsode.model import LanguageModel
from rhapsode.seeds import check_seed
from rhapsode.state import State
from rhapsode.tokenizer import Tokenizer

MOST_ROWS = 64
PREFIX_BYTES = 64 << 20


@dataclass(frozen=True, eq=False)
class GenerationRequest:
    """One text to be continued, or scored.

    ids: the tokens to read, the begin token first where a text begins (`prompt_ids`); may be empty after a state that
    holds logits. state: what stands before them, of one row, with its ids. top: how many of the likeliest tokens are
    given with each token, with their log-probabilities. score_prompt: whether the ids are scored, too; with
    config.max_tokens = 0 nothing else is done. keep_state: whether `Engine.state` will be asked for.
    """

    ids: Sequence[int]
    config: SampleConfig = SampleConfig()
    state: State | None = None
    top: int = 0
    score_prompt: bool = False
    keep_state: bool = False


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
    penalty or filter), and the text that is now certain, which may be empty. ended: None, or why this was the last: `end of
    text`, `stop`, `length`. top: the likeliest tokens in its place, the likeliest first.
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


class Engine:
    """Continues texts by one model, many at a time.

    max_rows: requests that run at once; others wait, first come first served. max_context: the most tokens of a text
    that are read, prompt and continuation; None for any number. prefix_bytes: the most memory for saved prefixes, 0 for none.
    """

    def __init__(
        self,
        network: LanguageModel,
        tokenizer: Tokenizer,
        *,
        max_rows: int = MOST_ROWS,
        max_context: int | None = None,
        prefix_bytes: int = PREFIX_BYTES,
    ) -> None:
        self.network, self.tokenizer = network.eval(), tokenizer
        self.max_rows, self.max_context, self.prefix_bytes = max_rows, max_context, prefix_bytes
        self.counters = Counters()
        self._folded, self._device = network.folded(), device_of(network)
        self._next = 0
        self._queue: deque[tuple[int, GenerationRequest]] = deque()
        self._rows: dict[int, _Row] = {}
        self._states: dict[int, State] = {}

    @property
    def waiting(self) -> int:
        """Requests that have no row yet."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Requests that have one."""
        return len(self._rows)

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._queue or self._rows)

    def submit(self, request: GenerationRequest) -> int:
        """Takes a request in and returns its ticket: 0, 1, 2, ...; nothing is computed before the next step.

        Raises ValueError, and takes nothing in, for ids that are not in the vocabulary, for nothing to read, for more
        tokens than max_context, and for a state that does not hold exactly one text.
        """
        self._check(request)
        ticket, self._next = self._next, self._next + 1
        self._queue.append((ticket, request))
        return ticket

    def _check(self, request: GenerationRequest) -> None:
        state, vocab_size = request.state, self.network.config.vocab_size
        wrong = next((id for id in request.ids if not 0 <= id < vocab_size), None)
        if wrong is not None:
            raise ValueError(f"token ids must be from 0 to {vocab_size - 1}, got {wrong}")
        if state is not None and (state.ids is None or state.logits is None or len(state.ids) != 1):
            raise ValueError("a state to continue from must hold exactly one text, with its ids and logits")
        before = 0 if state is None or state.ids is None else state.ids.shape[1]
        if not before and not request.ids:
            raise ValueError("there is nothing to read: give at least one token, or a state")
        length = before + len(request.ids)
        if self.max_context is not None and length > self.max_context:
            raise ValueError(f"the text has {length:,} tokens, the most that are read are {self.max_context:,}")

    def step(self) -> list[Happening]:
        """Reads prompts for a while, and draws one token of each text whose prompt is read; what came of it."""
        events: list[Happening] = []
        self.counters.steps += 1
        while self._queue and len(self._rows) < self.max_rows:
            ticket, request = self._queue.popleft()
            row = self._rows[ticket] = _Row(request, self.tokenizer, self.max_context)
            row.read(self, ticket, events)
        for ticket, row in list(self._rows.items()):
            if row.sample.ended is None:
                row.write(self, ticket, events)
            if row.sample.ended is not None:
                del self._rows[ticket]
                self.counters.ended[row.sample.ended] = self.counters.ended.get(row.sample.ended, 0) + 1
                if row.request.keep_state:
                    self._states[ticket] = row.state
        return events

    def cancel(self, ticket: int) -> None:
        """Ends a request without an event, and forgets its state; nothing where it has ended already."""
        self._queue = deque((other, request) for other, request in self._queue if other != ticket)
        self._rows.pop(ticket, None)
        self._states.pop(ticket, None)

    def state(self, ticket: int) -> State:
        """The memory after all tokens of a request that has ended, one row on the CPU with ids and logits; the engine
        then forgets it. Raises KeyError where it was not to be kept, or was taken already."""
        return self._states.pop(ticket)


class _Row:
    """A request that runs."""

    def __init__(self, request: GenerationRequest, tokenizer: Tokenizer, most: int | None) -> None:
        self.request = request
        before = [] if request.state is None or request.state.ids is None else request.state.ids[0].tolist()
        self.context = [*before, *request.ids]
        config = request.config
        if most is not None:  # the last token that is written is not read
            config = replace(config, max_tokens=min(config.max_tokens, most - len(self.context) + 1))
        self.sample = _Sample(0, tokenizer, self.context, config)

    @torch.inference_mode()
    def read(self, engine: Engine, ticket: int, events: list[Happening]) -> None:
        state, ids, scores = self.request.state, list(self.request.ids), []
        if self.request.score_prompt:
            rows = [] if state is None or state.logits is None else [state.logits]
            for id in ids:
                state = read_tokens(engine._folded, torch.tensor([[id]]), state)
                assert state.logits is not None
                rows.append(state.logits)
            predicted = rows[: len(ids)] if self.request.state is not None else [None, *rows[:-1]]
            scores = [self._score(id, logits) for id, logits in zip(ids, predicted, strict=True)]
        elif ids:
            state = read_tokens(engine._folded, torch.tensor([ids]), state)
        assert state is not None
        self.state = state
        engine.counters.prompt_tokens += len(ids)
        self.sample.ended = None if self.request.config.max_tokens else "length"
        events.append(PromptRead(ticket, len(ids), 0, tuple(scores), self.sample.ended))

    def _score(self, id: int, logits: torch.Tensor | None) -> TokenScore:
        if logits is None:
            return TokenScore(id, None)
        scores = logits[0].double().log_softmax(0)
        return TokenScore(id, float(scores[id]), likeliest(scores, self.request.top))

    @torch.inference_mode()
    def write(self, engine: Engine, ticket: int, events: list[Happening]) -> None:
        assert self.state.logits is not None
        logits = self.state.logits[0]
        try:
            token = self.sample.take(logits)
        except FloatingPointError as error:
            self.sample.ended = "failed"
            events.append(Failed(ticket, error))
            return
        top = likeliest(logits.double().log_softmax(0), self.request.top)
        ended = token.ended
        events.append(Written(ticket, token.id, token.log_probability, token.text, ended, top))
        engine.counters.written_tokens += 1
        if ended is None or self.request.keep_state:
            self.state = read_tokens(engine._folded, torch.tensor([[token.id]]), self.state)


def likeliest(log_probabilities: torch.Tensor, count: int) -> tuple[Alternative, ...]:
    """The `count` largest of log-probabilities (V,), the largest first."""
    values, ids = log_probabilities.topk(min(count, len(log_probabilities)))
    return tuple(map(Alternative, ids.tolist(), values.tolist()))


def prompt_ids(tokenizer: Tokenizer, text: str, state: State | None = None) -> list[int]:
    """The tokens of a text: after the begin token (</s>, as in training), or as it continues what `state` has read."""
    if state is None:
        return [tokenizer.eos_id, *tokenizer.encode(text)]
    return [int(id) for id in tokenizer.encode_batch([text], [True])[0]]


def samples(request: GenerationRequest, count: int) -> list[GenerationRequest]:
    """The requests that continue one prompt `count` times: sample i draws with seed + i, whatever the others are.

    Raises ValueError for count < 1, and where the last seed is beyond 2^64 - 1.
    """
    if count < 1:
        raise ValueError(f"the number of samples must be >= 1, got {count}")
    config = request.config
    check_seed(config.seed, count=count)
    return [replace(request, config=replace(config, seed=config.seed + i)) for i in range(count)]
