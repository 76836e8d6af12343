"""Tokenizers: texts come back, streams are never broken, what is saved is what transformers reads."""

import json
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers

from rhapsode.tokenizer import Tokenizer, coding, train_tokenizer, training
from rhapsode.tokenizer.corrections import corrections, found
from rhapsode.tokenizer.definition import as_definition

TEXTS = [
    'Once upon a time, there was a little dog.\n"I am hungry," he said.\tHis owner, Lily, laughed.',
    "The cat and the hat sat on the mat. It was naïve – très naïve – of the cat 🎉.\n\nThe end.",
    "I'll say that they've been there 1234 times; we're glad.  Two  spaces, " + "na " * 40,
] * 4
KINDS = ("bpe", "unigram", "characters")
SIZES = {"bpe": 400, "unigram": 300, "characters": 100}


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


def library(model: models.Model, **parts: object) -> tokenizers.Tokenizer:
    """A tokenizer of the library with these parts."""
    tokenizer = tokenizers.Tokenizer(model)
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    return tokenizer


def ours(tokenizer: tokenizers.Tokenizer) -> Tokenizer:
    """The library's tokenizer as a tokenizer.json that a user brings."""
    return Tokenizer(json.loads(tokenizer.to_str()))


WORDS = models.WordLevel({w: i for i, w in enumerate(["<pad>", "</s>", "<unk>", "a", "b", "<", "/s>"])}, "<unk>")
PIECES = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((c, -3.0) for c in "▁abcs/<>unk\n"), ("▁a", -2.0)]
UNIGRAM = models.Unigram(PIECES, 2)


def foreign(kind: str) -> Tokenizer:
    """Tokenizers as people bring them; all but `words` spell "a</s> b" in characters, if they are asked rightly."""
    blanks, metaspace = pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()
    low_lines = decoders.Metaspace()
    before = {"unigram": metaspace, "t5": pre_tokenizers.Sequence([blanks, metaspace])}
    if kind in before:
        return ours(library(UNIGRAM, pre_tokenizer=before[kind], decoder=low_lines))
    if kind == "lower":
        return ours(library(UNIGRAM, pre_tokenizer=metaspace, decoder=low_lines, normalizer=normalizers.Lowercase()))
    if kind == "prepend":
        put = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        take = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
        return ours(library(UNIGRAM, normalizer=put, decoder=take))
    assert kind == "words"
    return ours(library(WORDS, pre_tokenizer=blanks))


def streamed(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    stream = tokenizer.stream()
    return [*map(stream.push, ids), stream.flush()]


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@given(text=st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("▁ \n\t<0x1>/s"))))
def test_any_text_comes_back(trained: dict[str, Tokenizer], kind: str, text: str) -> None:
    """Would catch any character, ▁, whitespace or spelled-out special token that does not come back."""
    tokenizer = trained[kind]
    assert tokenizer.holds_every_text
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.unk_id is None or tokenizer.unk_id not in tokenizer.encode(text)


@pytest.mark.parametrize("text", ["▁", "a ▁low▁line", "<0x41>", "</s><pad><unk> <s>", "中文 ▁\n"])
def test_what_looks_like_a_token_comes_back(trained: dict[str, Tokenizer], text: str) -> None:
    """Would catch ▁ that comes back as a space, and the name of a byte token as that byte."""
    for kind in ("bpe", "unigram"):
        assert trained[kind].decode(trained[kind].encode(text)) == text


def test_unigram_without_room_for_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch a small vocabulary that is refused, and one that loses characters without a word."""
    small = train_tokenizer(TEXTS, "unigram", 200)
    assert "no room for byte tokens" in capsys.readouterr().err
    assert not small.holds_every_text
    assert small.encode("中") == [small.unk_id]
    ids = small.encode_batch(["a中文b"])
    assert small.corrections(["a中文b"], ids) == [corrections("a中文b", "ab")]


def test_unigram_trained_before_still_loads() -> None:
    """Would catch old runs whose tokenizer, with ▁ for a space, is read otherwise than it was trained."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0), ("a", -2.0), ("▁a", -1.0), ("\n", -3.0)]
    alone = pre_tokenizers.Split(tokenizers.Regex(r"[^\S ]|<"), "isolated")
    before = pre_tokenizers.Sequence([alone, pre_tokenizers.Metaspace(prepend_scheme="never")])
    take = decoders.Metaspace(prepend_scheme="never")
    old = ours(library(models.Unigram(pieces, 2), pre_tokenizer=before, decoder=take))
    assert old.words_stand_alone
    assert not old.holds_every_text
    texts = ["a a\n  a", "a▁a", "a </s>"]
    ids = old.encode_batch(texts)
    assert [each.tolist() for each in ids] == [old.encode(text) for text in texts]
    assert ids[0].tolist() == [4, 5, 6, 3, 5]
    assert [each.num_bytes for each in old.corrections(texts, ids)] == [0, 3, 4]


