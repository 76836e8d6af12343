"""How good is a model? Nats per token, perplexity and bits per byte, over all of a token store.

Everything is scored: sums over all tokens, never a mean of batch means. Each story begins with a fresh state; a
story longer than a chunk is scored chunk by chunk with its state carried on, attention reaching back CONTEXT
tokens at least.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from rhapsode.model import LanguageModel
from rhapsode.state import State
from rhapsode.threads import ThreadChooser, chosen_threads
from rhapsode.tokens import IGNORED, TokenStore

CHUNK = 512  # tokens of a row that are scored at once
CONTEXT = 512  # tokens before a chunk that its attention sees
BATCH_TOKENS = 16_384
POLICY = (
    f"each story starts from a fresh state; one longer than {CHUNK} tokens is scored in chunks, the state carried on,"
    f" attention reaching back {CONTEXT} tokens or more"
)


@dataclass(frozen=True)
class Score:
    """What a model made of a text: summed negative log-likelihood in nats, and over how much of it.

    num_tokens counts the tokens that were scored: all of a text, its end-of-story tokens included; of a list of
    ids all but the first, which nothing predicts. num_bytes: UTF-8 bytes of the text, 0 for bare ids.
    unspelled_bytes, correction_bits: how much of the text its ids do not hold, and in how many bits that can be
    said beside them (tokenizer/corrections.py).
    """

    nats: float
    num_tokens: int
    num_bytes: int
    num_stories: int
    unspelled_bytes: int = 0
    correction_bits: int = 0

    @property
    def nats_per_token(self) -> float:
        """Mean loss over the ids; comparable only between models with one tokenizer."""
        return self.nats / self.num_tokens

    @property
    def perplexity(self) -> float:
        """exp of the mean loss; infinite where that is more than a float can hold."""
        return math.exp(self.nats_per_token) if self.nats_per_token < 709 else math.inf

    @property
    def bits_per_byte(self) -> float | None:
        """Compression in bits per UTF-8 byte of the text, with all that the ids do not hold of it.

        None for bare ids, whose text is not known.
        """
        return bits_per_byte(self.nats_of_text, self.num_bytes) if self.num_bytes else None

    @property
    def nats_of_text(self) -> float:
        """What it takes to tell the text: its ids, and the corrections without which they are another text."""
        return self.nats + self.correction_bits * math.log(2)

    @property
    def unspelled_share(self) -> float | None:
        """Which part of the text's bytes the ids do not hold; None for bare ids."""
        return self.unspelled_bytes / self.num_bytes if self.num_bytes else None


def bits_per_byte(nats: float, byte_count: int) -> float:
    """Compression in bits per UTF-8 byte; lower is better, comparable across tokenizers.

    nats: summed negative log-likelihood of the scored tokens; byte_count: bytes of the text they spell, counted
    on the text itself, never on decoded ids (a broken UTF-8 piece would count as three bytes).
    Raises ValueError if byte_count is 0.
    """
    if byte_count <= 0:
        raise ValueError(f"byte_count must be greater than 0, got {byte_count}")
    return nats / math.log(2) / byte_count


class Worker(NamedTuple):
    """One of several processes that score a store together.

    number, of: which of the batches are its own; total: sums numbers over all of them.
    """

    number: int
    of: int
    total: Callable[[list[float]], list[float]]


def score(
    model: LanguageModel,
    store: TokenStore,
    on_tokens: Callable[[int], None] | None = None,
    worker: Worker | None = None,
) -> Score:
    """Scores all stories of the store, by the policy at the top of this file; on_tokens hears of progress.

    The model is put into eval mode and back; no random number is drawn. worker: who of several this is; each of them
    gets the score of the whole. Raises ValueError where nothing can be scored.
    """
    with torch.inference_mode(), chosen_threads() as threads:
        return _score(model, store, on_tokens, threads, worker or Worker(0, 1, list))


def _score(
    model: LanguageModel,
    store: TokenStore,
    on_tokens: Callable[[int], None] | None,
    threads: ThreadChooser,
    worker: Worker,
) -> Score:
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    nats, num_tokens = 0.0, 0
    try:
        for inputs, targets in padded_batches(store, worker.number, worker.of):
            state: State | None = None
            for start in range(0, inputs.shape[1], CHUNK):
                begun = time.perf_counter()
                piece = slice(start, start + CHUNK)
                expected = torch.from_numpy(targets[:, piece].copy()).to(device)
                seen = torch.from_numpy(inputs[:, piece].copy()).to(device)
                loss, state = model.loss(seen, expected, state, reduction="sum")
                state = state.recent(CONTEXT)
                nats += loss.item()
                scored = int((expected != IGNORED).sum())
                num_tokens += scored
                threads.worked("score", time.perf_counter() - begun, seen.numel())
                if on_tokens:
                    on_tokens(scored)
    finally:
        model.train(was_training)
    nats, scored_tokens = worker.total([nats, float(num_tokens)])
    num_tokens = int(scored_tokens)
    if num_tokens == 0:
        raise ValueError(f"{store.description}: nothing to score, no sequence has two tokens")
    if not store.has_text:
        return Score(nats, num_tokens, 0, store.num_stories)
    return Score(nats, num_tokens, store.num_bytes, store.num_stories, store.unspelled_bytes, store.correction_bits)


def check_finite(finite: bool) -> None:
    """Raises FloatingPointError where a model's numbers are none."""
    if not finite:
        raise FloatingPointError("the model's losses are not finite numbers: its weights overflow on this text")


def padded_batches(store: TokenStore, first: int = 0, every: int = 1) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All stories, those of similar length together: int64 (inputs, targets) of shape (B, T).

    first, every: of the batches those with the numbers first, first + every, and so on.

    Rows are padded on the right, where a causal model cannot feel it; padding is no target. A text is predicted
    from its first token on, </s> standing before it; a list of ids from its second; of a labelled list, the answers.
    """
    lengths = store.story_lengths()
    lengths = lengths // 2 if store.labelled else lengths - (0 if store.has_text else 1)
    order = np.argsort(-lengths, kind="stable")
    order = order[lengths[order] > 0]
    begin, number = 0, 0
    while begin < len(order):
        longest = int(lengths[order[begin]])
        rows = order[begin : begin + max(1, BATCH_TOKENS // longest)]
        begin, number = begin + len(rows), number + 1
        if (number - 1 - first) % every:
            continue
        inputs = np.full((len(rows), longest), store.eos_id, dtype=np.int64)
        targets = np.full((len(rows), longest), IGNORED, dtype=np.int64)
        for i, row in enumerate(rows):
            ids = store.story(row)
            n = lengths[row]
            if store.labelled:
                inputs[i, :n], targets[i, :n] = ids[::2], ids[1::2]
                continue
            inputs[i, :n] = np.concatenate(([store.eos_id], ids[:-1])) if store.has_text else ids[:-1]
            targets[i, :n] = ids[-n:]
        yield inputs, targets
