"""Options that several verbs have, so that they read alike everywhere."""

from pathlib import Path

import typer

RUN: Path = typer.Argument(..., help="A run directory.")
OUT: Path = typer.Option(None, "--out", "-o", help="The run directory; otherwise a new one under runs/.")
CHECKPOINT: str = typer.Option("best", help="best (lowest validation loss) or last.")
THREADS: int = typer.Option(None, min=1, help="A fixed number of CPU threads; otherwise chosen as it goes.")
DEVICE: str = typer.Option("auto", help="auto, cpu, cuda or mps.")
JSON: bool = typer.Option(False, "--json", help="Print one JSON object.")
FORMAT: str = typer.Option("auto", help="What files hold: auto, text, jsonl, json, csv, tsv or parquet.")
CUT = ("--cut", "--split")  # the second was its name before; other splits are parts of a data set
CUT_HELP = "Where text files are cut into stories: auto, separator, paragraph, line, file."
SEPARATOR_HELP = "What stands between stories of text files; otherwise <|endoftext|> where the text has it."
FIELD_HELP = "Where the text is in JSON objects and tables, as story or story.body; otherwise text."
