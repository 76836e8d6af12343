"""Text to token ids and back: load any Hugging Face tokenizer.json, encode, decode as a stream, save.

The work is done by the `tokenizers` library; this module fixes what it leaves open: nothing is ever added
around a text, "</s>" spelled out in a text is four characters, and a stream of ids becomes text without
broken characters.
"""

import codecs
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import Regex, pre_tokenizers

from rhapsode.atomic import write_text

EOS_NAMES = ("</s>", "<|endoftext|>", "<eos>", "[EOS]", "<|end_of_text|>", "<|im_end|>")
PAD_NAMES = ("<pad>", "[PAD]", "<|pad|>")
REPLACEMENT = "\ufffd"
# A word with the whitespace before it. U+001C to U+001F are whitespace to Python, but not to the library.
WORD = re.compile(r"[^\S\x1c-\x1f]*[\S\x1c-\x1f]+|[^\S\x1c-\x1f]+")
MOST_CHARACTERS_KEPT = 20_000_000  # of words whose ids are remembered; about 250,000 words
# A space begins a piece and other whitespace stands alone; so does "<", or Unigram would take "</s>" in a
# text for the special token.
SPACES_LEAD = pre_tokenizers.Sequence(
    [pre_tokenizers.Split(Regex(r"[^\S ]|<"), "isolated"), pre_tokenizers.Metaspace(prepend_scheme="never")]
)


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


class Tokenizer:
    """A vocabulary with its rules for cutting text.

    vocab_size: the largest id + 1; dtype: the integer type that holds an id. eos_id ends each story; pad_id
    and unk_id may be None. kind: bpe, unigram or characters, or the library's name for what we do not train.
    words_stand_alone: whether the ids of a text cut before whitespace are those of the parts, one after the other.
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
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(definition))
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"{name}: not a tokenizer.json that the tokenizers library reads: {error}") from None
        self._tokenizer.encode_special_tokens = True  # "</s>" in a text is four characters, not the end
        self._vocab = self._tokenizer.get_vocab(with_added_tokens=True)
        self._piece_of_id = {id: piece for piece, id in self._vocab.items()}
        self.vocab_size = max(self._piece_of_id, default=-1) + 1
        self.kind = _kind(definition)

        special = special or {}
        model = definition["model"]
        unk = model.get("unk_token") or (
            model["vocab"][model["unk_id"]][0] if model.get("unk_id") is not None else None
        )
        eos_id = self._special_id("eos_token", special, EOS_NAMES, name)
        if eos_id is None:
            advice = "name eos_token in a tokenizer_config.json beside it"
            raise ValueError(f"{name}: nothing says which token ends a text; {advice}")
        self.eos_id = eos_id
        self.pad_id = self._special_id("pad_token", special, PAD_NAMES, name)
        self.unk_id = self._special_id("unk_token", special, (unk,) if unk else (), name)
        ends = [id for id in (self.eos_id, self.pad_id, self.unk_id) if id is not None]
        self._tokenizer.add_special_tokens([self._piece_of_id[id] for id in ends])
        added = self._tokenizer.get_added_tokens_decoder()
        self._skipped = {id for id, token in added.items() if token.special}
        self.words_stand_alone = _words_stand_alone(definition)
        self._ids_of_word: dict[str, bytes] = {}
        self._kept_characters = 0
        self.dtype = np.dtype("<u2" if self.vocab_size <= 2**16 else "<u4")
        self._is_byte_level = (definition.get("decoder") or {}).get("type") == "ByteLevel"
        roles = [self.eos_id, self.pad_id, self.unk_id]
        self.fingerprint = hashlib.sha256(f"{self._tokenizer.to_str()}{roles}".encode()).hexdigest()

    def _special_id(self, role: str, special: dict[str, str], usual: Sequence[str], name: str) -> int | None:
        if role in special:
            if special[role] not in self._vocab:
                raise ValueError(f"{name}: {role} is {special[role]!r}, which is not in the vocabulary")
            return self._vocab[special[role]]
        return next((self._vocab[piece] for piece in usual if piece in self._vocab), None)

    def encode(self, text: str) -> list[int]:
        """The ids of the text and nothing else: no special tokens are added."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Where each id of `encode(text)` stands in the text: start and end in characters.

        Ids that spell bytes of one character all have the whole character's.
        """
        return self._tokenizer.encode(text, add_special_tokens=False).offsets

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """Like `encode` for each text, as arrays of `dtype`, on all cores.

        Where a tokenizer treats each word by itself, a word is encoded once and its ids are kept: two to five
        times as fast on two cores, since most words of a text have been seen before.
        """
        if not self.words_stand_alone:
            return [np.array(ids, self.dtype) for ids in self._encode_all(texts)]
        words_of = [WORD.findall(text) for text in texts]
        words = set().union(*words_of)
        kept = self._ids_of_word
        unseen = [word for word in words if word not in kept]
        self._kept_characters += sum(len(word) + 64 for word in unseen)
        if self._kept_characters > MOST_CHARACTERS_KEPT:
            kept.clear()
            self._kept_characters, unseen = 0, list(words)
        for word, ids in zip(unseen, self._encode_all(unseen), strict=True):
            kept[word] = np.array(ids, self.dtype).tobytes()
        return [np.frombuffer(b"".join([kept[word] for word in words]), self.dtype) for words in words_of]

    def _encode_all(self, texts: list[str]) -> list[list[int]]:
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        """The text that the ids spell; special tokens are left out, bytes that are no UTF-8 become U+FFFD."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def decode_batch(self, sequences: Sequence[Sequence[int]]) -> list[str]:
        """Like `decode` for each sequence, on all cores."""
        return self._tokenizer.decode_batch([list(ids) for ids in sequences], skip_special_tokens=True)

    def token_text(self, id: int) -> str:
        """One token as a printable piece for tables: a space is ▁, a lone byte <0xE2>, a newline \\n."""
        if id not in self._piece_of_id:
            raise ValueError(f"token id must be in the vocabulary of {self.vocab_size}, got {id}")
        piece = self._piece_of_id[id]
        if id in self._skipped:
            return piece
        if self._is_byte_level:
            piece = self._bytes(id).decode("utf-8", errors="surrogateescape")
        return "".join(map(_printable, piece))

    def _bytes(self, id: int) -> bytes:
        """What a token of a byte-level vocabulary spells; a piece with foreign characters spells itself."""
        piece = self._piece_of_id.get(id, "")
        if all(character in BYTE_OF_CHARACTER for character in piece):
            return bytes(BYTE_OF_CHARACTER[character] for character in piece)
        return piece.encode()

    def stream(self) -> "TextStream":
        """A decoder that takes ids one at a time."""
        return TextStream(self)

    def save(self, folder: Path) -> None:
        """Writes tokenizer.json, tokenizer_config.json and special_tokens_map.json into the folder.

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

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Loads a tokenizer folder or a tokenizer.json (whose folder's other files are then looked at too).

        Raises FileNotFoundError or ValueError with one line that names the file.
        """
        path = Path(path)
        file = path / "tokenizer.json" if path.is_dir() else path
        if not file.exists():
            raise FileNotFoundError(f"{file}: no such file; a tokenizer is a folder with tokenizer.json, or that file")
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


