"""The quiz as its user meets it: in a pipe, at a terminal, and as a sheet."""

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from keys import LONGEST_SECONDS, wait_for_prompt
from typer.testing import CliRunner, Result

from rhapsode.textbook.explain import app
from rhapsode.textbook.explain.page import Lines, Text
from rhapsode.textbook.explain.quiz import TOPICS
from rhapsode.textbook.explain.quiz.answers import ChoiceAnswer, NumbersAnswer
from rhapsode.textbook.explain.quiz.draw import draw_questions
from rhapsode.textbook.explain.quiz.question import Question
from rhapsode.textbook.explain.quiz.sheet import to_html

SEED = 3
COMMAND = [sys.executable, "-m", "rhapsode.textbook.explain", "quiz"]


def quiz(*arguments: str, stdin: str = "") -> Result:
    """ValueError and OSError come through, as the program around it expects."""
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["quiz", *arguments], input=stdin)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def right_answer(question: Question) -> str:
    answer = question.answer
    if isinstance(answer, ChoiceAnswer):
        return "abcd"[answer.right]
    if isinstance(answer, NumbersAnswer):
        return np.array2string(answer.right, separator=", ", max_line_width=1000).replace("\n", "")
    return " x ".join(map(str, answer.right))


def test_a_pipe_answers_one_on_each_line():
    questions = draw_questions(SEED, 10, TOPICS)
    result = quiz("--seed", str(SEED), stdin="\n".join(map(right_answer, questions)))
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1].split() == ["score", "10", "10"]
    assert result.stderr.count("✓ right") == 10
    assert {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines()[1:-1]} == {
        topic: ["1", "1"] for topic in TOPICS
    }


def test_wrong_empty_and_unreadable_answers_show_the_steps_and_count():
    questions = draw_questions(SEED, 4, ["parameters"])
    answers = ["1", "", "many\x1b[31m", right_answer(questions[3])]
    result = quiz("--seed", str(SEED), "--topic", "parameters", "--count", "4", stdin="\n".join(answers))
    assert result.stdout.splitlines()[-2:] == ["parameters      1   4", "score           1   4"]
    assert "✗ not 1." in result.stderr
    assert "→ this is how:" in result.stderr
    assert "✗ not understood: 'many\\x1b[31m' is not a number; type a whole number." in result.stderr
    assert "\x1b" not in result.stderr
    for question in questions[:3]:
        assert all(f"  {line}\n" in result.stderr for line in question.answer.lines())
    assert result.stderr.count("\nAnswer\n") == 3


@pytest.mark.parametrize("stdin", ["1\nq\n7\n", "1\n", "1\nQuit\n"])
def test_leaving_keeps_the_score_so_far(stdin):
    result = quiz("--seed", str(SEED), "--topic", "tape", stdin=stdin)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1].split() == ["score", "0", "1"]
    assert f"rhapsode explain quiz --seed {SEED} --count 10 --topic tape" in result.stderr


def test_the_command_that_is_printed_asks_the_same_questions():
    first = quiz("--topic", "toeplitz,tape", "--topic", "parameters", "--count", "5")
    command = re.search(r"The same questions again: rhapsode explain (quiz .*)", first.stderr)[1].split()
    assert quiz(*command[1:]).stderr == first.stderr
    assert quiz("--topic", "toeplitz,tape,parameters", "--count", "5").stderr != first.stderr


