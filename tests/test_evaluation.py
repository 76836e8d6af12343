"""Scores against a naive float64 cross-entropy, story by story."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from rhapsode import evaluation
from rhapsode.evaluation import Score, bits_per_byte, padded_batches, score
from rhapsode.model import LanguageModel, ModelConfig, build_model
from rhapsode.tokens import IGNORED, TokenStore

EOS = 1
VOCAB = 23


def store_of(lengths: Sequence[int], has_text: bool = True, seed: int = 0) -> TokenStore:
    """Stories of random ids; texts end with EOS and have three bytes a token."""
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    ids = np.random.default_rng(seed).integers(2, VOCAB, size=offsets[-1]).astype(np.uint16)
    if has_text:
        ids[offsets[1:] - 1] = EOS
    about = {"fingerprint": "f", "eos_id": EOS, "vocab_size": VOCAB, "has_text": has_text, "description": "made up"}
    return TokenStore(ids, offsets, 3 * np.array(lengths), np.empty((0, 2), np.int64), about)


def model_of(kind: str = "stacked") -> LanguageModel:
    options = {"num_layers": 2, "dropout": 0.5, "pair_embeddings": 40, "copy_dim": 5} if kind == "stacked" else {}
    model = build_model(ModelConfig(VOCAB, kind, 6, 7, 3, 5, "tanh", **options), seed=0)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3)  # far from uniform, so that each token's place matters
    return model


def naive(model: LanguageModel, store: TokenStore) -> float:
    """Nats of all stories: each read whole, by itself, in float64."""
    double = build_model(model.config, seed=0).double().eval()
    double.load_state_dict(model.state_dict())
    nats = 0.0
    for i in range(store.num_stories):
        ids = store.story(i).tolist()
        if store.has_text:
            ids = [EOS, *ids]
        if len(ids) > 1:
            logits, _ = double(torch.tensor([ids[:-1]]))
            nats += F.cross_entropy(logits[0], torch.tensor(ids[1:]), reduction="sum").item()
    return nats


@pytest.mark.parametrize("kind", ["plain", "stacked"])
@pytest.mark.parametrize("has_text", [True, False])
def test_score_is_that_of_each_story_alone(monkeypatch: pytest.MonkeyPatch, kind: str, has_text: bool) -> None:
    """Would catch padding that is scored or felt, a mean of batch means, a first token left out, a lost state.

    Lengths differ, stories are longer than a chunk, batches are small; all of a story is within the context.
    """
    monkeypatch.setattr(evaluation, "CHUNK", 16)
    monkeypatch.setattr(evaluation, "CONTEXT", 64)
    monkeypatch.setattr(evaluation, "BATCH_TOKENS", 100)
    lengths = [2, 3, 16, 17, 33, 70, 5, 5, 31, 64, 2, 9]
    store, model = store_of(lengths, has_text), model_of(kind)
    heard: list[int] = []
    found = score(model, store, heard.append)
    assert found.nats == pytest.approx(naive(model, store), rel=1e-6)
    assert found.num_tokens == sum(lengths) - (0 if has_text else len(lengths)) == sum(heard)
    assert found.num_bytes == (3 * sum(lengths) if has_text else 0)
    assert found.num_stories == len(lengths)


def test_chunks_and_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a result that hangs on how the stories are put together."""
    store, model = store_of([40, 7, 100, 3, 55]), model_of()
    whole = score(model, store)
    monkeypatch.setattr(evaluation, "CHUNK", 7)
    monkeypatch.setattr(evaluation, "BATCH_TOKENS", 1)
    assert score(model, store).nats == pytest.approx(whole.nats, rel=1e-6)


