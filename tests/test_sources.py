"""Sources: how text is cut, what is read, and what is said where it cannot be."""

import gzip
import io
import json
import re
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from rhapsode.sources import SourceConfig, cutting, files, open_source
from rhapsode.sources.cutting import cut

SEPARATOR = "<|endoftext|>"


def stories_of(location: Path | str, **config: str) -> list:
    return list(open_source([str(location)], SourceConfig(**config)).stories())


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def cut_simply(text: str, split: str, separator: str) -> list[str]:
    """What `cut` promises, with the whole text at hand."""
    if split == "file":
        return [text] if text.strip() else []
    boundary = {"separator": re.escape(separator), "paragraph": r"\n\s*\n", "line": r"\n"}[split]
    return [story.strip() for story in re.split(boundary, text) if story.strip()]


@pytest.mark.parametrize("split", ["separator", "paragraph", "line", "file"])
@given(
    text=st.text(alphabet="ab \n\t-é", max_size=80),
    separator=st.sampled_from(["-", "\n-\n", "--", "- -"]),
    cuts=st.lists(st.integers(0, 80)),
    longest=st.sampled_from([3, 8, 1000]),
)
def test_cutting_does_not_depend_on_how_the_text_arrives(
    split: str, text: str, separator: str, cuts: list[int], longest: int
) -> None:
    """Would catch a separator or blank line missed where two chunks meet, and a piece lost or doubled."""
    places = sorted({0, len(text), *(place for place in cuts if place < len(text))})
    chunks = [text[begin:end] for begin, end in pairwise(places)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutting, "LONGEST_PIECE", longest)
        patch.setattr(cutting, "FILE_PIECE", longest)
        pieces = list(cut(chunks, split, separator))
    stories, parts = [], []
    for piece in pieces:
        parts.append(piece.text)
        if piece.ends_story:
            stories.append("".join(parts))
            parts = []
    assert parts == []
    assert stories == cut_simply(text, split, separator)


