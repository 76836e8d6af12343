"""Asking: questions one after the other in a terminal, or with the answers from a pipe, one on each line."""

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console

from rhapsode.textbook.explain.page import Lines, print_blocks, table
from rhapsode.textbook.explain.quiz.answers import ChoiceAnswer, NumbersAnswer
from rhapsode.textbook.explain.quiz.question import Question
from rhapsode.textbook.explain.quiz.reading import grids

LEAVE = ("q", "quit", "exit")
SIGNS = {"right": "✓", "wrong": "✗", "shown": "→"}
STYLES = {"right": "bold green", "wrong": "bold red", "shown": "bold yellow"}


class Left(Exception):
    """The student has had enough."""


@dataclass
class Tally:
    """How many of each topic's questions were answered right, in the order in which the topics came."""

    by_topic: dict[str, list[bool]] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """A line for each topic, and one for all."""
        rows = [[topic, *_right_of(answers)] for topic, answers in self.by_topic.items()]
        total = [answer for answers in self.by_topic.values() for answer in answers]
        return table(["topic", "right", "of"], [*rows, ["score", *_right_of(total)]])


def ask_all(questions: Sequence[Question], again: str) -> tuple[Tally, bool]:
    """Asks until the questions or the answers end; the score so far, and whether Ctrl-C ended it.

    again: the command that asks the same questions. Questions and remarks go to stderr.
    """
    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    lines = AnswerLines(console)
    score = Tally()
    interrupted = False
    console.print("Type an answer; press Enter alone to see it, q to quit.", style="dim", soft_wrap=True)
    try:
        for position, question in enumerate(questions, start=1):
            console.print(f"\n{position}/{len(questions)}  {question.topic}", style="bold cyan", soft_wrap=True)
            print_blocks(console, question.blocks)
            if isinstance(question.answer, ChoiceAnswer):
                console.print()
                for option in question.answer.listed():
                    console.print(f"  {option}", soft_wrap=True)
            console.print(f"\nType {_form(question, lines)}.", style="dim", width=min(console.width, 100))
            right = _ask(question, lines, console)
            score.by_topic.setdefault(question.topic, []).append(right)
    except Left:
        pass
    except KeyboardInterrupt:
        interrupted = True
        console.print()
    console.print(f"\nThe same questions again: {again}\n", style="dim", soft_wrap=True)
    return score, interrupted


class AnswerLines:
    """Where the answers come from: a terminal, which is asked again where one cannot be read, or a pipe."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.terminal = sys.stdin is not None and sys.stdin.isatty()
        # input() can draw its prompt only if the terminal is at the other end of stdout as well.
        self.editable = self.terminal and sys.stdout.isatty()
        if hasattr(sys.stdin, "reconfigure"):
            sys.stdin.reconfigure(errors="replace")
        if self.editable:
            with contextlib.suppress(ImportError):  # not on every system
                import readline  # noqa: F401  arrow keys and history in input()

    def line(self, prompt: str) -> str:
        """One line without what surrounds it. Raises Left at its end, or where the line says so."""
        if self.editable:
            try:
                line = input(prompt)
            except EOFError:
                self.console.print()
                raise Left from None
        else:
            self.console.print(prompt, end="", soft_wrap=True)
            line = "" if sys.stdin is None else sys.stdin.readline()
            if not line:
                self.console.print()
                raise Left
            if not self.terminal:
                self.console.print(_visible(line.strip()), soft_wrap=True)
        if line.strip().casefold() in LEAVE:
            raise Left
        return line.strip()

    def whole(self, question: Question) -> str:
        """One answer. At a terminal a matrix is typed row by row; an empty line ends it, if its size does not."""
        text = self.line("answer> ")
        if not self.terminal:
            return text
        rows = [text]
        while rows[-1]:
            reason = _unreadable(rows[-1]) if len(rows) > 1 else None
            if reason:
                self.console.print(f"? {reason}; type only this row again", style="yellow", soft_wrap=True)
                rows.pop()
            elif _complete(question, "\n".join(rows)):
                break
            rows.append(self.line(f" row {len(rows) + 1}> "))
        return "\n".join(rows).strip()


def _ask(question: Question, lines: AnswerLines, console: Console) -> bool:
    """Whether the answer was right; says so, and shows the steps if not."""
    while True:
        text = lines.whole(question)
        if not text:
            _tell(console, "shown", "this is how:")
            break
        try:
            wrong = question.answer.check(text)
        except ValueError as error:
            if lines.terminal:
                console.print(f"? {error}", style="yellow", soft_wrap=True)
                continue
            wrong = f"not understood: {error}"
        if wrong is None:
            _tell(console, "right", "right")
            return True
        _tell(console, "wrong", f"{wrong}.")
        break
    print_blocks(console, question.steps)
    console.print("\nAnswer", style="bold")
    print_blocks(console, [Lines(question.answer.lines())])
    if question.example:
        console.print(f"\nThe full example: rhapsode explain {question.command}", style="dim", soft_wrap=True)
    return False


def _form(question: Question, lines: AnswerLines) -> str:
    answer = question.answer
    by_rows = lines.terminal and isinstance(answer, NumbersAnswer) and answer.right.ndim == 2 and answer.size_asked
    return answer.form + (" (Enter alone ends the matrix)" if by_rows else "")


def _complete(question: Question, text: str) -> bool:
    """Whether the answer ends here; what cannot be read does, so that it is said at once."""
    try:
        return question.answer.complete(text)
    except ValueError:
        return True


def _unreadable(row: str) -> str | None:
    """Why this is no row of numbers, so that the rows before it need not be typed again."""
    numbers = row.strip("[], ")
    try:
        if numbers:  # a row may be the last bracket alone
            next(grids(numbers))
    except ValueError as error:
        return str(error)
    return None


def _tell(console: Console, what: str, remark: str) -> None:
    console.print(f"{SIGNS[what]} {remark}", style=STYLES[what], soft_wrap=True)


def _visible(text: str) -> str:
    """The text as it is, or with its control characters written out."""
    return text if text.isprintable() else repr(text)


def _right_of(answers: list[bool]) -> tuple[str, str]:
    return str(sum(answers)), str(len(answers))
