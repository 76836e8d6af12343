"""What --precision changes: products of a training step, and nothing else; and where it is refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from begun import MODELS

import rhapsode
from rhapsode.model import ModelConfig, build_model
from rhapsode.run import Run
from rhapsode.training import train_run
from rhapsode.training.precision import check_precision, loss_at, products

CELLS: dict[str, dict[str, Any]] = {
    "plain": MODELS["plain"],
    "copying": {**MODELS["stacked"], "dropout": 0.0},
    "gated": {**MODELS["stacked"], "dropout": 0.0, "cell": "gated", "gate": True, "copy_dim": 0},
}


@pytest.mark.parametrize("kind", CELLS)
def test_bfloat16_rounds_products_alone(kind: str) -> None:
    """Would catch a loss that is summed in bfloat16 (8 bits: 0.4% off), gradients that come back in it, a state that
    is carried in it, and a precision that changes nothing."""
    model = build_model(ModelConfig(300, **CELLS[kind]), seed=0)
    tokens, targets = torch.randint(0, 300, (2, 8, 40), generator=torch.Generator().manual_seed(1))
    found: dict[str, tuple[float, list[torch.Tensor]]] = {}
    for precision in ("float32", "bfloat16"):
        model.zero_grad()
        _, state = loss_at(precision, model, tokens, targets, None)
        assert {t.dtype for t in state.tensors().values()} <= {torch.float32, torch.int64}
        loss, _ = loss_at(precision, model, tokens, targets, state.apply(torch.Tensor.detach))
        loss.backward()
        found[precision] = loss.item(), [p.grad.clone() for p in model.parameters() if p.grad is not None]
    (exact, wanted), (rounded, got) = found["float32"], found["bfloat16"]
    assert 0 < abs(rounded - exact) < 2e-4 * exact
    assert {g.dtype for g in got} == {torch.float32}
    square = sum(((g - w) ** 2).sum() for g, w in zip(got, wanted, strict=True))
    assert 0 < square < 0.05**2 * sum((w**2).sum() for w in wanted)


def test_a_run_in_bfloat16_keeps_float32_weights_and_says_so(begin: Callable[..., Run], small: Any) -> None:
    """Would catch weights saved in bfloat16, and a run.json that does not tell how its steps were made."""
    runs = begin("float32", MODELS["stacked"]), begin("bfloat16", MODELS["stacked"], precision="bfloat16")
    exact, rounded = (train_run(run, small.train, small.valid, show=False) for run in runs)
    assert Run.open(runs[1].path).about["train"]["precision"] == "bfloat16"
    last = runs[1].load("last")
    assert last is not None
    assert {tensor.dtype for name, tensor in last.tensors.items() if name.startswith("model/")} == {torch.float32}
    assert exact.valid is not None
    assert rounded.valid is not None
    assert rounded.valid.nats != exact.valid.nats
    assert rounded.valid.nats == pytest.approx(exact.valid.nats, rel=0.02)


def test_tf32_is_of_the_step_alone() -> None:
    """Would catch validation in TF32, and a setting that stays."""
    before = torch.get_float32_matmul_precision()
    with products("float32"):
        assert torch.get_float32_matmul_precision() == before
    with products("tf32"):
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.parametrize(
    ("precision", "device", "message"),
    [
        ("tf32", "cpu", "precision tf32 needs an NVIDIA GPU, this run is on cpu; use float32"),
        ("tf32", "mps", "precision tf32 needs an NVIDIA GPU, this run is on mps"),
        ("bfloat16", "mps", "precision bfloat16 needs an NVIDIA GPU or the CPU, this run is on mps"),
        ("bfloat16", "cuda", r"compute capability 8.0 or more, this one \(Tesla T4\) has 7.5; use float32"),
    ],
)
def test_a_device_that_cannot_is_told(
    monkeypatch: pytest.MonkeyPatch, precision: str, device: str, message: str
) -> None:
    """Would catch a precision that is quietly another one."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    with pytest.raises(ValueError, match=message):
        check_precision(precision, device)
    check_precision("float32", device)


def test_resuming_keeps_the_precision(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a run that is resumed in another precision, and one that is begun where it cannot be."""
    monkeypatch.setenv("RHAPSODE_CACHE", str(tmp_path / "cache"))
    wanted: dict[str, Any] = {"preset": "minute", "tokens": 4_000, "device": "cpu"}
    with pytest.raises(ValueError, match="precision tf32 needs an NVIDIA GPU"):
        rhapsode.train("storyworld:500", out=tmp_path / "no", precision="tf32", **wanted)
    assert not (tmp_path / "no").exists()
    with pytest.raises(ValueError, match="--cuda-graph needs --device cuda, this is cpu"):
        rhapsode.train("storyworld:500", out=tmp_path / "no", cuda_graph=True, **wanted)
    with pytest.raises(ValueError, match="precision must be one of float32, tf32, bfloat16, got 'half'"):
        rhapsode.train("storyworld:500", out=tmp_path / "no", precision="half", **wanted)
    rhapsode.train("storyworld:500", out=tmp_path / "run", precision="bfloat16", **wanted)
    with pytest.raises(ValueError, match="started with precision 'bfloat16', not 'float32'"):
        rhapsode.train(out=tmp_path / "run", resume=True, precision="float32", device="cpu")
    rhapsode.train(out=tmp_path / "run", resume=True, device="cpu")
