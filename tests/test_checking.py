"""`rhapsode check`: every file of a run named, intact or damaged; a saving that fails on the way."""

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import rhapsode
from rhapsode.cli import main
from rhapsode.progress import silent
from rhapsode.run import Run
from rhapsode.training import train_run


def run_of(path: Path, tiny_run: Path) -> Path:
    shutil.copytree(tiny_run, path)
    return path


def called(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr("sys.argv", ["rhapsode", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_an_intact_run(tiny_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch a file that is forgotten, and good files that are called damaged."""
    files = rhapsode.check(tiny_run)
    assert [file.problem for file in files] == [None] * len(files)
    names = {file.path.name for file in files}
    assert names >= {"run.json", "tokenizer.json", "best.safetensors", "last.safetensors", "metrics.jsonl", "log.txt"}
    assert {file.path.name: file.how for file in files}["metrics.jsonl"] == "checksum"
    assert called(monkeypatch, "check", str(tiny_run)) == 0
    assert f"{tiny_run / 'last.safetensors'}: intact (checksum)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("run.json", "damaged, or edited: it does not match its sha256; restore it, or, if the change is yours"),
        ("last.safetensors", "damaged, its contents do not match its checksum; replace it with an intact copy"),
        ("metrics.jsonl", "bytes are not what they were when saved"),
        ("tokenizer/tokenizer.json", "damaged, or changed: its SHA-256 is not the one in run.json"),
    ],
)
def test_a_changed_digit_is_named(
    tiny_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    problem: str,
) -> None:
    """Would catch another number where nothing else changes: in a config, a weight, a loss, the price of a merge."""
    file = run_of(tmp_path / "run", tiny_run) / name
    content = file.read_bytes()
    digits = [place for place, byte in enumerate(content) if byte in b"2345678"]
    place = digits[-1] if name.startswith("run") else digits[len(digits) // 2]
    place = len(content) - 9 if name.endswith("safetensors") else place
    if name == "run.json":
        place = content.index(b'"embed_dim": 8') + len('"embed_dim": ')
    file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    assert called(monkeypatch, "check", str(tmp_path / "run"), "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["intact"]
    assert next(file["problem"] for file in found["files"] if file["problem"]).startswith(str(tmp_path / "run"))
    assert problem in " ".join(str(file["problem"]) for file in found["files"])


def test_a_lost_checkpoint_is_missed(tiny_run: Path, tmp_path: Path) -> None:
    """Would catch a resumed run that begins anew, and weights of another step, where a file was lost."""
    run = run_of(tmp_path / "run", tiny_run)
    (run / "best.safetensors").unlink()
    with pytest.raises(ValueError, match=r"best\.safetensors: missing; restore it, or use the other checkpoint"):
        rhapsode.load(run)
    assert rhapsode.load(run, checkpoint="last").fingerprint
    (run / "last.safetensors").unlink()
    with pytest.raises(ValueError, match=r"last\.safetensors: missing"):
        Run.open(run).load("last")


def test_what_is_nothing_of_ours(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file or directory"):
        rhapsode.check(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="neither a run, nor a study"):
        rhapsode.check(tmp_path)


def test_training_continues_after_a_failed_save(
    tiny_run: Path, tmp_path: Path, small: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch a training of hours that ends because the disk was full for a second, and one that says nothing."""
    from rhapsode.recipe import Recipe
    from rhapsode.training.start import create_run

    recipe = Run.open(tiny_run).recipe
    assert isinstance(recipe, Recipe)
    recipe = recipe.with_changes(train={"checkpoint_seconds": 0.0})
    ends, events = [], []
    for name, full in (("never", range(0)), ("a while", range(3, 9))):
        run = create_run(tmp_path / name, recipe, small.tokenizer, {})
        save, calls = Run.save_last, 0

        def fails(self: Run, tensors: Any, progress: Any, full: range = full, save: Any = save) -> None:
            nonlocal calls
            calls += 1
            if calls in full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path / "last.safetensors"))
            save(self, tensors, progress)

        with monkeypatch.context() as patch:
            patch.setattr(Run, "save_last", fails)
            outcome = train_run(run, small.train, small.valid, on_event=events.append)
        assert outcome.ended == "budget"
        checkpoint = run.load("last")
        assert checkpoint is not None
        ends.append({key: tensor.tolist() for key, tensor in checkpoint.tensors.items()})
    assert ends[0] == ends[1]
    said = (tmp_path / "a while" / "log.txt").read_text()
    assert said.count("No space left on device; make room, then try again; training continues") == 1
    assert "saved again" in said
    with monkeypatch.context() as patch, silent():
        patch.setattr(Run, "save_last", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "broken", "last")))
        with pytest.raises(OSError, match="broken"):
            train_run(create_run(tmp_path / "for good", recipe, small.tokenizer, {}), small.train, small.valid)