def test_long_stories_come_in_pieces_cut_before_whitespace(tmp_path: Path) -> None:
    """Would catch a file that is held in memory whole, and a cut inside a word, which changes its tokens."""
    text = "\n".join(f"line {i} of a long long book" for i in range(100_000))
    source = open_source([str(write(tmp_path / "book.txt", text))], SourceConfig(split="file"))
    pieces = list(source.pieces())
    assert [piece.ends_story for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert "".join(piece.text for piece in pieces) == text
    assert max(len(piece.text) for piece in pieces) < 2 * cutting.FILE_PIECE
    assert all(piece.text[0].isspace() and not piece.text[-1].isspace() for piece in pieces[1:])
    assert stories_of(tmp_path / "book.txt", split="file") == [text]


def test_text_without_whitespace_is_bounded_too(tmp_path: Path) -> None:
    """Would catch a piece as long as a file that never breaks a line."""
    text = "字" * 3_500_000
    pieces = list(open_source([str(write(tmp_path / "a.txt", text))]).pieces())
    assert "".join(piece.text for piece in pieces) == text
    assert max(len(piece.text) for piece in pieces) <= 3 * cutting.LONGEST_PIECE


@pytest.mark.parametrize(
    ("text", "stories", "said"),
    [
        (f"one\n\ntwo\n{SEPARATOR}\nthree\n", ["one\n\ntwo", "three"], "cut at '<|endoftext|>' (guessed"),
        ("one\nmore\n\n \ntwo\n", ["one\nmore", "two"], "cut at blank lines (guessed"),
        ("one\ntwo\n", ["one", "two"], "a story per line (guessed"),
        ("\n\none\ntwo\n\n\n", ["one", "two"], "a story per line (guessed"),
    ],
)
def test_the_way_to_cut_is_guessed_and_said(tmp_path: Path, text: str, stories: list[str], said: str) -> None:
    """Would catch a guess that blank lines at the file's ends lead astray, and one that nobody is told of."""
    source = open_source([str(write(tmp_path / "a.txt", text))])
    assert list(source.stories()) == stories
    assert said in source.description
    assert source.description.endswith("to change it: --cut)")
    assert source.kind == "text"
    assert "(guessed" not in open_source([str(tmp_path / "a.txt")], SourceConfig(split="line")).description


def test_carriage_returns_and_byte_order_mark(tmp_path: Path) -> None:
    """Would catch a mark that becomes a token, and Windows' blank lines that are none."""
    file = write(tmp_path / "a.txt", "\ufeffone\r\nmore\r\n\r\ntwo\r\n")
    assert stories_of(file) == ["one\nmore", "two"]
    assert stories_of(write(tmp_path / "a.jsonl", '\ufeff{"text": "one"}\r\n{"text": "two"}\r\n')) == [
        "one",
        "two",
    ]
    assert stories_of(write(tmp_path / "a.json", '\ufeff["one",\r\n"two"]')) == ["one", "two"]


def test_characters_across_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch characters and line ends that are broken where two reads meet."""
    monkeypatch.setattr(files, "CHUNK_BYTES", 5)
    text = "é🎉 中文\r\nx🎉\r\n\r\nend 🎉"
    file = write(tmp_path / "a.txt", text)
    assert stories_of(file, split="paragraph") == ["é🎉 中文\nx🎉", "end 🎉"]
    assert stories_of(file, split="file") == [text.replace("\r\n", "\n")]


RECORDS = ["first one", "  second\n\none ", "ünï 🎉"]


def as_jsonl(records: Sequence) -> str:
    return "".join(json.dumps({"n": 1, "story": record}, ensure_ascii=False) + "\n" for record in records)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", as_jsonl(RECORDS)),
        ("a.ndjson", "\n" + as_jsonl(RECORDS) + "\n\n"),
        ("strings.jsonl", "".join(json.dumps(record) + "\n" for record in RECORDS)),
        ("a.json", json.dumps(RECORDS)),
        ("objects.json", json.dumps([{"story": record} for record in RECORDS], indent=3)),
        ("blank.json", json.dumps(["", *RECORDS, " \n", None])),
        ("a.jsonl.gz", gzip.compress(as_jsonl(RECORDS).encode())),
        ("a.jsonl.zst", zstandard.compress(as_jsonl(RECORDS).encode())),
    ],
)
def test_records_come_back_as_they_are(tmp_path: Path, name: str, content: str | bytes) -> None:
    """Would catch records that are stripped, cut at their blank lines, or blank ones that become stories."""
    assert stories_of(write(tmp_path / name, content), field="story") == RECORDS


@pytest.mark.parametrize("rows_per_group", [2, 1000])
def test_parquet(tmp_path: Path, rows_per_group: int) -> None:
    """Would catch row groups after the first that are missed, and nulls that become the text `None`."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"id": [1, 2, 3, 4], "story": [*RECORDS, None], "ids": [[1, 2], [3], [4], [5, 6]]})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=rows_per_group)
    read: list[float] = []
    source = open_source([str(tmp_path / "a.parquet")], SourceConfig(field="story"))
    assert [piece.text for piece in source.pieces(read.append)] == RECORDS
    assert sum(read) == pytest.approx(source.total_bytes)
    assert stories_of(tmp_path / "a.parquet", field="ids") == [[1, 2], [3], [4], [5, 6]]
    with pytest.raises(ValueError, match="no column 'text'; there are: id, story, ids"):
        stories_of(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="row 1: expected a text or a list of token ids, got int"):
        stories_of(tmp_path / "a.parquet", field="id")
    broken = (tmp_path / "a.parquet").read_bytes()[:-10]
    with pytest.raises(ValueError, match="broken Parquet"):
        stories_of(write(tmp_path / "b.parquet", broken))


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"pip install 'rhapsode\[hub\]'"):
        stories_of(write(tmp_path / "a.parquet", "PAR1"))


@pytest.mark.parametrize("chunk", [3, 1 << 20])
def test_json_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    """Would catch numbers and texts that are cut where two chunks meet: 12 would become 1 and 2."""
    monkeypatch.setattr(files, "CHUNK_BYTES", chunk)
    lists = [[12345, 0, 678], [9], [1_000_000]]
    source = open_source([str(write(tmp_path / "ids.json", json.dumps(lists)))])
    assert source.kind == "ids"
    assert list(source.stories()) == lists
    assert stories_of(write(tmp_path / "a.json", json.dumps(RECORDS, indent=1))) == RECORDS


