"""model.pt: what a fresh process gets back, and that nothing in a file is ever run."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from programs import another_program
from torch import nn

from rhapsode.course import RNNLanguageModel, load_course_model, plain_parts


def made() -> RNNLanguageModel:
    torch.manual_seed(1)
    return RNNLanguageModel(4, 6, 13, 3, 2)


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Tanh()])
def test_a_saved_model_comes_back(activation: nn.Module, tmp_path: Path) -> None:
    lm, tokens = made(), torch.arange(12).view(2, 6)
    lm.rnn.cell.activation = activation
    torch.save(lm, tmp_path / "model.pt")
    generator = torch.get_rng_state()
    back = load_course_model(tmp_path / "model.pt")
    assert torch.equal(generator, torch.get_rng_state())
    assert type(back) is RNNLanguageModel
    assert torch.equal(back(tokens)[0], lm(tokens)[0])
    assert all(parameter.requires_grad for parameter in back.parameters())
    assert plain_parts(back)[0] == plain_parts(lm)[0]


@pytest.mark.parametrize(
    ("name", "module", "gpu"),
    [
        ("RNNLanguageModel", "__main__", False),
        ("RNNLanguageModel", "rnn", True),
        ("HybridLanguageModel", "__main__", True),
    ],
)
def test_the_model_of_another_program_is_read(name: str, module: str, gpu: bool, tmp_path: Path) -> None:
    """A student's own program saves classes of its own, with attributes of their own, from its GPU."""
    another_program(tmp_path, name, module, gpu)
    known = set(torch.serialization.get_safe_globals())
    back = load_course_model(tmp_path / "model.pt")
    assert type(back) is RNNLanguageModel
    assert {parameter.device.type for parameter in back.parameters()} == {"cpu"}
    for key, tensor in made().state_dict().items():
        assert torch.equal(back.state_dict()[key], tensor), key
    # The names lent for that one read are not kept, and those that were known before it are.
    assert set(torch.serialization.get_safe_globals()) == known


class Attack:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


def test_nothing_is_run(tmp_path: Path) -> None:
    """Pickles that would make a file, alone and hidden in a model."""
    victim, lm = tmp_path / "victim", made()
    pickle.loads(pickle.dumps(Attack(tmp_path / "it works")))
    assert (tmp_path / "it works").exists()
    lm.rnn.secret = Attack(victim)
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Attack(victim)))
    torch.save(Attack(victim), tmp_path / "zip.pt")
    torch.save(lm, tmp_path / "hidden.pt")
    torch.save(lm, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    for name in ("raw", "zip", "hidden", "legacy"):
        with pytest.raises(ValueError, match=r"not a model\.pt: .* \(nothing in it was run\)") as error:
            load_course_model(tmp_path / f"{name}.pt")
        assert "\n" not in str(error.value)
    assert not victim.exists()


def broken(change: str) -> Any:
    lm: Any = made()
    if change == "a dict":
        return lm.state_dict()
    if change == "a part":
        return lm.rnn
    if change == "no head":
        del lm.lm_head
    if change == "shapes":
        lm.rnn.cell.h2h.weight = nn.Parameter(torch.zeros(5, 6))
    if change == "vector":
        lm.embeddings.weight = nn.Parameter(torch.zeros(5))
    if change == "integers":
        lm.lm_head.bias = nn.Parameter(torch.zeros(13, dtype=torch.int64), requires_grad=False)
    if change == "sigmoid":
        lm.rnn.cell.activation = nn.Sigmoid()
    if change == "dropout":
        lm.attention.dropout = nn.Dropout(0.1)
    if change == "a layer":
        lm.rnn.extra = nn.Tanh()
    if change == "another layer":
        lm.rnn.cell.i2h = nn.Identity()
    if change == "max_norm":
        lm.embeddings.max_norm = 1.0
    if change == "attributes":
        lm.__dict__ = {"_modules": 3}
    return lm


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("a dict", "holds a OrderedDict, not an RNNLanguageModel"),
        ("a part", "holds a RNN, not an RNNLanguageModel"),
        ("no head", "not a whole RNNLanguageModel: the sizes of the weights do not match"),
        ("shapes", "not a whole RNNLanguageModel: the sizes of the weights do not match"),
        ("vector", "not a whole RNNLanguageModel"),
        ("integers", "not a whole RNNLanguageModel: lm_head.bias holds no weights"),
        ("sigmoid", "the activation must be ReLU or Tanh, got Sigmoid"),
        ("dropout", r"it holds torch\.nn\.modules\.dropout\.Dropout, which the course's model does not have"),
        ("a layer", r"rnn\.extra is a Tanh, which the model does not have"),
        ("another layer", "the sizes of the weights do not match"),
        ("max_norm", "the embeddings have a max_norm"),
        ("attributes", "model.pt: not a"),
    ],
)
def test_what_is_no_whole_model_is_refused(change: str, message: str, tmp_path: Path) -> None:
    torch.save(broken(change), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=message) as error:
        load_course_model(tmp_path / "model.pt")
    assert "\n" not in str(error.value)


def test_no_file_and_no_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.pt: no such file"):
        load_course_model(tmp_path / "nowhere.pt")
    with pytest.raises(ValueError, match="not a file"):
        load_course_model(tmp_path)
    torch.save(made(), tmp_path / "whole.pt")
    whole = (tmp_path / "whole.pt").read_bytes()
    for content in (b"", b"hello", b"[1, 2]", whole[: len(whole) // 2], whole[:100] + whole[120:]):
        (tmp_path / "model.pt").write_bytes(content)
        with pytest.raises(ValueError, match=r"not a model\.pt"):
            load_course_model(tmp_path / "model.pt")


def test_an_archive_of_several_disks_is_refused(tmp_path: Path) -> None:
    """Would catch an end of the archive that makes the library stumble before it has said whether it is one."""
    torch.save(made(), tmp_path / "model.pt")
    content = (tmp_path / "model.pt").read_bytes()
    disks = content.rindex(b"PK\x06\x07") + 16  # of the locator of the ZIP64 end record
    (tmp_path / "model.pt").write_bytes(content[:disks] + b"\x02" + content[disks + 1 :])
    with pytest.raises(ValueError, match=r"model\.pt: .*damaged"):
        load_course_model(tmp_path / "model.pt")


def test_a_part_that_is_said_to_be_a_folder_is_refused(tmp_path: Path) -> None:
    """PyTorch reads no byte of such a part, and leaves what was in memory. Would catch weights that nobody saved."""
    torch.save(made(), tmp_path / "model.pt")
    content = (tmp_path / "model.pt").read_bytes()
    attributes = content.rindex(b"PK\x01\x02") + 38  # of the last entry in the directory of the archive
    (tmp_path / "model.pt").write_bytes(content[:attributes] + b"\x10" + content[attributes + 1 :])
    with pytest.raises(ValueError, match=r"model\.pt: .*damaged, a part of it is said to be a folder"):
        load_course_model(tmp_path / "model.pt")
