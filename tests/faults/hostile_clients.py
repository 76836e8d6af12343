"""The server and clients that mean harm, or are broken: it stays up, its memory stays flat, and what others read at the
same time is, bit by bit, what they read alone. All on loopback, bounded in count and time."""

import asyncio
import json
import random
import select
import socket
import struct
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from harness import Tally, Unit
from hostile_requests import ELSEWHERE, FOREIGN, FRAMINGS, OTHER_NAMES, OWN_NAMES, PATHS, SIZES, SMUGGLED
from loopback import (
    ANSWERS,
    LONGEST_SECONDS,
    PATIENCE,
    WatchedServer,
    connect,
    exchange,
    request,
    statuses,
    the_server,
    watched,
)

LONG = {"prompt": "Once", "max_tokens": 8_000, "logprobs": 20, "stream": True, "logit_bias": {"1": -100}}
AT_ONCE = 100  # connections that are tried at the same time
MEGABYTES = 96.0  # by which a unit may leave the process larger: 64 of saved prefixes, and the allocator's own
OF_READERS = MEGABYTES + 2 * ANSWERS  # the same where answers were kept: pieces of memory that they had stay its own
OF_SIZES = 256.0  # the same where bodies of 4 MB were read
PEAK = 512.0  # for a while, of one request
UNTIL_ALL_ARE_THERE = 60.0  # seconds that a server waits for a thousand clients which a busy machine connects slowly


def units(small: bool) -> list[Unit]:
    counts = {
        "slow readers": (slow_readers, 12, 800),
        "slow writers": (slow_writers, 60, 2_000),
        "half-open connections": (half_open, 60, 4_000),
        "1,000 connections": (many_connections, 1, 20),
        "pipelined garbage": (garbage, 120, 20_000),
        "sizes beyond limits": (sizes, 1, 10),
        "path traversal": (traversal, 1, 10),
        "shapes of smuggled requests": (smuggling, 1, 20),
        "names that are not its own": (rebinding, 1, 50),
        "a page of another origin": (other_origin, 1, 20),
        "cancelled streams": (cancelled, 200, 10_000),
    }
    return [(name, partial(_run, run, few if small else many)) for name, (run, few, many) in counts.items()]


def _run(run: Callable[..., Awaitable[None]], count: int, seed: int, folder: Path) -> Tally:
    """One unit, with the client beside it, and what must hold afterwards as one more try."""
    tally, server = Tally(), the_server(UNTIL_ALL_ARE_THERE if run is many_connections else PATIENCE)
    most = {sizes: OF_SIZES, slow_readers: OF_READERS}.get(run, MEGABYTES)
    with watched(server, tally.facts, most) as check:
        asyncio.run(run(server, count, random.Random(seed), tally))
    tally.note_of(check, "afterwards")
    return tally


