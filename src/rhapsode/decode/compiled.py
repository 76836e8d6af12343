"""The C kernel as a library: compiled when it is first used, by the machine's own compiler, and kept in the cache.

Compiled for the very processor that it runs on, which a wheel cannot be, in about a second, once. Where that fails
(no compiler, no folder to write to, a processor on which a row's sums depend on its neighbours), decoding falls back to
the model's own modules without a word: `Engine.backend` says which it is.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from rhapsode.files import cache_root, replacing
from rhapsode.machine import processor_features

SOURCES = Path(__file__).with_name("native")
FLAGS = ("-O3", "-std=gnu11", "-shared", "-fPIC", "-Wno-psabi")
TUNINGS = ("-march=native", "-mcpu=native", "")  # the first that the compiler knows; for ARM it is the second
COMPILERS = ("cc", "gcc", "clang")
LONGEST_SECONDS = 120


@functools.cache
def kernel_library() -> ctypes.CDLL | None:
    """The compiled kernel, or None where there is none to be had."""
    if os.environ.get("RHAPSODE_KERNEL") == "none":
        return None
    for command in _commands():
        path = cache_root() / "kernel" / f"{_key(command)}.so"
        try:
            if not path.is_file():
                path.parent.mkdir(parents=True, exist_ok=True)
                with replacing(path) as temporary:
                    _compile(command, temporary)
            return _declared(ctypes.CDLL(str(path)))
        except (OSError, subprocess.SubprocessError):
            continue
    return None


def _commands() -> Iterator[list[str]]:
    """What may compile it, the best first."""
    named = shlex.split(os.environ.get("CC", ""))
    compilers = [named] if named else [[path] for name in COMPILERS if (path := shutil.which(name))][:1]
    for compiler in compilers:
        for tuning in TUNINGS:
            yield [*compiler, *FLAGS, *([tuning] if tuning else [])]


def _key(command: list[str]) -> str:
    """Names what the library is made of and made for."""
    digest = hashlib.sha256(" ".join([*command, platform.system(), platform.machine(), processor_features()]).encode())
    for file in sorted(SOURCES.iterdir()):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:32]


def _compile(command: list[str], path: Path) -> None:
    whole = [*command, str(SOURCES / "kernel.c"), "-o", str(path), "-lm"]
    subprocess.run(whole, check=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=LONGEST_SECONDS)


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    """The library with the types of its functions' arguments: addresses (p) and numbers (i)."""
    arguments = {
        **{"read": "ppippp", "logits": "ppip", "choose": "pppp", "step": "pppippp", "score": "ppip"},
        **{"score_one": "ppp", "apply": "ppippi", "sizes": "p"},
    }
    for name, letters in arguments.items():
        function = getattr(library, f"rhapsode_{name}")
        function.argtypes = [ctypes.c_void_p if letter == "p" else ctypes.c_int64 for letter in letters]
        function.restype = None
    return library
