from pathlib import Path

import numpy as np
import pytest
from differences import BOUND, largest_difference
from fast_against_textbook import COMPARISONS, section

from rhapsode.textbook import chapters

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", COMPARISONS)
def test_fast_kernels_and_textbook_agree(name):
    """Values and gradients in float64; what is compared must not be small itself."""
    values, gradients = COMPARISONS[name]()
    assert min(np.abs(own).max() for _, own in values) > 0.1
    # The gradient of the key's bias is 0 (it adds the same to all scores of a query): hence max, not min.
    assert max(np.abs(own).max() for _, own in gradients) > 0.01
    assert largest_difference(values) < BOUND
    assert largest_difference(gradients) < BOUND


def test_the_table_in_docs_is_what_is_measured():
    written = (ROOT / "docs" / "textbook.md").read_text(encoding="utf-8")
    assert written == chapters.page() + section()
