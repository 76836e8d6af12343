"""Writing: decoding against re-reading, text against its tokens, stop texts, seeds."""

import itertools
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from rhapsode.decode import Engine, SampleConfig, Written, write, write_texts
from rhapsode.decode.choice import Chooser
from rhapsode.decode.ending import begun_at_end
from rhapsode.model import LanguageModel, ModelConfig, build_model
from rhapsode.tokenizer import Tokenizer, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["once upon a time there was a dog. the dog was 🎉 happy."] * 3, "bpe", 280)


@pytest.fixture(scope="module", params=["plain", "stacked"])
def model(request: pytest.FixtureRequest, tokenizer: Tokenizer) -> LanguageModel:
    options = {"num_layers": 2, "attention": "last", "pair_embeddings": 60} if request.param == "stacked" else {}
    made = build_model(ModelConfig(tokenizer.vocab_size, request.param, 12, 14, 6, 10, **options), seed=0)
    with torch.no_grad():
        for p in made.parameters():
            p.mul_(1.5)
    return made.eval()


@pytest.fixture(scope="module")
def engine(model: LanguageModel, tokenizer: Tokenizer) -> Engine:
    return Engine(model, tokenizer)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_writing_is_re_reading(model: LanguageModel, engine: Engine, temperature: float) -> None:
    """Would catch a state that is not kept, a cache that slips, and rows that swap when another one ends.

    The oracle reads the whole prefix again at each step, each sample by itself.
    """
    config = SampleConfig(max_tokens=25, temperature=temperature, repetition_penalty=1.2, top_k=40, seed=7)
    written: list[list[Written]] = [[], [], []]
    tokenizer = engine.tokenizer
    for sample, step in write(engine, "the dog", config, count=3):
        written[sample].append(step)
    for i, steps in enumerate(written):
        ids = tokenizer.encode("the dog")
        chooser = Chooser(replace(config, seed=7 + i), tokenizer.vocab_size, torch.tensor(ids))
        for step in steps:
            with torch.no_grad():
                logits = model(torch.tensor([[tokenizer.eos_id, *ids]]))[0][0, -1]
            assert step.id == chooser.take(logits)
            assert step.log_probability == pytest.approx(float(logits.log_softmax(0)[step.id]), abs=1e-4)
            ids.append(step.id)
        assert steps[-1].ended == ("end of text" if ids[-1] == tokenizer.eos_id else "length")
        assert [step.ended for step in steps[:-1]] == [None] * (len(steps) - 1)
        assert len(steps) == 25 or ids[-1] == tokenizer.eos_id


def test_a_sample_depends_on_its_seed_alone(engine: Engine) -> None:
    """Would catch samples that share a generator: then the third of three is none that can be had alone."""
    config = SampleConfig(max_tokens=30, temperature=1.5, seed=3)
    together = write_texts(engine, "once", config, count=4)
    for i, text in enumerate(together):
        alone = SampleConfig(max_tokens=30, temperature=1.5, seed=3 + i)
        assert write_texts(engine, "once", alone) == [text]
    assert len(set(together)) == 4
    assert len(set(write_texts(engine, "once", SampleConfig(max_tokens=30, temperature=0), count=3))) == 1


def test_writing_draws_from_no_other_generator(engine: Engine) -> None:
    """Would catch a training run that is another one because it showed samples."""
    before = torch.get_rng_state()
    write_texts(engine, "", SampleConfig(max_tokens=5))
    assert torch.equal(torch.get_rng_state(), before)


class Parrot(LanguageModel):
    """A model that says the given ids, whatever it has read."""

    def __init__(self, ids: list[int], vocab_size: int, prompt_tokens: int) -> None:
        super().__init__()
        self.inner = build_model(ModelConfig(vocab_size, embed_dim=2, hidden_dim=2, key_dim=2, value_dim=2), 0)
        self.ids = ids
        self.read = -prompt_tokens

    @property
    def config(self) -> ModelConfig:  # type: ignore[override]
        return self.inner.config

    def forward(self, tokens: torch.Tensor, state: Any = None) -> Any:
        logits, state = self.inner(tokens, state)
        self.read += tokens.shape[1]
        logits = torch.zeros_like(logits)
        logits[:, -1, self.ids[self.read]] = 100.0
        return logits, state


def said(tokenizer: Tokenizer, ids: list[int], stop: tuple[str, ...] = (), most: int = 0) -> list[Written]:
    config = SampleConfig(max_tokens=most or len(ids), temperature=0, stop=stop)
    return [step for _, step in write(Engine(Parrot(ids, tokenizer.vocab_size, 1), tokenizer), "", config)]


def pieces(steps: list[Written]) -> Iterator[str]:
    return (step.text for step in steps)


def test_stop_text_over_token_borders(tokenizer: Tokenizer) -> None:
    """Would catch a stop text that is found within one token only, or whose beginning is out already."""
    ids = tokenizer.encode("once upon a time there")
    for stop in ("upon", "n a t", "e", "once", " there", "time there"):
        steps = said(tokenizer, ids, (stop,))
        assert "".join(pieces(steps)) == "once upon a time there".partition(stop)[0]
        assert steps[-1].ended == "stop"
        grown = list(itertools.accumulate(pieces(steps)))
        assert all("once upon a time there".partition(stop)[0].startswith(text) for text in grown)
    steps = said(tokenizer, ids, ("time flies", "a tim", "pon a"))
    assert "".join(pieces(steps)) == "once u"


