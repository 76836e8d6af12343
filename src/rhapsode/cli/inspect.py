"""`rhapsode inspect`."""

from pathlib import Path

import typer

from rhapsode.cli.options import CHECKPOINT, RUN


def inspect(
    run: Path = RUN,
    text: str = typer.Option(None, help="A text to read: shows what the model attends to, expects next and copies."),
    top: int = typer.Option(5, min=1, help="How many likely next tokens to show at each position."),
    out: Path = typer.Option(
        None, "--out", "-o", help="Folder for the pictures; by default inspect/ in the run directory."
    ),
    checkpoint: str = CHECKPOINT,
) -> None:
    """Parameters per part, memory and FLOPs per token; with --text, an attention map and a next-token table, and where
    the model has a copy head, what it copies from where."""
    from rhapsode.api import load
    from rhapsode.inspection import (
        about_groups,
        as_text,
        copy_table,
        cost_table,
        draw_copies,
        draw_reading,
        next_token_tables,
        read,
    )
    from rhapsode.progress import bar, say, show

    model = load(run, checkpoint=checkpoint, device="cpu")
    show(cost_table(model.network))
    if text is None:
        return
    with bar("reading", None, "tokens") as advance:
        reading = read(model.network, model.tokenizer, text, top, advance)
    for table in next_token_tables(reading):
        show(table)
    if groups := about_groups(reading):
        print(f"\n{groups}")
    for name, heads in reading.attention.items():
        for head, attention in enumerate(heads):
            print(f"\nattention: {name}, head {head + 1} (rows attend to columns, the first column is the beginning)\n")
            print(as_text(reading.labels, attention))
    folder = out or run / "inspect"
    files = draw_reading(reading, folder)
    if model.network.copy_head is not None:
        copies = model.copies(text)
        for table in copy_table(copies):
            show(table)
        files.append(draw_copies(copies, folder / "copies.svg"))
    for file in files:
        say(f"saved {file}")
