"""Hostile input: whatever is parsed is taken, or refused in one printable line; nothing in it is run."""

import gzip
import io
import json
import math
import os
import pickle
import pty
import re
import subprocess
import sys
import tracemalloc
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import tokenizers
import torch
import zstandard
from harness import PARTS
from hostile import GROUPS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from parsers import PARSERS, feed, good, mutated
from rich._emoji_codes import EMOJI
from tokenizers import decoders, models, pre_tokenizers, trainers

import rhapsode
from rhapsode.course import load_course_model
from rhapsode.model import ModelConfig, build_model
from rhapsode.sources import FileSource, SourceConfig, open_source
from rhapsode.sources.files import read_chunks
from rhapsode.tensors import unpack_tensors
from rhapsode.terminal import literal, literal_lines, print_text
from rhapsode.tokenizer import Tokenizer

CHANGES = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 10**6), st.integers(0, 10**6)), min_size=1, max_size=6)
NEED_NODE = {"a saved story", "a link to a story"}
SLOW = {"model.pt": 60, "run.json": 80, "a prompt": 40, "the command line": 80, "Parquet": 80, "study.json": 25}


@pytest.mark.parametrize("name", PARSERS)
def test_hostile_input_is_taken_or_refused(name: str) -> None:
    """Would catch a traceback of any kind, and a message that a terminal obeys or that fills the screen."""
    seeds = good(name)
    for seed in seeds:
        feed(name, seed)

    @settings(max_examples=SLOW.get(name, 120), derandomize=True, database=None, deadline=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(st.one_of(st.builds(mutated, st.sampled_from(seeds), CHANGES), st.binary(max_size=200)))
    def check(data: bytes) -> None:
        feed(name, data)

    check()


def test_every_parser_is_fuzzed_in_some_part() -> None:
    """Would catch a parser that no part of `make faults` tries, and a part without a group."""
    grouped = {name for names in GROUPS.values() for name in names}
    assert set(PARSERS) <= grouped <= set(PARSERS) | NEED_NODE
    assert {module.partition(":")[2] for module, _ in PARTS.values() if module.startswith("hostile:")} == set(GROUPS)


class Harmful:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


def test_nothing_in_a_model_file_is_run(tmp_path: Path) -> None:
    """Would catch a model.pt that starts a program: as a whole, in an archive, and as a part of a module."""
    marker, file = tmp_path / "was-run", tmp_path / "model.pt"
    harmful = Harmful(marker)
    module = torch.nn.Linear(2, 2)
    module.extra = harmful
    for save in (
        lambda: file.write_bytes(pickle.dumps(harmful)),
        lambda: torch.save(harmful, file),
        lambda: torch.save({"weights": torch.zeros(2), "more": harmful}, file),
        lambda: torch.save(module, file),
        lambda: torch.save(harmful, file, _use_new_zipfile_serialization=False),
    ):
        save()
        with pytest.raises(ValueError, match=r"model\.pt: not a model\.pt"):
            load_course_model(file)
    assert not marker.exists()


def header(text: str, data: bytes = bytes(64)) -> bytes:
    return len(text).to_bytes(8, "little") + text.encode() + data


@pytest.mark.parametrize(
    "content",
    [
        (2**63).to_bytes(8, "little") + b"{}",
        header('{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,1000000000000]}}'),
        header('{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"b":{"dtype":"F32","shape":[4],"data_offsets":[8,24]}}'),
        header('{"a":{"dtype":"F32","shape":[4],"data_offsets":[16,32]}}'),
        header('{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"a":{"dtype":"F32","shape":[4],"data_offsets":[16,32]}}'),
        header('{"a":{"dtype":"F32","shape":[-4],"data_offsets":[0,-16]}}'),
        header('{"a":{"dtype":"F32","shape":[99999999999,99999999999],"data_offsets":[0,16]}}'),
        header('{"__metadata__":[1,2]}'),
    ],
    ids=["huge header", "past the end", "overlap", "gap", "duplicate", "negative", "overflow", "metadata"],
)  # fmt: skip
def test_hostile_headers_of_tensors(content: bytes) -> None:
    """Would catch memory that is taken because a header asks for it, and tensors that share bytes."""
    with pytest.raises(ValueError):
        unpack_tensors(content, "progress", format_version="1")


def test_prompts_of_ten_megabytes_and_of_every_emoji(tmp_path: Path) -> None:
    """Would catch a prompt whose length or whose characters are too much for a verb, or come back as others."""
    long, emoji = (" " + "a" * 4095) * 2442, sorted(set(EMOJI.values()))
    raw = tokenizers.Tokenizer(models.BPE())
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=272, special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator([long[:4096]], trainer)  # pieces of 2,048 letters, so that a model has read it in seconds
    raw.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    sizes = {"embed_dim": 8, "hidden_dim": 8, "key_dim": 4, "value_dim": 4}
    model = rhapsode.Model(build_model(ModelConfig(vocab_size=tokenizer.vocab_size, **sizes), 0), tokenizer)
    assert len(long) > 10_000_000
    assert len(emoji) > 2_500
    scores = model.score([long, *emoji]).texts
    assert [score.bytes for score in scores] == [len(text.encode()) for text in (long, *emoji)]
    assert all(math.isfinite(score.nats) for score in scores)
    assert all(tokenizer.decode(tokenizer.encode(text)) == text for text in emoji)
    for text in (long, *(" ".join(emoji[begin : begin + 300]) for begin in range(0, len(emoji), 300))):
        (written,) = model.generate(text, max_tokens=2, temperature=0)
        assert written.prompt == text
        assert written.tokens[0] == model.next_tokens(text)[0].id


BOMB_MEGABYTES = 600
UNPACKED_AT_ONCE = 110_000_000  # bytes: what is read of zstandard at once is most of it


def bomb(kind: str, megabytes: int) -> bytes:
    """Letters without an end, packed to a thousandth or less, in ten parts; of Parquet, a row for each megabyte."""
    block, buffer = b"a" * 1_000_000, io.BytesIO()
    if kind == "gzip":
        with gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=9) as stream:
            for _ in range(megabytes // 10):
                stream.write(block)
        return 10 * buffer.getvalue()
    if kind == "parquet":
        column = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * megabytes, pyarrow.int32()), [block.decode()])
        pyarrow.parquet.write_table(pyarrow.table({"text": column}), buffer, compression="zstd", store_schema=False)
        return buffer.getvalue()
    packer = zstandard.ZstdCompressor(level=3).compressobj()
    return 10 * b"".join([*(packer.compress(block) for _ in range(megabytes // 10)), packer.flush()])


@pytest.mark.parametrize(("kind", "name"), [("gzip", "a.txt.gz"), ("zstd", "a.txt.zst"), ("parquet", "a.parquet")])
def test_bombs_are_read_in_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, name: str
) -> None:
    """Would catch a small file that takes all memory: as text it streams, as one line of JSON it is refused."""
    monkeypatch.setattr("rhapsode.sources.records.LONGEST_RECORD", 1 << 24)
    packed = bomb(kind, BOMB_MEGABYTES)
    assert len(packed) < 1000 * BOMB_MEGABYTES
    file = tmp_path / name
    file.write_bytes(packed)
    tracemalloc.start()
    length = most = 0
    source = open_source([str(file)], SourceConfig("file"))
    assert isinstance(source, FileSource)
    for text in read_chunks(source.files[0]) if kind != "parquet" else source.stories():
        length += len(text)
        most = max(most, pyarrow.total_allocated_bytes())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert length == 1_000_000 * BOMB_MEGABYTES
    assert peak + most < UNPACKED_AT_ONCE
    if kind != "parquet":
        lines = file.rename(tmp_path / name.replace("txt", "jsonl"))
        with pytest.raises(ValueError, match="line 1: longer than 256 MiB"):
            next(iter(open_source([str(lines)]).pieces()))


def test_a_packed_model_file_is_refused(tmp_path: Path) -> None:
    """Would catch an archive whose parts unpack to more than the memory there is."""
    file = tmp_path / "model.pt"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data.pkl", bytes(50_000_000))
    with pytest.raises(ValueError, match="it is packed, which PyTorch never does"):
        load_course_model(file)


HARMFUL = "\x1b]0;own\x07"  # gives the window another title
ESCAPES = "\x1b]0;title\x07 \x1b[2J \x9b31m \u202e right \u2066 to left \r over \x00 \x7f"


def test_what_a_terminal_would_obey_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a story, a file's name or a model's text that clears the screen or types a command."""
    shown = literal_lines(f"a\n{ESCAPES}\tb")
    assert shown.startswith("a\n\\x1b]0;title\\x07 \\x1b[2J \\x9b31m \\u202e right")
    assert shown.endswith("\tb")
    assert all(character.isprintable() or character in "\n\t" for character in shown)
    for plain in ("日本語\n", "שלום", "👩\u200d👩\u200d👧", "e\u0301\n\n"):
        assert literal_lines(plain) == plain
    assert literal(ESCAPES).isprintable()

    class Screen(io.StringIO):
        tty = True

        def isatty(self) -> bool:
            return self.tty

    for tty, expected in ((True, literal_lines(ESCAPES)), (False, ESCAPES)):
        screen = Screen()
        screen.tty = tty
        monkeypatch.setattr(sys, "stdout", screen)
        print_text(ESCAPES, end="")
        monkeypatch.undo()
        assert screen.getvalue() == expected


IN_TURN = """
import json, sys
from rhapsode.cli import main
for words in json.loads(sys.argv[1]):
    sys.argv = ["rhapsode", *words]
    try:
        main()
    except SystemExit as end:
        print(f"----- {words[0]} ended with {end.code or 0}", flush=True)
"""


def on_a_terminal(folder: Path, verbs: list[list[str]]) -> list[bytes]:
    """What a terminal gets of each verb, its standard output and error."""
    control, terminal = pty.openpty()
    command = [sys.executable, "-c", IN_TURN, json.dumps(verbs)]
    environment = {**os.environ, "RHAPSODE_CACHE": str(folder / "cache"), "TERM": "dumb", "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, cwd=folder, env=environment)
    os.close(terminal)
    shown = b""
    with suppress(OSError):  # how Linux tells that nobody is left at the other end
        while part := os.read(control, 65_536):
            shown += part
    os.close(control)
    assert child.wait() == 0, shown[-2000:]
    parts = re.split(rb"----- \w+ ended with (\d+)\r\n", shown)
    assert {*parts[1::2]} <= {b"0", b"2"}, parts[1::2]
    return parts[:-1:2]


def test_no_verb_has_a_terminal_obey(tmp_path: Path) -> None:
    """Would catch a verb that prints a file's name, a text or a tokenizer's words as they are."""
    file = f"{HARMFUL}.txt"
    (tmp_path / file).write_text(f"Once {HARMFUL} upon.\n\nThe {HARMFUL} end.\n" * 20)
    run = f"{HARMFUL}-run"
    small = ["--set", "embed_dim=4", "--set", "hidden_dim=4", "--set", "window=8", "--set", "batch_size=2"]
    verbs = [
        ["train", file, "--out", run, "--sequences", "8", "--vocab-size", "270", "--threads", "1", *small],
        ["generate", run, f"Once {HARMFUL}", "--max-tokens", "20", "-t", "2"],
        ["tell", f"Once {HARMFUL}", "--max-tokens", "2"],
        ["inspect", run, "--text", f"Once {HARMFUL} upon"],
        ["evaluate", run, file],
        ["export", run],
        ["check", run],
        ["prepare", file, "--out", f"{HARMFUL}-store", "--vocab-size", "270"],
        ["generate", f"no {HARMFUL} run"],
    ]
    for words, shown in zip(verbs, on_a_terminal(tmp_path, verbs), strict=True):
        assert b"]0;own" in shown, f"{words[0]}: {shown[-400:]!r}"  # it was told of
        assert b"\x1b]" not in shown, f"{words[0]}: {shown[-400:]!r}"
        assert b"\x07" not in shown, f"{words[0]}: {shown[-400:]!r}"


def test_a_model_beyond_memory_is_refused(tmp_path: Path) -> None:
    """Would catch a traceback of the allocator where a config asks for more than there is."""
    file = tmp_path / "a.txt"
    file.write_text("One story.\n\nAnother one, of more words.\n")
    command = [
        sys.executable,
        "-m",
        "rhapsode",
        "train",
        str(file),
        "--out",
        str(tmp_path / "run"),
        "--vocab-size",
        "258",
    ]
    command += ["--set", "embed_dim=2000000000", "--set", "window=4", "--set", "batch_size=1", "--sequences", "4"]
    environment = {**os.environ, "RHAPSODE_CACHE": str(tmp_path / "cache")}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert "GB of memory to train, this machine has" in result.stderr.splitlines()[-1]
    assert not (tmp_path / "run").exists()
