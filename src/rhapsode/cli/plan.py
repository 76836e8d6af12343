"""`rhapsode plan`."""

from pathlib import Path

import typer

from rhapsode.cli.options import JSON


def plan(
    tokens: float = typer.Option(..., help="How many tokens to train on: 5e7, 1e12."),
    preset: str = typer.Option("coffee", "--preset", "-p", help="The recipe: minute or coffee."),
    config: Path = typer.Option(None, help="TOML file with the tables model, optimizer, train and batch."),
    assignments: list[str] = typer.Option(None, "--set", help="Set a field of the recipe: field=value; repeatable."),
    vocab_size: int = typer.Option(1024, help="Vocabulary size."),
    machines: int = typer.Option(1, min=1, help="How many machines."),
    processes: int = typer.Option(1, min=1, help="How many processes each has: GPUs, or threads of a processor."),
    device: str = typer.Option("cpu", help="What each process computes on: cpu (a thread), gpu, or gpu-graph."),
    link: str = typer.Option(None, help="What connects them: loopback, 1gbit, 10gbit, 100gbit; by default 10gbit."),
    as_json: bool = JSON,
) -> None:
    """How long a training would take on how many machines, as a range, and what would break first."""
    from rhapsode.planning import Fleet, devices, forecast, links
    from rhapsode.planning.forecast import forecast_table
    from rhapsode.progress import show
    from rhapsode.recipe import Recipe
    from rhapsode.recipe.changes import merge, own_sections
    from rhapsode.recipe.presets import PRESETS
    from rhapsode.terminal import print_json

    if preset not in PRESETS:
        raise ValueError(f"--preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    link = link or ("loopback" if machines == 1 else "10gbit")
    for name, value, known in (("device", device, devices()), ("link", link, links())):
        if value not in known:
            raise ValueError(f"--{name} must be one of {', '.join(known)}, got {value!r}")
    recipe = Recipe.from_sections(merge(PRESETS[preset], own_sections(config, {}, None, assignments)), vocab_size)
    fleet = Fleet(devices()[device], links()[link], machines, processes)
    found = forecast(recipe, tokens, fleet)
    if as_json:
        print_json(found.to_dict())
        return
    show(forecast_table(found, fleet, tokens))
    for note in found.notes:
        print(note)
