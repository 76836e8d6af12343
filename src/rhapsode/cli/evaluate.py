"""`rhapsode evaluate`."""

from pathlib import Path
from typing import Any

import typer

from rhapsode.cli.options import CHECKPOINT, CUT, DEVICE, FORMAT, JSON, RUN, THREADS


def evaluate(
    run: Path = RUN,
    data: list[str] = typer.Argument(None, help="Data to score; by default the run's own validation data."),
    generate: int = typer.Option(
        0, "--generate", min=0, help="Storyworld only: write this many stories and check them."
    ),
    temperature: float = typer.Option(
        1.0, "--temperature", "-t", help="Temperature for those stories; 1 is the model's own distribution."
    ),
    seed: int = typer.Option(0, help="Seed for those stories."),
    checkpoint: str = CHECKPOINT,
    threads: int = THREADS,
    device: str = DEVICE,
    format: str = FORMAT,
    cut: str = typer.Option(None, *CUT, help="As for train; by default text files are cut as the run's own were."),
    separator: str = typer.Option(None, help="As for train; by default the run's own."),
    field: str = typer.Option(None, help="As for train; by default the run's own."),
    as_json: bool = JSON,
) -> None:
    """Nats per token, perplexity and bits per byte over all of the data; on storyworld, the distance to the floor."""
    from rhapsode.api import evaluate as score
    from rhapsode.progress import show
    from rhapsode.storyworld import report
    from rhapsode.terminal import print_json

    measured = score(
        run,
        [Path(each) for each in data] if data else None,
        generate=generate,
        temperature=temperature,
        seed=seed,
        checkpoint=checkpoint,
        cut=cut,
        separator=separator,
        field=field,
        format=format,
        device=device,
        threads=threads,
        show=True,
    )
    if as_json:
        print_json(measured)
    elif "nats" in measured:
        show(score_table(measured))
    else:
        for table in report.tables(measured):
            show(table)


def score_table(measured: dict[str, Any]) -> Any:
    """A score for people."""
    from rich.table import Table

    table = Table(show_header=False)
    table.add_row("data", measured["data"])
    table.add_row("nats per token", f"{measured['nats_per_token']:.4f}")
    table.add_row("perplexity", f"{measured['perplexity']:.3f}")
    if measured["bits_per_byte"] is not None:
        table.add_row("bits per byte", f"{measured['bits_per_byte']:.4f}")
    if measured["correction_bits"]:
        table.add_row("not represented by the tokens", f"{measured['unspelled_share']:.1%} of the bytes")
        share = measured["correction_bits"] / measured["bytes"]
        table.add_row("bits per byte spent on correcting that", f"{share:.4f}")
    table.add_row("tokens", f"{measured['tokens']:,}")
    table.add_row("stories", f"{measured['stories']:,}")
    return table
