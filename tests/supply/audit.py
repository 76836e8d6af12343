"""Asks whether a package in requirements.lock has a known hole; needs a network and pip-audit.

Packages beside the lock are not looked at; they are named. Exit code 0: none is known; 1: some are, listed; 2: the
database did not answer, so nothing is known either way.
"""

import re
import subprocess
import sys
from pathlib import Path

import licences

LOCK = Path(__file__).resolve().parents[2] / "requirements.lock"
MAKEFILE = LOCK.with_name("Makefile")
BESIDE = [
    f"{name} {version}"
    for name in sorted(licences.BESIDE_THE_LOCK)
    for version in re.findall(rf"^{name.upper()} := (\S+)", MAKEFILE.read_text(encoding="utf-8"), re.MULTILINE)
]
UNSEEN = (
    f"not looked at, since they are installed by version and stand in no lock: {', '.join(BESIDE)}, and what they bring"
)
OFFLINE = "not audited: the database of known holes did not answer; there is no network, or it is not let through"


def main() -> int:
    print(UNSEEN, file=sys.stderr)
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(LOCK), "--disable-pip", "--progress-spinner=off"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        print(OFFLINE, file=sys.stderr)
        return 2
    if "No module named pip_audit" in result.stderr:
        print("pip-audit is not installed: pip install pip-audit", file=sys.stderr)
        return 2
    if result.returncode == 0:
        print("no known holes in requirements.lock")
        return 0
    if "Found" in result.stderr and "known vulnerabilit" in result.stderr:
        print(result.stdout or result.stderr)
        return 1
    print(OFFLINE, file=sys.stderr)
    print((result.stderr.strip().splitlines() or ["no answer"])[-1], file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
