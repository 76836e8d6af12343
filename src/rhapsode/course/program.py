"""The course's program: read two data files, train, write the losses, the metrics and the model; then complete texts.

Everything that can be wrong with the input is found before training, and every file is written whole after it.
"""

import argparse
import copy
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from torch import nn
from torch.utils.data import DataLoader

from rhapsode.atomic import replacing
from rhapsode.course.data import TOKENIZER_FOLDER, SentenceDataset, find_tokenizer
from rhapsode.course.model import RNNLanguageModel
from rhapsode.course.training import device_of, train
from rhapsode.progress import say
from rhapsode.tokenizer import Tokenizer

LEARNING_RATE = 1e-3
MODEL_FILE = Path("model.pt")
SIZES = {
    "embed_dim": (128, "width of the embedding"),
    "hidden_dim": (128, "width of the hidden state"),
    "dk": (128, "width of queries and keys"),
    "dv": (128, "width of values"),
    "num_sequences": (50_000, "train on this many sequences, or until the data end"),
    "batch_size": (1, "sequences per batch"),
}
OUTPUTS = {
    "train_losses_out": ("train_losses.txt", "training losses, one a line"),
    "val_losses_out": ("val_losses.txt", "validation losses, one a line"),
    "metrics_out": ("metrics.txt", "the two final losses"),
}


class Trained(NamedTuple):
    """What the last `main` left for `complete`."""

    lm: RNNLanguageModel
    tokenizer: Tokenizer | None


_trained: Trained | None = None


def main(args: Any) -> None:
    """Trains as `args` says and writes the two loss files, the metrics file and model.pt in the working directory.

    args: any object with the attributes train_data, val_data, train_losses_out, val_losses_out, metrics_out,
    embed_dim, hidden_dim, dk, dv, num_sequences and batch_size; tokenizer (a folder) is optional.
    Raises ValueError or OSError in one line, before training, for input that cannot be trained on and for outputs
    that cannot be written; the files of an earlier run are then as they were.
    """
    global _trained
    started = time.monotonic()
    for name in SIZES:
        if getattr(args, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(args, name)}")
    outputs = checked_outputs(args)
    tokenizer = find_tokenizer(getattr(args, "tokenizer", None))
    train_set, valid_set = (SentenceDataset(path, tokenizer) for path in (args.train_data, args.val_data))
    vocab_size = tokenizer.vocab_size if tokenizer else 1 + max(train_set.largest_id, valid_set.largest_id)
    for dataset in (train_set, valid_set):
        dataset.check(vocab_size, args.batch_size)
    if args.batch_size > len(train_set):
        raise ValueError(f"batch_size is {args.batch_size}, but {args.train_data} has only {len(train_set)} sequences")
    if args.batch_size > args.num_sequences:
        raise ValueError(f"batch_size is {args.batch_size}, but num_sequences only {args.num_sequences}")

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        lm = RNNLanguageModel(args.embed_dim, args.hidden_dim, vocab_size, args.dk, args.dv).to(device)
    except RuntimeError as error:  # no memory for it
        raise ValueError(f"a model of these sizes cannot be made: {str(error).splitlines()[0]}") from None
    print(f"Device: {device}")
    if tokenizer is None:
        print(f"No tokenizer ({TOKENIZER_FOLDER}/ or --tokenizer): {vocab_size:,} ids as in the data, no text features")
    print(lm)
    print(f"Number of parameters: {sum(parameter.numel() for parameter in lm.parameters()):,}", flush=True)
    if getattr(args, "tokenizer", None) and TOKENIZER_FOLDER.is_dir():
        say(f"{TOKENIZER_FOLDER}/ is here and comes first: --tokenizer {args.tokenizer} was not read")
    if args.num_sequences > len(train_set):
        say(f"training ends with the data, after {len(train_set):,} sequences; reports are spaced for num_sequences")

    optimizer = torch.optim.Adam(lm.parameters(), lr=LEARNING_RATE, fused=True)
    train_losses, valid_losses = train(
        lm,
        DataLoader(train_set, args.batch_size),
        DataLoader(valid_set, args.batch_size),
        nn.CrossEntropyLoss(),
        optimizer,
        args.num_sequences,
        args.batch_size,
    )
    if not math.isfinite(train_losses[-1]):
        say("the training loss is not a finite number: these weights are of no use")
    final = f"Final Train Loss: {train_losses[-1]}\nFinal Valid Loss: {valid_losses[-1]}\n"
    texts = ("".join(f"{loss}\n" for loss in losses) for losses in (train_losses, valid_losses))
    save(lm, dict(zip(outputs, (*texts, final), strict=True)))
    _trained = Trained(lm, tokenizer)
    print(f"Train losses: {train_losses}\nValid losses: {valid_losses}\n{final}", end="")
    print(f"Time (seconds): {time.monotonic() - started:.2f}")


