"""One model trained by several processes: the curve of one, exact resume, and one line where something fails."""

import errno
import os
import signal
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from begun import MODELS, assert_same_end
from forked import in_processes

from rhapsode.model import ModelConfig, build_model
from rhapsode.run import Run
from rhapsode.terminal import ToldElsewhere
from rhapsode.tokens import BatchConfig, Batcher
from rhapsode.training import Outcome, Step, sums, train_run
from rhapsode.training.followed import FollowedRun
from rhapsode.training.gradients import BatchGradients
from rhapsode.training.group import ALONE, Group, joined

FEW_ROWS = 16  # of a table that is summed by touched rows, here
EVERYTHING = {**MODELS["stacked"], "copy_dim": 4, "cell": "gated", "tie_embeddings": True}
FORMS = {"stream": {}, "carried": {"carry_state": True}, "first": {"form": "first"}}


def small_tables() -> None:
    """In a process of a test: its models have small tables."""
    sums.FEWEST_TABLE_ROWS, sums.BUCKET_BYTES = FEW_ROWS, 1 << 10


def train_with(group: Group, run: Path, train: Any, valid: Any, accumulate: int = 1, **options: Any) -> Outcome:
    small_tables()
    own = (Run if group.leads else FollowedRun).open(run)
    return train_run(own, train, valid, show=False, group=group, accumulate=accumulate, **options)


def train_together(run: Run, small: Any, size: int, accumulate: int = 1) -> list[Any]:
    data = {"train": small.train, "valid": small.valid}
    return in_processes(size, partial(train_with, run=run.path, **data, accumulate=accumulate))


def assert_ended(ends: list[Any], ended: str = "budget") -> None:
    """All processes came to that end; shows what they raised."""
    assert [end.ended if isinstance(end, Outcome) else end for end in ends] == [ended] * len(ends)


def losses(run: Run) -> dict[str, list[float]]:
    """All losses of a run, of training and of validation."""
    entries = run.metrics()
    return {
        "train": [entry["train_loss"] for entry in entries if entry["event"] == "train"],
        "valid": [entry["valid_loss"] for entry in entries if entry["event"] == "valid"],
    }


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("division", [(2, 1), (3, 1), (4, 1), (1, 3), (2, 2)])
def test_gradients_are_those_of_the_whole_batch(small: Any, form: str, division: tuple[int, int]) -> None:
    """Would catch a mean of means, rows that two processes take, a sum left out, dropout that hangs on the division."""
    size, accumulate = division
    config = BatchConfig(window=8, batch_size=9, **FORMS[form])
    shape, train = ModelConfig(small.tokenizer.vocab_size, **EVERYTHING), small.train

    def work(group: Group) -> dict[str, Any]:
        small_tables()
        model = build_model(shape, seed=0)
        gradients = BatchGradients(model, config, group, accumulate)
        batcher = Batcher(train, config, seed=0)
        torch.manual_seed(1)
        for _ in range(2):
            model.zero_grad(set_to_none=True)
            loss = group.sum([gradients.of(batcher.next(gradients.rows))])[0]
            gradients.finish()
        named = {f"d {name}": p.grad for name, p in model.named_parameters()}
        return {"loss": torch.tensor(loss), **named, **gradients.carried(), "generator": torch.get_rng_state()}

    expected = work(ALONE)
    for rank, found in enumerate(in_processes(size, work)):
        for name in expected if rank == 0 else found:
            torch.testing.assert_close(
                found[name], expected[name], rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
            )


OPTIONS: dict[str, Any] = {
    "model": EVERYTHING,
    "optimizer": {"weight_decay": 0.1},
    "batch": {"batch_size": 9, "carry_state": True},
    "sequences": 24 * 9,
}


def assert_same_curve(found: Run, expected: Run) -> None:
    """All losses within 1e-5 of each other; one process and another division differ by rounding."""
    curve, other = losses(Run.open(found.path)), losses(Run.open(expected.path))
    assert (len(other["train"]), len(other["valid"])) == (24, 4)
    for kind, values in other.items():
        assert curve[kind] == pytest.approx(values, rel=1e-5), kind


