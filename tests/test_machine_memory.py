"""Whether freed memory is found again where it was."""

import ctypes
import subprocess
import sys

import pytest

from rhapsode.machine import keep_freed_memory

HAS_MALLOPT = sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt")

FAULTS = """
import resource, torch
from rhapsode.machine import keep_freed_memory
{call}
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(60):
    torch.ones(16_000_000)  # 64 MB, and gone
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(call: str) -> int:
    """Pages that the system had to hand out for sixty tensors of one size, one after the other."""
    result = subprocess.run(
        [sys.executable, "-c", FAULTS.format(call=call)], capture_output=True, text=True, check=True
    )
    return int(result.stdout)


@pytest.mark.skipif(not HAS_MALLOPT, reason="the C library has no mallopt")
def test_freed_memory_is_not_asked_for_again() -> None:
    """Would catch a setting that the C library ignores."""
    assert 4 * faults("keep_freed_memory()") < faults("")


def test_another_system_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", None)  # calling it would raise
    keep_freed_memory()
