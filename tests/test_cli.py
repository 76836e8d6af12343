"""The command line as its user meets it: in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


def rhapsode(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "rhapsode.cli", *arguments], capture_output=True, text=True, check=False
    )


def test_help_imports_no_torch() -> None:
    """`--help` must answer at once; torch alone takes longer than that."""
    code = "import sys, rhapsode.cli; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_bad_numbers_give_one_line_and_exit_code_2() -> None:
    result = rhapsode("explain", "convolution", "--image", "1 2 / 3")
    assert result.returncode == 2
    assert result.stdout == ""
    assert len(result.stderr.strip().splitlines()) == 1


def test_corpus_prints_the_stories_of_a_seed() -> None:
    from rhapsode import storyworld

    result = rhapsode("corpus", "2", "--seed", "5")
    assert result.stdout == "\n\n".join([*storyworld.sample_batch(5, 2), ""])
    assert result.returncode == 0


@pytest.mark.slow
def test_story_trains_and_writes(tmp_path: Path) -> None:
    """Ten seconds must bring the loss far below that of an untrained model (3.2 bits per byte at 1,024 pieces)."""
    result = rhapsode("story", "--minutes", "0.17", "--out", str(tmp_path / "run"))
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert 0.09 < lines[-1]["bits_per_byte"] < 2.9
    assert "the floor is 0.093" in result.stderr
    assert len(result.stdout.strip().split("\n\n")) >= 3


def test_the_reference_in_docs_has_not_drifted() -> None:
    """Change an option and run `make docs`; this fails until docs/cli.md says the same."""
    command = [sys.executable, "-m", "typer", "rhapsode.cli", "utils", "docs", "--name", "rhapsode"]
    generated = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    written = Path(__file__).resolve().parents[1] / "docs" / "cli.md"
    assert written.read_text(encoding="utf-8").strip() == generated.strip()
