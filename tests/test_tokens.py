"""The token store, made once and whole or not at all, and the batches drawn from it."""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st

from rhapsode import storyworld
from rhapsode.files import STALE_SECONDS, making
from rhapsode.sources import SourceConfig, cutting, open_source
from rhapsode.tokenizer import Tokenizer, train_tokenizer
from rhapsode.tokenizer.corrections import corrections
from rhapsode.tokens import Batch, BatchConfig, Batcher, TokenStore, prepare, store, tokenizer_for, writing

STORIES = [f"Story {n}: once upon a time 🎉\nthere were {n * n} dogs." + " Bark!" * (n % 7) for n in range(60)]


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return train_tokenizer(STORIES, "bpe", 300)


def write_stories(path: Path, stories: Sequence[str] = STORIES) -> Path:
    path.write_text("".join(json.dumps({"text": story}) + "\n" for story in stories), encoding="utf-8")
    return path


def id_store(lengths: Sequence[int], eos_id: int = 999_999) -> TokenStore:
    """A store whose ids are 0, 1, 2, ...: each tells where it stands."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    about = {
        "fingerprint": "f",
        "eos_id": eos_id,
        "vocab_size": eos_id + 1,
        "has_text": False,
        "description": "ids",
    }
    no_marks = np.empty((0, 2), np.int64)
    return TokenStore(np.arange(offsets[-1], dtype=np.uint32), offsets, np.array(lengths), no_marks, about)


def epoch_of(batcher: Batcher) -> list[Batch]:
    return [batcher.next() for _ in range(batcher.batches_per_epoch)]


# The store


@pytest.mark.parametrize("batch_characters", [50, 4_000_000])
def test_stories_come_back(
    tmp_path: Path, bpe: Tokenizer, monkeypatch: pytest.MonkeyPatch, batch_characters: int
) -> None:
    """Would catch offsets that slip by one, a missing </s>, and bytes counted as characters."""
    monkeypatch.setattr(writing, "BATCH_CHARACTERS", batch_characters)
    made = prepare(open_source([str(write_stories(tmp_path / "a.jsonl"))]), bpe, tmp_path / "cache")
    assert made.num_stories == len(STORIES)
    for i, text in enumerate(STORIES):
        assert made.story(i).tolist() == [*bpe.encode(text), bpe.eos_id]
        assert made.byte_counts[i] == len(text.encode())
    assert made.num_bytes == sum(len(text.encode()) for text in STORIES)
    assert made.num_tokens == len(made.tokens) == sum(len(bpe.encode(text)) + 1 for text in STORIES)
    assert (made.eos_id, made.vocab_size, made.has_text) == (bpe.eos_id, bpe.vocab_size, True)
    assert made.tokens.dtype == np.uint16
    with pytest.raises(ValueError, match="read-only"):
        made.tokens[0] = 1


def test_second_run_finds_the_store(tmp_path: Path, bpe: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a store that is made anew each time, or found again for another text or tokenizer."""
    file = write_stories(tmp_path / "a.jsonl")
    cache = tmp_path / "cache"
    first = prepare(open_source([str(file)]), bpe, cache)
    with monkeypatch.context() as patch:
        patch.setattr(Tokenizer, "encode_batch", None)
        again = prepare(open_source([str(file)]), bpe, cache)
    assert again.fingerprint == first.fingerprint
    assert again.story(7).tolist() == first.story(7).tolist()
    stat = file.stat()
    write_stories(file, [STORIES[0].replace("dogs", "cats"), *STORIES[1:]])
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    changed = prepare(open_source([str(file)]), bpe, cache)
    assert changed.fingerprint != first.fingerprint
    assert "cats" in bpe.decode(changed.story(0).tolist())
    other = prepare(open_source([str(file)]), train_tokenizer(STORIES, "characters"), cache)
    assert other.fingerprint not in (first.fingerprint, changed.fingerprint)
    assert len(list(cache.iterdir())) == 3


