"""`rhapsode study`: one command per study; torch and the rest are imported only when one of them runs."""

from pathlib import Path
from typing import Any

import typer

from rhapsode.cli.options import CUDA_GRAPH, CUT, CUT_HELP, FIELD_HELP, FORMAT, SEPARATOR_HELP
from rhapsode.terminal import EXIT_STOPPED

EXIT_FAILED = 1  # a report there is, but not of all cells

app = typer.Typer(
    help="Train many small models that differ in one setting, and write a report about them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

DATA = typer.Argument(None, help="Files, folders, hub:NAME or storyworld[:COUNT]; by default storyworld.")
VALID = typer.Option(None, help="Data to validate on; by default a seeded share of the stories is held out.")
TOKENIZER = typer.Option(None, help="A tokenizer folder, or the kind to train: bpe, unigram, characters.")
VOCAB_SIZE = typer.Option(None, help="Vocabulary size of a tokenizer that is trained (1024).")
OUT = typer.Option(
    None, "--out", "-o", help="The study's directory, studies/NAME by default; the same command resumes it."
)
SCALE = typer.Option(None, help="Multiply the sequences of all cells by this; 0.05 suits a laptop (1).")
MINUTES = typer.Option(
    None, "--minutes", "-m", help="Choose the scale so that the whole study takes about this many minutes."
)
JOBS = typer.Option(1, min=1, help="How many cells to train at once; they share the threads.")
TOGETHER = typer.Option(
    False, "--together", help="Train cells of one shape side by side, a step of all of them at once; made for GPUs."
)
SEEDS = typer.Option(1, help="How many seeds to train each setting with.")
SEED = typer.Option(0, help="The first seed.")
THREADS = typer.Option(None, min=1, help="CPU threads in total; by default as many as there are cores.")
SET = typer.Option(None, "--set", help="Set a field of the recipe in all cells: field=value; repeatable.")
VALID_STORIES = typer.Option(None, help="Maximum number of stories scored by a validation, 0 for all (1000).")
DEVICE = typer.Option("auto", help="Device for all cells: auto, cpu, cuda or mps; a resumed study keeps its own.")
PUBLISH = typer.Option(None, help="Also write the report to this folder, as NAME.md with its SVGs in NAME/.")
ENGINE = typer.Option("local", help="What trains the cells: local, ray, or 'command srun -n1' and the like.")
CLUSTER = typer.Option(None, help="Address of the Ray cluster; by default one is started on this machine.")
STORAGE = typer.Option(None, help="Address, such as s3://..., where cells on machines without --out keep their files.")
CUT_FILES = typer.Option("auto", *CUT, help=CUT_HELP)
SEPARATOR = typer.Option(None, help=SEPARATOR_HELP)
FIELD = typer.Option(None, help=FIELD_HELP)


def _add(name: str, help_text: str) -> None:
    """Adds a command for a study that needs no more than a name."""

    @app.command(name, help=help_text)
    def command(
        data: list[str] = DATA,
        valid: str = VALID,
        tokenizer: str = TOKENIZER,
        vocab_size: int = VOCAB_SIZE,
        out: Path = OUT,
        scale: float = SCALE,
        minutes: float = MINUTES,
        jobs: int = JOBS,
        together: bool = TOGETHER,
        seeds: int = SEEDS,
        seed: int = SEED,
        threads: int = THREADS,
        device: str = DEVICE,
        cuda_graph: bool = CUDA_GRAPH,
        assignments: list[str] = SET,
        valid_stories: int = VALID_STORIES,
        publish: Path = PUBLISH,
        engine: str = ENGINE,
        address: str = CLUSTER,
        storage: str = STORAGE,
        cut: str = CUT_FILES,
        separator: str = SEPARATOR,
        field: str = FIELD,
        format: str = FORMAT,
    ) -> None:
        asked = {key: value for key, value in locals().items() if key in ASKED}
        where = {
            "engine": engine,
            "address": address,
            "storage": storage,
            "together": together,
            "cuda_graph": cuda_graph,
        }
        _run(name, (), out, jobs, threads, device, publish, where, asked)


_add("size", "embed = hidden in 64, 128, 256, 512: losses against sequences seen.")
_add("batch", "Batch size 32, 64, 128, 256: losses against sequences seen, and training times.")
_add("sequences", "Final losses after 10,000, 20,000, 50,000 and 100,000 sequences.")
_add("temperature", "The large model: its losses and time, and what it writes at temperature 0, 0.3 and 0.8.")
_add("all", "All four in one report; cells that two of them share are trained once.")
_add("tracking", "What Elman, gated and attention alone keep track of, beyond the lengths that they are trained on.")

ASKED = (
    *("data", "valid", "tokenizer", "vocab_size", "scale", "minutes", "seeds", "seed", "assignments"),
    *("valid_stories", "cut", "separator", "field", "format"),
)


@app.command()
def grid(
    data: list[str] = DATA,
    vary: list[str] = typer.Option(None, "--vary", help="Vary a field of the recipe: field=value,value; repeatable."),
    valid: str = VALID,
    tokenizer: str = TOKENIZER,
    vocab_size: int = VOCAB_SIZE,
    out: Path = OUT,
    scale: float = SCALE,
    minutes: float = MINUTES,
    jobs: int = JOBS,
    together: bool = TOGETHER,
    seeds: int = SEEDS,
    seed: int = SEED,
    threads: int = THREADS,
    device: str = DEVICE,
    cuda_graph: bool = CUDA_GRAPH,
    assignments: list[str] = SET,
    valid_stories: int = VALID_STORIES,
    publish: Path = PUBLISH,
    engine: str = ENGINE,
    address: str = CLUSTER,
    storage: str = STORAGE,
    cut: str = CUT_FILES,
    separator: str = SEPARATOR,
    field: str = FIELD,
    format: str = FORMAT,
) -> None:
    """Any other study: all combinations of the values of any fields, with mean and spread over seeds."""
    asked = {key: value for key, value in locals().items() if key in ASKED}
    where: dict[str, Any] = {"engine": engine, "address": address, "storage": storage}
    where |= {"together": together, "cuda_graph": cuda_graph}
    _run("grid", tuple(vary or ()), out, jobs, threads, device, publish, where, asked)


def _run(
    name: str,
    vary: tuple[str, ...],
    out: Path | None,
    jobs: int,
    threads: int | None,
    device: str,
    publish: Path | None,
    where: dict[str, Any],
    asked: dict[str, Any],
) -> None:
    from rhapsode.api import study
    from rhapsode.progress import say
    from rhapsode.terminal import print_text
    from rhapsode.training import Interrupted

    data = [Path(each) for each in asked.pop("data") or ()] or None
    asked |= {"assignments": tuple(asked["assignments"] or ()), "vary": vary}
    running: dict[str, Any] = {"jobs": jobs, "threads": threads, "device": device, "publish": publish, **where}
    try:
        finished = study(name, data, out=out, show=True, **running, **asked)
    except Interrupted as stopped:
        say(str(stopped))
        raise SystemExit(EXIT_STOPPED) from None
    print_text(str(finished.page))
    if finished.failed:
        raise SystemExit(EXIT_FAILED)
