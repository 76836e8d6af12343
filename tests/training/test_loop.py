"""The training loop: exact resume, validation that disturbs nothing, and an end that loses nothing."""

import errno
import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from begun import MODELS, AskedAfter, assert_same_end, timeless
from filelock import FileLock
from torch.nn import functional as F

from rhapsode.evaluation import Score
from rhapsode.model import LanguageModel, build_model
from rhapsode.run import Run
from rhapsode.threads import ThreadChooser
from rhapsode.tokens import BatchConfig, Batcher, TokenStore
from rhapsode.training import Outcome, loop, train_run


def interrupted(
    run: Run, small: Any, monkeypatch: pytest.MonkeyPatch, looks: int, valid: TokenStore | None = None
) -> Outcome:
    with monkeypatch.context() as patch:
        patch.setattr(loop, "interruptible", lambda: nullcontext(AskedAfter(looks)))
        return train_run(Run.open(run.path), small.train, valid or small.valid, show=False)


def go(run: Run, small: Any) -> Outcome:
    return train_run(Run.open(run.path), small.train, small.valid, show=False)


@pytest.mark.parametrize("optimizer", ["muon", "adamw", "adam"])
@pytest.mark.parametrize("kind", ["plain", "stacked", "carried", "first"])
def test_resumed_run_ends_bit_by_bit_as_one_never_stopped(
    begin: Callable[..., Run], small: Any, monkeypatch: pytest.MonkeyPatch, optimizer: str, kind: str
) -> None:
    """Would catch anything that decides a step and is not saved: optimiser, dropout, place in the data, state.

    Stopped after 1 step, within the first validation, after it, within an epoch's last steps, and in a row.
    """
    options = {
        "model": MODELS["plain" if kind == "plain" else "stacked"],
        "optimizer": {"optimizer": optimizer, "weight_decay": 0.0 if optimizer == "adam" else 0.1},
        "batch": {"carry_state": kind == "carried", "form": "first" if kind == "first" else "stream"},
    }
    straight, stopped = begin("straight", **options), begin("stopped", **options)
    assert go(straight, small).ended == "budget"
    steps = []
    for looks in (1, 5, 0, 1, 9, 3, 4):  # the look after the sixth step comes within its validation
        outcome = interrupted(stopped, small, monkeypatch, looks)
        assert outcome.ended == "interrupted"
        steps.append((outcome.progress.step, outcome.progress.validations))
    assert steps == [(1, 0), (6, 0), (6, 0), (6, 1), (14, 2), (17, 2), (20, 3)]
    outcome = go(stopped, small)
    assert outcome.ended == "budget"
    assert outcome.progress.validations == 4
    assert_same_end(stopped, straight)
    assert ("state/0/hidden" in straight.load("last").tensors) == (kind == "carried")  # type: ignore[union-attr]


def without(name: str) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    """Takes a tensor or a field of progress away."""
    return lambda tensors, progress: (tensors if name in tensors else progress).pop(name)


