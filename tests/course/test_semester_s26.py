"""Spring 2026: `HybridLanguageModel`, `DEVICE`, its reference losses, and model files of either name."""

from pathlib import Path

import pytest
import torch
from programs import another_program, python

from rhapsode.cli import app
from rhapsode.course import HybridLanguageModel, RNNLanguageModel
from rhapsode.run import Run
from rhapsode.tokenizer import train_tokenizer


def test_the_reference_losses(reference: tuple[Path, str]) -> None:
    """To the last digit that is written."""
    lines = (reference[0] / "m.txt").read_text().splitlines()
    assert [line.rpartition(" ")[0] for line in lines] == ["Final Train Loss:", "Final Valid Loss:"]
    losses = [float(line.rpartition(" ")[2]) for line in lines]
    assert losses == pytest.approx([4.727963, 4.919590], abs=1.01e-6)


def test_both_names_are_one_class() -> None:
    lm = HybridLanguageModel(4, 6, 13, key_dim=3, value_dim=2)
    assert isinstance(lm, RNNLanguageModel)
    assert HybridLanguageModel is RNNLanguageModel
    assert (lm.rnn.cell.input_dim, lm.rnn.cell.hidden_dim) == (lm.rnn.input_dim, lm.rnn.hidden_dim) == (4, 6)
    assert (lm.attention.hidden_dim, lm.attention.key_dim, lm.attention.value_dim) == (6, 3, 2)


@pytest.mark.parametrize(("name", "module"), [("RNNLanguageModel", "__main__"), ("HybridLanguageModel", "rnn")])
def test_torch_load_reads_the_models_of_another_program(name: str, module: str, tmp_path: Path) -> None:
    """With its default, weights_only=True; the model is one of ours and works as one, whatever attributes it has."""
    another_program(tmp_path, name, module, gpu=False)
    printed = python(
        f"""
from rnn import *
lm = torch.load("model.pt")
assert type(lm) is {name} is RNNLanguageModel
torch.manual_seed(1)
ours = {name}(4, 6, 13, 3, 2)
tokens = torch.arange(12).view(2, 6)
assert all(torch.equal(a, b) for a, b in zip(lm(tokens), ours(tokens)))
assert torch.equal(lm.generate(tokens[:1], 5), ours.generate(tokens[:1], 5))
assert (lm.rnn.input_dim, lm.rnn.cell.hidden_dim, lm.attention.key_dim) == (4, 6, 3)
torch.save(lm, "again.pt")
assert type(torch.load("again.pt")) is RNNLanguageModel
print("read")
""",
        tmp_path,
    )
    assert printed == "read\n"


def test_a_scripts_own_classes_stay_its_own(tmp_path: Path) -> None:
    """Somebody who imports the door and defines a class of the same name would get our object for theirs."""
    python(
        """
import torch
class RNNCell(torch.nn.Module):
    pass
torch.save(RNNCell(), "own.pt")
import rnn
torch.serialization.add_safe_globals([RNNCell])
assert type(torch.load("own.pt")) is RNNCell
""",
        tmp_path,
    )


def test_import_makes_a_run_of_a_model_saved_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`rhapsode import`, on a machine without one."""
    monkeypatch.chdir(tmp_path)
    another_program(tmp_path, "HybridLanguageModel", "__main__", gpu=True)
    train_tokenizer(["abcdefghij"], "characters").save(tmp_path / "my_tokenizer")  # with three special tokens 13
    app(["import", "model.pt", "imported"], standalone_mode=False)
    torch.manual_seed(1)
    lm, tokens = RNNLanguageModel(4, 6, 13, 3, 2), torch.arange(12)[None]
    torch.testing.assert_close(Run.open(Path("imported")).load_model()(tokens)[0], lm(tokens)[0])
