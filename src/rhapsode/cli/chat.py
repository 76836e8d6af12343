"""`rhapsode chat`."""

from pathlib import Path

import typer

from rhapsode.cli.options import CHECKPOINT, RUN


def chat(
    run: Path = RUN,
    max_tokens: int = typer.Option(256, min=1, help="Maximum number of new tokens of a turn."),
    temperature: float = typer.Option(0.8, "--temperature", "-t", help="0 always takes the most likely token."),
    top_k: int = typer.Option(0, help="Sample only from the k most likely tokens; 0 for all."),
    top_p: float = typer.Option(1.0, help="Sample from the fewest tokens that together reach this probability."),
    min_p: float = typer.Option(0.0, help="Sample only tokens at least this likely, relative to the most likely one."),
    repetition_penalty: float = typer.Option(1.0, help="Above 1, tokens that already occurred become less likely."),
    seed: int = typer.Option(0, help="Turn i uses seed + i."),
    checkpoint: str = CHECKPOINT,
) -> None:
    """Write a story in turns with a model; /help tells what can be done."""
    from rhapsode.api import load
    from rhapsode.chat.commands import Chat, line_reader
    from rhapsode.chat.conversation import Conversation
    from rhapsode.decode import SampleConfig
    from rhapsode.progress import say

    config = SampleConfig(max_tokens, temperature, top_k, top_p, min_p, repetition_penalty, seed=seed)
    read = line_reader()
    conversation = Conversation(load(run, checkpoint=checkpoint, device="cpu"), config)  # where the engine computes
    say("type the beginning of a story; /help tells what else can be done")
    Chat(conversation, read).run()
