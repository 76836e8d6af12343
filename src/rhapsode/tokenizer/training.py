"""Trains tokenizers: byte-level BPE, Unigram as the course's, and characters."""

import json
from collections.abc import Iterable
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from rhapsode.progress import say
from rhapsode.tokenizer.coding import BYTE_OF_CHARACTER, SPACES_LEAD, Tokenizer

KINDS = ("bpe", "unigram", "characters")
SAMPLE_BYTES = 20_000_000


def train_tokenizer(texts: Iterable[str], kind: str = "bpe", vocab_size: int = 1024) -> Tokenizer:
    """Trains a tokenizer; the same texts give the same tokenizer.

    kind: `bpe` (byte-level: any text comes back exactly), `unigram` (as the course's; characters not seen in
        training become <unk>, whitespace comes back exactly) or `characters` (one id per character seen, of
        which vocab_size is a limit).
    texts: read once, as a stream. Of more than 20 MB, a regular sample is taken (every second, fourth, ...
        text), so time and memory are bounded.
    <pad> is 0, </s> is 1, and <unk>, which bpe does without, 2. A text too poor for vocab_size gives a
    smaller vocabulary and says so. Raises ValueError where vocab_size cannot hold the alphabet, or texts are
    empty.
    """
    if kind not in KINDS:
        raise ValueError(f"tokenizer kind must be one of {', '.join(KINDS)}, got {kind!r}")
    sample = _sample(texts, SAMPLE_BYTES)
    if not sample:
        raise ValueError("no text to train a tokenizer on")
    alphabet = sorted(set().union(*sample))
    specials = ["<pad>", "</s>"] if kind == "bpe" else ["<pad>", "</s>", "<unk>"]
    needed = len(specials) + (
        256 if kind == "bpe" else len({*alphabet, *" \n\t"}) if kind == "unigram" else len(alphabet)
    )
    if vocab_size < needed:
        what = "256 bytes" if kind == "bpe" else f"{needed - len(specials)} different characters of the text"
        hint = ", or take kind bpe, which needs 258" if needed > 258 else ""
        raise ValueError(
            f"vocab_size must be >= {needed} for {kind} ({len(specials)} special tokens and the {what})"
            f", got {vocab_size}{hint}"
        )
    train = {"bpe": _train_bpe, "unigram": _train_unigram, "characters": _train_characters}[kind]
    tokenizer = Tokenizer(train(sample, specials, alphabet, vocab_size))
    if kind != "characters" and tokenizer.vocab_size < vocab_size:
        say(f"the text gives {tokenizer.vocab_size:,} tokens, fewer than the {vocab_size:,} asked for")
    return tokenizer


def _sample(texts: Iterable[str], most_bytes: int) -> list[str]:
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


def _train_bpe(sample: list[str], specials: list[str], alphabet: list[str], vocab_size: int) -> dict[str, Any]:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=specials,
        initial_alphabet=sorted(BYTE_OF_CHARACTER),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sample, trainer)
    return json.loads(tokenizer.to_str())


def _train_unigram(sample: list[str], specials: list[str], alphabet: list[str], vocab_size: int) -> dict[str, Any]:
    """Pieces begin with a space or have none, and other whitespace stands alone: texts are spelled exactly.

    A byte alphabet would spare <unk>, but on TinyStories, at 1,024 pieces, it costs 19% more tokens, and byte
    fallback 8%.
    """
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = SPACES_LEAD
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size,
        special_tokens=specials,
        unk_token="<unk>",
        initial_alphabet=["▁", "\n", "\t"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(sample, trainer)
    definition = json.loads(tokenizer.to_str())
    # The library adds up in the order of a randomly seeded hash table: scores differ in the last digits from
    # run to run, and pieces of equal rank, of which the characters that only just survived are most, change
    # places.
    pieces = definition["model"]["vocab"][len(specials) :]
    lowest = min(score for _, score in pieces)
    scores = {piece: lowest if len(piece) == 1 and score < lowest + 0.1 else score for piece, score in pieces}
    ranked = sorted(((piece, round(score, 6)) for piece, score in scores.items()), key=lambda p: (-p[1], p[0]))
    definition["model"]["vocab"][len(specials) :] = ranked
    return definition


def _train_characters(sample: list[str], specials: list[str], alphabet: list[str], vocab_size: int) -> dict[str, Any]:
    """A byte-pair encoding without pairs: each character is its own token."""
    vocab = {piece: id for id, piece in enumerate([*specials, *alphabet])}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(specials)
    return json.loads(tokenizer.to_str())
