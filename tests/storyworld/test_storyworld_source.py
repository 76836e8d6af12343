"""storyworld as a source: what its names mean, and a store that is the one of its texts."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rhapsode import storyworld
from rhapsode.sources import FileSource, open_source
from rhapsode.storyworld import corpus
from rhapsode.storyworld.source import GeneratedSource
from rhapsode.tokenizer import Tokenizer, train_tokenizer
from rhapsode.tokens import prepare, store, tokenizer_for, writing

FILES = ("tokens.bin", "offsets.npy", "bytes.npy", "marks.npy")


def generated(*locations: str) -> GeneratedSource:
    source = open_source(locations)
    assert isinstance(source, GeneratedSource)
    return source


@pytest.mark.parametrize(
    ("location", "count", "split"),
    [
        ("storyworld", 50_000, "train"),
        ("storyworld:70", 70, "train"),
        ("storyworld:valid", 1_000, "valid"),
        ("storyworld:train", 50_000, "train"),
        ("storyworld:5:held_out_skeletons", 5, "held_out_skeletons"),
    ],
)
def test_names(location: str, count: int, split: str) -> None:
    """Would catch a count or split that is dropped on the way: training would see what is held out."""
    source = generated(location)
    assert (source.count, source.split, source.seed_start, source.kind) == (count, split, 0, "text")
    assert source.description == f"storyworld: {count:,} stories of the split {split}"


@pytest.mark.parametrize(
    ("locations", "said"),
    [
        (["storyworld:abc"], "storyworld:abc: 'abc' is not a number of stories (1 or more), nor a split (train, valid"),
        (["storyworld:0"], "storyworld:0: '0' is not a number of stories"),
        (["storyworld:-5"], "'-5' is not a number of stories"),
        (["storyworld:²"], "'²' is not a number of stories"),
        (["storyworld:"], "'' is not a number of stories"),
        (["storyworld:x:valid"], "storyworld:x:valid: 'x' is not a number of stories (1 or more)"),
        (["storyworld:5:nosuch"], "storyworld:5:nosuch: storyworld has no split 'nosuch'; its splits are train, valid"),
        (["storyworld:5:valid:2"], "write it as storyworld:COUNT:SPLIT"),
        (["storyworld:valid:5"], "'valid' is not a number of stories"),
        ([f"storyworld:{2**64 + 1}"], "seeds must be from 0 to 2^64 - 1"),
        (["a.txt", "storyworld:5"], "storyworld cannot be mixed with other data, got a.txt, storyworld:5"),
        (["storyworld", "storyworld:valid"], "storyworld cannot be mixed with other data"),
    ],
)
def test_bad_names(locations: list[str], said: str) -> None:
    """Would catch a number or split read wrongly in silence, and a message of several lines."""
    with pytest.raises(ValueError) as caught:
        open_source(locations)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_with_the_same_name_is_still_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch files that cannot be reached any more, and a corpus that depends on the working directory."""
    (tmp_path / "storyworld").mkdir()
    (tmp_path / "storyworld" / "a.txt").write_text("One.\n\nTwo.\n")
    monkeypatch.chdir(tmp_path)
    found = open_source(["./storyworld"])
    assert isinstance(found, FileSource)
    assert list(found.stories()) == ["One.", "Two."]
    generated("storyworld")


def test_stories_and_pieces_are_the_seeds() -> None:
    """Would catch stories of other seeds than those that `training_stories` makes again."""
    source = GeneratedSource(23, "valid", seed_start=2**64 - 23)
    expected = storyworld.sample_batch(2**64 - 23, 23, "valid")
    read: list[float] = []
    assert list(source.stories()) == expected
    assert [piece.text for piece in source.pieces(read.append)] == expected
    assert sum(read) == sum(len(text.encode()) for text in expected)
    assert "starting at seed 18,446,744,073,709,551,593" in source.description


