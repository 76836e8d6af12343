"""`rhapsode prepare`."""

from pathlib import Path

import typer

from rhapsode.cli.options import CUT, CUT_HELP, FIELD_HELP, FORMAT, SEPARATOR_HELP


def prepare(
    data: list[str] = typer.Argument(..., help="Files, folders, addresses, hub:NAME or storyworld[:COUNT]."),
    out: str = typer.Option(..., "--out", "-o", help="The store to make: a new folder, or an address such as s3://..."),
    workers: int = typer.Option(1, "--workers", "-w", min=1, help="How many processes turn text into tokens."),
    tokenizer: str = typer.Option(None, help="A tokenizer folder, or the kind to train: bpe, unigram, characters."),
    vocab_size: int = typer.Option(None, help="Vocabulary size of a tokenizer that is trained (1024)."),
    format: str = FORMAT,
    cut: str = typer.Option("auto", *CUT, help=CUT_HELP),
    separator: str = typer.Option(None, help=SEPARATOR_HELP),
    field: str = typer.Option(None, help=FIELD_HELP),
) -> None:
    """Turn text into a token store to train on, in shards, by several processes; the same command resumes it."""
    from rhapsode.preparing import prepare_store
    from rhapsode.terminal import print_text

    reading = {"cut": cut, "separator": separator, "field": field, "format": format}
    named = [Path(each) for each in data]
    prepare_store(named, out, workers=workers, tokenizer=tokenizer, vocab_size=vocab_size, **reading, show=True)
    print_text(out)
