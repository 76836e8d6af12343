"""On a GPU: the slots of all texts in one batch, of which a step is one launch; prompts are read whole, as one block.

A text that is written to has a row of memory of fixed size (`FixedCache`), so that a step is the same for every text
and every length, and can be captured once for each size of batch, 1, 2, 4, ... rows. Rows that nobody has are computed
too, and nothing comes of it. Where a text needs more room, all get twice as much, and steps are captured anew.

Not to the bit: a GPU's products add up in another order in a batch of another size.
"""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rhapsode.decode.choice import Scored
from rhapsode.decode.modules import ModuleTexts, alone, has_places
from rhapsode.machine import Capture, eager, on_own_stream
from rhapsode.model import LanguageModel
from rhapsode.state import BlockState, CopyState, FixedCache, State

FEWEST_PLACES = 256  # that a row has room for
LARGEST_DIFFERENCE = 1e-4  # of logits, relative to the largest, between a replayed and an eager step


class GraphTexts(ModuleTexts):
    """What `ModuleTexts` is, on the network's device; most_rows: how many texts there are at most."""

    def __init__(self, network: LanguageModel, most_rows: int, capture: Capture) -> None:
        super().__init__(network)
        self.device = next(network.parameters()).device
        self.capture, self.most_rows = capture, most_rows
        self.rows: dict[str, Tensor] = {}  # the memory of all rows, by the names of a state's tensors
        self.row_of: dict[int, int] = {}  # by slot, of the texts whose memory is in a row
        self.steps: dict[int, Any] = {}  # what makes a step, by the number of rows
        with torch.inference_mode():
            self.places, self.active, self.tokens = (
                torch.zeros(most_rows, dtype=torch.long, device=self.device) for _ in range(3)
            )
            self.logits = torch.zeros(most_rows, self.vocab_size, device=self.device)

    def close(self, slot: int) -> None:
        """Gives the slot back."""
        super().close(slot)
        self.row_of.pop(slot, None)

    def _read(self, slot: int, ids: Sequence[int]) -> Tensor:
        if slot in self.row_of:
            self._unpack(slot)
        logits, self.states[slot] = self.folded(torch.tensor([list(ids)], device=self.device), self.states[slot])
        self.lengths[slot] += len(ids)
        return logits[0]

    @alone
    def score(self, targets: Sequence[int], alternatives: int) -> Scored:
        """What is known of tokens at the positions of the last `read`, from the first on."""
        self._logits = self._logits.cpu()
        return super().score(targets, alternatives)

    def restore(self, slot: int, state: State) -> None:
        """Gives a new text the memory of a state of one row, with its ids."""
        super().restore(slot, state.apply(lambda tensor: tensor.to(self.device)))

    def state(self, slot: int, ids: Sequence[int]) -> State:
        """The memory of a text of these ids, on the CPU, as its only text; with logits."""
        state: State = super().state(slot, ids)
        return state.apply(lambda tensor: tensor.cpu())

    @alone
    def group(self, slots: Sequence[int], tokens: Sequence[int]) -> None:
        """The texts that `step` is about from now on, and the token that each of them reads next."""
        self._slots, self._tokens = list(slots), list(tokens)
        for slot in self.row_of.keys() - slots:
            self._unpack(slot)
        for slot in slots:
            if slot not in self.row_of:
                self._pack(slot)
        active = torch.zeros(self.most_rows, dtype=torch.long)
        active[list(self.row_of.values())] = 1
        self.active.copy_(active)

    @alone
    def step(self) -> Scored:
        """Reads a token of each text of the group, and chooses the next one, which is then the one to be read."""
        while max(self.lengths[slot] for slot in self._slots) + 1 > self._room():
            self._grow()
        rows = [self.row_of[slot] for slot in self._slots]
        count = min(self.most_rows, 1 << max(rows).bit_length())
        read = torch.zeros(count, dtype=torch.long)
        read[rows] = torch.tensor(self._tokens)
        self.tokens[:count].copy_(read)
        if count in self.steps:
            self.steps[count]()
        else:
            self.steps[count] = self._first(count)
        logits = self.logits[:count].cpu()  # the one wait of a step
        found = []
        for slot, row in zip(self._slots, rows, strict=True):
            self.lengths[slot] += 1
            found.append(self.choose(slot, logits[row : row + 1]))
        self._tokens = [each.ids[0] for each in found]
        return self.together(found)

    def _step(self, count: int) -> None:
        """A step of the first `count` rows, as a function of memory that stays where it is: what is captured."""
        rows = {name: tensor[:count] for name, tensor in self.rows.items()}
        state, places = State.from_tensors(rows), self.places[:count]
        blocks = tuple(
            BlockState(hidden, cache and FixedCache(cache.keys, cache.values, places=places))
            for hidden, cache in state.blocks
        )
        copies = state.copies
        if copies is not None:
            copies = CopyState(FixedCache(copies.cache.keys, copies.cache.values, places=places), copies.next_key)
        logits, after = self.folded(self.tokens[:count, None], replace(state, blocks=blocks, copies=copies))
        for name, tensor in after.tensors().items():
            if not has_places(name):  # caches have taken the token in already
                rows[name].copy_(tensor)
        places.add_(self.active[:count])
        self.logits[:count].copy_(logits[:, 0])

    def _first(self, count: int) -> Any:
        """The first step of so many rows; and what makes those to come."""

        def step() -> None:
            self._step(count)

        if self.capture is eager:
            step()
            return step
        changing = {name: tensor for name, tensor in self.rows.items() if not has_places(name)}
        changing |= {"places": self.places}
        before = {name: tensor.clone() for name, tensor in changing.items()}

        def go_back() -> None:
            for name, tensor in changing.items():
                tensor.copy_(before[name])

        on_own_stream(self.device, step)
        expected = self.logits[:count].clone()
        try:
            go_back()
            replay = self.capture(step)
            go_back()
            self.logits.zero_()
            replay()
        except RuntimeError as error:
            reason = " ".join(str(error).split())
        else:
            active = self.active[:count] > 0
            difference = (self.logits[:count] - expected)[active].abs().max()
            if difference <= LARGEST_DIFFERENCE * expected[active].abs().max():
                return replay
            reason = f"its logits differ by {float(difference):.1e}"
        warnings.warn(f"a step of {count} texts is not captured: {reason}", RuntimeWarning, stacklevel=2)
        self.capture, self.steps = eager, {}  # of other sizes too: PyTorch's generator is not the one they know
        go_back()
        step()
        return step

    # -- a text's memory: a state of its own, or a row ---------------------------------------------------------------

    def _room(self) -> int:
        return next((part.shape[2] for name, part in self.rows.items() if has_places(name)), 1 << 62)

    def _pack(self, slot: int) -> None:
        """From a state of its own into a row; that of a text that has read nothing is all zeros."""
        state, length = self.states[slot], self.lengths[slot]
        if not self.rows:
            self._make()
        while length > self._room():
            self._grow()
        taken = set(self.row_of.values())
        row = next(row for row in range(self.most_rows) if row not in taken)
        for part in self.rows.values():
            part[row].zero_()
        for name, tensor in state.tensors().items() if state else ():
            if has_places(name):
                self.rows[name][row, :, : tensor.shape[2]] = tensor[0]
            else:
                self.rows[name][row] = tensor[0]
        self.places[row] = length
        self.states[slot], self.row_of[slot] = None, row

    def _unpack(self, slot: int) -> None:
        """From its row into a state of its own."""
        row, length = self.row_of.pop(slot), self.lengths[slot]
        parts = {name: tensor[row : row + 1] for name, tensor in self.rows.items()}
        self.states[slot] = State.from_tensors(
            {name: (part[:, :, :length] if has_places(name) else part).clone() for name, part in parts.items()}
        )

    def _make(self) -> None:
        """Rows for all texts, of the shapes that the state of one has."""
        _, state = self.folded(torch.zeros(1, 1, dtype=torch.long, device=self.device), None)
        for name, tensor in state.tensors().items():
            shape = [self.most_rows, *tensor.shape[1:]]
            if has_places(name):
                shape[2] = FEWEST_PLACES
            self.rows[name] = torch.zeros(shape, dtype=tensor.dtype, device=self.device)

    def _grow(self) -> None:
        """Twice the room; steps that were captured know the old one."""
        for name, tensor in self.rows.items():
            if has_places(name):
                self.rows[name] = torch.cat((tensor, torch.zeros_like(tensor)), dim=2)
        self.steps = {}
