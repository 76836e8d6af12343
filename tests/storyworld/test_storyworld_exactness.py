"""Probabilities and entropy: against enumeration on small grammars, against sampling on ours."""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable

import numpy as np
import pytest
from small_world import SIMPLE, probabilities, small_grammar, text_of

from rhapsode import storyworld
from rhapsode.storyworld.corpus import load_grammar
from rhapsode.storyworld.distribution import Distribution
from rhapsode.storyworld.grammar import (
    held_out_combination,
)
from rhapsode.storyworld.parsing import parse, text_log_probability
from rhapsode.storyworld.proof import Proof
from rhapsode.storyworld.sampling import BatchSampler, derive
from rhapsode.storyworld.template import Choice, Mention, Wording

DISTRIBUTIONS = {split: Distribution(load_grammar(), split) for split in storyworld.SPLITS}


def test_a_small_grammar_adds_up_to_one_and_has_the_entropy_of_its_texts() -> None:
    """The chain rule of the closed form, lengths included, against the sum over all texts."""
    grammar = small_grammar(SIMPLE)
    assert not Proof(grammar).ambiguities
    exact = probabilities(grammar)
    assert len(exact) > 100
    assert math.fsum(exact.values()) == pytest.approx(1, abs=1e-12)
    distribution = Distribution(grammar, "train")
    entropy = distribution.entropy
    assert entropy.nats_per_story == pytest.approx(-math.fsum(p * math.log(p) for p in exact.values()), rel=1e-12)
    assert entropy.bytes_per_story == pytest.approx(math.fsum(p * len(t.encode()) for t, p in exact.items()))
    assert entropy.words_per_story == pytest.approx(math.fsum(p * len(t.split()) for t, p in exact.items()))
    for text, probability in exact.items():
        assert text_log_probability(distribution, text) == pytest.approx(math.log(probability), rel=1e-12)


def test_samples_of_a_small_grammar_have_its_frequencies() -> None:
    """Catches a generator that is uniform where the weights are not, text by text (5 standard errors)."""
    grammar = small_grammar(SIMPLE)
    exact = probabilities(grammar)
    distribution = Distribution(grammar, "train")
    sampler = BatchSampler(distribution)
    count = 40_000
    numbers, offsets = sampler.sample(0, count)
    drawn: dict[str, int] = defaultdict(int)
    for start, end in itertools.pairwise(offsets):
        drawn["".join(sampler.fragments[n] for n in numbers[start:end])] += 1
    assert set(drawn) <= set(exact)
    for text, probability in exact.items():
        error = math.sqrt(probability * (1 - probability) / count)
        assert abs(drawn[text] / count - probability) < 5 * error + 1 / count
    assert text_of(derive(distribution, 3)) in exact


def test_an_ambiguous_grammar_is_found_out_and_its_derivations_are_added() -> None:
    """A text with two derivations has the sum of their probabilities, and the proof names the scene."""
    grammar = small_grammar(SIMPLE.replace("[red|blue]", "[red|blue|red]"))
    assert any(found.startswith("end:") for found in Proof(grammar).ambiguities)
    distribution = Distribution(grammar, "train")
    exact = probabilities(grammar)
    text = next(text for text in exact if text.endswith("was red."))
    assert len(parse(grammar, text).derivations) == 2
    assert text_log_probability(distribution, text) == pytest.approx(math.log(exact[text]), rel=1e-12)


def test_a_wording_that_begins_another_is_found_out() -> None:
    """Prefix-freeness, not mere difference, is what makes the parse unique."""
    grammar = small_grammar(SIMPLE.replace("The end.", "The end.\nThe end. Or not."))
    assert any(found.startswith("stop:") for found in Proof(grammar).ambiguities)


def test_a_fact_that_a_wording_hides_is_rejected() -> None:
    """H(text) would be below H(derivation) if a line did not tell the fact that it introduces."""
    with pytest.raises(ValueError, match="slot 1 of scene start introduces y"):
        small_grammar()


def test_the_grammar_in_the_package_is_unambiguous() -> None:
    assert Proof(load_grammar()).ambiguities == []


