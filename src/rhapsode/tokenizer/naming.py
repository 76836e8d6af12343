"""Names for the tokens of a vocabulary, no two of them alike: what an answer in JSON calls them."""

from collections import Counter
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet

from rhapsode.tokenizer.definition import BYTE_OF_PIECE


def distinct_names(
    pieces: Mapping[int, str], bytes_of: Callable[[int], bytes] | None, skipped: AbstractSet[int]
) -> dict[int, str]:
    r"""A name for each id: the text that it spells, `bytes:\xe2\x96` where that is no whole character.

    pieces: of the vocabulary, by id. bytes_of: what a token of a byte-level vocabulary spells; elsewhere the name is
    the piece, with the mark of a space where it has one (▁the and the are two), or `bytes:` and the byte. skipped: the
    ids that spell nothing, whose name is their piece. Two tokens that would share a name have their ids behind it.
    """
    names = {}
    for id, piece in pieces.items():
        if id in skipped or (bytes_of is None and piece not in BYTE_OF_PIECE):
            names[id] = piece
        else:
            names[id] = _spelling(bytes_of(id)) if bytes_of else _byte_name(bytes([BYTE_OF_PIECE[piece]]))
    while shared := {name for name, count in Counter(names.values()).items() if count > 1}:
        names = {id: f"{name}#{id}" if name in shared else name for id, name in names.items()}
    return names


def _spelling(spelled: bytes) -> str:
    try:
        return spelled.decode()
    except UnicodeDecodeError:
        return _byte_name(spelled)


def _byte_name(spelled: bytes) -> str:
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelled)
