"""`rhapsode export`."""

from pathlib import Path

import typer

from rhapsode.cli.options import CHECKPOINT, JSON, RUN


def export(
    run: Path = RUN,
    to: str = typer.Option("html", help="Format: html, one page that writes stories offline in any browser."),
    out: Path = typer.Option(None, "--out", "-o", help="The file; by default page.html in the run directory."),
    float16: bool = typer.Option(False, "--float16", help="Weights as float16, twice as large, in place of int8."),
    valid: list[str] = typer.Option(
        None, help="Data on which the cost of packing is measured; by default the run's own validation data."
    ),
    checkpoint: str = CHECKPOINT,
    as_json: bool = JSON,
) -> None:
    """Write a run's model as one file for use elsewhere, and measure what packing its weights costs."""
    from rhapsode.api import export_html
    from rhapsode.terminal import literal, print_json, print_text

    if to != "html":
        raise ValueError(f"--to must be html, got {to!r}")
    data = [Path(each) for each in valid] if valid else None
    found = export_html(run, out or run / "page.html", float16=float16, valid=data, checkpoint=checkpoint, show=True)
    if as_json:
        print_json(found)
        return
    size = f"{found['bytes']:,} bytes, {found['bytes_per_parameter']:.2f} per parameter beside the page"
    print_text(f"{literal(found['file'])}: {size}")
    if "bits_per_byte" in found:
        rise = found["bits_per_byte_packed"] - found["bits_per_byte"]
        print(f"bits per byte: {found['bits_per_byte']:.4f}, packed {found['bits_per_byte_packed']:.4f} ({rise:+.4f})")
    else:
        print("what packing costs was not measured: the model has no validation data, name some with --valid")
