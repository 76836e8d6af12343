"""Tokenizers: texts come back, streams are never broken, what is saved is what transformers reads."""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from rhapsode.tokenizer import Tokenizer, coding, train_tokenizer, training

TEXTS = [
    'Once upon a time, there was a little dog.\n"I am hungry," he said.\tHis owner, Lily, laughed.',
    "The cat and the hat sat on the mat. It was naïve – très naïve – of the cat 🎉.\n\nThe end.",
    "I'll say that they've been there 1234 times; we're glad.  Two  spaces, " + "na " * 40,
] * 4
KINDS = ("bpe", "unigram", "characters")
SIZES = {"bpe": 400, "unigram": 200, "characters": 100}


@pytest.fixture(scope="module")
def trained() -> dict[str, Tokenizer]:
    return {kind: train_tokenizer(TEXTS, kind, SIZES[kind]) for kind in KINDS}


@pytest.fixture(scope="module")
def byte_fallback() -> Tokenizer:
    """As Llama's: pieces with ▁ for spaces, others spelled as bytes, one leading space dropped."""
    pieces = ["<pad>", "</s>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdeflot ", "▁a"]
    vocab = {piece: id for id, piece in enumerate(pieces)}
    model = models.BPE(vocab, [("▁", "a")], unk_token="<unk>", byte_fallback=True)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return Tokenizer(json.loads(tokenizer.to_str()))


def streamed(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    stream = tokenizer.stream()
    return [*map(stream.push, ids), stream.flush()]


@given(text=st.text())
def test_bpe_is_lossless(trained: dict[str, Tokenizer], text: str) -> None:
    """Would catch any character, whitespace or spelled-out special token that does not come back."""
    assert trained["bpe"].decode(trained["bpe"].encode(text)) == text


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.text(alphabet=" \n\tOnceupatim,.thrswldog</>'’é–🎉"))
def test_texts_of_known_characters_come_back(trained: dict[str, Tokenizer], kind: str, text: str) -> None:
    """Would catch spaces that are joined, newlines that become spaces, and a leading space that is eaten."""
    known = {piece for text in TEXTS for piece in text}
    text = "".join(character for character in text if kind == "bpe" or character in known)
    assert trained[kind].decode(trained[kind].encode(text)) == text


@pytest.mark.parametrize("kind", KINDS)
def test_special_ids(trained: dict[str, Tokenizer], kind: str) -> None:
    """Would catch ids that move, and special tokens in a text that end it."""
    tokenizer = trained[kind]
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.unk_id) == (0, 1, None if kind == "bpe" else 2)
    assert tokenizer.kind == kind
    assert max(tokenizer.encode(TEXTS[0])) < tokenizer.vocab_size
    assert not {0, 1} & set(tokenizer.encode("a</s> b<pad></s>"))
    assert tokenizer.encode("") == []
    assert tokenizer.decode([1, *tokenizer.encode("the dog"), 1, 0]) == "the dog"
    if kind != "bpe":
        assert 2 in tokenizer.encode("中")
        assert tokenizer.decode(tokenizer.encode("a中b")) == "ab"


@pytest.mark.parametrize("kind", KINDS)
@given(
    texts=st.lists(
        st.text(alphabet=st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(" \n\t'\x1c\x85\xa0sS1<")))
    )
)
def test_batch_gives_the_ids_of_single_texts(trained: dict[str, Tokenizer], kind: str, texts: list[str]) -> None:
    """Would catch words that, cut out and encoded by themselves, have other ids than within their text."""
    tokenizer = trained[kind]
    batch = tokenizer.encode_batch(texts)
    assert [ids.tolist() for ids in batch] == [tokenizer.encode(text) for text in texts]
    assert all(ids.dtype == np.uint16 for ids in batch)


