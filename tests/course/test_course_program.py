"""The course's program: what it writes and prints, what it refuses in one line, and that a failure leaves no trace."""

import json
import os
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch

import rhapsode.course.program as program
from rhapsode.course import SentenceDataset, command, complete, main
from rhapsode.tokenizer import train_tokenizer

SIZES = ["--embed_dim", "4", "--hidden_dim", "6", "--dk", "3", "--dv", "2", "--num_sequences", "10"]
FILES = ("train_losses.txt", "val_losses.txt", "metrics.txt", "model.pt")
STORY = "Tom the cat saw a red hat. The hat sat on the mat, and Tom sat on the hat."


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with data of 12 sequences of 5 ids."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(program, "_last_run", {})
    torch.manual_seed(1)
    for name in ("train", "valid"):
        write(f"{name}.json", torch.randint(15, (12, 5)).tolist())
    return tmp_path


def write(name: str, content: Any) -> None:
    Path(name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def with_tokenizer(name: str = "my_tokenizer") -> None:
    train_tokenizer([STORY], "characters").save(Path(name))


def test_both_forms_of_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Flags and positions train the same; losses a line each, rounded; the last of them are the metrics."""
    written = []
    for argv in (
        ["train.json", "valid.json", *SIZES],
        [*SIZES, "train.json", "valid.json"],
        ["--val_data", "valid.json", *SIZES, "--train_data", "train.json"],
        ["train.json", *SIZES, "--val_data", "valid.json", "--metrics_out", "m.txt"],
    ):
        torch.manual_seed(2)
        assert command(argv) == 0
        written.append([Path(name).read_text() for name in FILES[:3]])
    assert written[0] == written[1] == written[2] == written[3]
    train_losses, valid_losses = (text.splitlines() for text in written[0][:2])
    assert len(train_losses) == len(valid_losses) == 10
    assert all(len(line.split(".")[1]) <= 6 for line in train_losses + valid_losses)
    assert written[0][2] == f"Final Train Loss: {train_losses[-1]}\nFinal Valid Loss: {valid_losses[-1]}\n"
    assert Path("m.txt").read_text() == written[0][2]
    assert sorted(path.name for path in folder.iterdir()) == sorted(["train.json", "valid.json", "m.txt", *FILES])
    out = capsys.readouterr().out
    for part in ("Device: cpu", "(lm_head): Linear(in_features=6, out_features=15", "Number of parameters: ",
                 "Batch: 9 | Sequence length: 5 | Elapsed time (minutes): ", "no text features", written[0][2],
                 "Time (seconds): "):  # fmt: skip
        assert part in out


def test_main_takes_any_object_and_complete_continues_its_model(folder: Path) -> None:
    with pytest.raises(ValueError, match="call main first"):
        complete("Tom")
    with_tokenizer()
    names = "train_data val_data train_losses_out val_losses_out metrics_out embed_dim hidden_dim dk dv"
    Arguments = namedtuple("Arguments", f"{names} num_sequences batch_size")
    main(Arguments("train.json", "valid.json", "a.txt", "b.txt", "c.txt", 4, 6, 3, 2, 10, 2))
    assert len(Path("a.txt").read_text().splitlines()) == 5
    text = complete("Tom the cat", num_tokens=8)
    assert text
    assert text == complete("Tom the cat", num_tokens=8)
    lm, tokenizer = program._last_run["lm"], program._last_run["tokenizer"]
    ids = lm.generate(torch.tensor([tokenizer.encode("Tom the cat", add_special_tokens=False)]), 8)
    assert text == tokenizer.decode(ids.tolist())
    assert isinstance(complete("😀 🎈", 5, temperature=0.9), str)
    assert complete("Tom", 0) == ""
    with pytest.raises(ValueError, match="at least one token"):
        complete("")


def test_complete_without_a_tokenizer_says_so(folder: Path) -> None:
    assert command(["train.json", "valid.json", *SIZES]) == 0
    with pytest.raises(ValueError, match="needs a tokenizer"):
        complete("Tom")


def test_the_vocabulary_comes_from_the_tokenizer_or_from_both_files(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An id that only the validation data have counts; my_tokenizer/ comes before --tokenizer."""
    write("valid.json", [[1, 70, 3]])
    assert command(["train.json", "valid.json", *SIZES]) == 0
    assert "Embedding(71, 4)" in capsys.readouterr().out
    with_tokenizer("elsewhere")
    size = len(json.loads(Path("elsewhere/tokenizer.json").read_text())["model"]["vocab"])
    write("train.json", [[1, 2, 3]])
    write("valid.json", [[1, 2, 3]])
    assert command(["train.json", "valid.json", *SIZES, "--tokenizer", "elsewhere"]) == 0
    assert f"Embedding({size}, 4)" in capsys.readouterr().out
    with_tokenizer()
    assert command(["train.json", "valid.json", *SIZES, "--tokenizer", "elsewhere"]) == 0
    assert "--tokenizer elsewhere was not read" in capsys.readouterr().err


def test_texts_are_tokenized(folder: Path) -> None:
    with_tokenizer()
    write("texts.json", [STORY, STORY[:20]])
    dataset = SentenceDataset("texts.json")
    assert len(dataset) == 2
    assert dataset[1].dtype == torch.int64
    assert dataset[1].ndim == 1
    assert len(dataset[0]) > len(dataset[1]) > 1
    assert command(["texts.json", "texts.json", *SIZES]) == 0


def test_a_dataset_may_be_ragged(folder: Path) -> None:
    write("ragged.json", [[1, 2, 3], [4]])
    dataset = SentenceDataset("ragged.json")
    assert [row.tolist() for row in dataset] == [[1, 2, 3], [4]]


def test_training_ends_with_the_data(folder: Path) -> None:
    """num_sequences spaces the reports all the same: batches of 5, 5 and 2 with one report."""
    assert command(["train.json", "valid.json", *SIZES[:-1], "1000", "--batch_size", "5"]) == 0
    assert len(Path("train_losses.txt").read_text().splitlines()) == 1


def test_a_batch_larger_than_the_file_is_one_short_batch(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All 12 sequences, once, whatever num_sequences is; the same losses as with a batch of just 12."""
    losses = []
    for batch_size, num_sequences in (("12", "12"), ("13", "10"), ("16", "12"), ("5000", "50000")):
        torch.manual_seed(3)
        argv = ["train.json", "valid.json", *SIZES[:-1], num_sequences, "--batch_size", batch_size]
        assert command(argv) == 0
        told = (
            f"batch_size is {int(batch_size):,}, but train.json has only 12 sequences: all of them form one short batch"
        )
        assert capsys.readouterr().err == ("" if batch_size == "12" else f"{told}\n")
        losses.append([Path(name).read_text() for name in FILES[:3]])
    assert losses[0][0].count("\n") == 1
    assert losses[1:] == losses[:1] * 3


def test_a_short_last_batch_is_trained_on(folder: Path) -> None:
    """12 sequences in batches of 5: three, reported each where num_sequences spaces them so."""
    assert command(["train.json", "valid.json", *SIZES[:-1], "15", "--batch_size", "5"]) == 0
    assert len(Path("train_losses.txt").read_text().splitlines()) == 3


def test_lengths_may_differ_from_batch_to_batch(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One length in each batch, which one sequence always has; else both sequences are named."""
    write("train.json", [[1, 2, 3], [4, 5, 6], [1, 2], [3, 4], [5, 6, 7, 8]])
    argv = ["train.json", "valid.json", *SIZES[:-1], "5"]
    for batch_size, lengths in (("1", [3, 3, 2, 2, 4]), ("2", [3, 2])):
        assert command([*argv, "--batch_size", batch_size]) == 0
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Batch: ")]
        assert [int(line.split("length: ")[1].split()[0]) for line in lines] == lengths
    message = "sequence 2 has 2 ids, sequence 0 of the same batch 3; lengths that differ need --batch_size 1"
    refused([*argv, "--batch_size", "3"], f"rnn.py: train.json: {message}", capsys)


ODD: list[Any] = [[], [7], [1, 2, 3], [1, -2, 3, 4, 5], [1, 2.5], "a text", None, 3, [1, 10**30], {"a": 1}]


def test_what_is_never_read_is_no_reason_to_refuse(folder: Path) -> None:
    """Sequences beyond num_sequences, and those of the validation file behind its first batch; alike the losses."""
    losses = []
    for odd in ([], ODD):
        for name in ("train", "valid"):
            torch.manual_seed(1)
            write(f"{name}.json", torch.randint(15, (12, 5)).tolist() + odd)
        torch.manual_seed(3)
        assert command(["train.json", "valid.json", *SIZES[:-1], "12", "--batch_size", "2"]) == 0
        losses.append([Path(name).read_text() for name in FILES[:3]])
    assert losses[0] == losses[1]
    dataset = SentenceDataset("train.json")
    assert len(dataset) == len(dataset.data) == 12 + len(ODD)
    assert torch.equal(dataset.data[3], dataset[3])
    with pytest.raises(ValueError, match=r"train\.json: sequence 15, position 1: not a token id: -2"):
        dataset[15]
    with pytest.raises(ValueError, match=r"train\.json: sequence 21 must be a list of token ids, got"):
        dataset[-1]


def test_sizes_may_be_floats_of_whole_numbers(folder: Path) -> None:
    """From a notebook's arithmetic, 50_000 / 5."""
    names = "train_data val_data train_losses_out val_losses_out metrics_out embed_dim hidden_dim dk dv"
    Arguments = namedtuple("Arguments", f"{names} num_sequences batch_size")
    arguments = Arguments("train.json", "valid.json", "a.txt", "b.txt", "c.txt", 4.0, 6, 3, 2, 10 / 1, 2.0)
    main(arguments)
    assert len(Path("a.txt").read_text().splitlines()) == 5
    with pytest.raises(ValueError, match=r"num_sequences must be a whole number, got 2\.5"):
        main(arguments._replace(num_sequences=2.5))


BAD_DATA = {
    "missing": (None, "train.json: no such file"),
    "not json": ("{1, 2", "train.json: not JSON"),
    "empty file": ("", "train.json: not JSON"),
    "binary": ("\x00\x01", "train.json: not JSON"),
    "deep": ("[" * 100_000, "train.json: not JSON"),
    "an object": ({"a": 1}, "train.json: must hold a JSON list of sequences"),
    "no sequence": ([], "train.json: must hold a JSON list of sequences"),
    "flat": ([1, 2], "train.json: sequence 0 must be a list of token ids, got 1"),
    "mixed": ([[1, 2], "a"], 'train.json: sequence 1 must be a list of token ids, got "a"'),
    "empty sequence": ([[1, 2], []], "train.json: sequence 1 has no ids"),
    "one id": ([[1], [2]], "train.json: sequence 0 has one id, so there is nothing to predict"),
    "negative": ([[1, 2], [1, -2]], "train.json: sequence 1, position 1: not a token id: -2"),
    "float": ([[1, 2.5]], "train.json: sequence 0, position 1: not a token id: 2.5"),
    "bool": ([[True, 2]], "train.json: sequence 0, position 0: not a token id: true"),
    "null": ([[1, None]], "train.json: sequence 0, position 1: not a token id: null"),
    "huge": ([[1, 10**30]], "train.json: sequence 0, position 1: not a token id: 1000"),
    "texts": (["a story"], "train.json: holds texts, and there is no tokenizer; name its folder with --tokenizer"),
}


def refused(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, one line with the message on stderr, nothing of training on stdout, no file touched."""
    kept = {name: f"what an earlier run left in {name}" for name in FILES}
    for name, text in kept.items():
        write(name, text)
    before = sorted(os.listdir())
    try:
        code = command(argv)
    except SystemExit as stop:  # argparse
        code = stop.code
    captured = capsys.readouterr()
    assert code == 2
    assert captured.err.startswith("rnn.py: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert sorted(os.listdir()) == before
    for name, text in kept.items():
        assert Path(name).read_text() == text


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_is_refused(case: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, message = BAD_DATA[case]
    Path("train.json").unlink()
    if content is not None:
        write("train.json", content)
    refused(["train.json", "valid.json", *SIZES], message, capsys)


def test_bad_validation_data_name_their_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write("valid.json", [[1, 2, 3], [1, 2]])
    argv = ["train.json", "valid.json", *SIZES, "--batch_size", "2"]
    refused(argv, "valid.json: sequence 1 has 2 ids, sequence 0 of the same batch 3", capsys)


def test_an_id_outside_the_vocabulary_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_tokenizer()
    write("train.json", [[1, 2, 3], [1, 2, 4000]])
    refused(["train.json", "valid.json", *SIZES], "train.json: sequence 1, position 2: id 4000 is outside", capsys)


def test_texts_in_batches_need_equal_lengths(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_tokenizer()
    write("texts.json", [STORY, STORY[:9]])
    argv = ["texts.json", "texts.json", *SIZES, "--batch_size", "2"]
    refused(argv, "lengths that differ need --batch_size 1", capsys)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--embed_dim", "0"], "embed_dim must be at least 1, got 0"),
        (["--dk", "-3"], "dk must be at least 1, got -3"),
        (["--num_sequences", "0"], "num_sequences must be at least 1, got 0"),
        (["--batch_size", "0"], "batch_size must be at least 1, got 0"),
        (["--batch_size", "11"], "batch_size is 11, but num_sequences only 10"),
        (["--hidden_dim", "six"], "invalid int value: 'six'"),
        (["--no_such_flag"], "unrecognized arguments: --no_such_flag"),
        (["third.json"], "unexpected argument third.json"),
        (["--train_losses_out", "nowhere/a.txt"], "train_losses_out: nowhere/a.txt cannot be written: No such file"),
        (["--val_losses_out", "train.json/a.txt"], "val_losses_out: train.json/a.txt cannot be written: Not a dir"),
        (["--metrics_out", "."], "metrics_out: . is a directory"),
        (["--metrics_out", "train_losses.txt"], "metrics_out: train_losses.txt is also the file of train_losses_out"),
        (["--metrics_out", "model.pt"], "model.pt: model.pt is also the file of metrics_out"),
        (["--model_path", "m.pt"], "unrecognized arguments: --model_path m.pt"),
        (["--metrics_out", "./train.json"], "metrics_out: train.json is also the file of train_data"),
        (["--tokenizer", "nowhere"], "nowhere: no such file; a tokenizer is a folder"),
    ],
)
def test_bad_arguments_are_refused(
    extra: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before training, not after it."""
    refused(["train.json", "valid.json", *SIZES, *extra], message, capsys)


def test_data_files_must_be_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(SIZES, "--train_data is missing", capsys)
    refused(["train.json", *SIZES], "--val_data is missing", capsys)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (KeyboardInterrupt(), 130, "rnn.py: stopped; no file was written"),
        (OSError(28, "No space left on device"), 2, "rnn.py: [Errno 28] No space left on device"),
    ],
)
@pytest.mark.parametrize("where", ["train", "save"])
def test_a_run_that_fails_late_leaves_the_files_of_the_run_before(
    where: str,
    error: BaseException,
    code: int,
    line: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Ctrl-C in training, a full disk after the first file: nothing half written, no temporary file left."""
    assert command(["train.json", "valid.json", *SIZES]) == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fails(*_: Any, **__: Any) -> None:
        raise error

    if where == "train":
        monkeypatch.setattr(program, "train", fails)
    else:
        monkeypatch.setattr(Path, "write_text", fails)
    capsys.readouterr()
    assert command(["train.json", "valid.json", *SIZES]) == code
    err = capsys.readouterr().err
    if where == "save" and code == 2:  # told by the file's name
        line = f"rnn.py: {folder / FILES[0]}: No space left on device; make room, then try again"
    assert err == f"{line}\n"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.skipif(not os.path.exists("/dev/null"), reason="needs /dev/null")
def test_a_device_is_written_to_not_replaced(folder: Path) -> None:
    argv = ["train.json", "valid.json", *SIZES, "--train_losses_out", "/dev/null", "--val_losses_out", "/dev/null"]
    assert command(argv) == 0
    assert Path("/dev/null").is_char_device()


def test_a_link_is_followed(folder: Path) -> None:
    Path("results").mkdir()
    Path("metrics.txt").symlink_to("results/m.txt")
    assert command(["train.json", "valid.json", *SIZES]) == 0
    assert Path("metrics.txt").is_symlink()
    assert Path("results/m.txt").read_text().startswith("Final Train Loss")


def test_the_published_run(shared: Path, folder: Path) -> None:
    """Every line of both loss files and both metrics agrees with the course's to 4 decimals."""
    data = shared / "data" / "course"
    Path("my_tokenizer").symlink_to(data / "my_tokenizer")
    torch.manual_seed(10601)
    argv = [str(data / "tiny_train_stories.json"), str(data / "tiny_valid_stories.json")]
    sizes = ["--embed_dim", "64", "--hidden_dim", "128", "--dk", "32", "--dv", "32", "--num_sequences", "128"]
    assert command([*argv, *sizes, "--batch_size", "1"]) == 0
    for name in FILES[:3]:
        ours, theirs = (
            [line.rpartition(" ") for line in (at / name).read_text().splitlines()] for at in (folder, data)
        )
        assert [label for label, _, _ in ours] == [label for label, _, _ in theirs]
        for (_, _, a), (_, _, b) in zip(ours, theirs, strict=True):
            assert float(a) == pytest.approx(float(b), abs=3e-4)
    assert program._last_run["lm"].embeddings.weight.shape == (1024, 64)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_bar_on_the_terminal_leaves_stdout_alone(folder: Path) -> None:
    """stderr is a terminal and stdout a file: the reports go to the file, the bar to the terminal."""
    import pty
    import subprocess

    write("train.json", torch.randint(50, (40, 30)).tolist())
    terminal, end = pty.openpty()
    rnn = Path(__file__).parents[2] / "rnn.py"
    with open("out.txt", "w") as out:
        process = subprocess.Popen(
            [sys.executable, str(rnn), "train.json", "valid.json", *SIZES[:-1], "40"],
            stdout=out, stderr=end, env={**os.environ, "TERM": "xterm-256color"},
        )  # fmt: skip
    os.close(end)
    shown = b""
    try:
        while piece := os.read(terminal, 4096):
            shown += piece
    except OSError:  # the other end is closed
        pass
    assert process.wait() == 0
    assert b"training" in shown
    assert b"Batch: " not in shown
    text = Path("out.txt").read_text()
    assert text.count("Batch: ") == 10
    assert "\x1b" not in text
