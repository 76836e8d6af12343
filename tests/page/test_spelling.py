"""The tokenizer in JavaScript beside the library's: the same ids, the same text, the same names."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from modules import run_module
from tokenizers import decoders, models, pre_tokenizers

from rhapsode import storyworld
from rhapsode.export.spelling import description
from rhapsode.tokenizer import Tokenizer, train_tokenizer

ODD = [
    "",
    " ",
    "\n\n  Two  blanks,\ttabs\r\n and  trailing   ",
    "</s> in a text, <pad> and <unk> too, <0x41> and <",
    "Ünïcödé: ﬁ Å Å ｆｕｌｌ ½ ² İ ß",
    "emoji 👩‍👩‍👧‍👦 🇨🇭 👍🏽 and a lone 🦊",
    "עברית, العربية ١٢٣, 中文字 かな 한국어",
    "don't I'll we're 'tis it's 12,345.67 a_b-c",
    "▁ low ▁lines▁ and\u00a0hard\u2003blanks\u3000\u0085\u001c\ufeff|",
    "a" * 70 + " " + "xyz" * 30,
    " Zoe said:  Zoe's, Then\nÉmile met Ǆ and I met USA Çelik",
]
USE = 'import { Spelling } from "./spelling.js"; const spelling = new Spelling(given.description);'
SPELL = """
answer(given.texts.map((text) => {
  const ids = spelling.encode(text), stream = spelling.stream(), parts = ids.map((id) => stream.push(id));
  return [ids, parts.join("") + stream.flush()];
}));
"""


def noise(seed: int, count: int) -> list[str]:
    """Texts of characters from all over Unicode, whitespace often among them."""
    generator = np.random.default_rng(seed)
    ranges = [(0x20, 0x7F), (0x20, 0x7F), (0x9, 0xE), (0x80, 0x250), (0x370, 0x530), (0x2000, 0x2070), (0x4E00, 0x4E40)]
    ranges += [(0x1F600, 0x1F640), (0x20, 0x21)]
    texts = []
    for _ in range(count):
        chosen = generator.integers(0, len(ranges), 24)
        texts.append("".join(chr(generator.integers(*ranges[i])) for i in chosen))
    return texts


def low_lines(tokenizer: Tokenizer) -> Tokenizer:
    """The Unigram that was trained here before, with ▁ for a space."""
    definition = tokenizer.definition
    for entry in definition["model"]["vocab"]:
        entry[0] = entry[0].replace(" ", "▁")
    split = definition["pre_tokenizer"]["pretokenizers"][0]
    space = json.loads(pre_tokenizers.Metaspace(prepend_scheme="never").__getstate__())
    definition["pre_tokenizer"]["pretokenizers"] = [split, space]
    definition["decoder"] = json.loads(decoders.Metaspace(prepend_scheme="never").__getstate__())
    definition["model"]["byte_fallback"] = False
    return Tokenizer(definition)


@pytest.fixture(scope="module")
def kinds() -> dict[str, Tokenizer]:
    texts = [*storyworld.sample_batch(0, 150), "Ünï 中文 don't <b> ▁"]
    unigram = train_tokenizer(texts, "unigram", 700)
    return {
        "bpe": train_tokenizer(texts, "bpe", 700),
        "unigram": unigram,
        "unigram without bytes": train_tokenizer(texts, "unigram", 160),
        "unigram with low lines": low_lines(unigram),
        "characters": train_tokenizer(texts, "characters", 200),
    }


@pytest.mark.parametrize("kind", ["bpe", "unigram", "unigram without bytes", "unigram with low lines", "characters"])
def test_ids_and_text(kind: str, kinds: dict[str, Tokenizer], tmp_path: Path) -> None:
    """Would catch another cut between words, another best split, a byte spelled as a character, a lost blank."""
    tokenizer = kinds[kind]
    texts = [*ODD, *storyworld.sample_batch(9_000, 20), *noise(1, 200)]
    found = run_module(tmp_path, USE + SPELL, {"description": description(tokenizer), "texts": texts})
    for text, (ids, back) in zip(texts, found, strict=True):
        assert ids == tokenizer.encode(text), text
        assert back == tokenizer.decode(ids), text


def test_names_of_tokens(kinds: dict[str, Tokenizer], tmp_path: Path) -> None:
    """Would catch an alternative that is shown under another token's name."""
    for kind, tokenizer in kinds.items():
        ids = [id for id, piece in enumerate(tokenizer.pieces) if piece]
        found = run_module(
            tmp_path,
            USE + "answer(given.ids.map((id) => spelling.piece(id)));",
            {"description": description(tokenizer), "ids": ids},
        )
        assert found == [tokenizer.token_text(id) for id in ids], kind


def test_the_course_tokenizer(shared: Path, tmp_path: Path) -> None:
    """Would catch a normalisation that gives a course model other ids than it was trained on."""
    tokenizer = Tokenizer.load(shared / "data" / "course" / "my_tokenizer")
    lines = (shared / "data" / "tinystories" / "valid.jsonl").read_text(encoding="utf-8").splitlines()[:60]
    texts = [json.loads(line)["text"] for line in lines]
    texts += ["Ünïcödé: ﬁ Å Å ｆｕｌｌ ½ ² ß", "two  blanks\nand a line", " leading", "don’t “quote” …"]
    found = run_module(tmp_path, USE + SPELL, {"description": description(tokenizer), "texts": texts})
    for text, (ids, back) in zip(texts, found, strict=True):
        assert ids == tokenizer.encode(text), text
        assert back == tokenizer.decode(ids), text


def odd_tokenizers() -> list[tuple[str, Any]]:
    word_level = tokenizers.Tokenizer(models.WordLevel({"</s>": 0, "a": 1}, unk_token="</s>"))
    llama = tokenizers.Tokenizer(models.BPE({"</s>": 0, "▁": 1, "a": 2}, []))
    llama.normalizer, llama.decoder = tokenizers.normalizers.Prepend("▁"), decoders.Fuse()
    prefixed = tokenizers.Tokenizer(models.BPE({"</s>": 0, "a": 1}, []))
    prefixed.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    prefixed.decoder = decoders.ByteLevel()
    return [("WordLevel", word_level), ("Prepend", llama), ("pre_tokenizer", prefixed)]


@pytest.mark.parametrize(
    ("what", "tokenizer"), odd_tokenizers(), ids=lambda each: each if isinstance(each, str) else ""
)
def test_others_are_refused(what: str, tokenizer: Any) -> None:
    """Would catch a page that writes with other ids than the model was trained on."""
    with pytest.raises(ValueError, match=f"the page cannot .*{what}.*; export the model"):
        description(Tokenizer(json.loads(tokenizer.to_str())))
