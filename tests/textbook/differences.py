"""How far two computations of the same thing are apart, fast and in the textbook."""

import numpy as np
import torch

BOUND = 1e-10

# Pairs (fast, textbook) of arrays that ought to be equal: values, and gradients.
Pairs = list[tuple[np.ndarray, np.ndarray]]


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.tensor(array, dtype=torch.float64, requires_grad=True)


def array(value: torch.Tensor | None) -> np.ndarray:
    assert value is not None
    return value.detach().numpy()


def largest_difference(pairs: Pairs) -> float:
    """The largest absolute difference. Shapes must be equal: broadcasting could hide a missing axis."""
    for fast, own in pairs:
        assert fast.shape == own.shape, (fast.shape, own.shape)
    return max(float(np.abs(fast - own).max()) for fast, own in pairs)
