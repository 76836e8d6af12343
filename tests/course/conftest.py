"""The course's reference run, made once for all tests."""

from pathlib import Path

import pytest
from programs import rnn

SIZES = ["--embed_dim", "64", "--hidden_dim", "128", "--dk", "32", "--dv", "32"]
SIZES += ["--num_sequences", "128", "--batch_size", "1"]


@pytest.fixture(scope="session")
def reference(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of the course's reference run, by the command of autumn 2025 and later, and what it printed."""
    folder, data = tmp_path_factory.mktemp("reference"), shared / "data" / "course"
    (folder / "my_tokenizer").symlink_to(data / "my_tokenizer")
    files = ["--train_data", str(data / "tiny_train_stories.json"), "--val_data", str(data / "tiny_valid_stories.json")]
    outputs = ["--train_losses_out", "t.txt", "--val_losses_out", "v.txt", "--metrics_out", "m.txt"]
    done = rnn(["train", *files, *outputs, *SIZES, "--model_path", "kept.pt"], folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout
