"""Folders: what is data in them, which split it belongs to, and what is left out and said."""

from pathlib import Path, PurePath

import pytest

from rhapsode.sources import EVALUATION, FileSource, SourceConfig, open_source
from rhapsode.sources.folders import files_in, splits_of


def lay_out(folder: Path, *names: str) -> Path:
    """A folder with these files; the story in each is its name."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f'{{"text": "{name}"}}\n' if name.endswith("jsonl") else f"{name}\n")
    return folder


def test_a_data_set_s_folder(tmp_path: Path) -> None:
    """Would catch a README that becomes a story, and a test split that is trained on."""
    names = ["README.md", "LICENSE.txt", "dataset_infos.json", "train.jsonl", "test.jsonl", "validation.jsonl", "x.png"]
    folder = str(lay_out(tmp_path / "tales", *names))
    source = open_source([folder])
    assert isinstance(source, FileSource)
    assert list(source.stories()) == ["train.jsonl"]
    assert source.validation == (folder,)
    assert source.description == (
        f"{folder} (train.jsonl; left out: LICENSE.txt, README.md, dataset_infos.json, test.jsonl (test split) and 2"
        " more): a story per record"
    )
    assert list(open_source([folder], wanted=EVALUATION).stories()) == ["validation.jsonl"]
    (tmp_path / "tales" / "validation.jsonl").unlink()
    assert list(open_source([folder], wanted=EVALUATION).stories()) == ["test.jsonl"]
    source = open_source([folder])
    assert isinstance(source, FileSource)
    assert source.validation == ()


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train.txt", "test.txt"], ["train", "test"]),
        (["a/train-00000-of-00002.parquet", "a/val-00000-of-00001.parquet"], ["train", "validation"]),
        (["train_1.jsonl.gz", "train_2.jsonl.gz", "dev.jsonl.gz"], ["train", "train", "validation"]),
        (["train/a.txt", "train/b.txt", "validation/c.txt"], ["train", "train", "validation"]),
        (["a.txt", "b.txt", "test/c.txt"], ["train", "train", "test"]),
        (["TinyStories-train.txt", "TinyStories-valid.txt"], ["train", "validation"]),
        (["wiki.train.txt", "wiki.test.txt", "vocabulary.txt"], ["train", "test", ""]),
        (["Training.TXT", "Testing.TXT"], ["train", "test"]),
        # No data set: nothing is set apart, or nothing would be left, or the words are those of titles.
        (["a.txt", "b.txt"], []),
        (["train.txt", "notes.txt"], []),
        (["test.txt"], []),
        (["the-driving-test.txt", "a-dog.txt", "dev-diary.md"], []),
        (["my-train-journey.txt", "a-dog.txt"], []),
        (["training-day.txt", "attested.txt", "contests.txt"], []),
        (["validated.txt", "trains.txt", "tester.txt"], []),
    ],
)
def test_splits_by_names(names: list[str], splits: list[str]) -> None:
    """Would catch a data set's layout that is overlooked, and stories left out for a word in their titles."""
    assert splits_of([PurePath(name) for name in names]) == splits


def test_the_folder_s_own_name_is_no_split(tmp_path: Path) -> None:
    """Would catch the test split that a user names, left out because it is one."""
    folder = lay_out(tmp_path / "test", "a.txt", "b.txt")
    assert list(open_source([str(folder)]).stories()) == ["a.txt", "b.txt"]


def test_what_only_tells_of_data(tmp_path: Path) -> None:
    """Would catch notes in Markdown that are left out as if they were a README, and a README that is named and left."""
    folder = lay_out(tmp_path, "README.md", "readme_zh.md", "licence.txt", "notes.md", "my readme.txt", "config.json")
    found = files_in(folder)
    assert [path.name for path in found.files] == ["my readme.txt", "notes.md"]
    assert found.left_out == ["README.md", "config.json", "licence.txt", "readme_zh.md"]
    assert list(open_source([str(tmp_path / "README.md")]).stories()) == ["README.md"]
    only = lay_out(tmp_path / "only", "README.md")
    with pytest.raises(ValueError, match=r"no file in it ends in one of .*; README\.md only describes data"):
        open_source([str(only)])


def test_tables_without_text_beside_text(tmp_path: Path) -> None:
    """Would catch labels and counts beside stories, trained on or in the way."""
    folder = lay_out(tmp_path, "a.txt")
    (folder / "labels.csv").write_text("n,label\n1,2\n")
    source = open_source([str(folder)])
    assert list(source.stories()) == ["a.txt"]
    assert "left out: labels.csv (no column of text)" in source.description
    with pytest.raises(ValueError, match="no column 'story'"):
        list(open_source([str(folder)], SourceConfig(field="story")).stories())


def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    """Would catch a description that can neither be printed nor stored."""
    name = tmp_path / "caf\udce9.txt"
    try:
        name.write_text("one\n")
    except OSError:
        pytest.skip("this file system takes no such names")
    for location in (str(name), str(tmp_path)):
        source = open_source([location])
        assert list(source.stories()) == ["one"]
        source.description.encode()
    assert "caf\\xe9.txt" in open_source([str(name)]).description
    name.write_text(" ")
    with pytest.raises(ValueError, match=r"caf\\xe9\.txt.*no stories, it is empty"):
        list(open_source([str(name)]).stories())