@pytest.mark.parametrize("split", storyworld.SPLITS)
def test_entropy_and_lengths_agree_with_sampling(split: str) -> None:
    """The closed form against 20,000 samples, within 4 standard errors; drawn vectorised."""
    count = 20_000
    exact = storyworld.entropy(split)
    surprise = -storyworld.sample_log_probabilities(0, count, split)
    assert abs(surprise.mean() - exact.nats_per_story) < 4 * surprise.std() / math.sqrt(count)
    numbers, offsets = storyworld.sample_fragments(0, count, split)
    measures = (("bytes_per_story", lambda t: len(t.encode())), ("words_per_story", lambda t: len(t.split())))
    for name, measure in measures:
        sizes = np.array([measure(text) for text in storyworld.fragments()])
        totals = np.add.reduceat(sizes[numbers], offsets[:-1])
        assert abs(totals.mean() - getattr(exact, name)) < 4 * totals.std() / math.sqrt(count)


def test_rates_are_the_entropy_over_expected_lengths() -> None:
    entropy = storyworld.entropy()
    assert entropy.bits_per_byte * entropy.bytes_per_story == pytest.approx(entropy.bits_per_story)
    assert entropy.nats_per_word * entropy.words_per_story == pytest.approx(entropy.nats_per_story)
    assert entropy.bits_per_word * math.log(2) == pytest.approx(entropy.nats_per_word)
    assert entropy.nats_per_byte == pytest.approx(entropy.bits_per_byte * math.log(2))


def _pairs(split: str, count: int = 400) -> set[tuple[str, int, int]]:
    """(fact, its value, the hero's kind) of all combinations that occur in the split's first stories."""
    found = set()
    for seed in range(count):
        values = derive(DISTRIBUTIONS[split], seed).values
        for name in ("t1", "b1"):
            if name in values and "k1" in values:
                found.add((name, values[name], values["k1"]))
    return found


def test_held_out_combinations_never_meet_in_training() -> None:
    """And each of a held-out story's combinations is held out; its parts all occur in training."""
    for split in ("train", "valid", "held_out_skeletons"):
        assert not any(held_out_combination(value, kind) for _, value, kind in _pairs(split))
    held_out = _pairs("held_out_combinations")
    assert len(held_out) > 50
    assert all(held_out_combination(value, kind) for _, value, kind in held_out)
    train = _pairs("train", 3_000)
    assert {pair[:2] for pair in held_out} <= {pair[:2] for pair in train}
    assert {pair[2] for pair in held_out} <= {pair[2] for pair in train}


def test_held_out_skeletons_are_new_plots_of_known_scenes() -> None:
    """Composing is asked for, not reading unknown scenes."""
    grammar = load_grammar()
    train, held_out = (DISTRIBUTIONS[split].skeletons for split in ("train", "held_out_skeletons"))
    assert len(train) + len(held_out) == len(grammar.skeletons) >= 40
    assert len(held_out) >= 8
    known = {scene for skeleton in train for scene in skeleton.scenes}
    assert all(set(skeleton.scenes) <= known for skeleton in held_out)


def test_probability_is_zero_outside_a_split() -> None:
    for split in ("held_out_skeletons", "held_out_combinations"):
        for seed in range(5):
            story = storyworld.sample(seed, split)
            assert storyworld.log_probability(story.text) == -math.inf
            assert math.isfinite(storyworld.log_probability(story.text, split))
    assert storyworld.log_probability("Call me Ishmael.") == -math.inf


def words(elements: Wording, extreme: Callable[[Iterable[int]], int]) -> int:
    """The fewest or the most words that the elements can make."""
    total = 0
    for element in elements:
        if isinstance(element, Choice):
            total += extreme(words(option, extreme) for option in element.options)
        else:
            texts = element.texts if isinstance(element, Mention) else (element.text,)
            total += extreme(len(text.split()) for text in texts)
    return total


def test_every_possible_story_has_60_to_250_words() -> None:
    """Over all wordings, not over samples."""
    for skeleton in load_grammar().skeletons:
        slots = tuple(slot for scene in skeleton.scenes for slot in scene.slots)
        assert words(slots, min) >= 60
        assert words(slots, max) <= 250


def test_the_vocabulary_has_about_1500_words() -> None:
    assert 1_300 <= len(load_grammar().vocabulary) <= 1_800


def test_the_end_of_a_story_is_no_surprise() -> None:
    """No plot continues another, wordings are prefix-free: no story begins another, an end token is free."""
    paths = [skeleton.scenes for skeleton in load_grammar().skeletons]
    assert not any(one == other[: len(one)] for one, other in itertools.permutations(paths, 2))
