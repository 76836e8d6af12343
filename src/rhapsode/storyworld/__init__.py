"""Storyworld: little children's stories from a grammar of our own, of which everything is known exactly.

    story = sample(7)                      text, labels, skeleton, choices, log-probability
    texts = sample_batch(0, 1000)          the stories of seeds 0 .. 999
    entropy().bits_per_byte                the floor of every model's loss on them
    log_probability(text), parse(text)     what any text is, as a story
    next_tokens(prefix, tokenizer)         what may follow the beginning of a story, with exact probabilities

Splits: "train"; "valid", other stories of the same distribution; "held_out_skeletons", plots that training
never has; "held_out_combinations", plots of training with combinations of hero and thing that training
never has.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, lru_cache
from typing import TYPE_CHECKING

import numpy as np

from rhapsode.storyworld import beginnings, evaluation, parsing, sampling
from rhapsode.storyworld.corpus import fingerprint, load_grammar
from rhapsode.storyworld.distribution import SPLITS, Distribution, Entropy
from rhapsode.storyworld.evaluation import (
    Accuracy,
    Cloze,
    GeneratedReport,
    ReferenceOutcome,
    accuracy,
    chance,
    clozes,
    reference_accuracy,
)
from rhapsode.storyworld.parsing import Break, Parse
from rhapsode.storyworld.prediction import TokenDistribution, TokenDistributions, TokenPredictor
from rhapsode.storyworld.proof import Proof
from rhapsode.storyworld.sampling import FragmentTokens, TokenBatch
from rhapsode.storyworld.story import Decision, Derivation, Reference, Story, realise, references

if TYPE_CHECKING:
    from rhapsode.tokenizer import Tokenizer

__all__ = [
    "SPLITS",
    "Accuracy",
    "Break",
    "Cloze",
    "Decision",
    "Derivation",
    "Entropy",
    "FragmentTokens",
    "GeneratedReport",
    "Parse",
    "Reference",
    "ReferenceOutcome",
    "Story",
    "TokenBatch",
    "TokenDistribution",
    "TokenDistributions",
    "accuracy",
    "beginning_labels",
    "chance",
    "check_generated",
    "clozes",
    "entropy",
    "fingerprint",
    "fragment_tokens",
    "fragments",
    "labels",
    "log_probability",
    "next_tokens",
    "next_tokens_along",
    "parse",
    "reference_accuracy",
    "sample",
    "sample_batch",
    "sample_fragments",
    "sample_log_probabilities",
    "token_batches",
    "training_stories",
]

STORIES_PER_BATCH = 8_192


@cache
def _distribution(split: str) -> Distribution:
    return Distribution(load_grammar(), split)


@cache
def _sampler(split: str) -> sampling.BatchSampler:
    return sampling.BatchSampler(_distribution(split))


@cache
def _open_mentions() -> frozenset:
    return frozenset(Proof(load_grammar()).open_mentions)


def sample(seed: int, split: str = "train") -> Story:
    """The story of a seed, the same on every machine; seed: 0 to 2^64 - 1."""
    distribution = _distribution(split)
    derivation = sampling.derive(distribution, seed)
    steps = sampling.decisions(distribution, derivation)
    return Story(
        text="".join(fragment.text for fragment in realise(derivation)),
        labels=tuple(references(derivation, _open_mentions())),
        skeleton=derivation.skeleton.name,
        choices=tuple(steps),
        log_probability=sampling.log_product(steps),
    )


def fragments() -> tuple[str, ...]:
    """All pieces of text that stories are put together from; the same for all splits."""
    return _sampler("train").fragments


def sample_fragments(seed_start: int, count: int, split: str = "train") -> tuple[np.ndarray, np.ndarray]:
    """Stories from seed_start on as numbers of fragments: (int32 numbers, int64 offsets (count + 1,))."""
    return _sampler(split).sample(seed_start, count)


def sample_batch(seed_start: int, count: int, split: str = "train") -> list[str]:
    """The texts of sample(seed_start), ..., sample(seed_start + count - 1), faster."""
    numbers, offsets = sample_fragments(seed_start, count, split)
    texts = [fragments()[number] for number in numbers.tolist()]
    return ["".join(texts[start:end]) for start, end in itertools.pairwise(offsets.tolist())]


def sample_log_probabilities(seed_start: int, count: int, split: str = "train") -> np.ndarray:
    """The log-probabilities, in nats, of the stories that sample_batch gives: float64 (count,)."""
    total = np.zeros(count)
    _sampler(split).sample(seed_start, count, total)
    return total


def fragment_tokens(
    encode: Callable[[str], list[int]], end_id: int | None = None, dtype: type[np.integer] = np.uint16
) -> FragmentTokens:
    """The fragments in a tokenizer's ids: `.tokens(*sample_fragments(...))` are then stories in tokens."""
    return FragmentTokens(fragments(), encode, end_id, dtype)


