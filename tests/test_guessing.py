"""What a file is taken for: by its name where that tells, by its content otherwise, the same way through every door."""

import gzip
import io
import json
import os
import struct
import sys
import threading
from pathlib import Path

import pytest
import zstandard

from rhapsode.sources import SourceConfig, open_source
from rhapsode.sources.guessing import FORMATS, format_of_content, recognise

LONG = "A long tale. " * 120_000  # 1.5 MB: more than one read
IDS = [[1, 2, 3], [4, 5], [6]]
SKIPPED = struct.pack("<II", 0x184D2A57, 5) + b"about"  # a frame of zstd that holds no data

CASES = {
    "paragraphs": ("one\n\ntwo\n", ["one", "two"]),
    "objects": ('{"text": "one"}\n{"text": "two"}\n', ["one", "two"]),
    "one object": ('{"text": "one"}', ["one"]),
    "a first record over a megabyte": (json.dumps({"text": LONG}) + '\n{"text": "two"}\n', [LONG, "two"]),
    "a first field over a megabyte": (json.dumps({"x": LONG, "text": "one"}) + '\n{"text": "two"}\n', ["one", "two"]),
    "strings": ('"one"\n"two"\n"three"\n', ["one", "two", "three"]),
    "a first string over a megabyte": (json.dumps(LONG) + '\n"two"\n', [LONG, "two"]),
    "lists of ids": ("[1, 2, 3]\n[4, 5]\n[6]\n", IDS),
    "a first list over a megabyte": (json.dumps([7] * 400_000) + "\n[4]\n", [[7] * 400_000, [4]]),
    "one list of ids": ("[1, 2, 3]\n", [[1, 2, 3]]),
    "a list of texts": ('\n [\n"one", "two"]', ["one", "two"]),
    "a list of lists": ("[[1, 2, 3], [4, 5],\n[6]]", IDS),
    "a list of one object": ('[{"text": "one"}]\n', ["one"]),
    "a list that begins long": (json.dumps([LONG, "two"]), [LONG, "two"]),
    "a wiki page": ("[[Tale]] is a word.\n[[See also]] story.\n", ["[[Tale]] is a word.", "[[See also]] story."]),
    "a footnote": ("[[1]] The first.\n[[2]] The second.\n", ["[[1]] The first.", "[[2]] The second."]),
    "a numbered line": ("[1] One.\n[2] Two.\n", ["[1] One.", "[2] Two."]),
    "a number by itself": ("[1]\nIn the beginning\n", ["[1]", "In the beginning"]),
    "a list in a sentence": ('["a", "b"] are letters.\nx\n', ['["a", "b"] are letters.', "x"]),
    "a scene": ("[Scene one]\nTo be\n", ["[Scene one]", "To be"]),
    "braces": ("{curly}\nline\n", ["{curly}", "line"]),
    "an object in a sentence": ('{"a": 1} is an object.\nx\n', ['{"a": 1} is an object.', "x"]),
    "speech": ('"Hello," said Tom.\n"Yes," said Ann.\n', ['"Hello," said Tom.', '"Yes," said Ann.']),
    "one line of speech": ('"Hello there."\nTom smiled.\n', ['"Hello there."', "Tom smiled."]),
    "a table": ('id,text\n1,one\n2,two\n3,"three, four"\n', ["one", "two", "three, four"]),
    "a table with tabs": ("text\tid\none\t1\ntwo\t2\n", ["one", "two"]),
    "a table without text": ("id,story\n1,one\n2,two\n", ["one", "two"]),
    "a table of words": ("name;story\n" + "x;a b c\n" * 20, ["a b c"] * 20),
    "rhymes": ("Row, row\nyour, boat\n", ["Row, row", "your, boat"]),
    "commas": ("Once, text was rare.\nNow, text is not.\n", ["Once, text was rare.", "Now, text is not."]),
}


