"""Programs in processes of their own: `rnn.py`, code that imports it, and one of the course's kind that is not ours."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(arguments: list[str], cwd: Path, path: Path = ROOT, typed: str = "") -> subprocess.CompletedProcess:
    """Python in a folder; path: where `import rnn` finds it. One thread, the order of sums of the reference run."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (path, ROOT / "src"))), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, input=typed, capture_output=True, text=True)


def python(code: str, cwd: Path, path: Path = ROOT) -> str:
    """What the code prints."""
    done = run(["-c", code], cwd, path)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rnn(arguments: list[str], cwd: Path) -> subprocess.CompletedProcess:
    """`python3 rnn.py ...` in a folder."""
    return run([str(ROOT / "rnn.py"), *arguments], cwd)


# Its own classes, with attributes of their own.
CLASSES = """
import torch
from torch import nn

class RNNCell(nn.Module):
    def __init__(self):
        super().__init__()
        self.input_dim, self.hidden_dim = 4, 6
        self.i2h, self.h2h, self.activation = nn.Linear(4, 6), nn.Linear(6, 6), nn.ReLU()

class RNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.input_dim, self.hidden_dim, self.cell, self.out = 4, 6, RNNCell(), nn.Linear(6, 6)

class SelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden_dim, self.key_dim, self.value_dim = 6, 3, 2
        self.query_transform, self.key_transform = nn.Linear(6, 3), nn.Linear(6, 3)
        self.value_transform, self.output_transform = nn.Linear(6, 2), nn.Linear(2, 6)

class NAME(nn.Module):
    def __init__(self):
        super().__init__()
        self.embeddings, self.rnn = nn.Embedding(13, 4), RNN()
        self.attention, self.lm_head = SelfAttention(), nn.Linear(6, 13)
        self.embed_dim, self.hidden_dim, self.vocab_size = 4, 6, 13
"""

SAVE = """
torch.manual_seed(1)
torch.save(NAME(), "model.pt")
"""

# What a file says of where its weights were is all that a GPU leaves in it.
ON_A_GPU = """
import torch
torch.serialization.location_tag = lambda storage: "cuda:0"
"""


def another_program(folder: Path, name: str, module: str, gpu: bool) -> None:
    """Writes model.pt into the folder: a model of RNNLanguageModel(4, 6, 13, 3, 2), drawn with seed 1.

    name: of the model's class; module: of the classes, `__main__` or `rnn`; gpu: saved where its weights were on one.
    """
    classes, save = CLASSES.replace("NAME", name), SAVE.replace("NAME", name)
    if module != "__main__":
        (folder / f"{module}.py").write_text(classes)
        classes = f"from {module} import *"
    python((ON_A_GPU if gpu else "") + classes + save, folder, path=folder)
    assert gpu == (b"cuda:0" in (folder / "model.pt").read_bytes())
    (folder / f"{module}.py").unlink(missing_ok=True)