def test_what_only_began_like_a_stop_text_comes_out(tokenizer: Tokenizer) -> None:
    """Would catch text that is held back for ever, in the middle or at the end."""
    ids = tokenizer.encode("once upon a time there")
    steps = said(tokenizer, ids, ("a timer", "there was", "aab"))
    assert "".join(pieces(steps)) == "once upon a time there"
    assert steps[-1].ended == "length"
    assert said(tokenizer, [*ids, tokenizer.eos_id], ("there was",))[-1].ended == "end of text"


def test_characters_split_over_tokens_come_out_whole(tokenizer: Tokenizer) -> None:
    """Would catch a replacement character within an emoji whose bytes are several tokens."""
    text = "a 🐲 ☂ dragon"
    ids = tokenizer.encode(text)
    assert len(tokenizer.encode("🐲")) > 1
    steps = said(tokenizer, ids)
    assert "".join(pieces(steps)) == text
    assert not any("�" in piece for piece in pieces(steps))
    # Cut off within the dragon: what is left of it is one replacement character, at the very end.
    cut = said(tokenizer, ids, most=len(tokenizer.encode("a 🐲")) - 1)
    assert "".join(pieces(cut)) == "a �"
    assert said(tokenizer, ids, ("🐲",))[-1].ended == "stop"


def test_end_of_text_ends_and_is_no_text(tokenizer: Tokenizer) -> None:
    """Would catch "</s>" in the text, or writing that goes on after it."""
    steps = said(tokenizer, [*tokenizer.encode("a dog"), tokenizer.eos_id, *tokenizer.encode("more")])
    assert "".join(pieces(steps)) == "a dog"
    assert (steps[-1].id, steps[-1].ended) == (tokenizer.eos_id, "end of text")


def test_text_goes_on_from_the_prompt() -> None:
    """Would catch a lost space: unigram pieces spell one only where something stands before them."""
    tokenizer = train_tokenizer(["once upon a time there was a dog. the dog was happy."] * 5, "unigram", 40)
    whole = tokenizer.encode("the dog was")
    before = tokenizer.encode("the dog")
    assert whole[: len(before)] == before
    model = Parrot(whole[len(before) :], tokenizer.vocab_size, len(before) + 1)
    config = SampleConfig(max_tokens=len(whole) - len(before), temperature=0)
    assert write_texts(Engine(model, tokenizer), "the dog", config) == [" was"]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("max_tokens", -1, "max_tokens must be >= 0, got -1"),
        ("temperature", -1.0, "temperature must be >= 0, got -1.0"),
        ("temperature", float("nan"), "temperature must be >= 0, got nan"),
        ("top_k", -1, r"top_k must be >= 0 \(0 for all\), got -1"),
        ("top_p", 0.0, r"top_p must be in \(0, 1\], got 0.0"),
        ("min_p", 1.1, r"min_p must be in \[0, 1\], got 1.1"),
        ("repetition_penalty", 0.0, "repetition_penalty must be > 0, got 0.0"),
        ("frequency_penalty", 2.5, "frequency_penalty must be from -2 to 2, got 2.5"),
        ("presence_penalty", float("nan"), "presence_penalty must be from -2 to 2, got nan"),
        ("logit_bias", {3: 101.0}, "logit_bias must give token ids numbers from -100 to 100, got 101.0 for 3"),
        ("logit_bias", {-1: 1.0}, "logit_bias must give token ids numbers from -100 to 100, got 1.0 for -1"),
        ("seed", -1, r"seed must be from 0 to 2\^64 - 1, got -1"),
        ("stop", ("",), "stop must not be an empty text"),
    ],
)
def test_config_names_field_and_value(field: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SampleConfig(**{field: value})


def test_number_of_samples(engine: Engine) -> None:
    with pytest.raises(ValueError, match="number of samples must be >= 1, got 0"):
        write(engine, "", count=0)


def test_no_sample_is_drawn_with_a_seed_that_there_is_not(engine: Engine) -> None:
    """Would catch sample 1 of the largest seed that is drawn with seed 0."""
    largest = SampleConfig(seed=2**64 - 1, max_tokens=2)
    assert len(write_texts(engine, "once", largest)) == 1
    with pytest.raises(ValueError, match="2 of them starting at 18446744073709551615 go beyond that"):
        write(engine, "once", largest, count=2)


def test_seeds_that_differ_by_2_to_the_32_write_different_texts(engine: Engine) -> None:
    """Would catch a seed of which only the low 32 bits count."""
    config = SampleConfig(max_tokens=30)
    texts = {write_texts(engine, "once", replace(config, seed=3 + high * 2**32))[0] for high in range(4)}
    assert len(texts) == 4


def test_the_beginning_of_a_stop_text_at_the_end() -> None:
    """Would catch a beginning that is let out, and one that is found only if nothing longer fails."""
    for text, stop, count in (
        ("once upon", "upon a", 4),
        ("aaab", "aab", 0),
        ("aaa", "aab", 2),
        ("aaa", "aaa", 2),
        ("abab", "ababc", 4),
        ("abab", "abac", 2),
        ("", "a", 0),
        ("ab", "b", 0),
    ):
        assert begun_at_end(text, stop) == count, (text, stop)


def test_a_long_stop_text_takes_no_memory(tokenizer: Tokenizer) -> None:
    """Would catch all beginnings of a stop text kept as texts: of four megabytes they take more than there is."""
    tracemalloc.start()
    words = said(tokenizer, tokenizer.encode("once upon"), ("once upon a " * 400_000,))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000_000
    assert "".join(pieces(words)) == "once upon"
