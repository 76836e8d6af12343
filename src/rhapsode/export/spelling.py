"""A tokenizer as a short description that serve/page/spelling.js follows, in place of a whole tokenizer.json.

Described are the kinds that are trained here (byte-level BPE, Unigram, characters), GPT-2's like, and Unigram as the
course has it. Any other is refused: half a tokenizer would give other ids without a word.
"""

import json
import unicodedata
from collections.abc import Iterator
from typing import Any

import tokenizers

from rhapsode.tokenizer import Tokenizer
from rhapsode.tokenizer.definition import (
    BYTES_OR_PIECES,
    LOW_LINES_LEAD,
    SPACES_LEAD,
    as_definition,
    is_cut_into_words,
    space_before_names,
)

REFUSED = "export the model to html with a tokenizer that Rhapsode trained (bpe, unigram or characters)"


def description(tokenizer: Tokenizer) -> dict[str, Any]:
    """What spelling.js needs: pieces by id, scores or merges, how a text is cut and how ids become text.

    cut: `words` (GPT-2's; space_before_names: a pattern of spaces that stand alone, or null), `spaces` (a space leads
    its word), `lines` (the same with ▁ for a space), `metaspace` (▁ before every word, other whitespace dropped),
    `none`. bytes: `level` (each token spells bytes), `fallback` (some do) or `none`. ends: the ids that are no text.
    Raises ValueError, naming the part, for a tokenizer that spelling.js cannot follow.
    """
    definition = tokenizer.definition
    model = definition["model"]
    kind = model.get("type")
    if kind not in ("BPE", "Unigram"):
        raise ValueError(f"the page cannot run a tokenizer of the kind {kind}; {REFUSED}")
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges", "fuse_unk"):
        if model.get(option):
            raise ValueError(f"the page cannot run a tokenizer with {option} {model[option]!r}; {REFUSED}")
    pieces = tokenizer.pieces
    about = {
        "pieces": pieces,
        "cut": _cut(definition),
        "space_before_names": space_before_names(definition.get("pre_tokenizer") or {}),
        "bytes": _bytes(definition),
        "exceptions": dict(_exceptions(definition)),
        "eos": tokenizer.eos_id,
        "unk": tokenizer.unk_id,
        "ends": tokenizer.no_text,
    }
    if kind == "Unigram":
        return about | {"scores": [score for _, score in model["vocab"]]}
    number = {piece: id for id, piece in enumerate(pieces)}
    merges = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]
    return about | {"merges": [[number[left], number[right]] for left, right in merges]}


def _cut(definition: dict[str, Any]) -> str:
    before = definition.get("pre_tokenizer")
    if before is None:
        return "none"
    if is_cut_into_words(before):
        return "words"
    if before == as_definition(SPACES_LEAD):
        return "spaces"
    if before == as_definition(LOW_LINES_LEAD):
        return "lines"
    parts = before.get("pretokenizers", [])
    if [part["type"] for part in parts] == ["WhitespaceSplit", "Metaspace"] and parts[1].get("replacement") == "▁":
        return "metaspace"
    raise ValueError(f"the page cannot cut text as this tokenizer's pre_tokenizer does; {REFUSED}")


def _bytes(definition: dict[str, Any]) -> str:
    decoder = definition.get("decoder") or {}
    if decoder.get("type") == "ByteLevel":
        return "level"
    if definition["model"].get("byte_fallback"):
        if decoder == BYTES_OR_PIECES:
            return "fallback"
    elif decoder.get("type") in ("Fuse", "Metaspace"):
        return "none"
    raise ValueError(f"the page cannot spell text as this tokenizer's decoder does; {REFUSED}")


def _exceptions(definition: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Where a normaliser differs from NFKC, character by character; nothing where there is none."""
    normalizer = definition.get("normalizer")
    if normalizer is None:
        return
    if normalizer.get("type") != "Precompiled":
        raise ValueError(f"the page cannot normalise text as {normalizer.get('type')} does; {REFUSED}")
    normalise = tokenizers.Tokenizer.from_str(json.dumps(definition)).normalizer.normalize_str
    for character in map(chr, (*range(0xD800), *range(0xE000, 0x30000))):
        if unicodedata.category(character) != "Cn" and (as_here := normalise(character)) != unicodedata.normalize(
            "NFKC", character
        ):
            yield character, as_here
