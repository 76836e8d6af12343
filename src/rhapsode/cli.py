"""The command line, `rhapsode`: each verb imports only what it runs, so that `--help` answers at once.

Errors are for the user: a wrong option, a ValueError, OSError or FloatingPointError becomes one line on stderr and
exit code 2; `--debug` shows where it came from. stdout is data, stderr is talk.
"""

import sys
from pathlib import Path
from typing import Any

import typer

from rhapsode import __version__
from rhapsode.studies.commands import app as study_app
from rhapsode.terminal import discard, is_of_output, literal, prepare_streams, told
from rhapsode.textbook.explain import app as explain_app

app = typer.Typer(
    help="Train and study small recurrent language models with self-attention, on the computer you already have.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(explain_app, name="explain")
app.add_typer(study_app, name="study")

UsageError: Any = typer.BadParameter.__base__  # of all mistakes in options; typer itself names only this kind of it

FORMAT_HELP = "What files hold: auto, text, jsonl, json, csv, tsv or parquet."
SEPARATOR_HELP = "What stands between stories of text files; otherwise <|endoftext|> where the text has it."
FIELD_HELP = "Where the text is in JSON objects and tables, as story or story.body; otherwise text."
PRESET_HELP = "Recipe: minute, coffee (about ten minutes) or overnight. Default: coffee; without DATA, minute."


@app.command()
def train(
    data: list[str] = typer.Argument(None, help="Files, folders, hub:NAME, storyworld[:COUNT] or - for stdin."),
    valid: str = typer.Option(
        None, help="Data to validate on; otherwise a folder's validation split, or a seeded share of the stories."
    ),
    out: Path = typer.Option(None, help="The run directory; otherwise a new one under runs/."),
    preset: str = typer.Option(None, help=PRESET_HELP),
    minutes: float = typer.Option(None, help="Budget: minutes of training (validation comes on top)."),
    tokens: int = typer.Option(None, help="Budget: tokens."),
    sequences: int = typer.Option(None, help="Budget: sequences (rows of a batch)."),
    epochs: float = typer.Option(None, help="Budget: times through the data."),
    tokenizer: str = typer.Option(None, help="A tokenizer folder, or the kind to train: bpe, unigram, characters."),
    vocab_size: int = typer.Option(None, help="Size of the tokenizer that is trained (1024)."),
    config: Path = typer.Option(None, help="TOML file with the tables model, optimizer, train and batch."),
    assignments: list[str] = typer.Option(None, "--set", help="field=value of any config; repeatable."),
    seed: int = typer.Option(None, help="Seed of weights, order and dropout (0)."),
    threads: int = typer.Option(None, min=1, help="CPU threads; otherwise PyTorch's own choice."),
    device: str = typer.Option("auto", help="auto, cpu, cuda or mps."),
    format: str = typer.Option("auto", help=FORMAT_HELP),
    split: str = typer.Option("auto", help="How text files are cut: auto, separator, paragraph, line, file."),
    separator: str = typer.Option(None, help=SEPARATOR_HELP),
    field: str = typer.Option(None, help=FIELD_HELP),
    tensorboard: bool = typer.Option(False, "--tensorboard", help="Write TensorBoard files too."),
    explain_preset: bool = typer.Option(
        False, "--explain-preset", help="Only print what the preset chooses for this text, and why."
    ),
    resume: bool = typer.Option(False, "--resume", help="Go on with the run in --out, exactly."),
) -> None:
    """Train a model on text and keep it in a run directory."""
    from rhapsode.commands import explain_preset_command, train_command
    from rhapsode.recipe.changes import own_sections
    from rhapsode.sources import SourceConfig
    from rhapsode.training.data import DataRequest
    from rhapsode.training.start import TrainingRequest

    budgets = {"minutes": minutes, "tokens": tokens, "sequences": sequences, "epochs": epochs}
    own = own_sections(config, {name: value for name, value in budgets.items() if value is not None}, seed, assignments)
    reading = SourceConfig(split, separator, field, format)
    wanted = DataRequest(tuple(data or ()), (valid,) if valid else (), tokenizer, vocab_size, reading)
    request = TrainingRequest(wanted, preset, own)
    if explain_preset:
        explain_preset_command(request)
        return
    train_command(request, out, resume, threads, device, tensorboard)


@app.command()
def generate(
    run: Path = typer.Argument(..., help="A run directory."),
    prompt: str = typer.Argument("", help="What to go on from; - reads it from standard input."),
    max_tokens: int = typer.Option(256, help="Most tokens to write."),
    temperature: float = typer.Option(0.8, help="0 is greedy."),
    top_k: int = typer.Option(0, help="Draw from the k likeliest tokens; 0 for all."),
    top_p: float = typer.Option(1.0, help="Draw from the fewest tokens that reach this probability together."),
    min_p: float = typer.Option(0.0, help="Draw from tokens at least this likely, relative to the likeliest."),
    repetition_penalty: float = typer.Option(1.0, help="Above 1: tokens that are there already become less likely."),
    stop: list[str] = typer.Option(None, help="A text at which writing ends; repeatable."),
    samples: int = typer.Option(1, help="How many texts."),
    seed: int = typer.Option(0, help="Sample i is drawn with seed + i."),
    checkpoint: str = typer.Option("best", help="best or last."),
    threads: int = typer.Option(None, min=1, help="CPU threads."),
    device: str = typer.Option("auto", help="auto, cpu, cuda or mps."),
    as_json: bool = typer.Option(False, "--json", help="One JSON object, with ids and log-probabilities."),
) -> None:
    """Write on from a prompt."""
    from rhapsode.commands import generate_command
    from rhapsode.decode import SampleConfig

    sampling = SampleConfig(max_tokens, temperature, top_k, top_p, min_p, repetition_penalty, tuple(stop or ()), seed)
    generate_command(run, prompt, sampling, samples, checkpoint, threads, device, as_json)


@app.command()
def evaluate(
    run: Path = typer.Argument(..., help="A run directory."),
    data: list[str] = typer.Argument(None, help="Data to score; otherwise the run's own validation data."),
    generate: int = typer.Option(0, "--generate", min=0, help="Storyworld only: sample so many stories and read them."),
    temperature: float = typer.Option(1.0, help="Temperature of those stories; 1 is the model's own distribution."),
    seed: int = typer.Option(0, help="Seed of those stories."),
    checkpoint: str = typer.Option("best", help="best or last."),
    threads: int = typer.Option(None, min=1, help="CPU threads."),
    device: str = typer.Option("auto", help="auto, cpu, cuda or mps."),
    format: str = typer.Option("auto", help=FORMAT_HELP),
    split: str = typer.Option(None, help="As for train; otherwise text files are cut as the run's own were."),
    separator: str = typer.Option(None, help="As for train; otherwise the run's own."),
    field: str = typer.Option(None, help="As for train; otherwise the run's own."),
    as_json: bool = typer.Option(False, "--json", help="One JSON object."),
) -> None:
    """Nats per token, perplexity and bits per byte over all of the data; on storyworld, the distance to the floor."""
    from rhapsode.commands import evaluate_command
    from rhapsode.decode import SampleConfig
    from rhapsode.sources import SourceConfig

    source = SourceConfig(split or "auto", separator, field, format)
    sampling = SampleConfig(max_tokens=600, temperature=temperature, seed=seed)
    as_trained = split != "auto"
    evaluate_command(run, data or [], source, as_trained, checkpoint, threads, device, as_json, generate, sampling)


@app.command()
def inspect(
    run: Path = typer.Argument(..., help="A run directory."),
    text: str = typer.Option(None, help="A text to read: shows where the model looks and what it expects next."),
    top: int = typer.Option(5, min=1, help="How many expected tokens to show at each place."),
    out: Path = typer.Option(None, help="Where the pictures go; otherwise inspect/ in the run directory."),
    checkpoint: str = typer.Option("best", help="best or last."),
) -> None:
    """Parameters per part, memory and FLOPs per token; with --text, an attention map and a next-token table."""
    from rhapsode.commands import inspect_command

    inspect_command(run, text, top, out, checkpoint)


@app.command()
def bench(
    quick: bool = typer.Option(False, "--quick", help="A few seconds instead of some minutes; rougher."),
    seconds: float = typer.Option(60.0, min=1.0, help="How long to measure each setting."),
    as_json: bool = typer.Option(False, "--json", help="One JSON object."),
) -> None:
    """How fast this machine trains, in tokens per second and as a share of its rate in a plain matrix product."""
    from rhapsode.bench import bench as measure

    measure(quick, as_json, seconds)


@app.command("import")
def import_(
    model: Path = typer.Argument(..., help="model.pt, as rnn.py writes it."),
    run: Path = typer.Argument(..., help="The run directory to make of it."),
    tokenizer: Path = typer.Option(Path("my_tokenizer"), help="The tokenizer folder that belongs to it."),
) -> None:
    """Make a run directory of the course's model.pt; nothing in the file is executed."""
    from rhapsode.commands import import_command

    import_command(model, run, tokenizer)


@app.command()
def story(
    minutes: float = typer.Option(1.0, min=0.02, help="How long to train."),
    seed: int = typer.Option(0, min=0, help="Seed of weights, order, and what is written."),
    out: Path = typer.Option(None, help="The run directory; otherwise a new one under runs/."),
) -> None:
    """Train on the corpus inside the package, against its known floor, and print three stories of the model's own."""
    from rhapsode.commands import story_command

    story_command(minutes, seed, out)


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
        if code == 130:
            raise KeyboardInterrupt
        sys.exit(code)
    except UsageError as error:
        command, mistake = error.ctx.command_path if error.ctx else "rhapsode", error.format_message().rstrip(".")
        if mistake:  # there is none where help was printed because nothing was asked for
            print(literal(f"{command}: {mistake}; see {command} --help"), file=sys.stderr)
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
    except KeyboardInterrupt:
        print("rhapsode: stopped", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
