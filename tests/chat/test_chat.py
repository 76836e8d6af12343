"""`rhapsode chat`, through a pipe and through a terminal."""

import io
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from keys import LONGEST_SECONDS, wait_for_prompt

import rhapsode
from rhapsode.chat.commands import HELP
from rhapsode.chat.conversation import Conversation
from rhapsode.cli import main
from rhapsode.run import Run

SOURCE = Path(__file__).resolve().parents[2] / "src"


@pytest.fixture
def piped(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> Callable[..., tuple[str, str]]:
    """What a session says on standard output and standard error, given its lines."""

    def run(*lines: str, options: tuple[str, ...] = ("--max-tokens", "8", "-t", "0.9")) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["rhapsode", "chat", str(tiny_run), *options])
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        return capfd.readouterr()

    return run


@pytest.fixture(scope="module")
def model(tiny_run: Path) -> rhapsode.Model:
    return rhapsode.load(tiny_run, device="cpu")


def test_piped(piped: Callable[..., tuple[str, str]], model: rhapsode.Model) -> None:
    """Standard output holds the text and nothing else; turn i draws with seed i."""
    out, error = piped("Once upon", "", "//the end", "/quit", "never read")
    first = model.generate("Once upon", max_tokens=8, temperature=0.9)[0].text
    second = model.generate(f"Once upon{first}", max_tokens=8, temperature=0.9, seed=1)[0].text
    so_far = f"Once upon{first}{second}\n/the end"
    third = model.generate(so_far, max_tokens=8, temperature=0.9, seed=2)[0].text
    expected = f"Once upon{first}\n{second}\n/the end{third}\n"
    assert out == expected.replace("\n\n", "\n") or out == expected
    assert "type the beginning of a story" in error


def test_temperature(piped: Callable[..., tuple[str, str]], model: rhapsode.Model) -> None:
    out, error = piped("/temperature 0", "Once", "/temperature warm", "/temperature -1", "/temperature")
    assert out == f"Once{model.generate('Once', max_tokens=8, temperature=0)[0].text}\n"
    assert "temperature 0\n" in error
    assert "got 'warm'" in error
    assert "temperature must be >= 0, got -1.0" in error


def test_alternatives_and_taking_one(piped: Callable[..., tuple[str, str]], model: rhapsode.Model) -> None:
    """The list stands on standard error; a number takes its word, and only right after the list."""
    out, error = piped("/temperature 0", "Once", "/alternatives", "2", "7")
    lines = [line for line in error.splitlines() if line[:2] in ("1 ", "2 ", "3 ", "4 ", "5 ")]
    assert len(lines) == 5
    shares = [float(line.rpartition("  ")[2].rstrip("%")) for line in lines]
    assert shares == sorted(shares, reverse=True)
    word = lines[1].split("  ")[1]
    written = out.splitlines()
    assert any(line.strip().startswith(word.split("\\")[0]) for line in written[1:]) or word == "(the end)"
    assert "\n7" in out  # a text of its own by then


def test_undo_edit_and_save(piped: Callable[..., tuple[str, str]], tmp_path: Path, model: rhapsode.Model) -> None:
    """The last line is replaced by the next one; a file that is there is not overwritten."""
    file, other = tmp_path / "story.txt", tmp_path / "other.txt"
    other.write_text("mine")
    session = ("/temperature 0", "one", "/undo", "/undo", "two", "/edit", "three", f"/save {file}", "/save")
    _, error = piped(*session, f"/save {other}", "/save /nowhere/x", "/copies", "/what", "/help")
    expected = model.generate("three", max_tokens=8, temperature=0)[0].text
    if "\n" not in model.generate("two", max_tokens=8, temperature=0)[0].text:
        assert file.read_text() == f"three{expected}\n"
    assert other.read_text() == "mine"
    for words in (
        "the text is empty",
        "there is nothing to undo",
        f"saved {file}",
        f"{other}: already exists",
        "/nowhere/x: No such file",
        "copied nothing",
        "there is no command /what",
        *HELP.format(temperature=0).splitlines()[:2],
    ):
        assert words in error, words


@pytest.mark.parametrize("moment", ["add", "go_on", "alternatives", "undo"])
def test_interrupted_at_any_moment(
    moment: str, piped: Callable[..., tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C may come before a turn begins and after it has ended. Would catch one that ends the session there."""
    action = getattr(Conversation, moment)

    def interrupted(*arguments: object) -> object:
        monkeypatch.setattr(Conversation, moment, action)
        signal.raise_signal(signal.SIGINT)
        return action(*arguments)

    monkeypatch.setattr(Conversation, moment, interrupted)
    out, error = piped("Once", "/alternatives", "/undo", "The end", options=("--max-tokens", "4"))
    assert "The end" in out
    assert ("Ctrl-D or /quit leaves" in error) == (moment != "go_on")


def test_save_needs_a_name(piped: Callable[..., tuple[str, str]]) -> None:
    assert "/save takes the name of a file" in piped("/save")[1]


def test_wrong_run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["rhapsode", "chat", str(tmp_path / "nothing")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "no such directory" in capfd.readouterr().err


def endless(tiny_run: Path, path: Path) -> Path:
    """A run whose texts are letters on one line, nothing that looks like a prompt, and end when they are stopped."""
    shutil.copytree(tiny_run, path)
    run = Run.open(path)
    network = run.load_model()
    with torch.no_grad():
        for id in range(run.tokenizer.vocab_size):
            if not run.tokenizer.decode([id]).isalpha():
                network.lm_head.bias[id] = -100.0
        network.copy_head.gate.bias.fill_(-100.0)
    run.save_best(network, {"step": 1})
    return path


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_at_a_terminal(tiny_run: Path, tmp_path: Path) -> None:
    """Prompt, streaming, Ctrl-C in the middle of a turn and at the prompt, the last line to be edited in place, Ctrl-D.
    Would catch a Ctrl-C that ends the session and loses the text, and a line that must be typed anew."""
    path = endless(tiny_run, tmp_path / "endless")
    pexpect = pytest.importorskip("pexpect")
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "TERM": "dumb", "INPUTRC": "/dev/null"}
    arguments = ["-m", "rhapsode", "chat", str(path), "--max-tokens", "1000000", "-t", "0.9"]
    more = {"timeout": LONGEST_SECONDS, "dimensions": (24, 60_000)}  # what is edited fits, however long it has become
    child = pexpect.spawn(sys.executable, arguments, env=environment, encoding="utf-8", codec_errors="replace", **more)
    child.expect("/help tells")
    child.expect("> ")
    wait_for_prompt(child.pid)
    child.kill(signal.SIGINT)
    child.expect("Ctrl-D or /quit leaves")
    child.expect("> ")
    child.sendline("Once upon a time")
    child.expect("Once upon a time\r\nOnce upon a time.{40}")  # typed, then written on
    child.kill(signal.SIGINT)
    child.expect("\n> ")
    child.sendline("/undo")
    child.expect("the text is empty")
    child.expect("> ")
    child.sendline("/temperature 0")
    child.expect("> ")
    child.sendline("a cat sat")
    child.expect("a cat sat\r\na cat sat.{40}")
    child.kill(signal.SIGINT)
    child.expect("\n> ")
    child.sendline("/edit")
    child.expect("\n> a cat sat")
    wait_for_prompt(child.pid)
    child.send("\x01")  # to the beginning of the line
    child.sendline("the dog and ")
    child.expect("\nthe dog and a cat sat.{40}")
    child.kill(signal.SIGINT)
    child.expect("\n> ")
    wait_for_prompt(child.pid)
    child.send("\x04")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
