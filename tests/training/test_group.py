"""One model trained by several processes: the curve of one, exact resume, and one line where something fails."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import in_processes
from test_loop import MODELS, assert_same_end, begin, timeless  # noqa: F401 (begin is a fixture)

from rhapsode.evaluation import Worker, score
from rhapsode.model import ModelConfig, build_model
from rhapsode.run import Run
from rhapsode.terminal import ToldElsewhere
from rhapsode.tokens import BatchConfig, Batcher
from rhapsode.training import Outcome, loop, sums, train_run
from rhapsode.training.followed import FollowedRun
from rhapsode.training.gradients import BatchGradients
from rhapsode.training.group import ALONE, Group, share

FEW_ROWS = 16  # of a table that is summed by touched rows, here
EVERYTHING = {**MODELS["stacked"], "copy_dim": 4, "cell": "gated", "tie_embeddings": True}
FORMS = {"stream": {}, "carried": {"carry_state": True}, "first": {"form": "first"}}


@pytest.fixture(autouse=True)
def small_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """The models of these tests have small tables."""
    monkeypatch.setattr(sums, "FEWEST_TABLE_ROWS", FEW_ROWS)
    monkeypatch.setattr(sums, "BUCKET_BYTES", 1 << 10)


def train_together(run: Run, small: Any, size: int, accumulate: int = 1, seconds: float = 20.0) -> list[Any]:
    def work(group: Group) -> Outcome:
        own = (Run if group.leads else FollowedRun).open(run.path)
        return train_run(own, small.train, small.valid, show=False, group=group, accumulate=accumulate)

    return in_processes(size, work, seconds)


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
    shape = ModelConfig(small.tokenizer.vocab_size, **EVERYTHING)

    def work(group: Group) -> dict[str, Any]:
        model = build_model(shape, seed=0)
        gradients = BatchGradients(model, config, group, accumulate)
        batcher = Batcher(small.train, config, seed=0)
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


def test_curve_is_that_of_one_process(begin: Callable[..., Run], small: Any) -> None:  # noqa: F811
    """Would catch data, plan, dropout or validation that hang on the number of processes, and metrics written twice.

    24 steps of Muon and AdamW with everything that a model can have; losses differ by rounding, at most 1e-4 of them.
    """
    curves = {}
    for size in (1, 2, 4):
        run = begin(f"of {size}", **OPTIONS)
        ends = train_together(run, small, size) if size > 1 else [train_run(run, small.train, small.valid, show=False)]
        assert [end.ended for end in ends] == ["budget"] * size
        assert len({(end.progress.step, end.progress.tokens, end.progress.best_loss) for end in ends}) == 1
        curves[size] = losses(Run.open(run.path))
    assert len(curves[1]["train"]) == 24
    assert len(curves[1]["valid"]) == 4
    for size in (2, 4):
        for kind, expected in curves[1].items():
            assert curves[size][kind] == pytest.approx(expected, rel=1e-4), (size, kind)
            print(size, kind, max(abs(a / b - 1) for a, b in zip(curves[size][kind], expected)))


def test_resumed_by_as_many_processes_to_the_bit(begin: Callable[..., Run], small: Any) -> None:  # noqa: F811
    """Would catch state of a process that is not in the checkpoint, and sums whose order changes."""
    straight, stopped = begin("straight", **OPTIONS), begin("stopped", **OPTIONS)
    train_together(straight, small, 3)

    def stop_at(step: int) -> Callable[[Group], Outcome]:
        def work(group: Group) -> Outcome:
            def ask(event: Any) -> None:
                if isinstance(event, loop.Step) and event.step == step and group.rank == 1:
                    os.kill(os.getpid(), signal.SIGTERM)  # one process is asked, all stop

            own = (Run if group.leads else FollowedRun).open(stopped.path)
            return train_run(own, small.train, small.valid, show=False, group=group, on_event=ask)

        return work

    for step in (2, 5, 11):
        ends = in_processes(3, stop_at(step))
        assert [end.ended for end in ends] == ["interrupted"] * 3, ends
    train_together(stopped, small, 3)
    assert_same_end(Run.open(stopped.path), Run.open(straight.path))
