"""Beginnings of texts that were read before, page by page: bounded, counted, the least recently used forgotten first.

A page of PAGE ids is found by a digest of all ids up to its end. What is kept of it is a text's memory there, of which
the page itself is shared with the texts that have it, never copied.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np

from rhapsode.decode.kernel import PAGE

ABOUT_ENTRY = 500  # bytes that an entry takes beside the memory that it keeps


def page_key(before: bytes, ids: Sequence[int]) -> bytes:
    """The name of a page of ids after the page named `before`, b"" at the beginning of a text."""
    return hashlib.blake2b(before + np.array(ids, "<i4").tobytes(), digest_size=16).digest()


def page_keys(ids: Sequence[int]) -> list[bytes]:
    """The names of all whole pages of a text."""
    keys = [b""]
    for begin in range(0, len(ids) - PAGE + 1, PAGE):
        keys.append(page_key(keys[-1], ids[begin : begin + PAGE]))
    return keys[1:]


class Prefixes:
    """Kept memory by the page's name; several threads may use it."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes, self.bytes = most_bytes, 0
        self._kept: OrderedDict[bytes, Any] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, keys: Sequence[bytes], begin: int = 0) -> list[Any]:
        """What is kept of a text's pages from number `begin` on, as far as it is there without a gap."""
        found: list[Any] = []
        with self._lock:
            for key in keys[begin:]:
                kept = self._kept.get(key)
                if kept is None:
                    break
                found.append(kept)
            # A page is of use only with those before it: those are used last, so that they outlive it.
            for key in reversed(keys[: begin + len(found)] if found else ()):
                if key in self._kept:
                    self._kept.move_to_end(key)
        return found

    def keep(self, keys: Sequence[bytes], kept: Any) -> None:
        """Keeps the memory at the end of the last of these pages, which knows its size, if those before are there."""
        with self._lock:
            if keys[-1] in self._kept or any(key not in self._kept for key in keys[:-1]):
                return
            self._kept[keys[-1]] = kept
            self.bytes += kept.nbytes + ABOUT_ENTRY
            for key in reversed(keys):
                self._kept.move_to_end(key)
            while self.bytes > self.most_bytes:
                _, forgotten = self._kept.popitem(last=False)
                self.bytes -= forgotten.nbytes + ABOUT_ENTRY
