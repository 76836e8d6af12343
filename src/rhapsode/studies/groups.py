"""Which cells of a study are trained side by side in one process (training/together.py): those of one shape."""

import json
from collections.abc import Sequence

from rhapsode.studies.plans import Cell
from rhapsode.training.together import why_alone

MOST_TOGETHER = 8  # beyond that a GPU has enough to do, and the logits of all of them begin to fill its memory


def groups_of(cells: Sequence[Cell], together: bool) -> list[list[Cell]]:
    """The cells in the order in which their first ones stand, each alone or beside those of its shape."""
    groups: list[list[Cell]] = []
    open_groups: dict[str, list[Cell]] = {}
    for cell in cells:
        if not together or why_alone(cell.sections):
            groups.append([cell])
            continue
        batch, train = cell.sections["batch"], cell.sections["train"]
        sizes = [batch.get("batch_size"), batch.get("window"), train.get("precision"), cell.task]
        shape = json.dumps([cell.sections["model"], *sizes], sort_keys=True)
        group = open_groups.get(shape)
        if group is None or len(group) == MOST_TOGETHER:
            group = open_groups[shape] = []
            groups.append(group)
        group.append(cell)
    return groups
