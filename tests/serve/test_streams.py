"""Streams, waiting and leaving: what a client sees while there is no room, and what its going away costs."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from serve.conftest import LONGEST_SECONDS, Served, serving

from rhapsode.decode import Failed
from rhapsode.serve import completions

ROWS, QUEUE = 2, 1
MAX_WAIT = 1_000.0  # seconds: nobody is told that there is no room because the machine is busy


@pytest.fixture(scope="module")
def narrow(tiny_run: Path) -> Iterator[Served]:
    """A server with room for two texts, and for one that waits; it writes for very long if it is asked to."""
    limits: dict[str, Any] = {"max_context": 2_000_000, "max_rows": ROWS, "max_queue": QUEUE}
    with serving(tiny_run, **limits, max_wait=MAX_WAIT, ping=0.1) as server:
        server.complete(prompt="a")
        yield server


def endless(served: Served, **fields: Any) -> dict[str, Any]:
    """A request for a text that does not end."""
    return {"prompt": "a", "max_tokens": 1_000_000, "logit_bias": {"1": -100}, "stream": True, **fields}


class Reader:
    """A client that reads a stream, as far as its first token, and then holds it open."""

    def __init__(self, served: Served, **fields: Any) -> None:
        host, port = served.url.removeprefix("http://").split(":")
        self.socket = socket.create_connection((host, int(port)), timeout=LONGEST_SECONDS)
        body = json.dumps(endless(served, **fields))
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        self.socket.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        self.seen = b""

    def until(self, text: bytes) -> bytes:
        while text not in self.seen:
            self.receive()
        return self.seen

    def receive(self) -> None:
        got = self.socket.recv(4096)
        assert got, self.seen
        self.seen += got

    def leave(self) -> None:
        self.socket.close()


def eventually(condition: Any) -> None:
    end = time.monotonic() + LONGEST_SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def engine_of(served: Served) -> Any:
    loaded = next(iter(served.server.models.runs.values())).loaded
    assert loaded is not None
    return loaded.engine


@pytest.fixture(autouse=True)
def everything_is_given_back(narrow: Served) -> Iterator[None]:
    """No test may leave a text behind: the next one would find no room."""
    yield
    eventually(lambda: not narrow.server.driver.jobs and not engine_of(narrow).busy)
    loaded = next(iter(narrow.server.models.runs.values())).loaded
    assert loaded is not None
    eventually(lambda: loaded.texts == 0)
    eventually(lambda: narrow.server.gate.in_flight == 0)


def test_a_client_that_leaves_costs_nothing_more(narrow: Served) -> None:
    """Would catch texts that are written to their end for nobody: two of them would keep all others out."""
    for _ in range(2):
        readers = [Reader(narrow) for _ in range(ROWS)]
        for reader in readers:
            reader.until(b"data: ")
        assert engine_of(narrow).running == ROWS
        for reader in readers:
            reader.leave()
        eventually(lambda: not engine_of(narrow).busy)
    assert narrow.complete(prompt="a")["choices"]
    assert "rhapsode_left_total 4.0" in narrow.api.get("/metrics").text


def test_leaving_before_the_answer_begins(narrow: Served) -> None:
    """Would catch places that only a generator which had started would give back; also of an answer in one piece."""
    first = [Reader(narrow) for _ in range(ROWS)]
    for reader in first:
        reader.until(b"data: ")
    waiting = Reader(narrow, stream=False)
    eventually(lambda: len(narrow.server.driver.jobs) == ROWS + 1)
    waiting.leave()
    eventually(lambda: len(narrow.server.driver.jobs) == ROWS)
    for reader in first:
        reader.leave()


def test_a_full_queue(narrow: Served) -> None:
    """429 with Retry-After, at once; and those who have a place do not notice."""
    readers = [Reader(narrow) for _ in range(ROWS)]
    for reader in readers:
        reader.until(b"data: ")
    waiting = Reader(narrow)
    eventually(lambda: len(narrow.server.driver.jobs) == ROWS + QUEUE)
    answer = narrow.api.post("/v1/completions", json={"prompt": "a"})
    assert answer.status_code == 429
    assert int(answer.headers["Retry-After"]) >= 1
    assert answer.json()["error"]["type"] == "rate_limit_error"
    assert answer.json()["error"]["code"] == "queue_full"
    assert "rhapsode_running_texts 2.0" in (told := narrow.api.get("/metrics").text)
    assert "rhapsode_waiting_texts 1.0" in told
    readers[0].leave()
    waiting.until(b"data: {")  # has the place now
    for reader in (*readers, waiting):
        reader.leave()
    error = narrow.refused(400, prompt="a", n=ROWS + QUEUE + 1)
    assert "at once" in error["message"]


def test_signs_of_life_and_a_wait_that_is_too_long(narrow: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that waits gets comment lines, then an error inside of it; an answer in one piece gets 503."""
    ahead = 0.0
    clock = SimpleNamespace(time=time.time, perf_counter=lambda: time.perf_counter() + ahead)
    monkeypatch.setattr(completions, "time", clock)
    readers = [Reader(narrow) for _ in range(ROWS)]
    for reader in readers:
        reader.until(b"data: ")
    waiting = Reader(narrow)
    while waiting.seen.count(b": ping") < 2:
        waiting.receive()
    assert b"200 OK" in waiting.seen
    ahead += MAX_WAIT
    waiting.until(b"0\r\n\r\n")
    last = waiting.seen.rpartition(b"data: ")[2].partition(b"\n")[0]
    assert "no room within 1000 s" in json.loads(last)["error"]["message"]
    assert b"[DONE]" not in waiting.seen
    waiting.leave()
    answers: list[httpx.Response] = []
    body = {"prompt": "a"}
    asking = threading.Thread(target=lambda: answers.append(narrow.api.post("/v1/completions", json=body)))
    asking.start()
    while asking.is_alive():  # whenever it began to wait, it has waited for too long
        ahead += MAX_WAIT
        asking.join(0.05)
    (answer,) = answers
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) >= 1
    for reader in readers:
        reader.leave()


