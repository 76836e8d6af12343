"""What gpu.py found on a card, as the tables of docs/gpu.md and docs/kernels.md.

python benchmarks/gpu_tables.py      prints them in Markdown, of results/gpu.json
"""

import json
from typing import Any

from report import RESULTS

Found = dict[str, Any]
PRECISIONS = {"float32": "float32", "tf32": "TF32", "bfloat16": "bfloat16"}


def tables() -> dict[str, str]:
    """The tables in Markdown, by what they are of."""
    found = json.loads((RESULTS / "gpu.json").read_text(encoding="utf-8"))
    made = {"bars": bars, "steps": steps, "runs": runs, "decoding": decoding, "loops": loops}
    return {name: "\n".join(table(found)) for name, table in made.items()}


def bars(found: Found) -> list[str]:
    """Each bar with its bound, the least and the largest of its figures, and whether it is met."""
    rows = []
    for name, bar in found["bars"].items():
        side = "at_least" if "at_least" in bar else "at_most"
        bound = f"{side.replace('_', ' ')} {bar[side]:,.0f}"
        figures = sorted(bar["figures"])
        ends = dict.fromkeys(shown(value) for value in (*figures[:1], *figures[-1:]))
        rows.append([name, bound, " to ".join(ends), bar["verdict"]])
    return markdown(["", "bar", "measured", ""], rows)


def steps(found: Found) -> list[str]:
    """Milliseconds of a training step; ours in a graph as a share of nn.RNN's in one."""
    columns = {
        "ours": "piece by piece",
        "ours, graph": "one graph",
        "nn.RNN": "`nn.RNN` (cuDNN)",
        "nn.RNN, graph": "`nn.RNN`, one graph",
        "of nn.RNN, graph": "ours / `nn.RNN`, graphs",
        "stepwise": "stepwise",
    }
    rows = [
        [step["row"], PRECISIONS[step["precision"]], *(shown(step.get(column)) for column in columns)]
        for step in found["steps_ms"]
    ]
    return markdown(["embed, hidden, dk = dv, batch", "products", *columns.values()], rows)


def runs(found: Found) -> list[str]:
    """Two figures of each run, a column for each precision."""
    figures = (
        ("the course's large model, seconds", "large", "seconds", ".1f"),
        ("its bits per byte", "large", "bits_per_byte", ".4f"),
        ("`coffee`, tokens per second", "coffee", "tokens/s", ",.0f"),
        ("its bits per byte", "coffee", "bits_per_byte", ".4f"),
    )
    rows = []
    for name, run, figure, how in figures:
        entries = [found["runs"].get(f"{run}, {precision}") for precision in PRECISIONS]
        rows.append([name, *("" if entry is None else format(entry[figure], how) for entry in entries)])
    return markdown(["", *PRECISIONS.values()], rows)


def decoding(found: Found) -> list[str]:
    """Tokens per second of all texts at once."""
    each = found["decoding_tokens_per_second"]
    rows = [[str(entry["texts"]), shown(entry["graph"]), shown(entry["CPU"])] for entry in each]
    return markdown(["texts at once", "GPU, `--cuda-graph`", "CPU"], rows)


def loops(found: Found) -> list[str]:
    """Microseconds forward and backward, in a graph, and the error, of `fast` and of `triton`."""
    rows = []
    for loop in found["loops"]:
        figures = []
        for kind in ("fast", "triton"):
            figures += [f"{1e3 * loop[f'{kind}: ms']:,.0f}", f"{loop[f'{kind}: error']:.0e}".replace("e-0", "e-")]
        rows.append([loop["loop"], PRECISIONS[loop["precision"]], *figures])
    return markdown(["128 steps", "products", "`fast`, µs", "its error", "`triton`, µs", "its error"], rows)


def shown(value: float | None) -> str:
    """A figure to three digits or so; nothing where it was not measured."""
    return "" if value is None else f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def markdown(header: list[str], rows: list[list[str]]) -> list[str]:
    lines = [f"| {' | '.join(row)} |".replace("  ", " ") for row in (header, *rows)]
    return [lines[0], "|---" * len(header) + "|", *lines[1:]]


if __name__ == "__main__":
    for name, table in tables().items():
        print(f"### {name}\n\n{table}\n")