def put(name: str, value: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    """Puts another tensor or field of progress there."""
    return lambda tensors, progress: (tensors if isinstance(value, torch.Tensor) else progress).update({name: value})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (put("optimizer/0/rnn.out.weight/momentum", torch.zeros(3)), r"momentum has the shape \[3\], it must have"),
        (put("optimizer/1/rnn.out.weight/exp_avg", torch.zeros(10, 10)), "does not belong to this run's optimisers"),
        (put("optimizer/9/rnn.out.weight/momentum", torch.zeros(10, 10)), "does not belong to this run's optimisers"),
        (put("optimizer/0/other/momentum", torch.zeros(3)), "0/other/momentum does not belong"),
        (put("optimizer/0", torch.zeros(3)), "not enough values to unpack"),
        (without("optimizer/1/rnn.out.bias/exp_avg_sq"), "optimizer/1/rnn.out.bias/exp_avg_sq is missing"),
        (without("optimizer/0/rnn.out.weight/momentum"), "optimizer/0/rnn.out.weight/momentum is missing"),
        (without("generator/cpu"), "'generator/cpu' is missing"),
        (put("generator/cpu", torch.zeros(7, dtype=torch.uint8)), "RNG state"),
        (put("generator/cpu", torch.zeros(7)), "RNG state|ByteTensor"),
        (without("model/rnn.out.bias"), "do not match the model config"),
        (without("state/0/hidden"), r"state/0/hidden has the shape None, the model's is \[4, 10\]"),
        (
            put("state/0/hidden", torch.zeros(3, 10)),
            r"state/0/hidden has the shape \[3, 10\], the model's is \[4, 10\]",
        ),
        (put("state/1/hidden", torch.zeros(4, 10)), "state/1/hidden has the shape"),
        (without("step"), "'progress.step' is missing"),
        (without("timed_from"), "'timed_from' is missing"),
        (put("timed_from", 5), "cannot unpack|not iterable"),
        (put("step", "six"), "progress.step must be a whole number, got 'six'"),
        (put("flavour", 1), "the field 'flavour'"),
        (put("batcher", {"epoch": 0}), "'position' is missing"),
        (put("batcher", {"epoch": 0, "position": 10**9}), "does not match data"),
        (put("metrics_bytes", "all"), "metrics_bytes must be a whole number, got 'all'"),
    ],
)
def test_a_state_that_cannot_be_restored_is_one_line(
    begin: Callable[..., Run],
    small: Any,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[dict[str, Any], dict[str, Any]], None],
    message: str,
) -> None:
    """Would catch a traceback, a moment that silently begins at zero, and metrics that are cut before that is known."""
    run = begin(batch={"carry_state": True})
    interrupted(run, small, monkeypatch, 5)
    checkpoint = run.load("last")
    assert checkpoint is not None
    with run.metrics_path.open("a") as stream:
        stream.write('{"event": "of a later step"}\n')
    before = run.metrics_path.read_bytes()
    progress = dict(checkpoint.progress)
    damage(checkpoint.tensors, progress)
    run._save("last", checkpoint.tensors, progress)
    with pytest.raises(ValueError, match=message) as caught:
        go(run, small)
    beginnings = (
        f"{run.path / 'last.safetensors'}: training cannot be resumed from it: ",
        f"{run.path}: the saved weights ",
    )
    assert str(caught.value).startswith(beginnings)
    assert "\n" not in str(caught.value)
    assert run.metrics_path.read_bytes() == before