class TextStream:
    """Turns ids into text as they come: what `push` and the final `flush` return, joined, is `decode(ids)`.

    Text is held back until it is certain, so a character whose bytes are several tokens comes out whole. One
    exception: the library's byte fallback (Llama's tokenizers have it) spells a run of byte tokens by U+FFFD
    alone if it is broken anywhere; whole characters before the broken place are out by then.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        # A byte-level vocabulary spells bytes, and Python decodes those as they come. Other decoders (leading
        # spaces, byte fallback) look at neighbours: there we decode the last ids again, with those before
        # them as context.
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace") if tokenizer._is_byte_level else None
        self._context: list[int] = []
        self._fresh: list[int] = []

    def push(self, id: int) -> str:
        """Takes the next id and returns the text that is now certain, which may be empty."""
        if id in self._tokenizer._skipped:
            return ""
        if self._bytes is not None:
            return self._bytes.decode(self._tokenizer._bytes(id))
        self._fresh.append(id)
        text = self._fresh_text()
        if text.endswith(REPLACEMENT):
            return ""
        if text:
            self._context, self._fresh = self._fresh, []
        return text

    def flush(self) -> str:
        """Returns what was held back, with U+FFFD for a character that never ended; then it is new."""
        text = self._bytes.decode(b"", final=True) if self._bytes is not None else self._fresh_text()
        self._context, self._fresh = [], []
        return text

    def _fresh_text(self) -> str:
        before = self._tokenizer.decode(self._context) if self._context else ""
        return self._tokenizer.decode(self._context + self._fresh)[len(before) :]


def _printable(character: str) -> str:
    if 0xDC80 <= ord(character) <= 0xDCFF:  # a lone byte, as `surrogateescape` marks it
        return f"<0x{ord(character) - 0xDC00:02X}>"
    return "▁" if character == " " else character if character.isprintable() else repr(character)[1:-1]


def _kind(definition: dict[str, Any]) -> str:
    model = definition["model"]
    if model.get("type") == "BPE":
        return "bpe" if model.get("merges") else "characters"
    return str(model.get("type", "unknown")).lower()


def _words_stand_alone(definition: dict[str, Any]) -> bool:
    """Whether a text cut before whitespace has the same ids: what we train does, and what GPT-2 began."""
    model, before = definition["model"], definition.get("pre_tokenizer")
    added = definition.get("added_tokens", [])
    if definition.get("normalizer") or model.get("dropout") or not all(token["special"] for token in added):
        return False
    if before is None:
        return _kind(definition) == "characters"
    gpt2 = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    return before == _json_of(SPACES_LEAD) or {key: before.get(key) for key in gpt2} == gpt2


def _json_of(pre_tokenizer: pre_tokenizers.PreTokenizer) -> dict[str, Any]:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel())
    tokenizer.pre_tokenizer = pre_tokenizer
    return json.loads(tokenizer.to_str())["pre_tokenizer"]


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file}: not a JSON object")
    return content
