"""Runs side by side: each gets what it gets alone, within a tolerance; and what befalls one befalls it alone."""

import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import replayed
import torch
from begun import MODELS, AskedAfter

from rhapsode.kernels import form
from rhapsode.machine import Capture, eager
from rhapsode.model import ModelConfig, build_model
from rhapsode.recipe import OptimizerConfig
from rhapsode.run import Run
from rhapsode.tokens import BatchConfig
from rhapsode.training import together, train_run
from rhapsode.training.graph import GraphStep
from rhapsode.training.together import Trainee, train_together

Begin = Callable[..., Run]
# Sums are made in another order; twenty-odd steps of a model that learns fast carry that on.
TOLERANCE = 2e-4
STACKED = {**MODELS["stacked"], "dropout": 0.0}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"model": MODELS["plain"], "batch": {"form": "first"}},
    "tanh": {"model": {**MODELS["plain"], "activation": "tanh"}, "optimizer": {"optimizer": "adam"}},
    "stacked": {"model": STACKED, "optimizer": {"weight_decay": 0.1}},
    "gated": {"model": {**STACKED, "cell": "gated", "gate": True}},
    "tied": {"model": {**STACKED, "tie_embeddings": True, "copy_dim": 0}},
    "attention alone": {"model": {**STACKED, "cell": "none", "attention": "all"}},
}


def trainees(runs: list[Run], small: Any) -> list[Trainee]:
    return [Trainee(Run.open(run.path), small.train, small.valid) for run in runs]


def losses(run: Run) -> list[float]:
    names = ("train_loss", "valid_loss", "gradient_norm", "rate")
    return [entry[name] for entry in run.metrics() for name in names if name in entry]


@pytest.mark.parametrize(
    ("kind", "capture"),
    [*((kind, eager) for kind in KINDS), ("plain", replayed.capture), ("stacked", replayed.capture)],
)
def test_each_gets_what_it_gets_alone(begin: Begin, small: Any, kind: str, capture: Capture) -> None:
    """Would catch models that mix: a batch, a weight, a norm or a rate of the neighbour's, and a run that ends when
    another does, or goes on with its weights. Seeds, rates and lengths differ."""
    settings: list[dict[str, Any]] = [{"seed": 0}, {"seed": 1, "sequences": 40}, {"seed": 2, "sequences": 64}]
    runs: list[list[Run]] = []
    for where in ("alone", "together"):
        options = dict(KINDS[kind])
        faster = {**options.pop("optimizer", {}), "learning_rate": 5e-3}
        optimizers = [KINDS[kind].get("optimizer", {}), faster, KINDS[kind].get("optimizer", {})]
        runs.append(
            [begin(f"{where}{k}", optimizer=optimizers[k], **options, **each) for k, each in enumerate(settings)]
        )
    for run in runs[0]:
        train_run(run, small.train, small.valid, show=False)
    outcomes = train_together(trainees(runs[1], small), capture=capture)
    assert [outcome.ended for outcome in outcomes] == ["budget"] * 3  # type: ignore[union-attr]
    for alone, beside in zip(*runs, strict=True):
        assert "captured" not in (beside.path / "log.txt").read_text()
        np.testing.assert_allclose(losses(beside), losses(alone), rtol=TOLERANCE, atol=1e-6)
        assert [e["step"] for e in beside.metrics()] == [e["step"] for e in alone.metrics()]
        assert beside.load("best").progress["step"] == alone.load("best").progress["step"]  # type: ignore[union-attr]
        for (name, found), (_, wanted) in zip(
            beside.load_model("last").named_parameters(), alone.load_model("last").named_parameters(), strict=True
        ):
            if not name.endswith(
                "key_transform.bias"
            ):  # it moves all scores of a query alike: its gradient is rounding
                assert (found - wanted).norm() <= 1e-2 * wanted.norm() + 1e-5, name


