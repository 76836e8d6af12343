"""The Hub's path against a server on loopback that answers as the Hub does, and breaks off as networks do."""

import hashlib
import io
import json
import random
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from rhapsode.sources import SourceConfig, hub, open_source

pytest.importorskip("huggingface_hub")

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """A data set `org/tales` with these files; `requests` records what was asked: (method, path, Range)."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.requests: list[tuple[str, str, str | None]] = []
        self.breaks = 0  # how many of the next downloads break off midway
        self.etags: dict[str, str] = {}
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self.answer(with_body=False)

            def do_GET(self) -> None:
                self.answer(with_body=True)

            def answer(self, with_body: bool) -> None:
                fake.requests.append((self.command, self.path, self.headers.get("Range")))
                listings = ("/api/datasets/org/tales", "/api/datasets/org/tales/revision/")
                if self.path.split("?")[0] == listings[0] or self.path.startswith(listings[1]):
                    if self.path.split("?")[0].endswith("/revision/nowhere"):
                        return self.reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, with_body)
                    siblings = [{"rfilename": name} for name in fake.files]
                    about = {"id": "org/tales", "sha": COMMIT, "siblings": siblings}
                    return self.reply(200, json.dumps(about).encode(), {"Content-Type": "application/json"}, with_body)
                name = self.path.removeprefix(f"/datasets/org/tales/resolve/{COMMIT}/")
                if name not in fake.files:
                    return self.reply(404, b"{}", {"X-Error-Code": "RepoNotFound"}, with_body)
                body = fake.files[name]
                etag = fake.etags.get(name, hashlib.sha256(body).hexdigest())
                headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "X-Linked-Size": str(len(body))}
                status, begin = 200, 0
                if asked := self.headers.get("Range"):
                    begin = int(asked.removeprefix("bytes=").split("-")[0])
                    status = 206
                    headers["Content-Range"] = f"bytes {begin}-{len(body) - 1}/{len(body)}"
                self.reply(status, body[begin:], headers, with_body)

            def reply(self, status: int, body: bytes, headers: dict[str, str], with_body: bool) -> None:
                self.send_response(status)
                closing = {"Content-Length": str(len(body)), "Connection": "close"}
                for key, value in {**headers, **closing}.items():
                    self.send_header(key, value)
                self.end_headers()
                if with_body and "/resolve/" in self.path and fake.breaks:
                    fake.breaks -= 1
                    self.wfile.write(body[: len(body) // 2])
                    self.wfile.flush()
                elif with_body:
                    self.wfile.write(body)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def downloads(self) -> list[str | None]:
        """The Range of each download so far."""
        return [asked for method, path, asked in self.requests if method == "GET" and "/resolve/" in path]


def story_lines(count: int, seed: int = 0) -> bytes:
    numbers = random.Random(seed)
    return b"".join(json.dumps({"text": f"Tale {i}: {numbers.random()} ü"}).encode() + b"\n" for i in range(count))


@pytest.fixture
def fake_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    fake = FakeHub(
        {
            "README.md": b"# Tales",
            "train.jsonl": story_lines(2_000),
            "valid.jsonl": story_lines(50, seed=1),
            "other/notes.txt": b"one note\n\nanother note\n",
        }
    )
    monkeypatch.setenv("HF_ENDPOINT", fake.url)
    monkeypatch.setenv("RHAPSODE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "SECONDS_BETWEEN_ATTEMPTS", 0.0)
    yield fake
    fake.server.shutdown()
    fake.server.server_close()


def test_a_download_that_breaks_off_is_continued(fake_hub: FakeHub) -> None:
    """Would catch a broken download that starts again at zero, or whose halves are joined wrongly."""
    line = json.dumps({"text": "A long tale. " * 80}).encode() + b"\n"
    whole = b"".join(b'{"number": %d, ' % i + line[1:] for i in range(25_000))
    assert len(whole) > 24_000_000  # the library writes blocks of 10 MB: half of this is one and a bit
    fake_hub.files["train.jsonl"] = whole
    fake_hub.breaks = 1
    source = open_source(["hub:org/tales@main:train"])
    first, second = fake_hub.downloads()
    assert first is None
    assert second is not None
    assert len(whole) // 4 < int(second.removeprefix("bytes=").removesuffix("-")) <= len(whole) // 2
    assert source.files[0].path.read_bytes() == whole
    assert len(list(source.stories())) == 25_000


def test_a_later_run_continues_the_download(
    fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch a download that is continued within one process only, as the library's own is."""
    from huggingface_hub import file_download

    real = file_download.http_get

    def killed(url: str, stream: io.RawIOBase, **options: object) -> None:
        stream.write(fake_hub.files["train.jsonl"][:12_345])
        raise KeyboardInterrupt

    monkeypatch.setattr(file_download, "http_get", killed)
    with pytest.raises(KeyboardInterrupt):
        open_source(["hub:org/tales"])
    monkeypatch.setattr(file_download, "http_get", real)
    source = open_source(["hub:org/tales"])
    assert fake_hub.downloads() == ["bytes=12345-"]
    assert source.files[0].path.read_bytes() == fake_hub.files["train.jsonl"]
    assert "resuming the download" in capsys.readouterr().err