def test_the_page_in_docs_shows_what_is_printed():
    """Fails where questions, steps or remarks change: run the command of docs/quiz.md again, and paste."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "quiz.md").read_text(encoding="utf-8")
    command, transcript = re.search(r"```console\n\$ rhapsode explain (.*?)\n(.*?)```", page, re.DOTALL).groups()
    answers = re.findall(r"^answer> (.*)", transcript, re.MULTILINE)
    result = quiz(*command.split()[1:], stdin="\n".join(answers))
    printed = [line.rstrip() for line in (result.stderr + result.stdout).splitlines()]
    assert printed == transcript.splitlines()
    assert re.findall(r"^\| `(.*?)` \|", page, re.MULTILINE) == list(TOPICS)


def test_examples_that_are_offered_show_the_answer():
    """`rhapsode explain convolution --filter '-1 2'`: also with negative numbers, which look like options."""
    offered = 0
    for question in draw_questions(SEED, 40, TOPICS):
        if question.example:
            result = CliRunner().invoke(app, question.example)
            assert result.exit_code == 0, result.output
            [first, *_] = question.answer.lines()
            if question.topic == "parameters":
                assert f"{int(question.answer.right):,}" in result.stdout
            elif question.topic == "convolution-entry":
                assert re.search(rf"{re.escape(first.split(' = ')[0])} = .* = {first.split(' = ')[1]}\n", result.stdout)
            elif question.topic == "convolution-gradient":
                assert first.split(" = ")[1] in result.stdout
            offered += 1
    assert offered >= 8


@pytest.mark.parametrize("arguments", [["--count", "0"], ["--seed", "-1"], ["--seed", "x"], ["--topic"]])
def test_bad_options_are_refused(arguments):
    assert quiz(*arguments).exit_code == 2


def test_a_wrong_topic_is_one_line_that_names_the_topics():
    result = subprocess.run([*COMMAND, "--topic", "tapes"], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"error: --topic: there is no topic 'tapes'; the topics are {', '.join(TOPICS)}\n"


def test_bytes_that_are_no_text_are_an_answer_that_is_not_read():
    command = [*COMMAND, "--seed", "1", "--topic", "parameters", "--count", "1"]
    result = subprocess.run(command, input=b"\xff\xfe\n", capture_output=True, check=False)
    assert result.returncode == 0
    assert "not understood" in result.stderr.decode()
    assert result.stdout.decode().splitlines()[-1].split() == ["score", "0", "1"]


def test_no_torch_and_no_matplotlib():
    code = (
        "import sys\nfrom rhapsode.textbook.explain import app\n"
        "try: app(['quiz', '--count', '20', '--html', sys.argv[1]])\n"
        "except SystemExit: print('torch' in sys.modules, 'matplotlib' in sys.modules)"
    )
    command = [sys.executable, "-c", code, os.devnull + "/x"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "there is no folder" in result.stderr
    code = code.replace(", '--html', sys.argv[1]", "")
    result = subprocess.run([sys.executable, "-c", code], input="", capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "False False"


class Terminal:
    """A program at the other end of a pseudo-terminal."""

    def __init__(self, process: subprocess.Popen, end: int) -> None:
        self.process, self.end, self.seen = process, end, ""

    def wait_for(self, text: str) -> str:
        """What came until this text came, without colours. Raises TimeoutError where it does not come."""
        deadline = time.monotonic() + LONGEST_SECONDS
        while text not in self.seen:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{text!r} did not come: {self.seen!r}")
            if select.select([self.end], [], [], 0.2)[0]:
                try:
                    received = os.read(self.end, 65536).decode(errors="replace")
                except OSError:  # the program has ended
                    received = ""
                self.seen += re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]", "", received).replace("\r", "")
        before, _, self.seen = self.seen.partition(text)
        return before + text

    def type(self, text: str) -> None:
        os.write(self.end, text.encode())

    def interrupt(self) -> None:
        """Ctrl-C at the prompt: a signal, since there is no controlling terminal here to make it of the key."""
        wait_for_prompt(self.process.pid)
        os.killpg(self.process.pid, signal.SIGINT)


@contextmanager
def terminal(*arguments: str) -> Iterator[Terminal]:
    pty = pytest.importorskip("pty")
    end, inside = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "--seed", str(SEED), *arguments],
        stdin=inside,
        stdout=inside,
        stderr=inside,
        start_new_session=True,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "200"},
    )
    os.close(inside)
    try:
        yield Terminal(process, end)
    finally:
        process.kill()
        process.wait()
        os.close(end)


def test_at_a_terminal_what_cannot_be_read_is_asked_again():
    [question] = draw_questions(SEED, 1, ["parameters"])
    with terminal("--topic", "parameters", "--count", "1") as screen:
        screen.wait_for("answer> ")
        screen.type("many\n")
        screen.wait_for("? 'many' is not a number; type a whole number")
        screen.wait_for("answer> ")
        screen.type(right_answer(question) + "\n")
        screen.wait_for("✓ right")
        assert screen.wait_for("score").splitlines()[-2].split() == ["parameters", "1", "1"]
        assert screen.process.wait(LONGEST_SECONDS) == 0


def test_at_a_terminal_a_matrix_is_typed_row_by_row():
    """A row that cannot be read is asked again alone; where the size is known, its last row ends the matrix."""
    [question] = draw_questions(SEED, 1, ["convolution-gradient"])
    rows = [" ".join(f"{v:g}" for v in row) for row in question.answer.right]
    with terminal("--topic", "convolution-gradient", "--count", "1") as screen:
        screen.wait_for("answer> ")
        screen.type(f"{rows[0]}\n")
        screen.wait_for(" row 2> ")
        screen.type("1 x\n")
        screen.wait_for("? 'x' is not a number; type only this row again")
        for n, row in enumerate(rows[1:], start=2):
            screen.wait_for(f" row {n}> ")
            screen.type(f"{row}\n")
        screen.wait_for("✓ right")


def test_at_a_terminal_a_matrix_is_pasted_over_several_lines():
    [question] = draw_questions(SEED, 1, ["convolution-gradient"])
    rows = ["[", *(f"  [{', '.join(f'{v:g}' for v in row)}]," for row in question.answer.right), "]"]
    with terminal("--topic", "convolution-gradient", "--count", "1") as screen:
        screen.wait_for("answer> ")
        screen.type("\n".join(rows) + "\n")
        screen.wait_for("✓ right")


def test_at_a_terminal_an_empty_line_ends_a_matrix_whose_size_is_asked():
    questions = draw_questions(SEED, 2, ["toeplitz"])
    with terminal("--topic", "toeplitz", "--count", "2") as screen:
        for question in questions:
            screen.wait_for("answer> ")
            if question.answer.right.ndim == 1:
                screen.type("\n")
                continue
            for n, row in enumerate(question.answer.right, start=2):
                screen.type(" ".join(f"{v:g}" for v in row) + "\n")
                screen.wait_for(f" row {n}> ")
            screen.type("\n")
            screen.wait_for("✓ right")


@pytest.mark.parametrize(("key", "code"), [("\x04", 0), ("\x03", 130)])
def test_keys_that_leave_a_terminal_print_the_score(key, code):
    with terminal("--topic", "parameters") as screen:
        screen.wait_for("answer> ")
        screen.type("1\n")
        screen.wait_for("2/10")
        screen.wait_for("answer> ")
        if key == "\x03":
            screen.interrupt()
        else:
            screen.type(key)
        assert screen.wait_for("score").splitlines()[-2].split() == ["parameters", "0", "1"]
        assert screen.process.wait(LONGEST_SECONDS) == code


def test_the_sheet_is_self_contained_and_holds_every_question_and_answer(tmp_path):
    file = tmp_path / "sheet.html"
    arguments = ("--seed", str(SEED), "--count", "20", "--html", str(file))
    result = quiz(*arguments)
    assert (result.stdout, result.stderr) == ("", f"wrote {file}\n")
    html = file.read_text(encoding="utf-8")
    assert html.count("<article>") == html.count("<details>") == html.count("<summary>") == 20
    assert "<script" not in html
    assert not re.search(r"(?:src|href)=|url\(|@import", html)
    for question in draw_questions(SEED, 20, TOPICS):
        for block in (*question.blocks, *question.steps, Lines(question.answer.lines())):
            for line in block.lines if isinstance(block, Lines) else [block.text]:
                escaped = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("'", "&#39;")
                escaped = escaped.replace('"', "&#34;")
                assert (
                    re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped) if isinstance(block, Text) else escaped
                ) in html
    quiz(*arguments)
    assert file.read_text(encoding="utf-8") == html
    assert list(tmp_path.iterdir()) == [file]


def test_the_sheet_shows_markup_as_it_is():
    evil = '<b title="x">&amp;</b>'
    question = Question(
        [Text(f"{evil} `{evil}`"), Lines([evil])],
        ChoiceAnswer((evil, "no"), 0, (evil, "")),
        [Lines([evil])],
        (evil,),
        evil,
    )
    html = to_html([question], evil, evil)
    assert "<b " not in html
    assert html.count("&lt;b title=&#34;x&#34;&gt;&amp;amp;&lt;/b&gt;") == 11


def test_a_sheet_that_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(OSError, match="is a folder: name a file"):
        quiz("--html", str(tmp_path))
    with pytest.raises(OSError, match="there is no folder"):
        quiz("--html", str(tmp_path / "absent" / "sheet.html"))
    assert list(tmp_path.iterdir()) == []
