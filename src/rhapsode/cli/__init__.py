"""The command line, `rhapsode`: a file per verb, which imports what it runs only when it runs; `--help` answers at
once.

Errors are for the user: a wrong option, a ValueError, OSError or FloatingPointError becomes one line on stderr and
exit code 2; `--debug` shows where it came from. stdout is data, stderr is talk.
"""

import sys
from typing import Any

import typer

from rhapsode import __version__
from rhapsode.cli.chat import chat
from rhapsode.cli.check import check
from rhapsode.cli.evaluate import evaluate
from rhapsode.cli.export import export
from rhapsode.cli.generate import generate
from rhapsode.cli.inspect import inspect
from rhapsode.cli.others import bench, corpus, import_
from rhapsode.cli.plan import plan
from rhapsode.cli.prepare import prepare
from rhapsode.cli.serve import serve
from rhapsode.cli.study import app as study_app
from rhapsode.cli.tell import tell
from rhapsode.cli.train import story, train
from rhapsode.terminal import EXIT_STOPPED, ToldElsewhere, discard, is_of_output, literal, prepare_streams, told
from rhapsode.textbook.explain import app as explain_app

app = typer.Typer(
    help="Train and study small recurrent language models with self-attention, on the computer you already have.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command()(train)
app.command()(generate)
app.command()(chat)
app.command()(serve)
app.command()(evaluate)
app.command()(inspect)
app.command()(export)
app.command()(prepare)
app.command()(plan)
app.command()(bench)
app.command()(check)
app.command("import")(import_)
app.command()(story)
app.command()(tell)
app.command()(corpus)
app.add_typer(explain_app, name="explain")
app.add_typer(study_app, name="study")

UsageError: Any = typer.BadParameter.__base__  # of all mistakes in options; typer itself names only this kind of it


@app.command()
def version() -> None:
    """Print the version."""
    print(__version__)


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error; works with every command."),
) -> None:
    """Options before or after any verb; `main` takes --debug out before they are read."""


def main() -> None:
    """The console script: runs a verb and turns errors into one line and exit code 2 (130 after Ctrl-C).

    A reader of standard output that goes away, as `| head` does, ends the program without a word, exit code 1.
    """
    prepare_streams()
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    try:
        # typer's own way of telling mistakes, standalone_mode, is a box of five lines
        code = app(prog_name="rhapsode", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()  # what is wrong with it is told below
        if code == EXIT_STOPPED:
            raise KeyboardInterrupt
        sys.exit(code)
    except UsageError as error:
        command, mistake = error.ctx.command_path if error.ctx else "rhapsode", error.format_message().rstrip(".")
        if mistake:  # there is none where help was printed because nothing was asked for
            print(literal(f"{command}: {mistake}; see {command} --help"), file=sys.stderr)
        sys.exit(2)
    except ToldElsewhere:
        sys.exit(2)
    except (ValueError, OSError, FloatingPointError) as error:
        if isinstance(error, OSError) and is_of_output(error):
            discard(sys.stdout)
            if isinstance(error, BrokenPipeError):
                sys.exit(1)
            error.filename = "standard output"
        if debug:
            raise
        print(f"rhapsode: {told(error)}", file=sys.stderr)
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:
        if debug or not (isinstance(error, MemoryError) or "memory" in str(error)):
            raise
        what = literal(str(error).splitlines()[0] if str(error) else "not enough of it")
        print(f"rhapsode: memory ran out ({what}); choose a smaller model, batch_size or window", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("rhapsode: stopped", file=sys.stderr)
        sys.exit(EXIT_STOPPED)
