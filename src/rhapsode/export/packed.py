"""A trained model in a quarter of its size: matrices as int8 with a scale per row, everything else as float32.

    w[r, c] = scale[r] * q[r, c]         q in -127 .. 127, int8; scale[r] is the one of a few that errs least

The bytes are those of a safetensors file, compressed (zlib). Two readers need no PyTorch: the one in a browser
(serve/page/runtime.js) and this file, which gives NumPy arrays. With float16 in place of int8 the
file is twice as large and as good as the model.
"""

import json
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

FORMAT_VERSION = 1
LARGEST_RISE = 0.005  # in bits per byte, that int8 may cost
SCALE_SUFFIX = ".scale"  # what follows a matrix's name in the name of its scales
# Of the largest entry of a row, where the row is cut off: less than all of it makes the steps of all others finer.
SHARES_OF_LARGEST = (1.0, 0.97, 0.94, 0.91, 0.88, 0.85, 0.82, 0.79, 0.76)


def quantised(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(int8 (rows, columns), float32 scales (rows,)) of a matrix, each row's scale that of the least squared error."""
    largest = np.abs(matrix).max(axis=1, keepdims=True)
    best, scales = np.full(len(matrix), np.inf), np.zeros(len(matrix), np.float32)
    for share in SHARES_OF_LARGEST:
        tried = (largest * (share / 127)).astype(np.float32)
        error = np.square(matrix - tried * _rounded(matrix, tried)).sum(axis=1)
        scales = np.where(error < best, tried[:, 0], scales)
        best = np.minimum(error, best)
    return _rounded(matrix, scales[:, None]), scales


def _rounded(matrix: np.ndarray, scales: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(matrix / np.where(scales == 0, 1, scales)), -127, 127).astype(np.int8)


def pack(config: Mapping[str, Any], weights: Mapping[str, np.ndarray], float16: bool = False) -> bytes:
    """config: the fields of a ModelConfig; weights: float32 by name, a tied head left out. The inverse of `unpack`."""
    tensors: dict[str, np.ndarray] = {}
    for name, weight in weights.items():
        if weight.ndim == 1:
            tensors[name] = weight.astype(np.float32)
        elif float16:
            tensors[name] = weight.astype(np.float16)
        else:
            tensors[name], tensors[name + SCALE_SUFFIX] = quantised(weight)
    about = {"rhapsode_packed": str(FORMAT_VERSION), "config": json.dumps(dict(config))}
    return zlib.compress(_in_order(safetensors.numpy.save(tensors, about)), 9)


def _in_order(raw: bytes) -> bytes:
    """The same file with its metadata sorted, which safetensors writes in any order: one model, one file."""
    end = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + raw[end:]


def is_packed(data: bytes) -> bool:
    """Whether bytes begin as those of a packed model do."""
    try:
        return zlib.decompressobj().decompress(data[:1000], 9)[8:] == b"{"
    except zlib.error:
        return False


def unpack(data: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(the config's fields, the weights in float32 by name); ValueError where the bytes are no packed model."""
    try:
        raw = zlib.decompress(data)
        tensors = safetensors.numpy.load(raw)
        about = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]
        if about["rhapsode_packed"] != str(FORMAT_VERSION):
            raise ValueError("packed by another version")
        config = json.loads(about["config"])
    except (zlib.error, safetensors.SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"not a packed model ({error})") from None
    weights = {}
    for name, tensor in tensors.items():
        if not name.endswith(SCALE_SUFFIX):
            scale = tensors.get(name + SCALE_SUFFIX)
            weights[name] = tensor.astype(np.float32) * (np.float32(1) if scale is None else scale[:, None])
    return config, weights
