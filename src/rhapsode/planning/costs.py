"""What a step of training asks of a device and of a network, and how fast these are.

    seconds of a step = FLOPs / rate + bytes of the optimiser / bandwidth + launches x their price
    seconds of a sum  = 2 (N - 1) / N x bytes / bandwidth + 2 (N - 1) x latency           a ring of N processes

On a GPU, launches run ahead of the work: there, the larger of the two counts. The rates are fitted to measurements
(`benchmarks/plan.py`, which writes machines.json); `error` is what the fit was off by on points that were held out.
"""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import torch

from rhapsode.inspection import flops_per_token
from rhapsode.model import ModelConfig, build_model

FLOAT_BYTES = 4
STEP_OVER_FORWARD = 3  # FLOPs of a training step over those of the forward pass
OPTIMIZER_BYTES = 28  # that are read and written for each parameter: weight and two moments both ways, the gradient
SAVED_BYTES = 12  # of a checkpoint for each parameter: weight and two moments
LAUNCHES_OF_A_TIMESTEP = 6  # of each layer's recurrence, forward and backward
LAUNCHES_OF_A_LAYER, LAUNCHES_OF_A_STEP = 100, 60
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Device:
    """What computes: one thread of a processor, or a GPU. error: relative, on points that the fit did not see.

    overlapped: launches run ahead of the work. least_flops, most_flops: the steps that it was fitted to.
    """

    name: str
    flops_per_second: float
    bytes_per_second: float
    seconds_per_launch: float
    overlapped: bool
    error: float
    least_flops: float
    most_flops: float


@dataclass(frozen=True)
class Link:
    """What processes are connected by. error: as of a Device; 0 where the numbers are not measured but given."""

    name: str
    bytes_per_second: float
    latency_seconds: float
    error: float


@dataclass(frozen=True)
class Demand:
    """What a step of one process asks for."""

    flops: float
    optimizer_bytes: float
    launches: float


@cache
def _measured() -> dict[str, Any]:
    about = json.loads(files("rhapsode.planning").joinpath("machines.json").read_text(encoding="utf-8"))
    if about["format_version"] != FORMAT_VERSION:
        raise ValueError(f"machines.json: format_version {about['format_version']}, expected {FORMAT_VERSION}")
    return about


def devices() -> dict[str, Device]:
    """What was measured, by name."""
    return {name: Device(name, **numbers) for name, numbers in _measured()["devices"].items()}


def links() -> dict[str, Link]:
    """What was measured, and what is usual between machines: 10 and 100 Gbit/s."""
    measured = {name: Link(name, **numbers) for name, numbers in _measured()["links"].items()}
    usual = {f"{gigabits}gbit": Link(f"{gigabits}gbit", gigabits * 1e9 / 8, 50e-6, 0.0) for gigabits in (1, 10, 100)}
    return measured | usual


def disk_bytes_per_second() -> float:
    """How fast a checkpoint is written."""
    return float(_measured()["disk_bytes_per_second"])


@cache
def parameters_of(model: ModelConfig) -> tuple[int, int]:
    """(all parameters, those of the table of token pairs)."""
    with torch.device("meta"):
        network = build_model(model)
    pairs = model.pair_embeddings * model.embed_dim
    return sum(parameter.numel() for parameter in network.parameters()), pairs


def demand_of(model: ModelConfig, rows: int, window: int) -> Demand:
    """What a step of so many rows of a window asks for."""
    flops = STEP_OVER_FORWARD * rows * window * flops_per_token(model, (window + 1) // 2)
    launches = model.num_layers * (LAUNCHES_OF_A_TIMESTEP * window + LAUNCHES_OF_A_LAYER) + LAUNCHES_OF_A_STEP
    return Demand(flops, OPTIMIZER_BYTES * parameters_of(model)[0], launches)


def seconds_by_part(demand: Demand, device: Device) -> dict[str, float]:
    """The seconds of a step, by what they go into."""
    products, optimizer = demand.flops / device.flops_per_second, demand.optimizer_bytes / device.bytes_per_second
    launches = demand.launches * device.seconds_per_launch
    if device.overlapped:
        launches = max(0.0, launches - products - optimizer)  # what the work does not hide
    return {"matrix products": products, "optimiser": optimizer, "launches": launches}


def summed_bytes(model: ModelConfig, tokens: int) -> float:
    """Bytes of the gradients that are summed after a batch of so many tokens: of the pair table the touched rows."""
    everything, pairs = parameters_of(model)
    touched = min(model.pair_embeddings, tokens) * model.embed_dim
    return FLOAT_BYTES * (everything - pairs + min(pairs, touched)) + model.pair_embeddings


def seconds_of_sum(bytes_summed: float, processes: int, link: Link) -> float:
    """Seconds of a ring's sum over so many processes."""
    if processes == 1:
        return 0.0
    share = 2 * (processes - 1) / processes
    return share * bytes_summed / link.bytes_per_second + 2 * (processes - 1) * link.latency_seconds
