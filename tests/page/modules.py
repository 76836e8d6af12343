"""The page's modules in Node, without a browser: what a script prints comes back as JSON."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).resolve().parents[2] / "src" / "rhapsode" / "serve" / "page"


def run_module(folder: Path, script: str, given: Any = None) -> Any:
    """Runs an ES module beside the page's; it finds `given` in a variable of that name and ends with `answer(...)`.

    Skips the test where there is no Node.
    """
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs Node.js")
    shutil.copytree(PAGE, folder, dirs_exist_ok=True)
    (folder / "package.json").write_text('{"type": "module"}')
    (folder / "given.json").write_text(json.dumps(given), encoding="utf-8")
    lines = [
        'import { readFileSync } from "node:fs";',
        'const given = JSON.parse(readFileSync("given.json", "utf8"));',
        "const listed = (_, v) => (ArrayBuffer.isView(v) ? Array.from(v) : v);",
        "const answer = (found) => console.log(JSON.stringify(found, listed));",
    ]
    (folder / "script.js").write_text("\n".join([*lines, script]), encoding="utf-8")
    done = subprocess.run([node, "script.js"], cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
