"""/tokenize, /detokenize, /tokenizer_info, and the names of tokens."""

from pathlib import Path
from typing import Any

import pytest
from serve.conftest import Served

import rhapsode
from rhapsode.tokenizer import Tokenizer, train_tokenizer

TEXTS = ["once upon a time there was a dog. the dog was 🎉 happy.\n\tThe end, true▁and café."] * 4


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_there_and_back(served: Served, model: rhapsode.Model, prefix: str) -> None:
    """With and without /v1: what clients with a base address of either kind ask for."""

    def post(path: str, **body: Any) -> dict[str, Any]:
        answer = served.api.post(prefix + path, json=body)
        assert answer.status_code == 200
        return answer.json()

    text = "The 🎉 cat</s> é\n"
    for special in (True, False):
        tokens = post("/tokenize", prompt=text, add_special_tokens=special)
        assert tokens["tokens"] == model.tokenizer.encode(text)
        assert tokens["count"] == len(tokens["tokens"])
    assert post("/detokenize", tokens=tokens["tokens"]) == {"prompt": text}
    info = served.api.get(f"{prefix}/tokenizer_info").json()
    assert info["eos_token"] == "</s>"
    assert info["bos_token"] is None
    assert info["vocab_size"] == model.tokenizer.vocab_size
    assert post("/tokenize", prompt="</s>")["tokens"] == [model.tokenizer.eos_id] == [info["eos_token_id"]]
    assert model.tokenizer.eos_id not in post("/tokenize", prompt=" </s>")["tokens"]
    assert post("/tokenize", prompt="")["tokens"] == []
    assert "299" in served.refused(400, f"{prefix}/detokenize", tokens=[300])["message"]
    assert served.refused(400, f"{prefix}/tokenize", prompt=["a"])["param"] == "prompt"


@pytest.fixture(scope="module", params=["bpe", "unigram", "characters", "marks", "fallback"])
def vocabulary(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param in ("bpe", "unigram", "characters"):
        return train_tokenizer(TEXTS, request.param, 400)
    pieces = ["<pad>", "</s>", "<unk>", "▁true", "true", " true", "bytes:\\x0a", "\n", "▁"]
    bytes_too = [f"<0x{byte:02X}>" for byte in range(256)] if request.param == "fallback" else []
    return Tokenizer(
        {
            "version": "1.0",
            "model": {
                "type": "Unigram",
                "vocab": [[piece, -1.0] for piece in (*pieces, *bytes_too)],
                "unk_id": 2,
                "byte_fallback": bool(bytes_too),
            },
            "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
            "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
            "added_tokens": [],
        }
    )


def test_names_are_distinct_over_the_whole_vocabulary(vocabulary: Tokenizer) -> None:
    """Would catch two tokens that collide as keys of top_logprobs: true and ▁true, all broken bytes, a text that looks
    like the name of a byte."""
    names = vocabulary.names
    assert len(names) == len(set(names.values())) >= 9
    assert names[vocabulary.eos_id] == "</s>"


def test_names_say_what_a_token_is(vocabulary: Tokenizer) -> None:
    """The text itself where a token spells whole characters, a mark for its blank, and bytes by their numbers."""
    names = vocabulary.names
    for id in range(3, vocabulary.vocab_size):
        text = vocabulary.token_text(id)
        if names[id].startswith("bytes:"):
            assert vocabulary.kind != "characters"
        else:
            assert "<0x" not in text
            shown = (c if c.isprintable() else repr(c)[1:-1] for c in names[id].replace(" ", "▁"))
            assert "".join(shown) == text
    if vocabulary.kind == "bpe":
        assert {"bytes:\\xf0", " ", "e", "\n"} <= set(names.values())


def test_the_course_vocabulary(shared: Path) -> None:
    """The course's own tokenizer has pieces that differ in their mark alone."""
    folder = next(iter(sorted(shared.rglob("my_tokenizer"))), None)
    if folder is None:
        pytest.skip("needs the course's tokenizer")
    names = Tokenizer.load(folder).names
    assert len(names) == len(set(names.values())) > 1000
