"""A server of a tiny run in a process of its own on loopback, what it costs, and a client that must notice nothing.

The server's patience is shortened, so that what it waits for is over in seconds; all else is as a user starts it.
"""

import asyncio
import atexit
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from harness import NotHere
from material import material, new_run, trained

PATIENCE = 2.0  # seconds, instead of a minute
ANSWERS = 64  # megabytes of answers under way, instead of 512
KEEP_ALIVE = 5.0  # seconds of uvicorn's, after which an idle connection is closed
LONGEST_SECONDS = 240.0  # of a wait: to end a hang, not to measure a machine
CHILD = """
import sys
from functools import partial
import uvicorn
from rhapsode.cli import main
from rhapsode.serve import connections
connections.ARRIVAL_SECONDS = connections.UNREAD_SECONDS = float(sys.argv.pop(1))
connections.LOOK_SECONDS = 0.25
uvicorn.Config = partial(uvicorn.Config, timeout_keep_alive=float(sys.argv.pop(1)))
main()
"""
TOLD_TO_WAIT = ("the queue is full", "no room within", "clients are connected already")
SEEDED: list[dict[str, Any]] = [
    {"prompt": prompt, "max_tokens": 40, "seed": seed, "logprobs": 2, "return_token_ids": True}
    for seed, prompt in enumerate(["Once upon", "There was", "", "a"])
]


class WatchedServer:
    """The process. errors: the file of its standard error; options: more of `rhapsode serve`; patience: how long it
    waits for clients, and keeps those who do nothing for so long as well where that is longer than KEEP_ALIVE."""

    def __init__(self, folder: Path, *options: str, patience: float = PATIENCE) -> None:
        if not Path("/proc/self/status").exists():
            raise NotHere("needs Linux: memory is read from /proc")
        made = material(folder / "made")
        run = trained(made, new_run(made, folder / "run"))
        self.errors = folder / "errors.txt"
        limits = ["--max-answers", str(ANSWERS)]
        waits = [str(patience), str(max(KEEP_ALIVE, patience))]
        command = [sys.executable, "-c", CHILD, *waits, "serve", str(run.path), "--port", "0", *limits, *options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=folder
            )
        assert self.process.stdout is not None
        address = self.process.stdout.readline().strip()
        assert address, self.errors.read_text()
        self.port = int(address.rpartition(":")[2])
        self.alone = [self.stream(fields) for fields in SEEDED]  # what each is when nobody disturbs

    def ask(self, method: str, path: str, body: Any = None, seconds: float = LONGEST_SECONDS) -> tuple[int, bytes]:
        """(status, body) of the answer to a decent request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)
        try:
            headers = {} if body is None else {"Content-Type": "application/json"}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def stream(self, fields: dict[str, Any]) -> list[Any]:
        """The token ids and log-probabilities of a stream."""
        status, body = self.ask("POST", "/v1/completions", {**fields, "stream": True})
        assert status == 200, body[:300]
        lines = body.decode().split("\n\n")
        assert lines[-2] == "data: [DONE]", lines[-2:]
        parts = [json.loads(line[6:])["choices"][0] for line in lines[:-2] if line.startswith("data: ")]
        return [(part["token_ids"], part["text"], part["logprobs"]) for part in parts if part["token_ids"]]

    def metrics(self) -> dict[str, float]:
        """The numbers of /metrics, by name and labels."""
        lines = self.ask("GET", "/metrics")[1].decode().splitlines()
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}

    def status(self, field: str) -> float:
        """A field of /proc/PID/status that is memory, in megabytes."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) / 1024
        raise KeyError(field)

    @property
    def files(self) -> int:
        """Files and sockets that it has open."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def forget_peak(self) -> None:
        """From here on, `status("VmHWM")` is the most memory since now."""
        with suppress(OSError):
            Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@cache
def the_server(patience: float = PATIENCE) -> WatchedServer:
    """One for all units of a patience: it must survive them all."""
    folder = Path(tempfile.mkdtemp(prefix="rhapsode-server-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    server = WatchedServer(folder, patience=patience)
    atexit.register(server.stop)
    return server


def joined(parts: list[Any]) -> Any:
    """A stream as one: how it was cut into pieces depends on who else is served."""
    ids = [id for part in parts for id in part[0]]
    values = [value for part in parts for value in part[2]["token_logprobs"]]
    return ids, "".join(part[1] for part in parts), values, [top for part in parts for top in part[2]["top_logprobs"]]


class Witness:
    """A client that reads seeded streams all the while: each must be, bit by bit, what it is alone."""

    def __init__(self, server: WatchedServer) -> None:
        self.server, self.streams, self.refused, self.different = server, 0, 0, ""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)

    def _read(self) -> None:
        while not self._over.wait(0.02) or not self.streams:
            number = self.streams % len(SEEDED)
            try:
                found = self.server.stream(SEEDED[number])
            except AssertionError as error:
                if not any(code in str(error) for code in TOLD_TO_WAIT):
                    self.different = self.different or str(error)[:300]
                    return
                self.refused += 1
                self._over.wait(0.2)
                continue
            except (OSError, http.client.HTTPException) as error:
                self.different = self.different or f"{type(error).__name__}: {error}"
                return
            if joined(found) != joined(self.server.alone[number]):
                self.different = self.different or f"stream {self.streams} of {SEEDED[number]} is another than alone"
            self.streams += 1

    def __enter__(self) -> "Witness":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(LONGEST_SECONDS)
        if self._thread.is_alive():
            self.different = self.different or "it waits for ever"


@contextmanager
def watched(server: WatchedServer, facts: dict[str, Any], megabytes: float) -> Iterator[Callable[[], None]]:
    """What must hold after a unit: gives a function that checks it. megabytes: by how much memory may have grown."""
    before, files = server.status("VmRSS"), server.files
    server.forget_peak()
    witness = Witness(server)

    def check() -> None:
        eventually(lambda: bool(witness.streams or witness.different), "the client beside it read nothing")
        facts.update({"streams beside it": witness.streams, "MB more": round(server.status("VmRSS") - before, 1)})
        facts["MB at the peak"] = round(server.status("VmHWM") - before, 1)
        assert server.process.poll() is None, f"it ended with {server.process.returncode}"
        assert not witness.different, f"the client beside it: {witness.different}"
        assert server.ask("GET", "/healthz")[0] == 200
        eventually(lambda: _at_rest(server), "texts are still there")
        eventually(lambda: server.files <= files + 2, f"{server.files} files and sockets are open, before {files}")
        assert facts["MB more"] < megabytes, f"{facts['MB more']} MB more memory"
        said = server.errors.read_text()
        assert "Traceback" not in said, said[-600:]
        assert len(said) < 20_000, f"it wrote {len(said):,} characters of complaints: {said[-300:]}"

    with witness:
        yield check


def _at_rest(server: WatchedServer) -> bool:
    found = server.metrics()
    return not found["rhapsode_running_texts"] and not found["rhapsode_waiting_texts"]


def eventually(condition: Callable[[], bool], what: str) -> None:
    """Waits until it holds."""
    end = time.monotonic() + LONGEST_SECONDS
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.05)


async def connect(server: WatchedServer, receive_buffer: int = 0) -> socket.socket:
    """A connection, non-blocking, for the event loop's sock_ functions."""
    connection = socket.socket()
    connection.setblocking(False)
    if receive_buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", server.port))
    return connection


