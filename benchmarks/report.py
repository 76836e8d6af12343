"""What stands beside every result: the commit and the machine; and where results go."""

import json
import subprocess
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results"
FIGURES = HERE.parent / "docs" / "figures"


def about() -> dict[str, Any]:
    """The commit of the checkout ("-dirty" where its code is not what was committed), and what it runs on."""

    def git(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(["git", *arguments], cwd=HERE, capture_output=True, text=True, check=False)

    commit = git("rev-parse", "--short", "HEAD").stdout.strip()
    if git("diff", "--quiet", "HEAD", "--", "../src", "*.py").returncode:
        commit += "-dirty"
    from rhapsode.bench import machine  # and with it torch, which a child that measures its memory must not load

    return {"commit": commit, **machine()}


def write(name: str, result: dict[str, Any]) -> None:
    """Writes results/NAME.json."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read(name: str) -> dict[str, Any]:
    """Reads results/NAME.json; empty where there is none."""
    file = RESULTS / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
