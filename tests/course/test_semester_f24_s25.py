"""Autumn 2024 and spring 2025: flags alone, `main(args)`, `complete(prefix)`, model.pt, and what import * brings."""

import json
from pathlib import Path

import torch
from programs import ROOT, python, rnn, run

from rhapsode.tokenizer import train_tokenizer

STORY = "Tom the cat saw a red hat. The hat sat on the mat, and Tom sat on the hat."
RUN = """
from types import SimpleNamespace
args = SimpleNamespace(train_data="data.json", val_data="data.json", train_losses_out="a", val_losses_out="b",
    metrics_out="c", embed_dim=4, hidden_dim=6, dk=3, dv=2, num_sequences=4, batch_size=2)
"""


def make(folder: Path) -> None:
    torch.manual_seed(1)
    train_tokenizer([STORY], "characters").save(folder / "my_tokenizer")
    (folder / "data.json").write_text(json.dumps(torch.randint(15, (4, 5)).tolist()))


def test_what_import_star_brings(tmp_path: Path) -> None:
    """The names, the seed, and no transformers, which costs 0.8 s; the door's own helpers stay behind it."""
    python(
        """
import sys
before = set(globals())
from rnn import *
brought = set(globals()) - before - {"before"}
assert torch.initial_seed() == 10601
drawn = torch.rand(3)
torch.manual_seed(10601)
assert torch.equal(drawn, torch.rand(3))
expected = {"RNNCell", "RNN", "SelfAttention", "RNNLanguageModel", "HybridLanguageModel", "SentenceDataset", "train",
    "validate", "complete", "main", "train_mod", "generate", "nn", "optim", "torch", "Tensor", "Optional", "json",
    "time", "AutoTokenizer", "device", "DEVICE"}
assert brought == expected, brought ^ expected
assert "transformers" not in sys.modules
assert device == DEVICE == torch.device("cuda" if torch.cuda.is_available() else "cpu")
assert nn is torch.nn and optim is torch.optim
""",
        tmp_path,
    )


def test_main_leaves_lm_and_tokenizer(tmp_path: Path) -> None:
    """As `rnn.lm`, through a second import *, and where `complete(prefix)` looks for them."""
    make(tmp_path)
    python(
        RUN
        + """
import rnn
try:
    rnn.complete("Tom")
except ValueError as error:
    assert "call main first" in str(error)
assert not hasattr(rnn, "lm")
assert rnn.main(args) is None
from rnn import *
assert lm is rnn.lm and type(lm) is RNNLanguageModel and tokenizer is rnn.tokenizer
text = complete("Tom", 8)
assert text == complete(lm, tokenizer, "Tom", 8) == complete(prefix="Tom", num_tokens=8.0)
assert text == complete(lm=lm, tokenizer=tokenizer, prefix="Tom", num_tokens=8, temperature=0.0)
ids = tokenizer.encode("Tom", add_special_tokens=False, return_tensors="pt")
assert text == tokenizer.decode(lm.generate(ids, max_tokens=8))
rnn.lm = RNNLanguageModel(4, 6, lm.embeddings.num_embeddings, 3, 2)
assert complete("Tom", 8) == complete(rnn.lm, tokenizer, "Tom", 8)
""",
        tmp_path,
    )


def test_the_script_and_an_interpreter_after_it(tmp_path: Path) -> None:
    """`python3 -i rnn.py ...` goes on with `lm`, `tokenizer` and `complete`; model.pt is there without being named."""
    make(tmp_path)
    sizes = ["--embed_dim", "4", "--hidden_dim", "6", "--dk", "3", "--dv", "2", "--num_sequences", "4"]
    typed = "print('typed:', complete('Tom', 6) == complete(lm, tokenizer, 'Tom', 6)); exit()\n"
    files = ["--train_data", "data.json", "--val_data", "data.json"]
    done = run(["-i", str(ROOT / "rnn.py"), *files, *sizes], tmp_path, typed=typed)
    assert "typed: True" in done.stdout, done.stderr
    for name in ("train_losses.txt", "val_losses.txt", "metrics.txt", "model.pt"):
        assert (tmp_path / name).exists()
    done = rnn(["no.json", "data.json"], tmp_path)
    assert (done.returncode, done.stderr) == (2, "rnn.py: no.json: no such file\n")


def test_model_pt_comes_back_with_two_lines(tmp_path: Path) -> None:
    """Another process, the default weights_only=True, an activation put in from outside, and training on."""
    make(tmp_path)
    logits = "print(lm(torch.arange(10)[None])[0].double().sum().item())"
    first = python(
        f"""
from rnn import *
{RUN}
torch.manual_seed(3)
main(args)
assert torch.initial_seed() == 3
lm = torch.load("model.pt")
{logits}
lm.rnn.cell.activation = nn.Sigmoid()
torch.save(lm, "sigmoid.pt")
{logits}
""",
        tmp_path,
    ).splitlines()[-2:]
    second = python(
        f"""
from rnn import *
lm = torch.load("model.pt")
assert type(lm) is RNNLanguageModel
assert isinstance(lm.embeddings.weight, nn.Parameter)
{logits}
lm = torch.load("sigmoid.pt")
{logits}
optimizer = torch.optim.Adam(lm.parameters())
train(lm, [torch.ones(1, 4, dtype=torch.int64)], [torch.ones(1, 4, dtype=torch.int64)], nn.CrossEntropyLoss(),
    optimizer, 1, 1)
""",
        tmp_path,
    ).splitlines()
    assert second[:2] == first