def test_long_stories_by_the_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch attention that reaches back less far than is said, or a state that is not carried on."""
    monkeypatch.setattr(evaluation, "CHUNK", 10)
    monkeypatch.setattr(evaluation, "CONTEXT", 15)
    store, model = store_of([38]), model_of()
    ids = torch.tensor([[EOS, *store.story(0).tolist()]])
    model.eval()
    nats, state = 0.0, None
    for start in range(0, 38, 10):
        logits, state = model(ids[:, start : min(38, start + 10)], state)
        nats += F.cross_entropy(logits[0], ids[0, start + 1 : start + 11], reduction="sum").item()
        state = state.recent(15)
    model.train()
    found = score(model, store)
    assert found.nats == pytest.approx(nats, rel=1e-6)
    assert found.nats != pytest.approx(naive(model, store), rel=1e-6)


def test_scoring_disturbs_nothing() -> None:
    """Would catch dropout left on while scoring, a generator that moves, and a model left in eval mode."""
    store, model = store_of([9, 4]), model_of()
    model.train()
    before = torch.get_rng_state()
    first, second = score(model, store), score(model, store)
    assert first == second
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    model.eval()
    score(model, store)
    assert not model.training

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    model.train()
    with pytest.raises(KeyboardInterrupt):
        score(model, store, stop)
    assert model.training


def test_padding_is_no_target() -> None:
    """Would catch targets that are not one further on than the inputs, and stories lost or doubled."""
    store = store_of([3, 1, 5])
    ((inputs, targets),) = padded_batches(store)
    a, b, c = (store.story(i).tolist() for i in (2, 0, 1))
    assert inputs.tolist() == [[EOS, *a[:-1]], [EOS, *b[:-1], EOS, EOS], [EOS] * 5]
    assert targets.tolist() == [a, [*b, IGNORED, IGNORED], [*c, *[IGNORED] * 4]]


def test_ids_of_which_nothing_can_be_predicted() -> None:
    """Would catch a division by zero for lists of one id."""
    with pytest.raises(ValueError, match="made up: nothing to score, no sequence has two tokens"):
        score(model_of(), store_of([1, 1], has_text=False))
    assert score(model_of(), store_of([1, 2], has_text=False)).num_tokens == 1


def test_bits_per_byte() -> None:
    """Would catch nats taken for bits, and tokens for bytes: 100 tokens at 2 nats over 250 bytes."""
    result = Score(nats=200.0, num_tokens=100, num_bytes=250, num_stories=4)
    assert result.nats_per_token == 2.0
    assert result.perplexity == pytest.approx(7.38905609893065)
    assert result.bits_per_byte == pytest.approx(200 / 0.6931471805599453 / 250)
    assert Score(200.0, 100, 0, 4).bits_per_byte is None
    assert Score(1e6, 10, 0, 1).perplexity == math.inf
    with pytest.raises(ValueError, match="byte_count must be greater than 0, got 0"):
        bits_per_byte(1.0, 0)


def test_what_the_ids_do_not_hold_is_paid_for() -> None:
    """Would catch two tokens that score 0.0 bits per byte for 600,000 bytes of which they hold none."""
    result = Score(nats=2 * math.log(2), num_tokens=2, num_bytes=600, num_stories=1, unspelled_bytes=600)
    assert (result.bits_per_byte, result.unspelled_share) == (pytest.approx(2 / 600), 1.0)
    paid = Score(2 * math.log(2), 2, 600, 1, unspelled_bytes=600, correction_bits=4830)
    assert paid.bits_per_byte == pytest.approx(4832 / 600)
    assert paid.nats_per_token == result.nats_per_token
    assert paid.perplexity == result.perplexity
    assert Score(200.0, 100, 0, 4).unspelled_share is None


def test_score_counts_the_corrections_of_its_stories() -> None:
    """Would catch corrections of stories that are held out, and a list without the bit that ends it."""
    store, model = store_of([5, 7, 9]), model_of()
    assert score(model, store).correction_bits == 0
    unspelled = np.array([[3, 31], [0, 0], [6, 60]])
    columns = (store.tokens, store.offsets, store.byte_counts, np.empty((0, 4), np.int64), store._about)
    lossy = TokenStore(*columns, unspelled=unspelled)
    found = score(model, lossy)
    assert (found.unspelled_bytes, found.correction_bits) == (9, 91 + 3)
    assert found.nats == score(model, store).nats
    some = TokenStore(*columns, np.array([0, 1]), "f", unspelled)
    assert (score(model, some).unspelled_bytes, score(model, some).correction_bits) == (3, 31 + 2)
    assert score(model, TokenStore(*columns, np.array([1]), "f", unspelled)).correction_bits == 0
    bare = TokenStore(*columns[:4], {**store._about, "has_text": False}, unspelled=unspelled)
    assert score(model, bare).correction_bits == 0


def test_small_store(small: Any) -> None:
    """Would catch a score of a view that takes in stories held out from it."""
    model = build_model(ModelConfig(small.tokenizer.vocab_size, embed_dim=4, hidden_dim=4, key_dim=4, value_dim=4), 0)
    nats = 0.0
    for i in range(small.valid.num_stories):
        ids = torch.tensor([[small.valid.eos_id, *small.valid.story(i).tolist()]])
        nats += F.cross_entropy(model(ids[:, :-1])[0][0], ids[0, 1:], reduction="sum").item()
    assert score(model, small.valid).nats == pytest.approx(nats, rel=1e-6)
