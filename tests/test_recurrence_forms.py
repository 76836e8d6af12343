"""Which form of a recurrence runs where, as `recurrence_form` says and as the recurrences do; no GPU is needed."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rhapsode.kernels import form, forms, recurrence_form, recurrence_forms
from rhapsode.kernels.gated import gated_recurrence
from rhapsode.kernels.recurrence import recurrence
from rhapsode.model import LanguageModel, ModelConfig, build_model


class Card:
    """What a machine with a GPU would answer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.capability, self.capturing, self.failure, self.trials = (9, 0), False, None, 0
        monkeypatch.setattr(recurrence_forms, "has_triton", lambda: True)
        monkeypatch.setattr(torch.version, "hip", None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: self.capability)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: self.capturing)
        monkeypatch.setattr(recurrence_forms, "_why_it_failed", self.trial)
        monkeypatch.setattr(recurrence_forms, "_trials", {})

    def trial(self, *_: object) -> str | None:
        self.trials += 1
        return self.failure


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[Card]:
    recurrence_forms._why_not.cache_clear()
    yield Card(monkeypatch)
    recurrence_forms._why_not.cache_clear()


@pytest.mark.parametrize(
    ("capability", "cell", "hidden_dim", "dtype", "kind", "reason"),
    [
        ((9, 0), "elman", 128, torch.float32, "triton", "one launch: hidden size 128, weights on the chip"),
        (
            (9, 0),
            "elman",
            129,
            torch.float32,
            "fast",
            "129 is above 128, the most that fits on a chip of 9.0 in tf32x3",
        ),
        ((9, 0), "elman", 256, torch.bfloat16, "triton", "hidden size 256, weights on the chip"),
        ((8, 9), "elman", 128, torch.float32, "fast", "128 is above 64"),
        ((9, 0), "elman", 8, torch.float64, "fast", "there is no kernel for float64"),
        ((9, 0), "gated", 4096, torch.float64, "triton", "it has no weights"),
        ((7, 5), "gated", 8, torch.float32, "fast", "no entry for cards of compute capability 7.5"),
    ],
)
def test_the_size_decides(
    card: Card, capability: tuple[int, int], cell: str, hidden_dim: int, dtype: torch.dtype, kind: str, reason: str
) -> None:
    """Catches a kernel that starts where its weights do not fit, and a reason that is not the one."""
    card.capability = capability
    found = recurrence_form(cell, hidden_dim, dtype)
    assert found.kind == kind
    assert reason in found.reason


@pytest.fixture
def tf32() -> Iterator[None]:
    """PyTorch may round the factors of its products to TF32."""
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision("highest")


def test_tf32_is_what_pytorch_is_told(card: Card, request: pytest.FixtureRequest) -> None:
    """Catches a kernel that computes in TF32 unasked, or in three times the products where TF32 was asked for."""
    assert recurrence_forms.precision_of(torch.float32) == "tf32x3"
    request.getfixturevalue("tf32")
    assert recurrence_forms.precision_of(torch.float32) == "tf32"
    card.capability = (8, 9)
    assert recurrence_form("elman", 128).kind == "triton"


def test_kernels_that_fail_their_trial_do_not_run(card: Card) -> None:
    """Catches training that stops, or learns from wrong numbers, where a compiler is missing; one trial is made."""
    card.failure = "RuntimeError: Failed to find C compiler"
    with pytest.warns(UserWarning, match="elman recurrence runs without Triton: RuntimeError: Failed to find C comp"):
        assert recurrence_form("elman", 64).kind == "fast"
    assert recurrence_form("elman", 64) == ("fast", card.failure)
    assert card.trials == 1
    card.failure = None
    assert recurrence_form("elman", 64, activation="tanh").kind == "triton"
    assert card.trials == 2


