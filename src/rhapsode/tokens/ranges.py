"""Ids that are not one array in memory or in a mapped file: those of several shards, or of a file elsewhere.

Both are asked as an array is, by a slice or by positions, and give an array.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np

from rhapsode.sources.remote import file_system, reaching

BLOCK_BYTES = 1 << 16  # that are read at once: a window is some hundred bytes, a request takes as long as a block
MOST_BLOCKS = 4096  # that are kept: 256 MB


class JoinedIds:
    """The ids of several parts, one behind the other."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self.parts = list(parts)
        self.dtype: np.dtype = parts[0].dtype
        self.ends = np.cumsum([len(part) for part in parts])
        self.starts = self.ends - [len(part) for part in parts]

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, places: slice | np.ndarray) -> np.ndarray:
        if isinstance(places, slice):
            begin, end, _ = places.indices(len(self))
            first, last = np.searchsorted(self.ends, [begin, max(begin, end - 1)], side="right")
            inside = range(first, min(last, len(self.parts) - 1) + 1)
            cut = [self.parts[i][max(0, begin - self.starts[i]) : max(0, end - self.starts[i])] for i in inside]
            return np.concatenate([np.asarray(piece) for piece in cut])
        owners = np.searchsorted(self.ends, places, side="right")
        found = np.empty(np.shape(places), self.dtype)
        for i in np.unique(owners):
            own = owners == i
            found[own] = self.parts[i][places[own] - self.starts[i]]
        return found


class RangedIds:
    """The ids in a file at an address, read a block at a time where they are asked for; the last blocks are kept."""

    def __init__(self, location: str, dtype: str, count: int) -> None:
        self.location, self.dtype, self.count = location, np.dtype(dtype), count
        self.system, self.path = file_system(location)
        self.per_block = BLOCK_BYTES // self.dtype.itemsize
        self.blocks: OrderedDict[int, np.ndarray] = OrderedDict()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, places: slice | np.ndarray) -> np.ndarray:
        if isinstance(places, slice):
            places = np.arange(*places.indices(self.count))
        numbers, within = np.divmod(places, self.per_block)
        wanted = np.unique(numbers)
        blocks = self._blocks([int(number) for number in wanted])
        found = np.empty(np.shape(places), self.dtype)
        for number, block in zip(wanted, blocks, strict=True):
            own = numbers == number
            found[own] = block[within[own]]
        return found

    def _blocks(self, numbers: Sequence[int]) -> list[np.ndarray]:
        """Blocks by number; those that are missing are read together."""
        missing = [number for number in numbers if number not in self.blocks]
        if missing:
            begins = [number * BLOCK_BYTES for number in missing]
            whole = self.count * self.dtype.itemsize
            ends = [min(begin + BLOCK_BYTES, whole) for begin in begins]
            with reaching(self.location):
                contents = self.system.cat_ranges([self.path] * len(missing), begins, ends)
            for number, begin, end, content in zip(missing, begins, ends, contents, strict=True):
                if len(content) != end - begin:
                    raise OSError(f"{self.location}: damaged, it has no {end - begin:,} bytes from {begin:,} on")
                self.blocks[number] = np.frombuffer(content, self.dtype)
        found = [self.blocks[number] for number in numbers]
        for number in numbers:
            self.blocks.move_to_end(number)
        while len(self.blocks) > max(MOST_BLOCKS, len(numbers)):
            self.blocks.popitem(last=False)
        return found
