"""The course's program: read two data files, train, write the losses, the metrics and the model; complete texts.

Everything that can be wrong with the input is found before training, and every file is written whole after it.
"""

import copy
import math
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from rhapsode.course.data import TOKENIZER_FOLDER, SentenceDataset, find_tokenizer
from rhapsode.course.model import RNNLanguageModel, whole
from rhapsode.course.tokenizer import decode, encode
from rhapsode.course.training import model_device, train
from rhapsode.course.weights import load_course_model
from rhapsode.files import replacing
from rhapsode.progress import say
from rhapsode.terminal import print_text

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
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


# The model and the tokenizer of the last run, as `lm` and `tokenizer`, for `complete`.
_last_run: dict[str, Any] = {}


def keep_last_run_in(names: dict[str, Any]) -> None:
    """Makes `lm` and `tokenizer` of the last run names of a module, of whose globals `names` is."""
    global _last_run
    _last_run = names


def main(args: Any) -> None:
    """Trains as `args` says and writes the two loss files, the metrics file and model.pt in the working directory.

    args: any object with the attributes train_data, val_data, train_losses_out, val_losses_out, metrics_out,
    embed_dim, hidden_dim, dk, dv, num_sequences and batch_size; tokenizer (a folder) is optional.
    Raises ValueError or OSError in one line, before training, for input that cannot be trained on and for outputs
    that cannot be written; the files of an earlier run are then as they were.
    """
    _run(args, {MODEL_FILE.name: MODEL_FILE})


def train_mod(args: Any) -> None:
    """What `main` does, with the model written to args.model_path, and to no file where that is absent or None."""
    path = getattr(args, "model_path", None)
    _run(args, {"model_path": Path(path)} if path else {})


def generate(args: Any) -> None:
    """Prints a prefix and what a model of `train_mod` continues it with, in two lines.

    args: any object with the attributes model_path, prefix, temperature and num_tokens; tokenizer is optional.
    Draws from PyTorch's global generator as it stands, and nothing but the tokens.
    Raises ValueError or OSError in one line, before anything is printed.
    """
    lm = load_course_model(args.model_path).to(DEVICE)
    tokenizer = find_tokenizer(getattr(args, "tokenizer", None))
    try:
        completion = complete(lm, tokenizer, args.prefix, args.num_tokens, args.temperature)
    except RuntimeError as error:  # the draw's: weights or a temperature that leave no probabilities
        reason = str(error).splitlines()[0]
        raise ValueError(f"{args.model_path}: no token at temperature {args.temperature}: {reason}") from None
    print_text(f"Prefix:  {args.prefix}\nCompletion:  {completion}")


