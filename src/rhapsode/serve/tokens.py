"""/tokenize, /detokenize, /tokenizer_info: so that a client needs no tokenizer of its own."""

from typing import Any

from rhapsode.serve.wanted import checked_ids, encoded
from rhapsode.tokenizer import Tokenizer

MOST_TOKENIZED = 65_536  # tokens of a text, roughly: see `encoded`


def tokenize(tokenizer: Tokenizer, text: str, max_context: int) -> dict[str, Any]:
    """The ids of a text. Exactly the name of the end token is that token; within a text it is text."""
    ids = (
        [tokenizer.eos_id]
        if text == tokenizer.names[tokenizer.eos_id]
        else encoded(text, tokenizer, MOST_TOKENIZED, "prompt")
    )
    return {"tokens": ids, "count": len(ids), "max_model_len": max_context}


def detokenize(tokenizer: Tokenizer, ids: list[int]) -> dict[str, Any]:
    """The text of some ids."""
    return {"prompt": tokenizer.decode(checked_ids(ids, tokenizer.vocab_size, "tokens"))}


def tokenizer_info(tokenizer: Tokenizer, max_context: int) -> dict[str, Any]:
    """What a client wants to know of a tokenizer; there is no chat template."""

    def name(id: int | None) -> str | None:
        return None if id is None else tokenizer.names[id]

    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "kind": tokenizer.kind,
        "vocab_size": tokenizer.vocab_size,
        "model_max_length": max_context,
        "eos_token": name(tokenizer.eos_id),
        "eos_token_id": tokenizer.eos_id,
        "bos_token": None,
        "pad_token": name(tokenizer.pad_id),
        "unk_token": name(tokenizer.unk_id),
        "add_bos_token": False,
        "add_eos_token": False,
        "chat_template": None,
    }