def token_batches(tokens: FragmentTokens, seed_start: int, count: int, split: str = "train") -> Iterator[TokenBatch]:
    """Stories in tokens, in the order of their seeds, a few thousand at a time; tokens: see fragment_tokens."""
    for start in range(seed_start, seed_start + count, STORIES_PER_BATCH):
        numbers, offsets = sample_fragments(start, min(STORIES_PER_BATCH, seed_start + count - start), split)
        ids, starts = tokens.tokens(numbers, offsets)
        yield TokenBatch(ids, np.diff(starts), tokens.byte_counts(numbers, offsets))


def training_stories(count: int, seed_start: int = 0, split: str = "train") -> Iterator[str]:
    """The texts of `count` stories one by one, made in batches: what a model was trained on, made again."""
    for start in range(seed_start, seed_start + count, STORIES_PER_BATCH):
        yield from sample_batch(start, min(STORIES_PER_BATCH, seed_start + count - start), split)


def entropy(split: str = "train") -> Entropy:
    """The exact entropy of a split's stories, and their expected bytes and words."""
    return _distribution(split).entropy


def parse(text: str) -> Parse:
    """All derivations of a text in any split, or the place where it stops being a story, and why."""
    return parsing.parse(load_grammar(), text)


def log_probability(text: str, split: str = "train") -> float:
    """The exact log-probability of a text under a split, in nats, over all derivations; -inf if none."""
    return parsing.text_log_probability(_distribution(split), text)


@lru_cache(maxsize=8)
def _predictor(tokenizer: "Tokenizer", split: str) -> TokenPredictor:
    return TokenPredictor(_distribution(split), tokenizer)


def next_tokens(prefix: str | Sequence[int], tokenizer: "Tokenizer", split: str = "train") -> TokenDistribution:
    """The exact distribution of the token after the beginning of a story, the end token included.

    It is about stories of the split in their canonical spelling, tokenizer.encode(story) and then the end token.

    prefix as ids: of the stories whose spelling begins with these ids, the shares by the id after them. This is what
    a model that has read the ids is asked; the ids may end inside a word.
    prefix as text: the stories are those that begin with these characters, and of them, those count in whose spelling
    a token ends where the text does (`boundary` is their share): the same as for the ids of the text wherever these
    begin a story's spelling. Where no story has a token's end there, the text ends inside a token; then the
    distribution is of this very token, the one that spells the character after the text.

    Raises ValueError where no story of the split begins so, naming the character (and the token) where the prefix
    departs, where the ids have passed the end token, and for a tokenizer whose tokens may span two words.
    """
    return _predictor(tokenizer, split).next_tokens(prefix)


def next_tokens_along(prefix: str | Sequence[int], tokenizer: "Tokenizer", split: str = "train") -> TokenDistributions:
    """`next_tokens` of all beginnings of a row of ids at once: about as fast as of the whole row alone.

    prefix: a story or its beginning, as ids or as text (of which the ids are tokenizer.encode(prefix)). A text that
    is no story, as a model may write, is followed as far as it is one: `departure` says where and why that ends.
    Raises ValueError for a tokenizer whose tokens may span two words.
    """
    return _predictor(tokenizer, split).along(prefix)


def labels(text: str) -> tuple[Reference, ...]:
    """The labelled references of any story, also one that a model wrote. ValueError if it is none."""
    parsed = parse(text)
    if parsed.error is not None:
        raise ValueError(f"not a story: {parsed.error}")
    return tuple(references(parsed.derivations[0], _open_mentions()))


def beginning_labels(text: str, split: str = "train") -> tuple[Reference, ...]:
    """The labelled references in the beginning of a story, as far as the text is one.

    What a reference means hangs on what stands before it alone, so the labels are those of a story that begins so.
    """
    story, followed = beginnings.finish(_distribution(split), text)
    # A word that the text breaks off, or makes into another one, is no reference yet.
    last = followed if followed == len(text) else followed - 1
    return tuple(reference for reference in labels(story) if reference.end <= last)


def check_generated(texts: Iterable[str], training: Iterable[str] = ()) -> GeneratedReport:
    """How many texts are stories, why others are not, how many are new; training: see training_stories."""
    return evaluation.check_generated(load_grammar(), texts, training)
