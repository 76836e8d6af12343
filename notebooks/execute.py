"""Runs a notebook from top to bottom and writes it back with its outputs: `make notebooks`.

    python notebooks/execute.py                                            course.ipynb, on TinyStories or storyworld
    python notebooks/execute.py notebooks/quickstart.ipynb
    python notebooks/execute.py --files train.jsonl valid.jsonl my_tokenizer
    python notebooks/execute.py --set 'SCALE = {"scale": 0.001}' --to small.ipynb

A notebook runs in a folder of its own, where the files are laid beside it under their own names, so that nothing of
this machine's paths gets into the outputs. Left out of what is written: progress, times of execution, and versions in
the metadata.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

HERE = Path(__file__).resolve().parent
COURSE = HERE / "course.ipynb"
RESULTS = ("stream", "execute_result")  # of a cell that shows progress; the progress itself is displayed


def execute(notebook: NotebookNode, folder: Path, files: Sequence[Path] = (), seconds: float | None = None) -> None:
    """Runs all cells in `folder`, in place; seconds: the longest that one cell may take.

    files: what lies beside the notebook, rnn.py as well. Raises nbclient's CellExecutionError at the first cell that
    fails.
    """
    for file in (*files, HERE.parent / "rnn.py"):
        (folder / file.name).symlink_to(file.resolve())
    NotebookClient(
        notebook,
        timeout=seconds,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    ).execute()


def assign(notebook: NotebookNode, assignment: str) -> None:
    """Puts `NAME = value` in the place of NAME's line in the cell that is tagged `parameters`.

    Raises ValueError where that cell has no such line.
    """
    name = assignment.partition("=")[0].strip()
    (cell,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    lines = cell.source.splitlines()
    places = [place for place, line in enumerate(lines) if line.partition("=")[0].strip() == name]
    if not places:
        raise ValueError(f"--set {assignment}: the cell of parameters has no line {name} = ...")
    lines[places[0]] = assignment
    cell.source = "\n".join(lines)


def tidy(notebook: NotebookNode) -> None:
    """Leaves what a second run would write again, but for measured numbers."""
    notebook.metadata.language_info = {"name": "python"}
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        if "progress" in cell.metadata.get("tags", ()):
            cell.outputs = [output for output in cell.outputs if output.output_type in RESULTS]
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.outputs:
            if output.output_type == "stream":  # `!` runs its command on a terminal
                output.text = output.text.replace("\r\n", "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description="Run a notebook and write its outputs.")
    parser.add_argument("notebook", nargs="?", type=Path, default=COURSE, help="course.ipynb")
    parser.add_argument("--files", nargs="+", type=Path, default=[], help="what lies beside it: data, my_tokenizer")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="another parameter")
    parser.add_argument("--to", type=Path, help="where it is written (in place)")
    arguments = parser.parse_args()
    if missing := [str(file) for file in (arguments.notebook, *arguments.files) if not file.exists()]:
        parser.error(f"no such file or folder: {', '.join(missing)}")
    notebook = nbformat.read(arguments.notebook, as_version=4)
    try:
        for assignment in arguments.set:
            assign(notebook, assignment)
    except ValueError as error:
        parser.error(str(error))
    with tempfile.TemporaryDirectory(prefix="notebook-") as folder:
        execute(notebook, Path(folder), arguments.files)
    tidy(notebook)
    nbformat.write(notebook, arguments.to or arguments.notebook)
    return 0


if __name__ == "__main__":
    sys.exit(main())