def test_errors_inside_and_before(narrow: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that fails: 500 where nothing was sent, an error line where something was; the server goes on."""
    engine = engine_of(narrow)
    step, failing = engine.step, False

    def failing_step() -> list[Any]:
        events = step()
        if not failing:
            return events
        for event in events:
            engine.cancel(event.ticket)
        return [Failed(event.ticket, FloatingPointError("spoilt")) for event in events]

    monkeypatch.setattr(engine, "step", failing_step)
    reader = Reader(narrow)
    reader.until(b"data: ")
    failing = True
    reader.until(b"0\r\n\r\n")
    last = reader.seen.rpartition(b"data: ")[2].partition(b"\n")[0]
    assert json.loads(last)["error"]["code"] == "model_failed"
    assert b"[DONE]" not in reader.seen
    reader.leave()
    assert narrow.refused(500, prompt="a")["message"] == "the model failed: spoilt"
    failing = False
    assert narrow.complete(prompt="a")["choices"]


def test_an_engine_that_breaks_is_replaced(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a thread that dies with its engine, and with it all answers for ever."""
    with serving(tiny_run) as served:
        served.complete(prompt="a")
        broken = engine_of(served)
        monkeypatch.setattr(broken, "step", lambda: 1 / 0)
        assert "division by zero" in served.refused(500, prompt="a")["message"]
        assert served.complete(prompt="a")["choices"]
        assert engine_of(served) is not broken


def test_many_streams_at_once_are_each_what_they_are_alone(served: Served) -> None:
    """Seeded requests under load, in pieces as they come: bit-equal to each alone. Would catch events that reach the
    wrong client, texts that lose a piece, and numbers that depend on the neighbours."""
    requests = [
        {"prompt": "Once upon a time"[: 3 + i % 13], "max_tokens": 20 + 3 * i, "seed": i, "logprobs": 2, "n": 1 + i % 3}
        for i in range(24)
    ]
    alone = [served.complete(**fields)["choices"] for fields in requests]

    async def all_at_once() -> list[Any]:
        async with httpx.AsyncClient(base_url=served.url, timeout=LONGEST_SECONDS) as client:

            async def one(number: int, fields: dict[str, Any]) -> list[Any]:
                if number % 2:
                    return (await client.post("/v1/completions", json=fields)).json()["choices"]
                texts: dict[int, Any] = {}
                async with client.stream("POST", "/v1/completions", json={**fields, "stream": True}) as answer:
                    async for line in answer.aiter_lines():
                        if line.startswith("data: {"):
                            for part in json.loads(line[6:])["choices"]:
                                whole = texts.setdefault(part["index"], {"text": "", "values": []})
                                whole["text"] += part["text"]
                                whole["values"] += part["logprobs"]["token_logprobs"]
                return [texts[index] for index in sorted(texts)]

            return await asyncio.gather(*(one(number, fields) for number, fields in enumerate(requests)))

    for number, (found, expected) in enumerate(zip(asyncio.run(all_at_once()), alone, strict=True)):
        if number % 2:
            assert found == expected
        else:
            assert [each["text"] for each in found] == [each["text"] for each in expected]
            assert [each["values"] for each in found] == [each["logprobs"]["token_logprobs"] for each in expected]


def test_a_chunk_is_one_line_for_everybody(served: Served) -> None:
    """Some clients take U+0085, U+2028 and their like for the end of a line; no chunk may fall apart there."""
    prompt = "a\x85b\u2028c\x0bd\x1ce\u2029🎉\nf\r"
    body = {"prompt": prompt, "max_tokens": 1, "echo": True, "stream": True}
    lines = served.api.post("/v1/completions", json=body).text.splitlines()
    told = "".join(json.loads(line[6:])["choices"][0]["text"] for line in lines if line.startswith("data: {"))
    assert told.startswith(prompt)


def test_usage_in_a_stream(served: Served) -> None:
    """With include_usage a last chunk has the counts and no choices, the others null; else none has the field."""
    for include in (True, False):
        body: dict[str, Any] = {"prompt": "Once", "max_tokens": 3, "temperature": 0, "stream": True}
        if include:
            body["stream_options"] = {"include_usage": True}
        lines = served.api.post("/v1/completions", json=body).text.split("\n\n")
        assert lines[-2:] == ["data: [DONE]", ""]
        chunks = [json.loads(line[6:]) for line in lines[:-2]]
        if include:
            assert chunks[-1]["choices"] == []
            assert chunks[-1]["usage"]["completion_tokens"] == 3
            assert chunks[-1]["usage"]["total_tokens"] == 3 + chunks[-1]["usage"]["prompt_tokens"]
            assert all(chunk["usage"] is None for chunk in chunks[:-1])
        else:
            assert not any("usage" in chunk for chunk in chunks)
        assert chunks[0]["object"] == "text_completion"
        assert len({chunk["id"] for chunk in chunks}) == 1


def test_cached_tokens_are_told(served: Served) -> None:
    """A prompt that comes again is not read again, and the counts say so."""
    prompt = "There was a cat and there was a dog and there was a bird. " * 12
    first, second = (served.complete(prompt=prompt, max_tokens=1)["usage"] for _ in range(2))
    assert first["prompt_tokens_details"]["cached_tokens"] < first["prompt_tokens"] / 2
    assert second["prompt_tokens_details"]["cached_tokens"] > second["prompt_tokens"] / 2


def test_the_thread_ends_with_the_server(tiny_run: Path) -> None:
    """Would catch a thread for each server that was ever started."""
    before = {thread for thread in threading.enumerate() if thread.name == "engines"}
    with serving(tiny_run) as server:
        server.complete(prompt="a")
    eventually(lambda: {thread for thread in threading.enumerate() if thread.name == "engines"} <= before)
