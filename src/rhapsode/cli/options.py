"""Options that several verbs have, so that they read alike everywhere."""

from pathlib import Path

import typer

RUN: Path = typer.Argument(..., help="A run directory.")
OUT: Path = typer.Option(None, "--out", "-o", help="The run directory; by default a new one under runs/.")
CHECKPOINT: str = typer.Option("best", help="Checkpoint: best (lowest validation loss) or last.")
THREADS: int = typer.Option(None, min=1, help="A fixed number of CPU threads; by default chosen while it runs.")
DEVICE: str = typer.Option("auto", help="Device: auto, cpu, cuda or mps.")
CUDA_GRAPH: bool = typer.Option(
    None, help="Give a GPU each step in one launch, or piece by piece; by default in one wherever that can be."
)
JSON: bool = typer.Option(False, "--json", help="Print one JSON object.")
FORMAT: str = typer.Option("auto", help="File format: auto, text, jsonl, json, csv, tsv or parquet.")
CUT = ("--cut", "--split")  # the second was its name before; other splits are parts of a data set
CUT_HELP = "How text files are cut into stories: auto, separator, paragraph, line, file."
SEPARATOR_HELP = "Text between the stories of text files; by default <|endoftext|> if the text contains it."
FIELD_HELP = "Field with the text in JSON objects and tables, such as story or story.body; by default text."
