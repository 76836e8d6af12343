"""Autumn 2025: `rnn.py train`, `rnn.py generate`, `complete(lm, tokenizer, prefix)`, and the text that is printed."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from programs import python, rnn

from rhapsode.course import (
    CourseTokenizer,
    RNNLanguageModel,
    command,
    complete,
    generate,
    load_course_model,
    train_mod,
)
from rhapsode.tokenizer import train_tokenizer

SIZES = {"embed_dim": 4, "hidden_dim": 6, "dk": 3, "dv": 2, "num_sequences": 10, "batch_size": 2}
FLAGS = [word for name, size in SIZES.items() for word in (f"--{name}", str(size))]
OUTPUTS = {"train_losses_out": "a.txt", "val_losses_out": "b.txt", "metrics_out": "c.txt"}
STORY = "Tom the cat saw a red hat. The hat sat on the mat, and Tom sat on the hat."


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a tokenizer and data of 12 sequences of 5 ids."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(1)
    train_tokenizer([STORY], "characters").save(Path("my_tokenizer"))
    for name in ("train", "valid"):
        Path(f"{name}.json").write_text(json.dumps(torch.randint(15, (12, 5)).tolist()))
    return tmp_path


def test_the_reference_run(reference: tuple[Path, str], shared: Path) -> None:
    """Every line of both files beside the published ones; what the command prints; no file but those that it names."""
    folder, printed = reference
    for ours, theirs in (("t.txt", "train_losses.txt"), ("v.txt", "val_losses.txt")):
        a, b = (
            [float(line) for line in file.read_text().splitlines()]
            for file in (folder / ours, shared / "data" / "course" / theirs)
        )
        assert a == pytest.approx(b, abs=1e-4)
    metrics = (folder / "m.txt").read_text()
    last = [float(line.split(": ")[1]) for line in metrics.splitlines()]
    assert last == pytest.approx([4.727923, 4.919512], abs=1e-4)
    assert sorted(path.name for path in folder.iterdir()) == ["kept.pt", "m.txt", "my_tokenizer", "t.txt", "v.txt"]
    for part in ("Device: ", "Embedding(1024, 64)", "Number of parameters: ", metrics, "Time (seconds): "):
        assert part in printed
    lines = [line for line in printed.splitlines() if line.startswith("Batch: ")]
    assert [line.split(" | ")[:2] for line in lines] == [
        [f"Batch: {index}", "Sequence length: 128"] for index in range(0, 128, 12)
    ]


# The course's program as the handout describes it, with nothing of ours but the weights: one text for each temperature.
BY_THE_HANDOUT = """
import math, torch
from transformers import AutoTokenizer
w = torch.load("weights.pt")
tokenizer = AutoTokenizer.from_pretrained("my_tokenizer")
linear = lambda name, x: x @ w[name + ".weight"].T + w[name + ".bias"]
ids = tokenizer.encode(PREFIX, add_special_tokens=False)
for temperature in TEMPERATURES:
    torch.manual_seed(10601)
    h, y, new = torch.zeros(w["rnn.out.weight"].shape[0]), [], []
    for position in range(len(ids) + 39):
        token = (ids + new)[position]
        h = torch.relu(linear("rnn.cell.i2h", w["embeddings.weight"][token]) + linear("rnn.cell.h2h", h))
        y.append(linear("rnn.out", h))
        if position >= len(ids) - 1:
            q, k, v = (linear(f"attention.{name}_transform", torch.stack(y)) for name in ("query", "key", "value"))
            scores = torch.softmax(k @ q[-1] / math.sqrt(len(q[-1])), 0)
            logits = linear("lm_head", linear("attention.output_transform", scores @ v))
            probabilities = torch.softmax(logits / (temperature or 1), 0)
            new.append(int(torch.multinomial(probabilities, 1) if temperature else logits.argmax()))
    print("Prefix: ", PREFIX)
    print("Completion: ", tokenizer.decode(new))