@pytest.mark.parametrize("division", [(2, 1), (4, 1), (1, 3)])
def test_curve_is_that_of_one_process(begin: Callable[..., Run], small: Any, division: tuple[int, int]) -> None:
    """Would catch data, plan, dropout or validation that hang on the division, and metrics written twice.

    24 steps of Muon and AdamW with everything that a model can have.
    """
    size, accumulate = division
    one, several = begin("one", **OPTIONS), begin("several", **OPTIONS)
    train_run(one, small.train, small.valid, show=False)
    ends = train_together(several, small, size, accumulate)
    assert_ended(ends)
    assert len({(end.progress.step, end.progress.tokens, end.progress.best_loss) for end in ends}) == 1
    assert_same_curve(several, one)
    assert Run.open(several.path).about["division"] == [[0, *division]]
    assert "division" not in Run.open(one.path).about


def stop_at(run: Path, train: Any, valid: Any, step: int) -> Callable[[Group], Outcome]:
    """Work that one process, and not the first, is asked to stop after this step."""

    def work(group: Group) -> Outcome:
        def ask(event: Any) -> None:
            if isinstance(event, Step) and event.step == step and group.rank == group.size - 1:
                os.kill(os.getpid(), signal.SIGTERM)

        return train_with(group, run, train, valid, on_event=ask)

    return work


def test_resumed_by_as_many_processes_to_the_bit(begin: Callable[..., Run], small: Any) -> None:
    """Would catch state of a process that is not in the checkpoint, and sums whose order changes."""
    straight, stopped = begin("straight", **OPTIONS), begin("stopped", **OPTIONS)
    assert_ended(train_together(straight, small, 3))
    for step in (2, 11):
        ends = in_processes(3, stop_at(stopped.path, small.train, small.valid, step))
        assert_ended(ends, "interrupted")
        assert [end.progress.step for end in ends] == [step + 1] * 3
    assert_ended(train_together(stopped, small, 3))
    assert_same_end(Run.open(stopped.path), Run.open(straight.path))


def test_resumed_by_more_and_fewer_processes(begin: Callable[..., Run], small: Any) -> None:
    """Would catch a checkpoint that only as many processes can take: two begin, three continue, one ends."""
    one, several = begin("one", **OPTIONS), begin("several", **OPTIONS)
    data = small.train, small.valid
    train_run(one, *data, show=False)
    assert_ended(in_processes(2, stop_at(several.path, *data, 4)), "interrupted")
    assert_ended(in_processes(3, stop_at(several.path, *data, 10)), "interrupted")
    train_run(Run.open(several.path), *data, show=False)
    assert_same_curve(several, one)
    assert Run.open(several.path).about["division"] == [[0, 2, 1], [5, 3, 1], [11, 1, 1]]


def test_minutes_are_planned_by_one_clock(begin: Callable[..., Run], small: Any) -> None:
    """Would catch processes that plan by clocks of their own, of which one ends while another waits for it."""
    run = begin("minutes", optimizer={"warmup_steps": 10}, minutes=0.01)
    ends = train_together(run, small, 2)
    assert_ended(ends)
    assert len({(end.progress.step, end.progress.seconds) for end in ends}) == 1
    plan = Run.open(run.path).about["plan"]
    assert plan[0][0] == 10
    assert ends[0].progress.step == plan[-1][1]


# -- what can go wrong ---------------------------------------------------------------------------------------------


def one_tells(found: list[Any], kind: type[Exception]) -> str:
    """The one line: of what one process raised; all others know that it is told."""
    telling = [error for error in found if isinstance(error, Exception) and not isinstance(error, ToldElsewhere)]
    assert len(telling) == 1, found
    assert isinstance(telling[0], kind)
    assert all(isinstance(error, ToldElsewhere) for error in found if error not in (telling[0], None)), found
    return str(telling[0])


def test_killed_process(begin: Callable[..., Run], small: Any) -> None:
    """Would catch processes that wait for good for one that is gone, and a line from each of them."""
    run = begin("run", **OPTIONS, checkpoint_seconds=0.0)
    path, train, valid = run.path, small.train, small.valid

    def work(group: Group) -> Outcome:
        def die(event: Any) -> None:
            if isinstance(event, Step) and event.step == 7 and group.rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)

        return train_with(group, path, train, valid, on_event=die)

    assert "lost another of the 3 training processes" in one_tells(in_processes(3, work), ConnectionError)
    kept = Run.open(run.path).load("last")
    assert kept is not None
    assert kept.progress["step"] in (6, 7)


