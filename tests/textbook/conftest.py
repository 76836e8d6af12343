"""The yardstick of these tests: gradients by central differences in float64."""

from collections.abc import Callable

import numpy as np
import pytest


def central_differences(f: Callable[[], float], array: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """df/d(array), entry by entry: f() is called with the entry moved by ± step, and must read `array`.

    The truncation error is of order step², the rounding error of order 1e-16 / step: together about 1e-10.
    """
    gradient = np.zeros_like(array)
    for index in np.ndindex(array.shape):
        saved = array[index]
        array[index] = saved + step
        above = f()
        array[index] = saved - step
        below = f()
        array[index] = saved
        gradient[index] = (above - below) / (2 * step)
    return gradient


@pytest.fixture(scope="session")
def numerical_gradient() -> Callable[..., np.ndarray]:
    return central_differences


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(10601)
