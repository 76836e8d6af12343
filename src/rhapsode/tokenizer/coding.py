"""Text to token ids and back: load any Hugging Face tokenizer.json, encode, decode as a stream, save.

The work is done by the `tokenizers` library; this module fixes what it leaves open: nothing is ever added
around a text, "</s>" spelled out in a text is four characters, the pieces of a long text get the ids they have in
it, what the ids do not hold of a text is known, and a stream of ids becomes text without broken characters.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from rhapsode.files import check_checksums, write_checksums, write_text
from rhapsode.tokenizer import definition as rules
from rhapsode.tokenizer.corrections import Corrections, corrections
from rhapsode.tokenizer.definition import BYTE_OF_CHARACTER, BYTE_OF_PIECE
from rhapsode.tokenizer.naming import distinct_names
from rhapsode.tokenizer.stream import Spelling, TextStream

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
EOS_NAMES = ("</s>", "<|endoftext|>", "<eos>", "[EOS]", "<|end_of_text|>", "<|im_end|>")
PAD_NAMES = ("<pad>", "[PAD]", "<|pad|>")
# A word with the whitespace before it. U+001C to U+001F are whitespace to Python, but not to the library.
WORD = re.compile(r"[^\S\x1c-\x1f]*[\S\x1c-\x1f]+|[^\S\x1c-\x1f]+")
MOST_CHARACTERS_KEPT = 20_000_000  # of words whose ids are remembered; about 250,000 words
PROBES = ("a", "e", "1", "а", "中", "あ", "ا")  # one of which a vocabulary is likely to have


MOST_IDS_PER_PIECE = 16  # and 65,536 more: some vocabularies skip ids, none so many


class Tokenizer:
    """A vocabulary with its rules for cutting text.

    vocab_size: the largest id + 1; dtype: the integer type that holds an id. eos_id ends each story; pad_id
    and unk_id may be None. kind: bpe, unigram or characters, or the library's name for what we do not train.
    words_stand_alone: whether the ids of a text cut before whitespace are those of the parts, one after the other.
    holds_every_text: whether `decode(encode(text))` is the text, whatever it is.
    fingerprint: SHA-256 of all that decides the ids.
    """

    def __init__(
        self, definition: dict[str, Any], special: dict[str, str] | None = None, name: str = "tokenizer"
    ) -> None:
        """definition: the parsed tokenizer.json; special: eos_token, pad_token, unk_token if files name them.

        Raises ValueError where the definition is not valid or nothing says which token ends a text.
        """
        # Both would add ids or drop them behind the caller's back.
        definition = definition | {"post_processor": None, "truncation": None, "padding": None}
        if (part := rules.part_without_prefix(definition["model"])) is not None:
            raise ValueError(f"{name}: a merge's second part {part[:40]!r} lacks the model's continuing_subword_prefix")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(definition))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the library raises bare Exception, and where it panics what is none
            raise ValueError(f"{name}: not a tokenizer.json that the tokenizers library reads: {error}") from None
        self._tokenizer.encode_special_tokens = True  # "</s>" in a text is four characters, not the end
        self._vocab = self._tokenizer.get_vocab(with_added_tokens=True)
        self._piece_of_id = {id: piece for piece, id in self._vocab.items()}
        self.vocab_size = max(self._piece_of_id, default=-1) + 1
        if self.vocab_size > MOST_IDS_PER_PIECE * len(self._vocab) + 2**16:  # there is a row of weights for each
            largest = f"{self.vocab_size - 1:,} is the largest id of {len(self._vocab):,} pieces"
            raise ValueError(f"{name}: {largest}: it is damaged, or its ids must be counted anew")
        self.kind = rules.kind(definition)

        special = special or {}
        model = definition["model"]
        unk = model.get("unk_token")
        if unk is None and model.get("unk_id") is not None:
            unk = model["vocab"][model["unk_id"]][0]
        # The library itself would notice at the first text that needs it.
        if isinstance(model["vocab"], dict) and unk is not None and unk not in model["vocab"]:
            raise ValueError(f"{name}: the model's unk_token {unk[:40]!r} is not in its vocabulary; add it there")
        eos_id = self._special_id("eos_token", special, EOS_NAMES, name)
        if eos_id is None:
            advice = "set eos_token in a tokenizer_config.json beside it"
            raise ValueError(f"{name}: no token is marked as the end of a text; {advice}")
        self.eos_id = eos_id
        self.pad_id = self._special_id("pad_token", special, PAD_NAMES, name)
        self.unk_id = self._special_id("unk_token", special, () if unk is None else (unk,), name)
        ends = [id for id in (self.eos_id, self.pad_id, self.unk_id) if id is not None]
        self._tokenizer.add_special_tokens([self._piece_of_id[id] for id in ends])
        added = self._tokenizer.get_added_tokens_decoder()
        self._skipped = {id for id, token in added.items() if token.special}
        falls_back = model.get("byte_fallback", False)
        bytes_of_model = {id for piece, id in self._vocab.items() if falls_back and piece in BYTE_OF_PIECE}
        self._spelled_controls = [id for id in sorted(self._skipped | bytes_of_model) if self._finds(id)]
        spellings = [re.escape(self._piece_of_id[id]) for id in self._spelled_controls]
        self._spelling = re.compile("|".join(spellings)) if spellings else None
        self._never_text = self._skipped - {self.unk_id}
        self.words_stand_alone = rules.words_stand_alone(definition) and not spellings
        self.holds_every_text = rules.holds_every_text(definition, self._vocab) and not spellings
        unknowns_are_seen = unk is not None and self._vocab.get(unk) == self.unk_id
        self._lacks_only_unknowns = rules.lacks_only_unknowns(definition) and unknowns_are_seen and not spellings
        self._ids_of_word: dict[str, bytes] = {}
        self._spellings: dict[Spelling, str] = {}  # of ids in streams
        self._kept_characters = 0
        self.dtype = np.dtype("<u2" if self.vocab_size <= 2**16 else "<u4")
        self._falls_back = rules.falls_back_to_bytes(definition)
        self._spells_bytes = self._falls_back or rules.is_byte_level(definition)
        roles = [self.eos_id, self.pad_id, self.unk_id]
        self.fingerprint = hashlib.sha256(f"{self._tokenizer.to_str()}{roles}".encode()).hexdigest()

    @property
    def definition(self) -> dict[str, Any]:
        """The parsed tokenizer.json of what is in use."""
        return json.loads(self._tokenizer.to_str())

    @property
    def pieces(self) -> list[str]:
        """By id, what the vocabulary calls each token; "" for an id that it skips."""
        return [self._piece_of_id.get(id, "") for id in range(self.vocab_size)]

    @cached_property
    def longest_piece(self) -> int:
        """The most characters that one token stands for, as the vocabulary spells it."""
        return max(map(len, self._vocab), default=1)

    @property
    def no_text(self) -> list[int]:
        """The ids that `decode` leaves out: ends, padding, unknown."""
        return sorted(self._skipped)

    def _special_id(self, role: str, special: dict[str, str], usual: Sequence[str], name: str) -> int | None:
        if role in special:
            if special[role] not in self._vocab:
                raise ValueError(f"{name}: {role} is {special[role]!r}, which is not in the vocabulary")
            return self._vocab[special[role]]
        return next((self._vocab[piece] for piece in usual if piece in self._vocab), None)

    def encode(self, text: str) -> list[int]:
        """The ids of the text and nothing else: no special tokens are added, and none is taken from the text."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        if self._spelling is None or not self._may_have_controls(text, ids):
            return ids
        return list(self._encode_as_text(text, self._tokenizer))

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Where each id of `encode(text)` stands in the text: start and end in characters.

        Ids that spell bytes of one character all have the whole character's.
        """
        return self._tokenizer.encode(text, add_special_tokens=False).offsets

    def encode_batch(self, texts: list[str], continued: Sequence[bool] | None = None) -> list[np.ndarray]:
        """Like `encode` for each text, as arrays of `dtype`, on all cores.

        continued: which of the texts go on where another was cut, before whitespace; what a tokenizer does at the
        beginning of a text, such as putting a blank before it, is not done there.
        Where a tokenizer treats each word by itself, a word is encoded once and its ids are kept: two to five
        times as fast on two cores, since most words of a text have been seen before.
        """
        if not self.words_stand_alone:
            if continued is None or self._continuing is self._tokenizer:
                return self._encode_all(texts, self._tokenizer)
            arrays = [np.empty(0, self.dtype)] * len(texts)
            for goes_on, tokenizer in ((False, self._tokenizer), (True, self._continuing)):
                chosen = [i for i, each in enumerate(continued) if each == goes_on]
                for i, ids in zip(chosen, self._encode_all([texts[i] for i in chosen], tokenizer), strict=True):
                    arrays[i] = ids
            return arrays
        words_of = [WORD.findall(text) for text in texts]
        words = set().union(*words_of)
        kept = self._ids_of_word
        unseen = [word for word in words if word not in kept]
        self._kept_characters += sum(len(word) + 64 for word in unseen)
        if self._kept_characters > MOST_CHARACTERS_KEPT:
            kept.clear()
            self._kept_characters, unseen = 0, list(words)
        for word, ids in zip(unseen, self._encode_all(unseen, self._tokenizer), strict=True):
            kept[word] = ids.tobytes()
        return [np.frombuffer(b"".join([kept[word] for word in words]), self.dtype) for words in words_of]

    def _encode_all(self, texts: list[str], tokenizer: tokenizers.Tokenizer) -> list[np.ndarray]:
        encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        lists: list[list[int]] = [encoding.ids for encoding in encodings]
        if self._spelling is not None:
            for i, text in enumerate(texts):
                if self._may_have_controls(text, lists[i]):
                    lists[i] = list(self._encode_as_text(text, tokenizer))
        return [np.array(ids, self.dtype) for ids in lists]

    # -- control tokens that a text spells ---------------------------------------------------------------------------

    def _finds(self, id: int) -> bool:
        """Whether the model itself, asked for text alone, finds this token where its name is spelled out."""
        piece = self._piece_of_id[id]
        if self._tokenizer.model.token_to_id(piece) is None:
            return False
        texts = (piece, f" {piece}", f"a{piece}a")
        return any(
            token == id and piece in text[start:end]
            for text in texts
            for token, (start, end) in _tokens(self._tokenizer.encode(text, add_special_tokens=False))
        )

    def _may_have_controls(self, text: str, ids: list[int]) -> bool:
        # The second: a normaliser can make a control token of what does not look like one.
        assert self._spelling is not None
        return self._spelling.search(text) is not None or not self._never_text.isdisjoint(ids)

    def _encode_as_text(self, text: str, tokenizer: tokenizers.Tokenizer) -> Iterator[int]:
        """The ids of a text with the names of control tokens in it, cut inside each name so that none is found."""
        encoding = tokenizer.encode(text, add_special_tokens=False)
        names = sorted({name for id, span in _tokens(encoding) for name in self._names(text, id, *span)})
        if not names:
            yield from (id for id in encoding.ids if id not in self._never_text)
            return
        begin = 0
        for start, end in names:
            if start < begin:
                continue
            cut = start + (end > start + 1)  # a name of one character cannot be cut, and is unknown
            yield from self._encode_part(text[begin:cut], tokenizer if begin == 0 else None)
            if cut == start and self.unk_id is not None:
                yield self.unk_id
            begin = start + 1
        yield from self._encode_part(text[begin:], None)

    def _encode_part(self, text: str, tokenizer: tokenizers.Tokenizer | None) -> Iterator[int]:
        """What begins where a name was cut is inside a word up to the next blank."""
        if tokenizer is not None:
            yield from self._encode_as_text(text, tokenizer)
            return
        word_end = next((place for place, character in enumerate(text) if character.isspace()), len(text))
        yield from self._encode_as_text(text[:word_end], self._inside_word)
        yield from self._encode_as_text(text[word_end:], self._continuing)

    def _names(self, text: str, id: int, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The spans in a token's span that name a control token; the name of the unknown one may be among unknowns."""
        if id in self._never_text:
            found = text[start:end]
            if found.strip():
                yield start + len(found) - len(found.lstrip()), start + len(found.rstrip())
        elif id in self._spelled_controls:  # the unknown token or a byte, which may stand there by right
            for match in re.finditer(re.escape(self._piece_of_id[id]), text[start:end]):
                yield start + match.start(), start + match.end()

    @cached_property
    def _continuing(self) -> tokenizers.Tokenizer:
        return self._variant(inside_word=False)

    @cached_property
    def _inside_word(self) -> tokenizers.Tokenizer:
        return self._variant(inside_word=True)

    def _variant(self, inside_word: bool) -> tokenizers.Tokenizer:
        """The same tokenizer for a text that goes on where another was cut."""
        whole = json.loads(self._tokenizer.to_str())
        changed = rules.without_beginning(whole, inside_word)
        if changed == whole:
            return self._tokenizer
        variant = tokenizers.Tokenizer.from_str(json.dumps(changed))
        variant.encode_special_tokens = True
        return variant

    # -- what the ids do not hold ------------------------------------------------------------------------------------

    def corrections(
        self, texts: list[str], arrays: Sequence[np.ndarray], continued: Sequence[bool] | None = None, tail: int = 0
    ) -> list[Corrections]:
        """What the ids that `encode_batch` gave lack of each text, and the price of saying it.

        tail: that of the piece before, where the first text goes on with it.
        """
        if self.holds_every_text:
            return [Corrections(0, 0, 0)] * len(texts)
        continued = continued or [False] * len(texts)
        whole = [self._is_whole(text, ids) for text, ids in zip(texts, arrays, strict=True)]
        doubtful = [i for i, is_whole in enumerate(whole) if not is_whole]
        decoded = iter(self._decode_pieces([arrays[i].tolist() for i in doubtful], [continued[i] for i in doubtful]))
        found = []
        for i, (text, ids) in enumerate(zip(texts, arrays, strict=True)):
            tail = tail if continued[i] else 0
            if whole[i] or (spelled := next(decoded)) == text:
                found.append(Corrections(0, 0, tail + len(text)))
            else:
                tokenizer = self._continuing if continued[i] else self._tokenizer
                found.append(corrections(text, spelled, self._unknown_spans(text, ids, tokenizer), tail))
            tail = found[-1].tail
        return found

    def _is_whole(self, text: str, ids: np.ndarray) -> bool:
        return self._lacks_only_unknowns and "▁" not in text and not (ids == self.unk_id).any()

    def _unknown_spans(self, text: str, ids: np.ndarray, tokenizer: tokenizers.Tokenizer) -> list[tuple[int, int]]:
        """Which characters the unknown tokens stand for; none where that cannot be told."""
        encoding = tokenizer.encode(text, add_special_tokens=False)
        if self.unk_id is None or encoding.ids != ids.tolist():
            return []
        return sorted({span for id, span in _tokens(encoding) if id == self.unk_id})

    def _decode_pieces(self, pieces: list[list[int]], continued: Sequence[bool]) -> list[str]:
        """The text of each piece, as a part of its story; a blank that always stands before a story is left out."""
        before = [self._context if goes_on else [] for goes_on in continued]
        skipped = len(self.decode(self._context))
        texts = self.decode_batch([[*context, *ids] for context, ids in zip(before, pieces, strict=True)])
        return [
            text[skipped:] if goes_on else text.removeprefix(" ") if self._leads_with_blank else text
            for text, goes_on in zip(texts, continued, strict=True)
        ]

    @cached_property
    def _leads_with_blank(self) -> bool:
        return any(self.decode(self.encode(probe)) == f" {probe}" for probe in PROBES)

    @cached_property
    def _context(self) -> list[int]:
        """Ids of a word that may stand before a piece that goes on."""
        encoded = (self.encode(probe) for probe in PROBES)
        return next((ids for ids in encoded if self.decode(ids).strip() in PROBES), [])

    def decode(self, ids: Sequence[int]) -> str:
        """The text that the ids spell; special tokens are left out, bytes that are no UTF-8 become U+FFFD."""
        if self._falls_back:  # the library would spell all bytes in a row by U+FFFD if one of them is wrong
            spelled = b"".join(self._bytes(id) for id in ids if id not in self._skipped)
            return spelled.decode("utf-8", errors="replace")
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def decode_batch(self, sequences: Sequence[Sequence[int]]) -> list[str]:
        """Like `decode` for each sequence, on all cores."""
        if self._falls_back:
            return [self.decode(ids) for ids in sequences]
        return self._tokenizer.decode_batch([list(ids) for ids in sequences], skip_special_tokens=True)

    def token_text(self, id: int) -> str:
        """One token as a printable piece for tables: a space is ▁, a lone byte <0xE2>, a newline \\n."""
        if id not in self._piece_of_id:
            raise ValueError(f"token id must be in the vocabulary of {self.vocab_size}, got {id}")
        piece = self._piece_of_id[id]
        if id in self._skipped:
            return piece
        if self._spells_bytes:
            piece = self._bytes(id).decode("utf-8", errors="surrogateescape")
        return "".join(map(_printable, piece))

    @cached_property
    def names(self) -> dict[int, str]:
        r"""The name of each id of the vocabulary, no two alike: its text, `bytes:\xe2` where that is broken."""
        byte_level = self._spells_bytes and not self._falls_back
        return distinct_names(self._piece_of_id, self._bytes if byte_level else None, self._skipped)

    def _bytes(self, id: int) -> bytes:
        """What a token spells where each spells bytes; a piece with foreign characters spells itself."""
        piece = self._piece_of_id.get(id, "")
        if self._falls_back:
            return bytes([BYTE_OF_PIECE[piece]]) if piece in BYTE_OF_PIECE else piece.encode()
        if all(character in BYTE_OF_CHARACTER for character in piece):
            return bytes(BYTE_OF_CHARACTER[character] for character in piece)
        return piece.encode()

    def stream(self) -> TextStream:
        """A decoder that takes ids one at a time."""
        bytes_of = self._bytes if self._spells_bytes else None
        return TextStream(self.decode, bytes_of, self._skipped, self._spellings)

    def save(self, folder: Path) -> None:
        """Writes tokenizer.json, tokenizer_config.json and special_tokens_map.json, and SHA256SUMS of them.

        `transformers.AutoTokenizer.from_pretrained(folder)` then encodes as this class does.
        """
        folder.mkdir(parents=True, exist_ok=True)
        ids = {"eos_token": self.eos_id, "pad_token": self.pad_id, "unk_token": self.unk_id}
        special = {role: self._piece_of_id[id] for role, id in ids.items() if id is not None}
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "split_special_tokens": True,
            "model_max_length": 10**30,
            **special,
        }
        write_text(folder / "tokenizer.json", self._tokenizer.to_str(pretty=True) + "\n")
        write_text(folder / "tokenizer_config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")
        write_text(folder / "special_tokens_map.json", json.dumps(special, indent=2, ensure_ascii=False) + "\n")
        write_checksums(folder, "a tokenizer", [folder / name for name in TOKENIZER_FILES])

    @classmethod
    def load(cls, path: Path, checked: bool = True) -> "Tokenizer":
        """Loads a tokenizer folder or a tokenizer.json (whose folder's other files are then looked at too).

        checked: whether its files must match SHA256SUMS, where there is one. Raises FileNotFoundError or ValueError
        with one line that names the file.
        """
        path = Path(path)
        file = path / "tokenizer.json" if path.is_dir() else path
        if not file.exists():
            raise FileNotFoundError(f"{file}: no such file; a tokenizer is a folder with tokenizer.json, or that file")
        if checked:
            check_checksums(file.parent)
        special: dict[str, str] = {}
        for name in ("special_tokens_map.json", "tokenizer_config.json"):  # the second has the last word
            if (beside := file.parent / name).exists():
                for role in ("eos_token", "pad_token", "unk_token"):
                    token = _read_json(beside).get(role)
                    token = token.get("content") if isinstance(token, dict) else token
                    if token is not None:
                        special[role] = token
        definition = _read_json(file)
        if not isinstance(definition.get("model"), dict) or "vocab" not in definition["model"]:
            raise ValueError(f"{file}: not a tokenizer.json, it has no model with a vocabulary")
        return cls(definition, special, str(file))


def _printable(character: str) -> str:
    if 0xDC80 <= ord(character) <= 0xDCFF:  # a lone byte, as `surrogateescape` marks it
        return f"<0x{ord(character) - 0xDC00:02X}>"
    return "▁" if character == " " else character if character.isprintable() else repr(character)[1:-1]


def _tokens(encoding: Any) -> list[tuple[int, tuple[int, int]]]:
    """Ids with the spans of the text that they stand for."""
    return list(zip(encoding.ids, encoding.offsets, strict=True))


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file}: not a JSON object")
    return content
