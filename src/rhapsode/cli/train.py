"""`rhapsode train` and `rhapsode story`."""

import os
from pathlib import Path
from typing import Any

import typer

from rhapsode.cli.options import CUDA_GRAPH, CUT, CUT_HELP, DEVICE, FIELD_HELP, FORMAT, OUT, SEPARATOR_HELP, THREADS
from rhapsode.terminal import EXIT_STOPPED

STORIES = 3
PRESET_HELP = "Recipe: minute or coffee (about ten minutes). Default: coffee; without DATA, minute."


def train(
    data: list[str] = typer.Argument(
        None, help="Files, folders, hub:NAME, storyworld[:COUNT], or - for standard input."
    ),
    valid: str = typer.Option(
        None, help="Data to validate on; by default a folder's validation split, or a seeded share of the stories."
    ),
    out: Path = OUT,
    preset: str = typer.Option(None, "--preset", "-p", help=PRESET_HELP),
    minutes: float = typer.Option(None, "--minutes", "-m", help="Budget: minutes of training, validation not counted."),
    tokens: int = typer.Option(None, help="Budget: tokens."),
    sequences: int = typer.Option(None, help="Budget: sequences (rows of a batch)."),
    epochs: float = typer.Option(None, help="Budget: passes over the data."),
    tokenizer: str = typer.Option(None, help="A tokenizer folder, or the kind to train: bpe, unigram, characters."),
    vocab_size: int = typer.Option(
        None, help="Vocabulary size of a tokenizer that is trained; by default the preset and the text decide."
    ),
    config: Path = typer.Option(None, help="TOML file with the tables model, optimizer, train and batch."),
    assignments: list[str] = typer.Option(None, "--set", help="Set a field of the recipe: field=value; repeatable."),
    seed: int = typer.Option(None, help="Seed for weights, data order and dropout (0)."),
    threads: int = THREADS,
    device: str = DEVICE,
    precision: str = typer.Option(None, help="Precision of a step's products: float32, tf32 or bfloat16 (float32)."),
    cuda_graph: bool = CUDA_GRAPH,
    format: str = FORMAT,
    cut: str = typer.Option("auto", *CUT, help=CUT_HELP),
    separator: str = typer.Option(None, help=SEPARATOR_HELP),
    field: str = typer.Option(None, help=FIELD_HELP),
    processes: int = typer.Option(1, min=1, help="How many processes of this machine train the model together."),
    accumulate: int = typer.Option(1, min=1, help="Compute each batch in so many parts, to save memory."),
    peer_timeout: float = typer.Option(
        120.0, min=1.0, help="With several processes: after how many seconds one that gives no sign is taken for lost."
    ),
    tensorboard: bool = typer.Option(False, "--tensorboard", help="Also write TensorBoard files."),
    explain_preset: bool = typer.Option(
        False, "--explain-preset", help="Only print what the preset chooses for this text, and why."
    ),
    resume: bool = typer.Option(False, "--resume", help="Resume the run in --out, exactly."),
) -> None:
    """Train a model on text and keep it in a run directory."""
    from rhapsode.recipe.changes import own_sections

    budgets = {"minutes": minutes, "tokens": tokens, "sequences": sequences, "epochs": epochs}
    given = {name: value for name, value in budgets.items() if value is not None}
    own = own_sections(config, given, seed, assignments)
    wanted: dict[str, Any] = {
        "data": [Path(each) for each in data] if data else None,
        "valid": Path(valid) if valid else None,
        "preset": preset,
        "tokenizer": tokenizer,
        "vocab_size": vocab_size,
        **{"cut": cut, "separator": separator, "field": field, "format": format},
        **own,
    }
    if explain_preset:
        from rhapsode.api import explain_preset as explain
        from rhapsode.terminal import print_text

        for line in explain(**wanted, show=True):
            print_text(line)
        return
    if resume and out is None:
        raise ValueError("--resume needs --out DIR, the run to resume")
    if out is None and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS") or 0):
        raise ValueError("--max-restarts needs --out DIR: a training that is started again has to find its run")
    wanted |= {"precision": precision, "cuda_graph": cuda_graph}
    running: dict[str, Any] = {"processes": processes, "accumulate": accumulate, "peer_seconds": peer_timeout}
    _train(out, device=device, threads=threads, resume=resume, tensorboard=tensorboard, **running, **wanted)


def story(
    minutes: float = typer.Option(1.0, "--minutes", "-m", min=0.02, help="How long to train, in minutes."),
    seed: int = typer.Option(0, min=0, help="Seed for weights, data order, and the stories written."),
    out: Path = OUT,
) -> None:
    """Train on the corpus inside the package, against its known floor, and print three stories of the model's own."""
    from rhapsode.progress import say
    from rhapsode.seeds import check_seed
    from rhapsode.terminal import print_text, quoted

    check_seed(seed, count=STORIES)
    model = _train(out, minutes=minutes, seed=seed, device="cpu", quiet=True)
    for each in model.generate("", n=STORIES, max_tokens=400, temperature=0.5, seed=seed):
        print_text(each.text.strip(), end="\n\n")
    say(f"for more stories: rhapsode generate {quoted(model.path)}")


def _train(out: Path | None, quiet: bool = False, **wanted: Any) -> Any:
    """Trains with progress on stderr, and prints the run directory to stdout once there is a model in it."""
    from rhapsode.api import train as train_model
    from rhapsode.run import new_directory
    from rhapsode.terminal import print_text
    from rhapsode.training import Interrupted

    path = out or new_directory()
    quiet = quiet or int(os.environ.get("RANK") or 0) > 0  # of several processes, one says it
    try:
        model = train_model(out=path, show=True, **wanted)
    except Interrupted:
        if not quiet:
            print_text(str(path))
        raise SystemExit(EXIT_STOPPED) from None
    if not quiet:
        print_text(str(path))
    return model
