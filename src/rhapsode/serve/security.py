"""Who may ask: the name that the request calls this server by, the API key, the size of its body, the end of the day.

A web page of anybody can have its reader's browser send requests to an address on this machine. Under its own name it
could even read the answers, if that name came to mean this machine (DNS rebinding); so only addresses, localhost and
names that were allowed are answered to.
"""

import asyncio
import hmac
import ipaddress
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rhapsode.serve.completions import refusal_response
from rhapsode.serve.failures import Refusal
from rhapsode.serve.metrics import Meters

KEY_VARIABLE = "RHAPSODE_API_KEY"
OPEN_PATHS = ("/healthz", "/readyz", "/")  # need no key; nor does what is below OPEN_FOLDER
OPEN_FOLDER = "/page/"


@dataclass(frozen=True)
class Admission:
    """hosts: names that this server may be called by, beside addresses and localhost. key: None for no key."""

    hosts: Collection[str]
    key: str | None
    most_bytes: int


class Gate:
    """What every request passes first. in_flight: requests that are being answered; closing: none is admitted."""

    def __init__(self, app: ASGIApp, admission: Admission, meters: Meters, paths: Collection[str]) -> None:
        self.app, self.admission, self.meters, self.paths = app, admission, meters, paths
        self.in_flight = 0
        self.closing = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        self.in_flight += 1
        path = scope["path"]
        status = 0

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            self._check(path, Headers(scope=scope))
            await self.app(scope, self._bounded(receive), counted)
        except Refusal as refusal:
            await refusal_response(refusal)(scope, receive, counted)
        except Exception:
            if not status:
                raise
            # answered and said already (http.py); uvicorn would print it with whatever texts are in it
        finally:
            self.in_flight -= 1
            self.meters.requests.labels(path if path in self.paths else "other", status).inc()

    def _check(self, path: str, headers: Headers) -> None:
        host = headers.get("host")
        if host is not None and not is_own_name(host, self.admission.hosts):
            raise Refusal(
                421,
                f"this server does not answer to the name {host!r}; if it is meant, start it with --allow-host",
                code="unknown_host",
            )
        if self.closing and path != "/healthz":
            raise Refusal(503, "this server is shutting down", code="closing", headers={"Connection": "close"})
        is_open = path in OPEN_PATHS or path.startswith(OPEN_FOLDER)
        if self.admission.key is not None and not is_open and not self._has_key(headers.get("authorization", "")):
            raise Refusal(
                401,
                "the API key is missing or wrong; send it as: Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        length = headers.get("content-length", "0")
        if length.isascii() and length.isdecimal():
            self._check_size(int(length))

    def _has_key(self, authorization: str) -> bool:
        assert self.admission.key is not None
        kind, _, given = authorization.partition(" ")
        return kind.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self.admission.key.encode())

    def _check_size(self, size: int) -> None:
        if size > self.admission.most_bytes:
            raise Refusal(
                413,
                f"the body has {size:,} bytes or more, the most are {self.admission.most_bytes:,}",
                code="body_too_large",
                headers={"Connection": "close"},
            )

    def _bounded(self, receive: Receive) -> Receive:
        """`receive`, of a body that tells no length before."""
        size = 0

        async def bounded() -> Message:
            nonlocal size
            message = await receive()
            if message["type"] == "http.request":
                size += len(message.get("body", b""))
                self._check_size(size)
            return message

        return bounded

    async def drained(self, seconds: float) -> bool:
        """Admits no more and waits until all are answered, for so long at most; whether they are."""
        self.closing = True
        for _ in range(int(seconds * 50)):
            if not self.in_flight:
                return True
            await asyncio.sleep(0.02)
        return False


def is_own_name(host: str, allowed: Collection[str]) -> bool:
    """Whether a Host header names this server: an address, localhost, or a name that was allowed."""
    name = host.rpartition("]")[0][1:] if host.startswith("[") else host.partition(":")[0]
    name = name.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost") or name in allowed:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def api_key(file: Path | None) -> str | None:
    """The key in a file, else in the environment; None where there is none.

    Raises OSError or ValueError naming the file where it holds no key.
    """
    if file is None:
        return os.environ.get(KEY_VARIABLE) or None
    try:
        key = file.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{file}: no such file; --api-key names a file with the key in it, or set {KEY_VARIABLE}"
        ) from None
    except UnicodeDecodeError:
        raise ValueError(f"{file}: not UTF-8 text") from None
    if not key or not key.isprintable() or not key.isascii():
        raise ValueError(f"{file}: the API key must be one line of printable ASCII characters")
    return key


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_origins(origins: Sequence[str]) -> Sequence[str]:
    """The origins that other pages may come from; ValueError for what is none."""
    for origin in origins:
        scheme, separator, rest = origin.partition("://")
        if origin != "*" and (scheme not in ("http", "https") or not separator or not rest or "/" in rest):
            raise ValueError(f"--cors must be an origin such as http://localhost:3000, or *, got {origin!r}")
    return origins
