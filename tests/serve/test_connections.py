"""A connection's bounds: heads, requests ahead, slow clients, how many. tests/faults/hostile_clients.py tries more."""

import json
import socket
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from serve.conftest import LONGEST_SECONDS, Served, serving
from serve.test_streams import Reader, eventually

from rhapsode.serve import connections


def connected(served: Served) -> socket.socket:
    host, port = served.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=LONGEST_SECONDS)


def rest(client: socket.socket) -> bytes:
    """All that comes back until the server closes."""
    found = b""
    with suppress(ConnectionError):
        while part := client.recv(65_536):
            found += part
    return found


def answered(served: Served, data: bytes = b"") -> bytes:
    """All that comes back for some bytes until the server closes."""
    with connected(served) as client:
        with suppress(ConnectionError):  # where it is closed before all is sent
            client.sendall(data)
        return rest(client)


def answered_while_sending(served: Served, parts: Iterable[bytes]) -> bytes:
    """The same for bytes that come slowly, for as long as no answer does."""
    with connected(served) as client:
        found: list[bytes] = []
        reading = threading.Thread(target=lambda: found.append(rest(client)))
        reading.start()
        with suppress(ConnectionError):
            for part in parts:
                client.sendall(part)
                reading.join(0.05)
                if not reading.is_alive():
                    break
            else:
                pytest.fail("nothing came back while there was something to send")
        reading.join()
        return found[0]


def status_and_error(answer: bytes) -> tuple[int, dict[str, Any]]:
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]


HEAD = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        (b"Host: evil.example\r\n", "host is there 2 times"),
        (b"Content-Length: 0\r\nContent-Length: 0\r\n", "not valid HTTP"),
        (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "not valid HTTP"),
        (b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "not valid HTTP"),
        (b"X : y\r\n", "not valid HTTP"),
    ],
)
def test_framing_that_can_be_read_in_two_ways(served: Served, headers: bytes, words: str) -> None:
    """Would catch a second request that a proxy in front took for a body: it is refused, and the connection ends."""
    answer = answered(served, HEAD + headers + b"\r\n0\r\n\r\n" + HEAD + b"\r\n")
    status, error = status_and_error(answer)
    assert (status, error["type"]) == (400, "invalid_request_error")
    assert words in error["message"]
    assert answer.count(b"HTTP/1.1") == 1


def test_a_name_is_needed_since_http_1_1(served: Served) -> None:
    """HTTP/1.0 knew none; what leaves it out in 1.1 is no browser, and might be anybody."""
    assert status_and_error(answered(served, b"GET /healthz HTTP/1.1\r\n\r\n"))[0] == 400
    assert b" 200 OK" in answered(served, b"GET /healthz HTTP/1.0\r\n\r\n")


def test_a_head_without_end(served: Served) -> None:
    """Would catch memory that grows as long as a client sends headers, or one header; one of 60,000 bytes is read."""
    for endless in (b"a: b\r\n" * 20_000, b"a: " + b"b" * 120_000):
        status, error = status_and_error(answered(served, HEAD + endless))
        assert (status, error["code"]) == (431, "head_too_large")
        assert "65,536" in error["message"]
    assert b" 200 OK" in answered(served, HEAD + b"Connection: close\r\na: " + b"b" * 60_000 + b"\r\n\r\n")


def test_requests_ahead_of_their_answers(served: Served) -> None:
    """Thirty may wait for the first; would catch thousands that are kept for a client that reads none."""
    ahead = HEAD + b"\r\n"
    answer = answered(served, ahead * 20 + HEAD + b"Connection: close\r\n\r\n")
    assert answer.count(b" 200 OK") == 21
    many = answered(served, ahead * 5_000)
    assert many.count(b" 200 OK") <= connections.MOST_AHEAD


@pytest.mark.parametrize(("answered_before", "status"), [(True, 405), (False, 400)])
def test_a_body_that_turns_out_to_be_none(
    served: Served, capsys: pytest.CaptureFixture[str], answered_before: bool, status: int
) -> None:
    """One answer, be it the refusal or what was said before the body came, and an application that is done with: would
    catch a second one that is taken for the answer to the next request, and a write after the connection's end."""
    head = b"POST /healthz HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    body = b"1;a\nx\r\n0\r\n\r\n" + HEAD + b"\r\n"
    with connected(served) as client:
        answer = b""
        client.sendall(head if answered_before else head + body)
        while answered_before and b"}}" not in answer:
            answer += client.recv(65_536)
        if answered_before:
            client.sendall(body)
        answer += rest(client)
    assert status_and_error(answer[: answer.index(b"}}") + 2])[0] == status
    assert answer.count(b"HTTP/1.1") == 1
    assert capsys.readouterr().err == ""


