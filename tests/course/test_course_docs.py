"""docs/course.md: the tests that it names show what it says only if there are such tests."""

import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "course.md"


@pytest.mark.skipif(not PAGE.is_file(), reason="needs docs/ beside the tests")
def test_every_test_that_the_page_names_is_there() -> None:
    """Would catch a test that was renamed or deleted, and a row that is shown by none."""
    text = PAGE.read_text(encoding="utf-8")
    files = {file.name: file.read_text(encoding="utf-8") for file in HERE.glob("test_*.py")}
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| |")]
    assert len(rows) > 12
    for row in rows:
        named = re.findall(r"`(test_\w+(?:\.py)?)`", row)
        assert named, row
        file = ""
        for name in named:
            if name.endswith(".py"):
                file = name
                assert file in files, file
            else:
                assert f"def {name}(" in files[file], (file, name)
