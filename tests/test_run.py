"""Run directories: there whole or not at all, and clear about what is wrong with them."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from rhapsode.atomic import replacing, write_text
from rhapsode.model import ModelConfig, build_model
from rhapsode.run import Run, check_free, load_weights, new_directory, weights_of

CONFIG = ModelConfig(11, embed_dim=2, hidden_dim=3, key_dim=4, value_dim=5)
ABOUT = {"model": CONFIG.__dict__}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run", ABOUT, None)


def test_created_whole_or_not_at_all(tmp_path: Path, small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a directory that is there before its files are, and leftovers of one that failed."""

    def fail(*_: Any) -> None:
        assert not (tmp_path / "run").exists()
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("rhapsode.run.write_text", fail)
        with pytest.raises(OSError, match="disk full"):
            Run.create(tmp_path / "run", ABOUT, small.tokenizer)
    with monkeypatch.context() as patch:
        patch.setattr("safetensors.torch.save", fail)
        with pytest.raises(OSError, match="disk full"):
            Run.create(tmp_path / "run", ABOUT, small.tokenizer, build_model(CONFIG))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "run").mkdir()  # an empty directory is no obstacle
    run = Run.create(tmp_path / "run", ABOUT, small.tokenizer)
    assert Run.open(tmp_path / "run").about == run.about
    assert run.about["format_version"] == 1
    assert run.tokenizer.fingerprint == small.tokenizer.fingerprint
    assert run.model_config == CONFIG
    assert os.stat(run.path).st_mode & 0o777 == 0o755
    assert Run.create(tmp_path / "a" / "b" / "c", ABOUT, None).path.is_dir()


