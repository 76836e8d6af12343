"""Clients that stream from a server at once, request after request: the load of serving.py, in a process of its own.

    python benchmarks/serving_clients.py URL CLIENTS SECONDS REQUESTS BODY

Ends after so many seconds or requests, whichever comes first, and prints one JSON object. It does as little as it can
beside reading: the server's process shares its cores.
"""

import asyncio
import json
import re
import sys
import time
from typing import Any

COUNT = re.compile(rb'"completion_tokens":\s*(\d+)')
END = b"0\r\n\r\n"  # of a chunked answer


class Tally:
    """What all clients saw. waits: seconds to the first piece of text; gaps: between two pieces; errors: by status."""

    def __init__(self, until: float, requests: int) -> None:
        self.until, self.left = until, requests
        self.tokens = self.done = self.pieces = 0
        self.waits: list[float] = []
        self.gaps: list[float] = []
        self.errors: dict[str, int] = {}


class Client(asyncio.Protocol):
    """One connection that streams one answer after the other."""

    def __init__(self, tally: Tally, request: bytes, finished: "asyncio.Future[None]") -> None:
        self.tally, self.request, self.finished = tally, request, finished
        self.begun = self.last = 0.0
        self.heard = False
        self.tail = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.ask()

    def ask(self) -> None:
        """Sends the next request, or ends."""
        now = time.perf_counter()
        if now >= self.tally.until or self.tally.left <= 0:
            self.transport.close()
            return
        self.tally.left -= 1
        self.begun, self.heard, self.tail = now, False, b""
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        now, tally = time.perf_counter(), self.tally
        if not self.tail and not data.startswith(b"HTTP/1.1 200"):
            status = data[9:12].decode()
            tally.errors[status] = tally.errors.get(status, 0) + 1
        seen = self.tail + data
        if pieces := data.count(b"data: {"):
            tally.pieces += pieces
            if self.heard:
                tally.gaps.append(now - self.last)
            else:
                tally.waits.append(now - self.begun)
            self.heard, self.last = True, now
        self.tail = seen[-400:]
        if seen.endswith(END) or b"content-length" in seen[:400]:
            if b'"error"' in seen:
                tally.errors["inside"] = tally.errors.get("inside", 0) + 1
            if found := COUNT.findall(seen):
                tally.tokens += int(found[-1])
            tally.done += 1
            self.ask()

    def connection_lost(self, error: Exception | None) -> None:
        if error is not None:
            self.tally.errors["lost"] = self.tally.errors.get("lost", 0) + 1
        if not self.finished.done():
            self.finished.set_result(None)


async def load(url: str, clients: int, seconds: float, requests: int, body: str) -> dict[str, Any]:
    """What the clients saw, in numbers."""
    host, port = url.removeprefix("http://").split(":")
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()
    loop, begun = asyncio.get_running_loop(), time.perf_counter()
    tally = Tally(begun + seconds, requests)
    finished = [loop.create_future() for _ in range(clients)]
    for future in finished:
        await loop.create_connection(lambda future=future: Client(tally, request, future), host, int(port))  # type: ignore[misc]
    await asyncio.gather(*finished)
    elapsed = time.perf_counter() - begun
    return {
        "seconds": elapsed,
        "requests": tally.done,
        "tokens": tally.tokens,
        "tokens_per_second": tally.tokens / elapsed,
        "pieces": tally.pieces,
        "errors": tally.errors,
        "to_first_token": quantiles(tally.waits),
        "between_pieces": quantiles(tally.gaps),
    }


def quantiles(values: list[float]) -> dict[str, float]:
    """p50 and p99, in milliseconds."""
    ordered = sorted(values) or [0.0]
    return {name: 1e3 * ordered[int(share * (len(ordered) - 1))] for name, share in (("p50", 0.5), ("p99", 0.99))}


if __name__ == "__main__":
    url, clients, seconds, requests, body = sys.argv[1:]
    print(json.dumps(asyncio.run(load(url, int(clients), float(seconds), int(requests), body))))