def test_tokenizer_is_trained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a tokenizer trained anew in each run, and one taken for another kind, size or text."""
    source = open_source([str(write_stories(tmp_path / "a.jsonl"))])
    trained = tokenizer_for(source, "bpe", 300, tmp_path)
    assert trained.fingerprint == train_tokenizer(STORIES, "bpe", 300).fingerprint
    assert tokenizer_for(source, "bpe", 280, tmp_path).vocab_size == 280
    assert tokenizer_for(source, "characters", 280, tmp_path).kind == "characters"
    with monkeypatch.context() as patch:
        patch.setattr(store, "train_tokenizer", None)
        assert tokenizer_for(source, "bpe", 300, tmp_path).fingerprint == trained.fingerprint
    other = open_source([str(write_stories(tmp_path / "b.jsonl", STORIES[:30]))])
    assert tokenizer_for(other, "bpe", 300, tmp_path).fingerprint != trained.fingerprint
    (tmp_path / "ids.json").write_text("[[1, 2]]")
    with pytest.raises(ValueError, match="ids have no text to train a tokenizer on"):
        tokenizer_for(open_source([str(tmp_path / "ids.json")]), "bpe", 300, tmp_path)


def test_default_cache_folder(tmp_path: Path, bpe: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RHAPSODE_CACHE", str(tmp_path / "cache"))
    prepare(open_source([str(write_stories(tmp_path / "a.jsonl"))]), bpe)
    assert len(list((tmp_path / "cache" / "tokens").glob("store-*"))) == 1


@pytest.mark.parametrize("name", ["tokens.bin", "offsets.npy", "unspelled.npy", "store.json"])
def test_damaged_store_is_made_anew(
    tmp_path: Path, bpe: Tokenizer, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch a store cut short by a full disk that is read as if it were whole."""
    source = open_source([str(write_stories(tmp_path / "a.jsonl"))])
    prepare(source, bpe, tmp_path / "cache")
    damaged = next((tmp_path / "cache").iterdir()) / name
    damaged.write_bytes(damaged.read_bytes()[:-20])
    assert prepare(source, bpe, tmp_path / "cache").story(59).tolist()[:-1] == bpe.encode(STORIES[59])
    assert "making it again" in capsys.readouterr().err


