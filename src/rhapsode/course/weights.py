"""model.pt: read without running anything it holds, and turned into the package's plain model."""

import io
import sys
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.serialization import add_safe_globals, clear_safe_globals, get_safe_globals

from rhapsode.course.model import RNN, RNNCell, RNNLanguageModel, SelfAttention
from rhapsode.model import ModelConfig

# The course's classes by the names that its semesters give them.
CLASSES: dict[str, type[nn.Module]] = {
    "RNNCell": RNNCell,
    "RNN": RNN,
    "SelfAttention": SelfAttention,
    "RNNLanguageModel": RNNLanguageModel,
    "HybridLanguageModel": RNNLanguageModel,
}
LAYERS: list[type[nn.Module]] = [nn.Embedding, nn.Linear, nn.ReLU, nn.Tanh, nn.Sigmoid, nn.Identity]
# With weights_only=True, its default, torch.load builds objects of registered classes only. The cell of files that
# this package saved before it had one of its own is the package's.
SAFE: list[Any] = [RNNCell, RNN, SelfAttention, RNNLanguageModel, *LAYERS, (RNNCell, "rhapsode.model.RNNCell")]
add_safe_globals([*SAFE])
AS_FOLDER = 0x10  # of an archive's entry: the bit by which DOS knows folders


def aliases(module: str) -> list[tuple[type[nn.Module], str]]:
    """What a model.pt calls its classes where the course's program was the module of that name."""
    return [(kind, f"{module}.{name}") for name, kind in CLASSES.items()]


def let_torch_load() -> None:
    """From here on torch.load reads model files whose classes are those of `rnn` or, saved by a script, `__main__`.

    A class that the running script defines itself under one of the names stays what that name means.
    """
    script = sys.modules.get("__main__")
    own = {name for name, kind in CLASSES.items() if getattr(script, name, kind) is not kind}
    add_safe_globals([*aliases("rnn"), *(pair for pair in aliases("__main__") if pair[1].split(".")[1] not in own)])


@contextmanager
def only_safe(entries: list[Any]) -> Iterator[None]:
    """torch.load with weights_only=True knows these classes and, until the end of the block, no others."""
    before = get_safe_globals()
    clear_safe_globals()
    add_safe_globals(entries)
    try:
        yield
    finally:
        clear_safe_globals()
        add_safe_globals(before)


def load_course_model(path: str | Path) -> RNNLanguageModel:
    """The model of a model.pt, on the CPU: one that `rnn.py` here saved, or the course's program elsewhere or on a GPU.

    Nothing in the file is run: PyTorch's weights-only reader builds the course's classes, of either name, and torch.nn
    layers, and of what it built only the 17 tensors and the kind of activation (ReLU or Tanh) are used.
    Raises ValueError in one line for a missing file and for anything that is not such a model.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
    content = path.read_bytes()
    if damage := _damage(content):
        raise ValueError(f"{path}: not a model.pt: {damage} (nothing in it was run)")
    with only_safe([*SAFE, *aliases("__main__"), *aliases("rnn")]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the age of its format; what matters here is whether it can be read
        try:
            found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except Exception:  # the reader raises whatever the bytes make it stumble on
            raise ValueError(f"{path}: not a model.pt: {_obstacle(content)} (nothing in it was run)") from None
    if type(found) is not RNNLanguageModel:
        raise ValueError(f"{path}: holds a {type(found).__name__}, not an RNNLanguageModel")
    try:
        return _rebuilt(found)
    except Exception as error:  # attributes that are missing or of any other type
        raise ValueError(f"{path}: not a whole RNNLanguageModel: {error}") from None


def _damage(content: bytes) -> str | None:
    """What is wrong with the archive that a model.pt is: PyTorch itself does not compare its checksums.

    None for an intact one, and for what is no archive at all, as files of the format before 2020.
    """
    try:
        if not zipfile.is_zipfile(io.BytesIO(content)):
            return None
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                return "it is packed, which PyTorch never does"
            if sum(entry.file_size for entry in entries) > len(content):
                return "damaged, its parts are larger than the file"
            if any(entry.external_attr & AS_FOLDER for entry in entries):
                return "damaged, a part of it is said to be a folder"  # of which PyTorch would read no byte in silence
            wrong = archive.testzip()
    except Exception as error:  # the library raises whatever the bytes make it stumble on
        return f"damaged ({' '.join(str(error).split())[:100]})"
    return f"damaged, {wrong!r} does not match its checksum" if wrong else None


def _obstacle(content: bytes) -> str:
    """Why a file cannot be read, from the names that it holds; they are read, not looked up."""
    try:
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(content))
    except Exception:  # not a checkpoint, or one of the format before 2020
        foreign = []
    if not foreign:
        return "damaged, or it holds more than a language model's layers and weights"
    return f"it holds {', '.join(sorted(foreign)[:3])}, which the course's model does not have"


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
        raise ValueError("the sizes of the weights do not match")
    ours, theirs = (dict(model.named_modules()) for model in (lm, found))
    if extra := theirs.keys() - ours.keys():
        name = min(extra)
        raise ValueError(f"{name} is a {type(theirs[name]).__name__}, which the model does not have")
    for name, module in theirs.items():
        if type(module) is not type(ours[name]) and name != "rnn.cell.activation":
            raise ValueError(f"{name} is a {type(module).__name__}, not a {type(ours[name]).__name__}")
    if found.embeddings.max_norm is not None:
        raise ValueError("the embeddings have a max_norm, which the model does not support")
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