def test_fingerprint_tells_what_decides_the_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a store found again after the grammar, the generator, the split or the seeds changed."""
    prints = [
        GeneratedSource(count, split, seed).fingerprint()
        for count, split, seed in ((5, "train", 0), (6, "train", 0), (5, "valid", 0), (5, "train", 1))
    ]
    monkeypatch.setattr(corpus, "GENERATOR_VERSION", corpus.GENERATOR_VERSION + 1)
    corpus.fingerprint.cache_clear()
    prints.append(GeneratedSource(5).fingerprint())
    monkeypatch.undo()
    corpus.fingerprint.cache_clear()
    assert len(set(prints)) == 5
    assert GeneratedSource(5).fingerprint() == prints[0]


# The store


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Tokenizer]:
    texts = storyworld.sample_batch(0, 300)
    made = {kind: train_tokenizer(texts, kind, 600) for kind in ("bpe", "unigram", "characters")}
    definition = json.loads(made["unigram"]._tokenizer.to_str())
    # As the course's: line breaks are parts of words, so that a piece may run from one fragment into the next.
    definition["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    made["foreign"] = Tokenizer(definition)
    return made


@pytest.mark.parametrize("kind", ["bpe", "unigram", "characters", "foreign"])
def test_store_is_the_one_of_the_texts(
    tmp_path: Path, tokenizers: dict[str, Tokenizer], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch ids that merge over fragments, a </s> or bytes miscounted, and batches out of order."""
    tokenizer = tokenizers[kind]
    monkeypatch.setattr(storyworld, "STORIES_PER_BATCH", 100)
    texts = storyworld.sample_batch(0, 250, "held_out_combinations")
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    expected = prepare(open_source([str(tmp_path / "texts.jsonl")]), tokenizer, tmp_path / "texts")
    with monkeypatch.context() as patch:
        if kind != "foreign":  # no text is even made
            patch.setattr(GeneratedSource, "pieces", None)
        made = prepare(generated("storyworld:250:held_out_combinations"), tokenizer, tmp_path / "generated")
    for name in FILES:
        (one,), (other,) = (list((tmp_path / folder).glob(f"*/{name}")) for folder in ("texts", "generated"))
        assert one.read_bytes() == other.read_bytes(), name
    differing = {"fingerprint", "source_fingerprint", "description"}
    assert {key for key in made._about if made._about[key] != expected._about[key]} == differing
    assert tokenizer.words_stand_alone == (kind != "foreign")


def test_the_table_would_be_wrong_for_a_foreign_tokenizer(tokenizers: dict[str, Tokenizer]) -> None:
    """The test above must have a case in which fragments do not give the ids of the text."""
    encode = tokenizers["foreign"].encode
    tokens, _ = storyworld.fragment_tokens(encode).tokens(*storyworld.sample_fragments(0, 1))
    assert tokens.tolist() != encode(storyworld.sample(0).text)


def test_more_ids_than_sixteen_bits_hold(tmp_path: Path, tokenizers: dict[str, Tokenizer]) -> None:
    """Would catch ids cut off at 65,536, and a store of another width than its tokenizer's."""
    definition = json.loads(tokenizers["bpe"]._tokenizer.to_str())
    shift = {id: id + 70_000 for id in range(300, 600)}
    definition["model"]["vocab"] = {word: shift.get(id, id) for word, id in definition["model"]["vocab"].items()}
    wide = Tokenizer(definition)
    made = prepare(generated("storyworld:20"), wide, tmp_path)
    assert made.tokens.dtype == "<u4"
    for i, text in enumerate(storyworld.sample_batch(0, 20)):
        assert made.story(i).tolist() == [*wide.encode(text), wide.eos_id]
    assert made.tokens.max() > 70_000


def test_one_tokenizer_for_all_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a tokenizer trained on a million stories, or anew for each number of them."""
    monkeypatch.setattr(store, "TOKENIZER_STORIES", 40)
    trained = tokenizer_for(generated("storyworld:41"), "bpe", 300, tmp_path)
    assert trained.fingerprint == train_tokenizer(storyworld.sample_batch(0, 40), "bpe", 300).fingerprint
    with monkeypatch.context() as patch:
        patch.setattr(store, "train_tokenizer", None)
        again = tokenizer_for(generated(f"storyworld:{10**12}"), "bpe", 300, tmp_path)
    assert again.fingerprint == trained.fingerprint
    fewer = tokenizer_for(generated("storyworld:39"), "bpe", 300, tmp_path)
    assert fewer.fingerprint == train_tokenizer(storyworld.sample_batch(0, 39), "bpe", 300).fingerprint


def test_every_character_is_known(tmp_path: Path) -> None:
    """Would catch <unk> in stories because the tokenizer's sample lacks a character that other stories have."""
    trained = tokenizer_for(generated("storyworld"), "characters", 100, tmp_path)
    assert trained.unk_id is not None
    assert trained.unk_id not in trained.encode("".join(storyworld.fragments()))


def test_an_interrupted_store_leaves_nothing(
    tmp_path: Path, tokenizers: dict[str, Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch half a store left behind by Ctrl-C, which the next run would take for whole."""

    @contextmanager
    def interrupted(*_: object) -> Iterator[Callable[[float], None]]:
        def advance(_: float) -> None:
            raise KeyboardInterrupt

        yield advance

    monkeypatch.setattr(writing, "bar", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(generated("storyworld:10000"), tokenizers["bpe"], tmp_path)
    assert list(tmp_path.iterdir()) == []
