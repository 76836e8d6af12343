"""`rhapsode tell`."""

import typer


def tell(
    prompt: str = typer.Argument("", help="The beginning of the story."),
    temperature: float = typer.Option(0.7, "--temperature", "-t", help="0 always takes the most likely token."),
    top_p: float = typer.Option(0.95, help="Draw from the fewest tokens that make up this share."),
    max_tokens: int = typer.Option(400, help="Maximum number of new tokens."),
    seed: int = typer.Option(None, min=0, help="The same seed tells the same story; by default a new one each time."),
) -> None:
    """Tell a story at once, with the small model inside the package."""
    from rhapsode.cli.generate import read_prompt
    from rhapsode.packaged import teller
    from rhapsode.terminal import print_text

    for text in teller.tell_story(read_prompt(prompt), max_tokens, temperature, top_p, seed):
        print_text(text, end="")
    print()