def test_remembered_words_are_bounded(trained: dict[str, Tokenizer], monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a memory that grows with the text, and ids that are forgotten before they are used."""
    monkeypatch.setattr(coding, "MOST_CHARACTERS_KEPT", 2000)
    tokenizer = train_tokenizer(TEXTS, "bpe", 300)
    for begin in range(0, 400, 5):
        texts = [f"word{begin} two{begin + n} the cat" for n in range(5)]
        assert [ids.tolist() for ids in tokenizer.encode_batch(texts)] == list(map(tokenizer.encode, texts))
        assert sum(len(word) + 64 for word in tokenizer._ids_of_word) <= 2000 + 20 * 80


def test_words_that_depend_on_neighbours_are_not_cut(byte_fallback: Tokenizer) -> None:
    """Would catch the short cut taken where a space is put before each text."""
    texts = ["a lot a cafe", " a"]
    batch = [ids.tolist() for ids in byte_fallback.encode_batch(texts)]
    assert batch == list(map(byte_fallback.encode, texts))
    assert byte_fallback.encode("a\na") != byte_fallback.encode("a") + byte_fallback.encode("\na")


@pytest.mark.parametrize("kind", [*KINDS, "byte_fallback"])
@given(data=st.data())
def test_stream_is_decode_bit_by_bit(
    trained: dict[str, Tokenizer], byte_fallback: Tokenizer, kind: str, data: st.DataObject
) -> None:
    """Would catch spaces lost between tokens, and any difference for byte sequences that are no UTF-8."""
    tokenizer = byte_fallback if kind == "byte_fallback" else trained[kind]
    if kind == "byte_fallback":
        ids = [1, *tokenizer.encode(data.draw(st.text())), 0, *tokenizer.encode(data.draw(st.text()))]
    else:
        ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=12))
    assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", ["bpe", "byte_fallback"])
def test_stream_never_shows_half_a_character(
    trained: dict[str, Tokenizer], byte_fallback: Tokenizer, kind: str
) -> None:
    """Would catch an emoji that appears as four replacement characters while it is written."""
    tokenizer = byte_fallback if kind == "byte_fallback" else trained["bpe"]
    text = "a 🦜 中文 é👩‍👩‍👧 to"
    ids = tokenizer.encode(text)
    assert len(ids) > len(text)
    parts = streamed(tokenizer, ids)
    assert "".join(parts) == text
    assert not any("\ufffd" in part for part in parts)
    assert parts[0] == "a" or parts[1] == "a"  # and nothing is held back without need
    broken = streamed(tokenizer, ids[:3])
    assert "".join(broken) == tokenizer.decode(ids[:3])


def test_token_text(trained: dict[str, Tokenizer]) -> None:
    """Would catch table cells that are invisible, broken or of two lines."""
    tokenizer = trained["bpe"]
    pieces = [tokenizer.token_text(id) for id in range(tokenizer.vocab_size)]
    assert pieces[:2] == ["<pad>", "</s>"]
    assert "▁" in pieces
    assert "\\n" in pieces
    assert "<0xF0>" in pieces
    assert "▁the" in pieces
    assert all(piece and piece.isprintable() for piece in pieces)
    assert trained["unigram"].token_text(trained["unigram"].encode(" dog")[0]).startswith("▁")
    with pytest.raises(ValueError, match="token id must be in the vocabulary"):
        tokenizer.token_text(tokenizer.vocab_size)


@pytest.mark.parametrize("kind", [*KINDS, "byte_fallback"])
def test_transformers_reads_what_we_save(
    trained: dict[str, Tokenizer], byte_fallback: Tokenizer, kind: str, tmp_path: Path
) -> None:
    """Would catch a folder that another program tokenizes differently: added ends, split special tokens."""
    transformers = pytest.importorskip("transformers")
    tokenizer = byte_fallback if kind == "byte_fallback" else trained[kind]
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in (*TEXTS, "a</s>b <pad>", "  two\n\n", "🦜 中文", ""):
        ids = tokenizer.encode(text)
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids)
    assert theirs.eos_token_id == tokenizer.eos_id
    assert theirs.pad_token_id == tokenizer.pad_id
    assert theirs.unk_token_id == tokenizer.unk_id
    again = Tokenizer.load(tmp_path)
    assert again.fingerprint == tokenizer.fingerprint
    assert Tokenizer.load(tmp_path / "tokenizer.json").fingerprint == tokenizer.fingerprint
    assert again.encode(TEXTS[1]) == tokenizer.encode(TEXTS[1])
    assert (again.kind, again.vocab_size) == (tokenizer.kind, tokenizer.vocab_size)


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_deterministic(trained: dict[str, Tokenizer], kind: str) -> None:
    """Would catch ids that follow the order of a randomly seeded hash table, as the library's do."""
    prints = {train_tokenizer(iter(TEXTS), kind, SIZES[kind]).fingerprint for _ in range(4)}
    assert prints == {trained[kind].fingerprint}
    assert train_tokenizer(TEXTS[:2], kind, SIZES[kind]).fingerprint not in prints


def test_training_takes_a_sample_of_long_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a sample that is the beginning only, or that grows with the text."""
    texts = [f"text {number:04d}" for number in range(1000)]
    sample = training.sample_of(iter(texts), 500)
    assert 250 <= sum(map(len, sample)) <= 500
    places = [int(text[5:]) for text in sample]
    assert places[0] == 0
    assert places[-1] > 900
    assert len({second - first for first, second in pairwise(places)}) == 1
    assert training.sample_of(["a", "", "b"], 500) == ["a", "b"]


def test_sizes_that_do_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch a vocabulary without all bytes, and a smaller one that nobody is told of."""
    with pytest.raises(ValueError, match=r"vocab_size must be >= 258 for bpe .*256 bytes.*, got 257"):
        train_tokenizer(TEXTS, "bpe", 257)
    assert train_tokenizer(TEXTS, "bpe", 258).vocab_size == 258
    with pytest.raises(ValueError, match=r"vocab_size must be >= \d+ for unigram .*different characters"):
        train_tokenizer(TEXTS, "unigram", 20)
    with pytest.raises(ValueError, match=r"vocab_size must be >= 6 for characters"):
        train_tokenizer(["abc"], "characters", 5)
    assert train_tokenizer(["cab"], "characters", 6).encode("abcd") == [3, 4, 5, 2]
    assert capsys.readouterr().err == ""
    small = train_tokenizer(["abc abc abc"], "bpe", 5000)
    assert small.vocab_size < 270
    assert f"the text gives {small.vocab_size} tokens, fewer than the 5,000" in capsys.readouterr().err
    with pytest.raises(ValueError, match="no text to train"):
        train_tokenizer([], "bpe")
    with pytest.raises(ValueError, match="tokenizer kind must be one of bpe, unigram, characters, got 'word'"):
        train_tokenizer(TEXTS, "word")


def test_course_tokenizer(shared: Path, tmp_path: Path) -> None:
    """Would catch the </s> that the course's post-processor appends, and its special ids mistaken."""
    transformers = pytest.importorskip("transformers")
    folder = shared / "data/course/my_tokenizer"
    tokenizer = Tokenizer.load(folder)
    assert (tokenizer.vocab_size, tokenizer.kind) == (1024, "unigram")
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.unk_id) == (0, 1, 2)
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    texts = json.loads((shared / "data/course/untokenized_train_stories.json").read_text())
    for text in texts:
        assert [*tokenizer.encode(text), 1] == theirs.encode(text).ids
        assert "".join(streamed(tokenizer, tokenizer.encode(text))) == " ".join(text.split())
    sequence = json.loads((shared / "data/course/tiny_train_stories.json").read_text())[0]
    assert tokenizer.decode(sequence).startswith(texts[0][:30])
    tokenizer.save(tmp_path)
    saved = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert saved(texts[0])["input_ids"] == tokenizer.encode(texts[0])


