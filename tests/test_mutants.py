"""The tests of the model and its training find lies in the source; see mutants.py, which prints the table."""

import mutants
import pytest


def test_every_mutant_is_still_in_the_source() -> None:
    """Fails where code has moved and its mutant was left behind: point it at the new file, in tests/mutants.py."""
    for mutant in mutants.MUTANTS:
        text = (mutants.SOURCE / mutant.file).read_text(encoding="utf-8")
        assert mutants.lie(text, mutant) != text


def test_a_text_that_is_not_there_is_an_error() -> None:
    """Would catch a mutant that changes nothing, or two places at once."""
    mutant = mutants.Mutant("m", "model.py", "a", "b", "")
    for text, count in (("xyz", 0), ("aa", 2)):
        with pytest.raises(ValueError, match=rf"m: 'a' is {count} times in src/rhapsode/model.py, not once"):
            mutants.lie(text, mutant)


@pytest.mark.slow
def test_every_mutant_is_found() -> None:
    """Would catch a test that has stopped to look at what it is there for."""
    for mutant, verdict in mutants.verdicts(mutants.MUTANTS):
        if mutant is None:
            assert verdict.passed > len({mutant.test for mutant in mutants.MUTANTS})
            assert verdict.failed == 0, verdict.why
        else:
            assert verdict.found, f"{mutant.name}: {verdict.why or 'its test passes'}"