def test_a_request_that_does_not_arrive(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """408 for a head and for a body that come byte by byte and go on coming: no byte puts the end off. A stream that is
    being read meanwhile goes on."""
    monkeypatch.setattr(connections, "LOOK_SECONDS", 0.05)
    with serving(tiny_run, max_context=2_000_000) as served:
        reader = Reader(served)
        reader.until(b"data: ")
        monkeypatch.setattr(connections, "ARRIVAL_SECONDS", 0.5)
        body = b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 60000\r\n\r\n{"
        for begin, byte in ((HEAD, b"a"), (body, b" ")):
            answer = answered_while_sending(served, [begin] + [byte] * 2_400)
            status, error = status_and_error(answer)
            assert (status, error["code"]) == (408, "request_timeout")
        assert answered(served) != b""  # who says nothing at all is told, too
        reader.seen = b""
        reader.until(b"data: ")
        reader.leave()


def test_a_client_that_does_not_read(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a text that is kept for ever for who does not take it: its place is given back."""
    monkeypatch.setattr(connections, "UNREAD_SECONDS", 0.5)
    monkeypatch.setattr(connections, "LOOK_SECONDS", 0.05)
    with serving(tiny_run, max_context=2_000_000) as served:
        reader = Reader(served, logprobs=20)
        reader.until(b"data: ")
        eventually(lambda: not served.server.driver.jobs)
        with pytest.raises(ConnectionResetError):
            reader.until(b"[DONE]")


def test_more_clients_than_there_is_room_for(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """503 for one too many, at once; whoever is connected is answered, and a place that is left is given again."""
    monkeypatch.setattr(connections, "most_connections", lambda: 3)
    with serving(tiny_run) as served:
        three = [connected(served) for _ in range(3)]
        status, error = status_and_error(answered(served))
        assert (status, error["code"]) == (503, "too_many_connections")
        for client in three:
            client.sendall(HEAD + b"\r\n")
            assert b" 200 OK" in client.recv(4_096)
        three.pop().close()
        eventually(lambda: b" 200 OK" in answered(served, HEAD + b"Connection: close\r\n\r\n"))
        for client in three:
            client.close()
        eventually(lambda: len(served.server.web.server_state.connections) == 0)


def test_who_is_refused_can_read_why(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a server that closes before it has read what an innocent client sends: the system then resets the
    connection, and the client has a broken pipe instead of the answer. They do not stay for ever, nor take places."""
    monkeypatch.setattr(connections, "most_connections", lambda: 1)
    monkeypatch.setattr(connections, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(connections, "LINGER_SECONDS", 10 * LONGEST_SECONDS)  # however slowly the client sends
    with serving(tiny_run) as served:
        there = served.server.web.server_state.connections
        with connected(served) as first:
            eventually(lambda: len(there) == 1)
            for parts in (
                [],
                [HEAD, b"\r\n"],
                [b"POST /tokenize HTTP/1.1\r\n", b"Host: localhost\r\n", b"x" * 99_000] * 3,
            ):
                with connected(served) as client:
                    for part in parts:
                        time.sleep(0.1)
                        client.sendall(part)
                    time.sleep(0.1)
                    answer = client.recv(65_536)
                    assert status_and_error(answer)[1]["code"] == "too_many_connections"
                    assert client.recv(65_536) == b""
            eventually(lambda: len(there) == 1)  # they have gone
            monkeypatch.setattr(connections, "MOST_LINGERING", 3)
            idle = [connected(served) for _ in range(10)]
            for client in idle:
                assert b" 503 " in client.recv(65_536)
            eventually(lambda: len(there) == 4)
            for client in idle:
                client.close()
            eventually(lambda: len(there) == 1)
            monkeypatch.setattr(connections, "LINGER_SECONDS", 0.2)
            with connected(served) as client:  # stays, and is sent away
                assert b" 503 " in client.recv(65_536)
                eventually(lambda: len(there) == 1)
            first.sendall(HEAD + b"\r\n")
            assert b" 200 OK" in first.recv(4_096)


def test_as_many_files_as_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a server that cannot open its model because a thousand clients have all its files."""
    resource = pytest.importorskip("resource")
    limits = [256, 600]
    monkeypatch.setattr(resource, "getrlimit", lambda _: tuple(limits))
    monkeypatch.setattr(resource, "setrlimit", lambda _, both: limits.__setitem__(slice(None), both))
    connections.most_connections.cache_clear()
    assert connections.most_connections() == 600 - connections.SPARE_FILES
    assert limits == [600, 600]
    limits[:] = [1_000_000, 1_000_000]
    connections.most_connections.cache_clear()
    assert connections.most_connections() == connections.MOST_CONNECTIONS
    assert limits == [1_000_000, 1_000_000]
    connections.most_connections.cache_clear()