@pytest.mark.parametrize("case", CASES)
def test_the_guess_does_not_depend_on_the_way_in(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a format that is guessed from a clipped line, or in one way for a file and in another for a pipe."""
    content, expected = CASES[case][0].encode(), CASES[case][1]
    ways = {
        "plain": content,
        "gzip": gzip.compress(content, 1),
        "zstd": SKIPPED + zstandard.compress(content),
        "utf-16": content.decode().encode("utf-16"),
    }
    for way, packed in ways.items():
        (tmp_path / way).write_bytes(packed)
        assert list(open_source([str(tmp_path / way)]).stories()) == expected, way
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(packed)))
        source = open_source(["-"])
        assert list(source.stories()) == expected, way
        assert source.kind == ("ids" if isinstance(expected[0], list) else "text")
        assert source.description.startswith("standard input: ")


def test_a_pipe_is_read_once_and_kept(tmp_path: Path) -> None:
    """Would catch the pipe of `rhapsode train <(zcat tales.gz)` taken for an empty file."""
    os.mkfifo(tmp_path / "pipe")
    threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(b"one\n\ntwo\n",)).start()
    source = open_source([str(tmp_path / "pipe")])
    assert list(source.stories()) == list(source.stories()) == ["one", "two"]


def test_closed_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ValueError, match=r"standard input \(-\) is closed"):
        open_source(["-"])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one")))
    with pytest.raises(ValueError, match="can be named only once"):
        open_source(["-", "-"])


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.json", '{"text": "one"}\n{"text": "two"}\n', ["one", "two"]),
        ("a.json", '"one"\n"two"\n', ["one", "two"]),
        ("a.json", "[1, 2]\n[3]\n", [[1, 2], [3]]),
        ("a.jsonl", '[{"text": "one"},\n{"text": "two"}]', ["one", "two"]),
        ("a.jsonl", '"one"\n', ["one"]),
        ("a.txt", '{"text": "one"}\n', ['{"text": "one"}']),
    ],
)
def test_json_lines_and_json_lists_by_either_name(tmp_path: Path, name: str, content: str, expected: list) -> None:
    """Would catch JSON Lines that are refused because they lie in a .json file, as many tools write them."""
    (tmp_path / name).write_text(content)
    assert list(open_source([str(tmp_path / name)]).stories()) == expected


def test_a_text_file_that_looks_like_json_lines_is_told(tmp_path: Path) -> None:
    """Would catch records that are trained on with their braces, without a word."""
    (tmp_path / "a.txt").write_text('{"text": "one"}\n{"text": "two"}\n')
    assert (
        "a.txt looks like JSON Lines (to read it that way: --format jsonl)"
        in open_source([str(tmp_path / "a.txt")]).description
    )
    (tmp_path / "a.txt").write_text('{"a"}, {"b"}\n')
    assert "looks like" not in open_source([str(tmp_path / "a.txt")]).description


def test_the_user_s_word_on_the_format(tmp_path: Path) -> None:
    """Would catch an option that the suffix, or the content, overrules."""
    lines = tmp_path / "a.txt"
    lines.write_text('{"text": "one"}\n{"text": "two"}\n')
    assert list(open_source([str(lines)], SourceConfig(format="jsonl")).stories()) == ["one", "two"]
    (tmp_path / "a.jsonl").write_text("one\n\ntwo\n")
    assert list(open_source([str(tmp_path / "a.jsonl")], SourceConfig(format="text")).stories()) == ["one", "two"]
    (tmp_path / "b.txt").write_text("id;text\n1;one\n")
    assert list(open_source([str(tmp_path / "b.txt")], SourceConfig(format="csv")).stories()) == ["one"]
    with pytest.raises(ValueError, match="line 1: not JSON"):
        list(open_source([str(tmp_path / "b.txt")], SourceConfig(format="jsonl")).stories())
    with pytest.raises(ValueError, match=f"format must be one of {', '.join(FORMATS)}, got 'xml'"):
        SourceConfig(format="xml")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "one.story").write_text("one")
    with pytest.raises(ValueError, match="no file in it ends in one of"):
        open_source([str(folder)])
    assert list(open_source([str(folder)], SourceConfig(format="text")).stories()) == ["one"]
    (folder / "two.jsonl").write_text('{"text": "two"}')
    (folder / "three.txt").write_text("three")
    assert list(open_source([str(folder)], SourceConfig(format="jsonl")).stories()) == ["two"]


def test_what_may_be_either_is_asked_for(tmp_path: Path) -> None:
    """Would catch a broken line of JSON Lines that turns all of them into raw text."""
    (tmp_path / "a").write_text('"one"\n"two"\nthree"\n')
    with pytest.raises(ValueError, match=r"the first 2 lines are JSON.*--format text or --format jsonl"):
        open_source([str(tmp_path / "a")])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "one"}\n{"text": two}\n', "a, line 2: not JSON"),
        ('{"text": "one}\n{"text": "two"}\n{"text": "three"}\n', "a, line 1: not JSON"),
        ('{"text": "one"}{"text": "two"}', "a, line 1: not JSON: Extra data"),
        ('[{"text": "one"},\n{"text": two}]', "a, line 2: not JSON"),
        ('["one", "two",\n', "a, line 2: not JSON: the file ends where an element was expected"),
        ("[[1, 2],\n", "a, line 2: not JSON: the file ends where an element was expected"),
        ("[[1, 2]", "a, line 1: not JSON: the file ends where , or ] was expected"),
        ('{\n"text": "one"\n}\n', "a: one object over several lines"),
    ],
)
def test_broken_json_is_not_raw_text(tmp_path: Path, content: str, message: str) -> None:
    """Would catch records with one fault in them that are trained on with their braces and quotation marks."""
    (tmp_path / "a").write_text(content)
    with pytest.raises(ValueError, match=message):
        list(open_source([str(tmp_path / "a")]).stories())


DEEP = "[" * 5_000 + "]" * 5_000
DIGITS = "1" * 5_000


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "one", "more": ' + DEEP + "}", r"(line|item) \d: JSON nested too deeply"),
        ('[{"text": "one"}, {"text": ' + DEEP + "}]", r"(line|item) \d: JSON nested too deeply"),
        ('{"text": "one", "n": ' + DIGITS + "}", r"(line|item) \d: a number of more than 4,300 digits; remove it"),
        (
            '[{"text": "one"}, {"n": ' + DIGITS + "}]",
            r"(line|item) \d: a number of more than 4,300 digits; remove it",
        ),
    ],
    ids=["deep object", "deep list", "number in an object", "number in a list"],
)
def test_json_that_python_does_not_read(tmp_path: Path, name: str, content: str, message: str) -> None:
    """Would catch a RecursionError, or a ValueError of Python's own that names no file."""
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        list(open_source([str(tmp_path / name)]).stories())
    assert str(caught.value).startswith(str(tmp_path / name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "é🎉\r\n\r\nend 🎉\n"),
        ("a.jsonl", '{"text": "é🎉"}\n{"text": "end 🎉"}\n'),
        ("a.json", '["é🎉", "end 🎉"]'),
        ("a.csv", "n,text\r\n1,é🎉\r\n2,end 🎉\r\n"),
    ],
)
def test_utf_16_and_32_with_their_mark(tmp_path: Path, encoding: str, name: str, content: str) -> None:
    """Would catch a file as Windows' editors save it that is refused, or a mark that becomes a token."""
    packed = f"\ufeff{content}".encode(encoding)
    (tmp_path / name).write_bytes(packed)
    assert list(open_source([str(tmp_path / name)]).stories()) == ["é🎉", "end 🎉"]
    (tmp_path / name).write_bytes(packed[:-1])
    with pytest.raises(ValueError, match=rf"{name}.*: not UTF-(16|32) at byte \d+"):
        list(open_source([str(tmp_path / name)]).stories())


