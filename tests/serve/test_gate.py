"""Who may ask: the name in the Host header, the key, the size of a body, pages of other origins."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from serve.conftest import LONGEST_SECONDS, Served, serving

from rhapsode.serve.security import api_key, is_own_name
from rhapsode.serve.server import ServerConfig

ANYBODY = httpx.Client(timeout=LONGEST_SECONDS)


@pytest.fixture(scope="module")
def closed(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with a key, a small limit for bodies, and one page of another origin."""
    key = tmp_path_factory.mktemp("key") / "key.txt"
    key.write_text("s3cret-s\n")
    with serving(
        tiny_run, api_key=key, max_body=0.01, cors=("http://localhost:3000",), allow_host=("My-Server.example",)
    ) as server:
        yield server


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("127.0.0.1:8000", True),
        ("[::1]:8000", True),
        ("192.168.0.7", True),
        ("localhost:1", True),
        ("LOCALHOST.", True),
        ("a.localhost", True),
        ("my-server.example:80", True),
        ("evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example:8000", False),
        ("evil-localhost", False),
        ("", False),
    ],
)
def test_names_of_this_server(host: str, own: bool) -> None:
    """A name that an attacker's DNS could point at this machine is none of them (rebinding)."""
    assert is_own_name(host, {"my-server.example"}) is own


def test_an_unknown_host_is_refused(served: Served, closed: Served) -> None:
    """Would catch a page of anybody that reads the answers under its own name."""
    for path in ("/healthz", "/v1/models", "/"):
        answer = ANYBODY.get(served.url + path, headers={"Host": "evil.example"})
        assert answer.status_code == 421
        assert "--allow-host" in answer.json()["error"]["message"]
    assert ANYBODY.get(closed.url + "/healthz", headers={"Host": "MY-SERVER.example:9"}).status_code == 200


def test_the_key(closed: Served) -> None:
    """Every path but those that tell nothing wants it; a wrong one is told apart from a missing one by nobody."""
    right = {"Authorization": "Bearer s3cret-s"}
    for path in ("/v1/models", "/api/runs", "/metrics", "/openapi.json", "/v1/nothing", "/tokenizer_info"):
        assert ANYBODY.get(closed.url + path).status_code == 401, path
        assert ANYBODY.get(closed.url + path, headers=right).status_code in (200, 404), path
    for path in ("/healthz", "/readyz"):
        assert ANYBODY.get(closed.url + path).status_code == 200
    for wrong in ("Bearer s3cret", "Bearer", "Basic s3cret-s", "s3cret-s", "Bearer s3cret-s x", "Bearer \xff"):
        answer = ANYBODY.post(
            closed.url + "/v1/completions", json={"prompt": "a"}, headers={"Authorization": wrong.encode("latin-1")}
        )
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_the_key_comes_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the command line all users of the machine could read it; what looks like a key there is said to be no file."""
    file = tmp_path / "key"
    file.write_text("abc\n")
    monkeypatch.setenv("RHAPSODE_API_KEY", "from-outside")
    assert api_key(file) == "abc"
    assert api_key(None) == "from-outside"
    monkeypatch.setenv("RHAPSODE_API_KEY", "")
    assert api_key(None) is None
    with pytest.raises(FileNotFoundError, match="--api-key names a file"):
        api_key(Path("my-secret"))
    file.write_text("\n")
    with pytest.raises(ValueError, match="one line"):
        api_key(file)


def test_large_bodies(closed: Served) -> None:
    """413 with both numbers, whether the length is told before or not; what fits is read."""
    right = {"Authorization": "Bearer s3cret-s"}

    def pieces() -> Iterator[bytes]:
        yield b'{"prompt": "'
        for _ in range(30):
            yield b"a" * 1000
        yield b'"}'

    body: Any
    for body in (b'{"prompt": "' + b"a" * 20_000 + b'"}', pieces()):
        headers = {**right, "Content-Type": "application/json"}
        answer = ANYBODY.post(closed.url + "/v1/completions", content=body, headers=headers)
        assert answer.status_code == 413
        assert "10,000" in answer.json()["error"]["message"]
    answer = ANYBODY.post(closed.url + "/tokenize", json={"prompt": "a" * 9_000}, headers=right)
    assert answer.status_code == 200


def test_other_origins(served: Served, closed: Served) -> None:
    """Off unless asked for; then for the named origin alone, and a preflight needs no key."""
    asks = {"Origin": "http://localhost:3000", "Access-Control-Request-Method": "POST"}
    answer = httpx.options(served.url + "/v1/completions", headers=asks)
    assert "access-control-allow-origin" not in answer.headers
    answer = httpx.options(closed.url + "/v1/completions", headers=asks)
    assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"
    answer = httpx.options(closed.url + "/v1/completions", headers={**asks, "Origin": "http://evil.example"})
    assert "access-control-allow-origin" not in answer.headers
    with pytest.raises(ValueError, match="origin such as"):
        ServerConfig((), cors=("localhost",))


def test_a_form_of_another_page_does_nothing(served: Served) -> None:
    """Browsers send forms and plain text anywhere without asking; JSON they ask about first."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=a"):
        body = b'{"prompt": "a", "max_tokens": 1}'
        answer = ANYBODY.post(served.url + "/v1/completions", content=body, headers={"Content-Type": kind})
        assert answer.status_code == 400


def test_nothing_of_a_request_is_printed(tiny_run: Path, capfd: pytest.CaptureFixture) -> None:
    """Would catch prompts in logs; with log_prompts they are there, prompt and text, streamed or not."""
    body = {"prompt": "Once SECRET", "max_tokens": 3, "seed": 1, "suffix": None}
    for log_prompts in (False, True):
        with serving(tiny_run, log_prompts=log_prompts) as server:
            server.complete(**body)
            server.api.post("/v1/completions", json={**body, "stream": True})
            server.api.post("/v1/completions", json={**body, "suffix": "SECRET"})
            server.api.post("/v1/completions?SECRET=1", content=b"SECRET")
            assert "SECRET" not in server.api.get("/metrics").text
        printed = "".join(capfd.readouterr())
        assert printed.count("SECRET") == (2 if log_prompts else 0)
        assert printed.count("' -> '") == (2 if log_prompts else 0)