def test_no_trial_while_a_graph_is_captured(card: Card) -> None:
    """Catches a trial whose comparison would break the capture, or an answer during it that stays for good."""
    card.capturing = True
    assert recurrence_form("gated", 64).reason == "the kernels had not been tried before the graph was captured"
    card.capturing = False
    assert recurrence_form("gated", 64).kind == "triton"
    card.capturing = True
    assert recurrence_form("gated", 64).kind == "triton"


def test_without_triton_or_without_a_card(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches an extra that is needed; whoever asks for Triton by name is told how to get it."""
    assert recurrence_form("elman", 8, device="cpu") == ("fast", "what every kernel is on cpu")
    assert recurrence_form("elman", 8, device="xpu").kind == "plain"
    with form("plain"):
        assert recurrence_form("elman", 8) == ("plain", "chosen by `with form(...)`")
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert recurrence_form("elman", 8) == ("fast", "the kernels are for NVIDIA's cards")
    monkeypatch.setattr(recurrence_forms, "has_triton", lambda: False)
    monkeypatch.setattr(forms, "has_triton", lambda: False)
    assert recurrence_form("elman", 9) == ("fast", "Triton is not installed: pip install 'rhapsode[gpu]'")
    with pytest.raises(ValueError, match=r"Triton is not installed: pip install 'rhapsode\[gpu\]'"), form("triton"):
        pass
    assert recurrence(torch.zeros(1, 1, 9), torch.zeros(9, 9)).shape == (1, 1, 9)


@pytest.mark.parametrize("cell", ["elman", "gated"])
def test_whole_models_side_by_side(cell: str) -> None:
    """Catches models that mix under torch.vmap, a kernel that it cannot look into, recurrences that become plain."""
    sizes = {"embed_dim": 6, "hidden_dim": 5, "key_dim": 3, "value_dim": 2, "copy_dim": 3, "feed_forward": 2}
    config = ModelConfig(9, kind="stacked", gate=True, cell=cell, **sizes)
    models = [build_model(config, seed).double() for seed in range(3)]
    tokens = torch.arange(3 * 2 * 8).mul(5).remainder(9).view(3, 2, 8)
    alone = [model.loss(each[:, :-1], each[:, 1:])[0] for model, each in zip(models, tokens, strict=True)]
    weights, _ = torch.func.stack_module_state(models)
    whole = _Loss(models[0])

    def loss(weights: dict[str, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(whole, {f"model.{name}": each for name, each in weights.items()}, (tokens,))

    with Operations() as seen, form("vmap"):
        together = torch.vmap(loss)(weights, tokens)
    assert "baddbmm_" in seen.names if cell == "elman" else "addcmul_" in seen.names
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-12, atol=0)
    found = torch.autograd.grad(together.sum(), list(weights.values()))
    wanted = [torch.autograd.grad(one, list(model.parameters())) for one, model in zip(alone, models, strict=True)]
    for ours, *theirs in zip(found, *wanted, strict=True):
        torch.testing.assert_close(ours, torch.stack(theirs), rtol=1e-9, atol=1e-11)


class _Loss(torch.nn.Module):
    """What `functional_call` calls."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.model.loss(tokens[:, :-1], tokens[:, 1:])[0]


class Operations(TorchDispatchMode):
    """The names of all operations that run within the block, a backward pass included."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("cell", ["elman", "gated"])
def test_a_graph_can_hold_the_loop_of_operations(cell: str) -> None:
    """Catches a step that waits for a number, or whose shapes depend on one: a CUDA graph cannot be captured of it."""
    x, weight, initial = torch.randn(4, 2, 6), torch.randn(6, 6, requires_grad=True), torch.randn(2, 6)
    with Operations() as seen, form("fast"):
        h = recurrence(x, weight, initial) if cell == "elman" else gated_recurrence(x @ weight, initial[:, :3])
        h.sum().backward()
    assert {"addmm_", "mul_"} & seen.names or {"addcmul_"} <= seen.names
    assert not seen.names & {
        "_local_scalar_dense",
        "item",
        "nonzero",
        "masked_select",
        "is_nonzero",
        "unique",
        "_to_copy",
    }
