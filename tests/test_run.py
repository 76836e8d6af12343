"""Run directories: there whole or not at all, and clear about what is wrong with them."""

import errno
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from rhapsode.checking import check_files
from rhapsode.files import replacing, write_text
from rhapsode.model import ModelConfig, build_model
from rhapsode.run import Run, check_free, load_weights, new_directory, weights_of
from rhapsode.tensors import checksum
from rhapsode.terminal import told
from rhapsode.tokenizer import train_tokenizer

CONFIG = ModelConfig(11, embed_dim=2, hidden_dim=3, key_dim=4, value_dim=5)
ABOUT = {"model": CONFIG.__dict__}
TRAIN_ENTRY = {"event": "train", "step": 1, "sequences": 4, "tokens": 32, "seconds": 0.5, "train_loss": 2.0}


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
    config = ModelConfig(small.tokenizer.vocab_size, embed_dim=2)
    run = Run.create(tmp_path / "run", {"model": config.__dict__}, small.tokenizer)
    assert Run.open(tmp_path / "run").about == run.about
    assert run.about["format_version"] == 1
    assert run.tokenizer.fingerprint == small.tokenizer.fingerprint
    assert run.model_config == config
    assert os.stat(run.path).st_mode & 0o777 == 0o755
    assert Run.create(tmp_path / "a" / "b" / "c", ABOUT, None).path.is_dir()


def test_nothing_is_overwritten(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a second run over the first, also one that another process made a moment ago."""
    before = (run.path / "run.json").read_bytes()
    with pytest.raises(FileExistsError, match=r"run holds a run: resume it with --resume, or choose another"):
        Run.create(run.path, ABOUT, None)
    with monkeypatch.context() as patch:
        checks = iter([lambda path: None])  # it was free when we looked
        patch.setattr("rhapsode.run.check_free", lambda path: next(checks, check_free)(path))
        with pytest.raises(FileExistsError, match="run holds a run"):
            Run.create(run.path, {**ABOUT, "other": 1}, None)
    assert (run.path / "run.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    (tmp_path / "file").write_text("precious")
    with pytest.raises(FileExistsError, match="file already exists"):
        Run.create(tmp_path / "file", ABOUT, None)
    with pytest.raises(OSError, match=re.escape(str(tmp_path / "file"))):
        Run.create(tmp_path / "file" / "run", ABOUT, None)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="folder already exists"):
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
    with pytest.raises(ValueError, match="format_version 2, but this version of rhapsode reads 1"):
        Run.open(run.path)
    run.update(format_version=1, model={"vocab_size": 3, "flavour": "sweet"})
    with pytest.raises(
        ValueError, match=r"run\.json: model has the field 'flavour', which this version of rhapsode does not know"
    ):
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
    with pytest.raises(ValueError, match="do not match the model config"):
        run.load_model()


def test_checkpoints_come_back(run: Run) -> None:
    """Would catch weights that are rounded, or loaded into a model in training mode."""
    with pytest.raises(
        FileNotFoundError, match="no checkpoint yet; continue training with rhapsode train --resume --out"
    ):
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
    with pytest.raises(ValueError, match="do not match"):
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
    first, second = (json.dumps(TRAIN_ENTRY | {"step": step}) + "\n" for step in (1, 2))
    assert run.metrics() == []
    run.metrics_path.write_text(first)
    run.save_last({"x": torch.zeros(1)}, {"step": 1})
    with run.metrics_path.open("a") as stream:
        stream.write(second + '{"step": 3, "los')
    assert [entry["step"] for entry in run.metrics()] == [1, 2]
    checkpoint = run.load("last")
    assert checkpoint is not None
    run.cut_metrics(checkpoint)
    assert checkpoint.progress == {"step": 1, "metrics_bytes": len(first)}
    assert run.metrics_path.read_text() == first


def test_metrics_without_a_checkpoint_begin_anew(run: Run) -> None:
    run.metrics_path.write_text('{"step": 1}\n')
    assert run.load("last") is None
    run.cut_metrics(None)
    assert run.metrics_path.read_text() == ""


def test_metrics_are_not_filled_with_zeros(run: Run) -> None:
    """Would catch a cut that makes a shorter file longer: a user may have emptied it."""
    run.metrics_path.write_text('{"step": 1}\n')
    run.save_last({"x": torch.zeros(1)}, {})
    run.metrics_path.write_text("")
    run.cut_metrics(run.load("last"))
    assert run.metrics_path.read_bytes() == b""


@pytest.mark.parametrize("torn", ["\0" * 70 + "\n", '{"step": 3, "lo\n', "\0" * 70, '{"step": 3, "lo'])
@pytest.mark.parametrize("saved", [True, False])
def test_lines_torn_after_the_checkpoint_are_left_out(run: Run, torn: str, saved: bool) -> None:
    """Would catch a run that does not open after a power cut, for lines that going on would cut off anyway."""
    first, second, third = (json.dumps(TRAIN_ENTRY | {"step": step}) + "\n" for step in (1, 2, 3))
    run.metrics_path.write_text(first)
    if saved:
        run.save_last({"x": torch.zeros(1)}, {"step": 1})
    with run.metrics_path.open("a") as stream:
        stream.write(second + torn + third)
    assert [entry["step"] for entry in run.metrics()] == [1, 2]
    checked = {file.path.name: file for file in check_files(run.path)}["metrics.jsonl"]
    assert checked.problem is None
    assert "line 3 on is torn, which was written after the last checkpoint" in str(checked)
    run.cut_metrics(run.load("last"))
    assert run.metrics_path.read_text() == (first if saved else "")


def test_lines_torn_before_the_checkpoint_are_an_error(run: Run) -> None:
    """Would catch damage that is passed over: beyond the end of the line it is the checkpoint's."""
    first, second = (json.dumps(TRAIN_ENTRY | {"step": step}) + "\n" for step in (1, 2))
    run.metrics_path.write_text(first + second)
    run.save_last({"x": torch.zeros(1)}, {"step": 2})
    run.metrics_path.write_text(first + "\0" + second[1:])
    with pytest.raises(ValueError, match="line 2: damaged, not JSON; remove the line"):
        run.metrics()
    (run.path / "last.safetensors").write_bytes(b"damaged")  # nobody knows how far it was saved
    with pytest.raises(ValueError, match="line 2: damaged, not JSON; remove the line"):
        run.metrics()


def test_nothing_is_appended_to_half_a_line(run: Run) -> None:
    """Would catch a file that was cut, whose half line and the next one become one that is no JSON."""
    first, second = (json.dumps(TRAIN_ENTRY | {"step": step}) + "\n" for step in (1, 2))
    run.metrics_path.write_text(first + second)
    run.save_last({"x": torch.zeros(1)}, {"step": 2})
    os.truncate(run.metrics_path, len(first) + 9)
    run.cut_metrics(run.load("last"))
    assert run.metrics_path.read_text() == first


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


@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        ("{", "damaged, not JSON; remove the line"),
        ("[" * 100_000, "damaged, not JSON"),
        ("7", "all of it must be an object, got 7"),
        ("{}", "the field event is missing"),
        (json.dumps(TRAIN_ENTRY | {"train_loss": "low"}), "train_loss must be a number, got 'low'"),
        (json.dumps(TRAIN_ENTRY | {"event": "valid"}), "the field valid_loss is missing"),
    ],
)
def test_damaged_metrics_name_the_line(run: Run, damaged: str, message: str) -> None:
    """Would catch 'Expecting value: line 1 column 1', which names no file and counts lines of its own."""
    run.metrics_path.write_text(f"{json.dumps(TRAIN_ENTRY)}\n{damaged}\n{json.dumps(TRAIN_ENTRY)}\n")
    run.save_last({"x": torch.zeros(1)}, {})
    with pytest.raises(ValueError, match=rf"metrics\.jsonl, line 2: {re.escape(message)}"):
        run.metrics()


