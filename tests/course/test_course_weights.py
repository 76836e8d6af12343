"""model.pt: what a fresh process gets back, and that nothing in a file is ever run."""

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rhapsode.course import RNNLanguageModel, load_course_model, plain_parts

ROOT = Path(__file__).parents[2]


def python(code: str, cwd: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def made() -> RNNLanguageModel:
    torch.manual_seed(1)
    return RNNLanguageModel(4, 6, 13, 3, 2)


SAME_LOGITS = "print(lm(torch.arange(10)[None])[0].double().sum().item())"


def test_the_door_in_fresh_processes(tmp_path: Path) -> None:
    """The names, the seed, the two lines of the course, and a model whose activation was replaced."""
    (tmp_path / "data.json").write_text("[[1, 2, 3, 12], [4, 5, 6, 7]]")
    first = python(
        f"""
from rnn import *
from rnn import RNNCell, RNN, SelfAttention, RNNLanguageModel, SentenceDataset, train, validate, complete, main
from types import SimpleNamespace
assert torch.initial_seed() == 10601
drawn = torch.rand(3)
torch.manual_seed(10601)
assert torch.equal(drawn, torch.rand(3))
torch.manual_seed(3)
main(SimpleNamespace(train_data="data.json", val_data="data.json", train_losses_out="a", val_losses_out="b",
    metrics_out="c", embed_dim=4, hidden_dim=6, dk=3, dv=2, num_sequences=2, batch_size=1))
assert torch.initial_seed() == 3
lm = torch.load("model.pt")
{SAME_LOGITS}
lm.rnn.cell.activation = nn.Sigmoid()
torch.save(lm, "sigmoid.pt")
{SAME_LOGITS}
""",
        tmp_path,
    ).splitlines()[-2:]
    second = python(
        f"""
from rnn import *
lm = torch.load("model.pt")
assert type(lm) is RNNLanguageModel
assert isinstance(lm.embeddings.weight, nn.Parameter)
{SAME_LOGITS}
lm = torch.load("sigmoid.pt")
{SAME_LOGITS}
optimizer = torch.optim.Adam(lm.parameters())
train(lm, [torch.ones(1, 4, dtype=torch.int64)], [torch.ones(1, 4, dtype=torch.int64)], nn.CrossEntropyLoss(),
    optimizer, 1, 1)
""",
        tmp_path,
    ).splitlines()
    assert second[:2] == first


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


ANOTHER_PROGRAM = """
import torch
from torch import nn

class RNNCell(nn.Module):
    def __init__(self):
        super().__init__()
        self.input_dim, self.i2h, self.h2h, self.activation = 4, nn.Linear(4, 6), nn.Linear(6, 6), nn.ReLU()

class RNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden_dim, self.cell, self.out = 6, RNNCell(), nn.Linear(6, 6)

class SelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.query_transform, self.key_transform = nn.Linear(6, 3), nn.Linear(6, 3)
        self.value_transform, self.output_transform = nn.Linear(6, 2), nn.Linear(2, 6)

class RNNLanguageModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.embeddings, self.rnn = nn.Embedding(13, 4), RNN()
        self.attention, self.lm_head = SelfAttention(), nn.Linear(6, 13)

torch.manual_seed(1)
torch.save(RNNLanguageModel(), "model.pt")
"""


def test_the_model_of_another_program_is_read(tmp_path: Path) -> None:
    """A student's own script saves classes of `__main__`, with attributes of their own."""
    python(ANOTHER_PROGRAM, tmp_path)
    back = load_course_model(tmp_path / "model.pt")
    for name, tensor in made().state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name
    # The names lent for that one read are not kept: they would shadow somebody's own classes.
    assert not any(isinstance(entry, tuple) for entry in torch.serialization.get_safe_globals())


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
    if change == "attributes":
        lm.__dict__ = {"_modules": 3}
    return lm


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("a dict", "holds a OrderedDict, not an RNNLanguageModel"),
        ("a part", "holds a RNN, not an RNNLanguageModel"),
        ("no head", "not a whole RNNLanguageModel: the weights do not fit together"),
        ("shapes", "not a whole RNNLanguageModel: the weights do not fit together"),
        ("vector", "not a whole RNNLanguageModel"),
        ("integers", "not a whole RNNLanguageModel: lm_head.bias holds no weights"),
        ("sigmoid", "the activation must be ReLU or Tanh, got Sigmoid"),
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
