"""Numbers that were written down once: whatever changes them is meant, or is found here. See golden.py."""

import json

import golden
import numpy as np
import pytest

# Other vector units, and other ways to add up a product, moved these by up to 5e-7 (golden.py, under
# ATEN_CPU_CAPABILITY=default and MKL_CBWR=COMPATIBLE).
TOLERANCE = 1e-5
# A processor of another maker adds up products otherwise; what that moves in a gradient's norm grows with the steps, to
# 5e-4 after twenty (AMD's beside Intel's), while the losses stay.
OF_NORMS = 3e-3


def test_twenty_steps_of_training_lose_what_they_lost() -> None:
    """Would catch a change of the model, its first weights, the batches, the optimiser or the schedule."""
    found, written = golden.curve(), json.loads(golden.CURVE.read_text(encoding="utf-8"))
    assert [len(written[name]) for name in ("train_loss", "gradient_norm", "valid_loss")] == [20, 20, 4]
    assert found.keys() == written.keys()
    for name, values in written.items():
        tolerance = OF_NORMS if name == "gradient_norm" else TOLERANCE
        np.testing.assert_allclose(found[name], values, rtol=tolerance, err_msg=name)
    np.testing.assert_allclose(found["gradient_norm"][:5], written["gradient_norm"][:5], rtol=TOLERANCE)


def test_an_old_run_writes_the_story_that_it_wrote() -> None:
    """Would catch weights that come back under another name, a tokenizer that reads its file otherwise, and decoding
    that differs: greedy, so that no draw decides, and far from any tie.
    """
    found, written = golden.story(), json.loads(golden.STORY.read_text(encoding="utf-8"))
    assert golden.least_gap(written["ids"]) > golden.LEAST_GAP
    assert found["text"] == written["text"]
    assert found["ids"] == written["ids"]
    assert found["log_probabilities"] == pytest.approx(written["log_probabilities"], rel=TOLERANCE, abs=1e-4)