@pytest.mark.parametrize("cell", ["elman", "gated"])
@pytest.mark.parametrize("length", [1, 5])
def test_gradients_side_by_side_are_exact(cell: str, length: int) -> None:
    """Would catch a gradient of the batched recurrence that is only nearly right: float64, one step too."""
    config = ModelConfig(30, **{**STACKED, "cell": cell, "copy_dim": 0, "pair_embeddings": 0})
    models = [build_model(config, seed).double() for seed in range(3)]
    names = [name for name, _ in models[0].named_parameters()]
    random = torch.Generator().manual_seed(0)
    tokens, targets = torch.randint(0, 30, (2, 3, 4, length), generator=random)
    stacked = {n: torch.stack([m.get_parameter(n).detach() for m in models]).requires_grad_() for n in names}

    def loss(weights: dict[str, torch.Tensor], *batch: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(
            together._Loss(models[0]), {f"model.{name}": weight for name, weight in weights.items()}, batch
        )

    with form("vmap"):
        torch.vmap(loss)(stacked, tokens, targets).sum().backward()
    for k, model in enumerate(models):
        model.loss(tokens[k], targets[k])[0].backward()
        for name, parameter in model.named_parameters():
            grad = stacked[name].grad
            assert grad is not None
            assert torch.allclose(grad[k], parameter.grad, rtol=1e-9, atol=1e-12), name  # type: ignore[arg-type]


def test_no_number_of_the_host_is_in_the_step_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch what a CPU hides and a GPU cannot capture: a tensor made of a Python number, one that is moved."""
    monkeypatch.setattr(sys.modules["torch.optim.adam"], "_device_dtype_check_for_fused", lambda *_, **__: None)
    models = [build_model(ModelConfig(300, **STACKED), seed).to("meta") for seed in range(2)]
    steps = [GraphStep(model, OptimizerConfig(), BatchConfig(12, 4), eager, print) for model in models]
    update = together._joined(steps)
    for _ in range(2):
        with replayed.DeviceOnly("meta") as operations:
            update.update()
        assert operations.count > 300


def test_one_that_fails_leaves_the_others_alone(begin: Begin, small: Any) -> None:
    """Would catch a NaN of one model that reaches another, and a failure that ends them all."""
    wild = {"optimizer": "adamw", "learning_rate": 1e30, "warmup_steps": 0}
    alone, beside, broken = begin("alone"), begin("beside"), begin("broken", optimizer=wild, seed=1)
    train_run(alone, small.train, small.valid, show=False)
    outcome, failure = train_together(trainees([beside, broken], small))
    assert isinstance(failure, FloatingPointError)
    assert "between step" in str(failure)
    assert outcome.ended == "budget"  # type: ignore[union-attr]
    np.testing.assert_allclose(losses(beside), losses(alone), rtol=TOLERANCE)


def test_stopped_together_and_resumed_apart(begin: Begin, small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch runs that Ctrl-C does not save, or saves at a point that they cannot go on from."""
    straight, stopped = ([begin(f"{name}{k}", seed=k, model=STACKED) for k in range(2)] for name in ("a", "b"))
    train_together(trainees(straight, small))
    with monkeypatch.context() as patch:
        patch.setattr(together, "interruptible", lambda: nullcontext(AskedAfter(14)))
        outcomes = train_together(trainees(stopped, small))
    assert [outcome.ended for outcome in outcomes] == ["interrupted"] * 2  # type: ignore[union-attr]
    assert train_run(Run.open(stopped[1].path), small.train, small.valid, show=False).ended == "budget"
    train_together(trainees(stopped, small))
    for run, other in zip(stopped, straight, strict=True):
        np.testing.assert_allclose(losses(run), losses(other), rtol=TOLERANCE, atol=1e-6)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"model": {**MODELS["plain"], "hidden_dim": 12}}, "only models and batches of one shape"),
        ({"batch": {"window": 12}}, "only models and batches of one shape"),
        ({"batch": {"carry_state": True}}, "its state is carried from batch to batch"),
        ({"model": MODELS["stacked"]}, "dropout draws its masks for one model at a time"),
        ({"precision": "bfloat16"}, "bfloat16 rounds one model at a time"),
    ],
)
def test_what_cannot_be_trained_together_is_refused(
    begin: Begin, small: Any, other: dict[str, Any], message: str
) -> None:
    """Would catch losses that are silently not those of the run."""
    runs = [begin("one"), begin("other", **other)]
    with pytest.raises(ValueError, match=message):
        train_together(trainees(runs, small))
    assert not runs[0].metrics_path.exists()
