"""The decoding engine: requests join and leave one running batch; what each gets does not depend on the others.

    engine = Engine(network, tokenizer)
    ticket = engine.submit(GenerationRequest(prompt_ids(tokenizer, "Once upon a time"), SampleConfig(seed=3)))
    while engine.busy:
        for event in engine.step():        # PromptRead, Written, Failed; each names its request's ticket
            ...

Tokens, log-probabilities and texts of a request are equal to the bit whether it runs alone or among others, whenever it
came, and whether the beginning of its prompt was read before. Several samples of one prompt are several requests
(`samples`); sample i draws with seed + i.

An engine is driven by one thread: none of its methods may be called while another one runs. `another` gives one that
shares all that can be shared, for another thread.
"""

import copy
from collections import deque
from dataclasses import replace
from typing import Any

from rhapsode.decode.choice import SPOILT, Scored
from rhapsode.decode.ending import Continuation
from rhapsode.decode.graphs import GraphTexts
from rhapsode.decode.kernel import KNOWN, PAGE, Packed, usable_kernel
from rhapsode.decode.modules import ModuleTexts
from rhapsode.decode.prefixes import Prefixes, page_key, page_keys
from rhapsode.decode.requests import (
    Alternative,
    Counters,
    Failed,
    GenerationRequest,
    Happening,
    PromptRead,
    TokenScore,
    Written,
)
from rhapsode.decode.texts import Texts
from rhapsode.machine import Capture
from rhapsode.model import LanguageModel
from rhapsode.state import State
from rhapsode.tokenizer import Tokenizer

MOST_ROWS = 64
PREFIX_BYTES = 64 << 20
PROMPTS_AT_ONCE = 8  # whose tokens are read in one call
PROMPT_TOKENS = 512  # read in a step, so that those who are being written to do not wait long


class Engine:
    """Continues texts by one model, many at a time.

    max_rows: requests that run at once; others wait, first come first served. max_context: the most tokens of a text
    that are read, prompt and continuation; None for any number. prefix_bytes: the most memory for saved prefixes, 0
    for none. It computes with the weights that the network has now, on the CPU, wherever the network is; with a
    capture (`machine.cuda_graph`) where the network is, a step as one launch, prompts as one block, no saved prefixes,
    and no promise about bits (graphs.py).
    """

    def __init__(
        self,
        network: LanguageModel,
        tokenizer: Tokenizer,
        *,
        max_rows: int = MOST_ROWS,
        max_context: int | None = None,
        prefix_bytes: int = PREFIX_BYTES,
        capture: Capture | None = None,
    ) -> None:
        self.tokenizer, self.config = tokenizer, network.config
        self.max_rows, self.max_context, self._capture = max_rows, max_context, capture
        self._prefixes = Prefixes(0 if capture else prefix_bytes)
        self._network = copy.deepcopy(network).eval() if capture else _prepared(network)
        self._begin()

    def another(self) -> "Engine":
        """An engine with this one's weights, limits and saved prefixes, and with no request."""
        twin = copy.copy(self)
        twin._begin()
        return twin

    def _begin(self) -> None:
        network = self._network
        self._texts: Any
        if self._capture is not None and isinstance(network, LanguageModel):
            self._texts = GraphTexts(network, self.max_rows, self._capture)
        else:
            self._texts = Texts(network) if isinstance(network, Packed) else ModuleTexts(network)
        self._counters = Counters()
        self._next = 0
        self._queue: deque[_Row] = deque()
        self._rows: dict[int, _Row] = {}  # by ticket: all that have a slot and have not ended
        self._reading: list[_Row] = []
        self._writing: list[_Row] = []
        self._ended: dict[int, _Row] = {}  # whose state is kept
        self._regroup = False

    @property
    def backend(self) -> str:
        """What computes: `kernel` (compiled C), `modules` (PyTorch, where there is no compiler), `graph` (on a GPU)."""
        if self._capture is not None:
            return "graph"
        return "kernel" if isinstance(self._network, Packed) else "modules"

    @property
    def counters(self) -> Counters:
        """What this engine has done so far."""
        self._counters.prefix_bytes = self._prefixes.bytes
        return self._counters

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
        request.check(self.config.vocab_size, self.max_context)
        ticket, self._next = self._next, self._next + 1
        self._queue.append(_Row(ticket, request, self.tokenizer, self.max_context))
        return ticket

    def step(self) -> list[Happening]:
        """Reads prompts for a while, and draws one token of each text whose prompt is read; what came of it."""
        events: list[Happening] = []
        self._counters.steps += 1
        while self._queue and len(self._rows) < self.max_rows:
            self._admit(self._queue.popleft(), events)
        if self._reading:
            self._read_prompts(events)
        if self._writing:
            self._write(events)
        return events

    def cancel(self, ticket: int) -> None:
        """Ends a request without an event, and forgets its state; nothing where neither is there."""
        row = self._rows.pop(ticket, None) or self._ended.pop(ticket, None)
        if row is None:
            self._queue = deque(each for each in self._queue if each.ticket != ticket)
            return
        self._reading = [each for each in self._reading if each is not row]
        self._writing = [each for each in self._writing if each is not row]
        self._regroup = True
        self._texts.close(row.slot)

    def state(self, ticket: int) -> State:
        """The memory after all tokens of a request that has ended, one row on the CPU with ids and logits; the engine
        then forgets it. Raises KeyError where it was not to be kept, or was taken already."""
        row = self._ended.pop(ticket)
        if row.read == len(row.ids):  # nothing was added to the state that was given
            assert row.request.state is not None
            state = row.request.state
        else:
            self._texts.read([(row.slot, row.ids[row.read :])])
            state = self._texts.state(row.slot, row.ids)
        self._texts.close(row.slot)
        return state

    # -- a request's way ---------------------------------------------------------------------------------------------

    def _admit(self, row: "_Row", events: list[Happening]) -> None:
        """From the queue to a slot."""
        request = row.request
        seen = set(row.ids[1:]) if request.config.repetition_penalty != 1 else ()  # the begin token is no text
        row.slot = self._texts.open(request.config, request.top, seen)
        self._rows[row.ticket] = row
        if request.state is not None:
            self._texts.restore(row.slot, request.state)
        elif self._prefixes.most_bytes:
            row.keys = page_keys(row.ids[:-1])
        if request.score_prompt and request.ids:
            row.scores.append(self._first_score(row))
            if row.scores[0].id < 0:
                self._fail(row, events)
                return
        self._reading.append(row)

    def _first_score(self, row: "_Row") -> TokenScore:
        """Of the first id of the request: by the state before it, or by nothing."""
        state, id = row.request.state, row.request.ids[0]
        if state is None:
            return TokenScore(id, None)
        return _token_scores([id], self._texts.score_after(state.logits, id, row.request.top))[0]

    def _read_prompts(self, events: list[Happening]) -> None:
        """Reads pieces of prompts until none is left, or the others have waited long enough."""
        left = PROMPT_TOKENS
        while self._reading and left > 0:
            pieces = self._pieces()
            if pieces:
                self._texts.read([(row.slot, ids) for row, ids in pieces])
                if pieces[0][0].request.score_prompt:
                    self._score(pieces, events)
            for row, ids in pieces:
                row.read += len(ids)
                left -= len(ids)
                if row.read % PAGE == 0 and row.ticket in self._rows:
                    self._keep(row)
            there = [row for row in self._reading if row.ticket in self._rows]
            self._reading = [row for row in there if row.read < len(row.ids) - 1]
            for row in [row for row in there if row.read >= len(row.ids) - 1]:
                self._prompt_is_read(row, events)

    def _pieces(self) -> list[tuple["_Row", list[int]]]:
        """What is read in one call: of several texts some ids each, up to the end of a page at most."""
        pieces: list[tuple[_Row, list[int]]] = []
        scored = self._reading[0].request.score_prompt
        taken: set[bytes] = set()
        for row in self._reading:
            if row.request.score_prompt != scored:
                continue
            if not scored:
                self._resume(row)
                if row.next_key in taken:
                    continue  # when another text has read this page, it is there for this one, too
                taken |= {row.next_key} if row.next_key else set()
            end = len(row.ids) - 1
            if self._capture is None:
                end = min(end, (row.read // PAGE + 1) * PAGE)
            if row.read < end:
                pieces.append((row, row.ids[row.read : end]))
            if len(pieces) == PROMPTS_AT_ONCE:
                break
        return pieces

    def _resume(self, row: "_Row") -> None:
        """Takes over the pages that are known of what the text reads next."""
        if row.read % PAGE == 0 and (edges := self._prefixes.find(row.keys, row.read // PAGE)):
            self._texts.resume(row.slot, edges)
            row.read += PAGE * len(edges)
            row.cached += PAGE * len(edges)

    def _keep(self, row: "_Row") -> None:
        """Saves the memory of a text that has read whole pages."""
        pages = row.read // PAGE
        if self._prefixes.most_bytes and row.request.state is None:
            if pages > len(row.keys):
                row.keys.append(page_key(row.keys[-1] if row.keys else b"", row.ids[row.read - PAGE : row.read]))
            self._prefixes.keep(row.keys[:pages], self._texts.edge(row.slot))

    def _score(self, pieces: list[tuple["_Row", list[int]]], events: list[Happening]) -> None:
        """Scores the ids behind those that were read just now."""
        targets = [row.ids[row.read + i + 1] for row, ids in pieces for i in range(len(ids))]
        scored = self._texts.score(targets, max(row.request.top for row, _ in pieces))
        found = _token_scores(targets, scored)
        for row, ids in pieces:
            some, found = found[: len(ids)], found[len(ids) :]
            row.scores += [score._replace(top=score.top[: row.request.top]) for score in some]
            if any(score.id < 0 for score in some):
                self._fail(row, events)

    def _prompt_is_read(self, row: "_Row", events: list[Happening]) -> None:
        request, counters = row.request, self._counters
        counters.prompt_tokens += len(request.ids)
        counters.cached_tokens += row.cached
        counters.prefix_hits += row.cached > 0
        ended = row.text.ended
        events.append(PromptRead(row.ticket, len(request.ids), row.cached, tuple(row.scores), ended))
        if ended is not None:
            self._end(row, ended)
        elif row.read == len(row.ids):  # the state that was given says what comes next
            assert request.state is not None
            self._take([row], self._texts.choose(row.slot, request.state.logits), events)
            self._writing += [row] if row.ticket in self._rows else []
        else:
            self._writing.append(row)
        self._regroup = True

    def _write(self, events: list[Happening]) -> None:
        """Draws a token of each text whose prompt is read."""
        rows = self._writing
        if self._regroup:
            self._texts.group([row.slot for row in rows], [row.ids[-1] for row in rows])
            self._regroup = False
        chosen = self._texts.step()
        if self._texts.at_edge:
            for row in rows:
                row.read = len(row.ids)
                if row.read % PAGE == 0:
                    self._keep(row)
        if self._take(rows, chosen, events):
            self._writing = [row for row in rows if row.ticket in self._rows]
            self._regroup = True

    def _take(self, rows: list["_Row"], chosen: Scored, events: list[Happening]) -> bool:
        """Adds the chosen tokens to their texts; whether one of them has ended."""
        ended: list[_Row] = []
        ids, log_probabilities, likeliest = chosen
        top: tuple[Alternative, ...] = ()
        for i, (row, id, log_probability) in enumerate(zip(rows, ids, log_probabilities, strict=True)):
            if id < 0:
                ended.append(row)
                continue
            row.ids.append(id)
            if likeliest:
                top = tuple(map(Alternative, *(part[: row.request.top] for part in likeliest[i])))
            text = row.text
            events.append(Written(row.ticket, id, log_probability, text.take(id), text.ended, top))
            if text.ended is not None:
                ended.append(row)
        self._counters.written_tokens += len(rows)
        for row in ended:
            if row.text.ended is None:
                self._fail(row, events)
            else:
                self._end(row, row.text.ended)
        return bool(ended)

    def _fail(self, row: "_Row", events: list[Happening]) -> None:
        events.append(Failed(row.ticket, FloatingPointError(SPOILT)))
        self._end(row, "failed")

    def _end(self, row: "_Row", reason: str) -> None:
        del self._rows[row.ticket]
        self._counters.ended[reason] = self._counters.ended.get(reason, 0) + 1
        if row.request.keep_state and reason != "failed":
            row.read = max(row.read, len(row.ids) - 1)
            self._ended[row.ticket] = row
        else:
            self._texts.close(row.slot)


class _Row:
    """A request on its way. ids: all of its text, of which the first `read` are read; while it is written to, all but
    the last. keys: the names of its whole pages, as far as they are known."""

    __slots__ = ("cached", "ids", "keys", "read", "request", "scores", "slot", "text", "ticket")

    def __init__(self, ticket: int, request: GenerationRequest, tokenizer: Tokenizer, most: int | None) -> None:
        self.ticket, self.request, self.slot = ticket, request, -1
        self.ids = request.context
        self.read = len(self.ids) - len(request.ids)
        self.cached = 0
        self.keys: list[bytes] = []
        self.scores: list[TokenScore] = []
        config = request.config
        if most is not None:  # the last token that is written is not read
            config = replace(config, max_tokens=min(config.max_tokens, most - len(self.ids) + 1))
        self.text = Continuation(tokenizer, self.ids, config)

    @property
    def next_key(self) -> bytes | None:
        """The name of the page that is read next, where a whole one is."""
        page = self.read // PAGE
        return self.keys[page] if self.read % PAGE == 0 and page < len(self.keys) else None


def _token_scores(ids: list[int], scored: Scored) -> list[TokenScore]:
    tops = [tuple(map(Alternative, *each)) for each in scored.likeliest] or [()] * len(ids)
    return list(map(TokenScore, scored.ids, scored.log_probabilities, tops))


def _prepared(network: LanguageModel) -> Packed | LanguageModel:
    """The weights as they are now, for the kernel if there is one and it knows the network."""
    kernel = usable_kernel()
    if kernel is not None and type(network) in KNOWN:
        return Packed(network, *kernel)
    return copy.deepcopy(network).cpu().eval()
