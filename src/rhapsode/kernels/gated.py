"""The kernel of the gated recurrence: h_t = a_t h_{t-1} + (1 - a_t) c_t for all t, a_t = sigmoid(s_t).

B batch, T tokens in this call, H hidden. Everything is time-major, (T, B, ...).
"""

import torch
from torch import Tensor


def gated_recurrence(x: Tensor, initial: Tensor | None = None) -> Tensor:
    """All hidden states (T, B, H) of the recurrence: x (T, B, 2 H) are s and c side by side, initial (B, H) or None."""
    keep, candidate = x.chunk(2, dim=-1)
    keep = keep.sigmoid()
    h = torch.zeros_like(candidate[0]) if initial is None else initial
    states = []
    for a_t, c_t in zip(keep.unbind(0), candidate.unbind(0), strict=True):
        h = a_t * h + (1 - a_t) * c_t
        states.append(h)
    return torch.stack(states)