def applied(decoded: str, changes: Sequence[tuple[int, int, str]]) -> str:
    """What becomes of a text by corrections: the receiver's side."""
    parts, done = [], 0
    for start, end, inserted in changes:
        assert start >= done
        parts += [decoded[done:start], inserted]
        done = end
    return "".join([*parts, decoded[done:]])


@given(data=st.data())
def test_corrections_give_the_text(data: st.DataObject) -> None:
    """Would catch a price for something that is not the text: whatever the ids gave, the text comes out."""
    text = data.draw(st.text("ab é", max_size=40))
    decoded = data.draw(st.one_of(st.text("ab é", max_size=40), st.just(text.lower()), st.just(text[3:])))
    places = st.integers(0, len(text))
    spans = sorted(tuple(sorted(span)) for span in data.draw(st.lists(st.tuples(places, places), max_size=3)))
    assert applied(decoded, list(found(text, decoded, spans))) == text
    price = corrections(text, decoded, spans)
    changes = list(found(text, decoded, spans)) if text != decoded else []
    assert price.num_bytes == sum(len(inserted.encode()) for _, _, inserted in changes)


def test_price_of_corrections() -> None:
    """Would catch a code that is no code: the bits are those of the corrections written out, and add up in pieces."""
    # One correction: the bit 1; 3 characters on, 1 dropped, 3 bytes put: gamma of 4, 2, 4: 5, 3, 5 bits; 24 bits.
    assert corrections("abc中d", "abcxd") == (3, 1 + 5 + 3 + 5 + 24, 1)
    assert corrections("same", "same") == (0, 0, 4)
    assert corrections("中" * 100_000, "", [(0, 100_000)]) == (300_000, 1 + 1 + 1 + 2 * 18 + 1 + 2_400_000, 0)
    whole = corrections("aXbbbbYc", "axbbbbyc")
    first = corrections("aXbb", "axbb")
    second = corrections("bbYc", "bbyc", tail=first.tail)
    assert (first.num_bytes + second.num_bytes, first.bits + second.bits, second.tail) == whole


def test_corrections_of_a_long_text_stay_near_the_loss() -> None:
    """Would catch a walk that loses its place, and pays for a megabyte because of a capital letter."""
    text = "Once Upon a time there was a cat named Tom. " * 5000
    price = corrections(text, text.lower())
    assert price.num_bytes == 3 * 5000
    without = text.replace("named", "")
    assert corrections(text, without).num_bytes == 5 * 5000


@pytest.mark.parametrize(
    ("kind", "text", "num_bytes"),
    [
        ("unigram", "a b", 0),
        ("unigram", "a 中文b", 6),
        ("unigram", "a▁b", 3),
        ("t5", "a  b b b a\na a a", 2),
        ("lower", "A b", 1),
        ("prepend", "a b", 0),
        ("words", "a b zzz a", 4),
    ],
)
def test_what_the_ids_do_not_hold(kind: str, text: str, num_bytes: int) -> None:
    """Would catch unknown characters, folded case, lost blanks that cost nothing; a leading blank that does."""
    tokenizer = foreign(kind)
    ids = tokenizer.encode_batch([text])
    loss = tokenizer.corrections([text], ids)[0]
    assert loss.num_bytes == num_bytes
    assert (loss.bits > 8 * num_bytes) == (num_bytes > 0)


def test_a_blank_before_every_text_is_no_loss() -> None:
    """Would catch a price for what the tokenizer always does: GPT-2's add_prefix_space, decoded with the blank."""
    trained = json.loads(train_tokenizer(TEXTS, "bpe", 300)._tokenizer.to_str())
    trained["pre_tokenizer"] = as_definition(pre_tokenizers.ByteLevel(add_prefix_space=True))
    tokenizer = Tokenizer(trained)
    assert tokenizer.decode(tokenizer.encode("a cat")) == " a cat"
    assert not tokenizer.holds_every_text
    assert tokenizer.corrections(["a cat"], tokenizer.encode_batch(["a cat"]))[0].bits == 0
    parts, continued = ["a cat", " and a dog", " sat"], [False, True, True]
    ids = tokenizer.encode_batch(parts, continued)
    assert [id for part in ids for id in part] == tokenizer.encode("".join(parts))
    assert not any(each.bits for each in tokenizer.corrections(parts, ids, continued))


