"""The command line as its user meets it: in a process of its own."""

import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rhapsode import api as rhapsode_api
from rhapsode import cli
from rhapsode.course import RNNLanguageModel
from rhapsode.recipe.presets import PACE
from rhapsode.run import Run
from rhapsode.terminal import literal
from rhapsode.tokenizer import train_tokenizer


def rhapsode(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "rhapsode", *arguments], capture_output=True, text=True, check=False)


def test_help_imports_no_torch() -> None:
    """`--help` must answer at once; torch alone takes longer than that."""
    code = "import sys, rhapsode.cli; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_prepare_does_not_wait_for_torch(small: Any, tmp_path: Path) -> None:
    """Would catch an import that takes longer than a small text: preparing needs no PyTorch."""
    run = "import sys; from rhapsode.cli import app; app(sys.argv[1:], standalone_mode=False)"
    words = ["prepare", str(small.file), "--out", str(tmp_path / "store"), "--workers", "2", "--vocab-size", "300"]
    subprocess.run([sys.executable, "-c", f"{run}; sys.exit('torch' in sys.modules)", *words], check=True)
    assert (tmp_path / "store" / "shards.json").is_file()


def test_bad_numbers_give_one_line_and_exit_code_2() -> None:
    result = rhapsode("explain", "convolution", "--image", "1 2 / 3")
    assert result.returncode == 2
    assert result.stdout == ""
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--minutez", "3"], "rhapsode train: No such option: --minutez"),
        (["train", "--minutes", "soon"], "rhapsode train: Invalid value for '--minutes'"),
        (["generate"], "rhapsode generate: Missing argument"),
        (["sing"], "rhapsode: No such command 'sing'"),
        (["study", "--loud"], "rhapsode study: No such option: --loud"),
    ],
)
def test_a_mistake_in_the_options_is_one_line(arguments: list[str], message: str, call: "Call") -> None:
    result = call(*arguments)
    assert (result.code, result.out) == (2, "")
    [line] = result.err.splitlines()
    assert line.startswith(message)
    assert line.endswith(" --help")


def test_asked_for_nothing_it_helps(call: "Call") -> None:
    nothing = call()
    assert (nothing.code, nothing.err) == (2, "")
    assert "Usage: rhapsode [OPTIONS] COMMAND" in nothing.out
    assert call("--help").code == 0


