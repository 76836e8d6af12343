"""`rhapsode check`."""

from pathlib import Path

import typer

from rhapsode.cli.options import JSON

EXIT_DAMAGED = 1  # something is wrong with a file


def check(
    path: Path = typer.Argument(
        ...,
        metavar="RUN",
        help="A run directory, a study, a token store, a tokenizer folder, a state, a model.pt or an exported page.",
    ),
    as_json: bool = JSON,
) -> None:
    """Read all that was written and compare it with its checksums; exit code 1 where a file is damaged."""
    from rhapsode.api import check as check_all
    from rhapsode.terminal import print_json, print_text

    files = check_all(path)
    damaged = [file for file in files if file.problem is not None]
    if as_json:
        listed = [{"path": str(file.path), "how": file.how, "problem": file.problem} for file in files]
        print_json({"intact": not damaged, "files": listed})
    else:
        for file in files:
            print_text(str(file))
    if damaged:
        raise SystemExit(EXIT_DAMAGED)