def test_packed_text(tmp_path: Path) -> None:
    """Would catch members after the first that are left out, and progress counted in unpacked bytes."""
    halves = [b"one\n\ntwo", b" more\n\nthree\n"]
    for name, pack in (("a.txt.gz", gzip.compress), ("a.txt.zst", zstandard.compress)):
        file = write(tmp_path / name, b"".join(map(pack, halves)))
        read: list[float] = []
        source = open_source([str(file)])
        assert [piece.text for piece in source.pieces(read.append)] == ["one", "two more", "three"]
        assert sum(read) == source.total_bytes == file.stat().st_size
        content = file.read_bytes()
        with pytest.raises(ValueError, match=rf"{name}: broken \w+ data"):
            stories_of(write(tmp_path / f"short-{name}", content[:-4]))
        with pytest.raises(ValueError, match=rf"{name}: broken \w+ data"):
            stories_of(write(tmp_path / f"wrong-{name}", b"one\n\ntwo"))


def test_folder(tmp_path: Path) -> None:
    """Would catch an order that the file system decides, and hidden or foreign files that are read."""
    (tmp_path / "b" / ".git").mkdir(parents=True)
    write(tmp_path / "b" / "x.md", "third")
    write(tmp_path / "b" / ".git" / "x.txt", "hidden")
    write(tmp_path / "a.txt", "first")
    write(tmp_path / "a.txt.gz", gzip.compress(b"second"))
    write(tmp_path / "picture.png", b"\x89PNG\0")
    write(tmp_path / "c.jsonl", '{"text": "fourth"}')
    source = open_source([str(tmp_path)])
    assert list(source.stories()) == ["first", "second", "third", "fourth"]
    assert "(4 files; left out: picture.png): a story per record; text files: a story per line" in source.description
    again = open_source([str(tmp_path / "a.txt"), str(tmp_path / "b")])
    assert list(again.stories()) == ["first", "third"]


