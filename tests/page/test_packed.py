"""Packed weights: what they cost, and that they are those of the model."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from rhapsode.api import load
from rhapsode.export.network import packed_network, unpacked_network
from rhapsode.export.packed import pack, quantised, unpack


def test_each_row_has_the_best_scale_of_several() -> None:
    """Would catch a scale for the whole matrix, a clipped -128, and a row of zeros that divides by zero."""
    matrix = np.random.default_rng(1).normal(size=(6, 300)).astype(np.float32) * np.array(
        [[1e-3], [1], [50], [0], [2], [3]], np.float32
    )
    matrix[4, 7] = 40.0  # an outlier, beside which the rest would be coarse
    q, scale = quantised(matrix)
    assert q.dtype == np.int8
    assert q.min() >= -127
    found = q * scale[:, None]
    assert (found[3] == 0).all()
    plain = np.abs(matrix).max(axis=1, keepdims=True) / 127
    coarse = np.rint(matrix / np.where(plain == 0, 1, plain)) * plain
    error, of_plain = (np.square(matrix - each).sum(axis=1) for each in (found, coarse))
    assert (error <= of_plain * (1 + 1e-6)).all()
    assert np.sqrt(error / np.maximum(np.square(matrix).sum(axis=1), 1e-12)).max() < 0.12


def test_round_trip(tiny_run: Path) -> None:
    """Would catch a weight under another name, a config that lost a field, a vector that was rounded."""
    network = load(tiny_run, device="cpu").network
    config, weights = unpack(packed_network(network))
    assert config == asdict(network.config)
    found = unpacked_network(packed_network(network, float16=True))
    for (name, weight), other in zip(network.named_parameters(), found.parameters(), strict=True):
        if weight.ndim == 1:
            np.testing.assert_array_equal(weights[name], weight.detach().numpy())
        torch.testing.assert_close(other, weight, rtol=1e-3, atol=1e-7)


def test_one_model_is_one_file(tiny_run: Path) -> None:
    """Would catch a page that is another file each time that it is exported."""
    network = load(tiny_run, device="cpu").network
    assert len({packed_network(network) for _ in range(12)}) == 1


def test_bytes_that_are_none_are_refused() -> None:
    """Would catch a traceback for a file that was cut, and a model of a later version that is read as it comes."""
    packed = pack({"vocab_size": 3}, {"w": np.ones((2, 2), np.float32)})
    for data in (b"", packed[:-9], b"x" + packed):
        with pytest.raises(ValueError, match="not a packed model"):
            unpack(data)
    with pytest.raises(ValueError, match="not a packed model of this version"):
        unpacked_network(packed)
