"""docs/inputs.md promises nothing that no test backs."""

import ast
import re
from pathlib import Path

from rhapsode.sources.files import FORMATS

TESTS = Path(__file__).resolve().parent
PAGE = (TESTS.parent / "docs" / "inputs.md").read_text(encoding="utf-8")


def test_every_line_names_tests_that_exist() -> None:
    """Would catch a promise whose test was renamed or never written."""
    known = {
        f"{file.relative_to(TESTS)}::{node.name}"
        for file in TESTS.rglob("test_*.py")
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }
    rows = [line for line in PAGE.splitlines() if line.startswith("|") and not line.startswith(("|---", "| given"))]
    assert len(rows) > 30
    for row in rows:
        cells = re.split(r"(?<!\\)\|", row)
        assert len(cells) == 6, row
        named = re.findall(r"`([^`]+::[^`]+)`", cells[4])
        assert named, row
        assert set(named) <= known, row


def test_every_suffix_is_on_the_page() -> None:
    """Would catch a format that is read and that nobody is told of."""
    assert all(f"`{suffix}`" in PAGE for suffix in FORMATS)
