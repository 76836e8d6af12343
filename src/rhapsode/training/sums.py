"""The gradients of a batch summed over processes: by hand, since training calls `loss` and not `forward`.

Parameters are gathered into buckets, the last layers first; a bucket's sum begins as soon as backward has its last
gradient, while earlier layers are still at work. A large table of embeddings, of which a step touches a few thousand
rows, is summed by the rows that any process touched. All processes begin their sums in one order, whatever the order in
which their gradients come.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rhapsode.training.group import Group

BUCKET_BYTES = 4 << 20
FEWEST_TABLE_ROWS = 4096  # of an embedding that is summed by touched rows
MOST_TOUCHED = 0.5  # of its rows; where more are touched, all are summed


class GradientSums:
    """Sums the gradients of a model over a group: `begin` before the last backward of a step, `finish` after it."""

    def __init__(self, model: nn.Module, group: Group) -> None:
        self.group = group
        tables = {
            module.weight
            for module in model.modules()
            if isinstance(module, nn.Embedding) and module.num_embeddings >= FEWEST_TABLE_ROWS
        }
        self.sums: list[_Bucket | _Table] = []
        bucket, size = _Bucket(group), 0
        for parameter in [*model.parameters()][::-1]:
            if parameter in tables:
                self.sums.append(_Table(group, parameter))
                continue
            if size and size + parameter.nbytes > BUCKET_BYTES:
                self.sums.append(bucket)
                bucket, size = _Bucket(group), 0
            bucket.parameters.append(parameter)
            size += parameter.nbytes
        if bucket.parameters:
            self.sums.append(bucket)
        self.waiting: dict[Tensor, int] = {}  # parameters whose gradient is not there yet, and the place of their sum
        self.started = 0
        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(self._arrived)

    def begin(self) -> None:
        """From now on, gradients that arrive are summed."""
        self.waiting = {p: place for place, each in enumerate(self.sums) for p in each.parameters}
        self.started = 0

    def finish(self) -> None:
        """Returns when each parameter's gradient is the sum over all processes."""
        self.waiting.clear()
        self._start()
        for each in self.sums:
            if isinstance(each, _Table):
                each.start_rows()
        for each in self.sums:
            each.finish()

    def _arrived(self, parameter: Tensor) -> None:
        if self.waiting.pop(parameter, None) is not None:
            self._start()

    def _start(self) -> None:
        """Begins the sums that are next and whole."""
        missing = min(self.waiting.values(), default=len(self.sums))
        for each in self.sums[self.started : missing]:
            each.start()
        self.started = max(self.started, missing)


@dataclass
class _Bucket:
    """Some parameters whose gradients are summed as one vector."""

    group: Group
    parameters: list[Tensor] = field(default_factory=list)
    flat: Tensor | None = None
    work: Any = None

    def start(self) -> None:
        self.flat = torch.cat([_gradient(parameter).reshape(-1) for parameter in self.parameters])
        self.work = self.group.start_sum(self.flat)

    def finish(self) -> None:
        assert self.flat is not None
        self.group.wait(self.work)
        parts = self.flat.split([parameter.numel() for parameter in self.parameters])
        for parameter, part in zip(self.parameters, parts, strict=True):
            if parameter.grad is not None:
                parameter.grad = part.view_as(parameter)
        self.flat = self.work = None


class _Table:
    """A table of which a step touches few rows: first all processes agree on which, then these are summed."""

    def __init__(self, group: Group, parameter: Tensor) -> None:
        self.group, self.parameters = group, [parameter]
        self.work: Any = None
        self.touched = self.rows = self.part = torch.empty(0)

    def start(self) -> None:
        gradient = _gradient(self.parameters[0])
        self.touched = (torch.linalg.vector_norm(gradient, torch.inf, dim=1) != 0).to(torch.uint8)
        self.work = self.group.start_sum(self.touched, largest=True)

    def start_rows(self) -> None:
        self.group.wait(self.work)
        gradient = _gradient(self.parameters[0])
        self.rows = self.touched.nonzero()[:, 0]
        few = len(self.rows) <= MOST_TOUCHED * len(self.touched)
        self.part = gradient.index_select(0, self.rows) if few else gradient
        self.work = self.group.start_sum(self.part)

    def finish(self) -> None:
        self.group.wait(self.work)
        gradient = _gradient(self.parameters[0])
        if self.part is not gradient:
            gradient.index_copy_(0, self.rows, self.part)
        self.work = None


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
