"""The command line of the worked examples: one command for each NAME, with the numbers as its options.

NumPy is imported when an example is computed, so that `--help` is there at once. ValueError and OSError are
left to the caller, who turns them into one line.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rhapsode.textbook.explain.quiz import TOPICS

if TYPE_CHECKING:
    from rhapsode.textbook.explain.page import WorkedExample

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Worked examples of the mathematics, step by step, with built-in numbers or your own.",
)

Numbers = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="JSON file with an object of these values by name; - is standard input."),
]
Page = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Write a web page with figures to this file, and print nothing."),
]
Activation = Annotated[str | None, typer.Option(help="ψ: identity, relu or tanh.")]
Stride = Annotated[str | None, typer.Option(metavar="N", help="Rows or columns from a position to the next.")]
Causal = Annotated[bool | None, typer.Option("--causal/--not-causal", help="Hide later positions.")]
Padding = Annotated[str | None, typer.Option(metavar="N", help="Rows and columns of zeros on each side.")]


def _matrix(help: str) -> Any:
    return typer.Option(metavar="MATRIX", help=f"{help} As in '1 0 -2 / 2 9 5'.")


def _vector(help: str) -> Any:
    return typer.Option(metavar="NUMBERS", help=help)


def _size(help: str) -> Any:
    return typer.Option(metavar="ROWSxCOLUMNS", help=help)


RecurrentInputs = Annotated[str | None, _matrix("x_t, one row for each step.")]
Targets = Annotated[str | None, _vector("y_t, one id for each step.")]
WHH = Annotated[str | None, _matrix("W_hh, from state to state.")]
WHX = Annotated[str | None, _matrix("W_hx, from input to state.")]
WHY = Annotated[str | None, _matrix("W_hy, from state to output.")]
Start = Annotated[str | None, _vector("h_0; zeros if not given.")]


@app.command()
def convolution(
    image: Annotated[str | None, _matrix("The image.")] = None,
    filter: Annotated[str | None, _matrix("The filter.")] = None,
    stride: Stride = None,
    padding: Padding = None,
    output_gradient: Annotated[str | None, _matrix("dL/dy; ones if not given.")] = None,
    numbers: Numbers = None,
    html: Page = None,
) -> None:
    """An image and a filter: every sum, the matrix form, and the gradients."""
    from rhapsode.textbook.explain import convolution as examples
    from rhapsode.textbook.explain import inputs as read

    given = {
        "image": (read.matrix, image),
        "filter": (read.matrix, filter),
        "stride": (read.integer, stride),
        "padding": (read.integer, padding),
        "output_gradient": (read.matrix, output_gradient),
    }
    _show(examples.convolution, given, numbers, html)


@app.command()
def parameters(
    input_size: Annotated[str | None, _size("Size of the input.")] = None,
    channels: Annotated[str | None, typer.Option(metavar="N", help="Input channels.")] = None,
    filter_size: Annotated[str | None, _size("Size of the filter.")] = None,
    output_channels: Annotated[str | None, typer.Option(metavar="N", help="Filters.")] = None,
    stride: Stride = None,
    padding: Padding = None,
    numbers: Numbers = None,
    html: Page = None,
) -> None:
    """The learned parameters of a layer with shared, unshared and dense weights."""
    from rhapsode.textbook.explain import convolution as examples
    from rhapsode.textbook.explain import inputs as read

    given = {
        "input_size": (read.size, input_size),
        "channels": (read.integer, channels),
        "filter_size": (read.size, filter_size),
        "output_channels": (read.integer, output_channels),
        "stride": (read.integer, stride),
        "padding": (read.integer, padding),
    }
    _show(examples.parameters, given, numbers, html)


@app.command()
def unrolling(
    inputs: RecurrentInputs = None,
    targets: Targets = None,
    w_hh: WHH = None,
    w_hx: WHX = None,
    w_hy: WHY = None,
    start: Start = None,
    activation: Activation = None,
    numbers: Numbers = None,
    html: Page = None,
) -> None:
    """The graph of a recurrent network over its steps, with every value and every gradient."""
    from rhapsode.textbook.explain import recurrent as examples

    given = _recurrent(inputs, targets, w_hh, w_hx, w_hy, start, activation)
    _show(examples.unrolling, given, numbers, html)


@app.command()
def backpropagation(
    inputs: RecurrentInputs = None,
    targets: Targets = None,
    w_hh: WHH = None,
    w_hx: WHX = None,
    w_hy: WHY = None,
    start: Start = None,
    activation: Activation = None,
    numbers: Numbers = None,
    html: Page = None,
) -> None:
    """Backpropagation through time in closed form: what each step contributes, vanishing and exploding."""
    from rhapsode.textbook.explain import recurrent as examples

    given = _recurrent(inputs, targets, w_hh, w_hx, w_hy, start, activation)
    _show(examples.backpropagation, given, numbers, html)


@app.command()
def tape(
    inputs: Annotated[str | None, _vector("x.")] = None,
    weights: Annotated[str | None, _matrix("W.")] = None,
    bias: Annotated[str | None, _vector("b.")] = None,
    target: Annotated[str | None, typer.Option(metavar="ID", help="y, a row of W counted from 0.")] = None,
    numbers: Numbers = None,
    html: Page = None,
) -> None:
    """Automatic differentiation: the tape as it grows and shrinks."""
    from rhapsode.textbook.explain import inputs as read
    from rhapsode.textbook.explain import tape as examples

    given = {
        "inputs": (read.vector, inputs),
        "weights": (read.matrix, weights),
        "bias": (read.vector, bias),
        "target": (read.integer, target),
    }
    _show(examples.tape, given, numbers, html)


@app.command()
def attention(
    inputs: Annotated[str | None, _matrix("X, one row for each position.")] = None,
    w_q: Annotated[str | None, _matrix("W_q; heads separated by |.")] = None,
    w_k: Annotated[str | None, _matrix("W_k; heads separated by |.")] = None,
    w_v: Annotated[str | None, _matrix("W_v; heads separated by |.")] = None,
    w_o: Annotated[str | None, _matrix("W_o; the identity if not given.")] = None,
    causal: Annotated[bool | None, typer.Option("--causal/--not-causal", help="Hide later positions.")] = None,
    numbers: Numbers = None,
    html: Page = None,
) -> None:
    """Self-attention with one head or several: scores, weights, outputs, shapes and gradients."""
    from rhapsode.textbook.explain import attention as examples
    from rhapsode.textbook.explain import inputs as read

    given = {
        "inputs": (read.matrix, inputs),
        "w_q": (read.heads, w_q),
        "w_k": (read.heads, w_k),
        "w_v": (read.heads, w_v),
        "w_o": (read.matrix, w_o),
        "causal": (read.truth, causal),
    }
    _show(examples.attention, given, numbers, html)


@app.command()
def rmsnorm(
    inputs: Annotated[str | None, _matrix("x, one in each row.")] = None,
    scale: Annotated[str | None, _vector("w; ones if not given for inputs of your own.")] = None,
    output_gradient: Annotated[str | None, _matrix("dL/dn; rows of the identity if not given.")] = None,
    numbers: Numbers = None,
    html: Page = None,
) -> None:
    """RMSNorm: each row divided by the root of its mean square, and its gradients."""
    from rhapsode.textbook.explain import inputs as read
    from rhapsode.textbook.explain import residual as examples

    given = {
        "inputs": (read.matrix, inputs),
        "scale": (read.vector, scale),
        "output_gradient": (read.matrix, output_gradient),
    }
    _show(examples.rmsnorm, given, numbers, html)


@app.command()
def residual(
    inputs: Annotated[str | None, _vector("x.")] = None,
    w_1: Annotated[str | None, _matrix("W_1, into the layer.")] = None,
    w_2: Annotated[str | None, _matrix("W_2, out of the layer.")] = None,
    output_gradient: Annotated[str | None, _vector("dL/d(x + y); the first unit vector if not given.")] = None,
    layers: Annotated[str | None, typer.Option(metavar="N", help="Layers in the stack.")] = None,
    numbers: Numbers = None,
    html: Page = None,
) -> None:
    """A residual block, and what the sum does for the gradient in a stack of layers."""
    from rhapsode.textbook.explain import inputs as read
    from rhapsode.textbook.explain import residual as examples

    given = {
        "inputs": (read.vector, inputs),
        "w_1": (read.matrix, w_1),
        "w_2": (read.matrix, w_2),
        "output_gradient": (read.vector, output_gradient),
        "layers": (read.integer, layers),
    }
    _show(examples.residual, given, numbers, html)


@app.command()
def pairs(
    tokens: Annotated[str | None, _vector("Token ids.")] = None,
    rows: Annotated[str | None, typer.Option(metavar="N", help="R, the rows of the table.")] = None,
    before: Annotated[str | None, typer.Option(metavar="ID", help="The token before the first.")] = None,
    cut: Annotated[str | None, typer.Option(metavar="N", help="Tokens before a cut of the sequence.")] = None,
    vocabulary: Annotated[str | None, typer.Option(metavar="N", help="Size of the vocabulary.")] = None,
    numbers: Numbers = None,
    html: Page = None,
) -> None:
    """Embeddings of token pairs: which row of the table the hash gives each pair, and which share one."""
    from rhapsode.textbook.explain import inputs as read
    from rhapsode.textbook.explain import pairs as examples

    given = {
        "tokens": (read.integers, tokens),
        "rows": (read.integer, rows),
        "before": (read.integer, before),
        "cut": (read.integer, cut),
        "vocabulary": (read.integer, vocabulary),
    }
    _show(examples.pairs, given, numbers, html)


@app.command()
def copying(
    tokens: Annotated[str | None, _vector("Ids of the tokens so far.")] = None,
    scores: Annotated[str | None, _vector("s_n, one for each token.")] = None,
    logits: Annotated[str | None, _vector("z, one for each word of the vocabulary.")] = None,
    gate: Annotated[str | None, typer.Option(metavar="NUMBER", help="u; g = σ(u) is how much is copied.")] = None,
    target: Annotated[str | None, typer.Option(metavar="ID", help="y, the word that comes.")] = None,
    names: Annotated[str | None, typer.Option(metavar="WORDS", help="A name for each word.")] = None,
    numbers: Numbers = None,
    html: Page = None,
) -> None:
    """A copy head: one prediction, a mixture of the vocabulary and of the tokens so far, its loss and gradients."""
    from rhapsode.textbook.explain import copying as examples
    from rhapsode.textbook.explain import inputs as read

    given = {
        "tokens": (read.integers, tokens),
        "scores": (read.vector, scores),
        "logits": (read.vector, logits),
        "gate": (read.real, gate),
        "target": (read.integer, target),
        "names": (read.words, names),
    }
    _show(examples.copying, given, numbers, html)


@app.command()
def muon(
    update: Annotated[str | None, _matrix("U, the gradient after its momentum.")] = None,
    steps: Annotated[str | None, typer.Option(metavar="N", help="Steps of the iteration.")] = None,
    coefficients: Annotated[str | None, _vector("a, b and c of the polynomial.")] = None,
    learning_rate: Annotated[str | None, typer.Option(metavar="NUMBER", help="η.")] = None,
    numbers: Numbers = None,
    html: Page = None,
) -> None:
    """Muon: an update made orthogonal by a Newton-Schulz iteration, beside the SVD's answer."""
    from rhapsode.textbook.explain import inputs as read
    from rhapsode.textbook.explain import muon as examples

    given = {
        "update": (read.matrix, update),
        "steps": (read.integer, steps),
        "coefficients": (read.vector, coefficients),
        "learning_rate": (read.real, learning_rate),
    }
    _show(examples.muon, given, numbers, html)


