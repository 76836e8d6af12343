"""How text is cut belongs to the run: validation, resumed runs and scores read it as the training text was read."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import asking
import pytest

from rhapsode.data import open_data, reading_settings
from rhapsode.files import cache_root
from rhapsode.run import Run
from rhapsode.sources import SourceConfig, open_source
from rhapsode.tokens import prepare
from rhapsode.training.start import TrainingRequest, begin, resume

STORIES = "".join(f"Story {i} has a line.\nAnd another one.\n\n" for i in range(40))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RHAPSODE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text(STORIES)
    return tmp_path


def asked(*data: str, **more: Any) -> TrainingRequest:
    return asking.asked(*(data or ("a.txt",)), budget={"sequences": 4}, vocab_size=300, **more)


def test_validation_is_cut_as_training_is(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch one story of validation that becomes four because it has no blank line, and silence about it."""
    (folder / "v.txt").write_text("One story.\nIt has four lines.\nThis is one.\nThe end.\n")
    ready = begin(asked(valid="v.txt"), folder / "run")
    assert (ready.train.num_stories, ready.valid.num_stories) == (40, 1)
    said = capsys.readouterr().err
    assert "a.txt: cut at blank lines (guessed; to change it: --cut)" in said
    assert "validation: v.txt: cut at blank lines, as the training text is" in said
    kept = ready.run.about["data"]["source"]
    assert kept == {"split": "paragraph", "separator": None, "field": None, "format": "auto"}
    shutil.rmtree(cache_root())
    assert resume(folder / "run").valid.fingerprint == ready.valid.fingerprint
    by_line = begin(asked(valid="v.txt", split="line"), folder / "line")
    assert (by_line.train.num_stories, by_line.valid.num_stories) == (80, 4)


def test_records_beside_text(folder: Path) -> None:
    """Would catch a guess for validation text that is not kept where the training data need none."""
    (folder / "t.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in STORIES.split("\n\n")))
    data = open_data(asked("t.jsonl", valid="a.txt").data, 0)
    assert reading_settings(data.about, "run") == SourceConfig(split="paragraph")
    assert data.valid.num_stories == 40


@pytest.mark.parametrize("place", [0, 2_500_000])
def test_a_separator_that_is_given_is_binding(folder: Path, place: int) -> None:
    """Would catch a separator that is dropped for blank lines because the first two megabytes lack it."""
    text = "One\n\nline.\n" * (place // 11 + 3)
    (folder / "s.txt").write_text(f"{text}##\n{text}")
    source = open_source(["s.txt"], SourceConfig(separator="##"))
    assert len(list(source.stories())) == 2
    assert source.description == "s.txt: cut at '##'"
    (folder / "dos.txt").write_bytes(b"one\r\n##\r\ntwo\r\n")
    assert list(open_source(["dos.txt"], SourceConfig(separator="\r\n##\r\n")).stories()) == ["one", "two"]


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"separator": "##"}, r"a.txt: the separator '##' does not occur in it; give the text that does stand between"),
        ({"separator": r"\n##\n"}, r"does not occur in it; .*in a shell, write a line end in it as \$'\\n'"),
        ({"split": "separator"}, r"'<\|endoftext\|>' does not occur in it; give the text between .* --separator"),
        ({"split": "line", "separator": "##"}, "--separator '##' and --cut line contradict each other"),
    ],
)
def test_a_separator_that_is_not_there(folder: Path, wish: dict[str, str], message: str) -> None:
    """Would catch hours of training on text that was cut in another way than was asked for."""
    with pytest.raises(ValueError, match=message) as caught:
        begin(asked(**wish), folder / "run")
    assert "\n" not in str(caught.value)
    assert not (folder / "run").exists()
    assert not (cache_root() / "tokens").exists()


def test_validation_without_the_run_s_separator(folder: Path) -> None:
    """Would catch one story of validation that is refused, or cut at its blank lines, because it has no separator."""
    (folder / "s.txt").write_text(STORIES.replace("\n\n", "\n<|endoftext|>\n"))
    (folder / "v.txt").write_text("One story.\n\nIts second half.\n")
    data = open_data(asked("s.txt", valid="v.txt").data, 0)
    assert (data.train.num_stories, data.valid.num_stories) == (40, 1)
    assert reading_settings(data.about, "run") == SourceConfig(split="separator", separator="<|endoftext|>")
    (folder / "h.txt").write_text("one ## two\n")
    assert list(open_source(["h.txt"], SourceConfig("separator"), like=SourceConfig("separator", "##")).stories()) == [
        "one",
        "two",
    ]
    like = open_source(["v.txt"], like=reading_settings(data.about, "run"))
    assert like.description.endswith("as the training text is (it does not occur: one story per file)")


