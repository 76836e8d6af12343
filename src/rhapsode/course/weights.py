"""model.pt: read without running anything it holds, and turned into the package's plain model."""

import warnings
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn

from rhapsode.course.model import RNN, RNNCell, RNNLanguageModel, SelfAttention
from rhapsode.model import ModelConfig

# What a model.pt calls its classes where the course's program was a script or a module of its own.
MODULES = ("__main__", "rnn")
ALIASES = [
    (kind, f"{module}.{kind.__name__}")
    for module, kind in product(MODULES, (RNNCell, RNN, SelfAttention, RNNLanguageModel))
]


def load_course_model(path: str | Path) -> RNNLanguageModel:
    """The model of a model.pt, on the CPU: one that `rnn.py` here saved, or the course's program elsewhere.

    Nothing in the file is run: PyTorch's weights-only reader builds these four classes and torch.nn layers, and of
    what it built only the 17 tensors and the kind of activation (ReLU or Tanh) are used.
    Raises ValueError in one line for a missing file and for anything that is not such a model.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
    try:
        with torch.serialization.safe_globals([*ALIASES]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; what matters here is whether it can be read
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # the reader raises whatever the bytes make it stumble on
        raise ValueError(
            f"{path}: not a model.pt: damaged, or it holds more than a language model's layers and weights"
            " (nothing in it was run)"
        ) from None
    if type(found) is not RNNLanguageModel:
        raise ValueError(f"{path}: holds a {type(found).__name__}, not an RNNLanguageModel")
    try:
        return _rebuilt(found)
    except Exception as error:  # attributes that are missing or of any other type
        raise ValueError(f"{path}: not a whole RNNLanguageModel: {error}") from None


def plain_parts(lm: RNNLanguageModel) -> tuple[ModelConfig, dict[str, Tensor]]:
    """The config and the state dict with which `rhapsode.model.PlainModel` computes what this model does.

    Raises ValueError for an activation other than ReLU and Tanh.
    """
    vocab_size, embed_dim = lm.embeddings.weight.shape
    config = ModelConfig(
        vocab_size=vocab_size,
        kind="plain",
        embed_dim=embed_dim,
        hidden_dim=lm.rnn.out.weight.shape[1],
        key_dim=lm.attention.key_transform.weight.shape[0],
        value_dim=lm.attention.value_transform.weight.shape[0],
        activation=_activation(lm),
    )
    return config, {name: tensor.detach().clone() for name, tensor in lm.state_dict().items()}


def _rebuilt(found: RNNLanguageModel) -> RNNLanguageModel:
    config, state = plain_parts(found)
    with torch.device("meta"):  # no memory and no random numbers for weights that are replaced at once
        lm = RNNLanguageModel(config.embed_dim, config.hidden_dim, config.vocab_size, config.key_dim, config.value_dim)
    if {name: tensor.shape for name, tensor in state.items()} != {n: t.shape for n, t in lm.state_dict().items()}:
        raise ValueError("the weights do not fit together")
    for name, tensor in state.items():
        if not tensor.is_floating_point() or tensor.layout is not torch.strided or tensor.device.type != "cpu":
            raise ValueError(f"{name} holds no weights")
    lm.load_state_dict(state, assign=True)
    if config.activation == "tanh":
        lm.rnn.cell.activation = nn.Tanh()
    return lm


def _activation(lm: RNNLanguageModel) -> str:
    activation = lm.rnn.cell.activation
    if type(activation) not in (nn.ReLU, nn.Tanh):
        raise ValueError(f"the activation must be ReLU or Tanh, got {type(activation).__name__}")
    return "relu" if type(activation) is nn.ReLU else "tanh"
