"""Looking at a model: what it costs (parameters, memory, FLOPs), where it looks, what it expects and what it copies."""

from rhapsode.inspection.copying import copy_map, copy_table, draw_copies
from rhapsode.inspection.cost import cost_table, flops_per_token
from rhapsode.inspection.reading import Reading, about_groups, as_text, draw_reading, next_token_tables, read

__all__ = [
    "Reading",
    "about_groups",
    "as_text",
    "copy_map",
    "copy_table",
    "cost_table",
    "draw_copies",
    "draw_reading",
    "flops_per_token",
    "next_token_tables",
    "read",
]
