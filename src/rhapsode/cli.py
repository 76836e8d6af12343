"""The command line, `rhapsode`: each verb imports only what it runs, so that `--help` answers at once.

Errors are for the user: a ValueError, OSError or FloatingPointError becomes one line on stderr and exit code 2;
`--debug` shows where it came from. stdout is data, stderr is talk.
"""

import sys

import typer

from rhapsode import __version__
from rhapsode.textbook.explain import app as explain_app

app = typer.Typer(
    help="Train and study small recurrent language models with self-attention, on the computer you already have.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(explain_app, name="explain")


@app.command()
def story(
    seconds: float = typer.Option(75.0, min=1.0, help="How long to train."),
    seed: int = typer.Option(0, min=0, help="Seed of the weights, of the stories and of what is written."),
) -> None:
    """Train on the corpus inside the package and print three stories that the model wrote."""
    from rhapsode.story import train_and_tell

    for text in train_and_tell(seconds, seed):
        print(text, end="\n\n")


@app.command()
def corpus(
    count: int = typer.Argument(3, min=1, help="How many stories."),
    seed: int = typer.Option(0, min=0, help="The first story's seed."),
) -> None:
    """Print stories of the corpus inside the package, storyworld."""
    from rhapsode import storyworld

    for text in storyworld.sample_batch(seed, count):
        print(text, end="\n\n")


@app.command()
def version() -> None:
    """Print the version."""
    print(__version__)


def main() -> None:
    """The console script: runs a verb and turns errors into one line and exit code 2 (130 after Ctrl-C)."""
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    try:
        app()
    except (ValueError, OSError, FloatingPointError) as error:
        if debug:
            raise
        print(f"rhapsode: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("rhapsode: stopped", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