def test_the_validation_split_of_a_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch a test split that is trained on, and stories of the training split that are scored as new."""
    (folder / "set").mkdir()
    (folder / "set" / "train.txt").write_text(STORIES)
    (folder / "set" / "valid.txt").write_text("New.\n\nAnd new.\n")
    (folder / "set" / "test.txt").write_text("Secret.\n")
    ready = begin(asked("set"), folder / "run")
    assert (ready.train.num_stories, ready.valid.num_stories) == (40, 2)
    said = capsys.readouterr().err
    assert "set (train.txt; left out: test.txt (test split), valid.txt (validation split)): cut at blank lines" in said
    assert "validation: set (valid.txt; left out: test.txt (test split), train.txt (train split)): cut" in said
    assert "(to use other data: --valid)" in said
    shutil.rmtree(cache_root())
    assert resume(folder / "run", asked("set/")).valid.num_stories == 2
    (folder / "v.txt").write_text("Other.\n")
    assert begin(asked("set", valid="v.txt"), folder / "other").valid.num_stories == 1
    (folder / "set" / "valid.txt").unlink()
    assert begin(asked("set"), folder / "third").valid.num_stories == 2  # 5% of 40


@pytest.mark.parametrize("cache", ["warm", "cold"])
@pytest.mark.parametrize("part", ["data", "valid"])
def test_changed_data_are_refused(folder: Path, cache: str, part: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch a run that goes on with the old text, without a word, as long as the cache has it."""
    (folder / "v.txt").write_text("Once.\n\nTwice.\n")
    begin(asked(valid="v.txt"), folder / "run")
    changed = folder / ("a.txt" if part == "data" else "v.txt")
    changed.write_text(changed.read_text() + "One more.\n")
    if cache == "cold":
        shutil.rmtree(cache_root())
    with pytest.raises(
        ValueError, match=r"run: the data have changed since the run was started \(.*\.txt: .*start a new run"
    ):
        resume(folder / "run")
    if cache == "warm":  # the stories that the run was judged by are there all the same, to be scored
        assert resume(folder / "run", as_begun=True).valid.num_stories == 2
        assert f"{changed}: has changed since; using the earlier version from the cache" in capsys.readouterr().err


def test_a_file_more_in_the_folder_is_a_change(folder: Path) -> None:
    """Would catch a check of those files only that were there."""
    (folder / "set").mkdir()
    shutil.copy("a.txt", "set/a.txt")
    begin(asked("set"), folder / "run")
    resume(folder / "run")
    (folder / "set" / "b.txt").write_text("One more.\n")
    with pytest.raises(ValueError, match="the data have changed since the run was started"):
        resume(folder / "run")


def test_data_that_only_look_changed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a run that is refused because its text was copied, and a text that is read whole at every resume."""
    begin(asked(), folder / "run")
    with monkeypatch.context() as patch:
        patch.setattr("rhapsode.data.open_source", lambda *_: pytest.fail("the file was read"))
        resume(folder / "run")
    os.utime("a.txt", ns=(1, 1))
    resume(folder / "run")


def test_data_that_are_gone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch a run that cannot go on although the cache has all its text, and one that does so silently."""
    begin(asked(), folder / "run")
    os.rename("a.txt", "b.txt")
    resume(folder / "run")
    assert "a.txt: no longer there; using the copy in the cache" in capsys.readouterr().err
    shutil.rmtree(cache_root())
    with pytest.raises(FileNotFoundError, match=r"a\.txt: no such file or folder"):
        resume(folder / "run")


def test_standard_input_is_not_waited_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a resumed run that reads, or waits for, a standard input that is another one by now."""
    with open("a.txt") as stream:
        monkeypatch.setattr("sys.stdin", stream)
        begin(asked("-"), folder / "run")
    monkeypatch.setattr("sys.stdin", None)
    resume(folder / "run", asked("-"))
    shutil.rmtree(cache_root())
    with pytest.raises(ValueError, match="run: was started on standard input, which is no longer in the cache"):
        resume(folder / "run")


def test_one_file_by_many_names(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch the same file called other data because it is spelt ./a.txt."""
    (folder / "v.txt").write_text("Once.\n\nTwice.\n")
    (folder / "c.toml").write_text("")
    begin(asked(valid="v.txt", config=Path("c.toml")), folder / "run")
    (folder / "sub").mkdir()
    monkeypatch.chdir(folder / "sub")
    same = asked("../sub/../a.txt", valid="../v.txt", config=Path("./../c.toml"))
    resume(folder / "run", same)
    resume(folder / "run", asked(str(folder / "a.txt")))
    for other in (asked("a.txt"), asked("../a.txt", valid="v.txt")):
        with pytest.raises(ValueError, match="a resumed run cannot change that"):
            resume(folder / "run", other)


