"""Which licences the packages have that Rhapsode is installed with.

    python tests/supply/licences.py > docs/licences.md

As the packages themselves say it, in the environment that runs this.
"""

import re
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from lock import LOCK, pinned

LONGEST = 60  # characters; what is longer is a licence's whole text
BESIDE_THE_LOCK = {"torch", "triton"}  # their versions are in the Makefile


def licence_of(name: str) -> str:
    """What a package says of its licence: its expression, else its classifiers, else its own words."""
    about = metadata.metadata(name)
    if expression := about.get("License-Expression"):
        return expression
    classified = [each.split(" :: ")[-1] for each in about.get_all("Classifier") or [] if each.startswith("License ::")]
    named = [each.removesuffix(" License") for each in classified if each != "OSI Approved"]
    words = (about.get("License") or "").strip().splitlines()
    return ", ".join(named) or (words[0] if words and len(words[0]) <= LONGEST else "not said")


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def installed() -> dict[str, str]:
    """The version of each package of the lock, and of torch and triton, that is installed here."""
    places = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]  # not what a package brings for itself
    found = metadata.distributions(path=places)
    names = {normal(each.metadata["Name"]): each.version for each in found if each.metadata["Name"]}
    locked = {normal(name) for name in pinned(LOCK.read_text(encoding="utf-8"))} | BESIDE_THE_LOCK
    return {name: names[name] for name in sorted(locked & names.keys())}


def page() -> str:
    lines = [
        "# Licences",
        "",
        "Rhapsode is under the MIT licence. The packages that it is installed with, tools of its developers",
        "included, say of themselves (`python tests/supply/licences.py`, Linux; other systems have a few more):",
        "",
        "| package | licence |",
        "|---|---|",
        *(f"| {name} | {licence_of(name)} |" for name in installed()),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
