"""How weights move: AdamW, Adam, or Muon on the matrices with AdamW on the rest, and the learning rate over time.

    momentum <- b momentum + g                              Muon (Jordan et al. 2024), for a matrix (m, n)
    update    = orthogonalise(g + b momentum)               Nesterov; all singular values become about 1
    weight   <- weight - rate sqrt(max(1, m / n)) update

Weight decay is decoupled (Loshchilov and Hutter 2019) and touches matrices only, embedding and head among them,
never biases or norms; Adam has none.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rhapsode.recipe import OptimizerConfig


def rate_at(config: OptimizerConfig, step: int, total: int) -> float:
    """The share of the peak learning rate at which step (0, 1, ...) of `total` is taken; in (0, 1]."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.decay == "constant":
        return 1.0
    # The last step still moves: it stands one step before the end of the decay.
    left = max(0.0, 1 - (step - config.warmup_steps) / max(1, total - config.warmup_steps))
    if config.decay == "cosine":
        left = 0.5 - 0.5 * float(torch.cos(torch.tensor(torch.pi * left, dtype=torch.float64)))
    return config.final_rate + (1 - config.final_rate) * left


class Optimizers:
    """The optimisers of a model, driven as one.

    captured: learning rates are tensors beside the weights and steps are counted there too, so that an update that was
    captured once (graph.py) can be replayed at another rate.
    """

    def __init__(self, model: nn.Module, config: OptimizerConfig, captured: bool = False) -> None:
        self.config = config
        self.names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
        self.parts: list[torch.optim.Optimizer] = []
        inner = [p for name, p in model.named_parameters() if p.ndim == 2 and not _is_vocabulary(name)]
        matrices: list[Tensor] = [*inner] if config.optimizer == "muon" else []
        if matrices:
            self.parts.append(Muon(matrices, config.matrix_learning_rate, config.momentum, config.weight_decay))
        taken = set(matrices)
        rest = [p for p in model.parameters() if p not in taken]
        # Decay draws weights towards zero; a bias or a norm's scale has no reason to be there.
        groups = [
            {"params": [p for p in rest if p.ndim == 2], "weight_decay": config.weight_decay},
            {"params": [p for p in rest if p.ndim != 2], "weight_decay": 0.0},
        ]
        adam = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
        betas = (config.beta1, config.beta2)
        options: Any = {"fused": True, "capturable": captured}
        self.parts.append(adam([g for g in groups if g["params"]], config.learning_rate, betas, **options))
        device = next(model.parameters()).device
        for part in self.parts:
            for group in part.param_groups:
                group["peak"] = group["lr"]
                if captured:
                    group["lr"] = torch.tensor(group["peak"], dtype=torch.float32, device=device)

    def step(self, share: float | Tensor) -> None:
        """One update at this share of the peak learning rates, a tensor where captured; then the gradients are gone."""
        for part in self.parts:
            for group in part.param_groups:
                if isinstance(share, Tensor):
                    group["lr"].copy_(share * group["peak"])
                else:
                    group["lr"] = group["peak"] * share
            part.step()
            part.zero_grad(set_to_none=True)

    def state_tensors(self) -> dict[str, Tensor]:
        """All state, as `part/parameter/key` -> tensor; with the config it is all that is needed to go on."""
        return {
            f"{number}/{self.names[parameter]}/{key}": value
            for number, part in enumerate(self.parts)
            for parameter, state in part.state.items()
            for key, value in state.items()
        }

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Takes what `state_tensors` gave; ValueError where that was of other optimisers or another model."""
        parameters = {name: parameter for parameter, name in self.names.items()}
        owner = {p: n for n, part in enumerate(self.parts) for group in part.param_groups for p in group["params"]}
        states: list[dict[Tensor, dict[str, Tensor]]] = [defaultdict(dict) for _ in self.parts]
        for path, tensor in tensors.items():
            number, name, key = path.split("/")
            parameter = parameters.get(name)
            if parameter is None or str(owner[parameter]) != number or key not in keys_of(self.parts[int(number)]):
                raise ValueError(f"optimizer/{path} does not belong to this run's optimisers")
            shape = [] if key == "step" else list(parameter.shape)
            if list(tensor.shape) != shape:
                raise ValueError(f"optimizer/{path} has the shape {list(tensor.shape)}, it must have {shape}")
            # Adam counts steps in a tensor that stays on the CPU unless the kernel is a GPU's.
            states[int(number)][parameter][key] = tensor.to(parameter.device)
        for parameter, i in owner.items() if tensors else ():  # before the first step there is no state at all
            if missing := [key for key in keys_of(self.parts[i]) if key not in states[i].get(parameter, {})]:
                raise ValueError(f"optimizer/{i}/{self.names[parameter]}/{missing[0]} is missing")
        for part, state in zip(self.parts, states, strict=True):
            part.state = defaultdict(dict, state)


def keys_of(part: torch.optim.Optimizer) -> tuple[str, ...]:
    """What an optimiser keeps of each parameter."""
    return ("momentum",) if isinstance(part, Muon) else ("step", "exp_avg", "exp_avg_sq")


def _is_vocabulary(name: str) -> bool:
    """Embedding and head: their rows are looked up or compared one by one, so Muon's geometry is not theirs."""
    return name.startswith(("embeddings.", "pair_embeddings.", "lm_head."))


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised by a Newton-Schulz iteration (Jordan et al. 2024), in float32.

    torch.optim.Muon iterates in bfloat16, which CPUs without bfloat16 units emulate slowly. Matrices of one
    shape are orthogonalised together. Parameters: 2-D only.
    """

    def __init__(self, params: list[Tensor], lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of all parameters that have a gradient; a closure is not supported."""
        assert closure is None
        for group in self.param_groups:
            by_shape: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is None:
                    continue
                state: dict[str, Any] = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                momentum = state["momentum"].mul_(group["momentum"]).add_(p.grad)
                by_shape[tuple(p.shape)].append((p, p.grad.add(momentum, alpha=group["momentum"])))
            for (rows, columns), pairs in by_shape.items():
                updates = orthogonalise(torch.stack([update for _, update in pairs]))
                rate = group["lr"] * max(1.0, rows / columns) ** 0.5
                for (p, _), update in zip(pairs, updates, strict=True):
                    if group["weight_decay"]:
                        p.mul_(1 - group["lr"] * group["weight_decay"])
                    if isinstance(rate, Tensor):
                        p.addcmul_(update, rate, value=-1)
                    else:
                        p.add_(update, alpha=-rate)


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """matrices (N, m, n) -> (N, m, n) with the same singular vectors and singular values from about 0.7 to 1.2.

    Each step applies x -> 3.4445 x - 4.7750 x^3 + 2.0315 x^5 to the singular values (coefficients: Jordan et
    al. 2024), by matrix products alone.
    """
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.mT if tall else x