def test_a_store_that_cannot_be_read_is_not_called_damaged(
    tmp_path: Path, bpe: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a disk's error that sounds like damage; in the cache, the store is made again all the same."""
    source, cache = open_source([str(write_stories(tmp_path / "a.jsonl"))]), tmp_path / "cache"
    prepare(source, bpe, cache)
    (folder,) = cache.glob("store-*")
    real, failing = np.load, [folder / "bytes.npy"]

    def load(file: Path, *rest: Any, **options: Any) -> Any:
        if file in failing:
            raise PermissionError(errno.EACCES, "Permission denied", str(file))
        return real(file, *rest, **options)

    monkeypatch.setattr(np, "load", load)
    with pytest.raises(PermissionError, match=r"bytes\.npy"):
        TokenStore.open(folder)
    monkeypatch.setattr(store, "_set_aside", lambda *_: (shutil.rmtree(folder), failing.clear()))
    assert prepare(source, bpe, cache).num_stories == len(STORIES)


def test_store_of_an_older_version_is_made_anew(
    tmp_path: Path, bpe: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch a run that cannot be gone on with because its store was made before: the fingerprint stays."""
    source = open_source([str(write_stories(tmp_path / "a.jsonl"))])
    made = prepare(source, bpe, tmp_path / "cache")
    folder = next((tmp_path / "cache").iterdir())
    (folder / "unspelled.npy").unlink()
    about = json.loads((folder / "store.json").read_text())
    (folder / "store.json").write_text(json.dumps(about | {"format_version": 1}))
    assert prepare(source, bpe, tmp_path / "cache").fingerprint == made.fingerprint
    assert "format_version 1, but this version of rhapsode reads 2" in capsys.readouterr().err
    was_1 = hashlib.sha256(f"1 {source.fingerprint()} {bpe.fingerprint}".encode()).hexdigest()
    assert made.fingerprint == was_1


def test_what_the_ids_do_not_hold_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch losses put to the wrong story, and stories that are said to be whole."""
    letters = train_tokenizer(["abc d"], "characters")
    stories = ["ab", "中文 a", "", "a bc", "d😀"]
    source = open_source([str(write_stories(tmp_path / "a.jsonl", stories))])
    for batch_characters in (1, 4_000_000):
        monkeypatch.setattr(writing, "BATCH_CHARACTERS", batch_characters)
        made = prepare(source, letters, tmp_path / f"cache{batch_characters}")
        kept = [story for story in stories if story]
        expected = [(0, 0), corrections("中文 a", " a")[:2], (0, 0), corrections("d😀", "d")[:2]]
        assert [tuple(row) for row in made.unspelled.tolist()] == expected
        assert made.unspelled_bytes == 6 + 4
        assert made.correction_bits == sum(bits for _, bits in expected) + len(kept)
        assert "52.6% of the text cannot be represented by this tokenizer" in capsys.readouterr().err
    rest, held_out = made.hold_out(0.5, seed=0)
    assert rest.unspelled_bytes + held_out.unspelled_bytes == 10
    prepare(source, letters, tmp_path / "cache1")
    assert "cannot be represented" in capsys.readouterr().err  # also of what lay in the cache


def test_a_long_story_has_the_corrections_of_all_its_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch pieces that get a blank each, and corrections that are lost at a cut or where it is cut in two."""
    text = "a b中 c " * 600 + "d"
    letters = train_tokenizer(["abc d"], "characters")
    definition = json.loads(letters._tokenizer.to_str())
    definition["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    definition["decoder"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    definition["model"]["vocab"] = {k.replace(" ", "▁"): v for k, v in definition["model"]["vocab"].items()}
    tokenizer = Tokenizer(definition)
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    source = open_source([str(tmp_path / "a.txt")], SourceConfig(split="file"))
    made = prepare(source, tokenizer, tmp_path / "cache")
    assert len(made._marks) > 1
    assert made.story(0).tolist() == [*tokenizer.encode(text), tokenizer.eos_id]
    price = corrections(text, text.replace("中", ""), [(i, i + 1) for i, c in enumerate(text) if c == "中"])
    assert made.unspelled.tolist() == [[1800, price.bits]]
    rest, held_out = made.hold_out(0.3, seed=0)
    assert rest.unspelled_bytes + held_out.unspelled_bytes == 1800
    assert held_out.unspelled_bytes == 3 * (text.count("中") - rest.unspelled_bytes // 3) > 0
    assert rest.correction_bits + held_out.correction_bits == made.correction_bits + 1
    monkeypatch.setattr(writing, "BATCH_CHARACTERS", 1)
    again = prepare(source, tokenizer, tmp_path / "other")
    assert again.story(0).tolist() == made.story(0).tolist()
    assert again.unspelled.tolist() == made.unspelled.tolist()


def test_storyworld_for_a_tokenizer_that_lacks_its_letters(tmp_path: Path) -> None:
    """Would catch the quick way for storyworld, which counts no losses, taken by a tokenizer that has some."""
    source = open_source(["storyworld:3"])
    letters = train_tokenizer(["abcdefgh ."], "characters")
    made = prepare(source, letters, tmp_path)
    lacking = sum(c not in "abcdefgh ." for text in storyworld.sample_batch(0, 3) for c in text)
    assert made.unspelled_bytes == lacking > 100


def test_large_vocabulary_needs_four_bytes(tmp_path: Path) -> None:
    """Would catch ids over 65,535 that wrap around."""
    characters = "".join(map(chr, range(0x20000, 0x20000 + 66_000)))
    tokenizer = train_tokenizer([characters], "characters", 70_000)
    (tmp_path / "a.txt").write_text(characters[-5:], encoding="utf-8")
    made = prepare(open_source([str(tmp_path / "a.txt")]), tokenizer, tmp_path / "cache")
    assert made.tokens.dtype == np.uint32
    assert made.story(0).tolist() == [65_998, 65_999, 66_000, 66_001, 66_002, 1]


def test_id_lists_are_taken_as_they_are(tmp_path: Path, bpe: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch ids that get a </s> that was not there, and an id beyond the vocabulary."""
    monkeypatch.setattr(writing, "BATCH_IDS", 100)
    lists = [bpe.encode(text) for text in STORIES]
    (tmp_path / "ids.json").write_text(json.dumps(lists))
    made = prepare(open_source([str(tmp_path / "ids.json")]), bpe, tmp_path / "cache")
    assert [made.story(i).tolist() for i in range(made.num_stories)] == lists
    assert made.byte_counts.tolist() == [len(text.encode()) for text in STORIES]
    assert not made.has_text
    (tmp_path / "ids.json").write_text("[[1, 2], [3, 300, 4]]")
    with pytest.raises(ValueError, match=r"ids.json, item 2, position 2: id 300 is not in .* vocabulary of 300"):
        prepare(open_source([str(tmp_path / "ids.json")]), bpe, tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 1


@pytest.mark.parametrize("moment", ["before its lock", "after its lock"])
def test_a_folder_that_is_swept_up_while_it_is_claimed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Would catch a process that ends because another took its new folder for a dead one's."""
    acquire, swept = FileLock.acquire, []

    def swept_up(lock: FileLock, *arguments: Any, **more: Any) -> Any:
        folder = Path(lock.lock_file).parent
        if not swept and moment == "before its lock":
            shutil.rmtree(folder)
        held = acquire(lock, *arguments, **more)
        if not swept and moment == "after its lock":
            shutil.rmtree(folder)
        swept.append(folder)
        return held

    monkeypatch.setattr(FileLock, "acquire", swept_up)
    with making(tmp_path / "cache" / "made") as folder:
        (folder / "file").write_text("whole")
    assert (tmp_path / "cache" / "made" / "file").read_text() == "whole"
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["made"]


def test_what_a_killed_process_leaves_is_removed(tmp_path: Path, bpe: Tokenizer) -> None:
    """Would catch garbage that fills the disk, and the removal of what another process is making."""
    source = open_source([str(write_stories(tmp_path / "a.jsonl"))])
    stale, live = tmp_path / "cache" / ".making-old", tmp_path / "cache" / ".making-live"
    for folder in (stale, live):
        folder.mkdir(parents=True)
        (folder / "tokens.bin").write_bytes(b"half")
    long_ago = time.time() - 2 * STALE_SECONDS
    os.utime(stale / "tokens.bin", (long_ago, long_ago))
    os.utime(stale, (long_ago, long_ago))
    prepare(source, bpe, tmp_path / "cache")
    assert not stale.exists()
    assert live.exists()


def test_failure_leaves_nothing(tmp_path: Path, bpe: Tokenizer) -> None:
    """Would catch half a store that the next run takes for whole."""
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "good"}\n{"text": bad}\n')
    with pytest.raises(ValueError, match="line 2"):
        prepare(open_source([str(file)]), bpe, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_source_that_changes_while_it_is_read(tmp_path: Path, bpe: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a store of the new text that is kept under the old text's fingerprint."""
    file = write_stories(tmp_path / "a.jsonl")
    real = Tokenizer.encode_batch

    def encode_and_change(self: Tokenizer, texts: list[str], continued: list[bool]) -> list[np.ndarray]:
        write_stories(file, STORIES[:-1])
        return real(self, texts, continued)

    monkeypatch.setattr(Tokenizer, "encode_batch", encode_and_change)
    with pytest.raises(ValueError, match="changed while it was read"):
        prepare(open_source([str(file)]), bpe, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_cache_that_cannot_be_written(tmp_path: Path, bpe: Tokenizer) -> None:
    """Would catch a traceback where the cache folder is a file, or not ours."""
    source = open_source([str(write_stories(tmp_path / "a.jsonl"))])
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"cannot make the cache folder .* set RHAPSODE_CACHE"):
        prepare(source, bpe, tmp_path / "file" / "cache")
    if os.geteuid() != 0:  # root may write everywhere
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(OSError, match="cannot write into the cache"):
            prepare(source, bpe, tmp_path / "locked")


PREPARE = """
import sys
from pathlib import Path
from typing import Any
from rhapsode.sources import open_source
from rhapsode.tokenizer import Tokenizer
from rhapsode.tokens import prepare
store = prepare(open_source([sys.argv[1]]), Tokenizer.load(Path(sys.argv[2])), Path(sys.argv[3]))
print(store.num_tokens, store.fingerprint)
assert "torch" not in sys.modules, "preparing must not wait for torch"
"""


def test_two_processes_at_once_and_one_killed(tmp_path: Path, bpe: Tokenizer) -> None:
    """Would catch two processes that write into one store, and a killed one that leaves half of it."""
    file = write_stories(tmp_path / "a.jsonl", STORIES * 300)
    bpe.save(tmp_path / "tokenizer")
    cache = tmp_path / "cache"
    command = [sys.executable, "-c", PREPARE, str(file), str(tmp_path / "tokenizer"), str(cache)]
    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(cache.glob(".making-*/tokens.bin")) and killed.poll() is None:
        time.sleep(0.002)
    killed.kill()
    killed.wait()
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [process.communicate(timeout=600)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    expected = prepare(open_source([str(file)]), bpe, tmp_path / "elsewhere")
    assert printed == [f"{expected.num_tokens} {expected.fingerprint}\n"] * 2
    assert len(list(cache.glob("store-*"))) == 1


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux: memory is read from /proc")
def test_memory_does_not_grow_with_the_text(tmp_path: Path, bpe: Tokenizer) -> None:
    """Would catch ids or words that pile up: they take several times the text. More text may take half of its bytes
    (a quarter was measured, less and less of it)."""
    bpe.save(tmp_path / "tokenizer")
    # The system's ru_maxrss of a process is at least the memory of the one that began it.
    measured = PREPARE + "print(Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0])"
    peaks, sizes = [], []
    for times in (12_000, 36_000):  # the first is far more than is read at once
        file = tmp_path / f"{times}.txt"
        with file.open("w", encoding="utf-8") as stream:
            for n in range(times):
                stream.write(f"{n} " + "\n".join(STORIES[:20]) + "\n\n")
        sizes.append(file.stat().st_size)
        command = [sys.executable, "-c", measured, file, tmp_path / "tokenizer", tmp_path / "cache"]
        peaks.append(1024 * int(subprocess.check_output(command, stderr=subprocess.DEVNULL).split()[-1]))
    assert peaks[1] - peaks[0] < (sizes[1] - sizes[0]) / 2


# Holding out


def test_hold_out_divides_the_stories(tmp_path: Path, bpe: Tokenizer) -> None:
    """Would catch a story in both parts, or in none, and counts that are the whole store's."""
    whole = prepare(open_source([str(write_stories(tmp_path / "a.jsonl"))]), bpe, tmp_path)
    rest, held_out = whole.hold_out(0.2, seed=3)
    assert (rest.num_stories, held_out.num_stories) == (48, 12)
    assert sorted([*rest.indices, *held_out.indices]) == list(range(60))
    assert rest.indices.tolist() == sorted(rest.indices)
    texts = [bpe.decode(held_out.story(i).tolist()) for i in range(12)]
    assert texts == [STORIES[i] for i in held_out.indices]
    assert held_out.num_tokens == sum(len(held_out.story(i)) for i in range(12))
    assert held_out.num_bytes == sum(len(text.encode()) for text in texts)
    assert rest.num_tokens + held_out.num_tokens == whole.num_tokens
    assert whole.hold_out(0.2, seed=3)[1].fingerprint == held_out.fingerprint
    assert len({whole.fingerprint, rest.fingerprint, held_out.fingerprint}) == 3
    assert whole.hold_out(0.2, seed=4)[1].indices.tolist() != held_out.indices.tolist()
    again, _ = rest.hold_out(0.5, seed=0)
    assert set(again.indices) < set(rest.indices)


@pytest.mark.parametrize(("fraction", "held"), [(0.0001, 1), (0.9999, 4)])
def test_hold_out_leaves_a_story_on_each_side(fraction: float, held: int) -> None:
    assert id_store([2, 3, 4, 5, 6]).hold_out(fraction, seed=0)[1].num_stories == held


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5])
def test_hold_out_refuses_what_is_no_share(fraction: float) -> None:
    with pytest.raises(ValueError, match="must be between 0 and 1"):
        id_store([2, 3]).hold_out(fraction, seed=0)


def test_one_long_story_is_cut_in_two(tmp_path: Path, bpe: Tokenizer) -> None:
    """Would catch a cut inside a word, bytes that do not add up, and the beginning held out, not the end."""
    text = "\n\n".join(STORIES * 8)
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    source = open_source([str(tmp_path / "a.txt")], SourceConfig(split="file"))
    whole = prepare(source, bpe, tmp_path / "cache")
    assert whole.num_stories == 1
    assert whole.story(0).tolist() == [*bpe.encode(text), bpe.eos_id]
    rest, held_out = whole.hold_out(0.1, seed=0)
    first, second = (bpe.decode(part.story(0).tolist()) for part in (rest, held_out))
    assert first + second == text
    assert (rest.num_bytes, held_out.num_bytes) == (len(first.encode()), len(second.encode()))
    assert rest.num_tokens + held_out.num_tokens == whole.num_tokens
    assert held_out.story(0)[-1] == bpe.eos_id
    assert abs(len(first) - 0.9 * len(text)) <= cutting.FILE_PIECE
    assert len({whole.fingerprint, rest.fingerprint, held_out.fingerprint}) == 3
    assert Batcher(rest, BatchConfig(window=16, batch_size=4), seed=0).next().inputs.max() < bpe.vocab_size


def test_one_short_story_cannot_be_divided() -> None:
    with pytest.raises(ValueError, match="cannot hold out a share of one story"):
        id_store([50]).hold_out(0.1, seed=0)


# Batches

STREAMS = {
    "lengths": st.lists(st.integers(1, 30), min_size=1, max_size=12),
    "window": st.integers(1, 9),
    "batch_size": st.integers(1, 4),
    "shuffle": st.booleans(),
    "carry_state": st.booleans(),
    "seed": st.integers(0, 5),
}


@given(**STREAMS)
def test_stream_epochs(
    lengths: list[int], window: int, batch_size: int, shuffle: bool, carry_state: bool, seed: int
) -> None:
    """Would catch tokens learnt twice or left out, targets not one further on, stories joined wrongly."""
    whole = id_store(lengths)
    config = BatchConfig(window, batch_size, "stream", carry_state, shuffle)
    if sum(lengths) < window * batch_size:
        with pytest.raises(ValueError, match=r"would fit|choose a window"):
            Batcher(whole, config, seed)
        return
    batcher = Batcher(whole, config, seed)
    ends = set(whole.offsets[1:] - 1)
    begins = set(whole.offsets[:-1])
    for _ in range(2):
        batches = epoch_of(batcher)
        targets = torch.stack([batch.targets for batch in batches])
        assert max(Counter(targets.flatten().tolist()).values()) == 1
        assert sum(lengths) - targets.numel() < batcher.tokens_per_batch == window * batch_size
        for batch in batches:
            assert batch.inputs.shape == batch.targets.shape == (batch_size, window)
            assert batch.inputs.dtype == batch.targets.dtype == torch.int64
            assert torch.equal(batch.inputs[:, 1:], batch.targets[:, :-1])
            pairs = zip(batch.inputs.flatten().tolist(), batch.targets.flatten().tolist(), strict=True)
            for before, target in pairs:
                joined = before in ends or before == whole.eos_id
                assert target == before + 1 if target not in begins else joined
        if carry_state:
            assert [batch.restart for batch in batches] == [True] + [False] * (len(batches) - 1)
            for first, second in pairwise(batches):
                assert torch.equal(second.inputs[:, 0], first.targets[:, -1])
        else:
            assert all(batch.restart for batch in batches)
        if not shuffle:
            rows = targets.permute(1, 0, 2) if carry_state else targets
            assert rows.flatten().tolist() == list(range(targets.numel()))
            assert batches[0].inputs[0, 0] == whole.eos_id


def test_each_story_is_followed_by_another_each_epoch() -> None:
    """Would catch an order of stories or windows that is the same in each epoch or for each seed."""
    whole = id_store([7] * 40)
    config = BatchConfig(window=6, batch_size=3)

    def targets(batcher: Batcher) -> torch.Tensor:
        return torch.stack([batch.targets for batch in epoch_of(batcher)])

    def jumps(targets: torch.Tensor) -> set[tuple[int, int]]:
        pairs = zip(targets[..., :-1].flatten().tolist(), targets[..., 1:].flatten().tolist(), strict=True)
        return {(first, second) for first, second in pairs if second != first + 1}

    batcher = Batcher(whole, config, seed=0)
    first, second = targets(batcher), targets(batcher)
    assert torch.equal(first, targets(Batcher(whole, config, seed=0)))
    assert not torch.equal(first, second)
    assert not torch.equal(first, targets(Batcher(whole, config, seed=1)))
    assert jumps(first) != jumps(second)
    one_story = targets(Batcher(id_store([400]), config, seed=0))[..., 0].flatten()
    assert one_story.tolist() != sorted(one_story.tolist())


@given(**{key: value for key, value in STREAMS.items() if key != "carry_state"})
def test_first_tokens(lengths: list[int], window: int, batch_size: int, shuffle: bool, seed: int) -> None:
    """Would catch padding that is scored, a story twice in an epoch, a window one too short, and a single id, which
    has nothing to predict, that takes a row."""
    whole = id_store(lengths)
    config = BatchConfig(window, batch_size, "first", False, shuffle)
    fits = sum(length > 1 for length in lengths)
    if fits < batch_size:
        with pytest.raises(ValueError, match=f"batch_size {fits} would fit" if fits else "choose other data"):
            Batcher(whole, config, seed)
        return
    batcher = Batcher(whole, config, seed)
    assert batcher.batches_per_epoch == fits // batch_size
    scored = sum(min(length - 1, window) for length in lengths)
    assert batcher.tokens_per_batch == pytest.approx(scored / fits * batch_size)
    rows = [row for batch in epoch_of(batcher) for row in zip(batch.inputs, batch.targets, strict=True)]
    begins = [int(inputs[0]) for inputs, _ in rows]
    for inputs, targets in rows:
        story = next(whole.story(i) for i in range(len(lengths)) if whole.story(i)[0] == inputs[0])
        used = story[: window + 1].tolist()
        padding = window + 1 - len(used)
        assert inputs.tolist() == (used + [whole.eos_id] * padding)[:window]
        assert targets.tolist() == used[1:] + [-100] * padding
    assert len(set(begins)) == len(begins)
    if not shuffle:
        assert begins == [int(whole.offsets[i]) for i, length in enumerate(lengths) if length > 1][: len(begins)]


@pytest.mark.parametrize("form", ["stream", "carry", "first"])
@pytest.mark.parametrize("drawn", [0, 1, 13, 14, 40])
def test_saved_batcher_continues_exactly(form: str, drawn: int) -> None:
    """Would catch a resumed run that sees other batches, above all at an epoch's end."""
    whole = id_store(list(range(2, 32)))
    config = BatchConfig(5, 2, "first" if form == "first" else "stream", form == "carry")
    batcher = Batcher(whole, config, seed=5)
    for _ in range(drawn):
        batcher.next()
    saved = json.loads(json.dumps(batcher.state_dict()))
    expected = [batcher.next() for _ in range(60)]
    resumed = Batcher(whole, config, seed=5)
    resumed.next()
    resumed.load_state_dict(saved)
    for batch in expected:
        other = resumed.next()
        assert torch.equal(batch.inputs, other.inputs)
        assert torch.equal(batch.targets, other.targets)
        assert batch.restart == other.restart
    with pytest.raises(ValueError, match="does not match data of"):
        resumed.load_state_dict({"epoch": 0, "position": 10_000})


def test_batches_of_a_real_store(tmp_path: Path, bpe: Tokenizer) -> None:
    """Would catch windows over a held-out view that show its other half's stories."""
    whole = prepare(open_source([str(write_stories(tmp_path / "a.jsonl"))]), bpe, tmp_path)
    rest, held_out = whole.hold_out(0.3, seed=0)
    config = BatchConfig(window=64, batch_size=2, shuffle=False)
    stream = [bpe.eos_id, *np.concatenate([held_out.story(i) for i in range(held_out.num_stories)]).tolist()]
    for n, batch in enumerate(epoch_of(Batcher(held_out, config, seed=0))):
        for row in range(2):
            begin = (2 * n + row) * 64
            assert batch.inputs[row].tolist() == stream[begin : begin + 64]
            assert batch.targets[row].tolist() == stream[begin + 1 : begin + 65]
    assert rest.num_stories == 42


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"window": 0}, "window must be >= 1, got 0"),
        ({"batch_size": 0}, "batch_size must be >= 1, got 0"),
        ({"form": "last"}, "form must be stream or first, got 'last'"),
        ({"form": "first", "carry_state": True}, "carry_state needs form stream"),
    ],
)
def test_config_checks_itself(config: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BatchConfig(**config)


def test_too_little_data_names_what_fits() -> None:
    """Would catch an endless loop over no batch, and advice that does not help."""
    whole = id_store([100])
    with pytest.raises(ValueError, match="needs 320 tokens, the data have 100 tokens: batch_size 3"):
        Batcher(whole, BatchConfig(window=32, batch_size=10), seed=0)
    assert Batcher(whole, BatchConfig(window=32, batch_size=3), seed=0).batches_per_epoch == 1
    with pytest.raises(ValueError, match="choose a window of at most 100"):
        Batcher(whole, BatchConfig(window=101, batch_size=1), seed=0)
    with pytest.raises(ValueError, match=r"seed must be from 0 to 2\^64 - 1, got -1"):
        Batcher(whole, BatchConfig(window=1, batch_size=1), seed=-1)


def lines_run(function: Callable[[], object]) -> int:
    """How many lines of Python a call runs: a line that is run again and again counts each time."""
    count = 0

    def trace(frame: object, event: str, _: object) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
    return count


def test_next_is_cheap() -> None:
    """Would catch a batch assembled story by story in Python, which would cost as much as a training step."""
    whole = id_store([280] * 20_000)
    counts = []
    for batch_size in (8, 64):
        batcher = Batcher(whole, BatchConfig(window=256, batch_size=batch_size), seed=0)
        batcher.next()
        counts.append(lines_run(batcher.next))
    assert counts[0] == counts[1]
