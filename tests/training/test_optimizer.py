"""The optimisers and their schedule, against SVD and PyTorch's own."""

import math

import pytest
import torch
from torch import nn

from rhapsode.model import ModelConfig, build_model
from rhapsode.recipe import OptimizerConfig
from rhapsode.recipe.configs import OPTIMIZERS
from rhapsode.training.optimizer import Muon, Optimizers, orthogonalise, rate_at

TINY = ModelConfig(
    11,
    "stacked",
    embed_dim=6,
    hidden_dim=10,
    key_dim=3,
    value_dim=5,
    num_layers=2,
    attention="last",
    feed_forward=2,
    pair_embeddings=9,
)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (5, 5), (4, 9), (9, 4)])
def test_orthogonalise_keeps_singular_vectors(shape: tuple[int, int]) -> None:
    """Would catch a wrong coefficient, a matrix left transposed, and matrices of a batch that mix.

    The oracle applies the polynomial to the singular values, in float64.
    """
    matrices = random(3, *shape) * torch.tensor([1e-3, 1.0, 1e3])[:, None, None]
    for matrix, found in zip(matrices.double(), orthogonalise(matrices), strict=True):
        u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
        s = s / (s.norm() + 1e-7)
        for _ in range(5):
            s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
        torch.testing.assert_close(found.double(), u @ torch.diag(s) @ vt, rtol=1e-4, atol=1e-4)


def test_orthogonalise_makes_singular_values_about_one() -> None:
    """Would catch too few steps, and a matrix of zeros that becomes NaN."""
    values = torch.linalg.svdvals(orthogonalise(random(2, 12, 20)))
    assert 0.6 < values.min() < values.max() < 1.3
    assert not orthogonalise(torch.zeros(1, 3, 4)).any()


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_muon_steps_as_torch_does(weight_decay: float) -> None:
    """Would catch momentum or its Nesterov form wrong, the scale of tall matrices, and decay after the update.

    PyTorch iterates in bfloat16, hence the tolerance, a tenth of one step.
    """
    shapes = [(8, 8), (12, 5), (5, 12), (8, 8)]
    ours = [nn.Parameter(random(*shape, seed=i)) for i, shape in enumerate(shapes)]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    mine = Muon(list(ours), 0.1, 0.9, weight_decay)
    oracle = torch.optim.Muon(theirs, lr=0.1, momentum=0.9, weight_decay=weight_decay, adjust_lr_fn="original")
    for step in range(4):
        for i, (p, q) in enumerate(zip(ours, theirs, strict=True)):
            p.grad = random(*p.shape, seed=100 * step + i)
            q.grad = p.grad.clone()
        mine.step()
        oracle.step()
    for i, (p, q) in enumerate(zip(ours, theirs, strict=True)):
        torch.testing.assert_close(p, q, rtol=0, atol=0.01)
        assert (p - random(*p.shape, seed=i)).abs().max() > 0.05


def test_muon_leaves_what_has_no_gradient() -> None:
    """Would catch decay or an update of a parameter that the loss does not reach."""
    p = nn.Parameter(torch.ones(2, 3))
    Muon([p], 0.1, 0.9, weight_decay=0.5).step()
    assert torch.equal(p, torch.ones(2, 3))


@pytest.mark.parametrize("decay", ["linear", "cosine"])
@pytest.mark.parametrize("final_rate", [0.0, 0.1])
def test_schedule_is_that_of_torch(decay: str, final_rate: float) -> None:
    """Would catch a warm-up that begins at zero or ends late, and a decay whose last step no longer moves."""
    warmup, total = 7, 31
    config = OptimizerConfig(warmup_steps=warmup, decay=decay, final_rate=final_rate)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = torch.optim.lr_scheduler
    rise = schedule.LinearLR(optimizer, 1 / warmup, 1.0, warmup - 1)
    fall: torch.optim.lr_scheduler.LRScheduler = schedule.LinearLR(optimizer, 1.0, final_rate, total - warmup)
    if decay == "cosine":
        fall = schedule.CosineAnnealingLR(optimizer, total - warmup, final_rate)
    both = schedule.SequentialLR(optimizer, [rise, fall], milestones=[warmup])
    for step in range(total):
        assert rate_at(config, step, total) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9), step
        optimizer.step()
        both.step()
    assert rate_at(config, total - 1, total) > 0
    assert rate_at(config, total, total) == pytest.approx(final_rate)


def test_schedule_at_its_edges() -> None:
    """Would catch a division by zero without warm-up, or with a warm-up as long as the run."""
    assert rate_at(OptimizerConfig(warmup_steps=0), 0, 1) == 1.0
    assert rate_at(OptimizerConfig(warmup_steps=5), 4, 5) == 1.0
    assert rate_at(OptimizerConfig(warmup_steps=5), 3, 2) == 0.8
    assert rate_at(OptimizerConfig(warmup_steps=0, decay="constant"), 99, 100) == 1.0


