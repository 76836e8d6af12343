"""`rhapsode serve`."""

from pathlib import Path

import typer

from rhapsode.cli.options import CHECKPOINT


def serve(
    runs: list[Path] = typer.Argument(
        None, metavar="RUN...", help="Run directories; by default the model inside the package."
    ),
    host: str = typer.Option("127.0.0.1", help="Address to listen at; 0.0.0.0 is every address of this machine."),
    port: int = typer.Option(8000, help="Port to listen at; 0 takes a free one."),
    max_context: int = typer.Option(8_192, help="Most tokens of a text: prompt and continuation."),
    max_rows: int = typer.Option(64, help="Texts of a model that are written at once; others wait."),
    max_queue: int = typer.Option(256, help="Texts of a model that may wait; beyond them the answer is 429."),
    max_wait: float = typer.Option(60.0, help="Seconds that a request may wait; beyond them the answer is 503."),
    max_body: float = typer.Option(4.0, help="Most megabytes of a request's body."),
    max_answers: float = typer.Option(
        512.0, help="Most megabytes of answers that are under way; beyond them the largest one ends with 503."
    ),
    memory: float = typer.Option(None, help="Gigabytes for models; by default half of this machine's memory."),
    checkpoint: str = CHECKPOINT,
    api_key: Path = typer.Option(
        None, help="File with the key that clients must send; otherwise RHAPSODE_API_KEY, if it is set."
    ),
    cors: list[str] = typer.Option(
        None, help="Origin of web pages that may use this server, such as http://localhost:3000; repeatable."
    ),
    allow_host: list[str] = typer.Option(
        None, help="Name by which this server may be called, beside addresses and localhost; repeatable."
    ),
    log_prompts: bool = typer.Option(False, "--log-prompts", help="Print prompts and texts on standard error."),
) -> None:
    """Serve models to the clients of OpenAI's API, and show them at work in a browser."""
    from rhapsode.serve import check_installed

    check_installed()
    from rhapsode.packaged.run import packaged_run
    from rhapsode.serve.server import ServerConfig, serve_runs

    serve_runs(
        ServerConfig(
            runs=runs or [packaged_run()],
            host=host,
            port=port,
            max_context=max_context,
            max_rows=max_rows,
            max_queue=max_queue,
            max_wait=max_wait,
            max_body=max_body,
            max_answers=max_answers,
            memory=memory,
            checkpoint=checkpoint,
            api_key=api_key,
            cors=tuple(cors or ()),
            allow_host=tuple(allow_host or ()),
            log_prompts=log_prompts,
        )
    )
