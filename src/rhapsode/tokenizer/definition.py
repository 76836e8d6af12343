"""What the parts of a tokenizer.json say about how texts are cut and spelled."""

import copy
import json
import re
from collections.abc import Iterable
from typing import Any

import tokenizers
from tokenizers import Regex, pre_tokenizers

# A space begins a piece and other whitespace stands alone; so does "<", or Unigram would take "</s>" in a text for
# the special token.
_ALONE = pre_tokenizers.Split(Regex(r"[^\S ]|<"), "isolated")
SPACES_LEAD = pre_tokenizers.Sequence([_ALONE, pre_tokenizers.Split(" ", "merged_with_next")])
# As it was trained before, with ▁ for a space: a ▁ in a text becomes a space.
LOW_LINES_LEAD = pre_tokenizers.Sequence([_ALONE, pre_tokenizers.Metaspace(prepend_scheme="never")])
# A space before a capitalised word is a token of its own, so that a name has the same ids wherever it stands; not so
# before words that only open sentences, which stand between these two.
_NAME_BEGINS, _NAME_ENDS = r" (?=\p{Lu}\p{Ll})(?!(?:", r")(?!\p{L}))"
_LETTERS = re.compile(r"[^\W\d_]+")
BYTES_OR_PIECES: dict[str, Any] = {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]}


def _byte_of_character() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for.

    Printable Latin-1 stands for itself; the other bytes, in order, for the characters from U+0100 on.
    """
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


BYTE_OF_CHARACTER = _byte_of_character()
BYTE_OF_PIECE = {f"<0x{byte:02X}>": byte for byte in range(256)}  # how byte fallback calls them


def kind(definition: dict[str, Any]) -> str:
    """bpe, unigram or characters, or the library's name for what we do not train."""
    model = definition["model"]
    if model.get("type") == "BPE":
        return "bpe" if model.get("merges") else "characters"
    return str(model.get("type", "unknown")).lower()


def part_without_prefix(model: dict[str, Any]) -> str | None:
    """The second part of a merge that lacks continuing_subword_prefix, where the tokenizers library would cut beyond
    its end, which is no exception but a panic; None where there is none."""
    prefix, merges = model.get("continuing_subword_prefix"), model.get("merges")
    if not isinstance(prefix, str) or not isinstance(merges, list):
        return None
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in merges)
    second = (pair[1] for pair in pairs if isinstance(pair, list) and len(pair) == 2 and isinstance(pair[1], str))
    return next((part for part in second if not part.startswith(prefix)), None)


def is_byte_level(definition: dict[str, Any]) -> bool:
    """Whether each token spells bytes, as GPT-2's do."""
    return bool((definition.get("decoder") or {}).get("type") == "ByteLevel")


def falls_back_to_bytes(definition: dict[str, Any]) -> bool:
    """Whether a token is a byte or spells itself and nothing hangs on its neighbours, as in the Unigram we train."""
    return bool(definition["model"].get("byte_fallback")) and definition.get("decoder") == BYTES_OR_PIECES


def words_stand_alone(definition: dict[str, Any]) -> bool:
    """Whether a text cut before whitespace has the same ids: what we train does, and what GPT-2 began."""
    model, before = definition["model"], definition.get("pre_tokenizer")
    added = definition.get("added_tokens", [])
    if definition.get("normalizer") or model.get("dropout") or not all(token["special"] for token in added):
        return False
    if before is None:
        return kind(definition) == "characters"
    return before in (as_definition(SPACES_LEAD), as_definition(LOW_LINES_LEAD)) or is_cut_into_words(before)


def names_alone(openers: Iterable[str]) -> pre_tokenizers.PreTokenizer:
    """Cuts as GPT-2 does, but a space before a capitalised word stands alone, unless the word is one of the openers."""
    name = Regex(f"{_NAME_BEGINS}{'|'.join(openers)}{_NAME_ENDS}")
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(name, "isolated"), words])


