"""Where a run stands: what its checkpoint holds, and how training continues from it, exactly."""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rhapsode.recorded import check_schema, read_config
from rhapsode.run import Checkpoint, below, load_weights, weights_of
from rhapsode.state import State
from rhapsode.tokens import Batcher
from rhapsode.training.graph import GraphStep
from rhapsode.training.plan import Plan
from rhapsode.training.step import TrainingStep

TakesSteps = TrainingStep | GraphStep


@dataclass
class Progress:
    """Where a run stands; with the tensors of its checkpoint, all that is needed to go on.

    seconds: of training, without validation. nats, scored: since the last validation. Losses are nats per token.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    batcher: dict[str, int] = field(default_factory=lambda: {"epoch": 0, "position": 0})
    nats: float = 0.0
    scored: int = 0
    reported_step: int = 0
    validated_step: int = 0
    validations: int = 0
    best_loss: float | None = None
    best_step: int = 0
    without_gain: int = 0


def checkpoint_of(
    progress: Progress, step: TakesSteps, batcher: Batcher, plan: Plan
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, on the CPU, and the fields of a checkpoint of this very point."""
    tensors = weights_of(step.model)
    tensors |= {f"optimizer/{name}": tensor for name, tensor in step.optimizers.state_tensors().items()}
    tensors["generator/cpu"] = torch.get_rng_state()
    if step.device.type == "cuda":
        tensors["generator/cuda"] = torch.cuda.get_rng_state()
    tensors |= {f"state/{name}": tensor for name, tensor in step.carried().items()}
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    progress.batcher = batcher.state_dict()
    return tensors, asdict(progress) | {"timed_from": plan.timed_from}


def restore(path: Path, checkpoint: Checkpoint, step: TakesSteps, batcher: Batcher, plan: Plan) -> Progress:
    """Takes what `checkpoint_of` gave, of the run in `path`; ValueError with one line where that cannot be."""
    try:
        return _take(path, checkpoint.tensors, dict(checkpoint.progress), step, batcher, plan)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise ValueError(
            f"{path / 'last.safetensors'}: training cannot be resumed from it: {what}; replace it with an"
            " intact copy, or start a new run"
        ) from None


def _take(
    path: Path, tensors: dict[str, Tensor], fields_: dict[str, Any], step: TakesSteps, batcher: Batcher, plan: Plan
) -> Progress:
    load_weights(step.model, tensors, str(path))
    step.optimizers.load_state_tensors(below("optimizer/", tensors))
    torch.set_rng_state(tensors["generator/cpu"])
    if "generator/cuda" in tensors and step.device.type == "cuda":
        torch.cuda.set_rng_state(tensors["generator/cuda"])
    if state := below("state/", tensors):
        _check_state(step, state)
        step.carry(State.from_tensors(state))
    began, seconds = fields_.pop("timed_from")
    plan.timed_from = int(began), float(seconds)
    check_schema(fields_.pop("metrics_bytes", 0), int, "its progress", "metrics_bytes")
    missing = {each.name for each in fields(Progress)} - set(fields_)
    if missing:
        raise KeyError(f"progress.{min(missing)}")
    progress = read_config(Progress, fields_, "its contents", "progress")
    batcher.load_state_dict(progress.batcher)
    step.nats = progress.nats
    return progress


def _check_state(step: TakesSteps, state: dict[str, Tensor]) -> None:
    """Raises ValueError where a carried state is not one of this model and batch."""
    tokens = torch.zeros(step.batch_config.batch_size, 1, dtype=torch.long, device=step.device)
    with torch.no_grad():
        expected = step.model.eval()(tokens)[1].tensors()
    step.model.train()
    for name in expected.keys() | state.keys():
        had, has = (_shape_but_for_time(name, each[name]) if name in each else None for each in (expected, state))
        if had != has:
            raise ValueError(f"state/{name} has the shape {has}, the model's is {had}")


def _shape_but_for_time(name: str, tensor: Tensor) -> list[int]:
    """A cache is as long as what it has seen, up to a window."""
    shape = list(tensor.shape)
    return shape[:2] + shape[3:] if name.endswith(("/keys", "/values", "/ids")) else shape