def test_weights_have_a_checksum(run: Run) -> None:
    """Would catch weights of which half became zeros on the way, which load as a model that writes nonsense."""
    model = build_model(CONFIG, 5)
    file = run.path / "best.safetensors"
    run.save_best(model, {"step": 2})
    content = file.read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    half = begin + (len(content) - begin) // 2
    changed = content.replace(b'\\"step\\": 2', b'\\"step\\": 3')
    assert changed != content
    for damaged in (content[:half] + bytes(len(content) - half), content[:-1] + bytes([content[-1] ^ 1]), changed):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"best\.safetensors: damaged, its contents do not match its checksum"):
            run.load_model()
    # As earlier versions wrote it.
    metadata = {"format_version": "1", "progress": '{"step": 2}'}
    file.write_bytes(safetensors.torch.save(weights_of(model), metadata))
    assert torch.equal(run.load_model().lm_head.weight, model.lm_head.weight)


def test_the_checksum_sees_everything() -> None:
    """Would catch two tensors with their names changed round, another shape or type of the same bytes."""
    a, b = torch.arange(6.0), torch.ones(6)
    different = [
        checksum(tensors, "{}")
        for tensors in (
            {"a": a, "b": b},
            {"a": b, "b": a},
            {"a": a.reshape(2, 3), "b": b},
            {"a": a.view(torch.int32), "b": b},
            {"a": a},
            {"a": a, "b": b, "c": torch.zeros(0)},
        )
    ]
    assert len({*different, checksum({"a": a, "b": b}, "[]")}) == 7
    assert checksum({"b": b, "a": a}, "{}") == different[0]
    assert checksum({"s": torch.tensor(True), "h": torch.zeros(2, dtype=torch.bfloat16)}, "")


