"""Trains tokenizers: byte-level BPE, Unigram as the course's, and characters."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from rhapsode.progress import bar, say
from rhapsode.tokenizer.coding import Tokenizer
from rhapsode.tokenizer.definition import (
    BYTE_OF_CHARACTER,
    BYTES_OR_PIECES,
    SPACES_LEAD,
    bytes_besides,
    names_alone,
)

KINDS = ("bpe", "unigram", "characters")
SAMPLE_BYTES = 20_000_000
TEXT_BYTES_PER_TOKEN = 1_500  # of text, for each token of a vocabulary that is fitted to it
FEWEST_FITTED = 512
WORD = re.compile(r" ?[^\W\d_]+")
OPENS_SENTENCES = 0.2  # as often in lower case, for each time that it is capitalised: such a word is no name
MOST_OPENERS = 500
MOST_NAMES = 0.15  # of all words; where more are capitalised (German nouns), a space of their own costs too much
# The library's time grows with the square of a word's length, and letters without a blank (DNA, Chinese) are one word:
# words are learnt from in parts of 64 characters. Unigram takes minutes per megabyte of such parts too, so they are
# a sample there.
LONG_PART = re.compile(r"\S{32,64}")
MOST_OF_LONG_PARTS = 250_000  # characters


def train_tokenizer(texts: Iterable[str], kind: str = "bpe", vocab_size: int = 1024, fit: bool = False) -> Tokenizer:
    """Trains a tokenizer; the same texts give the same tokenizer.

    kind: `bpe` (byte-level: any text comes back exactly; a name has the same tokens after a space as at the beginning
        of a line), `unigram` (as the course's; characters not seen in training are spelled as bytes, so any text
        comes back; the byte tokens, about 170, are part of vocab_size, and where they do not fit, unseen characters
        become <unk>, and a line says so) or `characters` (one id per character seen, of which vocab_size is a limit;
        unseen ones become <unk>).
    texts: read once, as a stream. Of more than 20 MB, a regular sample is taken (every second, fourth, ...
        text), and of letters without a blank parts of 64 characters, so time and memory are bounded.
    fit: whether a text too small to teach so many tokens of bpe gets fewer (`fitted_vocab_size`).
    <pad> is 0, </s> is 1, and <unk>, which bpe does without, 2. A text too poor for vocab_size gives a
    smaller vocabulary and says so. Raises ValueError where vocab_size cannot hold the alphabet, or texts are
    empty.
    """
    if kind not in KINDS:
        raise ValueError(f"tokenizer kind must be one of {', '.join(KINDS)}, got {kind!r}")
    sample = sample_of(texts)
    if not sample:
        raise ValueError("no text to train a tokenizer on")
    if fit and kind == "bpe":
        vocab_size = fitted_vocab_size(sum(len(text.encode()) for text in sample), vocab_size)
    alphabet = sorted(set().union(*sample))
    specials = ["<pad>", "</s>"] if kind == "bpe" else ["<pad>", "</s>", "<unk>"]
    needed = len(specials) + (
        256 if kind == "bpe" else len({*alphabet, *" \n\t"}) if kind == "unigram" else len(alphabet)
    )
    if vocab_size < needed:
        what = "256 bytes" if kind == "bpe" else f"{needed - len(specials)} different characters of the text"
        hint = ", or choose kind bpe, which needs 258" if needed > 258 else ""
        raise ValueError(
            f"vocab_size must be >= {needed} for {kind} ({len(specials)} special tokens and the {what})"
            f", got {vocab_size}{hint}"
        )
    train = {"bpe": _train_bpe, "unigram": _train_unigram, "characters": _train_characters}[kind]
    size = sum(len(text.encode()) for text in sample) / 1e6
    with bar(f"training a {kind} tokenizer on {size:,.1f} MB", None):
        definition = train(sample, specials, alphabet, vocab_size)
    tokenizer = Tokenizer(definition)
    if kind != "characters" and tokenizer.vocab_size < vocab_size:
        say(f"the text gives {tokenizer.vocab_size:,} tokens, fewer than the {vocab_size:,} requested")
    return tokenizer


def fitted_vocab_size(num_bytes: int, most: int) -> int:
    """How many tokens so many bytes of text can teach: `most`, halved until there are TEXT_BYTES_PER_TOKEN for each."""
    size = most
    while size > FEWEST_FITTED and size * TEXT_BYTES_PER_TOKEN > num_bytes:
        size //= 2
    return size


def sample_of(texts: Iterable[str], most_bytes: int = SAMPLE_BYTES) -> list[str]:
    """The texts, or a regular sample of them where they are more than so many bytes; blank ones are left out."""
    kept: list[str] = []
    held, stride = 0, 1
    for number, text in enumerate(texts):
        if number % stride == 0 and text:
            kept.append(text)
            held += len(text.encode())
            while held > most_bytes and len(kept) > 1:
                kept, stride = kept[::2], stride * 2
                held = sum(len(text.encode()) for text in kept)
    return kept


def parts_of(sample: list[str], most_long: int | None = None) -> Iterator[str]:
    """The texts, cut so that no word in them is longer than 64 characters.

    most_long: where words and parts of them of 32 characters and more have more characters in all, a regular sample
    of them is taken; the rest of the texts stays.
    """
    stride = 1
    if most_long is not None:
        length = sum(len(part) for text in sample for part in LONG_PART.findall(text))
        stride = max(1, -(-length // most_long))
        if stride > 1:
            say(f"words of 32 characters or more: training on one in {stride} of their parts")
    number = 0
    for text in sample:
        begin = 0
        for match in LONG_PART.finditer(text):
            kept = number % stride == 0
            yield text[begin : match.end() if kept else match.start()]
            begin, number = match.end(), number + 1
        yield text[begin:]


def _train_bpe(sample: list[str], specials: list[str], alphabet: list[str], vocab_size: int) -> dict[str, Any]:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _names_alone_if_few(sample)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=specials,
        initial_alphabet=sorted(BYTE_OF_CHARACTER),
        show_progress=False,
    )
    tokenizer.train_from_iterator(parts_of(sample), trainer)
    return json.loads(tokenizer.to_str())


def _names_alone_if_few(sample: list[str]) -> pre_tokenizers.PreTokenizer:
    """How texts are cut into words: with the space before a name alone, learnt from them which words are names."""
    counts: Counter[str] = Counter()
    for part in parts_of(sample):
        counts.update(WORD.findall(part))
    lower = Counter({word: count for word, count in counts.items() if word == word.lower()})
    after_space = {word[1:]: count for word, count in counts.items() if word[0] == " "}
    capitalised = {word: count for word, count in after_space.items() if len(word) > 1 and word.istitle()}
    in_lower = {word: lower[word.lower()] + lower[f" {word.lower()}"] for word in capitalised}
    openers = [word for word, count in capitalised.items() if in_lower[word] >= OPENS_SENTENCES * count]
    names = sum(capitalised.values()) - sum(capitalised[word] for word in openers)
    if names > MOST_NAMES * counts.total():
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    openers.sort(key=lambda word: (-capitalised[word], word))
    return names_alone(sorted(openers[:MOST_OPENERS]))


def _train_unigram(sample: list[str], specials: list[str], alphabet: list[str], vocab_size: int) -> dict[str, Any]:
    """Pieces begin with a space or have none, and other whitespace stands alone: texts are spelled exactly.

    The byte tokens leave less room for pieces: on storyworld 5% more tokens at 1,024 pieces, 0.7% at 4,096.
    """
    known = {*alphabet, *" \n\t"}
    spare = bytes_besides(known)
    room = len(specials) + len(known) + len(spare)
    if room > vocab_size:
        say(
            f"a vocabulary of {vocab_size:,} has no room for byte tokens ({room:,} would have): characters that are"
            " not in the training text become <unk>"
        )
        spare = []
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = SPACES_LEAD
    tokenizer.decoder = decoders.Fuse()
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size - len(spare),
        special_tokens=specials,
        unk_token="<unk>",
        initial_alphabet=[" ", "\n", "\t"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(parts_of(sample, MOST_OF_LONG_PARTS), trainer)
    definition = json.loads(tokenizer.to_str())
    # The library adds up in the order of a randomly seeded hash table: scores differ in the last digits from
    # run to run, and pieces of equal rank, of which the characters that only just survived are most, change
    # places.
    pieces = definition["model"]["vocab"][len(specials) :]
    lowest = min(score for _, score in pieces)
    scores = {piece: lowest if len(piece) == 1 and score < lowest + 0.1 else score for piece, score in pieces}
    ranked = sorted(((piece, round(score, 6)) for piece, score in scores.items()), key=lambda p: (-p[1], p[0]))
    # Only a character that is no piece becomes bytes, whatever their scores; the library bounds all scores by the
    # lowest, so theirs is that one.
    ranked += [(piece, round(lowest, 6)) for piece in spare]
    definition["model"]["vocab"][len(specials) :] = ranked
    if spare:
        definition["model"]["byte_fallback"] = True
        definition["decoder"] = BYTES_OR_PIECES
    return definition


def _train_characters(sample: list[str], specials: list[str], alphabet: list[str], vocab_size: int) -> dict[str, Any]:
    """A byte-pair encoding without pairs: each character is its own token."""
    vocab = {piece: id for id, piece in enumerate([*specials, *alphabet])}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(specials)
    return json.loads(tokenizer.to_str())
