"""`rhapsode generate`."""

import os
import sys
from pathlib import Path

import typer

from rhapsode.cli.options import CHECKPOINT, DEVICE, JSON, RUN, THREADS


def generate(
    run: Path = RUN,
    prompt: str = typer.Argument("", help="The beginning of the text; - reads it from standard input."),
    max_tokens: int = typer.Option(256, help="Maximum number of new tokens."),
    temperature: float = typer.Option(0.8, "--temperature", "-t", help="0 always takes the most likely token."),
    top_k: int = typer.Option(0, help="Sample only from the k most likely tokens; 0 for all."),
    top_p: float = typer.Option(1.0, help="Sample from the fewest tokens that together reach this probability."),
    min_p: float = typer.Option(0.0, help="Sample only tokens at least this likely, relative to the most likely one."),
    repetition_penalty: float = typer.Option(1.0, help="Above 1, tokens that already occurred become less likely."),
    stop: list[str] = typer.Option(None, help="Stop before this text; repeatable."),
    samples: int = typer.Option(1, "--samples", "-n", help="How many texts to write."),
    seed: int = typer.Option(0, help="Sample i uses seed + i."),
    checkpoint: str = CHECKPOINT,
    threads: int = THREADS,
    device: str = DEVICE,
    cuda_graph: bool = typer.Option(
        False,
        "--cuda-graph",
        help="Write on the GPU, a step of all texts in one launch; a CPU was faster (docs/gpu.md).",
    ),
    as_json: bool = JSON,
) -> None:
    """Continue a prompt."""
    from rhapsode.api import load
    from rhapsode.terminal import print_json, print_text
    from rhapsode.threads import fixed_threads

    prompt = read_prompt(prompt)
    with fixed_threads(threads):
        model = load(run, checkpoint=checkpoint, device=device, cuda_graph=cuda_graph)
        sampling = {
            **{"max_tokens": max_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p},
            **{"repetition_penalty": repetition_penalty, "stop": tuple(stop or ()), "seed": seed},
        }
        if samples == 1 and not as_json:
            pieces = model.stream(prompt, **sampling)  # type: ignore[arg-type]
            print_text(prompt, end="")
            for piece in pieces:
                print_text(piece, end="")
            print()
            return
        written = model.generate(prompt, n=samples, **sampling)  # type: ignore[arg-type]
    if not as_json:
        print_text("\n\n".join(map(str, written)))
        return
    end = model.tokenizer.eos_id
    texts = [
        {
            "text": each.text,
            "ended": "end of text" if each.tokens[-1] == end else each.finish_reason,
            "log_probability": sum(each.log_probabilities),
            "tokens": [
                {"id": id, "token": model.tokenizer.token_text(id), "log_probability": log_probability}
                for id, log_probability in zip(each.tokens, each.log_probabilities, strict=True)
            ],
        }
        for each in written
    ]
    print_json({"prompt": prompt, "samples": texts})


def read_prompt(prompt: str) -> str:
    """The prompt, also where the locale is not UTF-8 but its bytes are; ValueError where they are no text."""
    if prompt == "-":
        try:
            prompt = sys.stdin.read().removesuffix("\n")  # the line end that `echo` adds
        except UnicodeDecodeError:
            raise ValueError("the prompt is not valid UTF-8") from None
    try:
        prompt.encode()
        return prompt
    except UnicodeEncodeError:  # how Python marks bytes of an argument that its locale cannot read
        try:
            return os.fsencode(prompt).decode()
        except UnicodeError:
            raise ValueError("the prompt is not valid UTF-8") from None