def test_nothing_is_overwritten(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a second run over the first, also one that another process made a moment ago."""
    before = (run.path / "run.json").read_bytes()
    with pytest.raises(FileExistsError, match=r"run holds a run; --resume goes on with it; choose another"):
        Run.create(run.path, ABOUT, None)
    with monkeypatch.context() as patch:
        checks = iter([lambda path: None])  # it was free when we looked
        patch.setattr("rhapsode.run.check_free", lambda path: next(checks, check_free)(path))
        with pytest.raises(FileExistsError, match="run holds a run"):
            Run.create(run.path, {**ABOUT, "other": 1}, None)
    assert (run.path / "run.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    (tmp_path / "file").write_text("precious")
    with pytest.raises(FileExistsError, match="file is there already"):
        Run.create(tmp_path / "file", ABOUT, None)
    with pytest.raises(OSError, match=re.escape(str(tmp_path / "file"))):
        Run.create(tmp_path / "file" / "run", ABOUT, None)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="folder is there already"):
        Run.create(tmp_path / "folder", ABOUT, None)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"7", b"{}", b"\xff\xfe", b'{"format_version": 1'])
def test_damaged_run_json(run: Run, content: bytes) -> None:
    """Would catch a traceback in place of one line that names the file."""
    (run.path / "run.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"run\.json: damaged"):
        Run.open(run.path)


def test_not_a_run(tmp_path: Path, run: Run) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty: no run\.json in it; a run is a directory that"):
        Run.open(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="nothing: no such directory"):
        Run.open(tmp_path / "nothing")
    run.update(format_version=2)
    with pytest.raises(ValueError, match="format_version 2, this program reads 1"):
        Run.open(run.path)
    run.update(format_version=1, model={"vocab_size": 3, "flavour": "sweet"})
    with pytest.raises(ValueError, match=r"run\.json: not a model config this program knows .*flavour"):
        _ = Run.open(run.path).model_config


def test_damaged_checkpoint(run: Run) -> None:
    """Would catch a half-copied file that is loaded as a model, and safetensors that are none of ours."""
    run.save_last(weights_of(build_model(CONFIG, 0)), {"step": 1})
    file = run.path / "last.safetensors"
    content = file.read_bytes()
    for damaged in (b"", b"\0" * 100, content[:-1], content[: len(content) // 2]):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"last\.safetensors: damaged or not a checkpoint"):
            run.load("last")
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match="damaged or not a checkpoint"):
        run.load("last")
    run.save_last({"model/other": torch.zeros(1)}, {})
    with pytest.raises(ValueError, match="do not fit the model config"):
        run.load_model()


def test_checkpoints_come_back(run: Run) -> None:
    """Would catch weights that are rounded, or loaded into a model in training mode."""
    with pytest.raises(FileNotFoundError, match="nothing saved yet; train it on with --resume --out"):
        run.load_model()
    model = build_model(CONFIG, 5)
    run.save_last(weights_of(model), {"step": 3})
    loaded = run.load_model()  # no validation yet: best falls back to last
    assert not loaded.training
    for (name, p), q in zip(model.named_parameters(), loaded.named_parameters(), strict=True):
        assert torch.equal(p, q[1]), name
    other = build_model(CONFIG, 6)
    run.save_best(other, {"step": 2})
    assert torch.equal(run.load_model().lm_head.weight, other.lm_head.weight)
    assert torch.equal(run.load_model("last").lm_head.weight, model.lm_head.weight)
    with pytest.raises(ValueError, match="checkpoint must be one of best, last, got 'first'"):
        run.load_model("first")
    with pytest.raises(ValueError, match="do not fit"):
        load_weights(build_model(ModelConfig(12), 0), weights_of(model), "here")


def test_checkpoint_replaced_while_it_is_read(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a file that is opened twice while another process trains: half the old one, half the new one."""
    model = build_model(CONFIG, 5)
    run.save_last(weights_of(model), {"step": 9})
    load = safetensors.torch.load

    def replace_first(content: bytes) -> dict[str, torch.Tensor]:
        run.save_last(weights_of(build_model(CONFIG, 6)), {"step": 10})
        return load(content)

    monkeypatch.setattr(safetensors.torch, "load", replace_first)
    found = run.load("last")
    assert found is not None
    assert found.progress == {"step": 9}
    assert torch.equal(found.tensors["model/lm_head.weight"], model.lm_head.weight)


def test_metrics_are_cut_back_to_the_checkpoint(run: Run) -> None:
    """Would catch lines of steps that a resumed run makes again, and a half line that spoils the file."""
    first, second = '{"step": 1}\n', '{"step": 2}\n'
    assert run.metrics() == []
    run.metrics_path.write_text(first)
    run.save_last({"x": torch.zeros(1)}, {"step": 1})
    with run.metrics_path.open("a") as stream:
        stream.write(second + '{"step": 3, "los')
    assert [entry["step"] for entry in run.metrics()] == [1, 2]
    checkpoint = run.load_last()
    assert checkpoint is not None
    assert checkpoint.progress == {"step": 1, "metrics_bytes": len(first)}
    assert run.metrics_path.read_text() == first


def test_metrics_without_a_checkpoint_begin_anew(run: Run) -> None:
    run.metrics_path.write_text('{"step": 1}\n')
    assert run.load_last() is None
    assert run.metrics_path.read_text() == ""


def test_metrics_are_not_filled_with_zeros(run: Run) -> None:
    """Would catch a cut that makes a shorter file longer: a user may have emptied it."""
    run.metrics_path.write_text('{"step": 1}\n')
    run.save_last({"x": torch.zeros(1)}, {})
    run.metrics_path.write_text("")
    run.load_last()
    assert run.metrics_path.read_bytes() == b""


def test_lock_reads_what_another_process_wrote(run: Run) -> None:
    """Would catch a plan that is lost because a second process, opened before, writes run.json as it was."""
    early = Run.open(run.path)
    with run.lock():
        run.update(plan=[[10, 50]])
        with pytest.raises(BlockingIOError, match="another process is training in it"), early.lock():
            pass
    with early.lock():
        early.update(threads=1)
    assert Run.open(run.path).about["plan"] == [[10, 50]]


def test_leftovers_of_a_killed_process_are_swept_up(run: Run) -> None:
    """Would catch a directory that grows by a checkpoint with each kill."""
    for name in (".last.safetensors.abc", ".best.safetensors.x_y", ".run.json.1", ".mine", "notes.txt"):
        (run.path / name).write_text("")
    with run.lock():
        names = {path.name for path in run.path.iterdir()}
    assert names == {".lock", ".mine", "notes.txt", "run.json"}


def test_new_directory(tmp_path: Path) -> None:
    """Would catch a name that is taken."""
    parent = tmp_path / "runs"
    first = new_directory(parent)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d-1", first.name)
    first.mkdir(parents=True)
    assert new_directory(parent).name == f"{first.name[:-1]}2"


def test_replacing_is_atomic(tmp_path: Path) -> None:
    """Would catch a file that is truncated before its new content is there, and a temporary file left behind."""
    file = tmp_path / "a.json"
    write_text(file, "old ☂")

    def write_half() -> None:
        with replacing(file) as temporary:
            temporary.write_text("half")
            assert file.read_text(encoding="utf-8") == "old ☂"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert file.read_text(encoding="utf-8") == "old ☂"
    write_text(file, "new")
    assert file.read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert file.stat().st_mode & 0o777 == 0o644
    with pytest.raises(OSError):
        write_text(tmp_path / "missing" / "a", "x")
