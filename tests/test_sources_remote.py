"""Text at an address: copied once for each version, and one line where it cannot be."""

from pathlib import Path
from typing import Any

import fsspec
import pytest

from rhapsode.arguments import data_of
from rhapsode.sources import EVALUATION, open_source


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A storage in this process's memory, with a data set in it."""
    monkeypatch.setenv("RHAPSODE_CACHE", str(tmp_path / "cache"))
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pipe_file("/set/train.jsonl", b'{"text": "one"}\n{"text": "two"}\n')
    memory.pipe_file("/set/valid.jsonl", b'{"text": "three"}\n')
    memory.pipe_file("/set/README.md", b"about it")
    memory.pipe_file("/set/picture.png", b"no text")
    return memory


def test_files_and_folders_elsewhere(bucket: Any) -> None:
    """Would catch a split that is read with the others, and files that are no data."""
    source = open_source(["memory://set"])
    assert [*source.stories()] == ["one", "two"]
    assert source.description.startswith("memory://set (")
    assert source.validation == ("memory://set",)
    assert [*open_source(["memory://set"], wanted=EVALUATION).stories()] == ["three"]
    assert [*open_source(["memory://set/valid.jsonl"]).stories()] == ["three"]


def test_a_new_version_is_copied_again(bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a copy that is taken for the text that has changed since, and one that is made each time."""
    copied: list[str] = []
    real = bucket.get_file
    monkeypatch.setattr(type(bucket), "get_file", lambda self, name, *more: copied.append(name) or real(name, *more))
    for _ in range(2):
        assert [*open_source(["memory://set/valid.jsonl"]).stories()] == ["three"]
    assert copied == ["/set/valid.jsonl"]
    bucket.pipe_file("/set/valid.jsonl", b'{"text": "four"}\n')
    assert [*open_source(["memory://set/valid.jsonl"]).stories()] == ["four"]


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("memory://nowhere.txt", "memory://nowhere.txt: no such file or folder"),
        ("nosuch://bucket/x", "nosuch://bucket/x: Protocol not known: nosuch; for a file of that name write ./nosuch"),
        ("memory://empty", "no file in it whose name ends as data do"),
    ],
)
def test_what_cannot_be_reached_is_one_line(bucket: Any, location: str, message: str) -> None:
    """Would catch a library's own exception, and a folder without data."""
    bucket.pipe_file("/empty/picture.png", b"")
    with pytest.raises((OSError, ValueError)) as raised:
        open_source([location])
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_connection_that_breaks(bucket: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Would catch half a file that is kept as the whole."""

    def broken(self: Any, name: str, target: str, **_: Any) -> None:
        Path(target).write_bytes(b'{"te')

    monkeypatch.setattr(type(bucket), "get_file", broken)
    with pytest.raises(OSError, match=r"memory://set/valid.jsonl: cannot be reached \(only 4 of 18 bytes came\)"):
        open_source(["memory://set/valid.jsonl"])
    assert not [*(tmp_path / "cache" / "remote").glob("[!.]*")]


def test_an_address_through_a_path() -> None:
    """Would catch https:/x, which is what pathlib makes of https://x."""
    assert data_of(Path("https://host/a.txt"), "data") == ("https://host/a.txt",)
    assert data_of("s3://bucket/a b.txt", "data") == ("s3://bucket/a b.txt",)
    with pytest.raises(ValueError, match="is the name of a file"):
        data_of(["s3://bucket/a.txt"], "data")
