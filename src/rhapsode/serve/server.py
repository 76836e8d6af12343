"""The process of the server: its address, its signals, its end.

The web server tells running streams to disconnect as soon as it shuts down. So a signal first closes the gate, then
what runs is finished, and only then the web server is stopped.
"""

import asyncio
import contextlib
import errno
import os
import signal
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route
from starlette.types import ASGIApp

from rhapsode.progress import say
from rhapsode.serve.completions import Patience
from rhapsode.serve.connections import Connection
from rhapsode.serve.driver import Driver
from rhapsode.serve.http import Service, build_app
from rhapsode.serve.metrics import Meters
from rhapsode.serve.models import ServedModels, physical_memory
from rhapsode.serve.security import Admission, Gate, api_key, check_origins, is_loopback

DRAIN_SECONDS = 30.0
SOCKET_BYTES = 131_072  # of a connection, in each direction; left alone, systems give megabytes to who does not read


@dataclass(frozen=True)
class ServerConfig:
    """How runs are served; what each field is stands with the options of `rhapsode serve`."""

    runs: Sequence[Path]
    host: str = "127.0.0.1"
    port: int = 8000
    max_context: int = 8_192
    max_rows: int = 64
    max_queue: int = 256
    max_wait: float = 60.0
    max_body: float = 4.0  # MB
    max_answers: float = 512.0  # MB
    memory: float | None = None  # GB
    ping: float = 10.0
    checkpoint: str = "best"
    api_key: Path | None = None
    cors: Sequence[str] = ()
    allow_host: Sequence[str] = ()
    log_prompts: bool = False

    def __post_init__(self) -> None:
        for name in ("max_context", "max_rows", "max_wait", "max_body", "max_answers"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.max_queue < 0:
            raise ValueError(f"max_queue must be >= 0, got {self.max_queue}")
        if not 0 <= self.port <= 65_535:
            raise ValueError(f"port must be from 0 to 65535, got {self.port}")
        check_origins(self.cors)


class RunServer:
    """A server that has its address and its runs, and serves once `run` is awaited.

    Raises ValueError or OSError in one line where a run cannot be opened, or the address not be had.
    """

    def __init__(self, config: ServerConfig) -> None:
        self.config, self.key = config, api_key(config.api_key)
        self.models = ServedModels(
            list(config.runs),
            checkpoint=config.checkpoint,
            max_rows=config.max_rows,
            max_context=config.max_context,
            most_bytes=int(config.memory * 1e9) if config.memory else physical_memory() // 2,
        )
        self.meters = Meters()
        self.driver = Driver(self.meters, config.max_queue, int(config.max_answers * 1e6))
        patience = Patience(config.max_wait, config.ping)
        service = Service(
            self.models, self.driver, self.meters, patience, config.log_prompts, lambda: self.gate.closing
        )
        app = build_app(service)
        paths = {route.path for route in app.routes if isinstance(route, Route)}
        hosts = {name.lower() for name in (*config.allow_host, config.host)}
        self.gate = Gate(app, Admission(hosts, self.key, int(config.max_body * 1e6)), self.meters, paths)
        outer: ASGIApp = self.gate
        if config.cors:
            outer = CORSMiddleware(
                self.gate,
                allow_origins=list(config.cors),
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
                expose_headers=["X-Rhapsode-Ignored", "Retry-After"],
            )
        self.web = WebServer(
            uvicorn.Config(
                outer,
                http=Connection,
                ws="none",
                log_level="error",  # a line for each request that is not valid HTTP would fill the disk
                access_log=False,
                lifespan="off",
                server_header=False,
            )
        )
        self.listening = bound_socket(config.host, config.port)
        self._draining: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        """What a client calls it."""
        return address_of(self.config.host, self.listening.getsockname()[1])

    async def run(self) -> None:
        """Serves until `end` was called."""
        self.driver.start()
        try:
            await self.web.serve(sockets=[self.listening])
        finally:
            self.driver.stop()

    def end(self, signal_number: int = signal.SIGTERM) -> None:
        """Admits no more, finishes what runs, for DRAIN_SECONDS at most, and ends; called again, ends the process at
        once. To be called in the event loop."""
        if self._draining is not None:
            say("stopped at once")
            os._exit(128 + signal_number)
        self._draining = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        if self.gate.in_flight:
            say(f"finishing what runs, for at most {DRAIN_SECONDS:g} s; once more ends at once")
        if not await self.gate.drained(DRAIN_SECONDS):
            say(f"{self.gate.in_flight} requests were not finished in time")
            self.web.force_exit = True
        self.web.should_exit = True

    def introduce(self) -> None:
        """Prints the address on standard output, and what is served on standard error."""
        config = self.config
        print(self.address, flush=True)
        say(
            f"serving {', '.join(self.models.runs)}; texts of at most {config.max_context:,} tokens,"
            f" {config.max_rows} at once; Ctrl-C ends it"
        )
        if not is_loopback(config.host):
            what = "" if self.key else " without a key (see --api-key)"
            say(f"warning: every machine that reaches {config.host} can use this server{what}")


def serve_runs(config: ServerConfig) -> None:
    """Serves runs until a signal ends it. Raises ValueError or OSError as `RunServer` does."""
    server = RunServer(config)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, frame: loop.call_soon_threadsafe(server.end, number))
        server.introduce()
        await server.run()

    with (
        contextlib.closing(server.listening),
        asyncio.Runner(loop_factory=server.web.config.get_loop_factory()) as runner,
    ):
        runner.run(main())


class WebServer(uvicorn.Server):
    """uvicorn's server, with signals left to us."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket that listens at the address; raises OSError in one line where that cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError:
        raise OSError(f"--host {host}: no such address") from None
    listening = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        for buffer in (socket.SO_SNDBUF, socket.SO_RCVBUF):  # of each connection, in the system's memory
            listening.setsockopt(socket.SOL_SOCKET, buffer, SOCKET_BYTES)
        listening.bind(address)
        listening.listen(2048)
    except OSError as error:
        listening.close()
        taken = error.errno == errno.EADDRINUSE
        what = "something listens there already; choose another --port" if taken else error.strerror
        raise OSError(f"{address_of(host, port)}: {what}") from None
    return listening


def address_of(host: str, port: int) -> str:
    """How a client writes it."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