"""


def test_generate_prints_what_the_courses_own_program_prints(reference: tuple[Path, str]) -> None:
    """A number drawn before the first token, another seed, a special token left out, or a space not cleaned up."""
    pytest.importorskip("transformers")
    folder, _ = reference
    lm = load_course_model(folder / "kept.pt")
    torch.save(lm.state_dict(), folder / "weights.pt")
    prefix, temperatures = "Once upon a time , there was", (0.0, 0.3, 0.8, 1.7)
    expected = python(f"PREFIX, TEMPERATURES = {prefix!r}, {temperatures}\n{BY_THE_HANDOUT}", folder)
    (folder / "weights.pt").unlink()
    texts = [f"Prefix: {text}" for text in expected.split("Prefix: ")[1:]]
    assert len(set(texts)) == 4
    for temperature, text in zip(temperatures, texts, strict=True):
        flags = ["--prefix", prefix, "--num_tokens", "40.0", "--temperature", str(temperature)]
        if temperature in (0.0, 0.8):
            done = rnn(["generate", "--model_path", "kept.pt", *flags], folder)
            assert (done.stdout, done.stderr, done.returncode) == (text, "", 0)
        tokenizer = CourseTokenizer(folder / "my_tokenizer")
        torch.manual_seed(10601)
        completion = complete(lm, tokenizer, prefix, 40.0, temperature)
        assert text == f"Prefix:  {prefix}\nCompletion:  {completion}\n"


def test_the_model_is_written_where_the_flag_says_and_nowhere_else(folder: Path) -> None:
    argv = ["train", "--train_data", "train.json", "--val_data", "valid.json", *FLAGS]
    before = {path.name for path in folder.iterdir()}
    losses = {"train_losses.txt", "val_losses.txt", "metrics.txt"}
    assert command(argv) == 0
    assert {path.name for path in folder.iterdir()} == before | losses
    assert command([*argv, "--model_path", "deep.pt"]) == 0
    assert {path.name for path in folder.iterdir()} == before | losses | {"deep.pt"}
    assert type(torch.load("deep.pt")) is RNNLanguageModel


def test_the_functions_take_any_object(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """train_mod and generate, called from a test with attributes and no command line."""
    named = {"train_data": "train.json", "val_data": "valid.json", **OUTPUTS, **SIZES}
    train_mod(SimpleNamespace(**named))
    assert not Path("model.pt").exists()
    train_mod(SimpleNamespace(**named, model_path="m.pt"))
    capsys.readouterr()
    generate(SimpleNamespace(model_path="m.pt", prefix="Tom", temperature=0.0, num_tokens=7.0))
    lm = torch.load("m.pt")
    tokenizer = train_tokenizer([STORY], "characters")
    assert capsys.readouterr().out == f"Prefix:  Tom\nCompletion:  {complete(lm, tokenizer, 'Tom', 7)}\n"


def test_a_data_file_may_be_called_train(folder: Path) -> None:
    """Then `rnn.py train valid` is the first form, which writes model.pt; flags behind `train` are the second."""
    Path("train.json").rename("train")
    Path("valid.json").rename("generate")
    assert command(["train", "generate", *FLAGS]) == 0
    assert Path("model.pt").exists()
    Path("model.pt").unlink()
    assert command(["train", "--train_data", "train", "--val_data", "generate", *FLAGS]) == 0
    assert not Path("model.pt").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train"], "rnn.py train: --train_data is missing"),
        (["train", "--train_data", "nowhere.json", "--val_data", "valid.json"], "rnn.py: nowhere.json: no such file"),
        (["train", "train.json", "valid.json", "--model_path", "."], "rnn.py: model_path: . is a directory"),
        (["train", "train.json", "valid.json", "--model_path", "no/m.pt"], "model_path: no/m.pt cannot be written"),
        (["train", "train.json", "valid.json", "--model_path", "metrics.txt"], "is also the file of metrics_out"),
        (["train", "train.json", "valid.json", "--model_path", "train.json"], "is also the file of train_data"),
        (["generate"], "the following arguments are required: --model_path, --prefix"),
        (["generate", "--model_path", "m.pt"], "the following arguments are required: --prefix"),
        (["generate", "--model_path", "no.pt", "--prefix", "Tom"], "rnn.py: no.pt: no such file"),
        (["generate", "--model_path", "train.json", "--prefix", "Tom"], "train.json: not a model.pt"),
        (["generate", "--model_path", "m.pt", "--prefix", ""], "the prefix must hold at least one token"),
        (["generate", "--model_path", "m.pt", "--prefix", "\udcff"], "the prefix is not text"),
        (["generate", "--model_path", "m.pt", "--prefix", "T", "--temperature", "-1"], "temperature must be >= 0"),
        (["generate", "--model_path", "m.pt", "--prefix", "T", "--temperature", "nan"], "temperature must be >= 0"),
        (["generate", "--model_path", "m.pt", "--prefix", "T", "--temperature", "1e-45"], "no token at temperature"),
        (["generate", "--model_path", "m.pt", "--prefix", "T", "--num_tokens", "1.5"], "must be a whole number, got 1"),
        (["generate", "--model_path", "m.pt", "--prefix", "T", "--num_tokens", "inf"], "must be a whole number, got i"),
        (
            ["generate", "--model_path", "m.pt", "--prefix", "T", "--num_tokens", "-3"],
            "num_tokens must be >= 0, got -3",
        ),
        (["generate", "--model_path", "small.pt", "--prefix", "Tom"], "it belongs to another model"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    argv: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(RNNLanguageModel(4, 6, 40, 3, 2), "m.pt")
    torch.save(RNNLanguageModel(4, 6, 5, 3, 2), "small.pt")
    before = sorted(path.name for path in folder.iterdir())
    try:
        code = command(argv)
    except SystemExit as stop:  # argparse
        code = stop.code
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.startswith("rnn.py")
    assert captured.err.count("\n") == 1
    assert sorted(path.name for path in folder.iterdir()) == before


def test_generate_without_a_tokenizer_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(RNNLanguageModel(4, 6, 40, 3, 2), "m.pt")
    Path("my_tokenizer").rename("elsewhere")
    argv = ["generate", "--model_path", "m.pt", "--prefix", "Tom"]
    assert command(argv) == 2
    assert "needs a tokenizer" in capsys.readouterr().err
    assert command([*argv, "--tokenizer", "elsewhere"]) == 0
