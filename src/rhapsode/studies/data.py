"""What the validations of a study read: not more than they must, and the same tokens that training reads."""

import hashlib

import numpy as np

from rhapsode.tokens import TokenStore

MOST_VALID_STORIES = 1_000  # ten validations of each cell: more of them would cost more than the training


def valid_view(store: TokenStore, stories: int, length: int | None, seed: int) -> TokenStore:
    """At most `stories` stories of the store (0: all), a seeded draw; of each the first `length` tokens (None: all).

    With a length the view is a list of ids, of which `evaluate.score` predicts all but the first: tokens 2 to
    `length` of each story from a fresh state, exactly those that batches of the form `first` train on.
    """
    if 0 < stories < store.num_stories:
        _, store = store.hold_out(stories / store.num_stories, seed)
    if length is None:
        return store
    pieces = [store.story(i)[:length] for i in range(store.num_stories)]
    offsets = np.concatenate(([0], np.cumsum([len(piece) for piece in pieces])))
    about = {
        "fingerprint": hashlib.sha256(f"{store.fingerprint} first {length}".encode()).hexdigest(),
        "eos_id": store.eos_id,
        "vocab_size": store.vocab_size,
        "has_text": False,
        "description": f"{store.description}, the first {length} tokens of each",
    }
    nothing = np.zeros((0, 2), dtype=np.int64)
    return TokenStore(np.concatenate(pieces), offsets, np.zeros(len(pieces), np.int64), nothing, about)