@pytest.mark.parametrize("window_log", [28, 31])
def test_zstd_with_a_long_window(tmp_path: Path, window_log: int) -> None:
    """Would catch what `zstd --long=31` packs called broken: the library refuses windows over 128 MB by itself."""
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=window_log, enable_ldm=True)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    packed = packer.compress(b"one\n\ntwo\n") + packer.flush()
    assert zstandard.get_frame_parameters(packed).window_size == 1 << window_log
    (tmp_path / "a.txt.zst").write_bytes(packed)
    assert list(open_source([str(tmp_path / "a.txt.zst")]).stories()) == ["one", "two"]


def test_skipped_frames_by_any_name(tmp_path: Path) -> None:
    """Would catch text that begins with the letters of such a frame, or a frame in front of something else."""
    packed = SKIPPED * 2 + zstandard.compress(b"one") + SKIPPED + zstandard.compress(b" two")
    for name in ("a", "a.zst", "a.txt.zst", "a.txt"):
        (tmp_path / name).write_bytes(packed)
        assert list(open_source([str(tmp_path / name)]).stories()) == ["one two"]
    (tmp_path / "b").write_bytes(b"P*M\x18 is no frame\n")
    assert recognise(tmp_path / "b", "b").file.compression == ""


def test_a_record_that_never_ends_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch all of a large file in memory before its format is known."""
    monkeypatch.setattr("rhapsode.sources.guessing.LONGEST_HEAD", 1 << 20)
    (tmp_path / "a").write_text('["' + "a" * 4_000_000 + '"]')
    read: list[int] = []
    file = recognise(tmp_path / "a", "a", "text").file
    real = Path.open

    class Counted(io.FileIO):
        def readinto(self, buffer: object) -> int:
            count = super().readinto(buffer)  # type: ignore[arg-type]
            read.append(count)
            return count

    monkeypatch.setattr(Path, "open", lambda self, *_, **__: Counted(self))
    assert format_of_content(file, "text") == "json"
    monkeypatch.setattr(Path, "open", real)
    assert sum(read) < 3_500_000
