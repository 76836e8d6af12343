"""Looking at a model: what it costs (parameters, memory, FLOPs), where it looks, what it expects next."""

from rhapsode.inspection.cost import cost_table, flops_per_token
from rhapsode.inspection.reading import Reading, about_groups, as_text, draw_reading, next_token_tables, read

__all__ = [
    "Reading",
    "about_groups",
    "as_text",
    "cost_table",
    "draw_reading",
    "flops_per_token",
    "next_token_tables",
    "read",
]