@pytest.mark.parametrize(
    ("content", "stories", "kind"),
    [
        (b"one\n\ntwo\n", ["one", "two"], "text"),
        (b'{"text": "one"}\n{"text": "two"}\n', ["one", "two"], "text"),
        (b'[\n"one", "two"]', ["one", "two"], "text"),
        (b"[[1, 2], [3]]", [[1, 2], [3]], "ids"),
        (b"[Scene one]\nTo be\n", ["[Scene one]", "To be"], "text"),
        (b"{curly}\nline", ["{curly}", "line"], "text"),
        (gzip.compress(b"one\n\ntwo\n"), ["one", "two"], "text"),
        (zstandard.compress(b'{"text": "one"}\n'), ["one"], "text"),
    ],
)
def test_standard_input(monkeypatch: pytest.MonkeyPatch, content: bytes, stories: list, kind: str) -> None:
    """Would catch an input that can be read once only, since a source is read several times."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    source = open_source(["-"])
    assert list(source.stories()) == stories
    assert list(source.stories()) == stories
    assert source.kind == kind
    assert source.description.startswith("standard input")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "a.txt: empty"),
        ("a.txt", b" \n\n ", "no stories, it is empty"),
        ("a.json", b"[]", "no stories, it is empty"),
        ("a.txt", b"good\nbad \xff here", "not UTF-8 at byte 9 "),
        ("a.txt", b"a" * (1 << 20) + b"\xc3", "not UTF-8 at byte 1048576 "),
        ("a.txt", "UTF-16 without its mark".encode("utf-16-le"), "byte 1 is zero; .*begins with its byte-order mark"),
        ("a.bin", b"GIF89a\0\0", "not a text file, byte 6 is zero"),
        ("a.jsonl", b'{"text": "a"}\n{"text": b}\n', r"a.jsonl, line 2: not JSON: .*column 10"),
        (
            "a.jsonl",
            b'{"text": "a"}\n\n{"title": "b", "n": 1}\n',
            "line 3: no field 'text'; there are: title",
        ),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', "line 2: not UTF-8 at byte 24"),
        (
            "a.jsonl",
            b'{"text": "a"}\n{"text": [1, 2]}\n',
            "line 2: token ids, where the items before it are texts",
        ),
        ("a.jsonl", b'{"text": [1]}\n{"text": "b"}\n', "line 2: a text, where the items before it are lists"),
        ("a.jsonl", b'{"text": "\\ud83d"}\n', "line 1: half of a surrogate pair"),
        ("a.jsonl", b"7\n", "line 1: expected a text or a list of token ids, got int"),
        ("a.json", b'{"text":\n"a"}', "one object over several lines"),
        ("a.json", b"no JSON", "not a JSON list"),
        ("a.json", b'["a",\n"b"\n"c"]', "line 3: not JSON: expected , or ]"),
        ("a.json", b'["a",\n{"text" "b"}]', "line 2: not JSON: Expecting ':'"),
        ("a.json", b'["a",\n"b', "line 2: not JSON: Unterminated string"),
        ("a.json", b'["a",\n', "line 2: not JSON: the file ends where an element was expected"),
        ("a.json", b'["a"]\n]', "line 2: not JSON: there is text after the list"),
        ("a.json", b"[[1, 2], [3, -4]]", "item 2, position 2: '-4' is not a token id"),
        ("a.json", b"[[1, 2], [3, 4.5]]", "item 2, position 2: '4.5' is not a token id"),
        ("a.json", b"[[1, 2], [3, [4]]]", r"item 2, position 2: '\[4\]' is not a token id"),
        ("a.json", b"[[1, 2], [3, 99999999999999999999]]", "item 2, position 2: '9999"),
        ("a.json", b'[["a", "b"]]', "item 1, position 1: 'a' is not a token id"),
        ("a.parquet.gz", b"x", "Parquet is compressed inside"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    """Would catch a traceback, a message without its place, and bad data that are taken for good."""
    with pytest.raises(ValueError, match=message) as caught:
        stories_of(write(tmp_path / name, content))
    assert "\n" not in str(caught.value)
    assert name.split(".")[0] in str(caught.value)


def test_locations_that_lead_nowhere(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.txt: no such file or folder"):
        open_source(["nothing.txt"])
    with pytest.raises(ValueError, match=r"no file in it ends in one of \.txt"):
        open_source([str(tmp_path)])
    with pytest.raises(ValueError, match="no data"):
        open_source([])
    text, ids = write(tmp_path / "a.txt", "one"), write(tmp_path / "b.json", "[[1]]")
    with pytest.raises(ValueError, match=r"b.json, item 1: token ids, where the items before"):
        list(open_source([str(text), str(ids)]).stories())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"split": "word"}, "cut must be one of auto, separator, .*got 'word'"),
        ({"separator": " \n"}, "separator must have a visible character"),
        ({"field": ""}, "field must not be empty"),
    ],
)
def test_config_checks_itself(config: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SourceConfig(**config)


def test_fingerprint_is_of_contents_and_cut(tmp_path: Path) -> None:
    """Would catch a store that is used again for a changed text, or made again for a copied file."""

    def fingerprint(*names: str, **config: str) -> str:
        return open_source([str(tmp_path / name) for name in names], SourceConfig(**config)).fingerprint()

    write(tmp_path / "a.txt", "one\n\ntwo")
    write(tmp_path / "copy.txt", "one\n\ntwo")
    write(tmp_path / "b.txt", "three\n\nfour")
    write(tmp_path / "a.jsonl", '{"text": "one", "title": "two"}')
    assert fingerprint("a.txt") == fingerprint("copy.txt") == fingerprint("a.txt", split="paragraph")
    prints = [
        fingerprint("a.txt"),
        fingerprint("b.txt"),
        fingerprint("a.txt", split="line"),
        fingerprint("a.txt", separator="e\n"),
        fingerprint("a.txt", separator="w"),
        fingerprint("a.txt", "b.txt"),
        fingerprint("b.txt", "a.txt"),
        fingerprint("a.jsonl"),
        fingerprint("a.jsonl", field="title"),
    ]
    assert len(set(prints)) == len(prints)
    source = open_source([str(tmp_path / "a.txt")])
    before = source.fingerprint()
    write(tmp_path / "a.txt", "one\n\ntwo\n\nthree")
    assert source.fingerprint() != before


def test_course_files(shared: Path) -> None:
    """Would catch the course's two forms of data, lists of ids and of texts, taken for one another."""
    source = open_source([str(shared / "data/course/tiny_train_stories.json")])
    sequences = list(source.stories())
    assert source.kind == "ids"
    assert (len(sequences), {len(ids) for ids in sequences}) == (128, {128})
    assert len(stories_of(shared / "data/course/untokenized_train_stories.json")) == 10
