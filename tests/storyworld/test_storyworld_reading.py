"""Parsing, labels, and what is asked of a model: the right word, and stories of its own."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rhapsode import storyworld
from rhapsode.storyworld import parsing
from rhapsode.storyworld.corpus import load_grammar
from rhapsode.storyworld.evaluation import DISTANCE_BOUNDS, distance_bin
from rhapsode.storyworld.grammar import read_domains, read_scenes, read_skeletons

STORY = storyworld.sample(3)


def test_labels_point_at_words_and_their_antecedents() -> None:
    """Spans, order, distance in words counted anew, and antecedents that really tell the word."""
    for seed in range(120):
        story = storyworld.sample(seed)
        assert len(story.labels) >= 4
        for label in story.labels:
            assert story.text[label.start : label.end] == label.right
            assert label.introduced[1] <= label.antecedent[1] <= label.start
            between = story.text[label.antecedent[0] : label.start]
            opening = len(between) - len(between.rstrip('"'))
            words = between[: len(between) - opening].split()
            assert label.distance == len(words) - (not between[: len(between) - opening][-1:].isspace())
            assert label.right not in label.wrong
            assert 1 <= len(label.wrong) <= 4
            if label.kind in ("name", "colour", "landmark", "word", "spot", "giver"):
                antecedent = story.text[slice(*label.antecedent)]
                assert antecedent.lower() == label.right.lower()


def test_a_wrong_word_is_impossible_where_the_label_stands() -> None:
    """No story with the same beginning has the wrong word there: the label's answer is the only right one."""
    for split, seed in itertools.product(storyworld.SPLITS, range(4)):
        story = storyworld.sample(seed, split)
        for label in story.labels:
            for wrong in label.wrong:
                error = storyworld.parse(story.text[: label.start] + wrong + story.text[label.end :]).error
                assert error is not None
                assert error.position <= label.start + len(wrong)


def test_references_of_all_kinds_at_all_distances() -> None:
    """Recall and consequence both, near and far."""
    labels = [label for seed in range(600) for label in storyworld.sample(seed).labels]
    kinds = {label.kind for label in labels}
    assert kinds >= {"name", "kind", "colour", "thing", "spot", "count", "promise", "home"}
    assert kinds >= {"pronoun", "ability", "arithmetic", "direction", "remedy", "cause", "sound"}
    assert {distance_bin(label.distance) for label in labels} >= {"5-9", "10-19", "20-49", "50-99", "100-199"}


def test_labels_of_a_text_are_those_of_its_sample() -> None:
    for seed in range(10):
        story = storyworld.sample(seed)
        assert storyworld.labels(story.text) == story.labels
    with pytest.raises(ValueError, match="not a story: character 2: a word that no story has: found 'Call'"):
        storyworld.labels("Call me Ishmael.")


def test_clozes_are_cut_at_white_space() -> None:
    """Prefix and right continuation spell the text up to the word's end; wrong ones differ by the word."""
    for seed in range(40):
        story = storyworld.sample(seed)
        questions = storyworld.clozes(story)
        assert len(questions) == len(story.labels)
        for question, label in zip(questions, story.labels, strict=True):
            assert story.text.startswith(question.prefix + question.right)
            assert label.right in question.right
            assert len(question.prefix) < label.end <= len(question.prefix + question.right)
            assert question.right[0].isspace()
            assert not question.prefix[-1].isspace()
            for wrong, word in zip(question.wrong, label.wrong, strict=True):
                assert wrong != question.right
                assert wrong.strip().replace(word, label.right, 1) == question.right.strip()


def test_accuracy_of_a_reader_who_knows_and_of_one_who_does_not() -> None:
    """An oracle is right everywhere; a model without an opinion is right nowhere, since ties are wrong."""
    stories = [storyworld.sample(seed) for seed in range(6)]
    texts = [story.text for story in stories]

    def oracle(prefix: str, continuations: list[str]) -> list[float]:
        return [float(any(text.startswith(prefix + each) for text in texts)) for each in continuations]

    right = storyworld.reference_accuracy(stories, oracle)
    total = sum(len(story.labels) for story in stories)
    assert right.overall == (1.0, total)
    assert sum(number for _, number in right.by_kind.values()) == total
    assert sum(number for _, number in right.by_distance.values()) == total
    assert storyworld.reference_accuracy(stories, lambda _, each: [0.0] * len(each)).overall == (0.0, total)
    with pytest.raises(ValueError, match="at least one story"):
        storyworld.reference_accuracy([], oracle)


def test_distance_bins() -> None:
    assert [distance_bin(d) for d in (0, 4, 5, 19, 20, 199, 200, 999)] == [
        *("0-4", "0-4", "5-9", "10-19", "20-49", "100-199", "200+", "200+")
    ]
    assert DISTANCE_BOUNDS[1] == 5


