"""What a user gave is shown as it is, in every encoding, and what was written so far is never lost."""

import io
import json
import math
import os
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from rhapsode import progress
from rhapsode.progress import LiteralConsole
from rhapsode.terminal import literal, print_json, told

NASTY = [
    "[v2].txt",
    "d[/x].txt",
    ":cat:",
    "$$",
    "\x1b[31mred",
    "a\nb",
    "\udcff.txt",
    "\u202egpj.exe",
    "[bold]",
    "\\[x]",
    "\x07",
]


@given(st.text())
def test_literal_keeps_what_a_terminal_only_shows(text: str) -> None:
    """Nothing that a terminal obeys is left, and everything else stays. Would catch a lost or a changed character."""
    shown = literal(text)
    assert all(unicodedata.category(c) not in ("Cc", "Cs", "Zl", "Zp") for c in shown)
    shown.encode()
    assert shown == "".join(literal(character) for character in text)
    for character in text:
        if character.isprintable():
            assert literal(character) == character


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31m", r"\x1b[31m"),
        ("a\nb\tc", r"a\nb\tc"),
        ("caf\udce9", r"caf\xe9"),  # a name in Latin-1
        ("\ud800", r"\ud800"),
        ("\u202eexe", r"\u202eexe"),
        ("👩‍👩‍👧 می‌خواهم क्‍ष \u00a0\u3000é", "👩‍👩‍👧 می‌خواهم क्‍ष \u00a0\u3000é"),
        ("back\\slash", "back\\slash"),
    ],
)
def test_literal(text: str, shown: str) -> None:
    assert literal(text) == shown


@pytest.mark.parametrize("text", NASTY)
def test_lines_and_tables_are_literal(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch `[v2]` that vanishes, `[/x]` that raises after all the work, `:cat:` that becomes a picture."""
    out = io.StringIO()
    console = LiteralConsole(file=out, width=100, force_terminal=True, no_color=True, highlight=False)
    table = Table(title=f"title {text}", caption=f"caption {text}")
    table.add_column(f"head {text}")
    table.add_row(f"cell {text}")
    console.print(table)
    console.print(f"line {text}", soft_wrap=True)
    shown = out.getvalue()
    for where in ("title", "caption", "head", "cell", "line"):
        assert f"{where} {literal(text)}" in shown


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("text", NASTY)
def test_a_bar_is_literal(text: str, terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a progress line whose file name is taken for markup."""
    out = io.StringIO()
    console = LiteralConsole(file=out, width=100, force_terminal=terminal, no_color=True, highlight=False)
    monkeypatch.setattr(progress, "console", console)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    with progress.bar(f"reading {text}", 2) as advance:
        advance(1)
    assert f"reading {literal(text)}" in out.getvalue()


def test_errors_name_the_file_first() -> None:
    assert told(FileNotFoundError(2, "No such file or directory", "a\nb")) == r"a\nb: No such file or directory"
    assert told(OSError(28, "No space left on device", "x")) == "x: No space left on device; make room, then try again"
    assert told(OSError(2, "No such file", b"\xff")) == r"\xff: No such file"
    assert told(ValueError("two\nlines")) == r"two\nlines"
    assert told(ValueError()) == "ValueError"


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "ascii"])
def test_json_is_valid_in_every_encoding(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch `\\u2602` spelled by the stream, `\\xff` that is no JSON, and `Infinity`."""
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding, errors="backslashreplace"))
    value = {"text": "☂ é \udcff", "list": [math.inf, 1.5, (math.nan,)], "none": None}
    print_json(value)
    sys.stdout.flush()
    assert json.loads(raw.getvalue()) == {"text": "☂ é \udcff", "list": [None, 1.5, [None]], "none": None}


def python(code: str, *, stdout: Any = subprocess.PIPE, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """The command line in a process of its own, with its story corpus replaced by the code's."""
    program = f"import sys\nfrom rhapsode import cli, storyworld\n{code}\nsys.argv = ['rhapsode', 'corpus']\ncli.main()"
    environment = {**os.environ, **environment}
    return subprocess.run(
        [sys.executable, "-c", program], stdout=stdout, stderr=subprocess.PIPE, env=environment, check=False
    )


SAYS = r"storyworld.sample_batch = lambda *_: ['before', 'umbrella \u2602 \xe9', 'lone \udcff', 'after']"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"PYTHONIOENCODING": "cp1252"}, "before\n\numbrella \\u2602 é\n\nlone \\udcff\n\nafter\n\n".encode("cp1252")),
        ({"PYTHONIOENCODING": "ascii"}, b"before\n\numbrella \\u2602 \\xe9\n\nlone \\udcff\n\nafter\n\n"),
        (
            {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
            "before\n\numbrella ☂ é\n\nlone \\udcff\n\nafter\n\n".encode(),
        ),
        ({}, "before\n\numbrella ☂ é\n\nlone \\udcff\n\nafter\n\n".encode()),
    ],
    ids=["cp1252", "ascii", "a locale without UTF-8", "as usual"],
)
def test_text_is_not_lost_where_output_is_not_utf8(environment: dict[str, str], expected: bytes) -> None:
    """Would catch a UnicodeEncodeError in the middle of a text: a redirect under Windows lost all of it."""
    result = python(SAYS, **environment)
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout == expected


def test_a_reader_that_goes_away_is_no_error() -> None:
    """Would catch a traceback, or 'Exception ignored', after `| head`."""
    for code in ("storyworld.sample_batch = lambda *_: ['x' * 100] * 10**5", SAYS):
        read, write = os.pipe()
        os.close(read)
        result = python(code, stdout=write)
        os.close(write)
        assert (result.returncode, result.stderr) == (1, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_under_standard_output_is_told() -> None:
    for code in ("storyworld.sample_batch = lambda *_: ['x' * 100] * 10**5", SAYS):
        with open("/dev/full", "wb") as full:
            result = python(code, stdout=full)
        assert result.returncode == 2
        line = b"rhapsode: standard output: No space left on device; make room, then try again\n"
        assert result.stderr == line