def _run(args: Any, model_file: dict[str, Path]) -> None:
    """Trains and writes; model_file: the path of the model behind the name of what says so, or nothing."""
    started = time.monotonic()
    sizes = {name: whole(name, getattr(args, name)) for name in SIZES}
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    num_sequences, batch_size = sizes["num_sequences"], sizes["batch_size"]
    outputs = {name: Path(getattr(args, name)) for name in OUTPUTS}
    check_outputs(args, outputs | model_file)
    tokenizer = find_tokenizer(getattr(args, "tokenizer", None))
    train_set, valid_set = (SentenceDataset(path, tokenizer) for path in (args.train_data, args.val_data))
    vocab_size = tokenizer.vocab_size if tokenizer else 1 + max(train_set.largest_id, valid_set.largest_id)
    if num_sequences < batch_size <= len(train_set):
        raise ValueError(f"batch_size is {batch_size}, but num_sequences only {num_sequences}")
    batches = max(num_sequences // batch_size, 1)
    train_set.check(vocab_size, batch_size, batches * batch_size)
    valid_set.check(vocab_size, batch_size, batch_size)

    embed_dim, hidden_dim, key_dim, value_dim = (sizes[name] for name in ("embed_dim", "hidden_dim", "dk", "dv"))
    try:
        lm = RNNLanguageModel(embed_dim, hidden_dim, vocab_size, key_dim, value_dim).to(DEVICE)
    except RuntimeError as error:  # no memory for it
        raise ValueError(f"a model of these sizes cannot be made: {str(error).splitlines()[0]}") from None
    print(f"Device: {DEVICE}")
    if tokenizer is None:
        print(f"No tokenizer ({TOKENIZER_FOLDER}/ or --tokenizer): {vocab_size:,} ids as in the data, no text features")
    print(lm)
    print(f"Number of parameters: {sum(parameter.numel() for parameter in lm.parameters()):,}", flush=True)
    if getattr(args, "tokenizer", None) and TOKENIZER_FOLDER.is_dir():
        say(f"{TOKENIZER_FOLDER}/ is here and comes first: --tokenizer {args.tokenizer} was not read")
    if batch_size > len(train_set):
        held = f"{len(train_set):,} sequences"
        say(f"batch_size is {batch_size:,}, but {args.train_data} has only {held}: all of them form one short batch")
    elif num_sequences > len(train_set):
        say(f"training ends with the data, after {len(train_set):,} sequences; reports are spaced for num_sequences")

    optimizer = torch.optim.Adam(lm.parameters(), lr=LEARNING_RATE, fused=True)
    train_losses, valid_losses = train(
        lm,
        DataLoader(train_set, batch_size),
        DataLoader(valid_set, batch_size),
        nn.CrossEntropyLoss(),
        optimizer,
        max(num_sequences, batch_size),  # a batch larger than the file is one batch, too
        batch_size,
    )
    if not math.isfinite(train_losses[-1]):
        say("the training loss is not a finite number: these weights are of no use")
    final = f"Final Train Loss: {train_losses[-1]}\nFinal Valid Loss: {valid_losses[-1]}\n"
    contents = [*("".join(f"{loss}\n" for loss in losses) for losses in (train_losses, valid_losses)), final]
    save(lm, [*model_file.values()], dict(zip(outputs.values(), contents, strict=True)))
    _last_run.update(lm=lm, tokenizer=tokenizer)
    print(f"Train losses: {train_losses}\nValid losses: {valid_losses}\n{final}", end="")
    print(f"Time (seconds): {time.monotonic() - started:.2f}")


def complete(*args: Any, **named: Any) -> str:
    """complete(prefix, num_tokens=64, temperature=0.0), or complete(lm, tokenizer, prefix, num_tokens, temperature).

    The text of num_tokens tokens with which a model goes on after the prefix: the model and tokenizer of the last run,
    or those given. tokenizer: what AutoTokenizer.from_pretrained returned, of transformers itself too, or a Tokenizer
    of this package. Special tokens are kept, and spaces cleaned up if the tokenizer's folder says so.
    Raises ValueError before the first run, after one without a tokenizer, for a prefix without a token, and for
    one with a token that the model does not know.
    """
    if "lm" in named or "tokenizer" in named or (args and not isinstance(args[0], str)):
        return _completion(*args, **named)
    if "lm" not in _last_run:
        raise ValueError("complete needs a trained model: call main first")
    return _completion(_last_run["lm"], _last_run.get("tokenizer"), *args, **named)


def _completion(
    lm: RNNLanguageModel, tokenizer: Any, prefix: str, num_tokens: float = 64, temperature: float = 0.0
) -> str:
    if tokenizer is None:
        raise ValueError(f"completing a text needs a tokenizer, and there is none ({TOKENIZER_FOLDER}/ or --tokenizer)")
    num_tokens = whole("num_tokens", num_tokens)
    if num_tokens < 0:
        raise ValueError(f"num_tokens must be >= 0, got {num_tokens}")
    try:
        prefix.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the prefix is not text: {error.reason} at character {error.start}") from None
    ids = encode(tokenizer, prefix)
    if not ids:
        raise ValueError("the prefix must hold at least one token, got an empty text")
    if max(ids) >= (vocab_size := lm.embeddings.weight.shape[0]):
        raise ValueError(
            f"the tokenizer gives id {max(ids)}, the model knows 0 to {vocab_size - 1}: it belongs to another model"
        )
    new = lm.generate(torch.tensor([ids], device=model_device(lm)), num_tokens, temperature)
    return decode(tokenizer, new.tolist())


def check_outputs(args: Any, paths: dict[str, Path]) -> None:
    """Raises ValueError or OSError unless the paths, by name, are writable and as many different files."""
    taken = {Path(getattr(args, name)).resolve(): name for name in ("train_data", "val_data")}
    for name, path in paths.items():
        if path.is_dir():
            raise IsADirectoryError(f"{name}: {path} is a directory")
        if is_device(path):
            continue
        other = taken.setdefault(path.resolve(), name)
        if other != name:
            raise ValueError(f"{name}: {path} is also the file of {other}")
        try:
            with tempfile.TemporaryFile(dir=path.resolve().parent):
                pass
        except OSError as error:
            raise ValueError(f"{name}: {path} cannot be written: {error.strerror}") from None


def is_device(path: Path) -> bool:
    """Whether the path is there but is no file to be replaced: /dev/null, a pipe."""
    return path.exists() and not path.is_file()


def save(lm: RNNLanguageModel, models: list[Path], texts: dict[Path, str]) -> None:
    """Writes the model and the text files; all of them are complete before the first takes its place."""

    def target(path: Path) -> Path:
        return path if is_device(path) else stack.enter_context(replacing(path.resolve()))

    with ExitStack() as stack:
        for path in models:  # from the CPU, so that the file can be read where there is no GPU
            torch.save(copy.deepcopy(lm).cpu(), target(path))
        for path, text in texts.items():
            target(path).write_text(text, encoding="utf-8")