@pytest.mark.parametrize("kind", ["unigram", "t5", "lower", "prepend", "byte_fallback"])
def test_pieces_have_the_ids_of_the_whole(byte_fallback: Tokenizer, kind: str) -> None:
    """Would catch a blank put before each piece of a long text, and one that is stripped off it."""
    tokenizer = byte_fallback if kind == "byte_fallback" else foreign(kind)
    parts, continued = ["a b", " ab", " a  b", "\na"], [False, True, True, True]
    ids = tokenizer.encode_batch(parts, continued)
    whole = tokenizer.encode("".join(parts))
    assert [id for part in ids for id in part] == whole
    losses = tokenizer.corrections(parts, ids, continued)
    at_once = tokenizer.corrections(["".join(parts)], [np.array(whole)])[0]
    assert [loss.num_bytes > 0 for loss in (*losses, at_once)] == [kind == "t5" and n > 1 for n in range(5)]


@pytest.mark.parametrize("kind", ["unigram", "t5", "lower", "prepend"])
@pytest.mark.parametrize("text", ["a </s> b", "</s>", "a</s></s>b <unk>", "<unk>a <pad></s", "</</s>s>", "ab</s>"])
def test_control_tokens_in_a_text_are_text(kind: str, text: str) -> None:
    """Would catch a vocabulary of the model's own that takes "</s>" in a story for its end."""
    tokenizer = foreign(kind)
    if "p" in text:  # which these vocabularies lack
        text = text.replace("<pad>", "<unk>")
    ids = tokenizer.encode(text)
    assert not {0, 1, 2} & set(ids)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode_batch([text, "a"])[0].tolist() == ids
    assert tokenizer.corrections([text], [np.array(ids)])[0].bits == 0


def test_control_tokens_that_cannot_be_spelled_are_unknown() -> None:
    """Would catch a word that ends the story, and a normaliser that makes a control token of what is none."""
    words = foreign("words")
    ids = words.encode("a </s> b <unk> zzz")
    assert ids == [3, 5, 6, 4, 5, 2, 2]  # "<" and "/s>" are words, "unk>" is not
    assert 1 not in foreign("lower").encode("A </S> b")
    single = models.WordLevel({"?": 0, "<|endoftext|>": 1, "!": 2, "a": 3}, "?")
    tokenizer = ours(library(single, pre_tokenizer=pre_tokenizers.WhitespaceSplit()))
    assert tokenizer.encode("a ? a") == [3, 0, 3]
    named = Tokenizer(
        json.loads(library(single, pre_tokenizer=pre_tokenizers.WhitespaceSplit()).to_str()), {"eos_token": "!"}
    )
    assert named.encode("a ! a") == [3, 0, 3]


