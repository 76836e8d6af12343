"""A server in a thread of the tests' own process, so that they can look behind it, and the model that it serves."""

import asyncio
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import rhapsode

try:
    import httpx

    from rhapsode.serve.server import RunServer, ServerConfig
except ImportError as missing:
    left_out = f"tests/serve is left out: it needs the extras [serve] and [dev] ({missing})"
    warnings.warn(pytest.PytestWarning(left_out), stacklevel=1)
    collect_ignore_glob = ["test_*.py"]


LONGEST_SECONDS = 120.0  # of a wait: to end a hang, not to measure a machine


class Served:
    """A server that runs. api: an HTTP client of it; server: what is behind it; call: runs a function in its loop."""

    def __init__(self, server: "RunServer", loop: asyncio.AbstractEventLoop) -> None:
        self.server, self.loop = server, loop
        self.url = server.address
        self.api = httpx.Client(base_url=self.url, timeout=LONGEST_SECONDS)

    def call(self, function: Callable[[], Any]) -> Any:
        async def inside() -> Any:
            return function()

        return asyncio.run_coroutine_threadsafe(inside(), self.loop).result(timeout=LONGEST_SECONDS)

    def complete(self, **fields: Any) -> dict[str, Any]:
        """The answer to a completion, which must be one."""
        answer = self.api.post("/v1/completions", json=fields)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def refused(self, status: int, path: str = "/v1/completions", **fields: Any) -> dict[str, Any]:
        """The error that a request gets."""
        answer = self.api.post(path, json=fields)
        assert answer.status_code == status, answer.text
        assert answer.json().keys() == {"error"}
        assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
        return answer.json()["error"]


@contextmanager
def serving(*runs: Path, **options: Any) -> Iterator[Served]:
    """A server of some runs on a free port, for as long as the block lasts."""
    server = RunServer(ServerConfig(runs=runs, port=0, **options))
    started: threading.Event = threading.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def main() -> None:
        loops.append(asyncio.get_running_loop())
        started.set()
        await server.run()

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    assert started.wait(LONGEST_SECONDS)
    served = Served(server, loops[0])
    try:
        yield served
    finally:
        served.api.close()
        loops[0].call_soon_threadsafe(server.end)
        thread.join(LONGEST_SECONDS)
        assert not thread.is_alive()


@pytest.fixture(scope="module")  # while it is up, it decides about the threads of this process
def served(tiny_run: Path) -> Iterator[Served]:
    """The server that most tests share; nothing in it is changed."""
    with serving(tiny_run) as server:
        yield server


@pytest.fixture(scope="session")
def model(tiny_run: Path) -> rhapsode.Model:
    """The same model through the Python API."""
    return rhapsode.load(tiny_run, device="cpu")
