"""The memory of the texts that the C kernel reads and continues, and the calls that do it.

A text has a slot: hidden vectors, and pages of PAGE tokens with what attention and a copy head keep. A full page never
changes again, so texts with the same beginning share theirs.
"""

from collections.abc import Sequence
from ctypes import addressof
from typing import Any, NamedTuple

import numpy as np
import torch

from rhapsode.decode.choice import Scored
from rhapsode.decode.config import SampleConfig
from rhapsode.decode.kernel import CHOICE, PAGE, Network, Packed, Results, Rows, aligned
from rhapsode.state import BlockState, Cache, CopyState, State

POINTER = np.dtype(np.uintp)


class Edge(NamedTuple):
    """A text's memory where a page ends: that page, the hidden vectors, and the last token."""

    page: np.ndarray
    hidden: np.ndarray
    token: int

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return self.page.nbytes + self.hidden.nbytes


class _Results:
    """Room for what the kernel says of `count` tokens with `most` alternatives each."""

    def __init__(self, count: int, most: int) -> None:
        self.most = most
        self.ids, self.scores = np.zeros(count, np.int32), np.zeros(count)
        self.other_ids, self.other_scores = np.zeros((count, most), np.int32), np.zeros((count, most))
        arrays = [each.ctypes.data for each in (self.ids, self.scores, self.other_ids, self.other_scores)]
        self.structure = Results(arrays[0], arrays[1], most, arrays[2], arrays[3])
        self.address = addressof(self.structure)

    def read(self) -> Scored:
        likeliest = list(zip(self.other_ids.tolist(), self.other_scores.tolist(), strict=True)) if self.most else []
        return Scored(self.ids.tolist(), self.scores.tolist(), likeliest)


