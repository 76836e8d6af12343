"""Minimal pairs, judged by a grammar written a second time: a list of words and a few rules."""

import itertools
import random
from collections import Counter

import pytest

from rhapsode.minimal_pairs import PARADIGMS, MinimalPair, pair_accuracy, sample_pairs

MALE, FEMALE = {"boy", "king", "brother", "father", "prince", "man"}, {"girl", "queen", "sister", "mother", "woman"}
OTHERS = {"cat", "dog", "bird", "bear", "frog", "rabbit", "ball", "toy", "hat", "car", "book", "flower", "cake"}
OTHERS |= {"apple"}
SINGULAR = MALE | FEMALE | OTHERS | {"box"}
PLURAL = {"men", "women", "boxes"} | {f"{word}s" for word in SINGULAR - {"man", "woman", "box"}}
DESCRIBING = {"happy", "sad", "kind", "tired", "hungry", "proud", "small", "big", "red", "blue", "green", "new", "old"}
DESCRIBING |= {"pretty"}
OF_ONE, OF_MANY = {"is", "was", "has"}, {"are", "were", "have"}
TAKING = {"found", "took", "dropped", "liked", "lost"}


def is_right(sentence: str) -> bool:
    """Whether the rules allow the sentence; none of them knows how it was made."""
    words = sentence.removesuffix(".").lower().split()
    nouns = [word for word in words if word in SINGULAR | PLURAL]
    subject, last = nouns[0], words[-1]
    many = subject in PLURAL
    if "not" in words:
        return words[words.index("not") - 1] == "did"
    if last in {"himself", "herself", "itself", "themselves"}:
        if many:
            return last == "themselves"
        return last == ("himself" if subject in MALE else "herself" if subject in FEMALE else "itself")
    if verbs := [word for word in words if word in OF_ONE | OF_MANY]:
        return verbs[0] in (OF_MANY if many else OF_ONE)
    if any(before in SINGULAR | PLURAL and word in DESCRIBING for before, word in itertools.pairwise(words)):
        return False
    if last in TAKING:
        return False
    for word in ("this", "that", "these", "those"):
        if word in words:
            return (last in PLURAL) == (word in {"these", "those"})
    return True


def test_who_knows_the_grammar_gets_all_and_who_knows_its_opposite_none() -> None:
    """Would catch a pair whose wrong sentence is right, and sentences that are swapped."""
    pairs = sample_pairs(seed=3, count=200)
    for pair in pairs:
        assert is_right(pair.right), pair
        assert not is_right(pair.wrong), pair
    knows = pair_accuracy(pairs, lambda texts: [0.0 if is_right(text) else 1.0 for text in texts])
    assert set(knows.values()) == {1.0}
    assert {name for name in knows if ":" not in name} == {"agreement", "reflexives", "order", "all"}
    assert len(knows) == len(PARADIGMS) + 4
    contrary = pair_accuracy(pairs, lambda texts: [1.0 if is_right(text) else 0.0 for text in texts])
    assert set(contrary.values()) == {0.0}


def test_a_coin_gets_half_and_a_tie_is_half_a_point() -> None:
    """Would catch an artefact by which a model that says the same of everything looks perfect."""
    pairs = sample_pairs(seed=0, count=200)
    assert set(pair_accuracy(pairs, lambda texts: [2.5] * len(texts)).values()) == {0.5}
    draw = random.Random(1)
    coin = pair_accuracy(pairs, lambda texts: [draw.random() for _ in texts])
    assert coin["all"] == pytest.approx(0.5, abs=0.04)
    some = [MinimalPair("order", "negation", "a", "b"), MinimalPair("order", "negation", "c", "d")]
    assert pair_accuracy(some, lambda texts: [1.0, 2.0, 3.0, 3.0])["all"] == 0.75


def test_words_and_their_frequencies_do_not_tell() -> None:
    """Would catch a grammar that a model of single words solves: of order it gets ties, elsewhere half of the pairs."""
    pairs = sample_pairs(seed=1, count=300)

    def words(text: str) -> list[str]:
        return sorted(text.removesuffix(".").split())

    assert all(words(pair.right) == words(pair.wrong) for pair in pairs if pair.field == "order")
    assert all(len(words(pair.right)) == len(words(pair.wrong)) for pair in pairs)
    seen = Counter(word for pair in pairs for word in words(pair.right))
    by_words = pair_accuracy(pairs, lambda texts: [-sum(seen[word] for word in words(text)) for text in texts])
    assert by_words["order"] == 0.5
    for name, share in by_words.items():
        assert 0.4 < share < 0.65, name


def test_the_same_seed_gives_the_same_pairs_and_none_twice() -> None:
    pairs = sample_pairs(seed=7, count=50)
    assert pairs == sample_pairs(seed=7, count=50)
    assert pairs[:10] == sample_pairs(seed=7, count=10)[:10]
    assert pairs != sample_pairs(seed=8, count=50)
    assert len(set(pairs)) == len(pairs) == 50 * len(PARADIGMS)
    assert pairs[0] == MinimalPair(*pairs[0])


def test_what_cannot_be_is_told() -> None:
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        sample_pairs(count=0)
    with pytest.raises(ValueError, match="gender has no more than about 3"):
        sample_pairs(count=400)
    with pytest.raises(ValueError, match="no pair to judge"):
        pair_accuracy([], lambda texts: [])