@pytest.fixture
def with_tokenizer(tmp_path: Path, small: Any) -> Run:
    """A run with a tokenizer, as training makes it."""
    about = {
        "model": ModelConfig(small.tokenizer.vocab_size, embed_dim=2).__dict__,
        "tokenizer": small.tokenizer.fingerprint,
    }
    return Run.create(tmp_path / "with_tokenizer", about, small.tokenizer)


def test_another_tokenizer_is_refused(with_tokenizer: Run, small: Any) -> None:
    """Would catch a model that reads the ids of another tokenizer: a perplexity of thousands, or an IndexError."""
    folder = with_tokenizer.path / "tokenizer"
    other = train_tokenizer(["quite another text, with other words"] * 9, "bpe", small.tokenizer.vocab_size)
    shutil.rmtree(folder)
    other.save(folder)
    message = (
        r"tokenizer\.json: a different tokenizer \(SHA-256 [0-9a-f]{12}, but run\.json has [0-9a-f]{12}\); restore"
    )
    with pytest.raises(ValueError, match=message):
        _ = Run.open(with_tokenizer.path).tokenizer
    # One that spells the same but ends a text by another token: only a file beside tokenizer.json differs.
    small.tokenizer.save(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": "a"}))
    with pytest.raises(ValueError, match=r"tokenizer_config\.json: a different tokenizer"):
        _ = Run.open(with_tokenizer.path).tokenizer
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match=r"tokenizer: no such folder; restore the tokenizer folder"):
        _ = Run.open(with_tokenizer.path).tokenizer


def test_the_same_tokenizer_is_not_refused(
    with_tokenizer: Run, small: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch a run that a later version, whose fingerprints are others, or other line ends make unusable."""
    file = with_tokenizer.path / "tokenizer" / "tokenizer.json"
    content = file.read_bytes()
    file.write_bytes(content.replace(b"\n", b"\r\n"))
    assert Run.open(with_tokenizer.path).tokenizer.fingerprint == small.tokenizer.fingerprint
    file.write_bytes(content)
    (file.parent / "README.md").write_text("mine")
    with_tokenizer.update(tokenizer="0" * 64)
    assert Run.open(with_tokenizer.path).tokenizer.fingerprint == small.tokenizer.fingerprint
    assert capsys.readouterr().err == ""


def test_tokenizer_of_a_run_of_an_earlier_version(
    with_tokenizer: Run, small: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch earlier runs that cannot be opened, and any tokenizer taken for theirs."""
    with_tokenizer.update(tokenizer_files={})
    about = {name: value for name, value in with_tokenizer.about.items() if name != "tokenizer_files"}
    file = with_tokenizer.path / "run.json"
    file.write_text(json.dumps(about))
    assert Run.open(with_tokenizer.path).tokenizer.fingerprint == small.tokenizer.fingerprint
    assert capsys.readouterr().err == ""
    file.write_text(json.dumps(about | {"tokenizer": "0" * 64}))
    assert Run.open(with_tokenizer.path).tokenizer.fingerprint == small.tokenizer.fingerprint
    assert (
        "run.json has 000000000000: a different tokenizer, or one saved by an earlier version"
        in capsys.readouterr().err
    )
    train_tokenizer(["quite another text"] * 9, "characters", 40).save(with_tokenizer.path / "tokenizer")
    with pytest.raises(ValueError, match=r"a different tokenizer, of \d+ tokens, but the model has 300; restore"):
        _ = Run.open(with_tokenizer.path).tokenizer


def test_a_full_disk_names_the_file(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch 'No space left on device' without a word of where, and the checkpoint before it lost."""
    run.save_best(build_model(CONFIG, 1), {"step": 1})
    before = (run.path / "best.safetensors").read_bytes()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError) as caught:
            run.save_best(build_model(CONFIG, 2), {"step": 2})
    assert caught.value.filename == str(run.path / "best.safetensors")
    assert told(caught.value) == f"{run.path / 'best.safetensors'}: No space left on device; make room, then try again"
    assert (run.path / "best.safetensors").read_bytes() == before
    assert not list(run.path.glob(".best*"))
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError) as caught:
            Run.create(run.path.parent / "second", ABOUT, None)
    assert caught.value.filename == str(run.path.parent / "second")  # its folder is flushed first
    assert not (run.path.parent / "second").exists()
