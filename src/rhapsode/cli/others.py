"""The small verbs: `bench`, `import`, `corpus`."""

from pathlib import Path

import typer

from rhapsode.cli.options import JSON


def bench(
    quick: bool = typer.Option(False, "--quick", help="A few seconds instead of minutes; less precise."),
    seconds: float = typer.Option(60.0, min=1.0, help="How long to measure each setting, in seconds."),
    as_json: bool = JSON,
) -> None:
    """How fast this machine trains, in tokens per second and as a share of its rate in a plain matrix product."""
    from rhapsode.bench import bench as measure

    measure(quick, as_json, seconds)


def import_(
    model: Path = typer.Argument(..., help="model.pt, as written by rnn.py."),
    run: Path = typer.Argument(..., help="The run directory to create."),
    tokenizer: Path = typer.Option(Path("my_tokenizer"), help="The tokenizer folder that belongs to it."),
) -> None:
    """Convert the course's model.pt to a run directory; nothing in the file is executed."""
    from rhapsode.api import import_course_model
    from rhapsode.terminal import print_text

    import_course_model(model, run, tokenizer)
    print_text(str(run))


def corpus(
    count: int = typer.Argument(3, min=1, help="How many stories to print."),
    seed: int = typer.Option(0, min=0, help="Seed of the first story."),
) -> None:
    """Print stories of the corpus inside the package, storyworld."""
    from rhapsode import storyworld
    from rhapsode.seeds import check_seed

    check_seed(seed, count=count)
    for text in storyworld.training_stories(count, seed):
        print(text, end="\n\n")