@pytest.mark.parametrize("tied", [False, True])
def test_which_parameter_goes_where(tied: bool) -> None:
    """Would catch an embedding given to Muon, a bias or a norm that decays, and a parameter forgotten or twice."""
    model = build_model(ModelConfig(**{**TINY.__dict__, "tie_embeddings": tied}), seed=0)
    optimizers = Optimizers(model, OptimizerConfig(weight_decay=0.1))
    muon, adamw = optimizers.parts
    assert isinstance(muon, Muon)
    assert isinstance(adamw, torch.optim.AdamW)
    groups = [(group["weight_decay"], group["params"]) for part in optimizers.parts for group in part.param_groups]
    decays = {optimizers.names[p]: decay for decay, params in groups for p in params}
    assert sum(len(params) for _, params in groups) == len(decays) == len(list(model.parameters()))
    for name, p in model.named_parameters():
        assert decays[name] == (0.1 if p.ndim == 2 else 0.0), name
    by_adamw = {optimizers.names[p] for group in adamw.param_groups for p in group["params"]}
    matrices = {"embeddings.weight", "pair_embeddings.weight"} | (set() if tied else {"lm_head.weight"})
    assert {name for name in by_adamw if model.get_parameter(name).ndim == 2} == matrices
    for optimizer in ("adamw", "adam"):
        (part,) = Optimizers(model, OptimizerConfig(optimizer=optimizer)).parts
        assert sum(len(group["params"]) for group in part.param_groups) == len(decays)
        assert type(part).__name__.lower() == optimizer


@pytest.mark.parametrize("optimizer", ["adamw", "adam"])
def test_adam_steps_as_torch_does(optimizer: str) -> None:
    """Would catch swapped betas, the rate's share applied twice, and gradients that pile up from step to step."""
    config = OptimizerConfig(optimizer, learning_rate=0.01, beta1=0.8, beta2=0.95)
    ours, theirs = build_model(TINY, seed=0), build_model(TINY, seed=0)
    optimizers = Optimizers(ours, config)
    kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[optimizer]
    oracle = kind(theirs.parameters(), lr=0.01, betas=(0.8, 0.95), weight_decay=0.0)
    for step, share in enumerate((1.0, 0.5, 0.25)):
        oracle.param_groups[0]["lr"] = 0.01 * share
        for i, (p, q) in enumerate(zip(ours.parameters(), theirs.parameters(), strict=True)):
            q.grad = random(*p.shape, seed=100 * step + i)
            p.grad = q.grad.clone() if p.grad is None else p.grad + q.grad
        optimizers.step(share)
        oracle.step()
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_state_goes_on_bit_by_bit(optimizer: str) -> None:
    """Would catch a moment or a step count that is not saved, or comes back under another parameter's name."""
    config = OptimizerConfig(optimizer, weight_decay=0.0 if optimizer == "adam" else 0.1)
    tokens = torch.arange(10).reshape(2, 5)

    def steps(model: nn.Module, optimizers: Optimizers, shares: list[float]) -> None:
        for share in shares:
            model.loss(tokens, tokens + 1)[0].backward()
            optimizers.step(share)

    first = build_model(TINY, seed=0)
    optimizers = Optimizers(first, config)
    assert optimizers.state_tensors() == {}
    steps(first, optimizers, [0.5, 1.0])
    second = build_model(TINY, seed=1)
    second.load_state_dict(first.state_dict())
    saved = {name: tensor.clone() for name, tensor in optimizers.state_tensors().items()}
    resumed = Optimizers(second, config)
    resumed.load_state_tensors(saved)
    steps(first, optimizers, [1.0, 0.5, 0.1])
    steps(second, resumed, [1.0, 0.5, 0.1])
    for (name, p), q in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(p, q), name
    for name, tensor in optimizers.state_tensors().items():
        assert torch.equal(tensor, resumed.state_tensors()[name]), name


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("optimizer", "sgd", "optimizer must be one of muon, adamw, adam, got 'sgd'"),
        ("decay", "step", "decay must be one of"),
        ("learning_rate", 0.0, "learning_rate must be greater than 0 and finite, got 0.0"),
        ("learning_rate", math.nan, "learning_rate must be greater than 0 and finite, got nan"),
        ("matrix_learning_rate", math.inf, "matrix_learning_rate must be greater than 0 and finite, got inf"),
        ("beta2", 1.0, r"beta2 must be in \[0, 1\), got 1.0"),
        ("momentum", -0.1, "momentum must be in"),
        ("weight_decay", -1.0, "weight_decay must be at least 0 and finite, got -1.0"),
        ("clip_norm", math.nan, "clip_norm must be at least 0 and finite, got nan"),
        ("final_rate", 1.5, "final_rate must be in"),
    ],
)
def test_config_names_field_and_value(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**{field: value})  # type: ignore[arg-type]


def test_adam_has_no_decay() -> None:
    """Would catch a weight decay that is asked for and silently left out."""
    with pytest.raises(ValueError, match=r"weight_decay 0\.1 needs optimizer adamw or muon"):
        OptimizerConfig("adam", weight_decay=0.1)
