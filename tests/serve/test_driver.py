"""The thread that drives the engines: what leaving costs to the step, and how what is made reaches the clients."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from serve.conftest import LONGEST_SECONDS, Served

from rhapsode.decode import Engine, GenerationRequest, PromptRead, Written
from rhapsode.serve import driver as driving
from rhapsode.serve.completions import Patience, TextsResponse
from rhapsode.serve.driver import Driver
from rhapsode.serve.failures import Refusal
from rhapsode.serve.metrics import Meters
from rhapsode.serve.schemas import CompletionQuestion
from rhapsode.serve.wanted import completion_wanted


class StepwiseEngine:
    """An engine whose steps happen when a test says so. at_step: set while one waits for that."""

    def __init__(self, max_rows: int = 4) -> None:
        self.max_rows = max_rows
        self.go, self.at_step = threading.Semaphore(0), threading.Event()
        self.steps, self.next = 0, 0
        self.tickets: list[int] = []
        self.fresh: set[int] = set()

    def submit(self, request: GenerationRequest) -> int:
        if not request.ids:
            raise ValueError("nothing to read")
        self.next += 1
        self.tickets.append(self.next)
        self.fresh.add(self.next)
        return self.next

    def cancel(self, ticket: int) -> None:
        self.tickets.remove(ticket)

    def step(self) -> list[Any]:
        self.at_step.set()
        assert self.go.acquire(timeout=LONGEST_SECONDS)
        self.at_step.clear()
        self.steps += 1
        read = [PromptRead(ticket, 1, 0) for ticket in self.tickets if ticket in self.fresh]
        self.fresh.clear()
        return [*read, *(Written(ticket, 5, -1.0, f"{self.steps} ", None) for ticket in self.tickets)]


class Model:
    def __init__(self, engine: StepwiseEngine) -> None:
        self.engine: Any = engine
        self.texts, self.broken = 0, False


def drive(test: Callable[[Driver, Model, StepwiseEngine], Awaitable[None]], max_queue: int = 0) -> None:
    """Runs a test in an event loop, beside a driver."""

    async def main() -> None:
        engine = StepwiseEngine()
        driver = Driver(Meters(), max_queue, 10**9)
        driver.start()
        try:
            await test(driver, Model(engine), engine)
        finally:
            driver.stop()
            for _ in range(100):
                engine.go.release()
            await asyncio.to_thread(driver._thread.join, LONGEST_SECONDS)

    asyncio.run(main())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LONGEST_SECONDS):
        while not condition():
            await asyncio.sleep(0.001)


REQUEST = GenerationRequest([1])


def test_leaving_takes_effect_before_the_next_step() -> None:
    """While one step runs the client leaves; no further step has its texts. Would catch a cancellation that waits for
    the writer of the stream to notice."""

    async def test(driver: Driver, model: Model, engine: StepwiseEngine) -> None:
        job = driver.submit(model, [REQUEST, REQUEST], streams=True)
        assert model.texts == 2
        engine.go.release()
        await until(lambda: engine.steps == 1 and engine.at_step.is_set())
        driver.cancel(job)
        assert model.texts == 0
        assert not driver.jobs
        engine.go.release()
        await until(lambda: engine.steps == 2 and not engine.tickets)
        await asyncio.sleep(0.05)
        assert not engine.at_step.is_set()  # nothing is left to do
        driver.cancel(job)  # twice does no harm
        assert model.texts == 0

    drive(test)


def test_leaving_before_the_engine_knows_of_it() -> None:
    """Would catch a text that is begun for a client that had left before."""

    async def test(driver: Driver, model: Model, engine: StepwiseEngine) -> None:
        first = driver.submit(model, [REQUEST], streams=True)
        await until(engine.at_step.is_set)
        second = driver.submit(model, [REQUEST], streams=False)
        driver.cancel(second)
        engine.go.release()
        await until(lambda: engine.steps == 1 and engine.at_step.is_set())
        assert engine.tickets == [1]
        driver.cancel(first)
        engine.go.release()
        await until(lambda: not engine.tickets)

    drive(test)


def test_a_full_queue_and_what_never_fits() -> None:
    """Rows and queue together are the limit; what is over it by itself is the client's mistake, not a bad moment."""

    async def test(driver: Driver, model: Model, engine: StepwiseEngine) -> None:
        jobs = [driver.submit(model, [REQUEST] * 2, streams=True) for _ in range(3)]
        with pytest.raises(Refusal) as full:
            driver.submit(model, [REQUEST], streams=True)
        assert full.value.status_code == 429
        assert full.value.headers == {"Retry-After": "1"}
        with pytest.raises(Refusal) as never:
            driver.submit(model, [REQUEST] * 7, streams=True)
        assert never.value.status_code == 400
        driver.cancel(jobs[0])
        driver.submit(model, [REQUEST] * 2, streams=True)
        assert model.texts == 6

    drive(test, max_queue=2)