async def exchange(
    server: WatchedServer, data: bytes, quiet: float = 1.0, patience: float = LONGEST_SECONDS
) -> tuple[bytes, bool]:
    """(what comes back, whether the server closed); reads until it does, or nothing came for `quiet` seconds after
    whole answers did."""
    loop = asyncio.get_running_loop()
    connection = await connect(server)
    try:

        async def send() -> None:
            with suppress(OSError):
                await loop.sock_sendall(connection, data)

        sending = asyncio.create_task(send())
        found, closed = b"", False
        try:
            while not closed:
                part = await asyncio.wait_for(
                    loop.sock_recv(connection, 65536), quiet if are_whole(found) else patience
                )
                found, closed = found + part, not part
        except TimeoutError:
            pass
        except OSError:
            closed = True
        sending.cancel()
        return found, closed
    finally:
        connection.close()


def request(method: str, path: str, body: bytes = b"", *headers: str, host: str = "localhost") -> bytes:
    """A request as bytes, with a length where there is a body."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *headers]
    lines += [f"Content-Length: {len(body)}", "Content-Type: application/json"] if body else []
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape") + body


def are_whole(answers: bytes) -> bool:
    """Whether there are answers, and none is cut short, by what their heads say of their lengths."""
    if not answers:
        return False
    while answers:
        head, end, answers = answers.partition(b"\r\n\r\n")
        length = re.search(rb"^content-length: *(\d+)", head, re.MULTILINE | re.IGNORECASE)
        if not end or (length and len(answers) < int(length[1])):
            return False
        if not length:
            return b"chunked" not in head.lower() or answers.endswith(b"0\r\n\r\n")
        answers = answers[int(length[1]) :]
    return True


def statuses(answers: bytes) -> list[int]:
    """The statuses of all answers in some bytes."""
    return [int(part[:3]) for part in answers.split(b"HTTP/1.1 ")[1:] if part[:3].isdigit()]
