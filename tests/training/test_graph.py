"""The step as one launch, driven on a CPU: all but the capture itself. In its place stands one that replays operations
(replayed.py), and so finds every value that would be baked into a CUDA graph."""

import math
import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import replayed
import torch
from begun import MODELS, AskedAfter, assert_same_end, timeless
from torch.utils._python_dispatch import TorchDispatchMode

from rhapsode.kernels import form
from rhapsode.machine import Capture, eager
from rhapsode.model import LanguageModel, ModelConfig, build_model
from rhapsode.recipe import OptimizerConfig
from rhapsode.run import Run
from rhapsode.tokens import BatchConfig
from rhapsode.training import graph, loop, train_run
from rhapsode.training.agreement import Agreement
from rhapsode.training.optimizer import Optimizers

Begin = Callable[..., Run]
LEARNS = {"optimizer": {"optimizer": "muon", "weight_decay": 0.1}, "batch": {"carry_state": True}}


def go(run: Run, small: Any, capture: Capture | None = replayed.capture) -> Any:
    return train_run(Run.open(run.path), small.train, small.valid, show=False, capture=capture)


def losses(run: Run) -> list[float]:
    return [entry["train_loss"] for entry in run.metrics()] + [
        entry["valid_loss"] for entry in run.metrics() if entry["event"] == "valid"
    ]


