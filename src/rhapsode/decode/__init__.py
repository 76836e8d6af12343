"""Writing: how the next token is chosen, and how a text goes on.

filters.py        what may be drawn: pure functions on logits, of one row or of many
continuation.py   reading a prompt, drawing token after token, stop texts, text as it becomes certain
"""

from rhapsode.decode.continuation import SampleConfig, Written, read_text, write, write_texts

__all__ = ["SampleConfig", "Written", "read_text", "write", "write_texts"]
