"""Where there is no compiled kernel: the same slots, read and continued by the model's own modules, one text at a time.

A batch of one is the tile that every machine computes in one way: a text's numbers cannot depend on the others. The
price is that many texts at once are no faster than one after another.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rhapsode.decode.choice import Chooser, Scored, score_tokens
from rhapsode.decode.config import SampleConfig
from rhapsode.decode.kernel import PAGE
from rhapsode.model import LanguageModel
from rhapsode.state import Cache, State


class StateEdge(NamedTuple):
    """A text's memory where a page ends: caches of that page, and all that has no places, by name."""

    tensors: dict[str, Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def alone(method: Callable[..., Any]) -> Callable[..., Any]:
    """Without gradients, on one thread: sums are made in another order on several."""

    @wraps(method)
    def on_one_thread(*arguments: Any) -> Any:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with torch.inference_mode():
                return method(*arguments)
        finally:
            torch.set_num_threads(threads)

    return on_one_thread


class ModuleTexts:
    """What `Texts` is, by modules. Each piece that `read` is given is one call of the model."""

    def __init__(self, network: LanguageModel) -> None:
        self.network, self.vocab_size = network, network.config.vocab_size
        self.folded = network.folded()
        self.states: dict[int, State | None] = {}
        self.choosers: dict[int, Chooser] = {}
        self.alternatives: dict[int, int] = {}
        self.lengths: dict[int, int] = {}
        self.at_edge = False  # where a text was written, a page is not to the bit what it is where one was read

    def open(self, config: SampleConfig, alternatives: int = 0, seen: Sequence[int] = ()) -> int:
        """A slot for a text that has read nothing. seen: the ids in it that a repetition penalty counts."""
        slot = len(self.states)
        slot = next((i for i in range(slot) if i not in self.states), slot)
        self.states[slot], self.lengths[slot], self.alternatives[slot] = None, 0, alternatives
        self.choosers[slot] = Chooser(config, self.vocab_size, torch.tensor(list(seen), dtype=torch.long))
        return slot

    def length(self, slot: int) -> int:
        """How many tokens a text has read."""
        return self.lengths[slot]

    def close(self, slot: int) -> None:
        """Gives the slot back."""
        del self.states[slot], self.lengths[slot], self.choosers[slot], self.alternatives[slot]

    @alone
    def read(self, pieces: Sequence[tuple[int, Sequence[int]]]) -> None:
        """Reads tokens of several texts: (slot, ids)."""
        self._logits = torch.cat([self._read(slot, ids) for slot, ids in pieces])

    def _read(self, slot: int, ids: Sequence[int]) -> Tensor:
        logits, self.states[slot] = self.folded(torch.tensor([list(ids)]), self.states[slot])
        self.lengths[slot] += len(ids)
        return logits[0]

    @alone
    def score(self, targets: Sequence[int], alternatives: int) -> Scored:
        """What is known of tokens at the positions of the last `read`, from the first on."""
        return score_tokens(list(targets), self._logits[: len(targets)], alternatives)

    @alone
    def score_after(self, logits: Tensor, target: int, alternatives: int) -> Scored:
        """What is known of a token by the logits (1, V) in its place."""
        return score_tokens([target], logits, alternatives)

    @alone
    def choose(self, slot: int, logits: Tensor) -> Scored:
        """The next token of a text by logits (1, V)."""
        try:
            id = self.choosers[slot].take(logits[0])
        except FloatingPointError:
            return Scored([-1], [0.0], [([], [])])
        return score_tokens([id], logits, self.alternatives[slot])

    def group(self, slots: Sequence[int], tokens: Sequence[int]) -> None:
        """The texts that `step` is about from now on, and the token that each of them reads next."""
        self._slots, self._tokens = list(slots), list(tokens)

    @alone
    def step(self) -> Scored:
        """Reads a token of each text of the group, and chooses the next one, which is then the one to be read."""
        found = [
            self.choose(slot, self._read(slot, [token])) for slot, token in zip(self._slots, self._tokens, strict=True)
        ]
        self._tokens = [each.ids[0] for each in found]
        return self.together(found)

    def together(self, found: Sequence[Scored]) -> Scored:
        """What was chosen for the texts of the group, one after the other, as one."""
        wanted = any(self.alternatives[slot] for slot in self._slots)
        likeliest = [each.likeliest[0] if each.likeliest else ([], []) for each in found] if wanted else []
        return Scored([each.ids[0] for each in found], [each.log_probabilities[0] for each in found], likeliest)

    @alone
    def edge(self, slot: int) -> StateEdge:
        """The memory of a text whose last page is full."""
        state = self.states[slot]
        assert state is not None
        named = state.tensors().items()
        return StateEdge({name: (part[:, :, -PAGE:] if has_places(name) else part).clone() for name, part in named})

    @alone
    def resume(self, slot: int, edges: Sequence[StateEdge]) -> None:
        """Gives a text that has read whole pages, at the last edge, the pages and the memory of more edges.

        Page by page, as if they were read: so that the caches lie in memory as they would, and products come out alike.
        """
        for edge in edges:
            before, state = self.states[slot], State.from_tensors(edge.tensors)
            if before is not None:
                blocks = [
                    after._replace(cache=_extended(block.cache, after.cache))
                    for block, after in zip(before.blocks, state.blocks, strict=True)
                ]
                state = replace(state, blocks=tuple(blocks))
                if before.copies is not None and state.copies is not None:
                    cache = _extended(before.copies.cache, state.copies.cache)
                    assert cache is not None
                    state = replace(state, copies=state.copies._replace(cache=cache))
            self.states[slot] = state
        self.lengths[slot] += PAGE * len(edges)

    def restore(self, slot: int, state: State) -> None:
        """Gives a new text the memory of a state of one row, with its ids."""
        assert state.ids is not None
        self.states[slot] = replace(state, ids=None, logits=None, fingerprint="")
        self.lengths[slot] = state.ids.shape[1]

    def state(self, slot: int, ids: Sequence[int]) -> State:
        """The memory of a text of these ids, which have been read by the last `read`, as its only text; with logits."""
        state = self.states[slot]
        assert state is not None
        return replace(state, logits=self._logits[-1:], ids=torch.tensor([list(ids)]))


def _extended(before: Cache | None, page: Cache | None) -> Cache | None:
    return before.extended(page.keys, page.values) if before is not None and page is not None else page


def has_places(name: str) -> bool:
    """Whether a tensor of a state has a place for each token."""
    return name.endswith(("/keys", "/values", "/ids"))
