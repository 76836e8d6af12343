"""The lines that a person types, in a terminal or through a pipe, and what they are answered.

Standard output gets the text and nothing else; what is said about it goes to standard error.
"""

import contextlib
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rhapsode.chat.conversation import Conversation
from rhapsode.files import write_text
from rhapsode.interruption import interruptible
from rhapsode.progress import say
from rhapsode.terminal import literal, told

ALTERNATIVES = 5
AROUND = 3  # words shown before and after the one from which something was copied
HELP = """a line           is added to the text, and the model goes on after it; // begins one with a slash
an empty line    the model goes on
/edit            change the last line, then the model goes on after it
/alternatives    the likeliest next words; then type a number to take one
/temperature T   0 always takes the likeliest token; now {temperature:g}
/undo            take back the last turn
/copies          which words the model copied in its last turn, and from where
/save FILE       write the text to a new file
/quit            or the end of the input: leave; Ctrl-C stops the model in the middle of a turn"""


class Chat:
    """A conversation at a terminal, or through a pipe. read: gives the next line, to be edited from what it is given;
    raises EOFError at the end."""

    def __init__(self, conversation: Conversation, read: Callable[[str], str]) -> None:
        self.conversation, self.read = conversation, read
        self.offered: list[str] = []  # words that a number takes
        self.saved: Path | None = None
        self.commands: dict[str, Callable[[str], None]] = {
            "/alternatives": self.offer,
            "/copies": self.show_copies,
            "/edit": self.edit,
            "/help": self.explain,
            "/save": self.save,
            "/temperature": self.set_temperature,
            "/undo": self.undo,
        }

    def run(self) -> None:
        """Until the input ends. Ctrl-C never ends it, at whatever moment: that would lose the text."""
        while True:
            try:
                while self.turn():
                    pass
                return
            except KeyboardInterrupt:
                say("\n(Ctrl-D or /quit leaves)")

    def turn(self) -> bool:
        """Reads a line and does what it asks for; whether another one may follow."""
        try:
            line = self.read("")
        except EOFError:
            return False
        if line.strip() in ("/quit", "/exit"):
            return False
        try:
            self.answer(line)
        except (ValueError, OSError) as error:
            if isinstance(error, BrokenPipeError):
                raise
            say(told(error))
        return True

    def answer(self, line: str) -> None:
        """Does what a line asks for."""
        word, _, rest = line.strip().partition(" ")
        offered, self.offered = self.offered, []
        if word.startswith("/") and not word.startswith("//"):
            command = self.commands.get(word)
            if command is None:
                raise ValueError(f"there is no command {word}; /help tells them all")
            command(rest.strip())
        elif offered and word.isdecimal() and not rest:
            self.take(offered, int(word))
        else:
            if line:
                line = line[1:] if line.startswith("//") else line
                show_text(self.conversation.add(line).removeprefix("\n"))
            self.write()

    def write(self) -> None:
        """Has the model go on, and shows it as it comes; Ctrl-C ends that, and what was written stays."""
        with interruptible(signal.SIGINT) as asked, contextlib.closing(self.conversation.go_on()) as pieces:
            for piece in pieces:
                show_text(piece)
                if asked.is_set():
                    break
        if not self.conversation.text.endswith("\n"):
            print(flush=True)
        if self.conversation.ended:
            say("(the model ended the text here; what you add begins after it)")

    def offer(self, argument: str) -> None:
        words = self.conversation.alternatives(ALTERNATIVES)
        for number, word in enumerate(words, start=1):
            say(f"{number}  {literal(word.text).strip() or '(the end)'}  {word.probability:.1%}")
        self.offered = [word.text for word in words]

    def take(self, offered: list[str], number: int) -> None:
        if not 1 <= number <= len(offered):
            raise ValueError(f"there are {len(offered)} words to choose from, got {number}")
        self.conversation.append(offered[number - 1])
        show_text(offered[number - 1])
        self.write()

    def edit(self, argument: str) -> None:
        try:
            line = self.read(self.conversation.last_line)
        except (EOFError, KeyboardInterrupt):
            say("nothing was changed")
            return
        self.conversation.replace_last_line(line)
        show_text(line)
        self.write()

    def set_temperature(self, argument: str) -> None:
        try:
            temperature = float(argument)
        except ValueError:
            raise ValueError(f"/temperature takes a number, such as /temperature 0.5, got {argument!r}") from None
        self.conversation.config = replace(self.conversation.config, temperature=temperature)
        say(f"temperature {temperature:g}")

    def undo(self, argument: str) -> None:
        if not self.conversation.undo():
            raise ValueError("there is nothing to undo")
        last = literal(self.conversation.last_line[-60:])
        say(f"the text ends with: {last}" if last else "the text is empty")

    def save(self, argument: str) -> None:
        if not argument and self.saved is None:
            raise ValueError("/save takes the name of a file, such as /save story.txt")
        path = Path(argument).expanduser() if argument else self.saved
        assert path is not None
        if path != self.saved and path.exists():
            raise FileExistsError(f"{path}: already exists; choose another name")
        write_text(path, self.conversation.text + "\n")
        self.saved = path
        say(f"saved {path}")

    def show_copies(self, argument: str) -> None:
        words, first = self.conversation.words()
        told = False
        for number, word in enumerate(words[first:], start=first):
            if word.source is None or word.source == number:
                continue
            around = [each.text for each in words[max(1, word.source - AROUND) : word.source + AROUND + 1]]
            where = "".join(around).replace("▁", " ").strip()
            say(f"{word.text.lstrip('▁')}  {word.copied:.0%}  from word {word.source}: {where}")
            told = True
        if not told:
            say("the model copied nothing in its last turn")

    def explain(self, argument: str) -> None:
        for line in HELP.format(temperature=self.conversation.config.temperature).splitlines():
            say(line)


def show_text(text: str) -> None:
    """Shows a part of the text; on a terminal nothing in it is obeyed but line ends and tabs."""
    if sys.stdout.isatty():
        text = "".join(character if character in "\n\t" else literal(character) for character in text)
    print(text, end="", flush=True)


def line_reader() -> Callable[[str], str]:
    """What reads the next line: from a terminal, where it can be edited, or from a pipe."""
    if not sys.stdin.isatty():
        return _piped
    prompt = "> " if sys.stdout.isatty() else ""
    try:
        import readline
    except ImportError:  # not everywhere; lines are then typed anew
        return lambda before: input(prompt)

    def edited(before: str) -> str:
        readline.set_startup_hook(lambda: readline.insert_text(before))
        try:
            return input(prompt)
        finally:
            readline.set_startup_hook(None)

    return edited


def _piped(before: str) -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.removesuffix("\n")
