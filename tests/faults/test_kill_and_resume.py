"""A run that is killed again and again ends, bit by bit, where it would have ended anyway."""

import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import kill_and_resume
import pytest
from kill_and_resume import AT_START, Life, digests, killed, report, uninterrupted, write_data

KILLS, STEPS = 3, 90  # twenty and 240 at full size: docs/resume.md; more than pass while this process is kept waiting


@pytest.mark.slow
def test_kills_and_one_interrupt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch any state outside the checkpoint, a checkpoint that can be half written, and files in disorder."""
    monkeypatch.setattr(kill_and_resume, "STEPS", STEPS)
    write_data(tmp_path)
    straight, start = uninterrupted(tmp_path)
    out, kills = killed(tmp_path, start, KILLS)
    expected = digests(straight)
    print(report(kills, expected, digests(out)))
    assert digests(out) == expected
    assert len(kills) == KILLS
    left = None
    for kill in kills:
        assert kill.gone_on_from in (None, left or 0)
        left = kill.left
    doing = [kill.doing for kill in kills]
    assert sum(what.startswith("starting") for what in doing) >= sum(number < KILLS for number in AT_START) // 2
    assert {"training", "validating"} & set(doing)
    assert sorted(path.name for path in out.iterdir() if path.name != ".lock") == [
        *("best.safetensors", "last.safetensors", "log.txt", "metrics.jsonl", "run.json", "tokenizer")
    ]

    # Ctrl-C instead: it saves, says how to go on, and that command does.
    life = Life(tmp_path, tmp_path / "interrupted run")
    life.wait_for_steps(1)
    life.process.send_signal(signal.SIGINT)
    _, errors = life.process.communicate()
    assert life.process.returncode == 130
    told = re.search(r"^resume it with: rhapsode (train --resume --out .*)$", errors, re.MULTILINE)
    assert told, errors
    go_on = [sys.executable, "-m", "rhapsode", *shlex.split(told[1]), "--threads", "1"]
    subprocess.run(go_on, env=life.environment, check=True, capture_output=True)
    assert digests(life.out) == expected
