"""The model inside the package: that it is there, small, and tells its stories at once."""

import subprocess
import sys

import pytest

from rhapsode.api import load
from rhapsode.export.network import unpacked_network
from rhapsode.packaged import ABOUT, MODEL, TOKENIZER
from rhapsode.packaged.make import MOST_BYTES
from rhapsode.packaged.run import packaged_run
from rhapsode.packaged.teller import tell_story
from rhapsode.tokenizer import Tokenizer
from rhapsode.trained import Model


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rhapsode", "tell", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


def test_it_is_small_and_says_whence_it_is() -> None:
    """Would catch a package that grew by megabytes, and a model of which nobody knows how it was made."""
    assert MODEL.stat().st_size <= MOST_BYTES
    about = ABOUT.read_text(encoding="utf-8")
    assert f"packed in {MODEL.stat().st_size:,} bytes" in about
    assert "rhapsode.packaged.make" in about
    assert "licence" in about


def test_a_story_begins_without_pytorch() -> None:
    """Would catch an import that makes a listener wait for seconds."""
    code = (
        "import sys, rhapsode.cli; from rhapsode.packaged.teller import tell_story; print(''.join(tell_story('A', 5)));"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr


def test_it_tells_what_pytorch_writes() -> None:
    """Would catch a teller that reads the prompt, or stops, otherwise than the model that was trained."""
    model = Model(unpacked_network(MODEL.read_bytes()).double(), Tokenizer.load(TOKENIZER))
    for prompt in ("Once upon a time", "Once upon a time there was a fox. " * 20):
        expected = str(model.generate(prompt, max_tokens=60, temperature=0)[0])
        assert "".join(tell_story(prompt, 60, temperature=0)) == expected


def test_a_prompt_beyond_its_patience() -> None:
    """Would catch a prompt that takes hours without a word: the time grows with the square of its length."""
    with pytest.raises(ValueError, match=r"the prompt has \d\d,\d{3} tokens, tell reads 8,192 at most"):
        next(tell_story("Once upon a time there was a fox. " * 1_250))


def test_seeds() -> None:
    """Would catch a seed without effect, and stories that are all the same."""
    stories = ["".join(tell_story("", 40, seed=seed)) for seed in (1, 1, 2)]
    assert stories[0] == stories[1] != stories[2]


def test_the_verb() -> None:
    """Would catch a prompt that is lost, and a wrong option that ends in a traceback."""
    done = run("Once upon a time", "--seed", "3", "--max-tokens", "30")
    assert done.stdout.startswith("Once upon a time")
    assert done.returncode == 0
    for option, value, words in (
        ("--temperature", "-1", "temperature must be >= 0, got -1.0"),
        ("--top-p", "0", "top_p must be in (0, 1], got 0.0"),
        ("--max-tokens", "0", "max_tokens must be >= 1, got 0"),
    ):
        done = run(option, value)
        assert (done.returncode, done.stderr.strip(), done.stdout) == (2, f"rhapsode: {words}", "")


def test_as_a_run_directory(tmp_path: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a packaged model that the server cannot open."""
    monkeypatch.setenv("RHAPSODE_CACHE", str(tmp_path))
    model = load(packaged_run(), device="cpu")
    assert packaged_run() == model.path
    assert "".join(tell_story("Once", 20, temperature=0)) == str(
        model.generate("Once", max_tokens=20, temperature=0)[0]
    )
