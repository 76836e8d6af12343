import numpy as np
import pytest

from rhapsode.textbook.pairs import expected_rows, pair_rows


def test_rows_by_hand():
    """1,000,003 p + 7,919 c, modulo 1,000: its last three digits, for p = 0 at the beginning or the token before."""
    tokens = np.array([[1, 2, 2], [2, 0, 1]])
    assert pair_rows(tokens, 1000).tolist() == [[919, 841, 844], [838, 6, 919]]
    assert pair_rows(tokens, 1000, np.array([2, 0])).tolist() == [[925, 841, 844], [838, 6, 919]]


def test_large_ids_are_not_cut_off():
    """Would catch a hash in 32 bits, and one that is negative."""
    tokens = np.array([[4_000_000_000, 4_000_000_000]])
    assert pair_rows(tokens, 10**15)[0, 1] == (4_000_000_000 * 1_007_922) % 10**15


def test_pairs_with_the_same_first_token_share_no_row():
    """As the chapter says, for at least as many rows as tokens that 7,919 does not divide."""
    for rows in (50, 64, 7918):
        for p in (0, 7, 49):
            assert len(np.unique(pair_rows(np.arange(50)[:, None], rows, np.full(50, p)))) == 50
    assert len(np.unique(pair_rows(np.arange(50)[:, None], 7919))) == 1


def test_expected_rows_is_the_mean_of_random_ones(rng):
    hits = [len(np.unique(rng.integers(0, 20, 30))) for _ in range(4000)]
    assert expected_rows(30, 20) == pytest.approx(np.mean(hits), rel=0.01)
    assert expected_rows(1, 20) == pytest.approx(1)


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="rows must be >= 1, got 0"):
        pair_rows(np.array([[1]]), 0)
