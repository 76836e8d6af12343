"""docs/reliability.md from the JSONs of `make faults`.

python tests/faults/reliability.py > docs/reliability.md
"""

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from harness import PARTS, RESULTS

HEAD = """# Reliability

What `make faults` tried to break, how often, and what was lost. Every try is drawn from a seed and can be repeated:
`python tests/faults/harness.py PART --only UNIT`. A try survives where everything that was promised holds: what was
announced as saved is there and right to the bit, or, where something is refused, one line says what and what to do;
never a traceback, never other numbers in silence. The same tries run with the tests, fewer of them.

What is promised, and which test shows it, is in [SECURITY.md](../SECURITY.md); the files and their checksums are in
[format.md](format.md).
"""


def minutes(seconds: float) -> str:
    return f"{seconds / 60:,.1f}"


def facts_of(unit: dict[str, Any]) -> str:
    """The other numbers of a unit, in words."""
    words = []
    for name, value in unit["facts"].items():
        if isinstance(value, dict):
            shown = {key: each for key, each in value.items() if key in ("seconds", "megabytes", "refused")} or value
            words.append(f"{name}: " + ", ".join(f"{_number(each)} {key}" for key, each in shown.items()))
        elif isinstance(value, list):
            lines = dict.fromkeys(line for host in value for line in host)
            words.append(f"{name}: " + ", ".join(f"“{line}”" for line in lines))
        else:
            words.append(f"{name} {_number(value)}")
    return "; ".join(words).replace("|", "\\|")


def _number(value: Any) -> str:
    if isinstance(value, str):
        return f"“{Path(value.split(': ')[0]).name}: {': '.join(value.split(': ')[1:])}”"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def page(records: dict[str, dict[str, Any]]) -> str:
    lines = [HEAD, "| part | tries | survived | lost | minutes | commit, seed, date |", "|---|---:|---:|---:|---:|---|"]
    for name, (_, what) in PARTS.items():
        record = records.get(name)
        if record is None:
            lines.append(f"| {name}: {what} | | | | | not run yet |")
            continue
        if record["not_here"] and not record["units"]:
            lines.append(f"| {name}: {what} | | | | | not run: {record['not_here']} |")
            continue
        tries = sum(unit["tries"] for unit in record["units"])
        survived = sum(unit["survived"] for unit in record["units"])
        made = f"{(record['commit'] or 'no commit')[:10]}, seed {record['seed']}, {record['date']}"
        made += "" if record["complete"] else ", not finished"
        made += ", small size" if record["size"] == "small" else ""
        made += f"; not here: {record['not_here']}" if record["not_here"] else ""
        lost = tries - survived
        counts = f"{tries:,} | {survived:,} | {lost or 'nothing'} | {minutes(record['seconds'])}"
        lines.append(f"| {name}: {what} | {counts} | {made} |")
    for name, record in ((name, records[name]) for name in PARTS if name in records and records[name]["units"]):
        lines += ["", f"## {name}: {PARTS[name][1]}", ""]
        cores = f"{record['cores']} cores, {record['system']}"
        lines += [f"{record['processor']}, {cores}; Python {record['python']}, PyTorch {record['torch']}.", ""]
        lines += ["| what | tries | survived | minutes | more |", "|---|---:|---:|---:|---|"]
        for unit in record["units"]:
            counts = f"{unit['tries']:,} | {unit['survived']:,} | {minutes(unit['seconds'])}"
            lines.append(f"| {unit['name']} | {counts} | {facts_of(unit)} |")
        lost = [line for unit in record["units"] for line in unit["lost"]]
        if lost:
            lines += ["", "Lost:", "", *(f"- `{' '.join(line.split())[:300]}`" for line in lost)]
    return "\n".join(lines) + "\n"


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """The parts' JSONs, by name."""
    files = (folder / f"{name}.json" for name in PARTS)
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files if file.exists()}


if __name__ == "__main__":
    print(page(read(RESULTS)), end="")