def test_what_was_guessed_may_be_said(folder: Path) -> None:
    """Would catch --cut paragraph that is refused for a run whose text is cut at blank lines."""
    begin(asked(), folder / "run")
    resume(folder / "run", asked(split="paragraph"))
    with pytest.raises(ValueError, match="was started with split 'auto', not 'line'"):
        resume(folder / "run", asked(split="line"))


@pytest.mark.parametrize(
    ("description", "source", "settings"),
    [
        ("a.txt: cut at blank lines (guessed; --cut says otherwise)", {}, SourceConfig("paragraph", field="text")),
        ("a.txt: a story per line", {"split": "line"}, SourceConfig("line", field="text")),
        ("a.txt: cut at '##'", {"separator": "##"}, SourceConfig("separator", "##", "text")),
        ("a.jsonl", {"field": "story"}, SourceConfig(field="story")),
    ],
)
def test_runs_of_before(folder: Path, description: str, source: dict[str, str], settings: SourceConfig) -> None:
    """Would catch a run that cannot be opened because its run.json lacks what is kept since."""
    data = begin(asked(), folder / "run").run.about["data"]
    new = ("files_state", "source_fingerprint", "reading_version")
    old = {name: value for name, value in data.items() if name not in new} | {
        "description": description,
        "source": {"split": "auto", "separator": "<|endoftext|>", "field": "text"} | source,
    }
    request = {"split": "auto", "separator": "<|endoftext|>", "field": "text", "data": ["a.txt"]}
    run = Run.open(folder / "run")
    begun = {name: value for name, value in run.about["request"].items() if name != "format"} | request
    run.update(data=old, request=begun)
    assert reading_settings(Run.open(folder / "run").about["data"], "run") == settings
    assert resume(folder / "run", asked()).valid.num_stories == 2
    shutil.rmtree(cache_root())
    with pytest.raises(ValueError, match="run: its data were read by another version of rhapsode"):
        resume(folder / "run", asked())


def test_settings_that_are_damaged() -> None:
    for source in ({"splot": "line", "format": "auto"}, {"split": "chapter", "format": "auto"}):
        with pytest.raises(ValueError, match=r"^run: data\.source"):
            reading_settings({"source": source}, "run")


@pytest.mark.parametrize(
    ("name", "content", "split", "message"),
    [
        (
            "one.txt",
            "One story.",
            "auto",
            "give validation data with --valid, or, if it is one long text, --cut file",
        ),
        ("one.txt", "One story.", "file", "the text is too short to be cut in two: give validation data with --valid$"),
        ("one.jsonl", '{"text": "One story."}', "auto", "one story; give validation data with --valid$"),
    ],
)
def test_advice_does_not_go_in_a_circle(folder: Path, name: str, content: str, split: str, message: str) -> None:
    """Would catch the advice to use the option that was given, or one that does nothing for this file."""
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=rf"{name}.*: cannot hold out a share of one story; .*") as caught:
        begin(asked(name, split=split), folder / "run")
    assert re.search(message, str(caught.value))


def test_names_that_are_not_utf_8(folder: Path) -> None:
    """Would catch a run.json that cannot be written, or that leads to no file when the run goes on."""
    try:
        shutil.copy("a.txt", "caf\udce9.txt")
    except OSError:
        pytest.skip("this file system takes no such names")
    ready = begin(asked("caf\udce9.txt"), folder / "run")
    (folder / "run" / "run.json").read_text(encoding="utf-8")
    shutil.rmtree(cache_root())
    assert resume(folder / "run", asked("caf\udce9.txt")).train.fingerprint == ready.train.fingerprint


def test_a_store_is_made_anew_where_reading_changed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a cached store of stories as an older version read them."""
    tokenizer = begin(asked(), folder / "run").run.tokenizer
    first = prepare(open_source(["a.txt"]), tokenizer)
    monkeypatch.setattr("rhapsode.sources.source.READING_VERSION", 99)
    assert prepare(open_source(["a.txt"]), tokenizer).fingerprint != first.fingerprint
