"""Batches of fixed-length windows from a token store, in a seeded order that can be saved and continued.

    B batch, T tokens of a window

The stories of an epoch, in the epoch's own order, form one long stream that is never written out: a batch is
the gathering of B * (T + 1) of its positions, mapped onto the memory-mapped ids.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rhapsode.seeds import check_seed
from rhapsode.tokens.store import TokenStore

if TYPE_CHECKING:
    import torch

IGNORED = -100  # the target that PyTorch's losses leave out
ALL_ROWS = slice(None)


@dataclass(frozen=True)
class BatchConfig:
    """What a batch is.

    window: T, the number of input tokens of a row; the targets are the T tokens one further on.
    batch_size: B, the number of rows.
    form: `stream`: windows cut from all stories joined; `first`: the first T + 1 tokens of each story (the
        course's form), shorter stories padded with </s>, their padding not scored. Of labelled stories (see TokenStore)
        the first T ids and their answers, always in the form `first`.
    carry_state: stream only: row b of a batch continues row b of the batch before.
    shuffle: a new seeded order in each epoch; False: the order of the file.
    """

    window: int = 128
    batch_size: int = 32
    form: str = "stream"
    carry_state: bool = False
    shuffle: bool = True

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"window must be >= 1, got {self.window}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be >= 1, got {self.batch_size}")
        if self.form not in ("stream", "first"):
            raise ValueError(f"form must be stream or first, got {self.form!r}")
        if self.carry_state and self.form != "stream":
            raise ValueError("carry_state needs form stream: with form first, no row continues an earlier one")


class Batch(NamedTuple):
    """inputs, targets: (B, T) int64, target -100 where nothing is scored; restart: begin from a new state.

    scored: how many targets the whole batch scores, where these are some of its rows.
    """

    inputs: "torch.Tensor"
    targets: "torch.Tensor"
    restart: bool
    scored: int


class Batcher:
    """Draws batches without end, epoch after epoch, each epoch in its own order.

    batches_per_epoch, tokens_per_batch: the sizes of an epoch; with form first, the mean number of targets of a
    batch. Within an epoch each token is a target at most once, and fewer than a batch's worth of them are left out.
    Raises ValueError where the store cannot fill one batch.
    """

    def __init__(self, store: TokenStore, config: BatchConfig, seed: int) -> None:
        check_seed(seed)
        self.store, self.config, self.seed = store, config, seed
        full = config.batch_size * config.window
        self.tokens_per_batch: float = full
        # A plain view, where they are one array: slicing a memmap costs ten times as much.
        self._ids = np.asarray(store.tokens) if isinstance(store.tokens, np.ndarray) else store.tokens
        self._begins = np.asarray(store.offsets[store.indices])
        self._lengths = np.asarray(store.story_lengths())
        if store.labelled and config.form != "first":
            raise ValueError(f"stories whose ids have answers need form first, got form {config.form}")
        if config.form == "stream":
            self.batches_per_epoch = store.num_tokens // full
            have, fits = f"{store.num_tokens:,} tokens", store.num_tokens // config.window
            smaller = f"choose a window of at most {store.num_tokens}"
            shape = f"batch_size {config.batch_size} x window {config.window}"
            need = f"{shape} needs {full:,} tokens"
        else:
            self._usable = np.flatnonzero(self._lengths > 1)  # a single id has nothing to predict
            fits = len(self._usable)
            self.batches_per_epoch = fits // config.batch_size
            have, smaller = f"{fits:,} stories of two tokens or more", "choose other data"
            need = f"batch_size {config.batch_size} needs as many stories"
            there = self._lengths[self._usable]
            targets = np.minimum(there // 2 if store.labelled else there - 1, config.window)
            self.tokens_per_batch = config.batch_size * float(targets.mean()) if fits else 0.0  # padding left out
        if self.batches_per_epoch == 0:
            advice = f"batch_size {fits} would fit" if fits else smaller
            raise ValueError(f"{need}, the data have {have}: {advice}")
        self.load_state_dict({"epoch": 0, "position": 0})

    def next(self, rows: slice = ALL_ROWS) -> Batch:
        """The next batch, or some rows of it."""
        import torch

        if self._position == self.batches_per_epoch:
            self._start_epoch(self._epoch + 1)
        i = self._position
        self._position += 1
        config = self.config
        first, last, _ = rows.indices(config.batch_size)
        places = slice(i * config.batch_size + first, i * config.batch_size + last)
        inputs, targets = self._stream_batch(places) if config.form == "stream" else self._first_batch(places)
        restart = not config.carry_state or i == 0
        return Batch(torch.from_numpy(inputs), torch.from_numpy(targets), restart, self._scored(i))

    def _scored(self, i: int) -> int:
        """The number of targets in batch i of the epoch."""
        config = self.config
        if config.form == "stream":
            return config.batch_size * config.window
        lengths = self._lengths[self._stories[i * config.batch_size : (i + 1) * config.batch_size]]
        return int(np.minimum(lengths - 1, config.window).sum())

    def state_dict(self) -> dict[str, int]:
        """Where the batcher stands: with the same store, config and seed, all that is needed to continue."""
        return {"epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continues exactly where `state_dict` was taken."""
        if state["epoch"] < 0 or not 0 <= state["position"] <= self.batches_per_epoch:
            raise ValueError(f"batcher state {state} does not match data of {self.batches_per_epoch} batches per epoch")
        self._start_epoch(state["epoch"])
        self._position = state["position"]

    def _start_epoch(self, epoch: int) -> None:
        config = self.config
        self._epoch, self._position = epoch, 0
        random = np.random.Generator(np.random.PCG64([self.seed, epoch]))
        stories = np.arange(self.store.num_stories) if config.form == "stream" else self._usable.copy()
        if config.shuffle:
            random.shuffle(stories)
        if config.form == "first":
            self._stories = stories
            return
        # Position p of the stream, in the n-th story of the epoch's order, is ids[p + self._shifts[n]].
        self._ends = np.cumsum(self._lengths[stories])
        self._shifts = self._begins[stories] - (self._ends - self._lengths[stories])
        windows = np.arange(self.batches_per_epoch * config.batch_size)
        slack = self.store.num_tokens - len(windows) * config.window
        offset = int(random.integers(min(config.window - 1, slack) + 1)) if config.shuffle else 0
        if config.carry_state:
            windows = windows.reshape(config.batch_size, -1).T.ravel()  # batch i is the i-th window of each lane
        elif config.shuffle:
            random.shuffle(windows)
        # The first input stands one before the first target; before the stream's beginning it is </s>, at -1.
        self._starts = windows * config.window + offset - 1

    def _stream_batch(self, places: slice) -> tuple[np.ndarray, np.ndarray]:
        config = self.config
        size = config.window + 1
        starts = self._starts[places]
        # The stories that each window touches, window after window, and how many of its positions each has.
        first = np.searchsorted(self._ends, starts, side="right")
        touched = np.searchsorted(self._ends, starts + config.window, side="right") - first + 1
        last = np.cumsum(touched) - 1
        stories = np.arange(last[-1] + 1) + np.repeat(first - (last + 1 - touched), touched)
        ends = self._ends[stories]
        ends[last] = starts + size
        counts = np.diff(ends, prepend=0)
        counts[last + 1 - touched] = ends[last + 1 - touched] - starts
        positions = (starts[:, None] + np.arange(size)).ravel()
        ids = self._ids[positions + np.repeat(self._shifts[stories], counts)].astype(np.int64).reshape(-1, size)
        ids[starts == -1, 0] = self.store.eos_id
        return ids[:, :-1].copy(), ids[:, 1:].copy()

    def _first_batch(self, places: slice) -> tuple[np.ndarray, np.ndarray]:
        config = self.config
        stories = self._stories[places]
        lengths = self._lengths[stories, None]
        place = np.arange(2 * config.window if self.store.labelled else config.window + 1)
        ids = self._ids[self._begins[stories, None] + np.minimum(place, lengths - 1)].astype(np.int64)
        beyond = place >= lengths
        if self.store.labelled:
            return ids[:, ::2].copy(), np.where(beyond, IGNORED, ids)[:, 1::2].copy()
        inputs = np.where(beyond, self.store.eos_id, ids)[:, :-1]
        return inputs.copy(), np.where(beyond, IGNORED, ids)[:, 1:].copy()
