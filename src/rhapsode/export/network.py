"""Between PyTorch's modules and packed bytes."""

from dataclasses import asdict

import numpy as np
import torch

from rhapsode.export.packed import pack, unpack
from rhapsode.model import LanguageModel, ModelConfig, build_model


def packed_network(network: LanguageModel, float16: bool = False) -> bytes:
    """The bytes that `pack` makes of a network; a head that is the table of embeddings is not in them twice."""
    weights: dict[str, np.ndarray] = {
        name: weight.detach().float().cpu().numpy() for name, weight in network.named_parameters()
    }
    return pack(asdict(network.config), weights, float16)


def unpacked_network(data: bytes) -> LanguageModel:
    """The network that is in the bytes, on the CPU, for evaluation. Raises ValueError where they are none."""
    fields, weights = unpack(data)
    try:
        network = build_model(ModelConfig(**fields), seed=0)
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                parameter.copy_(torch.from_numpy(weights[name]))
    except (TypeError, KeyError, RuntimeError) as error:
        raise ValueError(f"not a packed model of this version ({error})") from None
    return network.eval()
