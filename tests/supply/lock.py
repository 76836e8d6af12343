"""Resolves requirements.lock anew: all packages but torch and triton, for all systems, with the digests of their files.

    python tests/supply/lock.py             needs uv; keeps the versions that are in the lock already
    python tests/supply/lock.py --upgrade   takes the newest

torch is not in it: it is installed first, by its version, and brings packages of its own for each kind of GPU and
system that no one lock can list, triton among them, of which each torch wants one version. What it needs everywhere is
in the lock.
"""

import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "requirements.lock"
NEEDED_BY_TORCH = ("filelock", "fsspec", "jinja2", "mpmath", "networkx", "setuptools", "sympy", "typing-extensions")
NEEDED_TO_INSTALL = ("hatchling", "editables")
HEADER = """# Pinned versions with the SHA-256 of their files, for all systems; `make lock` resolves them anew.
# torch is installed before them, by the version in the Makefile.
"""


def wanted() -> list[str]:
    """The requirements of the package and all its extras, without torch and triton."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [requirement for extra in project["optional-dependencies"].values() for requirement in extra]
    found = [each for each in (*project["dependencies"], *extras) if not re.match(r"(torch|triton|rhapsode)\b", each)]
    return sorted({*found, *NEEDED_BY_TORCH, *NEEDED_TO_INSTALL})


def pinned(text: str) -> dict[str, str]:
    """The versions in a lock, by name."""
    return dict(re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", text, re.MULTILINE))


def main(arguments: list[str]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        needs, pins, out = (Path(folder) / name for name in ("needs.in", "pins.txt", "lock.txt"))
        needs.write_text("\n".join(wanted()) + "\n")
        text = LOCK.read_text(encoding="utf-8")
        before = {} if "--upgrade" in arguments else pinned(text)
        once = {name for name in before if len(re.findall(rf"^{re.escape(name)}==", text, re.MULTILINE)) == 1}
        pins.write_text("".join(f"{name}=={before[name]}\n" for name in before if name in once and name != "torch"))
        command = ["uv", "pip", "compile", needs, "--universal", "--python-version", "3.11", "--generate-hashes"]
        command += ["--no-header", "--no-annotate", "--quiet", "--constraints", pins, "--output-file", out]
        subprocess.run([str(word) for word in command], check=True)
        LOCK.write_text(HEADER + out.read_text(encoding="utf-8"), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