def test_end_of_text_token_is_found_or_asked_for(tmp_path: Path) -> None:
    """Would catch a guess against the folder's own word, and a tokenizer that can end no story."""

    def write(vocab: list[str], **config: object) -> Path:
        model = models.WordLevel({piece: id for id, piece in enumerate(vocab)}, unk_token=vocab[0])
        (tmp_path / "tokenizer.json").write_text(tokenizers.Tokenizer(model).to_str())
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        return tmp_path

    assert Tokenizer.load(write(["?", "<|endoftext|>", "a"])).eos_id == 1
    assert Tokenizer.load(write(["?", "</s>", "STOP"], eos_token="STOP")).eos_id == 2
    named = Tokenizer.load(write(["?", "</s>", "STOP"], eos_token={"content": "STOP", "special": True}))
    assert named.eos_id == 2
    assert named.decode([1, 2]) == "</s>"
    assert (named.pad_id, named.unk_id) == (None, 0)
    with pytest.raises(ValueError, match=r"tokenizer.json: nothing says which token ends a text; name eos_token"):
        Tokenizer.load(write(["?", "a"]))
    with pytest.raises(ValueError, match=r"eos_token is 'STOP', which is not in the vocabulary"):
        Tokenizer.load(write(["?", "a"], eos_token="STOP"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "tokenizer.json: not JSON"),
        ("[]", "tokenizer.json: not a JSON object"),
        ("{}", "tokenizer.json: not a tokenizer.json, it has no model"),
        ('{"model": {"type": "?", "vocab": {}}}', "tokenizer.json: not a tokenizer.json that"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"a tokenizer is a folder with tokenizer\.json"):
        Tokenizer.load(tmp_path / "nothing")