KINDS: dict[str, dict[str, Any]] = {
    "plain, muon": {"model": MODELS["plain"], "optimizer": {"optimizer": "muon", "weight_decay": 0.1}},
    "plain, adam": {
        "model": MODELS["plain"],
        "optimizer": {"optimizer": "adam"},
        "batch": {"form": "first", "window": 50},
    },
    "stacked, carried": {"model": {**MODELS["stacked"], "dropout": 0.0}, **LEARNS},
    "gated, no clipping": {
        "model": {**MODELS["stacked"], "dropout": 0.0, "cell": "gated", "gate": True},
        "optimizer": {"optimizer": "adamw", "clip_norm": 0.0},
    },
    "dropout": {"model": MODELS["stacked"]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_replayed_step_is_the_step(begin: Begin, small: Any, kind: str) -> None:
    """Would catch whatever a capture bakes in: the learning rate, Adam's count of steps, the batch, how many of its
    targets count, the carried state and the window that has none, dropout's masks."""
    expected, found = begin("eager", **KINDS[kind]), begin("replayed", **KINDS[kind])
    go(expected, small, capture=None)
    go(found, small)
    assert "captured" not in (found.path / "log.txt").read_text()
    np.testing.assert_allclose(losses(found), losses(expected), rtol=2e-4)
    rates = [[entry["rate"] for entry in run.metrics() if entry["event"] == "train"] for run in (found, expected)]
    assert rates[0] == rates[1]
    before, after = (run.load("last").tensors for run in (expected, found))  # type: ignore[union-attr]
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        if tensor.is_floating_point():
            # Adam makes a step of a gradient that is nothing but rounding (a key's bias changes no softmax).
            assert (after[name] - tensor).norm() <= 1e-2 * tensor.norm() + 1e-6, name
        else:
            assert torch.equal(after[name], tensor), name


def test_a_step_is_replayed_on_an_older_pytorch(begin: Begin, small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a loss that PyTorch before 2.13, which computes logits again for the gradient, cannot capture."""
    monkeypatch.delattr("torch.nn.functional.linear_cross_entropy")
    expected, found = begin("eager"), begin("replayed")
    go(expected, small, capture=None)
    go(found, small)
    assert "captured" not in (found.path / "log.txt").read_text()
    np.testing.assert_allclose(losses(found), losses(expected), rtol=2e-4)


@pytest.mark.parametrize("kind", ["stacked, carried", "dropout"])
def test_a_captured_run_resumes_exactly(begin: Begin, small: Any, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Would catch a state, a sum of losses or a generator that is not in the checkpoint, or that the first step after
    it, which is made twice to be compared, moves twice."""
    straight, stopped = begin("straight", **KINDS[kind]), begin("stopped", **KINDS[kind])
    go(straight, small)
    for looks in (1, 5, 9):
        with monkeypatch.context() as patch:
            patch.setattr(loop, "interruptible", lambda looks=looks: nullcontext(AskedAfter(looks)))
            assert go(stopped, small).ended == "interrupted"
    go(stopped, small)
    assert_same_end(stopped, straight)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_not_finite_stops_at_the_next_report(
    begin: Begin, small: Any, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Would catch spoilt weights that are saved or validated, and an error that names no step."""
    run = begin(sequences=4 * 400, validations=1, checkpoint_seconds=0.0, optimizer={"learning_rate": 1e-5})
    monkeypatch.setattr(loop, "STEPS_BETWEEN_EARLY_REPORTS", 4)
    clean = LanguageModel.loss
    poison = torch.zeros(())

    def spoilt(model: LanguageModel, *arguments: Any, **options: Any) -> Any:
        nats, state = clean(model, *arguments, **options)
        if model.training:  # sqrt at 0 has an infinite slope, and 0 times that is NaN
            nats = nats + (poison if what == "loss" else (model.lm_head.weight.sum() * 0 + 1 - poison).sqrt() - 1)
        return nats, state

    taken, put = [0], graph.Memory.put

    def counted(memory: graph.Memory, *arguments: Any) -> None:
        taken[0] += 1
        poison.fill_(0.0 if taken[0] < 10 else math.nan if what == "loss" else 1.0)
        put(memory, *arguments)

    monkeypatch.setattr(LanguageModel, "loss", spoilt)
    monkeypatch.setattr(graph.Memory, "put", counted)
    monkeypatch.setattr(Agreement, "save", lambda _: taken[0] in (6, 11))
    with pytest.raises(FloatingPointError, match=r"became (nan|inf) between step 9 and step 11; .*learning_rate"):
        go(run, small)
    last = run.load("last")
    assert last is not None
    assert last.progress["step"] == 6
    assert all(tensor.isfinite().all() for tensor in last.tensors.values() if tensor.is_floating_point())


def test_a_capture_that_fails_is_told_and_steps_go_on(begin: Begin, small: Any) -> None:
    """Would catch a run that ends where a GPU cannot capture, one that says nothing, and a first step made twice."""

    def fails(function: Callable[[], None]) -> Callable[[], None]:
        function()  # a capture may fail at its end
        raise RuntimeError("operation not permitted when stream is capturing\n(details)")

    expected, found = begin("expected", **LEARNS), begin("found", **LEARNS)
    go(expected, small, eager)
    go(found, small, fails)
    assert_same_end(found, expected)
    log = (found.path / "log.txt").read_text()
    assert log.count("could not be captured, so it is launched piece by piece: operation not permitted") == 1


class FailsAtTheUpdate(TorchDispatchMode):
    """What a GPU that cannot capture the optimiser does: loss and gradients are made already."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "_fused_adam" in str(func):
            raise RuntimeError("operation not permitted when stream is capturing")
        return func(*args, **(kwargs or {}))


def test_a_capture_that_fails_half_way_leaves_no_gradient(begin: Begin, small: Any) -> None:
    """Would catch gradients of a failed capture, which were never computed, added to those of the step after it."""

    def fails(function: Callable[[], None]) -> Callable[[], None]:
        with FailsAtTheUpdate():
            function()
        raise AssertionError

    expected, found = begin("expected", **LEARNS), begin("found", **LEARNS)
    go(expected, small, eager)
    go(found, small, fails)
    assert_same_end(found, expected)


def test_where_one_step_is_not_captured_none_is(begin: Begin, small: Any) -> None:
    """Would catch a graph that is replayed after another one failed: its generator is not the one in use any more."""
    twice = {**LEARNS, "epochs": 2, "validations": 1}  # the second begins without a state again
    expected, found = begin("expected", **twice), begin("found", **twice)
    go(expected, small, eager)
    second_fails = replayed.SecondFails()
    go(found, small, second_fails)
    assert second_fails.asked == 2
    assert_same_end(found, expected)


@pytest.mark.parametrize("what", ["weight", "optimizer"])
def test_a_capture_that_makes_no_numbers_is_not_used(begin: Begin, small: Any, what: str) -> None:
    """Would catch a comparison that takes NaN for small: the loss is that of before the update, and is right."""

    def spoils(function: Callable[[], None]) -> Callable[[], None]:
        replay = replayed.capture(function)
        step = function.__closure__[1].cell_contents  # type: ignore[index]
        assert isinstance(step, graph.GraphStep)

        def other() -> None:
            replay()
            next(part for name, part in step.changing().items() if name.startswith(what)).fill_(math.nan)

        return other

    expected, found = begin("expected", **LEARNS), begin("found", **LEARNS)
    go(expected, small, eager)
    go(found, small, spoils)
    assert_same_end(found, expected)
    assert "is not the step it was captured from" in (found.path / "log.txt").read_text()


def test_rounding_is_no_difference() -> None:
    """Would catch a right graph that is refused for a key's bias, whose gradient is nothing but rounding, so that Adam
    moves it at full rate anywhere; and a wrong one that passes where the gradient is one."""

    def after(bias: float, weight: float, gradient: float) -> dict[str, torch.Tensor]:
        moved = {"0 weight k.bias": bias, "0 weight k.weight": weight, "0 losses": 2.0}
        moments = {"exp_avg": (gradient, 0.5), "exp_avg_sq": (gradient**2, 0.25), "step": (1.0, 1.0)}
        for key, (of_bias, of_weight) in moments.items():
            moved |= {f"0 optimizer 1/k.bias/{key}": of_bias, f"0 optimizer 1/k.weight/{key}": of_weight}
        return {name: torch.tensor([value]) for name, value in moved.items()}

    before = {"0 weight k.bias": torch.tensor([1.0]), "0 weight k.weight": torch.tensor([1.0])}
    expected = after(1.01, 0.99, 1e-9)
    assert graph._difference(before, expected, after(0.99, 0.99, -1e-9)) == ""
    assert "k.weight" in graph._difference(before, expected, after(1.01, 1.01, 1e-9))
    assert "k.bias" in graph._difference(before, after(1.01, 0.99, 1e-3), after(0.99, 0.99, -1e-3))
    assert "k.bias" in graph._difference(before, expected, after(math.nan, 0.99, 1e-9))
    assert "k.bias" in graph._difference(before, expected, after(3.0, 0.99, 1e-9))


@pytest.mark.parametrize("wrong", ["rate", "loss"])
def test_a_capture_that_is_another_step_is_not_used(begin: Begin, small: Any, wrong: str) -> None:
    """Would catch a graph that is trusted although its first replay does something else."""

    def lies(function: Callable[[], None]) -> Callable[[], None]:
        replay = replayed.capture(function)

        def other() -> None:
            cell = replay.__self__.operations  # type: ignore[attr-defined]
            for func, args, kwargs, result in cell:
                if wrong == "rate" and "fused_adam" in str(func):
                    kwargs["lr"] = torch.tensor(0.0)
                if wrong == "loss" and "embedding.default" in str(func):
                    args = (args[0], torch.zeros_like(args[1]), *args[2:])
                again = func(*args, **kwargs)
                for old, new in zip(replayed._tensors(result), replayed._tensors(again), strict=True):
                    if old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                        old.copy_(new)

        return torch.no_grad()(other)

    expected, found = begin("expected", **LEARNS), begin("found", **LEARNS)
    go(expected, small, eager)
    go(found, small, lies)
    assert_same_end(found, expected)
    assert "is not the step it was captured from" in (found.path / "log.txt").read_text()


def test_the_recording_finds_a_rate_that_is_baked_in(begin: Begin, small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a stand-in for the capture that finds nothing: with rates that are Python numbers, it must."""
    step = Optimizers.step
    monkeypatch.setattr(Optimizers, "step", lambda self, share: step(self, float(share.detach().numpy())))
    expected, found = begin("eager"), begin("replayed")
    go(expected, small, eager)
    go(found, small)
    assert abs(np.array(losses(found)) - losses(expected)).max() > 1e-3


def test_several_processes_or_parts_are_not_captured(begin: Begin, small: Any) -> None:
    """Would catch a graph of a part of a batch, which would be the step of none."""
    run = begin()
    train_run(run, small.train, small.valid, show=False, accumulate=2, capture=replayed.capture)
    assert "a step is captured only in one process and with whole batches" in (run.path / "log.txt").read_text()
    assert timeless(run.metrics())[-1]["step"] == 24


@pytest.mark.parametrize("kind", KINDS)
def test_no_number_of_the_host_is_in_the_step(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Would catch what a CPU hides and a GPU cannot capture: a tensor made of a Python number, one that is moved."""
    monkeypatch.setattr(sys.modules["torch.optim.adam"], "_device_dtype_check_for_fused", lambda *_, **__: None)
    options = KINDS[kind]
    model = build_model(ModelConfig(5000, **options["model"]), seed=0).to("meta")  # many words: the loss is in chunks
    optimizer = OptimizerConfig(**options.get("optimizer", {}))
    step = graph.GraphStep(model, optimizer, BatchConfig(20, 16, carry_state=True), eager, print)
    for continued in (False, True):
        with replayed.DeviceOnly("meta") as operations, form("fast"):
            step._update(continued)
        assert operations.count > 300
    with pytest.raises(RuntimeError, match="tensors on cpu"), replayed.DeviceOnly("meta"):
        step.optimizers.step(torch.tensor(0.5))