def test_ctrl_c_is_told_and_is_no_success(call: "Call", monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rhapsode.storyworld.sample_batch", interrupted)
    result = call("corpus")
    assert (result.code, result.out, result.err) == (130, "", "rhapsode: stopped\n")


def test_corpus_prints_the_stories_of_a_seed() -> None:
    from rhapsode import storyworld

    result = rhapsode("corpus", "2", "--seed", "5")
    assert result.stdout == "\n\n".join([*storyworld.sample_batch(5, 2), ""])
    assert result.returncode == 0


def test_corpus_is_not_kept_in_memory(call: "Call", monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a million stories that are all made before the first is printed: a gigabyte for `head` to cut off."""
    asked = []

    def made(start: int, count: int, split: str) -> list[str]:
        asked.append((start, count))
        return ["x"] * min(count, 2)

    monkeypatch.setattr("rhapsode.storyworld.sample_batch", made)
    assert call("corpus", "1000000", "--seed", "7").code == 0
    assert sum(count for _, count in asked) == 1_000_000
    assert max(count for _, count in asked) <= 10_000
    assert asked[0][0] == 7


@pytest.mark.slow
def test_story_trains_and_writes(tmp_path: Path) -> None:
    """Ten seconds must bring the loss far below that of an untrained model (3.2 bits per byte at 1,024 pieces)."""
    result = rhapsode("story", "--minutes", "0.17", "--out", str(tmp_path / "run"))
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert 0.09 < lines[-1]["bits_per_byte"] < 2.9
    assert "the floor is 0.093" in result.stderr
    assert len(result.stdout.strip().split("\n\n")) >= 2


def test_the_reference_in_docs_has_not_drifted() -> None:
    """Change an option and run `make docs`; this fails until docs/cli.md says the same."""
    command = [sys.executable, "-m", "typer", "rhapsode.cli", "utils", "docs", "--name", "rhapsode"]
    generated = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    written = Path(__file__).resolve().parents[1] / "docs" / "cli.md"
    assert written.read_text(encoding="utf-8").strip() == generated.strip()


# Training, writing and scoring, called in this process: main() as the console script calls it.

Call = Callable[..., SimpleNamespace]
TINY = [
    *(f"--set={field}=8" for field in ("embed_dim", "hidden_dim", "key_dim", "value_dim", "window")),
    "--set=num_layers=1",
    "--set=attention=all",
    "--set=pair_embeddings=50",
    "--set=batch_size=4",
    "--set=validations=2",
    "--vocab-size=300",
]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """Calls the command line in a folder of its own; gives exit code, stdout and stderr."""
    monkeypatch.setenv("RHAPSODE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", ["rhapsode", *arguments])
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        out, err = capfd.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, small: Any) -> Path:
    """A run directory, as `rhapsode train` makes it."""
    folder = tmp_path_factory.mktemp("trained")
    command = ["train", str(small.file), "--out", str(folder / "run"), "--sequences", "40", *TINY, "--threads", "1"]
    environment = {**os.environ, "RHAPSODE_CACHE": str(folder / "cache")}
    result = subprocess.run(
        [sys.executable, "-m", "rhapsode", *command], capture_output=True, text=True, env=environment, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{folder / 'run'}\n"
    return folder / "run"


def test_train_tells_what_it_does(call: Call, small: Any) -> None:
    """Would catch a model without a directory that can be found again, and talk on stdout."""
    result = call("train", str(small.file), "--sequences", "40", *TINY)
    assert result.code == 0, result.err
    path = Path(result.out.strip())
    assert path.parent == Path("runs")
    lines = result.err.splitlines()
    assert lines[0] == lines[-1] == f"run directory: {path}"
    assert "held out for validation: 5 stories" in result.err
    assert "step 10 of 10: train " in result.err
    names = {file.name for file in path.iterdir()}
    assert names == {
        *("run.json", "tokenizer", "last.safetensors", "best.safetensors", "metrics.jsonl", "log.txt", ".lock")
    }
    second = call("train", str(small.file), "--sequences", "40", *TINY)
    assert Path(second.out.strip()).name != path.name


def test_explain_preset_tells_and_does_nothing(call: Call, small: Any) -> None:
    """Would catch a reason that is told for another value than the one that training takes, and a run that begins."""
    arguments = [str(small.file), "--vocab-size", "300", "--set", "hidden_dim=8"]
    result = call("train", *arguments, "--explain-preset")
    assert result.code == 0, result.err
    assert not Path("runs").exists()
    lines = result.out.splitlines()
    read = f"{0.75 * 600 * PACE['coffee'] * min(1, torch.get_num_threads() / 2):,.0f}"
    assert re.match(rf"[\d,]+ training tokens; coffee would process {read}, which is [\d,.]+ epochs$", lines[0])
    assert "hidden_dim 8: your choice" in lines
    assert "key_dim 64: as in coffee" in lines
    assert any(
        re.match(r"learning_rate 0.003: 0.02 times \(3 / epochs\)\^2.5, at least 0.003; [\d,.]+ epochs at the ", line)
        for line in lines
    )
    assert "vocab_size 300: your choice" in lines
    told = dict(line.partition(":")[0].split(" ") for line in lines[1:])
    begun = call("train", *arguments, "--set", "validations=1", "--epochs", "0.01")
    about = Run.open(Path(begun.out.strip())).about
    assert float(told["epochs"]) == 20
    assert told["dropout"] == "0.3"
    for section, field in (("model", "pair_embeddings"), ("batch", "window"), ("batch", "batch_size")):
        assert told[field] == str(about[section][field])


def test_second_run_over_the_first(call: Call, trained: Path, small: Any) -> None:
    """Would catch hours of training that a repeated command wipes out."""
    before = {file.name: file.read_bytes() for file in trained.iterdir() if file.is_file()}
    result = call("train", str(small.file), "--out", str(trained), "--sequences", "40", *TINY)
    assert_refused(result, "holds a run: resume it with --resume, or")
    assert {file.name: file.read_bytes() for file in trained.iterdir() if file.is_file()} == before


def assert_refused(result: SimpleNamespace, message: str) -> None:
    """Exit code 2, nothing on stdout, and the last line of stderr says what is wrong, without a traceback."""
    assert result.code == 2, result.err
    assert result.out == ""
    assert re.search(message, result.err.splitlines()[-1]), result.err
    assert result.err.splitlines()[-1].startswith("rhapsode: ")
    assert "Traceback" not in result.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.txt"], r"missing\.txt: no such file or folder"),
        (["empty.txt"], r"empty\.txt: empty, there is nothing to read"),
        (["blank.txt"], "no stories, it is empty"),
        (["folder"], "folder: no file in it ends in one of"),
        (["good.txt", "--preset", "tea"], "--preset must be one of minute, coffee, got 'tea'"),
        (["good.txt", "--set", "lr=3"], "unknown field 'lr'"),
        (["good.txt", "--set", "learning_rate"], "not of the form field=value"),
        (["good.txt", "--config", "none.toml"], r"none\.toml"),
        (["good.txt", "--config", "good.txt"], r"good\.txt: not TOML"),
        (["good.txt", "--minutes", "1", "--tokens", "5"], "got --minutes and --tokens"),
        (["good.txt", "--tokens", "0"], "exactly one of"),
        (["good.txt", "--minutes", "nan"], "minutes must be >= 0, got nan"),
        (["good.txt", "--seed", "-1", "--tokens", "5"], r"seed must be from 0 to 2\^64 - 1, got -1"),
        (["good.txt", "--explain-preset", "--set", "batch_size=0"], "batch_size must be >= 1, got 0"),
        (["good.txt", "--explain-preset", "--set", "window=0"], "window must be >= 1, got 0"),
        (["good.txt", "--explain-preset", "--minutes", "nan"], "minutes must be >= 0, got nan"),
        (["good.txt", "--explain-preset", "--set", "dropout=2"], "dropout must be"),
        (["good.txt", "--device", "tpu"], "--device must be one of auto, cpu, cuda, mps, got 'tpu'"),
        (["good.txt", "--tokenizer", "none"], "none"),
        (["good.txt", "--vocab-size", "5"], "vocab_size must be >= 258"),
        (["good.txt", "--cut", "chapter"], "cut must be one of"),
        (["good.txt", "--valid", "none.txt"], r"none\.txt: no such file"),
        (["good.txt", "--separator", "##"], "the separator '##' does not occur in it"),
        (["good.txt", "--format", "xml"], "format must be one of auto, text, jsonl"),
        (["good.txt", "--vocab-size", "300", "--out", "good.txt"], r"good\.txt already exists"),
        (["good.txt", "--vocab-size", "300", "--out", "good.txt/run"], r"good\.txt/run: .*directory"),
        (
            ["good.txt", "--vocab-size", "300", "--set", "batch_size=32"],
            r"needs 512 tokens, the data have .* would fit",
        ),
        (["good.txt", "--resume"], "--resume needs --out DIR"),
        (["--resume", "--out", "no/such"], "no/such: no such directory"),
        (["--resume", "--out", "folder"], r"folder: no run\.json in it"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_train_refuses_in_one_line(call: Call, tmp_path: Path, arguments: list[str], message: str) -> None:
    """Would catch a traceback, a half-made directory, and a good message in place of the right one."""
    (tmp_path / "good.txt").write_text("One story is here.\n\nAnd another one.\n\nAnd a third.\n")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "blank.txt").write_text("\n\n  \n")
    (tmp_path / "folder").mkdir()
    before = sorted(path for path in tmp_path.rglob("*") if "cache" not in path.parts)
    result = call("train", *arguments)
    assert_refused(result, message)
    assert sorted(path for path in tmp_path.rglob("*") if "cache" not in path.parts) == before


def test_data_from_standard_input(call: Call, small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch standard input that is read twice, and a resumed run that waits for it."""
    with small.file.open() as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        result = call("train", "-", "--out", "run", "--sequences=8", *TINY)
    assert result.code == 0, result.err
    assert "standard input" in result.err
    monkeypatch.setattr(sys, "stdin", None)
    assert call("train", "-", "--out", "run", "--sequences=8", *TINY, "--resume").code == 0


def test_generate(call: Call, trained: Path) -> None:
    """Would catch a prompt that is left out, talk on stdout, and another text for the same seed."""
    greedy = call("generate", str(trained), "Once upon", "--temperature", "0", "--max-tokens", "12")
    assert greedy.code == 0, greedy.err
    assert greedy.out.startswith("Once upon")
    assert greedy.err == ""
    assert greedy.out == call("generate", str(trained), "Once upon", "--temperature=0", "--max-tokens=12").out
    first = call("generate", str(trained), "Once", "--seed", "4", "--max-tokens", "12")
    two = call("generate", str(trained), "Once", "--seed", "3", "--max-tokens", "12", "--samples", "2")
    assert two.out.endswith(first.out)
    emoji = call("generate", str(trained), "🎉 Hé! ☂", "--max-tokens", "3")
    assert emoji.out.startswith("🎉 Hé! ☂")
    assert call("generate", str(trained), "--max-tokens", "3").code == 0


def test_a_prompt_from_standard_input(call: Call, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch the line end that `echo` adds, after which a model writes another story than after the words."""
    greedy = ("--temperature", "0", "--max-tokens", "12")
    expected = call("generate", str(trained), "Once upon", *greedy).out
    for given, prompt in ((b"Once upon\n", "Once upon"), (b"Once upon\r\n", "Once upon"), (b"Once upon", "Once upon")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given), encoding="utf-8"))
        assert call("generate", str(trained), "-", *greedy).out == expected, prompt
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Once\n\n"), encoding="utf-8"))
    assert json.loads(call("generate", str(trained), "-", *greedy, "--json").out)["prompt"] == "Once\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Once \xff"), encoding="utf-8"))
    assert_refused(call("generate", str(trained), "-"), "the prompt is not valid UTF-8")


def test_generate_json(call: Call, trained: Path) -> None:
    """Would catch text that is not what the tokens spell, and log-probabilities that do not add up."""
    result = call("generate", str(trained), "Once", "--samples", "2", "--max-tokens", "9", "--json")
    answer = json.loads(result.out)
    assert answer["prompt"] == "Once"
    assert len(answer["samples"]) == 2
    tokenizer = Run.open(trained).tokenizer
    for sample in answer["samples"]:
        ids = [token["id"] for token in sample["tokens"]]
        prompt = tokenizer.encode("Once")
        assert tokenizer.decode([*prompt, *ids]) == "Once" + sample["text"]
        assert sample["log_probability"] == pytest.approx(sum(t["log_probability"] for t in sample["tokens"]))
        assert all(token["log_probability"] < 0 for token in sample["tokens"])
        assert sample["ended"] in ("length", "end of text")
    drawn = ("generate", str(trained), "a", "--samples", "20", "--max-tokens=9", "--json")
    texts = [sample["text"] for sample in json.loads(call(*drawn).out)["samples"]]
    number, whole = next((i, text) for i, text in enumerate(texts) if len(text) > 5 and "\ufffd" not in text)
    sample = json.loads(call(*drawn, "--stop", whole[3:5]).out)["samples"][number]
    assert sample["ended"] == "stop"
    assert sample["text"] == whole.partition(whole[3:5])[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--temperature", "-1"], "temperature must be >= 0"),
        (["--top-p", "0"], r"top_p must be in \(0, 1\]"),
        (["--samples", "0"], "number of samples must be >= 1"),
        (["--max-tokens", "-1"], "max_tokens must be >= 0"),
        (["--stop", ""], "stop must not be an empty text"),
        (["--checkpoint", "first"], "checkpoint must be one of best, last"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_generate_refuses_in_one_line(call: Call, trained: Path, arguments: list[str], message: str) -> None:
    assert_refused(call("generate", str(trained), "Once", *arguments), message)
    assert_refused(call("generate", str(trained / "nothing"), "Once"), "nothing: no such directory")
    assert_refused(call("generate", str(trained), "a\udcff"), "the prompt is not valid UTF-8")


def test_evaluate(call: Call, trained: Path, small: Any) -> None:
    """Would catch a score over a part of the data, other data than those held out, and talk among the JSON."""
    result = call("evaluate", str(trained), "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    last = [entry for entry in Run.open(trained).metrics() if entry["event"] == "valid"][-1]
    assert found["nats_per_token"] == pytest.approx(last["valid_loss"], rel=1e-6)
    assert found["bits_per_byte"] == pytest.approx(last["bits_per_byte"], rel=1e-6)
    assert found["stories"] == 5
    assert "fresh state" in found["policy"]
    assert "fresh state" in result.err
    everything = json.loads(call("evaluate", str(trained), str(small.file), "--json").out)
    assert everything["stories"] == 100
    assert everything["bytes"] == small.train.num_bytes + small.valid.num_bytes
    nats = everything["nats_per_token"]
    assert everything["perplexity"] == pytest.approx(math.exp(nats))
    assert everything["bits_per_byte"] == pytest.approx(nats * everything["tokens"] / math.log(2) / everything["bytes"])
    table = call("evaluate", str(trained), str(small.file)).out
    assert f"{nats:.4f}" in table
    assert_refused(call("evaluate", str(trained), "missing.txt"), "no such file")
    assert_refused(call("evaluate", "missing"), "no such directory")


def test_evaluate_reads_as_the_run_does(call: Call, tmp_path: Path) -> None:
    """Would catch another score for the run's own text because it is cut into other stories than it was."""
    text = "".join(f"Story {i} is here.\nIt has two lines.\n\n" for i in range(40))
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "b.txt").write_text("One story.\nIt has no blank line.\n")
    (tmp_path / "b.csv").write_text("n,story\n1,One story of a table.\n")
    begun = call("train", "a.txt", "--cut", "line", "--field", "story", "--out", "run", "--sequences", "8", *TINY)
    assert begun.code == 0, begun.err

    def scored(*arguments: str) -> dict[str, Any]:
        result = call("evaluate", "run", *arguments, "--json")
        assert result.code == 0, result.err
        return json.loads(result.out)

    own = scored("a.txt")
    assert own["stories"] == 80
    assert own["data"] == "a.txt: a story per line, as the training text is"
    assert scored("a.txt", "--cut", "auto")["stories"] == scored("a.txt", "--cut", "paragraph")["stories"] == 40
    assert scored("b.txt")["stories"] == 2
    assert scored("b.txt", "--separator", "It")["stories"] == 2
    assert scored("b.csv")["stories"] == 1
    assert scored("b.csv", "--format", "text")["data"] == "b.csv: a story per line, as the training text is"
    assert_refused(call("evaluate", "run", "b.txt", "--separator", "##"), "the separator '##' does not occur in it")


def test_resume_is_exact_through_the_command_line(call: Call, trained: Path, small: Any, tmp_path: Path) -> None:
    """Would catch a finished run that --resume trains on, and a changed wish that is taken."""
    shutil.copytree(trained, tmp_path / "copy")
    before = (tmp_path / "copy" / "last.safetensors").read_bytes()
    result = call("train", "--resume", "--out", str(tmp_path / "copy"))
    assert result.code == 0, result.err
    assert (tmp_path / "copy" / "last.safetensors").read_bytes() == before
    changed = call("train", "--resume", "--out", str(tmp_path / "copy"), "--seed", "9")
    assert_refused(changed, "was started with seed 0, not 9; a resumed run cannot change that")


def test_the_courses_model_is_imported(call: Call, small: Any, tmp_path: Path) -> None:
    """Would catch other weights than the file's, and a run without data that is asked for its own."""
    model = RNNLanguageModel(5, 7, small.tokenizer.vocab_size, 3, 4)
    torch.save(model, "model.pt")
    small.tokenizer.save(tmp_path / "tokenizer")
    result = call("import", "model.pt", "run", "--tokenizer", "tokenizer")
    assert (result.code, result.out) == (0, "run\n"), result.err
    tokens = torch.arange(12)[None]
    torch.testing.assert_close(Run.open(Path("run")).load_model()(tokens)[0], model(tokens)[0])
    direct = rhapsode_api.load("model.pt", tokenizer="tokenizer", device="cpu")  # without a run directory
    torch.testing.assert_close(direct.network(tokens)[0], model(tokens)[0])
    assert direct.generate("Once", max_tokens=3, temperature=0)[0].tokens
    assert "data" in call("evaluate", "run", str(small.file)).out
    assert_refused(
        call("evaluate", "run"), "has no data of its own: name the data to score, rhapsode evaluate run DATA"
    )
    assert_refused(call("import", "model.pt", "run", "--tokenizer", "tokenizer"), "run holds a run: resume it")


BEYOND = str(2**64)


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "text.txt", "--tokens", "5", "--out", "new", "--seed", BEYOND],
        ["train", "text.txt", "--tokens", "5", "--out", "new", "--set", f"seed={BEYOND}"],
        ["generate", "RUN", "Once", "--seed", BEYOND],
        ["generate", "RUN", "Once", "--samples", "2", "--seed", str(2**64 - 1)],
        ["evaluate", "RUN", "--seed", BEYOND],
        ["evaluate", "RUN", "storyworld:3:valid", "--generate", "2", "--seed", str(2**64 - 1)],
        ["story", "--out", "new", "--seed", BEYOND],
        ["story", "--out", "new", "--seed", str(2**64 - 2)],
        ["corpus", "--seed", BEYOND],
        ["corpus", "2", "--seed", str(2**64 - 1)],
        ["study", "batch", "text.txt", "--out", "new", "--seed", BEYOND],
        ["study", "batch", "text.txt", "--out", "new", "--seeds", "2", "--seed", str(2**64 - 1)],
    ],
    ids=" ".join,
)
def test_a_seed_beyond_is_refused_before_anything_is_written(
    call: Call, trained: Path, tmp_path: Path, arguments: list[str]
) -> None:
    """Would catch 'Overflow when unpacking', after a directory is made that can be neither resumed nor reused."""
    (tmp_path / "text.txt").write_text("One story is here.\n\nAnd another one.\n")
    result = call(*(str(trained) if word == "RUN" else word for word in arguments))
    assert_refused(result, r"seeds? must be from 0 to 2\^64 - 1|go beyond")
    assert not (tmp_path / "new").exists()


