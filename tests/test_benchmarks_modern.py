"""The rival with our recipe's parts: it computes what it says, looks at no later token, and is scored in its favour."""

import importlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rhapsode.tokens import IGNORED

FOLDER = Path(__file__).parents[1] / "benchmarks"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="needs benchmarks/ beside the package")
SMALL = {"vocab_size": 23, "layers": 2, "width": 12, "heads": 3, "feed_forward": 2, "window": 8, "batch_tokens": 16}


@pytest.fixture
def modern(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("modern")


def model_of(modern: Any, **changes: Any) -> Any:
    """A small model in float64 in which nothing is zero any more."""
    torch.manual_seed(0)
    model = modern.Modern(modern.ModernConfig(**SMALL, pair_embeddings=31, **changes)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    cosine, sine = modern.angles(SMALL["window"], SMALL["width"] // SMALL["heads"])
    model.cosine, model.sine = cosine, sine
    return model.eval()


def norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean() + torch.finfo(x.dtype).eps).sqrt() * weight


def by_the_equations(model: Any, tokens: Tensor) -> Tensor:
    """Log-probabilities (T, V) of one row, place by place, with rotations as complex numbers: no code of the model."""
    weights, heads = dict(model.named_parameters()), SMALL["heads"]
    size, ids = SMALL["width"] // heads, tokens.tolist()

    def linear(name: str, x: Tensor) -> Tensor:
        return weights[f"{name}.weight"] @ x + weights[f"{name}.bias"]

    def turned(x: Tensor, place: int) -> Tensor:
        half = size // 2
        angle = torch.tensor([place * 10_000.0 ** (-2 * i / size) for i in range(half)], dtype=torch.float64)
        z = torch.complex(x[:half], x[half:]) * torch.exp(1j * angle)
        return torch.cat((z.real, z.imag))

    pairs = [(previous * 1_000_003 + token * 7_919) % 31 for previous, token in zip([0, *ids], ids, strict=False)]
    e = [
        weights["embeddings.weight"][token] + weights["pair_embeddings.weight"][pair]
        for token, pair in zip(ids, pairs, strict=True)
    ]
    x = [here + weights["mix"] * before for here, before in zip(e, [torch.zeros_like(e[0]), *e], strict=False)]
    for number in range(SMALL["layers"]):
        block = f"blocks.{number}"
        n = [norm(each, weights[f"{block}.attention_norm.weight"]) for each in x]
        outputs = []
        for t in range(len(x)):
            parts = []
            for head in range(heads):
                part = slice(head * size, (head + 1) * size)

                def one(kind: str, place: int, part: slice = part, block: str = block, n: list = n) -> Tensor:
                    projected = linear(f"{block}.attention.{kind}", n[place])[part]
                    return turned(norm(projected, weights[f"{block}.attention.{kind}_norm.weight"]), place)

                scores = torch.stack([one("query", t) @ one("key", s) for s in range(t + 1)]) / math.sqrt(size)
                values = torch.stack([linear(f"{block}.attention.value", n[s])[part] for s in range(t + 1)])
                parts.append(scores.softmax(0) @ values)
            outputs.append(linear(f"{block}.attention.out", torch.cat(parts)))
        x = [each + output for each, output in zip(x, outputs, strict=True)]
        for t, each in enumerate(x):
            inner = linear(f"{block}.feed_forward.1", norm(each, weights[f"{block}.feed_forward.0.weight"]))
            x[t] = each + linear(f"{block}.feed_forward.3", inner.clamp(min=0) ** 2)
    x = [norm(each, weights["norm.weight"]) for each in x]
    rows = []
    for t, each in enumerate(x):
        row = linear("lm_head", each).log_softmax(0)
        if model.copy_head is not None:
            keys = [torch.zeros(model.config.copy_dim, dtype=torch.float64)]
            keys += [linear("copy_head.key_transform", before) for before in x[:t]]
            query = linear("copy_head.query_transform", each)
            weight = (torch.stack(keys) @ query / math.sqrt(model.config.copy_dim)).softmax(0)
            copied = torch.zeros(SMALL["vocab_size"], dtype=torch.float64)
            for token, share in zip(ids[: t + 1], weight, strict=True):
                copied[token] += share
            gate = linear("copy_head.gate", each).sigmoid()
            row = ((1 - gate) * row.exp() + gate * copied).log()
        rows.append(row)
    return torch.stack(rows)


@pytest.mark.parametrize("copy_dim", [0, 5])
def test_it_computes_its_equations(modern: Any, copy_dim: int) -> None:
    """Would catch a rotation of the wrong pairs, a norm without its scale, an embedding mixed with the one after it."""
    model = model_of(modern, copy_dim=copy_dim)
    row = torch.randint(23, (9,))
    expected = -by_the_equations(model, row[:-1]).gather(1, row[1:, None])[:, 0]
    nats = model.loss(row[None, :-1], row[None, 1:], "none")[0]
    torch.testing.assert_close(nats, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(model.loss(row[None, :-1], row[None, 1:]), expected.mean(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("copy_dim", [0, 5])
def test_no_token_is_seen_too_early(modern: Any, copy_dim: int) -> None:
    """Would catch a rival that is good because it reads its answers: a token changes nothing before it."""
    model = model_of(modern, copy_dim=copy_dim)
    tokens = torch.randint(23, (1, 8))
    targets = torch.randint(23, (1, 8))
    for place in range(8):
        other = tokens.clone()
        other[0, place] = (tokens[0, place] + 1) % 23
        before, after = (model.loss(each, targets, "none")[0] for each in (tokens, other))
        assert torch.equal(before[:place], after[:place])
        assert not torch.equal(before[place:], after[place:])


def test_scores_depend_on_the_distance_alone(modern: Any) -> None:
    """The property that rotary positions are for: q at m and k at n have the score of m + 5 and n + 5."""
    q, k = torch.randn(2, 6, dtype=torch.float64)
    cosine, sine = modern.angles(20, 6)

    def score(m: int, n: int) -> float:
        turned = (modern.rotate(each[None], cosine[[at]], sine[[at]])[0] for each, at in ((q, m), (k, n)))
        return float(next(turned) @ next(turned))

    assert score(7, 3) == pytest.approx(score(12, 8), abs=1e-12)
    assert score(7, 3) != pytest.approx(score(7, 4), abs=1e-3)
    assert score(0, 0) == pytest.approx(float(q @ k), abs=1e-12)


@pytest.mark.parametrize("copy_dim", [0, 5])
def test_scoring_is_one_pass_where_the_window_covers_it_and_strides_beyond(modern: Any, copy_dim: int) -> None:
    """Would catch tokens that are scored twice, left out, or with less context than three quarters of a window."""
    model = model_of(modern, copy_dim=copy_dim)
    window, stride = 8, 2
    for length in (1, 5, 8, 9, 10, 11, 23):
        inputs, targets = torch.randint(23, (2, length)), torch.randint(23, (2, length))
        targets[1, length // 2 :] = IGNORED
        nats = model.token_nats(inputs, targets).double()
        if length <= window:
            torch.testing.assert_close(nats, model.loss(inputs, targets, "none"), rtol=1e-6, atol=1e-6)
        for t in range(length):
            begin = 0 if t < window else ((t - window) // stride + 1) * stride
            alone = model.loss(inputs[:, begin : t + 1], targets[:, begin : t + 1], "none")[:, -1]
            torch.testing.assert_close(nats[:, t], alone, rtol=1e-6, atol=1e-6)
            assert t < window or t - begin >= window - stride


def test_training_moves_it_by_our_own_optimisers(modern: Any, small: Any) -> None:
    """Would catch matrices that Muon leaves out because a name is another, and a rate that does not end at nothing."""
    contender = importlib.import_module("contender")
    recipe = {**contender.RECIPES["modern"], **SMALL, "pair_embeddings": 31, "vocab_size": small.tokenizer.vocab_size}
    recipe |= {"copy_dim": 5, "batch_tokens": 64}
    model, result = contender.train_rival(
        "modern", recipe, small.train, small.valid, {"minutes": 0.01}, seed=0, looks=2
    )
    assert result.tokens == 64 * result.steps > 0
    assert len(result.curve) == 2
    assert result.curve[-1][1] == pytest.approx(model.nats(small.valid))
    assert result.curve[-1][1] < small.valid.num_tokens * math.log(small.tokenizer.vocab_size)
    names = {name for name, parameter in model.named_parameters() if parameter.ndim == 2}
    vocabulary = {"embeddings.weight", "pair_embeddings.weight", "lm_head.weight"}
    moved = importlib.import_module("rhapsode.training").Optimizers(model, contender.OptimizerConfig())
    muon = {moved.names[p] for group in moved.parts[0].param_groups for p in group["params"]}
    assert muon == names - vocabulary