@given(st.integers(0, 10_000), st.data())
@settings(max_examples=60)
def test_a_foreign_word_is_found_where_it_stands(seed: int, data: st.DataObject) -> None:
    """The break's position is that of the first word which no story has there."""
    words = storyworld.sample(seed).text.split(" ")
    place = data.draw(st.integers(0, len(words) - 1))
    before = " ".join(words[:place])
    text = " ".join([*words[:place], "xyzzy", *words[place + 1 :]])
    error = storyworld.parse(text).error
    assert error is not None
    assert error.position == len(before) + (place > 0)
    assert (error.reason, error.found.partition("\n")[0]) == (parsing.UNKNOWN_WORD, "xyzzy")
    assert words[place].partition("\n")[0] in error.expected or len(error.expected) == 8


@given(st.integers(0, 10_000), st.floats(0.01, 0.99))
@settings(max_examples=40)
def test_a_story_cut_off_ends_too_early_at_its_end(seed: int, share: float) -> None:
    text = storyworld.sample(seed).text
    cut = text[: int(len(text) * share)].rstrip()
    error = storyworld.parse(cut).error
    assert error is not None
    assert (error.reason, error.position) == (parsing.TOO_SHORT, len(cut))
    assert error.expected


def test_reasons() -> None:
    """Each reason, with a text that breaks for it."""
    text = STORY.text
    label = next(label for label in reversed(STORY.labels) if label.kind == "name")
    swapped = text[: label.start] + label.wrong[0] + text[label.end :]
    error = storyworld.parse(swapped).error
    assert error is not None
    assert label.start <= error.position <= label.start + len(label.wrong[0])
    assert error.reason in (parsing.CONTRADICTION, parsing.WRONG_WORD)

    longer = storyworld.parse(text + " The end.").error
    assert longer is not None
    assert (longer.reason, longer.position) == (parsing.TOO_LONG, len(text))
    blank = storyworld.parse(text + "\n").error
    assert blank is not None
    assert blank.reason == parsing.TOO_LONG

    twins = storyworld.parse("Once there were two friends, a fox named Mia and a fox").error
    assert twins is not None
    assert (twins.reason, twins.found) == (parsing.IMPOSSIBLE, "fox")
    empty = storyworld.parse("").error
    assert empty is not None
    assert (empty.reason, empty.position) == (parsing.TOO_SHORT, 0)
    stray = storyworld.parse(text.replace("\n\n", " ", 1)).error
    assert stray is not None
    assert stray.position == text.index("\n\n")
    assert "character" in str(stray)


def test_a_contradiction_is_called_one() -> None:
    """Where nothing but the earlier fact could stand, another of its kind contradicts it."""
    reasons = []
    for seed in range(40):
        story = storyworld.sample(seed)
        for label in story.labels:
            if label.kind in ("colour", "count", "promise", "spot"):
                error = storyworld.parse(story.text[: label.start] + label.wrong[0] + story.text[label.end :]).error
                assert error is not None
                reasons.append(error.reason)
    assert reasons.count(parsing.CONTRADICTION) > 0.6 * len(reasons)


def test_generated_texts_are_sorted() -> None:
    """Stories of the training seeds, new ones, repeated ones, and broken ones with their reasons."""
    known, new = storyworld.sample_batch(0, 3), storyworld.sample_batch(0, 2, "valid")
    broken = [known[0][:100], new[1] + " And then?", "Call me Ishmael."]
    report = storyworld.check_generated(
        [*known, f" {new[0]}\n", new[1], new[1], *broken], storyworld.training_stories(20_000)
    )
    assert (report.total, report.parsed, report.new, report.distinct) == (9, 6, 3, 5)
    assert sum(report.breaks.values()) == 3
    assert set(report.examples) == set(report.breaks) >= {parsing.TOO_SHORT, parsing.TOO_LONG}
    assert report.examples[parsing.TOO_SHORT].startswith("character 100: ")
    expected = [len(known[0][:100].split()), len(new[1].split()), 0]
    assert report.words_before_break == pytest.approx(sum(expected) / 3, abs=0.5)
    assert storyworld.check_generated(known).words_before_break is None


def test_mistakes_in_the_text_files_are_named() -> None:
    """Whoever adds a scene is told the file, the scene and what is wrong with it."""
    variables = load_grammar().variables
    cases = {
        "Hello {n9}.": "there is no fact named 'n9'",
        "Hello {n1.she}.": "name has no form 'she'; it has: it, he",
        "Hello [you|there.": "brackets do not match",
        "Hello [a|b][c|d].": "two pairs of brackets",
        "Hello {n1}{n2}.": "not a mention of a fact",
    }
    for line, message in cases.items():
        with pytest.raises(ValueError, match="notes, scene greeting") as caught:
            read_scenes(f"scene ^greeting\n{line}\n", variables, "notes")
        assert message in str(caught.value)
    with pytest.raises(ValueError, match="scene a is there twice"):
        read_scenes("scene a\nHi.\n\nscene a\nHo.\n", variables, "notes")
    with pytest.raises(ValueError, match="domain x wants 2 cells, got 1 in 'red'"):
        read_domains("domain x: it | weight\nred\n", "notes")
    scenes = read_scenes("scene ^a\nHi.\n", variables, "notes")
    with pytest.raises(ValueError, match="skeleton p names scenes that do not exist: b"):
        read_skeletons("p 1: a b", scenes, variables, "notes")
    with pytest.raises(ValueError, match="two skeletons have the same scenes"):
        read_skeletons("p 1: a\nq 1: a", scenes, variables, "notes")