NAMES = ["[v2].txt", "[bold].txt", ":cat:.txt", "$$.txt", "|`*.txt", "&lt;b>.txt", "\x1b[31m.txt", "a\nb.txt"]


@pytest.mark.parametrize("name", [*NAMES, "d[/x].txt"])
def test_a_files_name_is_shown_as_it_is(call: Call, trained: Path, small: Any, tmp_path: Path, name: str) -> None:
    """Would catch a name that vanishes from the table as markup, and a MarkupError after all the work."""
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    shutil.copy(small.file, file)
    result = call("evaluate", str(trained), name)
    assert result.code == 0, result.err
    assert f" {literal(name)}: " in result.out
    as_json = call("evaluate", str(trained), name, "--json")
    assert json.loads(as_json.out)["data"].startswith(name)
    assert_refused(call("evaluate", str(trained), f"no {name}"), re.escape(literal(f"no {name}: no such file")))


def test_inspect_tells_a_text_as_it_is(call: Call, trained: Path, tmp_path: Path) -> None:
    """Would catch tokens that vanish as markup, and `$` that breaks a picture."""
    text = "[/x] [v2] $$ $a$ :cat: <b> \x1b[31m | ` "
    result = call("inspect", str(trained), "--text", text, "--out", "pictures")
    assert result.code == 0, result.err
    assert "\x1b" not in result.out
    table, _, maps = result.out.partition("\nattention: ")  # the table first
    tokenizer = Run.open(trained).tokenizer
    for token in map(tokenizer.token_text, tokenizer.encode(text)):
        assert f" {token} " in table
        assert f"{token} " in maps
    assert sorted(file.suffix for file in (tmp_path / "pictures").iterdir()) == [".png", ".png", ".svg"]
    assert call("inspect", str(trained), "--text", "[/x]", "--out", "pictures").code == 0


