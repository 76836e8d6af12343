"""CSV and TSV: a story per row out of one column, which is named; and what is nested inside other records."""

import json
from pathlib import Path

import pytest

from rhapsode.sources import SourceConfig, open_source


def write(path: Path, content: str) -> Path:
    path.write_bytes(content.encode())
    return path


@pytest.mark.parametrize(
    ("name", "content", "field", "stories", "said"),
    [
        ("a.csv", "id,text\n1,one\n2,\n\n3,two\n", None, ["one", "two"], "column 'text' of id, text"),
        (
            "a.csv",
            'text\r\n"one, ""or"" more"\r\n two \r\n',
            None,
            ['one, "or" more', " two "],
            "column 'text' of text",
        ),
        ("a.csv", "id;text;n\n1;one, two;3\n", None, ["one, two"], "column 'text' of id, text, n"),
        ("a.csv", "\ufeffid, story\n1,one\n", "story", ["one"], "column 'story' of id, story"),
        (
            "a.csv",
            "id,label,story\nx1,good,Once upon a time\nx2,bad,A dog ran off\n",
            None,
            ["Once upon a time", "A dog ran off"],
            "column 'story' of id, label, story (guessed; to change it: --field)",
        ),
        ("a.csv", "n,word\n1,one\n2,two\n", None, ["one", "two"], "column 'word' of n, word (guessed;"),
        ("a.csv", "story\none\ntwo\n", None, ["one", "two"], "column 'story' of story (guessed;"),
        ("a.tsv", 'text\tid\n"one\ttwo"\t1\n', None, ["one\ttwo"], "column 'text' of text, id"),
        (
            "a.tsv",
            'text\tid\n"Hello," said Tom.\t1\n"Yes.\t2\n',
            None,
            ['"Hello," said Tom.', '"Yes.'],
            "column 'text'",
        ),
        ("a.csv.gz", "", None, ["one"], "column 'text' of id, text"),
    ],
)
def test_a_story_per_row(
    tmp_path: Path, name: str, content: str, field: str | None, stories: list[str], said: str
) -> None:
    """Would catch headers, numbers, commas and quotation marks trained on, and a column that nobody is told of."""
    import gzip

    file = write(tmp_path / name, content)
    if name.endswith("gz"):
        file.write_bytes(gzip.compress(b"id,text\n1,one\n"))
    source = open_source([str(file)], SourceConfig(field=field))
    assert list(source.stories()) == list(source.stories()) == stories
    assert f"a story per row, {said}" in source.description
    read: list[float] = []
    list(source.pieces(read.append))
    assert sum(read) == source.total_bytes


def test_long_cells(tmp_path: Path) -> None:
    """Would catch the 131,072 characters at which Python's csv module stops by itself."""
    story = "a long tale\n" * 50_000
    file = write(tmp_path / "a.csv", f'id,text\n1,"{story}"\n2,two\n')
    assert list(open_source([str(file)]).stories()) == [story, "two"]


@pytest.mark.parametrize(
    ("name", "content", "field", "message"),
    [
        ("a.csv", "a,b\nOnce upon a time,There was a dog\n", None, "no column 'text', .*there are: a, b .*--field"),
        ("a.csv", "a,b\n1,2\n", None, "no column 'text', .*there are: a, b .*--field"),
        ("a.csv", "a,b\n1,2\n", "c", "no column 'c'; there are: a, b"),
        ("a.csv", "id,text\n1,one, two\n", None, "a.csv, line 2: 3 cells, where the first row names 2 columns"),
        ("a.csv", "id,text\n1,one\n2\n", None, "a.csv, line 3: 1 cells, where the first row names 2 columns"),
        ("a.csv", 'id,text\n1,"one" two\n', None, "a.csv, line 2: not CSV"),
        ("a.csv", 'id,text\n1,one\n2,"two\n', None, "a.csv, line 3: not CSV .unexpected end of data"),
        ("a.csv", f"{'Once upon a time ' * 9}\nanother\n", None, "first row does not name columns"),
        ("a.csv", "\n\n", None, "first row does not name columns"),
        ("a.csv", "text\n \n", None, "no stories, it is empty"),
    ],
)
def test_what_is_no_table_is_said_in_one_line(
    tmp_path: Path, name: str, content: str, field: str | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        list(open_source([str(write(tmp_path / name, content))], SourceConfig(field=field)).stories())
    assert "\n" not in str(caught.value)


NESTED = [
    {"id": 1, "story": {"title": "A", "body": "one"}},
    {"id": 2, "story": None},
    {"id": 3, "story": {"body": "two"}},
]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet"])
def test_fields_inside_of_fields(tmp_path: Path, name: str) -> None:
    """Would catch advice that goes in a circle: --field story says to take title or body, and that there is none."""
    file = tmp_path / name
    if name == "a.parquet":
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(NESTED), file)
    else:
        file.write_text(json.dumps(NESTED) if name == "a.json" else "\n".join(map(json.dumps, NESTED)))
    assert list(open_source([str(file)], SourceConfig(field="story.body")).stories()) == ["one", "two"]
    with pytest.raises(ValueError, match=r"'story' is an object.*--field story\.title or --field story\.body"):
        list(open_source([str(file)], SourceConfig(field="story")).stories())
    with pytest.raises(ValueError, match=r"no (field|column) 'story\.text'; there are: (id, )?story"):
        list(open_source([str(file)], SourceConfig(field="story.text")).stories())


def test_a_chat_is_no_list_of_ids(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", '{"messages": [{"role": "user", "content": "Hello"}]}')
    with pytest.raises(
        ValueError, match=r"line 1: expected a text or a list of token ids, got a list of objects \(role, content\)"
    ):
        list(open_source([str(file)], SourceConfig(field="messages")).stories())