@pytest.mark.parametrize("name", ["metrics.jsonl", "log.txt", "last.safetensors"])
def test_a_full_disk_while_training_names_the_file(
    begin: Callable[..., Run], small: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Would catch a full disk that names no file, and a run that cannot go on once there is room."""
    expected = begin("never")
    go(expected, small)
    run = begin("full")
    file = run.path / name
    opened, write_bytes = Path.open, Path.write_bytes

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class Full:
        def __init__(self, stream: Any) -> None:
            self.stream = stream

        def close(self) -> None:
            self.stream.close()

        write = full

    with monkeypatch.context() as patch:
        patch.setattr(
            Path,
            "open",
            lambda p, *a, **o: Full(opened(p, *a, **o)) if p == file and a == ("ab",) else opened(p, *a, **o),
        )
        patch.setattr(Path, "write_bytes", lambda p, b: full() if p.name.startswith(f".{name}") else write_bytes(p, b))
        if name == "log.txt":  # no reason not to train
            assert go(run, small).ended == "budget"
        else:
            with pytest.raises(OSError) as caught:
                go(run, small)
            assert caught.value.errno == errno.ENOSPC
            assert caught.value.filename == str(file)
    go(run, small)
    assert_same_end(run, expected)


def test_going_on_with_a_finished_run_changes_nothing(begin: Callable[..., Run], small: Any) -> None:
    """Would catch one more step, validation or line for each --resume."""
    run = begin()
    go(run, small)
    before = {file.name: file.read_bytes() for file in run.path.iterdir() if file.suffix in (".safetensors", ".jsonl")}
    assert go(run, small).ended == "budget"
    assert {name: (run.path / name).read_bytes() for name in before} == before


def test_seed_decides_all(begin: Callable[..., Run], small: Any) -> None:
    """Would catch a generator that is not seeded, and a seed that is not used."""
    runs = [begin(name, MODELS["stacked"], seed=seed) for name, seed in (("a", 3), ("b", 3), ("c", 4))]
    first, again, other = runs
    torch.manual_seed(0)
    go(first, small)
    torch.manual_seed(1)
    go(again, small)
    go(other, small)
    assert_same_end(first, again)
    assert timeless(first.metrics()) != timeless(other.metrics())


def test_validation_moves_no_generator(begin: Callable[..., Run], small: Any) -> None:
    """Would catch a validation, or the sample that is written there, that draws from the training's generator."""
    often = begin("often", MODELS["stacked"], validations=8, prompt="Once")
    seldom = begin("seldom", MODELS["stacked"], validations=1)
    go(often, small)
    go(seldom, small)
    found, expected = often.load("last"), seldom.load("last")
    assert len([entry for entry in often.metrics() if entry["event"] == "valid"]) == 8
    for name, tensor in expected.tensors.items():  # type: ignore[union-attr]
        assert torch.equal(found.tensors[name], tensor), name  # type: ignore[union-attr]


def test_validations_at_each_tenth_on_all_data(begin: Callable[..., Run], small: Any) -> None:
    """Would catch a validation left out, made twice, or on a part; and a train_loss that is a mean of means."""
    optimizer, batch = {"optimizer": "adamw", "learning_rate": 1e-30}, {"form": "first", "window": 50}
    run = begin(validations=10, sequences=4 * 33, batch=batch, optimizer=optimizer)
    outcome = go(run, small)
    valid = [entry for entry in run.metrics() if entry["event"] == "valid"]
    assert [entry["step"] for entry in valid] == [4, 7, 10, 14, 17, 20, 24, 27, 30, 33]
    assert outcome.valid is not None
    assert outcome.valid.num_tokens == small.valid.num_tokens
    assert valid[-1]["valid_loss"] == outcome.valid.nats_per_token
    assert valid[-1]["bits_per_byte"] == outcome.valid.bits_per_byte
    assert [entry["unspelled_share"] for entry in valid] == [0.0] * 10
    # At a rate of nothing the weights stay: the mean over the tokens of steps 31 to 33 can be had at once.
    model = build_model(run.model_config, 0)
    batcher = Batcher(small.train, BatchConfig(50, 4, "first"), 0)
    batches = [batcher.next() for _ in range(33)][30:]
    nats = sum(model.loss(batch.inputs, batch.targets, reduction="sum")[0].item() for batch in batches)
    scored = sum(int((batch.targets != -100).sum()) for batch in batches)
    assert valid[-1]["train_loss"] == pytest.approx(nats / scored, rel=1e-6)


def test_validation_pays_for_what_the_tokenizer_cannot_spell(begin: Callable[..., Run], small: Any) -> None:
    """Would catch a validation text of unknown characters that scores better than one that can be read."""
    valid = small.valid
    unspelled = np.full((len(valid.byte_counts), 2), [8, 80])
    columns = (valid.tokens, valid.offsets, valid.byte_counts, valid._marks, valid._about)
    lossy = TokenStore(*columns, valid.indices, valid.fingerprint, unspelled)
    run = begin(validations=1, sequences=40)
    outcome = train_run(run, small.train, lossy, show=False)
    assert outcome.valid is not None
    entry = next(entry for entry in run.metrics() if entry["event"] == "valid")
    bits = outcome.valid.nats / math.log(2) + 81 * lossy.num_stories
    assert entry["bits_per_byte"] == pytest.approx(bits / lossy.num_bytes)
    assert entry["valid_loss"] == outcome.valid.nats / outcome.valid.num_tokens
    assert entry["unspelled_share"] == 8 * lossy.num_stories / lossy.num_bytes
    paid = f"{81 * lossy.num_stories / lossy.num_bytes:.3f} of it for what the tokenizer cannot represent"
    assert paid in (run.path / "log.txt").read_text()


@pytest.mark.parametrize("kind", MODELS)
def test_carried_state_reaches_the_next_batch(begin: Callable[..., Run], small: Any, kind: str) -> None:
    """Would catch a state that is dropped, cut short, or carried over the end of an epoch: it would still train.

    With a rate of nothing, the loss of batch 2 is that of the second half of both batches read as one.
    """
    options = {**MODELS[kind], **({"dropout": 0.0} if kind == "stacked" else {})}
    optimizer = {"optimizer": "adamw", "learning_rate": 1e-30}
    run = begin("run", options, optimizer, {"carry_state": True}, sequences=8)
    go(run, small)
    model = build_model(run.model_config, 0)
    batcher = Batcher(small.train, BatchConfig(16, 4, carry_state=True), 0)
    first, second = batcher.next(), batcher.next()
    logits, _ = model(torch.cat((first.inputs, second.inputs), dim=1))
    expected = F.cross_entropy(logits[:, 16:].flatten(0, 1), second.targets.flatten()).item()
    alone = F.cross_entropy(model(second.inputs)[0].flatten(0, 1), second.targets.flatten()).item()
    losses = [entry["train_loss"] for entry in run.metrics() if entry["event"] == "train"]
    assert losses[1] == pytest.approx(expected, rel=1e-6)
    assert losses[1] != pytest.approx(alone, rel=1e-5)
    hidden = run.load("last").tensors["state/0/hidden"]  # type: ignore[union-attr]
    assert hidden.shape == (4, 10)


def stub_scores(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> list[dict[str, torch.Tensor]]:
    """Validations that find these losses; returns the weights at each of them."""
    weights: list[dict[str, torch.Tensor]] = []

    def score(model: LanguageModel, *_: Any) -> Score:
        weights.append({f"model/{name}": p.detach().clone() for name, p in model.named_parameters()})
        return Score(losses[len(weights) - 1] * 10, 10, 10, 1)

    monkeypatch.setattr(loop, "score", score)
    return weights


def test_best_and_last(begin: Callable[..., Run], small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a best checkpoint that is the last one, or one of a tie."""
    weights = stub_scores(monkeypatch, [3.0, 2.0, 2.0, 2.5])
    run = begin()
    outcome = go(run, small)
    assert (outcome.ended, outcome.progress.best_loss, outcome.progress.best_step) == ("budget", 2.0, 12)
    best, last = run.load("best"), run.load("last")
    assert best is not None
    assert last is not None
    assert best.progress == {"step": 12, "valid_loss": 2.0}
    for name in weights[0]:
        assert torch.equal(best.tensors[name], weights[1][name])
        assert torch.equal(last.tensors[name], weights[3][name])
    assert [entry["best"] for entry in run.metrics() if entry["event"] == "valid"] == [True, True, False, False]
    for name, p in run.load_model("last").named_parameters():
        assert torch.equal(p, weights[3][f"model/{name}"])
    for name, p in run.load_model().named_parameters():
        assert torch.equal(p, weights[1][f"model/{name}"])


def test_patience(begin: Callable[..., Run], small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a count that a new best does not set back, and a run that goes on when it is resumed."""
    stub_scores(monkeypatch, [3.0, 3.1, 2.9, 3.0, 2.95, 1.0])
    run = begin(validations=8, patience=2)
    outcome = go(run, small)
    assert (outcome.ended, outcome.progress.step, outcome.progress.best_step) == ("patience", 15, 9)
    before = run.metrics()
    assert go(run, small).ended == "patience"
    assert Run.open(run.path).metrics() == before
    assert "stopped early, no improvement in 2 validations" in (run.path / "log.txt").read_text()


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_not_finite_stops_before_the_update(
    begin: Callable[..., Run], small: Any, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Would catch weights spoilt by a NaN, the wrong step named, and a run that cannot be gone on with."""
    run, straight = begin("run", checkpoint_seconds=0.0), begin("straight", checkpoint_seconds=0.0)
    loss, calls = LanguageModel.loss, [0]

    def spoilt(model: LanguageModel, *arguments: Any, **options: Any) -> Any:
        nats, state = loss(model, *arguments, **options)
        calls[0] += model.training
        if calls[0] == 9 and model.training:
            # sqrt at 0 has an infinite slope, and 0 times that is NaN
            nats = nats * math.nan if what == "loss" else nats + (model.lm_head.weight.sum() * 0).sqrt()
        return nats, state

    with monkeypatch.context() as patch:
        patch.setattr(LanguageModel, "loss", spoilt)
        with pytest.raises(FloatingPointError, match=r"became (nan|inf) at step 9; .*learning_rate"):
            go(run, small)
    last = run.load("last")
    assert last is not None
    assert last.progress["step"] == 8
    assert all(tensor.isfinite().all() for tensor in last.tensors.values())
    assert "at step 9" in (run.path / "log.txt").read_text()
    run.load_model("last")
    go(run, small)
    go(straight, small)
    assert_same_end(run, straight)


def test_runaway_learning_rate(begin: Callable[..., Run], small: Any) -> None:
    """Would catch a diverged run that trains on in NaN, and one whose checkpoint holds it."""
    run = begin(optimizer={"optimizer": "adamw", "learning_rate": 1e30, "warmup_steps": 0}, checkpoint_seconds=0.0)
    with pytest.raises(FloatingPointError, match=r"at step [23];"):
        go(run, small)
    last = run.load("last")
    assert last is not None
    assert all(tensor.isfinite().all() for tensor in last.tensors.values())


def test_validation_loss_not_finite(begin: Callable[..., Run], small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch NaN taken for the best loss (nothing is less than it), and the wrong step named."""
    stub_scores(monkeypatch, [3.0, math.nan])
    run = begin()
    with pytest.raises(FloatingPointError, match="validation loss became nan after step 12;"):
        go(run, small)
    assert run.load("best").progress["step"] == 6  # type: ignore[union-attr]


def test_tied_embeddings(begin: Callable[..., Run], small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a tied head saved apart, or loaded so that it is tied no more."""
    options = {**MODELS["stacked"], "tie_embeddings": True}
    run, straight = begin("run", options), begin("straight", options)
    interrupted(run, small, monkeypatch, 8)
    go(run, small)
    go(straight, small)
    assert_same_end(run, straight)
    model = run.load_model()
    assert model.lm_head.weight is model.embeddings.weight
    assert "model/lm_head.weight" not in run.load("last").tensors  # type: ignore[union-attr]


def test_id_lists_without_text(begin: Callable[..., Run], tmp_path: Path) -> None:
    """Would catch a sample or bits per byte asked of data that have no text."""
    random = np.random.default_rng(0)
    lengths = random.integers(2, 30, size=40)
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    about = {"fingerprint": "f", "eos_id": 1, "vocab_size": 300, "has_text": False, "description": "ids"}
    ids = random.integers(0, 290, size=offsets[-1]).astype(np.uint16)
    store = TokenStore(ids, offsets, np.zeros(40, np.int64), np.empty((0, 2), np.int64), about)
    stores = SimpleNamespace(**dict(zip(("train", "valid"), store.hold_out(0.2, 0), strict=True)))
    run = begin(tokenizer=None, batch={"form": "first"})
    outcome = go(run, stores)
    assert outcome.valid is not None
    assert outcome.valid.bits_per_byte is None
    assert outcome.valid.num_tokens == stores.valid.num_tokens - stores.valid.num_stories
    assert [entry["bits_per_byte"] for entry in run.metrics() if entry["event"] == "valid"] == [None] * 4
    with pytest.raises(ValueError, match="no tokenizer, because it was trained on token ids"):
        _ = run.tokenizer


class Clock:
    """A clock in place of `time` that moves by `tick` seconds each time it is read."""

    def __init__(self, tick: float) -> None:
        self.now, self.tick = 0.0, tick

    def monotonic(self) -> float:
        self.now += self.tick
        return self.now


def test_minutes_end_in_time(begin: Callable[..., Run], small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a budget in minutes that counts validation, or a schedule that does not end at zero."""
    monkeypatch.setattr(loop, "time", Clock(0.25))
    run = begin(minutes=0.2, optimizer={"warmup_steps": 12}, validations=10)
    outcome = go(run, small)
    assert outcome.progress.step == 48
    # The plan is made at step 10, and the first validation comes then; what it has missed is not made up for.
    steps = [entry["step"] for entry in run.metrics() if entry["event"] == "valid"]
    assert steps == [10, 15, 20, 24, 29, 34, 39, 44, 48]
    assert outcome.progress.seconds == pytest.approx(12.0)
    assert Run.open(run.path).about["plan"][0] == [10, 48]
    rates = [entry["rate"] for entry in run.metrics() if entry["event"] == "train"]
    assert rates[-1] == pytest.approx(1 / 36)


def test_killed_after_planning_repeats_the_plan(
    begin: Callable[..., Run], small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a plan that counted before it was stored, or is made again at another pace after a kill.

    Killed between the plan that the second validation mends and its checkpoint, the run goes on from the first
    validation, on a machine three times as slow; up to the third validation all is as it was.
    """
    options: dict[str, Any] = {"minutes": 0.2, "optimizer": {"warmup_steps": 12}, "checkpoint_seconds": 1e9}
    straight, killed = begin("straight", **options), begin("killed", **options)
    clock = Clock(0.25)
    monkeypatch.setattr(loop, "time", clock)
    go(straight, small)
    save, saved = loop.Training.save, []

    def save_or_die(training: Any) -> None:
        saved.append(training.progress.step)
        if len(saved) == 2:
            raise KeyboardInterrupt
        save(training)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "save", save_or_die)
        with pytest.raises(KeyboardInterrupt):
            go(killed, small)
    stored = Run.open(killed.path).about["plan"]
    assert stored[-1][0] == saved[1] == 24
    clock.tick = 0.75
    go(killed, small)
    assert Run.open(killed.path).about["plan"][: len(stored)] == stored
    until = [entry for entry in timeless(straight.metrics()) if entry["step"] <= 24]
    assert [entry for entry in timeless(killed.metrics()) if entry["step"] <= 24] == until
    assert killed.metrics()[-1]["step"] < 48


def test_run_in_use_is_refused(begin: Callable[..., Run], small: Any) -> None:
    """Would catch two processes that write into one directory, and a refused one that wrote before it asked."""
    run = begin()
    code = "import sys; from rhapsode.run import Run; from pathlib import Path\n"
    code += "with Run.open(Path(sys.argv[1])).lock(): print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(run.path)]
    before = (run.path / "run.json").read_bytes()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError, match="another process is training in it"):
            go(run, small)
        assert (run.path / "run.json").read_bytes() == before
        assert not run.metrics_path.exists()
        other.communicate("")
    assert go(run, small).ended == "budget"


def test_a_look_at_the_lock_is_waited_for(
    begin: Callable[..., Run], small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server's look at whether a run trains holds its lock for a moment, a longer one on a busy machine. Would catch
    a training that is refused for that."""
    monkeypatch.setattr("rhapsode.run.SECONDS_FOR_A_LOOK", 600.0)
    run = begin()
    look = FileLock(run.path / ".lock", thread_local=False)
    look.acquire()
    threading.Timer(0.3, look.release).start()
    assert go(run, small).ended == "budget"
    assert not run.is_training()


def test_other_threads_are_told(begin: Callable[..., Run], small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a resumed run that is not exact, and silent about it."""
    run = begin()
    interrupted(run, small, monkeypatch, 3)
    before = torch.get_num_threads()
    assert Run.open(run.path).about["threads"] == before
    try:
        torch.set_num_threads(before + 1)
        interrupted(run, small, monkeypatch, 3)
    finally:
        torch.set_num_threads(before)
    log = (run.path / "log.txt").read_text()
    assert f" and now uses {before + 1}, so its numbers can differ in the last digits; --threads {before} gives" in log
    about = Run.open(run.path).about
    assert (about["threads"], about["thread_plan"]) == (before, [[3, before + 1]])


def test_threads_that_change_on_the_way_are_recorded(
    begin: Callable[..., Run], small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A neighbour comes at step 3 and goes at step 6: run.json says which steps had how many, the log says why."""
    run = begin()
    before = torch.get_num_threads()

    def worked(chooser: ThreadChooser, kind: str, seconds: float, units: float = 1.0) -> None:
        step = run_steps.append(kind) or run_steps.count("step")
        if kind == "step" and step in (3, 6):
            chooser._use(1 if step == 3 else chooser.most)

    run_steps: list[str] = []
    monkeypatch.setattr(ThreadChooser, "worked", worked)
    torch.set_num_threads(2)
    try:
        go(run, small)
    finally:
        torch.set_num_threads(before)
    assert Run.open(run.path).about["thread_plan"] == [[3, 1], [6, 2]]
    log = (run.path / "log.txt").read_text()
    assert "step 3: now using 1 thread, because another process keeps a core busy" in log
    assert "step 6: now using 2 threads, the cores are free again" in log


def test_metrics_are_objects_of_one_form(begin: Callable[..., Run], small: Any) -> None:
    """Would catch a line that other programs cannot read, and counts that do not fit the step."""
    run = begin(sequences=4 * 250, batch={"window": 3})
    go(run, small)
    entries = [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
    trained = [entry for entry in entries if entry["event"] == "train"]
    assert len(trained) == 125  # every 2nd of 250: at least a hundred
    for entry in entries:
        assert entry["sequences"] == 4 * entry["step"]
        assert entry["tokens"] == 12 * entry["step"]
    assert all(set(entry) >= {"train_loss", "gradient_norm", "rate", "seconds"} for entry in trained)


def test_tensorboard(begin: Callable[..., Run], small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch scalars at the wrong step, and steps shown twice after a kill."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = begin()
    step = loop.Training._step

    def die_at_10(training: Any) -> None:
        if training.progress.step == 10:
            raise RuntimeError
        step(training)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "_step", die_at_10)
        with pytest.raises(RuntimeError):
            train_run(run, small.train, small.valid, tensorboard=True, show=False)
    train_run(Run.open(run.path), small.train, small.valid, tensorboard=True, show=False)
    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    for event, name in (
        ("train", "train_loss"),
        ("train", "rate"),
        ("valid", "valid_loss"),
        ("valid", "bits_per_byte"),
    ):
        shown = [(scalar.step, scalar.value) for scalar in events.Scalars(f"{event}/{name}")]
        expected = [(entry["step"], entry[name]) for entry in run.metrics() if entry["event"] == event]
        assert [step for step, _ in shown] == [step for step, _ in expected]
        assert [value for _, value in shown] == pytest.approx([value for _, value in expected])