VERBS = [
    ["generate", "RUN", "Once", "--max-tokens", "3"],
    ["evaluate", "RUN"],
    ["evaluate", "RUN", "text.txt"],
    ["inspect", "RUN", "--text", "a"],
    ["train", "--resume", "--out", "RUN"],
]


@pytest.mark.parametrize("arguments", VERBS, ids=" ".join)
def test_damaged_runs_are_told_in_one_line(call: Call, trained: Path, tmp_path: Path, arguments: list[str]) -> None:
    """Would catch a traceback of any verb over a run.json that was edited, and parts of another run."""
    (tmp_path / "text.txt").write_text("One story is here.\n\nAnd another one.\n")
    command = ["run" if word == "RUN" else word for word in arguments]

    def told(change: Callable[[dict[str, Any]], Any]) -> SimpleNamespace:
        shutil.rmtree("run", ignore_errors=True)
        shutil.copytree(trained, "run")
        about = json.loads(Path("run/run.json").read_text())
        del about["sha256"]  # as its error says
        change(about)
        Path("run/run.json").write_text(json.dumps(about))
        return call(*command)

    assert told(lambda about: None).code == 0
    for change, message in (
        (lambda about: about.pop("model"), r"run/run\.json: the field model is missing"),
        (lambda about: about.pop("train"), r"run/run\.json: the field train is missing"),
        (lambda about: about.update(model=[]), r"run/run\.json: model must be an object, got \[\]"),
        (lambda about: about["model"].pop("vocab_size"), r"run\.json: the field model\.vocab_size is missing"),
        (lambda about: about["model"].update(lights=3), r"run\.json: model has the field 'lights'"),
        (lambda about: about["model"].update(embed_dim="8"), r"model\.embed_dim must be a whole number, got '8'"),
        (lambda about: about["model"].update(embed_dim=10**8), "do not match the model config"),
        (lambda about: about["data"].pop("locations"), r"run\.json: the field data\.locations is missing"),
    ):
        assert_refused(told(change), message)

    def zeros(_: Any) -> None:
        for file in Path("run").glob("*.safetensors"):
            content = file.read_bytes()
            file.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))

    assert_refused(told(zeros), r"run/(best|last)\.safetensors: damaged, its contents do not match its checksum")
    if command[-1] not in ("run",) or command[0] == "train":
        other = train_tokenizer(["quite another text, with other words"] * 9, "bpe", 300)
        assert_refused(
            told(lambda _: (shutil.rmtree("run/tokenizer"), other.save(Path("run/tokenizer")))),
            r"run/tokenizer/tokenizer\.json: a different tokenizer .*; restore the tokenizer folder",
        )


def test_a_damaged_line_of_metrics_is_named(call: Call, trained: Path) -> None:
    """Would catch 'Expecting value: line 1 column 1 (char 0)', and lines that are lost by it."""
    shutil.copytree(trained, "run")
    file = Path("run/metrics.jsonl")
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([lines[0], "x" + lines[1][1:], *lines[2:]]))
    before = file.read_bytes()
    assert_refused(call("train", "--resume", "--out", "run"), r"run/metrics\.jsonl, line 2: damaged, not JSON; remove")
    assert file.read_bytes() == before
