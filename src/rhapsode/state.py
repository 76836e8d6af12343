"""A model's memory of the tokens so far, as a value: what one call returns and the next one takes.

    _, state = model(tokens)                     # one row a text
    both = State.join([state, other])            # rows of several states in one batch
    logits, state = model(more, state.rows([0]))

B rows, N heads, S tokens seen, H hidden, V vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from rhapsode.files import replacing
from rhapsode.tensors import pack_tensors, unpack_tensors

FORMAT_VERSION = 1
FEWEST_ROOM = 64  # tokens that a cache which grows has room for, at least


class _Room:
    """Memory for a cache that grows: keys and values of `capacity` tokens, of which the first `used` are taken."""

    def __init__(self, keys: Tensor, values: Tensor, more: int) -> None:
        self.used = keys.shape[2]
        capacity = max(FEWEST_ROOM, 2 * (self.used + more))
        self.keys, self.values = (
            torch.empty(*part.shape[:2], capacity, part.shape[3], dtype=part.dtype, device=part.device)
            for part in (keys, values)
        )
        self.keys[:, :, : self.used], self.values[:, :, : self.used] = keys, values
        self.inference = torch.is_inference_mode_enabled()  # PyTorch writes to such memory in that mode only

    def takes(self, used: int, more: int) -> bool:
        """Whether `more` tokens fit behind `used` ones, where nothing else was put yet."""
        free = used == self.used and used + more <= self.keys.shape[2]
        return free and self.inference == torch.is_inference_mode_enabled()


@dataclass(frozen=True, eq=False)
class Cache:
    """What attention has seen: keys (B, N, S, key_dim) and values (B, N, S, value_dim), heads side by side.

    A value: `extended` gives another one, and never changes what this one holds. While no gradient is wanted, the two
    share memory with room behind the last token, so that a token costs no copy of those before it; of two
    continuations of one cache, the second gets memory of its own.
    """

    keys: Tensor
    values: Tensor
    room: _Room | None = None

    @property
    def taken(self) -> Tensor | None:
        """Which of its places hold a token, (B, 1, 1, S); None: all of them."""
        return None

    def extended(self, keys: Tensor, values: Tensor) -> "Cache":
        """This cache with T more tokens: keys (B, N, T, key_dim), values (B, N, T, value_dim)."""
        if torch.is_grad_enabled():
            return Cache(torch.cat((self.keys, keys), dim=2), torch.cat((self.values, values), dim=2))
        room, used, more = self.room, self.keys.shape[2], keys.shape[2]
        if room is None or not room.takes(used, more):
            room = _Room(self.keys, self.values, more)
        room.used = end = used + more
        room.keys[:, :, used:end], room.values[:, :, used:end] = keys, values
        return Cache(room.keys[:, :, :end], room.values[:, :, :end], room)

    def recent(self, tokens: int) -> "Cache":
        """The last `tokens` of its tokens."""
        keys, values = (part[:, :, max(0, part.shape[2] - tokens) :] for part in (self.keys, self.values))
        return Cache(keys, values)


@dataclass(frozen=True, eq=False)
class FixedCache(Cache):
    """A cache of one size for all times, into which a single token is written in place: what a GPU's graph can replay.

    places (B,): how many tokens each row has read; whoever owns it counts them. No value: `extended` changes it.
    """

    places: Tensor = field(kw_only=True)

    @property
    def taken(self) -> Tensor:
        """The places up to the token that is read now."""
        return (torch.arange(self.keys.shape[2], device=self.keys.device) <= self.places[:, None])[:, None, None]

    def extended(self, keys: Tensor, values: Tensor) -> "FixedCache":
        """This cache, with one more token a row: keys (B, N, 1, key_dim), values (B, N, 1, value_dim)."""
        at = self.places[:, None, None, None]
        self.keys.scatter_(2, at.expand(keys.shape), keys)
        self.values.scatter_(2, at.expand(values.shape), values)
        return self


class BlockState(NamedTuple):
    """One block's memory: the last hidden state (B, H), and the attention cache where the block attends."""

    hidden: Tensor
    cache: Cache | None


class CopyState(NamedTuple):
    """What a copy head keeps: a cache of the keys (B, 1, S, copy_dim) of the tokens so far and, as its values, of their
    ids (B, 1, S, 1); and the key (B, copy_dim) of the token that comes next, whichever it will be."""

    cache: Cache
    next_key: Tensor

    @property
    def keys(self) -> Tensor:
        """The keys (B, S, copy_dim) of the tokens that may be copied."""
        return self.cache.keys[:, 0]

    @property
    def ids(self) -> Tensor:
        """The tokens (B, S) that may be copied."""
        return self.cache.values[:, 0, :, 0]

    def until(self, place: int) -> "CopyState":
        """As it was when only the first `place` of its tokens could be copied, next_key aside."""
        return CopyState(Cache(self.cache.keys[:, :, :place], self.cache.values[:, :, :place]), self.next_key)