def test_a_network_that_stays_broken_gives_one_line(fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch an endless retry, a traceback, and a partial file that is taken for the whole."""
    from huggingface_hub import file_download

    def broken(url: str, stream: io.RawIOBase, **options: object) -> None:
        raise RuntimeError("connection reset by peer\nmore about it")

    monkeypatch.setattr(file_download, "http_get", broken)
    with pytest.raises(OSError, match=r"hub:org/tales/train.jsonl: .*stopped at 0.0 of .*reset by peer\);") as caught:
        open_source(["hub:org/tales"])
    assert "\n" not in str(caught.value)


def test_a_damaged_download_is_thrown_away(fake_hub: FakeHub) -> None:
    """Would catch a file that is accepted although its SHA-256 is not the one the Hub names."""
    fake_hub.etags["valid.jsonl"] = "0" * 64
    with pytest.raises(OSError, match="SHA-256 differs"):
        open_source(["hub:org/tales:validation"])
    del fake_hub.etags["valid.jsonl"]
    assert len(list(open_source(["hub:org/tales:validation"]).stories())) == 50


def test_second_run_downloads_nothing_and_needs_no_network(
    fake_hub: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch a download per run, and a data set on disk that is unusable on a train."""
    first = open_source(["hub:org/tales:valid"])
    again = open_source(["hub:org/tales:valid"])
    assert len(fake_hub.downloads()) == 1
    fake_hub.server.shutdown()
    fake_hub.server.server_close()
    offline = open_source(["hub:org/tales:valid"])
    assert first.fingerprint() == again.fingerprint() == offline.fingerprint()
    assert "using what was downloaded before" in capsys.readouterr().err
    with pytest.raises(OSError, match="no answer from http"):
        open_source(["hub:org/other"])


def test_folder_file_and_config_reach_the_reader(fake_hub: FakeHub) -> None:
    """Would catch a path inside the data set, or the way to cut text, that gets lost on the way."""
    source = open_source(["hub:org/tales/other/notes.txt"], SourceConfig(split="line"))
    assert list(source.stories()) == ["one note", "another note"]


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("hub:", "not of the form"),
        ("hub:org/nothing", "no such data set"),
        ("hub:org/tales@nowhere", "no revision 'nowhere'"),
        ("hub:org/tales:test", "no file of split 'test'; there are: train.jsonl"),
        ("hub:org/tales/empty", "no text, JSON, JSONL, CSV or Parquet file"),
    ],
)
def test_what_is_not_there_is_said(fake_hub: FakeHub, location: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        open_source([location])
    assert "\n" not in str(caught.value)


TINYSTORIES = [
    ".gitattributes",
    "Evaluation prompts.yaml",
    "README.md",
    "TinyStories-train.txt",
    "TinyStories-valid.txt",
    "TinyStoriesV2-GPT4-train.txt",
    "TinyStories_all_data.tar.gz",
    "data/train-00000-of-00002.parquet",
    "data/train-00001-of-00002.parquet",
    "data/validation-00000-of-00001.parquet",
]


@pytest.mark.parametrize(
    ("names", "inside", "split", "expected"),
    [
        (
            TINYSTORIES,
            "",
            "train",
            ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"],
        ),
        (TINYSTORIES, "", "valid", ["data/validation-00000-of-00001.parquet"]),
        (TINYSTORIES, "TinyStories-valid.txt", "train", ["TinyStories-valid.txt"]),
        (["a.jsonl", "dev.jsonl", "README.md", "config.json"], "", "train", ["a.jsonl"]),
        (["big/train.parquet", "small/train.parquet"], "small", "train", ["small/train.parquet"]),
        (["x.json", "x.txt.gz"], "", "train", ["x.txt.gz"]),
    ],
)
def test_choice_of_files(names: list[str], inside: str, split: str, expected: list[str]) -> None:
    """Would catch two versions of one data set mixed, or validation data trained on."""
    assert hub.choose_files(names, inside, split, "hub:x/y") == expected


def test_variants_have_to_be_chosen() -> None:
    with pytest.raises(ValueError, match=r"choose one.*big, small"):
        hub.choose_files(["big/train.parquet", "small/train.parquet"], "", "train", "hub:x/y")


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("hub:tinystories", ("roneneldan/TinyStories", "", "main", "train")),
        ("hub:TinyStories/a b.txt:valid", ("roneneldan/TinyStories", "a b.txt", "main", "valid")),
        ("hub:org/name@refs/convert/parquet:test", ("org/name", "", "refs/convert/parquet", "test")),
        ("hub:org/name/in/side@v1.0", ("org/name", "in/side", "v1.0", "train")),
        ("hub:squad", ("squad", "", "main", "train")),
    ],
)
def test_addresses(location: str, expected: tuple[str, ...]) -> None:
    assert hub.parse_address(location) == expected