def test_pieces_are_delivered_together_where_many_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """First tokens at once, later ones when the pause is over; nothing is lost or out of order. Would catch a delivery
    for each token, which costs more than the token."""
    monkeypatch.setattr(driving, "PAUSE_PER_TEXT", 1e9)

    async def test(driver: Driver, model: Model, engine: StepwiseEngine) -> None:
        job = driver.submit(model, [REQUEST], streams=True)
        engine.go.release()
        await until(lambda: len(job.events) == 2)  # the prompt, and the first token
        assert job.wake.is_set()
        for _ in range(3):
            engine.go.release()
        await until(lambda: engine.steps == 4 and engine.at_step.is_set())
        await asyncio.sleep(0.02)
        assert len(job.events) == 2
        monkeypatch.setattr(driving, "PAUSE_PER_TEXT", 0.0)
        engine.go.release()
        await until(lambda: len(job.events) == 6)
        assert [event.text for _, event in job.take() if isinstance(event, Written)] == ["1 ", "2 ", "3 ", "4 ", "5 "]
        assert not job.wake.is_set()
        driver.cancel(job)

    drive(test)


def test_a_request_that_the_engine_refuses_fails_alone() -> None:
    """Would catch a thread that ends with an exception, and all clients with it."""

    async def test(driver: Driver, model: Model, engine: StepwiseEngine) -> None:
        job = driver.submit(model, [GenerationRequest([])], streams=True)
        await until(lambda: bool(job.events))
        assert "nothing to read" in str(job.events[0][1].error)  # type: ignore[union-attr]
        assert await driver.call(lambda: 6 * 7) == 42
        with pytest.raises(ZeroDivisionError):
            await driver.call(lambda: 1 / 0)
        driver.cancel(job)

    drive(test)


def test_the_response_gives_its_places_back_whatever_happens(served: Served) -> None:
    """The client has left before a byte is sent, or the connection breaks in the middle: streamed or not."""
    served.complete(prompt="a")
    (run,) = served.server.models.runs.values()
    loaded, driver = run.loaded, served.server.driver
    assert loaded is not None
    assert isinstance(loaded.engine, Engine)

    async def gone() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def stays() -> dict[str, Any]:
        await asyncio.sleep(LONGEST_SECONDS)
        return {"type": "http.disconnect"}

    async def broken(message: Any) -> None:
        raise OSError("the connection is gone")

    async def nowhere(message: Any) -> None:
        pass

    async def answer(stream: bool, receive: Any, send: Any) -> None:
        asked = CompletionQuestion(prompt="a", max_tokens=400, stream=stream, logit_bias={"1": -100.0})
        wanted = completion_wanted(asked, loaded.model.tokenizer, 8_192, 64)
        response = TextsResponse(wanted, "tiny", loaded, driver, Patience(LONGEST_SECONDS, 10), log_prompts=False)
        await response({"type": "http"}, receive, send)

    for stream in (True, False):
        for receive, send in ((gone, nowhere), (stays, broken), (gone, broken)):
            future = asyncio.run_coroutine_threadsafe(answer(stream, receive, send), served.loop)
            try:
                future.result(timeout=LONGEST_SECONDS)
            except OSError:
                assert send is broken
            assert not driver.jobs
            assert loaded.texts == 0
