"""Drawing stories: reproducible, alike one by one and in batches, in text, fragments and tokens."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from rhapsode import storyworld

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "storyworld.json"


def test_ten_golden_stories() -> None:
    """Catches any change of generator, weights or wording: runs would no longer compare.

    Where code changed them on purpose, raise corpus.GENERATOR_VERSION, by which stores of storyworld are found.
    """
    golden = json.loads(GOLDEN.read_text("utf-8"))
    assert golden["format_version"] == 1
    assert len(golden["stories"]) == 10
    for expected in golden["stories"]:
        story = storyworld.sample(expected["seed"], expected["split"])
        assert story.text == expected["text"]
        assert story.skeleton == expected["skeleton"]
        assert story.log_probability == pytest.approx(expected["log_probability"], rel=1e-12)


@given(st.integers(0, 2**64 - 60), st.integers(0, 50), st.sampled_from(storyworld.SPLITS))
@settings(max_examples=15)
def test_batch_is_one_by_one(seed: int, count: int, split: str) -> None:
    """Catches a NumPy generator that drifts from the one in Python integers, at every size of seed."""
    one_by_one = [storyworld.sample(seed + i, split) for i in range(count)]
    assert storyworld.sample_batch(seed, count, split) == [story.text for story in one_by_one]
    batched = storyworld.sample_log_probabilities(seed, count, split)
    np.testing.assert_allclose(batched, [story.log_probability for story in one_by_one], rtol=1e-12)


def test_ten_thousand_stories_are_all_different() -> None:
    """The last seeds of 64 bits too."""
    texts = storyworld.sample_batch(0, 10_000)
    assert len(set(texts)) == 10_000
    assert len(set(storyworld.sample_batch(2**64 - 100, 100))) == 100


def test_splits_draw_other_stories() -> None:
    """Catches a valid split that repeats the training stories."""
    train, valid = (set(storyworld.sample_batch(0, 2_000, split)) for split in ("train", "valid"))
    assert not train & valid


def _tokenizer(texts: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def test_tokens_of_fragments_are_tokens_of_the_text() -> None:
    """Catches a fragment whose edge a tokenizer merges over: the store would differ from encoded text."""
    tokenizer = _tokenizer(storyworld.sample_batch(0, 300))
    table = storyworld.fragment_tokens(lambda text: tokenizer.encode(text).ids)
    ended = storyworld.fragment_tokens(lambda text: tokenizer.encode(text).ids, end_id=0)
    for split in storyworld.SPLITS:
        drawn = storyworld.sample_fragments(1_000, 200, split)
        tokens, offsets = table.tokens(*drawn)
        with_ends, ended_offsets = ended.tokens(*drawn)
        assert tokens.dtype == np.uint16
        for i, text in enumerate(storyworld.sample_batch(1_000, 200, split)):
            ids = tokenizer.encode(text).ids
            assert tokens[offsets[i] : offsets[i + 1]].tolist() == ids
            assert with_ends[ended_offsets[i] : ended_offsets[i + 1]].tolist() == [*ids, 0]


def test_fragments_start_with_white_space() -> None:
    """The property behind the tokens: only a story's first fragment starts with a word."""
    numbers, offsets = storyworld.sample_fragments(0, 500)
    inner = np.delete(numbers, offsets[:-1])
    assert all(storyworld.fragments()[number][0].isspace() for number in set(inner.tolist()))
    assert not any(storyworld.fragments()[number][0].isspace() for number in numbers[offsets[:-1]].tolist())


def test_token_ids_must_fit() -> None:
    with pytest.raises(ValueError, match="70000 does not fit into uint16"):
        storyworld.fragment_tokens(lambda text: [70_000])


def test_bad_seed_and_split() -> None:
    with pytest.raises(ValueError, match="seed must be from 0"):
        storyworld.sample(-1)
    with pytest.raises(ValueError, match="seeds must be from 0"):
        storyworld.sample_batch(2**64 - 1, 2)
    with pytest.raises(ValueError, match="split must be one of train, valid"):
        storyworld.sample(0, "test")


@given(st.integers(0, 2**64 - 1), st.sampled_from(storyworld.SPLITS))
@settings(max_examples=60)
def test_every_story_parses_and_its_probability_is_the_product_of_its_choices(seed: int, split: str) -> None:
    """Catches choices that the text does not show, and derivations that the parser cannot tell apart."""
    story = storyworld.sample(seed, split)
    parsed = storyworld.parse(story.text)
    assert parsed.error is None
    assert len(parsed.derivations) == 1
    assert parsed.derivations[0].skeleton.name == story.skeleton
    product = math.prod(choice.weight / choice.total for choice in story.choices)
    assert math.isfinite(story.log_probability)
    assert story.log_probability == pytest.approx(math.log(product), rel=1e-12)
    assert storyworld.log_probability(story.text, split) == pytest.approx(story.log_probability, rel=1e-12)
