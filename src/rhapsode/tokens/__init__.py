"""From stories to batches: the token store on disk, prepared once, and the batches drawn from it.

tokenizer = tokenizer_for(source, "bpe", 1024)
store = prepare(source, tokenizer)
train, valid = store.hold_out(0.05, seed=0)
batcher = Batcher(train, BatchConfig(window=128, batch_size=32), seed=0)
inputs, targets, restart, scored = batcher.next()
"""

from rhapsode.tokens.batches import IGNORED, Batch, BatchConfig, Batcher
from rhapsode.tokens.store import TokenStore, prepare, tokenizer_for

__all__ = ["IGNORED", "Batch", "BatchConfig", "Batcher", "TokenStore", "prepare", "tokenizer_for"]
