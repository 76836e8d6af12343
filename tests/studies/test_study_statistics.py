"""Statistics against numbers worked out by hand."""

import pytest

from rhapsode.studies.statistics import Measured, distinct, measured, ngrams, repetition


def test_mean_and_sample_standard_deviation() -> None:
    """n - 1, not n, below the root: (1 + 0 + 1) / 2 = 1."""
    assert measured([1.0, 2.0, 3.0]) == Measured(2.0, 1.0)
    assert measured([5.0]) == Measured(5.0, None)
    with pytest.raises(ValueError, match="no values"):
        measured([])


def test_text_of_a_measurement() -> None:
    assert Measured(2.5134).text() == "2.513"
    assert Measured(1234.5, 0.0041).text(2) == "1,234.50 ± 0.00"


def test_ngrams() -> None:
    assert ngrams("abcd", 3) == [("a", "b", "c"), ("b", "c", "d")]
    assert ngrams("ab", 3) == []
    with pytest.raises(ValueError, match="n must be >= 1"):
        ngrams("ab", 0)


def test_distinct_and_repetition() -> None:
    """a b a b a: 2 of 5 words, {ab, ba} of 4 pairs, {aba, bab} of 3 triples, {abab, baba} of 2."""
    text = ["a", "b", "a", "b", "a"]
    assert [distinct(text, n) for n in (1, 2, 3, 4)] == [2 / 5, 2 / 4, 2 / 3, 1.0]
    assert repetition(text) == 0.0
    assert repetition([7] * 8) == 1 - 1 / 5
    assert repetition(text, 2) == 0.5
    assert distinct([1, 2], 3) is None
    assert repetition([1, 2, 3]) is None