@dataclass(frozen=True, eq=False)
class State:
    """A model's whole memory of the tokens so far; a value, never changed in place.

    blocks: one entry per block. token: the last token (B,) where pairs are embedded. copies: what a copy head keeps,
    where there is one. The rest is there once a text was read to continue from: ids (B, S), the tokens read; logits
    (B, V) of the token that comes next; fingerprint, which model it belongs to.
    """

    blocks: tuple[BlockState, ...]
    token: Tensor | None = None
    copies: CopyState | None = None
    logits: Tensor | None = None
    ids: Tensor | None = None
    fingerprint: str = ""

    def recent(self, tokens: int) -> "State":
        """The same hidden states, with attention caches and copies of at most the last `tokens` tokens."""
        blocks = tuple(BlockState(h, cache and cache.recent(tokens)) for h, cache in self.blocks)
        copies = self.copies and CopyState(self.copies.cache.recent(tokens), self.copies.next_key)
        return replace(self, blocks=blocks, copies=copies)

    def apply(self, change: Callable[[Tensor], Tensor]) -> "State":
        """The state with a change made to each of its tensors: detached, say, or moved to a device."""
        changed = State.from_tensors({name: change(tensor) for name, tensor in self.tensors().items()})
        return replace(changed, fingerprint=self.fingerprint)

    def rows(self, rows: "slice | Tensor | Sequence[int]") -> "State":
        """The state of some rows of the batch."""
        return self.apply(lambda tensor: tensor[rows])

    @staticmethod
    def join(states: "Sequence[State]") -> "State":
        """The rows of all the states in one, in their order.

        Raises ValueError where they are of different models, or have seen different numbers of tokens: a cache has one
        length for all rows.
        """
        if not states:
            raise ValueError("at least one state is needed to join")
        parts = [state.tensors() for state in states]
        shapes = [{name: tensor.shape[1:] for name, tensor in part.items()} for part in parts]
        if any(shape != shapes[0] for shape in shapes) or len({state.fingerprint for state in states}) > 1:
            raise ValueError(
                "these states cannot be joined: they belong to different models, or to texts of different lengths"
            )
        joined = State.from_tensors({name: torch.cat([part[name] for part in parts]) for name in parts[0]})
        return replace(joined, fingerprint=states[0].fingerprint)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name: `0/hidden`, `0/keys`, `0/values`, ..., and `token`, `logits`, `ids`, `copies/keys`,
        `copies/ids` and `copies/next_key` where they are."""
        more = {"token": self.token, "logits": self.logits, "ids": self.ids}
        if self.copies is not None:
            copied, next_key = self.copies
            more |= {"copies/keys": copied.keys, "copies/ids": copied.values, "copies/next_key": next_key}
        named = {name: tensor for name, tensor in more.items() if tensor is not None}
        for i, (hidden, cache) in enumerate(self.blocks):
            parts = {"hidden": hidden, **({"keys": cache.keys, "values": cache.values} if cache else {})}
            named |= {f"{i}/{name}": tensor for name, tensor in parts.items()}
        return named

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "State":
        """The state that `tensors` took apart."""
        blocks = tuple(
            BlockState(
                tensors[f"{i}/hidden"],
                Cache(tensors[f"{i}/keys"], tensors[f"{i}/values"]) if f"{i}/keys" in tensors else None,
            )
            for i in range(sum(name.endswith("/hidden") for name in tensors))
        )
        copies = None
        if "copies/keys" in tensors:
            copies = CopyState(Cache(tensors["copies/keys"], tensors["copies/ids"]), tensors["copies/next_key"])
        return cls(blocks, tensors.get("token"), copies, tensors.get("logits"), tensors.get("ids"))

    def save(self, path: str | Path) -> None:
        """Writes the state to a file of safetensors, whole or not at all; raises OSError where that cannot be."""
        copies = {name: tensor.detach().cpu().clone() for name, tensor in self.tensors().items()}  # none shares memory
        tensors = {name: tensor.contiguous() for name, tensor in copies.items()}
        about = {"rhapsode_state": str(FORMAT_VERSION), "fingerprint": self.fingerprint}
        with replacing(Path(path)) as temporary:
            temporary.write_bytes(pack_tensors(tensors, about, signed="fingerprint"))

    @classmethod
    def load(cls, path: str | Path) -> "State":
        """The state in a file that `save` wrote; raises OSError, or ValueError naming the file where it is no state."""
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        try:
            tensors, about = unpack_tensors(path.read_bytes(), "fingerprint", rhapsode_state=str(FORMAT_VERSION))
            state = cls.from_tensors(tensors)
            if state.tensors().keys() != tensors.keys() or not state.blocks:
                raise ValueError("parts of it are missing")
        except (KeyError, ValueError) as error:
            raise ValueError(f"{path}: not a saved state ({error})") from None
        return replace(state, fingerprint=about["fingerprint"])
