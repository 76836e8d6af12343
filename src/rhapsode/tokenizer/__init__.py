"""Text to token ids and back.

tokenizer = train_tokenizer(stories, "bpe", 1024)    # or Tokenizer.load(Path("my_tokenizer"))
ids = tokenizer.encode("Once upon a time")
stream = tokenizer.stream()
text = "".join(map(stream.push, ids)) + stream.flush()
"""

from rhapsode.tokenizer.coding import Tokenizer
from rhapsode.tokenizer.stream import TextStream
from rhapsode.tokenizer.training import train_tokenizer

__all__ = ["TextStream", "Tokenizer", "train_tokenizer"]
