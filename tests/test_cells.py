"""The cells of the recurrences, before they are trained."""

import torch

from rhapsode.cells import LONGEST_MEMORY, GatedCell


def test_a_fresh_gated_cell_remembers_over_many_times() -> None:
    """Would catch entries that all forget within a few steps: what lies further back is then learnt late, or not."""
    cell = GatedCell(3, 5)
    x = cell.project(torch.zeros(LONGEST_MEMORY, 1, 3)).detach()
    x[..., 5:] = 0.0  # nothing new comes in
    kept = cell.recur(x, torch.ones(1, 5))[:, 0]
    steps = (kept > 1 / torch.e).sum(0)  # for which at least a share of 1/e is left
    assert all(parameter.requires_grad for parameter in cell.parameters())
    assert steps[0] == 1
    assert steps[-1] >= LONGEST_MEMORY - 1
    assert torch.all(steps[1:] > 1.5 * steps[:-1])
