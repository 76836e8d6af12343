"""A connection: uvicorn's, bounded in size and time, so that whoever sends without end, or not at all, costs little.

uvicorn itself waits for ever for the rest of a request and for a client that does not read, keeps a head of any length
and as many requests in advance as a client sends.
"""

import asyncio
import json
import os
import socket
import struct
from functools import cache

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from rhapsode.serve.failures import failure_body

ARRIVAL_SECONDS = 60.0  # in which a request must be there, from its first byte to its last
UNREAD_SECONDS = 30.0  # for which a client may leave unread what it was sent
LOOK_SECONDS = 5.0  # between two looks at the clock
MOST_HEAD_BYTES = 65_536  # of a request's first line and headers
MOST_AHEAD = 32  # requests that one client may send before it has the answer to the first
MOST_CONNECTIONS = 1_024
SPARE_FILES = 128  # that the process may open beside its connections
LINGER_SECONDS = 2.0  # in which who was refused may send what is under way, and read why
MOST_LINGERING = 96  # of them, beside those that are served
SLICE = 16_384  # bytes after which the bounds are looked at


class Connection(HttpToolsProtocol):
    """What stands between a socket and the application."""

    head_bytes: int | None = None  # of the request whose head is being read; None between heads
    arriving: float | None = None  # since when a request is on its way
    reading_body: bool = False  # of a request that the application has been told of
    unread: float | None = None  # since when the client has taken nothing
    lingering: float | None = None  # since when the client is refused
    refusal: tuple[int, str, str | None] = (400, "this is not valid HTTP", None)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._look_again = self.loop.call_later(LOOK_SECONDS, self._look)
        self.arriving = self.loop.time()
        if len(self.connections) - len(self._lingering()) > most_connections():
            self.refuse(503, f"{most_connections():,} clients are connected already", "too_many_connections")

    def connection_lost(self, exc: Exception | None) -> None:
        self._look_again.cancel()
        super().connection_lost(exc)
        self.pipeline.clear()

    def data_received(self, data: bytes) -> None:
        """Feeds the parser, as long as nothing is beyond its bound; what a client sends that is refused is dropped."""
        for begin in range(0, len(data), SLICE):
            part = data[begin : begin + SLICE]
            if self.lingering is not None:
                return
            if self.arriving is None:
                self.arriving = self.loop.time()
            super().data_received(part)
            if self.transport.is_closing():
                return
            if self.head_bytes is not None:
                self.head_bytes += len(part)
                if self.head_bytes > MOST_HEAD_BYTES:
                    return self.refuse(431, f"the head has more than {MOST_HEAD_BYTES:,} bytes", "head_too_large")
            if len(self.pipeline) > MOST_AHEAD:
                return self.refuse(
                    429, f"more than {MOST_AHEAD} requests were sent ahead of their answers", "too_many_ahead"
                )

    # -- of the parser -----------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self.head_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self.head_bytes = None
        self._check_framing()
        super().on_headers_complete()
        self.reading_body = True

    def on_message_complete(self) -> None:
        self.arriving, self.reading_body = None, False
        super().on_message_complete()

    def _check_framing(self) -> None:
        """What two programs in a row could read as two different requests is none."""
        named = [name for name, _ in self.headers]
        for name in (b"host", b"content-length", b"transfer-encoding"):
            if named.count(name) > 1:
                self._refuse_head(f"the header {name.decode()} is there {named.count(name)} times")
        if b"content-length" in named and b"transfer-encoding" in named:
            self._refuse_head("content-length and transfer-encoding contradict each other")
        if b"host" not in named and self.parser.get_http_version() != "1.0":
            self._refuse_head("the header host is missing")

    def _refuse_head(self, message: str) -> None:
        self.refusal = (400, message, None)
        raise httptools.HttpParserError(message)  # the parser ends, and uvicorn calls send_400_response

    # -- of the socket -----------------------------------------------------------------------------------------------

    def pause_writing(self) -> None:
        self.unread = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        self.unread = None
        super().resume_writing()

    def _look(self) -> None:
        """Ends what takes too long."""
        self._look_again = self.loop.call_later(LOOK_SECONDS, self._look)
        now = self.loop.time()
        if self.transport.is_closing() and self.unread is None:
            self.unread = now  # what is left in the buffer
        if self.unread is not None and now - self.unread > UNREAD_SECONDS:
            self._reset()
        elif self.arriving is not None and now - self.arriving > ARRIVAL_SECONDS and not self._is_answering:
            self.refuse(408, f"the request did not arrive within {ARRIVAL_SECONDS:g} s", "request_timeout")

    def _reset(self) -> None:
        """Closes without waiting; what the system still holds for the client is dropped, too."""
        at_once = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
        self.transport.abort()

    @property
    def _is_answering(self) -> bool:
        """Whether a request is there that has not got all of its answer."""
        cycle = self.cycle
        return bool(self.pipeline) or (cycle is not None and not cycle.more_body and not cycle.response_complete)

    def refuse(self, status: int, message: str, code: str | None) -> None:
        """Says why, if no answer has begun, and closes."""
        self.refusal = (status, message, code)
        self.send_400_response(message)

    def send_400_response(self, msg: str) -> None:
        """uvicorn's way out, with the status and the body of any other refusal."""
        status, message, code = self.refusal
        body = json.dumps(failure_body(status, message, code=code)).encode()
        begun = self.cycle if self.reading_body else None  # the request whose body is refused
        if self._is_answering or (begun and begun.response_started and not begun.response_complete):
            self.transport.close()
            return
        if not (begun and begun.response_complete):  # or it has its answer, and a second would be taken for another's
            head = f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
            self.transport.write(STATUS_LINE[status] + head.encode() + body)
        if begun:  # the application is done with it
            begun.disconnected = True
            begun.message_event.set()
        self._linger()

    def _linger(self) -> None:
        """Says no more, and reads on for a moment: systems reset a connection that is closed while a client sends, and
        the client, which may be innocent, would have a broken pipe instead of an answer."""
        if self.transport.is_closing():
            return
        self.lingering, self.arriving = self.loop.time(), None
        self.transport.write_eof()
        self.flow.resume_reading()
        self.loop.call_later(LINGER_SECONDS, self.transport.close)
        if len(others := self._lingering()) > MOST_LINGERING:
            min(others, key=lambda each: each.lingering or 0.0).transport.close()

    def _lingering(self) -> list["Connection"]:
        there = (each for each in self.connections if isinstance(each, Connection) and not each.transport.is_closing())
        return [each for each in there if each.lingering is not None]


@cache
def most_connections() -> int:
    """How many connections fit into the files that this process may open, of which it takes as many as it may get."""
    try:
        import resource
    except ImportError:  # where files are not counted
        return MOST_CONNECTIONS
    wanted = MOST_CONNECTIONS + SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(1, (wanted if soft == resource.RLIM_INFINITY else min(soft, wanted)) - SPARE_FILES)
