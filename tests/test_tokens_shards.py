"""A token store of many shards, by several processes: the ids of one made at once, whatever happens on the way."""

import errno
import functools
import http.server
import os
import re
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rhapsode import files
from rhapsode.sources import Source, open_source
from rhapsode.tokenizer import Tokenizer, train_tokenizer
from rhapsode.tokens import BatchConfig, Batcher, TokenStore, prepare, shards
from rhapsode.tokens.ranges import BLOCK_BYTES, RangedIds
from rhapsode.tokens.shards import PreparedSource, is_prepared, open_shards, prepare_shards

TEXTS = [f"Story {i}: " + "".join(chr(97 + (i * j) % 26) for j in range(30 + 7 * (i % 11))) + " ☃é" for i in range(300)]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 4_000)
    monkeypatch.setenv("RHAPSODE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def text(tmp_path: Path) -> Source:
    """Stories of several sizes, with characters that the tokenizer does not have."""
    file = tmp_path / "stories.txt"
    file.write_text("\n<|endoftext|>\n".join(TEXTS), encoding="utf-8")
    return open_source([str(file)])


@pytest.fixture
def tokenizer() -> Tokenizer:
    return train_tokenizer([text.replace("☃", "") for text in TEXTS[:50]], "characters", 60)


def assert_same(found: TokenStore, expected: TokenStore) -> None:
    """The same stories, counted in the same way, so that a training cannot tell."""
    assert found.fingerprint == expected.fingerprint
    assert (found.num_stories, found.num_tokens, found.num_bytes) == (
        expected.num_stories,
        expected.num_tokens,
        expected.num_bytes,
    )
    assert (found.unspelled_bytes, found.correction_bits) == (expected.unspelled_bytes, expected.correction_bits)
    np.testing.assert_array_equal(found.tokens[:], expected.tokens[:])
    np.testing.assert_array_equal(found.offsets, expected.offsets)
    np.testing.assert_array_equal(found.byte_counts, expected.byte_counts)
    for config in (BatchConfig(7, 5), BatchConfig(9, 4, carry_state=True), BatchConfig(9, 4, form="first")):
        batchers = [Batcher(store.hold_out(0.2, 1)[0], config, seed=3) for store in (found, expected)]
        for _ in range(3):
            one, other = (batcher.next() for batcher in batchers)
            assert (one.inputs == other.inputs).all()
            assert (one.targets == other.targets).all()


@pytest.mark.parametrize("workers", [1, 2])
def test_shards_hold_what_one_store_holds(text: Source, tokenizer: Tokenizer, tmp_path: Path, workers: int) -> None:
    """Would catch a story that is lost, or counted twice, where two shards meet, and shards in disorder."""
    out = tmp_path / "store"
    found = prepare_shards(text, tokenizer, str(out), workers)
    assert_same(found, prepare(text, tokenizer))
    assert found.correction_bits
    names = sorted(path.name for path in out.iterdir() if path.name[0] != ".")
    assert names[-1] == "tokenizer"
    assert len([name for name in names if name.startswith("shard-")]) > 5


def test_one_long_text_is_one_shard(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Would catch a story that is cut where a shard is full, and places to cut that count from a shard's beginning."""
    (tmp_path / "a.txt").write_text(" ".join(TEXTS), encoding="utf-8")
    (tmp_path / "b.txt").write_text("x " * 5_000, encoding="utf-8")
    from rhapsode.sources import SourceConfig

    source = open_source([str(tmp_path / "a.txt"), str(tmp_path / "b.txt")], SourceConfig(split="file"))
    found, expected = prepare_shards(source, tokenizer, str(tmp_path / "store")), prepare(source, tokenizer)
    assert_same_marks(found, expected)
    assert found.num_stories == 2


def assert_same_marks(found: TokenStore, expected: TokenStore) -> None:
    np.testing.assert_array_equal(found._marks, expected._marks)
    np.testing.assert_array_equal(found.tokens[:], expected.tokens)


def test_token_ids(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Would catch lists of ids that are taken for texts on the way to another process, and a place that is lost."""
    file = tmp_path / "ids.jsonl"
    rows = [[(i * j) % 40 for j in range(1, 40 + i % 7)] for i in range(60)]
    file.write_text("".join(f"{row}\n" for row in rows))
    source = open_source([str(file)])
    np.testing.assert_array_equal(
        prepare_shards(source, tokenizer, str(tmp_path / "store")).tokens[:], np.concatenate(rows)
    )
    file.write_text(f"{rows[0]}\n[1, 999]\n")
    with pytest.raises(ValueError, match=r"ids.jsonl, line 2, position 2: id 999 is not in the tokenizer's vocabulary"):
        prepare_shards(open_source([str(file)]), tokenizer, str(tmp_path / "other"))


def test_resumed_shard_by_shard(
    text: Source, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch shards that are made twice, a manifest before they are all there, and half a shard with its name."""
    out, real = tmp_path / "store", shards.make_shard
    made: list[str] = []

    def some(spool: str, target: str, *rest: Any, **more: Any) -> Any:
        made.append(Path(target).name)
        if len(made) == 4:
            raise OSError(28, "No space left on device", target)
        return real(spool, target, *rest, **more)

    monkeypatch.setattr(shards, "make_shard", some)
    with pytest.raises(OSError, match="No space left"):
        prepare_shards(text, tokenizer, str(out))
    assert not is_prepared(str(out))
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("shard-*")}
    assert len(before) == 3
    found = prepare_shards(text, tokenizer, str(out))
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before
    assert made[4] == made[3]
    assert_same(found, prepare(text, tokenizer))
    assert not (out / ".work").exists()
    with pytest.raises(ValueError, match=r"holds a store of other data or with another tokenizer"):
        prepare_shards(open_source([str(tmp_path / "stories.txt")]), train_tokenizer(TEXTS, "bpe", 300), str(out))


def test_a_kill_before_and_after_the_shards(text: Source, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Would catch a store that cannot be continued since only its plan or tokenizer is there, and litter in it."""
    whole, out = tmp_path / "whole", tmp_path / "store"
    expected = prepare_shards(text, tokenizer, str(whole))
    out.mkdir()
    shutil.copy(whole / "plan.json", out)
    (out / ".shards.json.abcdefgh").write_text("{")  # half of it
    assert_same(prepare_shards(text, tokenizer, str(out)), expected)
    (out / ".work" / "spool").mkdir(parents=True)
    prepare_shards(text, tokenizer, str(out))
    assert sorted(path.name for path in out.glob(".*")) == [".lock"]
    (out / "plan.json").write_text('{"format')
    with pytest.raises(ValueError, match=r"plan\.json: damaged .*; remove the folder, or choose another one"):
        prepare_shards(text, tokenizer, str(out))


def test_a_disk_that_does_not_take_a_folder_is_told(
    text: Source, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The flush of a folder names no file itself. Would catch "no space left", and nobody knows where."""
    flushed: list[str] = []
    sync = files._sync

    def full(path: Path) -> None:
        flushed.append(path.name)
        if len(flushed) == failing and path.is_dir():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(path)

    monkeypatch.setattr(files, "_sync", full)
    failing = 0
    prepare_shards(text, tokenizer, str(tmp_path / "a" / "store"))
    folders = [number for number, name in enumerate(flushed, start=1) if name in (tmp_path.name, "a", "store")]
    assert len(folders) > 10
    for failing in (*folders[:2], *folders[4::4]):  # noqa: B007
        shutil.rmtree(tmp_path / "a")
        flushed.clear()
        with pytest.raises(OSError, match=re.escape(str(tmp_path / "a"))):
            prepare_shards(text, tokenizer, str(tmp_path / "a" / "store"))


def test_killed_worker(text: Source, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a shard that is lost with the process that made it."""
    killed: list[int] = []

    hand_out = shards._Shards._hand_out

    def handed_out(self: Any) -> None:
        """Twice a process at work is killed, then one that has nothing to do."""
        hand_out(self)
        found = [worker for worker in self.there if bool(worker.shards) == (len(killed) < 2)]
        if not found or len(killed) == 3:
            return
        worker = found[-1]
        killed.append(worker.process.pid)
        os.kill(worker.process.pid, signal.SIGKILL)
        worker.process.join()

    monkeypatch.setattr(shards._Shards, "_hand_out", handed_out)
    assert_same(prepare_shards(text, tokenizer, str(tmp_path / "store"), workers=2), prepare(text, tokenizer))
    assert len(set(killed)) == 3


def test_error_of_a_worker(text: Source, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a worker whose disk is full and that is waited for, and a store that looks whole."""
    monkeypatch.setattr(shards.SpoolWriter, "close", lambda self: self.path.write_bytes(b"damaged"))
    with pytest.raises((OSError, ValueError)):
        prepare_shards(text, tokenizer, str(tmp_path / "store"), workers=2)
    assert not is_prepared(str(tmp_path / "store"))


def test_a_tokenizer_that_no_worker_can_read(
    text: Source, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch workers that end over it one after the other, and are then said to have been killed."""
    save = Tokenizer.save

    def saved(self: Tokenizer, folder: Path) -> None:
        save(self, folder)
        if folder.name == "tokenizer-copy":
            (folder / "tokenizer.json").write_text("{", encoding="utf-8")

    monkeypatch.setattr(Tokenizer, "save", saved)
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        prepare_shards(text, tokenizer, str(tmp_path / "store"), workers=2)


class RangeHandler(http.server.SimpleHTTPRequestHandler):
    """A web server that gives ranges of files, as real ones do, and counts what was asked."""

    asked: list[str]

    def log_message(self, *_: Any) -> None:
        pass

    def send_head(self) -> Any:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        file = Path(self.translate_path(self.path))
        self.asked.append(f"{self.command} {file.name}" + (" part" if wanted else ""))
        if not wanted or not file.is_file():
            return super().send_head()
        begin, end = int(wanted[1]), min(int(wanted[2]), file.stat().st_size - 1)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {begin}-{end}/{file.stat().st_size}")
        self.send_header("Content-Length", str(end + 1 - begin))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(file.read_bytes()[begin : end + 1])
        return None


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """The address of a web server on this machine that serves tmp_path, and what was asked of it."""
    pytest.importorskip("aiohttp", reason="https:// needs the extra [remote]")
    handler = type("Handler", (RangeHandler,), {"asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", handler.asked
    server.shutdown()
    server.server_close()


def test_read_over_the_network(text: Source, tokenizer: Tokenizer, tmp_path: Path, web: tuple[str, list[str]]) -> None:
    """Would catch ids that are copied as a whole, and blocks in disorder."""
    address, asked = web
    expected = prepare_shards(text, tokenizer, str(tmp_path / "store"))
    found, same = open_shards(f"{address}/store")
    assert same.fingerprint == tokenizer.fingerprint
    assert "GET tokens.bin" not in asked
    assert_same(found, expected)
    assert "GET tokens.bin part" in asked
    copied = open_source([f"{address}/stories.txt"])
    assert [*copied.stories()] == [*text.stories()]
    assert copied.description.startswith(f"{address}/stories.txt: ")
    with pytest.raises(OSError, match=r"nothing.txt: not found, or no answer"):
        open_source([f"{address}/nothing.txt"])


def test_made_elsewhere(text: Source, tokenizer: Tokenizer) -> None:
    """Would catch an address that is taken for a folder, and a manifest that comes before what it tells of."""
    found = prepare_shards(text, tokenizer, "memory://bucket/store", workers=1)
    assert is_prepared("memory://bucket/store")
    assert_same(found, prepare(text, tokenizer))
    assert PreparedSource("memory://bucket/store").fingerprint() == text.fingerprint()


def test_blocks_are_read_once(tmp_path: Path) -> None:
    """Would catch a block that is read again for each window in it, and an end that is not a whole block."""
    import fsspec

    ids = np.arange(3 * BLOCK_BYTES // 2 // 2, dtype="<u2")
    fsspec.filesystem("memory").pipe_file("/ids", ids.tobytes())
    ranged = RangedIds("memory://ids", "<u2", len(ids))
    places = np.array([[0, 5], [len(ids) - 1, BLOCK_BYTES // 2]])
    np.testing.assert_array_equal(ranged[places], ids[places])
    np.testing.assert_array_equal(ranged[7 : len(ids)], ids[7:])
    assert len(ranged.blocks) == 2
    fsspec.filesystem("memory").pipe_file("/ids", ids.tobytes()[:-2])
    with pytest.raises(OSError, match="damaged"):
        RangedIds("memory://ids", "<u2", len(ids))[places]


def test_training_on_a_prepared_store(tmp_path: Path, text: Source) -> None:
    """Would catch a store that is tokenized once more, and a resume that does not find it."""
    import rhapsode
    from rhapsode.run import Run

    out = tmp_path / "store"
    rhapsode.prepare_store(tmp_path / "stories.txt", out, tokenizer="bpe", vocab_size=300)
    small = {"model": {"embed_dim": 4, "hidden_dim": 4, "key_dim": 4, "value_dim": 4, "pair_embeddings": 0}}
    options: dict[str, Any] = {**small, "batch": {"window": 8, "batch_size": 2}, "sequences": 8}
    model = rhapsode.train(out, out=tmp_path / "run", **options)
    again = rhapsode.train(tmp_path / "stories.txt", tokenizer="bpe", vocab_size=300, out=tmp_path / "other", **options)
    of_store, of_text = ([entry["train_loss"] for entry in Run.open(m.path).metrics()] for m in (model, again))
    assert of_store == of_text
    rhapsode.train(out, out=tmp_path / "run", resume=True)