@app.command()
def temperature(
    logits: Annotated[str | None, _vector("s_j, one for each token.")] = None,
    temperatures: Annotated[str | None, _vector("τ, as many as you like; 0 is allowed.")] = None,
    names: Annotated[str | None, typer.Option(metavar="WORDS", help="A name for each token.")] = None,
    numbers: Numbers = None,
    html: Page = None,
) -> None:
    """Softmax at several temperatures."""
    from rhapsode.textbook.explain import attention as examples
    from rhapsode.textbook.explain import inputs as read

    given = {
        "logits": (read.vector, logits),
        "temperatures": (read.vector, temperatures),
        "names": (read.words, names),
    }
    _show(examples.temperature, given, numbers, html)


@app.command()
def quiz(
    topic: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help=f"Only this topic; repeatable, or with commas: {', '.join(TOPICS)}."),
    ] = None,
    count: Annotated[int, typer.Option(min=1, max=1000, help="How many questions.")] = 10,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed, to get the same questions again; by default new ones.")
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a sheet with folded answers to this file, and ask nothing."),
    ] = None,
) -> None:
    """Questions with fresh numbers, your answers checked, and the worked steps where one was wrong.

    In a pipe, one answer on each line; the score is printed on stdout, all else on stderr.
    """
    import secrets

    from rhapsode.textbook.explain.html import write_page
    from rhapsode.textbook.explain.quiz.draw import chosen_topics, draw_questions
    from rhapsode.textbook.explain.quiz.session import ask_all
    from rhapsode.textbook.explain.quiz.sheet import to_html

    topics = chosen_topics(topic or [])
    seed = secrets.randbelow(100_000) if seed is None else seed
    only = "" if len(topics) == len(TOPICS) else f" --topic {','.join(topics)}"
    again = f"rhapsode explain quiz --seed {seed} --count {count}{only}"
    questions = draw_questions(seed, count, topics)
    if html is not None:
        write_page(to_html(questions, f"Quiz {seed}", again), html)
        typer.echo(f"wrote {html}", err=True)
        return
    score, interrupted = ask_all(questions, again)
    for line in score.lines():
        typer.echo(line)
    if interrupted:
        raise typer.Exit(130)


def _recurrent(
    inputs: str | None,
    targets: str | None,
    w_hh: str | None,
    w_hx: str | None,
    w_hy: str | None,
    start: str | None,
    activation: str | None,
) -> dict[str, tuple[Callable[[str, Any], Any], Any]]:
    from rhapsode.textbook.explain import inputs as read

    return {
        "inputs": (read.matrix, inputs),
        "targets": (read.integers, targets),
        "w_hh": (read.matrix, w_hh),
        "w_hx": (read.matrix, w_hx),
        "w_hy": (read.matrix, w_hy),
        "start": (read.vector, start),
        "activation": (read.text, activation),
    }


def _show(
    example: "Callable[..., WorkedExample]",
    given: Mapping[str, tuple[Callable[[str, Any], Any], Any]],
    numbers: Path | None,
    html: Path | None,
) -> None:
    from rhapsode.textbook.explain.html import write_html
    from rhapsode.textbook.explain.inputs import gather
    from rhapsode.textbook.explain.page import print_example

    worked = example(**gather(given, numbers))
    if html is None:
        print_example(worked)
    else:
        write_html(worked, html)
        typer.echo(f"wrote {html}", err=True)