def complete(prefix: str, num_tokens: int = 64, temperature: float = 0.0) -> str:
    """The text of num_tokens tokens with which the model of the last `main` goes on after the prefix.

    A character that the tokenizer does not know is read as its unknown token.
    Raises ValueError before the first `main`, after one without a tokenizer, and for a prefix without a token.
    """
    if _trained is None:
        raise ValueError("complete needs a trained model: call main first")
    lm, tokenizer = _trained
    if tokenizer is None:
        raise ValueError(f"complete needs a tokenizer, and main found none ({TOKENIZER_FOLDER}/ or --tokenizer)")
    ids = tokenizer.encode(prefix)
    if not ids:
        raise ValueError("the prefix must hold at least one token, got an empty text")
    tokens = torch.tensor([ids], device=device_of(lm))
    return tokenizer.decode(lm.generate(tokens, num_tokens, temperature).tolist())


def checked_outputs(args: Any) -> list[Path]:
    """The paths of the three text files, once they and model.pt are known to be writable and four different files."""
    taken = {Path(getattr(args, name)).resolve(): name for name in ("train_data", "val_data")}
    paths = [Path(getattr(args, name)) for name in OUTPUTS]
    for name, path in zip((*OUTPUTS, MODEL_FILE.name), (*paths, MODEL_FILE), strict=True):
        if path.is_dir():
            raise IsADirectoryError(f"{name}: {path} is a directory")
        if is_device(path):
            continue
        other = taken.setdefault(path.resolve(), name)
        if other != name:
            raise ValueError(f"{name}: {path} is the file of {other} too")
        try:
            with tempfile.TemporaryFile(dir=path.resolve().parent):
                pass
        except OSError as error:
            raise ValueError(f"{name}: {path} cannot be written: {error.strerror}") from None
    return paths


def is_device(path: Path) -> bool:
    """Whether the path is there but is no file to be replaced: /dev/null, a pipe."""
    return path.exists() and not path.is_file()


def save(lm: RNNLanguageModel, texts: dict[Path, str]) -> None:
    """Writes model.pt and the text files; all of them are complete before the first takes its place."""
    with ExitStack() as stack:
        # From the CPU, so that the file can be read where there is no GPU.
        torch.save(copy.deepcopy(lm).cpu(), stack.enter_context(replacing(MODEL_FILE.resolve())))
        for path, text in texts.items():
            target = path if is_device(path) else stack.enter_context(replacing(path.resolve()))
            target.write_text(text, encoding="utf-8")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; --help lists what there is\n")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of the command line; the two data files are named by flags or by position."""
    parser = _Parser(
        prog="rnn.py",
        description="Train the course's recurrent language model with self-attention; writes model.pt here.",
    )
    parser.add_argument("data", nargs="*", metavar="DATA", help="training file, validation file", default=[])
    for name in ("train_data", "val_data"):
        parser.add_argument(f"--{name}", metavar="FILE", help="JSON: sequences of token ids, or texts")
    for name, (file, help) in OUTPUTS.items():
        parser.add_argument(f"--{name}", metavar="FILE", default=file, help=f"{help} ({file})")
    for name, (size, help) in SIZES.items():
        parser.add_argument(f"--{name}", metavar="N", type=int, default=size, help=f"{help} ({size:,})")
    parser.add_argument("--tokenizer", metavar="DIR", help=f"tokenizer folder, unless {TOKENIZER_FOLDER}/ is here")
    args = parser.parse_intermixed_args(argv)
    for name in ("train_data", "val_data"):
        if getattr(args, name) is None:
            if not args.data:
                parser.error(f"--{name} is missing")
            setattr(args, name, args.data.pop(0))
    if args.data:
        parser.error(f"unexpected argument {args.data[0]}")
    return args


def command(argv: Sequence[str]) -> int:
    """The program itself: one line on stderr and exit code 2 for what is wrong, 130 after Ctrl-C."""
    try:
        main(parse(argv))
    except (ValueError, OSError) as error:
        print(f"rnn.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("rnn.py: stopped; no file was written", file=sys.stderr)
        return 130
    return 0
