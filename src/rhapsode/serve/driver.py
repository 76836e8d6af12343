"""The thread that drives the engines: everything that a model computes for a client is computed here, step by step.

The web server's own thread hands jobs over and gets back what came of them. A token costs more on its way to a client
than in the engine, so what a text made since the last delivery travels together: with few texts every token is sent
at once, with many a text waits PAUSE_PER_TEXT for each of them.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from rhapsode.decode import Engine, Failed, GenerationRequest, Happening, PromptRead, Written
from rhapsode.serve.failures import Refusal
from rhapsode.threads import fixed_threads

if TYPE_CHECKING:
    from rhapsode.serve.metrics import Meters

PAUSE_PER_TEXT = 0.0005  # seconds
TOKEN_BYTES, ALTERNATIVE_BYTES = 260, 122  # of memory for a token of an answer, and for each likely one beside it
MOST_TAKEN = 64  # tokens of a stream that go on their way together
_Value = TypeVar("_Value")


class Drivable(Protocol):
    """A model with its engine, as the driver sees it. texts: how many were handed over and are not yet
    with their clients."""

    engine: Engine
    texts: int
    broken: bool


class Job:
    """The texts of one client's request; belongs to the web server's thread.

    events: what came since they were last taken, each with the number of its text. wake: set when there are some, when
    the job has ended, and when the client has left. streams: whether anybody wants to hear before the end. begun and
    unended count texts. refusal: why it was ended before its time. sending: bytes of a whole answer on its way.
    """

    def __init__(self, model: Drivable, requests: Sequence[GenerationRequest], streams: bool) -> None:
        self.model, self.requests, self.streams = model, requests, streams
        self.events: list[tuple[int, Happening]] = []
        self.wake = asyncio.Event()
        self.submitted = time.perf_counter()
        self.begun = 0
        self.unended = len(requests)
        self.over = self.left = False
        self.refusal: Refusal | None = None
        self.sending: int | None = None
        self._kept = 0  # tokens that were taken for an answer which is told at the end
        self._token_bytes = TOKEN_BYTES + ALTERNATIVE_BYTES * max((request.top for request in requests), default=0)

    @property
    def held(self) -> int:
        """Bytes of memory, about, that its answer takes now."""
        return self._token_bytes * (len(self.events) + self._kept) if self.sending is None else self.sending

    def take(self) -> list[tuple[int, Happening]]:
        """The events since the last time; of a stream the first of them: who reads late is sent a little at once."""
        most = MOST_TAKEN if self.streams else len(self.events)
        events, self.events = self.events[:most], self.events[most:]
        if not self.streams:
            self._kept += len(events)
        if not self.events:
            self.wake.clear()
        return events

    def receive(self, events: Sequence[tuple[int, Happening]]) -> None:
        """Takes in what came of its texts."""
        for _, event in events:
            if isinstance(event, PromptRead):
                self.begun += 1
                self._kept += len(event.scores)
            if has_ended(event):
                self.unended -= 1
        self.events += events
        if self.streams or not self.unended:
            self.wake.set()

    def refuse(self, refusal: Refusal) -> None:
        """Ends it before its time."""
        self.refusal, self.events, self._kept = refusal, [], 0
        self.wake.set()

    def leave(self) -> None:
        """The client has gone."""
        self.left = True
        self.wake.set()


class _Text:
    """One text of a job, as the driving thread knows it."""

    __slots__ = ("begun", "job", "number")

    def __init__(self, job: Job, number: int) -> None:
        self.job, self.number, self.begun = job, number, False


class Driver:
    """Runs the thread. max_queue: texts of a model that may wait beyond those that its engine runs at once; most_held:
    bytes of memory for all answers, beyond which the largest gives way."""

    def __init__(self, meters: "Meters", max_queue: int, most_held: int) -> None:
        self.meters, self.max_queue, self.most_held = meters, max_queue, most_held
        self.jobs: set[Job] = set()
        self.recent_wait = 0.0  # seconds from a request to the reading of its prompt
        self._commands: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None
        # Of the driving thread: whose tickets the engines have, and what waits to be delivered.
        self._tickets: dict[Engine, dict[int, _Text]] = {}
        self._stepped: dict[Engine, float] = {}
        self._ready: dict[Job, list[tuple[int, Happening]]] = {}
        self._urgent: set[Job] = set()
        self._delivered = 0.0
        self._thread = threading.Thread(target=self._run, name="engines", daemon=True)

    # -- of the web server's thread ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts the thread; to be called where the event loop runs."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after the step that it is at."""
        self._stopping = True
        self._commands.put(lambda: None)

    def most_texts(self, model: Drivable) -> int:
        """How many texts of a model there may be at once: those that are written, that wait, and that are not yet with
        their clients."""
        return model.engine.max_rows + self.max_queue

    def submit(self, model: Drivable, requests: Sequence[GenerationRequest], streams: bool) -> Job:
        """Hands over the texts of a request; `cancel` must be called in the end, whatever happens.

        Raises Refusal where they do not fit: 429 while others fill the queue, 400 where they never will.
        """
        most = self.most_texts(model)
        if len(requests) > most:
            raise Refusal(400, f"this asks for {len(requests):,} texts at once, the most that fit are {most:,}", "n")
        if model.texts + len(requests) > most:
            raise Refusal(
                429,
                f"the queue is full: {model.texts:,} texts are there, the most are {most:,}; try again later",
                code="queue_full",
                retry_after=self.retry_after,
            )
        job = Job(model, requests, streams)
        self.jobs.add(job)
        model.texts += len(requests)
        self._commands.put(lambda: self._begin(job))
        return job

    @property
    def retry_after(self) -> int:
        """Seconds after which there may be room again."""
        return max(1, round(self.recent_wait))

    def cancel(self, job: Job) -> None:
        """Ends a job; what it still had to do is not done, and its places are free before the next step."""
        if job.over:
            return
        job.over = True
        self.jobs.discard(job)
        job.model.texts -= len(job.requests)  # only now: a text that its client does not take fills memory
        if job.unended:
            self._commands.put(lambda: self._forget(job))

    def call(self, function: Callable[[], _Value]) -> "asyncio.Future[_Value]":
        """Has the thread call a function between two steps, and waits for its value."""
        assert self._loop is not None
        loop, future = self._loop, self._loop.create_future()

        def settle(value: Any, error: BaseException | None) -> None:
            if not future.done():
                future.set_exception(error) if error else future.set_result(value)

        def command() -> None:
            try:
                value, error = function(), None
            except Exception as raised:
                value, error = None, raised
            loop.call_soon_threadsafe(settle, value, error)

        self._commands.put(command)
        return future

    def _receive(self, ready: dict[Job, list[tuple[int, Happening]]]) -> None:
        for job, events in ready.items():
            if job.over:
                continue
            begun = job.begun
            job.receive(events)
            if job.begun > begun:
                waited = time.perf_counter() - job.submitted
                self.recent_wait += 0.1 * (waited - self.recent_wait)
        while sum(job.held for job in self.jobs) > self.most_held:
            writing = [job for job in self.jobs if job.sending is None]
            if not writing:
                return  # all that is there is on its way
            self._give_up(max(writing, key=lambda job: job.held))

    def _give_up(self, job: Job) -> None:
        """Ends the job whose answer takes the most memory."""
        most = f"the {self.most_held / 1e6:,.0f} MB that --max-answers has for all"
        message = f"this answer would take more memory than there is in {most}; ask for fewer tokens, texts or logprobs"
        job.refuse(Refusal(503, message, code="answers_too_large", retry_after=self.retry_after))
        self.cancel(job)

    # -- of the driving thread ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        with fixed_threads(1):  # two that meet at every product, beside the web server's, would wait for each other
            while not self._stopping:
                self._obey()
                for engine in list(self._tickets):
                    self._step(engine)
                self._deliver()

    def _obey(self) -> None:
        """Does what the other thread wants; waits for that where no engine has anything to do."""
        with suppress(Empty):
            while not self._stopping:
                self._commands.get(block=not self._tickets)()

    def _begin(self, job: Job) -> None:
        engine = job.model.engine
        tickets = self._tickets.setdefault(engine, {})
        for number, request in enumerate(job.requests):
            try:
                tickets[engine.submit(request)] = _Text(job, number)
            except ValueError as error:
                self._ready.setdefault(job, []).append((number, Failed(-1, error)))
                self._urgent.add(job)
        if not tickets:
            del self._tickets[engine]
            self._deliver()

    def _forget(self, job: Job) -> None:
        engine = job.model.engine
        tickets = self._tickets.get(engine, {})
        for ticket in [ticket for ticket, text in tickets.items() if text.job is job]:
            engine.cancel(ticket)
            del tickets[ticket]
        if not tickets:
            self._tickets.pop(engine, None)
            self._stepped.pop(engine, None)
        self._ready.pop(job, None)

    def _step(self, engine: Engine) -> None:
        tickets = self._tickets[engine]
        try:
            events = engine.step()
        except Exception as error:  # none of its texts can be trusted to go on
            events = [Failed(ticket, error) for ticket in tickets]
            for failed in tickets.values():
                failed.job.model.broken = True
        written = 0
        for event in events:
            text = tickets.get(event.ticket)
            if text is None:
                continue
            self._ready.setdefault(text.job, []).append((text.number, event))
            if isinstance(event, Written):
                written += 1
                if text.begun and event.ended is None:
                    continue  # what most events are
                if not text.begun:
                    text.begun = True
                    self.meters.to_first_token.observe(time.perf_counter() - text.job.submitted)
            elif isinstance(event, PromptRead):
                self.meters.prompt_tokens.inc(event.tokens)
            self._urgent.add(text.job)
            if has_ended(event):
                del tickets[event.ticket]
        now = time.perf_counter()
        if written:
            self.meters.written_tokens.inc(written)
            self.meters.batch_size.observe(written)
            if engine in self._stepped:
                self.meters.between_tokens.observe(now - self._stepped[engine])
            self._stepped[engine] = now
        if not tickets:
            del self._tickets[engine]
            self._stepped.pop(engine, None)

    def _deliver(self) -> None:
        now = time.perf_counter()
        texts = sum(map(len, self._tickets.values()))
        if now - self._delivered >= PAUSE_PER_TEXT * texts:
            ready, self._ready, self._delivered = self._ready, {}, now
        elif self._urgent:
            ready = {job: self._ready.pop(job) for job in self._urgent if job in self._ready}
        else:
            return
        self._urgent.clear()
        if ready and self._loop is not None and not self._stopping:
            self._loop.call_soon_threadsafe(self._receive, ready)


def has_ended(event: Happening) -> bool:
    """Whether nothing follows an event of its text."""
    return isinstance(event, Failed) or event.ended is not None