def space_before_names(pre_tokenizer: dict[str, Any]) -> str | None:
    """The pattern of the spaces that `names_alone` cuts out; None for any other pre_tokenizer."""
    parts = pre_tokenizer.get("pretokenizers") or [{}]
    pattern = str((parts[0].get("pattern") or {}).get("Regex", ""))
    openers = pattern.removeprefix(_NAME_BEGINS).removesuffix(_NAME_ENDS)
    words = openers.split("|") if openers else []
    is_ours = all(map(_LETTERS.fullmatch, words)) and pre_tokenizer == as_definition(names_alone(words))
    return pattern if is_ours else None


def is_cut_into_words(pre_tokenizer: dict[str, Any]) -> bool:
    """Whether a text is cut as GPT-2 does, or so that names stand alone."""
    return is_gpt2(pre_tokenizer) or space_before_names(pre_tokenizer) is not None


def is_gpt2(pre_tokenizer: dict[str, Any]) -> bool:
    """Whether a text is cut into words as GPT-2 does, with no blank put before it."""
    gpt2 = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    return {key: pre_tokenizer.get(key) for key in gpt2} == gpt2


def holds_every_text(definition: dict[str, Any], vocab: dict[str, int]) -> bool:
    """Whether the ids of any text spell exactly that text; False where that cannot be seen here."""
    before = definition.get("pre_tokenizer")
    if not words_stand_alone(definition) or before is None:
        return False
    if is_byte_level(definition):
        model = definition["model"]
        plain = not model.get("continuing_subword_prefix") and not model.get("end_of_word_suffix")
        is_whole = model.get("type") == "BPE" and plain and is_cut_into_words(before)
        return is_whole and all(character in vocab for character in BYTE_OF_CHARACTER)
    whole = before == as_definition(SPACES_LEAD) and falls_back_to_bytes(definition)
    return whole and all(piece in vocab for piece in bytes_besides(vocab))


def lacks_only_unknowns(definition: dict[str, Any]) -> bool:
    """Whether the ids of a text spell it if none of them is the unknown token, and it has no ▁."""
    decoder = definition.get("decoder") or {}
    spells_itself = decoder.get("type") == "Fuse" or decoder.get("prepend_scheme") == "never"
    return words_stand_alone(definition) and spells_itself


def bytes_besides(pieces: Any) -> list[str]:
    """The byte tokens that make a vocabulary of these pieces spell every text.

    A character that is a piece needs none: so bytes below 128 for what is no piece, and all that begin or continue
    a longer character; never C0, C1 and F5 to FF, which UTF-8 does not have.
    """
    longer = [byte for byte in range(0x80, 0xF5) if byte not in (0xC0, 0xC1)]
    return [f"<0x{byte:02X}>" for byte in [*(b for b in range(0x80) if chr(b) not in pieces), *longer]]


def without_beginning(definition: dict[str, Any], inside_word: bool = False) -> dict[str, Any]:
    """The definition for a text that goes on where another was cut: nothing is put before it or stripped off it.

    inside_word: the cut may be anywhere; otherwise it is before whitespace, and what is done to each word after it
    is done still.
    """
    changed = copy.deepcopy(definition)
    if changed.get("normalizer"):
        parts = changed["normalizer"].get("normalizers", [changed["normalizer"]])
        for part in parts:
            if part["type"] == "Strip":
                part |= {"strip_left": False}
        kept = [part for part in parts if part["type"] != "Prepend"]
        changed["normalizer"] = {"type": "Sequence", "normalizers": kept} if kept else None
    if changed.get("pre_tokenizer"):
        parts = changed["pre_tokenizer"].get("pretokenizers", [changed["pre_tokenizer"]])
        for place, part in enumerate(parts):
            at_beginning = place == 0 or inside_word  # later parts do to the first word what they do to all
            if part["type"] == "Metaspace" and (at_beginning or part.get("prepend_scheme") == "first"):
                part |= {"prepend_scheme": "never"}
            if part["type"] == "ByteLevel" and at_beginning:
                part |= {"add_prefix_space": False}
    return changed


def as_definition(pre_tokenizer: pre_tokenizers.PreTokenizer) -> dict[str, Any]:
    """How a tokenizer.json says it."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel())
    tokenizer.pre_tokenizer = pre_tokenizer
    return dict(json.loads(tokenizer.to_str())["pre_tokenizer"])