def test_byte_tokens_in_a_text_are_text() -> None:
    """Would catch "<0x41>" in a text that a Unigram with byte fallback takes for the byte, and bytes it needs."""
    pieces = [*PIECES, *((f"<0x{byte:02X}>", -9.0) for byte in range(256))]
    take = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    put = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer = ours(library(models.Unigram(pieces, 2, byte_fallback=True), pre_tokenizer=put, decoder=take))
    for text in ("a <0x41> b", "中 <0x0A>", "<0x41><0x42>"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_words_without_end_are_learnt_in_parts() -> None:
    """Would catch training whose time grows with the square of a run of letters: by the length of what is learnt."""
    for length in (1_000, 100_000):
        parts = list(training.parts_of(["Once upon " + "acgt" * (length // 4) + " a time"]))
        assert "".join(parts) == "Once upon " + "acgt" * (length // 4) + " a time"
        assert max(len(word) for part in parts for word in part.split()) == 64
        assert len(parts) <= length / 64 + 2
    normal = ["Once upon a time\n", "incomprehensibilities, http://a.b"]
    assert list(training.parts_of(normal)) == normal
    sampled = list(training.parts_of(["acgt" * 100_000, "a time"], 10_000))
    assert 9_000 < sum(map(len, sampled)) <= 10_100
    assert sampled[-1] == "a time"


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_letters_without_a_blank_are_a_text_too(kind: str) -> None:
    """Would catch training that never ends (it took a minute for these), and pieces longer than what was learnt."""
    text = "".join(np.random.default_rng(0).choice(list("acgt"), 30_000))
    tokenizer = train_tokenizer([text], kind, 400)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode(text)) < len(text) / 2.5


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.text(alphabet=" \n\tOnceupatim,.thrswldog</>'’é–🎉"))
def test_texts_of_known_characters_come_back(trained: dict[str, Tokenizer], kind: str, text: str) -> None:
    """Would catch spaces that are joined, newlines that become spaces, and a leading space that is eaten."""
    known = {piece for text in TEXTS for piece in text}
    text = "".join(character for character in text if kind != "characters" or character in known)
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
    if kind == "characters":
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


def test_a_name_is_the_same_wherever_it_stands() -> None:
    """Would catch a name that has other tokens at the beginning of a line than after a space, so that it cannot be
    copied; a word that opens sentences, a lone I or letters in capitals taken for names."""
    text = 'Zoe met Rose.\n"Zoe," said Rose, "so I saw USA." They saw a rose. Then they ran, and then Zoe ran. '
    tokenizer = train_tokenizer([text * 20], "bpe", 350)
    pieces = [tokenizer.token_text(id) for id in tokenizer.encode(" Zoe and Zoe's Rose.\nRose I Then They USA  Zoe")]
    assert pieces[:5] == ["▁", "Zoe", "▁and", "▁", "Zoe"]
    assert pieces.count("Rose") == 1, "rose is half as often in lower case: no name, one token with its space"
    assert pieces.count("▁Rose") == 1
    assert {"▁I", "▁Then", "▁They"} <= set(pieces)
    assert pieces[-3:] == ["▁", "▁", "Zoe"]
    assert "▁USA" in pieces
    assert tokenizer.words_stand_alone
    assert tokenizer.holds_every_text


def test_spaces_stay_where_nouns_are_capitalised() -> None:
    """Would catch a text with many capitals, as German has, that gets a third more tokens."""
    text = "Der Hund lief durch den Wald und fand einen Ball. Das Kind warf den Ball in den Bach. "
    tokenizer = train_tokenizer([text * 20], "bpe", 350)
    assert tokenizer.definition["pre_tokenizer"]["type"] == "ByteLevel"
    assert "▁Ball" in [tokenizer.token_text(id) for id in tokenizer.encode("Ein Ball")]


@pytest.mark.parametrize(
    "pattern", [" ", r" (?=\p{Lu}\p{Ll})(?!(?:A|B )(?!\p{L}))", r" (?=\p{Lu}\p{Ll})(?!(?:.*)(?!\p{L}))"]
)
def test_other_patterns_are_not_taken_for_ours(pattern: str, trained: dict[str, Tokenizer]) -> None:
    """Would catch a tokenizer.json whose words depend on their neighbours, cut into words all the same."""
    split = pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    parts = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    definition = trained["bpe"].definition
    definition["pre_tokenizer"] = as_definition(parts)
    assert not Tokenizer(definition).words_stand_alone


def test_sizes_that_do_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch a vocabulary without all bytes, and a smaller one that nobody is told of."""
    with pytest.raises(ValueError, match=r"vocab_size must be >= 258 for bpe .*256 bytes.*, got 257"):
        train_tokenizer(TEXTS, "bpe", 257)
    assert train_tokenizer(TEXTS, "bpe", 258).vocab_size == 258
    assert "no room" not in capsys.readouterr().err
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
    with pytest.raises(ValueError, match=r"tokenizer.json: no token is marked as the end of a text; set eos_token"):
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


@pytest.mark.parametrize("unknown", ["?", ""])
@pytest.mark.parametrize(
    "kind",
    [lambda token: models.BPE({"</s>": 0, "a": 1}, [], unk_token=token), lambda t: models.WordLevel({"</s>": 0}, t)],
)
def test_an_unknown_token_that_is_not_there(kind: Callable[[str], models.Model], unknown: str) -> None:
    """Would catch a bare exception of the library at the first text that needs it, long after it was loaded."""
    message = f"tokenizer: the model's unk_token {unknown!r} is not in its vocabulary; add it there"
    with pytest.raises(ValueError, match=re.escape(message)):
        ours(library(kind(unknown)))


def test_a_merge_beyond_its_end(capfd: pytest.CaptureFixture[str]) -> None:
    """Would catch a panic of the library, which is no Exception and prints its own traceback."""
    good = library(models.BPE({"</s>": 0, "a": 1, "##b": 2, "ab": 3}, [("a", "##b")], continuing_subword_prefix="##"))
    assert ours(good).vocab_size == 4
    definition = json.loads(good.to_str())
    definition["model"]["continuing_subword_prefix"] = "#" * 10
    with pytest.raises(ValueError, match="a merge's second part '##b' lacks the model's continuing_subword_prefix"):
        Tokenizer(definition)
    assert capfd.readouterr().err == ""


def test_ids_without_end_are_refused(trained: dict[str, Tokenizer]) -> None:
    """Would catch one id of two billion, for which the tokenizers library and a model take all memory."""
    definition = trained["bpe"].definition
    piece = next(reversed(definition["model"]["vocab"]))
    definition["model"]["vocab"][piece] = 2**31
    with pytest.raises(ValueError, match="2,147,483,648 is the largest id of"):
        Tokenizer(definition)
    definition["model"]["vocab"][piece] = 60_000
    assert Tokenizer(definition).vocab_size == 60_001
