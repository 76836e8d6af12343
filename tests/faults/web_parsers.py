"""What the server and the page parse, as functions of bytes like those of parsers.py: requests as they come from a
socket, their bodies, saved stories and links to stories."""

import asyncio
import atexit
import base64
import json
import shutil
import subprocess
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

from hostile_requests import FRAMINGS
from loopback import LONGEST_SECONDS, request, statuses

PAGE = Path(__file__).resolve().parents[2] / "src" / "rhapsode" / "serve" / "page"
BODIES = ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize", "/api/inspect")
STORY = {
    "version": 1,
    "model": "m",
    "settings": {"temperature": 0.8, "n": 2, "seed": 7, "max_tokens": 30},
    "cursor": 2,
    "text": "a b",
    "tree": {"current": 1, "branches": [["ä", -1, 0, [1, 2, 3]], ["", 0, 2, [4, 5]]]},
}


class _Socket:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.written, self.closing, self.ended = bytearray(), False, False

    def write(self, data: bytes) -> None:
        assert not self.ended, "written after the end"
        self.written += data

    def write_eof(self) -> None:
        self.ended = True

    def close(self) -> None:
        self.closing = True

    abort = close

    def is_closing(self) -> bool:
        return self.closing

    def get_extra_info(self, name: str) -> Any:
        return None

    def pause_reading(self) -> None:
        pass

    resume_reading = pause_reading


class Server:
    """The server without a socket: its connections and its application, in a loop that runs when it is asked to."""

    def __init__(self, run: Path) -> None:
        from uvicorn.server import ServerState

        from rhapsode.serve.server import RunServer, ServerConfig

        self.loop = asyncio.new_event_loop()
        self.server = RunServer(ServerConfig((run,), port=0, max_context=64, max_rows=4, max_queue=4))
        atexit.register(self.server.listening.close)
        self.server.web.config.load()
        self.state = ServerState()
        self.loop.run_until_complete(self._start())

    async def _start(self) -> None:
        self.server.driver.start()

    def answers(self, data: bytes) -> bytes:
        """What comes back to a client that sends these bytes and then leaves, once it has what it asked for."""
        return self.loop.run_until_complete(asyncio.wait_for(self._answers(data), LONGEST_SECONDS))

    async def _answers(self, data: bytes) -> bytes:
        from rhapsode.serve.connections import Connection

        problems: list[Any] = []
        self.loop.set_exception_handler(lambda _, context: problems.append(context))
        transport = _Socket()
        connection = Connection(self.server.web.config, self.state, {}, self.loop)
        connection.connection_made(transport)  # type: ignore[arg-type]
        connection.data_received(data)
        while connection._is_answering and not transport.closing and self.state.tasks:
            await asyncio.wait(self.state.tasks, return_when=asyncio.FIRST_COMPLETED)
        connection.connection_lost(None)
        while self.state.tasks:
            await asyncio.wait(self.state.tasks)
        assert not problems, problems[0]
        return bytes(transport.written)


def parse_request(server: Callable[[], Server], data: bytes) -> None:
    """The bytes as a connection brings them: whole answers, none of which says that the server failed."""
    _judge(server().answers(data))


def parse_body(server: Callable[[], Server], data: bytes) -> None:
    """The bytes as the body of a request, to a path that their number draws."""
    _judge(server().answers(request("POST", BODIES[len(data) % len(BODIES)], data or b" ")))


def _judge(answer: bytes) -> None:
    found = statuses(answer)
    assert all(status < 500 or status == 503 for status in found), answer[:600]
    if not found or any(status >= 400 for status in found):
        raise ValueError("refused")


def request_seeds() -> list[bytes]:
    """Decent requests, and a few of the framings."""
    asked = json.dumps({"prompt": "Once", "max_tokens": 2, "stream": True, "logprobs": 1}).encode()
    chunked = "Transfer-Encoding: chunked"
    decent = [
        request("GET", "/v1/models"),
        request("POST", "/v1/completions", asked),
        request("POST", "/tokenize", b"", chunked, "Content-Type: application/json")
        + b'10\r\n{"prompt": "ab"}\r\n0\r\n\r\n',
        request("GET", "/api/runs/run?after=3", b"", "Accept: */*") * 2,
        request("GET", "/page/main.js"),
    ]
    return decent + list(FRAMINGS.values())[::4]


def body_seeds() -> list[bytes]:
    """Bodies of every shape, each at a length that brings it to its path."""
    prompt = {
        "prompt": "Once",
        "max_tokens": 2,
        "seed": 1,
        "stop": ["a"],
        "logit_bias": {"3": 1},
        "n": 2,
        "logprobs": 1,
    }
    bodies: list[dict[str, Any]] = [
        prompt,
        {
            "messages": [{"role": "user", "content": [{"type": "text", "text": "Once"}]}],
            "max_tokens": 2,
            "logprobs": True,
        },
        {"prompt": "Once </s>"},
        {"tokens": [3, 4, 5]},
        {"text": "Once", "positions": [0, 1], "top": 3},
    ]
    seeds = []
    for number, body in enumerate(bodies):
        data = json.dumps(body).encode()
        seeds.append(data + b" " * ((number - len(data)) % len(BODIES)))
    return seeds


@cache
def _page(folder: Path) -> "subprocess.Popen[str]":
    """The page's modules in Node, one process for all inputs."""
    shutil.copytree(PAGE, folder, dirs_exist_ok=True)
    shutil.copy(Path(__file__).with_name("saved_story.js"), folder)
    (folder / "package.json").write_text('{"type": "module"}')
    node = shutil.which("node")
    assert node is not None
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    child = subprocess.Popen([node, "--max-old-space-size=1024", "saved_story.js"], cwd=folder, **pipes)  # type: ignore[call-overload]
    atexit.register(child.kill)
    return child


def parse_story(folder: Callable[[], Path], kind: str, data: bytes) -> None:
    """The bytes as a saved story, or as a link to one, in the page."""
    child = _page(folder())
    child.stdin.write(f"{kind} {base64.b64encode(data).decode()}\n")  # type: ignore[union-attr]
    child.stdin.flush()  # type: ignore[union-attr]
    answer = json.loads(child.stdout.readline())  # type: ignore[union-attr]
    assert "failed" not in answer, answer["failed"]
    if "refused" in answer:
        raise ValueError("refused")


def story_seeds() -> list[bytes]:
    return [json.dumps(STORY).encode(), json.dumps({**STORY, "model": "other"}).encode()]


def link_seeds() -> list[bytes]:
    import zlib

    found = []
    for story in story_seeds():
        packer = zlib.compressobj(wbits=-15)
        data = packer.compress(story) + packer.flush()
        found.append(base64.urlsafe_b64encode(data).rstrip(b"="))
    return found


def web_parsers(
    run: Callable[[], Path], folder: Callable[[], Path]
) -> dict[str, tuple[Callable[[bytes], None], Callable[[], list[bytes]]]]:
    """name: (the parser, its seeds). run: of the model that is served; folder: for what the page needs."""

    @cache
    def server() -> Server:
        return Server(run())

    found = {
        "an HTTP request": (partial(parse_request, server), request_seeds),
        "an HTTP body": (partial(parse_body, server), body_seeds),
    }
    if shutil.which("node"):
        found["a saved story"] = (partial(parse_story, folder, "file"), story_seeds)
        found["a link to a story"] = (partial(parse_story, folder, "link"), link_seeds)
    return found
