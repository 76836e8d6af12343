"""Tensors on disk: safetensors that carry a checksum of all that they hold, compared at every load.

The format itself has none: a flipped bit in a weight would be another weight.
"""

import hashlib
import json
from collections.abc import Mapping

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from rhapsode.terminal import literal

LONGEST_HEADER = 100_000_000  # bytes, as the format has it


def pack_tensors(tensors: Mapping[str, Tensor], about: dict[str, str], signed: str) -> bytes:
    """A safetensors file with the metadata `about` and `sha256`, of the tensors and about[signed]."""
    return safetensors.torch.save(dict(tensors), about | {"sha256": checksum(tensors, about[signed])})


def unpack_tensors(content: bytes, signed: str, **versions: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a file that `pack_tensors` made; one without a checksum is taken as it is.

    versions: what the metadata must say of themselves. Raises ValueError saying what is wrong, but not where.
    """
    try:
        about = metadata_in(content)
        for field, version in versions.items():
            if about[field] != version:
                found = literal(str(about[field]))[:40]
                raise ValueError(f"{field} {found}, but this version of rhapsode reads {version}")
        tensors, text = safetensors.torch.load(content), about[signed]
    except (safetensors.SafetensorError, TypeError, KeyError, ValueError, RecursionError) as error:
        raise ValueError(f"damaged or not a checkpoint ({' '.join(str(error).split())[:200]})") from None
    if "sha256" in about and about["sha256"] != checksum(tensors, text):
        raise ValueError("damaged, its contents do not match its checksum; replace it with an intact copy")
    return tensors, about


def metadata_in(content: bytes) -> dict[str, str]:
    """The metadata of a file's bytes: 8 bytes of length, a JSON header, the tensors. ValueError or KeyError if none."""
    length = int.from_bytes(content[:8], "little")
    if not 0 < length <= min(LONGEST_HEADER, len(content) - 8):
        raise ValueError("its header is cut short")
    about = json.loads(content[8 : 8 + length])["__metadata__"]
    if not isinstance(about, dict):
        raise ValueError("its metadata are no JSON object")
    return about


def checksum(tensors: Mapping[str, Tensor], text: str) -> str:
    """SHA-256 of a text and of tensors: their names, types, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        flat = tensor.reshape(-1).as_strided((tensor.numel(),), (1,))  # a single value can have any stride
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
