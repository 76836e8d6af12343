"""`rhapsode check`: every file of a run named, intact or damaged; a saving that fails on the way."""

import errno
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rhapsode
from rhapsode.cli import main
from rhapsode.progress import silent
from rhapsode.run import Run
from rhapsode.tokenizer import train_tokenizer
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


def test_a_page_and_a_packed_model(tiny_run: Path, tmp_path: Path) -> None:
    """Would catch an intact export that is called damaged, and a damaged one that is taken for another kind of file."""
    from rhapsode.export.html import BLOCKS
    from rhapsode.export.network import packed_network

    run, packed = run_of(tmp_path / "run", tiny_run), tmp_path / "model.packed"
    rhapsode.export_html(run, run / "page.html")
    packed.write_bytes(packed_network(rhapsode.load(run, device="cpu").network))
    page = (run / "page.html").read_bytes()
    for file in (run / "page.html", packed):
        assert [str(each) for each in rhapsode.check(file)] == [f"{file}: intact (checksum)"]
    assert run / "page.html" in {each.path for each in rhapsode.check(run)}

    def problem(file: Path, content: bytes) -> str:
        file.write_bytes(content)
        (found,) = rhapsode.check(file)
        assert found.path == file
        return str(found.problem)

    draw = np.random.default_rng(0)
    for content, file in ((page, tmp_path / "page.html"), (packed.read_bytes(), tmp_path / "other.packed")):
        for place in (0, len(content) // 2, len(content) - 1, *draw.integers(len(content), size=20)):
            flipped = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
            assert problem(file, flipped).startswith(f"{file}: "), place
        for length in (0, 1, 100, len(content) // 2, len(content) - 1):
            assert problem(file, content[:length]).startswith(f"{file}: "), length
    for name in BLOCKS:
        place = page.index(f'id="{name}" data-crc32'.encode()) + 60
        changed = page[:place] + bytes([page[place] ^ 1]) + page[place + 1 :]
        assert f"damaged (its {name}" in problem(tmp_path / "any name", changed)
    before = re.sub(rb'<meta name="sha256" content="\w+">\n', b"", page)  # as earlier versions made it
    assert len(before) < len(page)
    (tmp_path / "before.html").write_bytes(before)
    assert rhapsode.check(tmp_path / "before.html")[0].how == "checksum of its data alone"
    ours = Path(__file__).parents[1]
    for file in (ours / "docs" / "page" / "storyteller.html", ours / "src" / "rhapsode" / "packaged" / "model.packed"):
        assert rhapsode.check(file)[0].problem is None
    assert "its about" in problem(tmp_path / "before.html", before.replace(b'"end": "', b'"end": "x'))


def test_a_prepared_store(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a store that `rhapsode prepare` made and check does not know, and a file of it that is left out."""
    from rhapsode.tokens import shards

    monkeypatch.setattr(shards, "SHARD_BYTES", 200)
    (tmp_path / "a.txt").write_text("\n<|endoftext|>\n".join(f"{i} was a number of its own." for i in range(20)))
    store = tmp_path / "store"
    rhapsode.prepare_store(tmp_path / "a.txt", store, tokenizer=tiny_run / "tokenizer")
    assert [each.problem for each in rhapsode.check(store) if each.problem] == []
    for file in sorted(path for path in store.rglob("*") if path.is_file() and path.name[0] != "."):
        content = file.read_bytes()
        place = content.index(b"{") if file.suffix == ".json" else len(content) // 2
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        named = str(file if file.suffix else file.parent)  # of SHA256SUMS, the file that it is said of
        assert any(named in (each.problem or "") for each in rhapsode.check(store)), file
        file.write_bytes(content)
    (tmp_path / "b.txt").write_text((tmp_path / "a.txt").read_text().replace("was", "had"))
    rhapsode.prepare_store(tmp_path / "b.txt", tmp_path / "other", tokenizer=tiny_run / "tokenizer")
    os.rename(store / "shard-00000", tmp_path / "first")
    shutil.copytree(tmp_path / "other" / "shard-00000", store / "shard-00000")
    assert any("do not belong together" in (each.problem or "") for each in rhapsode.check(store))
    shutil.rmtree(store / "shard-00000")
    os.rename(tmp_path / "first", store / "shard-00000")
    assert [each.problem for each in rhapsode.check(store) if each.problem] == []
    shutil.rmtree(store / "tokenizer")
    train_tokenizer(["another text"], "characters", 30).save(store / "tokenizer")
    assert any("not the tokenizer of this store" in (each.problem or "") for each in rhapsode.check(store))


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