async def _all(
    tally: Tally, tries: list[tuple[str, Callable[[], Coroutine[Any, Any, None]]]], at_once: int = AT_ONCE
) -> None:
    """Runs tries, so many at once; one survives that raises nothing."""
    room = asyncio.Semaphore(at_once)

    async def one(where: str, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        async with room:
            try:
                await asyncio.wait_for(run(), 2 * LONGEST_SECONDS)
            except Exception as error:
                tally.note(f"{where}: {type(error).__name__}: {error}")
            else:
                tally.note(None)

    await asyncio.gather(*(one(*each) for each in tries))


async def _until_closed(connection: socket.socket) -> bytes:
    """What is still read until the server has closed; raises TimeoutError if it does not."""
    loop, found = asyncio.get_running_loop(), b""
    async with asyncio.timeout(LONGEST_SECONDS):
        with suppress(ConnectionError):
            while part := await loop.sock_recv(connection, 65_536):
                found += part
    return found


def _was_reset(connection: socket.socket) -> bool:
    """Whether the server has cut the connection, without reading what it sent."""
    poll = select.poll()
    poll.register(connection, 0)
    return bool(poll.poll(0))


async def slow_readers(server: WatchedServer, count: int, draw: random.Random, tally: Tally) -> None:
    """They ask for long streams and read nothing, or a few bytes now and then: they are cut off, or told to wait."""
    asked = request("POST", "/v1/completions", json.dumps(LONG).encode())

    async def one(drips: bool) -> None:
        loop, connection = asyncio.get_running_loop(), await connect(server, receive_buffer=4_096)
        try:
            await loop.sock_sendall(connection, asked)
            with suppress(ConnectionError):
                begin = await loop.sock_recv(connection, 64)
                if b" 429 " in begin:
                    return
                assert b" 200 " in begin, begin
                while not _was_reset(connection):
                    await asyncio.sleep(0.1)
                    if drips:
                        await loop.sock_recv(connection, 64)
        finally:
            connection.close()

    await _all(tally, [(f"reader {i}", partial(one, i % 4 == 0)) for i in range(count)], 300)


async def slow_writers(server: WatchedServer, count: int, draw: random.Random, tally: Tally) -> None:
    """A head or a body byte by byte, without an end: refused with 408 when the time is up."""
    head = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 10_000
    body = request("POST", "/tokenize", b"", "Content-Length: 100000", "Content-Type: application/json") + b" " * 10_000

    async def one(data: bytes, at_once: int) -> None:
        connection = await connect(server)
        try:
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(connection, data[:at_once])

            async def drip() -> None:
                with suppress(OSError):
                    for i in range(at_once, len(data)):
                        await loop.sock_sendall(connection, data[i : i + 1])
                        await asyncio.sleep(0.1)

            dripping = asyncio.create_task(drip())
            answer = await _until_closed(connection)
            dripping.cancel()
            assert statuses(answer) == [408], answer[:300]
        finally:
            connection.close()

    begins = [(head, draw.randrange(0, 60)) if i % 2 else (body, draw.randrange(100, 400)) for i in range(count)]
    await _all(tally, [(f"writer {i}", partial(one, *begin)) for i, begin in enumerate(begins)], 400)


async def half_open(server: WatchedServer, count: int, draw: random.Random, tally: Tally) -> None:
    """Connections that one side has given up: silent from the start, in a head, in a body, in a stream; closed for
    writing, for reading, or reset."""
    asked = request("POST", "/v1/completions", json.dumps({**LONG, "max_tokens": 400}).encode())

    async def one(length: int, way: str) -> None:
        connection = await connect(server)
        try:
            with suppress(ConnectionError):
                await asyncio.get_running_loop().sock_sendall(connection, asked[:length])
                if way == "silent":
                    await _until_closed(connection)
                elif way == "reset":
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                else:
                    connection.shutdown(socket.SHUT_WR if way == "writing" else socket.SHUT_RD)
                    if way == "writing":
                        await _until_closed(connection)
        finally:
            connection.close()

    ways = [draw.choice(["silent", "reset", "writing", "reading"]) for _ in range(count)]
    lengths = [draw.choice([0, len(asked), draw.randrange(len(asked))]) for _ in range(count)]
    tally.facts |= dict(Counter(ways))
    await _all(
        tally, [(f"{way} after {n} bytes", partial(one, n, way)) for n, way in zip(lengths, ways, strict=True)], 300
    )


async def many_connections(server: WatchedServer, rounds: int, draw: random.Random, tally: Tally) -> None:
    """A thousand are open at once and all are answered; what is too many is told so, and all places come back."""

    async def one() -> None:
        loop = asyncio.get_running_loop()
        open_ones = [await connect(server) for _ in range(1_000)]
        try:
            asked = request("GET", "/healthz")
            for connection in open_ones:
                await loop.sock_sendall(connection, asked)
            for number, connection in enumerate(open_ones):
                answer = await asyncio.wait_for(loop.sock_recv(connection, 65_536), LONGEST_SECONDS)
                assert statuses(answer) == [200], f"connection {number}: {answer[:200]!r}"
            more = [await connect(server) for _ in range(100)]
            open_ones += more
            for connection in more[40:]:
                with suppress(ConnectionError):  # it may have been refused and closed already
                    await loop.sock_sendall(connection, request("GET", "/healthz", b"", "Connection: close"))
            told = Counter([str(statuses(await _until_closed(connection))) for connection in more[40:]])
            # The client beside them connects anew for each stream: one of them may take its place.
            assert told["[503]"] >= 59, told
            assert told["[503]"] + told["[200]"] == 60, told
        finally:
            for connection in open_ones:
                connection.close()
        end = time.monotonic() + LONGEST_SECONDS
        while statuses((await exchange(server, request("GET", "/healthz"), quiet=0.2))[0]) != [200]:
            assert time.monotonic() < end, "no place comes back"

    for number in range(rounds):
        await _all(tally, [(f"round {number}", one)])


async def garbage(server: WatchedServer, count: int, draw: random.Random, tally: Tally) -> None:
    """Random bytes, good requests with garbage behind and between them, and thousands of good ones at once: each gets
    whole answers, no more than it asked for, and none that says the server failed."""
    good = [request("GET", "/healthz"), request("GET", "/nothing"), request("POST", "/tokenize", b'{"prompt": "a"}')]
    words = [
        *FRAMINGS.values(),
        SMUGGLED,
        b"\r\n",
        b"\0",
        b"0\r\n\r\n",
        b"\r\n" * 1_000,
        b"GET ",
        b"HTTP/1.1 200 OK\r\n\r\n",
    ]

    def drawn() -> bytes:
        kind = draw.randrange(5)
        if kind == 0:
            return draw.randbytes(draw.choice([1, 10, 100, 10_000]))
        if kind == 1:
            return b"".join(draw.choices(good, k=draw.randrange(1, 20))) + draw.randbytes(50)
        if kind == 2:
            return b"".join(draw.choices(good + words, k=draw.randrange(1, 30)))
        if kind == 3:
            data = bytearray(b"".join(draw.choices(good, k=5)))
            for _ in range(draw.randrange(1, 10)):
                data[draw.randrange(len(data))] = draw.randrange(256)
            return bytes(data)
        return draw.choice(good) * draw.choice([33, 1_000, 20_000])

    async def one(data: bytes) -> None:
        answer, _ = await exchange(server, data, quiet=0.3, patience=PATIENCE + 3)
        found = statuses(answer)
        assert all(status < 500 for status in found), f"{data[:200]!r}: {answer[:300]!r}"
        assert len(found) <= data.count(b"\n") + 2, f"{data[:200]!r}: {len(found)} answers"

    await _all(tally, [(f"garbage {i}", partial(one, drawn())) for i in range(count)])


async def sizes(server: WatchedServer, rounds: int, draw: random.Random, tally: Tally) -> None:
    """One after another, so that the memory of each is seen: refused by name and with a short answer, or done."""
    slowest = ("", 0.0)

    async def one(name: str) -> None:
        nonlocal slowest
        make, status = SIZES[name]
        data = make()
        server.forget_peak()
        before, begun = server.status("VmRSS"), time.monotonic()
        answer, _ = await exchange(server, data, quiet=0.1)
        slowest = max(slowest, (name, time.monotonic() - begun), key=lambda each: each[1])
        assert statuses(answer) == [status], f"{statuses(answer)} instead of {status}: {answer[-300:]!r}"
        assert len(answer) < 100_000, f"an answer of {len(answer):,} bytes"
        peak = server.status("VmHWM") - before
        assert peak < PEAK, f"{peak:,.0f} MB of memory for it"

    for _ in range(rounds):
        await _all(tally, [(name, partial(one, name)) for name in SIZES], 1)
    tally.facts["seconds of the slowest"] = round(slowest[1], 1)


async def traversal(server: WatchedServer, rounds: int, draw: random.Random, tally: Tally) -> None:
    """Nothing outside of the page's folder is ever read."""

    async def one(path: str) -> None:
        answer, _ = await exchange(server, request("GET", path), quiet=0.2)
        assert statuses(answer)[:1] in ([400], [404]), answer[:300]
        assert b'{"error":' in answer.replace(b" ", b""), answer[:300]
        assert b"root:" not in answer, answer[:300]
        assert b"import " not in answer, answer[:300]

    paths = [*PATHS, *(_mixed(path, draw) for path in PATHS for _ in range(rounds - 1))]
    await _all(tally, [(repr(path)[:80], partial(one, path)) for path in paths])


def _mixed(path: str, draw: random.Random) -> str:
    """The path with some of its characters in per cent."""
    return "".join(
        f"%{ord(c):02x}" if c in "./\\epasx" and draw.random() < 0.4 and i else c for i, c in enumerate(path)
    )


async def smuggling(server: WatchedServer, rounds: int, draw: random.Random, tally: Tally) -> None:
    """Cut anywhere into packets: refused, and the connection closed; the second request is never answered."""

    async def one(name: str, cut: int) -> None:
        loop, data = asyncio.get_running_loop(), FRAMINGS[name]
        connection = await connect(server)
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with suppress(ConnectionError):
                await loop.sock_sendall(connection, data[:cut])
                await asyncio.sleep(0.02)
                await loop.sock_sendall(connection, data[cut:])
            answer = await _until_closed(connection)
            assert b"/smuggled" not in answer, answer[:400]
            assert len(statuses(answer)) <= 1, answer[:400]
            assert all(400 <= status < 500 or "in a body" in name for status in statuses(answer)), answer[:300]
        finally:
            connection.close()

    tries = [
        (name, partial(one, name, draw.randrange(len(FRAMINGS[name])) if i else 0))
        for i in range(rounds)
        for name in FRAMINGS
    ]
    await _all(tally, tries)


async def rebinding(server: WatchedServer, rounds: int, draw: random.Random, tally: Tally) -> None:
    """A name that somebody's DNS could point at this machine gets no answer, whatever is asked."""

    async def one(host: str, path: str, status: int) -> None:
        answer, _ = await exchange(server, request("GET", path, host=host), quiet=0.2)
        assert statuses(answer) in ([status], [400]) if status == 421 else statuses(answer) == [status], answer[:300]
        assert status == 200 or b"rhapsode" not in answer.lower(), answer[:300]

    tries = []
    for i in range(rounds):
        for path in ("/healthz", "/v1/models", "/", "/metrics")[: 1 if i else 4]:
            tries += [(f"{host} {path}", partial(one, host, path, 200)) for host in OWN_NAMES]
            tries += [(f"{host} {path}", partial(one, f"{'a.' * i}{host}", path, 421)) for host in OTHER_NAMES]
    await _all(tally, tries)


async def other_origin(server: WatchedServer, rounds: int, draw: random.Random, tally: Tally) -> None:
    """Whatever a browser sends for a page of another origin without asking the server first: no text is written for it,
    and no answer is one that the browser would show to the page."""

    async def one(name: str) -> None:
        answer, _ = await exchange(server, FOREIGN[name], quiet=0.3)
        assert b"access-control-" not in answer.lower(), answer[:400]
        reads = name.startswith("read ")
        assert statuses(answer) == [200] if reads else 400 <= statuses(answer)[0] < 500, answer[:300]
        assert reads or b"choices" not in answer, answer[:300]

    assert any(line.encode() in FOREIGN["read /"] for line in ELSEWHERE)
    await _all(tally, [(name, partial(one, name)) for _ in range(rounds) for name in FOREIGN])


async def cancelled(server: WatchedServer, count: int, draw: random.Random, tally: Tally) -> None:
    """Streams that their clients leave: before the request is whole, before the first token, in the middle; memory is
    measured at a third and at the end."""
    asked = [
        request("POST", path, json.dumps({**LONG, **more, "max_tokens": 2_000}).encode())
        for path, more in (
            ("/v1/completions", {}),
            ("/v1/completions", {"n": 4, "stream": False, "logprobs": None}),
            ("/v1/completions", {"prompt": ["a", "b"], "echo": True}),
            ("/v1/chat/completions", {"messages": [{"content": "Once"}], "logprobs": True}),
        )
    ]
    third = 0.0

    async def one(number: int, data: bytes, sent: int, read: int, resets: bool) -> None:
        nonlocal third
        loop = asyncio.get_running_loop()
        connection = await connect(server)
        try:
            with suppress(ConnectionError):
                await loop.sock_sendall(connection, data[:sent])
                seen = 0
                while sent == len(data) and seen < read:
                    part = await asyncio.wait_for(loop.sock_recv(connection, 4_096), LONGEST_SECONDS)
                    assert part, "the server closed"
                    seen += len(part)
            if resets:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        finally:
            connection.close()
        if number == count // 3:
            third = server.status("VmRSS")

    tries = []
    for number in range(count):
        data = draw.choice(asked)
        sent = len(data) if draw.random() < 0.9 else draw.randrange(len(data))
        read = 0 if data is asked[1] else draw.choice([0, 1, 300, 5_000, 20_000])
        tries.append((f"stream {number}", partial(one, number, data, sent, read, draw.random() < 0.5)))
    await _all(tally, tries, 32)
    tally.facts["MB more since a third"] = round(server.status("VmRSS") - third, 1)
    assert tally.facts["MB more since a third"] < MEGABYTES / 2, tally.facts