class Texts:
    """Slots for texts of one model; room grows by doubling as more texts, and longer ones, need it."""

    def __init__(self, packed: Packed) -> None:
        self.packed, self.library = packed, packed.library
        self.hidden = np.zeros((0, packed.hidden_size), np.float32)
        self.pointers = np.zeros((0, 4), POINTER)
        self.lengths, self.tokens = np.zeros(0, np.int32), np.zeros(0, np.int32)
        self.choices = np.zeros(0, CHOICE)
        self._pages: list[list[np.ndarray]] = []
        self._options: list[list[np.ndarray]] = []  # what a slot's choice points to
        self._free: list[int] = []
        self._network = Network.from_buffer_copy(packed.model)
        self._rows = Rows()
        self._scratch: list[np.ndarray] = []
        self._positions = 0
        self._reserve(1)
        self._room = 0  # steps until a text of the group needs a page
        self.at_edge = False  # whether one of them has just filled one

    # -- slots -------------------------------------------------------------------------------------------------------

    def open(self, config: SampleConfig, alternatives: int = 0, seen: Sequence[int] = ()) -> int:
        """A slot for a text that has read nothing. seen: the ids in it that a repetition penalty counts."""
        if not self._free:
            self._more_slots()
        slot = self._free.pop()
        self.hidden[slot], self.lengths[slot], self.tokens[slot] = 0, 0, 0
        size = self.packed.config.vocab_size
        addresses, self._options[slot] = [], []
        penalised = config.frequency_penalty != 0 or config.presence_penalty != 0
        for wanted, kind, values in (
            (bool(config.logit_bias), np.float32, config.logit_bias),
            (config.repetition_penalty != 1, np.uint8, dict.fromkeys(seen, 1)),
            (penalised, np.int32, {}),
        ):
            table = np.zeros(size if wanted else 0, kind)
            for id, value in values.items() if wanted else ():
                table[id] = value
            self._options[slot].append(table)
            addresses.append(table.ctypes.data if wanted else 0)
        numbers = (config.temperature, config.top_p, config.min_p, config.repetition_penalty)
        penalties = (config.frequency_penalty, config.presence_penalty)
        top_k = min(config.top_k, size)
        self.choices[slot] = (*numbers, *penalties, config.seed, 0, *addresses, top_k, min(alternatives, size))
        return slot

    def length(self, slot: int) -> int:
        """How many tokens a text has read."""
        return int(self.lengths[slot])

    def close(self, slot: int) -> None:
        """Gives the slot back."""
        self._pages[slot], self._options[slot] = [], []
        self._free.append(slot)

    def _more_slots(self) -> None:
        before = len(self._pages)
        count = max(1, before)
        self.hidden = _grown(self.hidden, before + count)
        self.pointers = _grown(self.pointers, before + count)
        self.lengths, self.tokens = _grown(self.lengths, before + count), _grown(self.tokens, before + count)
        self.choices = _grown(self.choices, before + count)
        self._pages += [[] for _ in range(count)]
        self._options += [[] for _ in range(count)]
        self._free += reversed(range(before, before + count))
        self._point()

    def _point(self) -> None:
        """Tells the kernel where everything lies."""
        arrays = (self.hidden, self.pointers, self.lengths, self.tokens)
        addresses = [each.ctypes.data for each in arrays]
        self._rows = Rows(*addresses, self.packed.hidden_size, self.pointers.shape[1])
        self._network_at, self._rows_at = addressof(self._network), addressof(self._rows)
        self._choices_at = self.choices.ctypes.data

    def _reserve(self, positions: int) -> None:
        """Scratch for so many positions at once, and for the longest text."""
        positions = max(positions, self._positions)
        if positions > self._positions:
            positions = max(positions, 2 * self._positions)
        network, layout = self._network, self.packed.layout
        sizes = {
            **dict.fromkeys(("x", "u", "a", "b"), (positions * network.stride, np.float32)),
            "logits": (layout.logits_at_once * network.padded, np.float32),
            "scores": (self.pointers.shape[1] * PAGE, np.float32),
            "weights": (network.padded, np.float32),
            **dict.fromkeys(("slot", "place"), (positions, np.int32)),
            "order": (network.padded, np.int32),
            **dict.fromkeys(("from_", "to"), (positions, POINTER)),
        }
        self._scratch = [aligned(size, kind) for size, kind in sizes.values()]
        for name, array in zip(sizes, self._scratch, strict=True):
            setattr(network, name, array.ctypes.data)
        self._positions = positions
        self._point()

    def _add_page(self, slot: int, page: np.ndarray) -> None:
        pages, most = self._pages[slot], self.pointers.shape[1]
        if len(pages) == most:
            wider = np.zeros((len(self.pointers), 2 * most), POINTER)
            wider[:, :most] = self.pointers
            self.pointers = wider
            self._reserve(0)
        self.pointers[slot, len(pages)] = page.ctypes.data
        pages.append(page)

    def _make_room(self, slot: int, tokens: int) -> None:
        """Pages for so many tokens more."""
        for _ in range(len(self._pages[slot]), -(-(int(self.lengths[slot]) + tokens) // PAGE)):
            self._add_page(slot, aligned(self.packed.page_size, np.float32))

    # -- reading and writing -----------------------------------------------------------------------------------------

    def read(self, pieces: Sequence[tuple[int, Sequence[int]]]) -> None:
        """Reads tokens of several texts: (slot, ids)."""
        which, counts = [slot for slot, _ in pieces], [len(ids) for _, ids in pieces]
        for slot, count in zip(which, counts, strict=True):
            self._make_room(slot, count)
        if sum(counts) > self._positions:
            self._reserve(sum(counts))
        arrays = [np.array(each, np.int32) for each in (which, counts, [id for _, ids in pieces for id in ids])]
        addresses = [each.ctypes.data for each in arrays]
        self.library.rhapsode_read(self._network_at, self._rows_at, len(which), *addresses)
        self._last = sum(counts) - 1

    def score(self, targets: Sequence[int], alternatives: int) -> Scored:
        """What is known of tokens at the positions of the last `read`, from the first on."""
        results = self._results(len(targets), alternatives)
        results.ids[:] = targets
        self.library.rhapsode_score(self._network_at, self._rows_at, len(targets), results.address)
        return results.read()

    def score_after(self, logits: torch.Tensor, target: int, alternatives: int) -> Scored:
        """What is known of a token by the logits (1, V) in its place."""
        results, padded = self._results(1, alternatives), self._padded(logits)
        results.ids[0] = target
        self.library.rhapsode_score_one(self._network_at, padded.ctypes.data, results.address)
        return results.read()

    def choose(self, slot: int, logits: torch.Tensor) -> Scored:
        """The next token of a text by logits (1, V)."""
        results, padded = self._results(1, int(self.choices["alternatives"][slot])), self._padded(logits)
        choice = self._choices_at + slot * CHOICE.itemsize
        self.library.rhapsode_choose(self._network_at, choice, padded.ctypes.data, results.address)
        return results.read()

    def group(self, slots: Sequence[int], tokens: Sequence[int]) -> None:
        """The texts that `step` is about from now on, and the token that each of them reads next."""
        if len(slots) > self._positions:
            self._reserve(len(slots))
        which = np.array(slots, np.int32)
        results = self._results(len(slots), int(self.choices["alternatives"][which].max(initial=0)))
        results.ids[:] = tokens
        ones = np.ones(len(slots), np.int32)
        self._group = which, results, (which.ctypes.data, ones.ctypes.data, results.address), ones
        self._room = 0

    def step(self) -> Scored:
        """Reads a token of each text of the group, and chooses the next one, which is then the one to be read."""
        which, results, addresses, _ = self._group
        if not self._room:
            for slot in which.tolist():
                self._make_room(slot, 1)
            self._room = PAGE - int((self.lengths[which] % PAGE).max())
        self.library.rhapsode_step(self._network_at, self._rows_at, self._choices_at, len(which), *addresses)
        self._room -= 1
        self.at_edge = not self._room
        return results.read()

    def _results(self, count: int, alternatives: int) -> _Results:
        return _Results(count, min(alternatives, self.packed.config.vocab_size))

    def _padded(self, logits: torch.Tensor) -> np.ndarray:
        padded = aligned(self._network.padded, np.float32)
        padded[:] = np.finfo(np.float32).min
        padded[: logits.shape[1]] = logits[0].detach().float().cpu().numpy()
        return padded

    # -- memory in and out -------------------------------------------------------------------------------------------

    def edge(self, slot: int) -> Edge:
        """The memory of a text whose last page is full."""
        last = self.lengths[slot] // PAGE - 1
        return Edge(self._pages[slot][last], self.hidden[slot].copy(), int(self.tokens[slot]))

    def resume(self, slot: int, edges: Sequence[Edge]) -> None:
        """Gives a text that has read whole pages, at the last edge, the pages and the memory of more edges."""
        for edge in edges:
            self._add_page(slot, edge.page)
        self.hidden[slot], self.tokens[slot] = edges[-1].hidden, edges[-1].token
        self.lengths[slot] += PAGE * len(edges)

    def restore(self, slot: int, state: State) -> None:
        """Gives a new text the memory of a state of one row, with its ids."""
        assert state.ids is not None
        caches = [block.cache for block in state.blocks if block.cache is not None]
        caches += [state.copies.cache] if state.copies is not None else []
        self._make_room(slot, caches[0].keys.shape[2] if caches else 0)
        self.lengths[slot] = caches[0].keys.shape[2] if caches else state.ids.shape[1]
        self.tokens[slot] = int(state.ids[0, -1]) if state.token is None else int(state.token[0])
        for block, about in zip(state.blocks, self._blocks, strict=True):
            self._hidden(slot, about.hidden_offset, about.hidden)[:] = _numbers(block.hidden[0])
            if block.cache is not None:
                keys, values = self._views(slot, about)
                _scatter(_numbers(block.cache.keys[0]).transpose(0, 2, 1), keys, 2)
                _scatter(_numbers(block.cache.values[0]), values, 1)
        if state.copies is not None:
            about = self._network.copies
            self._hidden(slot, about.hidden_offset, about.size)[:] = _numbers(state.copies.next_key[0])
            keys, ids = self._copies(slot)
            _scatter(_numbers(state.copies.cache.keys[0, 0]).T, keys, 1)
            _scatter(state.copies.ids[0].cpu().numpy(), ids, 0)

    def state(self, slot: int, ids: Sequence[int]) -> State:
        """The memory of a text of these ids, which have been read by the last `read`, as its only text; with logits."""
        logits = aligned(self._network.padded, np.float32)
        self.library.rhapsode_logits(self._network_at, self._rows_at, self._last, logits.ctypes.data)
        length, blocks = int(self.lengths[slot]), []
        for about in self._blocks:
            hidden, cache = self._hidden(slot, about.hidden_offset, about.hidden), None
            if about.heads:
                keys, values = self._views(slot, about)
                cache = Cache(_tensor(_gather(keys, 2, length).transpose(0, 2, 1)), _tensor(_gather(values, 1, length)))
            blocks.append(BlockState(_tensor(hidden), cache))
        copies, token = None, None
        if self._network.copies.size:
            about = self._network.copies
            keys, copied = self._copies(slot)
            cache = Cache(
                _tensor(_gather(keys, 1, length).T[None]),
                _tensor(_gather(copied, 0, length)[None, :, None].astype(np.int64)),
            )
            copies = CopyState(cache, _tensor(self._hidden(slot, about.hidden_offset, about.size)))
        if self._network.pair_rows:
            token = torch.tensor([int(self.tokens[slot])])
        scores = _tensor(logits[: self.packed.config.vocab_size])
        return State(tuple(blocks), token, copies, scores, torch.tensor([list(ids)]))

    @property
    def _blocks(self) -> list[Any]:
        return [self._network.blocks[i] for i in range(self._network.num_blocks)]

    def _hidden(self, slot: int, offset: int, size: int) -> np.ndarray:
        return self.hidden[slot, offset : offset + size]

    def _parts(self, slot: int, begin: int, size: int) -> list[np.ndarray]:
        """A part of each page of a text."""
        return [page[begin : begin + size] for page in self._pages[slot]]

    def _views(self, slot: int, about: Any) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Keys (N, K, PAGE) and values (N, PAGE, V) in each page."""
        heads, key_dim, padded = about.heads, about.key_dim, about.padded_value
        begin, size = about.page_offset, heads * key_dim * PAGE
        keys = [part.reshape(heads, key_dim, PAGE) for part in self._parts(slot, begin, size)]
        values = self._parts(slot, begin + size, heads * PAGE * padded)
        return keys, [part.reshape(heads, PAGE, padded)[..., : about.value_dim] for part in values]

    def _copies(self, slot: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Keys (d, PAGE) and ids (PAGE) of what may be copied, in each page."""
        about = self._network.copies
        begin, size = about.page_offset, about.size * PAGE
        keys = [part.reshape(about.size, PAGE) for part in self._parts(slot, begin, size)]
        return keys, [part.view(np.int32) for part in self._parts(slot, begin + size, PAGE)]


def _scatter(values: np.ndarray, pages: list[np.ndarray], axis: int) -> None:
    """Puts values into pages, PAGE of an axis in each."""
    for number, page in enumerate(pages):
        some = values.take(range(number * PAGE, min((number + 1) * PAGE, values.shape[axis])), axis)
        page[(slice(None),) * axis + (slice(some.shape[axis]),)] = some


def _gather(pages: list[np.ndarray], axis: int, length: int) -> np.ndarray:
    """The first `length` of an axis that goes on from page to page."""
    whole = np.concatenate(pages, axis)
    return whole[(slice(None),) * axis + (slice(length),)]


def _numbers(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().float().cpu().numpy()


def _tensor(array: np.ndarray) -> torch.Tensor:
    """A copy, as a batch of one."""
    return torch.from_numpy(array.copy(order="C"))[None]


def _grown(array: np.ndarray, count: int) -> np.ndarray:
    """The array with zeros behind it, up to `count` rows."""
    whole = np.zeros((count, *array.shape[1:]), array.dtype)
    whole[: len(array)] = array
    return whole
