"""What answers take while they are under way: bounded, whoever reads them late or not at all."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serve.conftest import Served, serving
from serve.test_streams import Reader, eventually

NEVER_ENDS = {"logit_bias": {"1": -100}, "logprobs": 20}
MEGABYTES = 4.0


@pytest.fixture(scope="module")
def tight(tiny_run: Path) -> Iterator[Served]:
    """A server that holds four megabytes of answers."""
    with serving(tiny_run, max_context=2_000_000, max_answers=MEGABYTES) as server:
        server.complete(prompt="a")
        yield server


def test_an_answer_that_takes_too_much(tight: Served) -> None:
    """Would catch gigabytes that a few requests for all log-probabilities take; a stream that is read goes on."""
    error = tight.refused(503, prompt="a", max_tokens=100_000, **NEVER_ENDS)
    assert error["code"] == "answers_too_large"
    assert "4 MB" in error["message"]
    assert "--max-answers" in error["message"]
    assert len(tight.complete(prompt="a", max_tokens=500, **NEVER_ENDS)["choices"][0]["logprobs"]["tokens"]) == 500
    with tight.api.stream("POST", "/v1/completions", json={"max_tokens": 4_000, "stream": True, **NEVER_ENDS}) as read:
        assert list(read.iter_lines())[-2] == "data: [DONE]"


def test_the_largest_gives_way(tight: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a client that is refused for what another one does not read."""
    driver, held = tight.server.driver, [0]
    receive = driver._receive

    def received(ready: Any) -> None:
        receive(ready)
        held.append(sum(job.held for job in driver.jobs))

    monkeypatch.setattr(driver, "_receive", received)
    reader = Reader(tight, max_tokens=100_000, logprobs=20)
    reader.until(b"data: ")
    while driver.jobs:
        tight.complete(prompt="a", max_tokens=5, logprobs=5)
    assert MEGABYTES / 4 * 1e6 < max(held) <= MEGABYTES * 1e6
    reader.until(b'"code":"answers_too_large"')


def test_an_answer_keeps_its_place_until_it_is_read(tight: Served) -> None:
    """Would catch whole answers that pile up in the buffers of connections, where nobody counts them."""
    eventually(lambda: not tight.server.driver.jobs)
    reader = Reader(tight, max_tokens=1_000, stream=False, logprobs=20)
    jobs = tight.server.driver.jobs
    eventually(lambda: bool(jobs) and not next(iter(jobs)).unended)
    tight.complete(prompt="a")
    eventually(lambda: len(jobs) == 1)  # that of the other client has gone, this one stays
    head, _, body = reader.until(b"\r\n\r\n").partition(b"\r\n\r\n")
    size = int(next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")).split()[1])
    assert next(iter(jobs)).held == size > 300_000
    while len(body) < size:
        body += reader.socket.recv(65_536)
    assert len(json.loads(body)["choices"][0]["logprobs"]["tokens"]) == 1_000
    eventually(lambda: not jobs)
