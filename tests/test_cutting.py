"""Long texts: blanks that are no story, and places to cut one story in two wherever it has no words' ends."""

import json
import random
from pathlib import Path

import pytest

from rhapsode.sources import SourceConfig, open_source
from rhapsode.tokenizer import Tokenizer, train_tokenizer
from rhapsode.tokens import prepare

MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def characters() -> Tokenizer:
    return train_tokenizer(["ACGT字。 \nabcdefgh"], "characters", 64)


@pytest.mark.parametrize("split", ["separator", "paragraph", "line", "file"])
@pytest.mark.parametrize("blank", [" ", " \n"])
def test_a_large_file_of_blanks_is_no_story(tmp_path: Path, split: str, blank: str) -> None:
    """Would catch megabytes of blanks that go out in pieces, before it is known that nothing else comes."""
    file = tmp_path / "a.txt"
    file.write_text(blank * (5 * MEGABYTE // len(blank)))
    like = SourceConfig(split=split)
    with pytest.raises(ValueError, match="no stories, it is empty or has only white space"):
        list(open_source([str(file)], like=like).pieces())
    file.write_text(blank * MEGABYTE + "one" + blank * (5 * MEGABYTE // 2))
    (story,) = open_source([str(file)], like=like).stories()
    assert story == (file.read_text() if split == "file" else "one")


@pytest.mark.parametrize("length", [1_500, 5_000, 60_000, 400_000])
@pytest.mark.parametrize("alphabet", ["ACGT", "字", "abcdefgh "])
def test_five_per_cent_of_one_text_are_held_out(
    tmp_path: Path, characters: Tokenizer, length: int, alphabet: str
) -> None:
    """Would catch half of a genome held out, or a third of a short text, because there was no nearer place to cut."""
    text = "a" + "".join(random.Random(length).choices(alphabet, k=length - 1))
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    store = prepare(open_source([str(tmp_path / "a.txt")], SourceConfig(split="file")), characters, tmp_path / "cache")
    rest, held_out = store.hold_out(0.05, seed=0)
    assert 0.03 < held_out.num_bytes / store.num_bytes < 0.07
    assert rest.num_tokens + held_out.num_tokens == store.num_tokens == length + 1


def test_pieces_do_not_grow_with_the_text(tmp_path: Path) -> None:
    """Would catch pieces that grow for ever, and thousands of them for a text that needs no more than a hundred."""
    (tmp_path / "a.txt").write_text("ACGT" * 500_000)
    lengths = [len(piece.text) for piece in open_source([str(tmp_path / "a.txt")], SourceConfig(split="file")).pieces()]
    assert max(lengths) <= 4096
    assert len(lengths) < 2_000_000 / 2048 + 200


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "one\r\nmore\rand\nmore"),
        ("a.jsonl", json.dumps({"text": "one\r\nmore\rand\nmore"})),
        ("b.jsonl", json.dumps("one\r\nmore\rand\nmore")),
        ("a.json", json.dumps(["one\r\nmore\rand\nmore"])),
        ("a.csv", 'text\r\n"one\r\nmore\rand\nmore"\r\n'),
        ("a.tsv", 'text\tn\r\n"one\r\nmore\rand\nmore"\t1\r\n'),
        ("a.parquet", ""),
    ],
)
def test_line_ends_are_one_in_every_container(tmp_path: Path, name: str, content: str) -> None:
    """Would catch one text with other tokens, and another score, in JSON than in a text file."""
    file = tmp_path / name
    file.write_bytes(content.encode())
    if name.endswith("parquet"):
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.table({"text": ["one\r\nmore\rand\nmore"]}), file)
    config = SourceConfig(split="file") if name == "a.txt" else SourceConfig()
    assert list(open_source([str(file)], config).stories()) == ["one\nmore\nand\nmore"]
