"""Looking at a model: what it costs (parameters, memory, FLOPs), where it looks, what it expects next."""

from rhapsode.inspection.cost import cost_table, flops_per_token
from rhapsode.inspection.reading import Reading, as_text, draw, next_token_table, read

__all__ = ["Reading", "as_text", "cost_table", "draw", "flops_per_token", "next_token_table", "read"]
