"""The loss of a mixture: the fast form against the plain one, both against the mixture's own probabilities."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from rhapsode.kernels import form
from rhapsode.kernels.copying import copy_cross_entropy
from rhapsode.tokens import IGNORED

B, T, S, D, V, KEY = 3, 4, 6, 5, 7, 2
NAMES = ("x", "weight", "bias", "q", "k", "gate")


def parts(B: int = B, T: int = T, S: int = S, **changes: Tensor) -> dict[str, Tensor]:
    """Everything that the loss asks for, at random; targets of which some stand in the text so far and one is none."""
    generator = torch.Generator().manual_seed(100 * B + 10 * T + S)
    shapes = {"x": (B, T, D), "weight": (V, D), "bias": (V,), "q": (B, T, KEY), "k": (B, S, KEY), "gate": (B, T)}
    made = {
        name: torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()
        for name, shape in shapes.items()
    }
    made["ids"] = torch.randint(V - 2, (B, S), generator=generator)
    made["targets"] = torch.randint(V, (B, T), generator=generator)
    made["targets"][-1, -1] = IGNORED
    return {**made, **changes}


def probabilities(x: Tensor, weight: Tensor, bias: Tensor, q: Tensor, k: Tensor, gate: Tensor, ids: Tensor) -> Tensor:
    """(B, T, V), token by token, as the equations have it."""
    (B, T), S = q.shape[:2], k.shape[1]
    rows = []
    for b in range(B):
        for t in range(T):
            n = S - T + t + 1
            weights = (k[b, :n] @ q[b, t] / math.sqrt(q.shape[2])).softmax(0)
            copied = torch.stack([weights[ids[b, :n] == w].sum() for w in range(len(weight))])
            g = gate[b, t].sigmoid()
            rows.append((1 - g) * (weight @ x[b, t] + bias).softmax(0) + g * copied)
    return torch.stack(rows).view(B, T, -1)


@pytest.mark.parametrize("kind", ["fast", "plain"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(("B", "T", "S"), [(3, 4, 6), (5, 2, 7), (2, 5, 5), (1, 1, 1), (1, 1, 4)])
def test_value_and_gradients_are_those_of_the_mixture(
    B: int, T: int, S: int, reduction: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In chunks and a rest. Would catch a share that goes the wrong way, and a row of another chunk's."""
    monkeypatch.setattr("rhapsode.kernels.loss.CHUNK_LOGITS", 5 * V)
    monkeypatch.setattr("rhapsode.kernels.loss.FEWEST_CHUNK_ROWS", 1)
    monkeypatch.setattr("rhapsode.kernels.copying.CHUNK_SCORES", 2 * T * S)
    given = parts(B, T, S)
    if B * T == 1:
        given["targets"] = given["ids"][:, -1:].clone()
    leaves = [given[name] for name in NAMES]
    with form(kind):
        loss = copy_cross_entropy(**given, reduction=reduction)
    targets = given["targets"]
    scored = targets != IGNORED
    p = probabilities(*leaves, given["ids"]).gather(2, targets.clamp(min=0)[..., None])[..., 0]
    expected = -p.log().where(scored, 0.0)
    if reduction != "none":
        expected = expected.sum() / (scored.sum() if reduction == "mean" else 1)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    with torch.inference_mode(), form(kind):
        torch.testing.assert_close(copy_cross_entropy(**given, reduction=reduction), expected, rtol=1e-12, atol=1e-12)
    upstream = torch.randn_like(expected)
    ours = torch.autograd.grad(loss, leaves, upstream)
    theirs = torch.autograd.grad(expected, leaves, upstream)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["fast", "plain"])
def test_a_target_that_stands_nowhere_is_the_vocabularys(kind: str) -> None:
    """Exactly, with finite gradients, none of them to queries and keys. Would catch log(c + epsilon) and 0 / 0."""
    given = parts(ids=torch.zeros(B, S, dtype=torch.long), targets=torch.full((B, T), V - 1))
    with form(kind):
        loss = copy_cross_entropy(**given, reduction="sum")
    gradients = dict(zip(NAMES, torch.autograd.grad(loss, [given[name] for name in NAMES]), strict=True))
    logits = given["x"] @ given["weight"].mT + given["bias"]
    expected = -(logits.log_softmax(-1)[..., -1] + torch.nn.functional.logsigmoid(-given["gate"])).sum()
    torch.testing.assert_close(loss, expected, rtol=1e-14, atol=0)
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert gradients["q"].abs().max() == gradients["k"].abs().max() == 0
    torch.testing.assert_close(gradients["gate"], given["gate"].sigmoid())


@pytest.mark.parametrize("kind", ["fast", "plain"])
@pytest.mark.parametrize("size", [1.0, 50.0, 3000.0])
def test_gradients_stay_finite_in_float32(kind: str, size: float) -> None:
    """Gates that are shut or open, weights that underflow, targets that the vocabulary excludes."""
    given: dict[str, Any] = {
        name: (size * part.detach().float()).requires_grad_() if name in NAMES else part
        for name, part in parts(B=6, T=9, S=9).items()
    }
    with form(kind):
        loss = copy_cross_entropy(**given)
    loss.backward()
    assert loss.isfinite()
    assert all(given[name].grad.isfinite().all() for name in NAMES)


def test_without_a_bias_and_without_targets() -> None:
    """A tied head has none; nan where nothing is scored, as in PyTorch."""
    given = parts()
    with_zeros = {**given, "bias": torch.zeros(V, dtype=torch.float64)}
    torch.testing.assert_close(copy_cross_entropy(**{**given, "bias": None}), copy_cross_entropy(**with_zeros))
    nothing = {**given, "targets": torch.full((B, T), IGNORED)}
    assert copy_cross_entropy(**nothing).isnan()
    assert copy_cross_entropy(**nothing, reduction="sum") == 0


def test_a_second_backward_is_an_error() -> None:
    loss = copy_cross_entropy(**parts())
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="compute the loss again"):
        loss.backward()
