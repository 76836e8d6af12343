"""The process: its address, its signals, its end; what a user sees who starts it wrongly."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from serve.conftest import LONGEST_SECONDS, Served
from serve.test_streams import Reader

from rhapsode.cli import main
from rhapsode.serve import check_installed
from rhapsode.serve.server import RunServer, ServerConfig

SOURCE = Path(__file__).resolve().parents[2] / "src"


class Process:
    """A server in a process of its own, as a user starts it."""

    def __init__(self, *arguments: object, **environment: str) -> None:
        command = [sys.executable, "-m", "rhapsode", "serve", *map(str, arguments)]
        surroundings = {**os.environ, "PYTHONPATH": str(SOURCE), **environment}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=surroundings, **pipes)  # type: ignore[call-overload]
        self.url = self.process.stdout.readline().strip()
        self.said = ""

    def until(self, words: str) -> None:
        """Returns when it has said this on standard error."""
        while words not in self.said:
            line = self.process.stderr.readline()
            assert line, self.said
            self.said += line

    def ended(self) -> tuple[int, str]:
        """Its exit code, and all that it said."""
        _, error = self.process.communicate(timeout=LONGEST_SECONDS)
        return self.process.returncode, self.said + error


@contextmanager
def process(*arguments: object) -> Iterator[Process]:
    started = Process(*arguments)
    try:
        yield started
    finally:
        started.process.kill()
        started.process.communicate()


def test_a_signal_lets_what_runs_finish(tiny_run: Path) -> None:
    """Would catch a web server that cuts its running streams as soon as it is told to end: the stream goes on to its
    [DONE], nobody else is admitted meanwhile, and the exit code says that all is well."""
    with process(tiny_run, "--port", "0", "--max-context", "200000") as server:
        assert server.url.startswith("http://127.0.0.1:")
        stream = Reader(server, max_tokens=2_000, return_token_ids=True)  # type: ignore[arg-type]
        stream.until(b"data: ")
        server.process.terminate()
        refused = b""
        with suppress(OSError):  # it was over by then
            late = Reader(server, stream=False, max_tokens=1)  # type: ignore[arg-type]
            refused = late.socket.recv(4_096)
        assert not refused or b"503" in refused.partition(b"\r\n")[0]
        seen = stream.until(b"[DONE]")
        written = sum(
            len(choice["token_ids"])
            for line in seen.decode().splitlines()
            if line.startswith("data: {")
            for choice in json.loads(line[6:])["choices"]
        )
        assert written == 2_000
        code, error = server.ended()
    assert code == 0
    assert "serving tiny; texts of at most 200,000 tokens" in error
    assert "Traceback" not in error


def test_a_second_signal_ends_at_once(tiny_run: Path) -> None:
    """Would catch a server that cannot be got rid of while somebody reads a long text."""
    with process(tiny_run, "--port", "0", "--max-context", "2000000") as server:
        stream = Reader(server)  # type: ignore[arg-type]
        stream.until(b"data: ")
        server.process.send_signal(signal.SIGINT)  # Ctrl-C
        server.until("finishing what runs")
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGINT)
        code, error = server.ended()
    assert code == 128 + signal.SIGINT
    assert "stopped at once" in error


def test_started_wrongly(
    tiny_run: Path, tmp_path: Path, served: Served, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    """One line that says what to do, exit code 2, and nothing on standard output."""
    port = served.url.rpartition(":")[2]
    for arguments, words in (
        ((tiny_run, "--port", port), "choose another --port"),
        ((tmp_path / "nothing",), "no such directory"),
        ((tiny_run, tiny_run), "given twice"),
        ((tiny_run, "--api-key", tmp_path / "key"), "--api-key names a file"),
        ((tiny_run, "--max-context", "0"), "max_context must be above 0"),
        ((tiny_run, "--checkpoint", "worst"), "checkpoint must be one of best, last"),
        ((tiny_run, "--host", "no.such.host.invalid"), "no such address"),
    ):
        monkeypatch.setattr(sys, "argv", ["rhapsode", "serve", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, error = capfd.readouterr()
        assert (ended.value.code, out) == (2, ""), error
        assert words in error
        assert error.count("\n") == 1


def test_a_warning_where_others_reach_it(
    tiny_run: Path, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bound to anything but this machine's own address, and more clearly where there is no key either."""
    monkeypatch.delenv("RHAPSODE_API_KEY", raising=False)
    for host, warned in (("127.0.0.1", False), ("0.0.0.0", True)):
        server = RunServer(ServerConfig((tiny_run,), host=host, port=0))
        server.introduce()
        out, error = capfd.readouterr()
        assert out == f"{server.address}\n"
        server.listening.close()
        assert ("without a key" in error) is warned


def test_what_it_needs_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a traceback of a missing package for those who installed the rest only."""
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(ValueError, match=r"pip install 'rhapsode\[serve\]'"):
        check_installed()