def test_stopped_process_is_lost_in_time() -> None:
    """Would catch a wait without an end for a process that is there and gives no sign, as behind a cut cable."""

    def work(group: Group) -> None:
        group.seconds = 2.0  # from here on: to come together takes as long as it takes
        if group.rank == 1:
            group.board.write("pid", str(os.getpid()))
            os.kill(os.getpid(), signal.SIGSTOP)
        while (written := group.board.read("pid")) is None:
            time.sleep(0.01)
        stopped = int(written)
        try:
            group.meet()
        finally:
            os.kill(stopped, signal.SIGKILL)

    found = in_processes(2, work)
    assert str(found[0]).startswith("lost another of the 2 training processes: process 1 has given no sign for")


def test_full_disk(begin: Callable[..., Run], small: Any) -> None:
    """Would catch processes that go on, or hang, where the one that writes cannot."""
    path, train, valid = begin("run", **OPTIONS).path, small.train, small.valid

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path / "last.safetensors"))

    def work(group: Group) -> Outcome:
        Run._save = full  # type: ignore[assignment,method-assign]
        return train_with(group, path, train, valid)

    assert "No space left" in one_tells(in_processes(3, work), OSError)


def test_loss_that_is_no_number(begin: Callable[..., Run], small: Any) -> None:
    """Would catch one process that stops where the others update, and a line from each."""
    run = begin("run", optimizer={"learning_rate": 1e30, "optimizer": "adam", "warmup_steps": 0})
    assert "at step" in one_tells(train_together(run, small, 2), FloatingPointError)


def test_weights_that_differ(begin: Callable[..., Run], small: Any) -> None:
    """Would catch weights that drift apart unseen: a flipped bit in one machine's memory."""
    path, train, valid = begin("run", **OPTIONS).path, small.train, small.valid

    def work(group: Group) -> Outcome:
        step = BatchGradients.finish

        def flip(self: BatchGradients) -> None:
            step(self)
            next(self.model.parameters()).data.view(torch.int32).view(-1)[0] ^= 1

        if group.rank == 1:
            BatchGradients.finish = flip  # type: ignore[method-assign]
        return train_with(group, path, train, valid)

    assert "no longer have the same weights" in one_tells(in_processes(2, work), ValueError)


def test_processes_with_other_data_or_code(begin: Callable[..., Run], small: Any) -> None:
    """Would catch two hosts that train one model on two texts."""
    path, train, valid = begin("run", **OPTIONS).path, small.train, small.valid
    other = valid.hold_out(0.3, 0)[0]

    def work(group: Group) -> Outcome:
        return train_with(group, path, train if group.leads else other, valid)

    said = one_tells(in_processes(2, work), ValueError)
    assert said.startswith("process 1 on ")
    assert "another training data (" in said


def test_batch_too_small_to_divide(begin: Callable[..., Run], small: Any) -> None:
    """Would catch a process with nothing to do, and dropout that cannot be that of the whole batch."""
    run = begin("run", batch={"batch_size": 2})
    assert "batch_size 2 is too small for 3 processes x 1 parts" in one_tells(train_together(run, small, 3), ValueError)
    with pytest.raises(ValueError, match=r"with two rows, as dropout needs them each; use at most 4 parts"):
        train_run(begin("dropout", **OPTIONS), small.train, small.valid, show=False, accumulate=5)


def join(monkeypatch: pytest.MonkeyPatch, port: int | str, seconds: float = 0.3, **environment: str) -> str:
    """What a process says that finds itself in this environment, and nobody else."""
    here = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for name, value in (here | environment).items():
        monkeypatch.setenv(name, value)
    with pytest.raises((OSError, ValueError)) as raised, joined("cpu", seconds):
        pass
    return str(raised.value)


def test_missing_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a wait of half an hour for a host that nobody started, and PyTorch's own page of stack frames."""
    with socket.socket() as taken:
        taken.bind(("", 0))
        port = taken.getsockname()[1]
        there = f"no process 0 at 127.0.0.1:{port} within 0.3 s (Connection refused)"
        assert join(monkeypatch, port, RANK="1") == f"process 1: {there}"
        taken.listen()
        assert f"port {port} of this machine cannot be used" in join(monkeypatch, port)
    # In this time it must also have begun to keep the others' notes.
    assert join(monkeypatch, port, 3.0) == "process 0: only 1 of 2 processes came within 3 s"
    assert "start with torchrun" in join(monkeypatch, "")
