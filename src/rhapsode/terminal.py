"""What goes to standard output and standard error: a user's text as it is, in any encoding, and never lost half-way."""

import errno
import json
import math
import os
import shlex
import sys
import unicodedata
from typing import Any, TextIO

CURES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "; make room, then try again"),
    errno.EIO: "; the disk reports an error: check it, or use another one, then try again",
    errno.EROFS: "; choose a directory on a disk that can be written",
    errno.EACCES: "; change its permissions, or choose another directory",
    errno.EPERM: "; change its permissions, or choose another directory",
}
LONGEST_LINE = 2000  # characters of an error
EXIT_STOPPED = 130  # what a shell expects after Ctrl-C
JOINERS = "\u200c\u200d"  # format characters without which Persian, Hindi and many emoji fall apart


class ToldElsewhere(OSError):
    """Work that cannot go on for a reason that another process of it tells the user."""


def literal(text: str) -> str:
    """A text on one line in which what a terminal would obey is spelled out: control characters (a newline becomes
    `\\n`, the beginning of an escape sequence `\\x1b`), marks of direction, and bytes that are no text (`\\xff`).
    """
    return text if text.isprintable() else "".join(map(_spelled, text))


def literal_lines(text: str) -> str:
    """`literal` of each line of a text, for a terminal: line ends and tabs stay what they are."""
    return text if text.isprintable() else "".join(each if each in "\n\t" else _spelled(each) for each in text)


def print_text(text: str, end: str = "\n") -> None:
    """Prints a text at once: into a file or a pipe as it is, on a terminal with what that would obey spelled out."""
    print(literal_lines(text) if sys.stdout.isatty() else text, end=end, flush=True)


def _spelled(character: str) -> str:
    if 0xDC80 <= ord(character) <= 0xDCFF:  # a byte of a file name or an argument that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    obeyed = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in JOINERS
    return character.encode("unicode_escape", "surrogatepass").decode() if obeyed else character


def quoted(path: Any) -> str:
    """A path as one types it into a shell."""
    return shlex.quote(str(path))


def prepare_streams() -> None:
    """Makes standard output and standard error take every text.

    Into a file or a pipe it is UTF-8, whatever the system's own encoding is; a terminal, and PYTHONIOENCODING where it
    is set, keep theirs. What the encoding lacks is spelled out (`\\u2602`), where Python would raise half-way.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not where a test or a notebook has put something else there
            keeps = stream.isatty() or os.environ.get("PYTHONIOENCODING")
            stream.reconfigure(encoding=None if keeps else "utf-8", errors="backslashreplace")


def print_json(value: Any) -> None:
    """One JSON object on standard output, valid in any encoding; a number that JSON has not (infinity) is null."""
    value = _finite(value)
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value, allow_nan=False)
    print(text)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def is_of_output(error: OSError) -> bool:
    """Whether it is standard output that could not be written: its reader went away, or its disk is full.

    Everything else that is written has a name, and so have its errors.
    """
    if error.filename or sys.stdout is None:
        return False
    try:
        sys.stdout.flush()
    except OSError:
        return True
    return error.errno in (errno.ENOSPC, errno.EDQUOT) and not sys.stdout.isatty()


def discard(stream: TextIO | None) -> None:
    """Lets what the stream holds go nowhere: Python's end would try to write it once more, and complain."""
    if stream is not None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def told(error: BaseException) -> str:
    """An exception as one line for a user: of an OSError the file first, then what is wrong with it."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        cure = CURES.get(error.errno or 0, "")
        return _shortened(literal(f"{os.fsdecode(error.filename)}: {error.strerror}{cure}"))
    return _shortened(literal(str(error) or type(error).__name__))


def _shortened(line: str) -> str:
    """A line with its middle left out where it would fill the screen, as with a text of the user's in it."""
    return line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE // 2]} ... {line[-LONGEST_LINE // 2 :]}"
