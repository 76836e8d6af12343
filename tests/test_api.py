"""Rhapsode from Python: what it writes, reads and scores, against the slow way and against the command line's parts."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from rhapsode import evaluation
from rhapsode.api import load
from rhapsode.decode import Engine, SampleConfig, write_texts
from rhapsode.model import ModelConfig, build_model
from rhapsode.run import Run
from rhapsode.sources import open_source
from rhapsode.state import State
from rhapsode.tokenizer import Tokenizer, train_tokenizer
from rhapsode.tokens import prepare
from rhapsode.trained import Model

PROMPT = "Once there was"


@pytest.fixture(scope="module")
def model(tiny_run: Path) -> Model:
    return load(tiny_run, device="cpu")


def slow(model: Model, ids: list[int]) -> torch.Tensor:
    """Log-probabilities (n, V) of what follows each of the ids, read in one call by the equations."""
    with torch.no_grad():
        return model.network(torch.tensor([ids]))[0][0].double().log_softmax(-1)


def test_a_completion_holds_the_new_tokens_and_what_the_model_thought_of_them(model: Model) -> None:
    """Would catch the prompt's tokens among the new ones, probabilities after temperature, a state one token short."""
    out = model.generate(PROMPT, n=3, max_tokens=12, temperature=0.6, seed=5)
    assert [len(each.tokens) for each in out] == [len(each.log_probabilities) for each in out]
    assert len({tuple(each.tokens) for each in out}) > 1
    before = [model.tokenizer.eos_id, *model.tokenizer.encode(PROMPT)]
    for each in out:
        expected = slow(model, [*before, *each.tokens])[len(before) - 1 : -1]
        chosen = expected.gather(1, torch.tensor(each.tokens)[:, None])[:, 0]
        assert each.log_probabilities == pytest.approx(chosen.tolist(), abs=1e-5)
        likeliest = each.top(4)
        assert [[token.id for token in row] for row in likeliest] == expected.topk(4).indices.tolist()
        assert [row[0].probability for row in likeliest] == pytest.approx(expected.amax(1).exp().tolist(), rel=1e-4)
        assert each.state.ids is not None
        assert each.state.ids[0].tolist() == [*before, *each.tokens]
        assert str(each) == PROMPT + each.text
        ended = each.tokens[-1] == model.tokenizer.eos_id
        assert each.finish_reason == ("stop" if ended else "length")
        assert len(each.tokens) == 12 or ended


def test_sample_i_draws_with_seed_plus_i(model: Model) -> None:
    """Would catch samples that depend on each other, and a seed that means something else than on the command line."""
    three = model.generate(PROMPT, n=3, max_tokens=9, seed=4)
    alone = [model.generate(PROMPT, max_tokens=9, seed=4 + i)[0] for i in range(3)]
    assert [each.tokens for each in three] == [each.tokens for each in alone]
    config = SampleConfig(max_tokens=9, seed=4)
    assert [each.text for each in three] == write_texts(Engine(model.network, model.tokenizer), PROMPT, config, 3)


def test_nothing_may_be_written(model: Model) -> None:
    """Would catch a reason that is none, and a state that is not the prompt's."""
    (out,) = model.generate(PROMPT, max_tokens=0)
    assert (out.text, out.tokens, out.top(2), out.finish_reason) == ("", [], [], "length")
    assert torch.equal(out.state.logits, model.read(PROMPT).logits)  # type: ignore[arg-type]


def test_a_stream_joined_is_the_completion(model: Model) -> None:
    whole = model.generate(PROMPT, max_tokens=20, seed=3)[0]
    pieces = list(model.stream(PROMPT, max_tokens=20, seed=3))
    assert "".join(pieces) == whole.text
    assert all(pieces)
    assert len(pieces) > 1


def test_stop_texts(model: Model) -> None:
    """A stop text is left out and is the reason; one text may be given for a list of one."""
    text = model.generate(PROMPT, max_tokens=30, temperature=0)[0].text
    stop = text[len(text) // 2 :][:2]
    for given in (stop, [stop], (stop, "never")):
        out = model.generate(PROMPT, max_tokens=30, temperature=0, stop=given)[0]
        assert out.text == text[: text.index(stop)]
        assert out.finish_reason == "stop"


def test_a_state_goes_on_as_if_the_text_had_not_been_cut(model: Model, tmp_path: Path) -> None:
    """Greedy and drawn, through a file, as often as one likes; would catch a begin token in the middle."""
    first, rest = "Once there", " was"
    for options in ({"temperature": 0.0}, {"temperature": 0.9, "seed": 8, "repetition_penalty": 1.3}):
        whole = model.generate(first + rest, max_tokens=15, **options)[0]  # type: ignore[arg-type]
        state = model.read(first)
        model.read(first).save(tmp_path / "s.safetensors")
        for given in (state, state, State.load(tmp_path / "s.safetensors")):
            cut = model.generate(rest, max_tokens=15, state=given, **options)[0]  # type: ignore[arg-type]
            assert (cut.tokens, cut.text) == (whole.tokens, whole.text)
    half = model.generate(first + rest, max_tokens=7, temperature=0)[0]
    others = model.generate("", max_tokens=8, temperature=0, state=half.state)[0]
    whole = model.generate(first + rest, max_tokens=15, temperature=0)[0]
    assert half.tokens + others.tokens == whole.tokens
    assert "".join(model.stream(rest, max_tokens=15, temperature=0, state=model.read(first))) == whole.text


def test_a_state_of_another_model_is_refused(model: Model, tiny_run: Path) -> None:
    """Would catch a state that fits by its shapes and means nothing."""
    other = load(tiny_run, device="cpu")
    assert other.fingerprint == model.fingerprint
    model.generate("x", max_tokens=1, state=other.read("A"))
    with torch.no_grad():
        next(other.network.parameters()).add_(1)
    with pytest.raises(ValueError, match="this state belongs to another model"):
        model.generate("x", state=Model(other.network, other.tokenizer).read("A"))
    with pytest.raises(ValueError, match="this state belongs to another model"):
        model.read("x", State(()))


def test_next_tokens(model: Model) -> None:
    found = model.next_tokens(PROMPT, k=3)
    expected = slow(model, [model.tokenizer.eos_id, *model.tokenizer.encode(PROMPT)])[-1]
    assert [token.id for token in found] == expected.topk(3).indices.tolist()
    assert [token.log_probability for token in found] == pytest.approx(expected.topk(3).values.tolist(), abs=1e-5)
    assert [token.text for token in found] == [model.tokenizer.token_text(token.id) for token in found]
    assert len(model.next_tokens("", k=10**6)) == model.tokenizer.vocab_size


TEXTS = ["Once there was a cat.", "A dog 🐕 ran away, and nobody saw it again. " * 3, "", "x"]


def test_scores_each_and_together(model: Model) -> None:
    """Would catch a mean of ratios, an end that is not scored, rows that pad each other, and another order."""
    scores = model.score(TEXTS, per_token=True)
    for text, found in zip(TEXTS, scores.texts, strict=True):
        ids = [*model.tokenizer.encode(text), model.tokenizer.eos_id]
        expected = slow(model, [model.tokenizer.eos_id, *ids[:-1]]).gather(1, torch.tensor(ids)[:, None])[:, 0]
        assert found.token_log_probabilities == pytest.approx(expected.tolist(), abs=1e-5)
        assert found.nats == pytest.approx(-expected.sum().item(), rel=1e-6)
        assert (found.tokens, found.bytes) == (len(ids), len(text.encode()))
    assert scores.nats == pytest.approx(sum(text.nats for text in scores.texts))
    assert scores.bits_per_byte == pytest.approx(scores.nats / math.log(2) / len("".join(TEXTS).encode()))
    assert scores.texts[2].bits_per_byte is None
    assert model.score(TEXTS).texts[0].token_log_probabilities is None
    one = model.score("x")
    assert (one.nats, one.tokens) == (pytest.approx(scores.texts[3].nats, rel=1e-6), scores.texts[3].tokens)
    without = model.score("x", end=False, per_token=True).texts[0]
    assert without.token_log_probabilities == pytest.approx(scores.texts[3].token_log_probabilities[:-1], abs=1e-6)  # type: ignore[index]


def test_scores_are_those_of_evaluate(model: Model, small: Any, tmp_path: Path) -> None:
    """The same texts as a file; one that evaluate reads in two pieces, too."""
    texts = ["Once there was a cat. " * 60, *TEXTS[:2]]
    (tmp_path / "texts.txt").write_text("\n".join(text.strip() for text in texts))
    store = prepare(open_source([str(tmp_path / "texts.txt")]), model.tokenizer, tmp_path)
    expected = evaluation.score(model.network, store)
    found = model.score([text.strip() for text in texts])
    longest = len(model.tokenizer.encode(texts[0]))
    assert evaluation.CHUNK < longest < evaluation.CHUNK + evaluation.CONTEXT
    assert (found.tokens, found.bytes) == (expected.num_tokens, expected.num_bytes)
    assert found.nats == pytest.approx(expected.nats, rel=1e-6)
    assert found.perplexity == pytest.approx(expected.perplexity, rel=1e-6)


def test_what_cannot_be_is_said_in_one_line(model: Model, tmp_path: Path) -> None:
    wrong: list[tuple[Any, str]] = [
        (lambda: model.generate("x", temperature=-1), "temperature must be >= 0, got -1"),
        (lambda: model.generate("x", n=0), "the number of samples must be >= 1, got 0"),
        (lambda: model.generate("x", n=10**20), "the number of samples must be at most 100,000, got 1"),
        (lambda: model.generate("x", stop=[""]), "stop must not be an empty text"),
        (lambda: model.generate("half \ud83d"), "half of a surrogate pair at 5"),
        (lambda: model.generate(7), "a text must be a str, got int"),  # type: ignore[arg-type]
        (lambda: model.stream("x", top_p=2), r"top_p must be in \(0, 1\], got 2"),
        (lambda: model.score([]), "there is no text to score"),
        (lambda: model.next_tokens("x", k=0), "k, the number of tokens, must be >= 1, got 0"),
        (lambda: model.generate("x", max_tokens=1)[0].top(-1), "k, the number of tokens, must be >= 1, got -1"),
        (lambda: model.score("half \ud83d"), "half of a surrogate pair at 5"),
        (lambda: model.score("", end=False), "nothing to score in the text ''"),
        (lambda: model.attention(""), "must not be empty"),
        (lambda: load(tmp_path / "none"), "none: no such directory; a run is a directory"),
        (lambda: load(tmp_path), "no run.json in it"),
    ]
    for call, message in wrong:
        with pytest.raises((ValueError, OSError), match=message) as caught:
            call()
        assert len(str(caught.value).splitlines()) == 1


def test_attention_rows_and_how_it_shows(model: Model) -> None:
    """Would catch rows that do not sum to 1, and a token that is taken for HTML."""
    seen = model.attention("<b>Once</b> & there")
    assert seen.tokens[0] == "</s>"
    for heads in seen.weights.values():
        assert heads.shape[1:] == (len(seen.tokens), len(seen.tokens))
        assert heads.sum(-1) == pytest.approx(1, abs=1e-5)
    shown = seen._repr_html_()
    assert "<b>" not in shown
    assert "&lt;" in shown
    out = model.generate("<script>alert(1)</script>", max_tokens=2)[0]
    assert "<script>" not in out._repr_html_()


def test_what_a_model_knows_of_itself(model: Model, tiny_run: Path) -> None:
    run = Run.open(tiny_run)
    assert model.recipe == run.recipe
    assert model.recipe is not None
    assert model.recipe.model.vocab_size == model.tokenizer.vocab_size
    assert [event["event"] for event in model.metrics].count("valid") == 2
    assert model.path == tiny_run
    assert "stacked" in repr(model)


def test_what_a_tokenizer_cannot_spell_has_its_price_in_scores(tmp_path: Path) -> None:
    """The same texts as evaluate scores them; would catch a tokenizer that flatters the score from Python."""
    texts = ["A cat sat.", "Кот сидел.", "A dog, 🐕 and a cat."]
    tokenizer = train_tokenizer(["A cat sat. A dog and a cat sat, and sat."], "characters", 60)
    config = ModelConfig(tokenizer.vocab_size, embed_dim=5, hidden_dim=7, key_dim=3, value_dim=4)
    model = Model(build_model(config, seed=0), tokenizer)
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    expected = evaluation.score(model.network, prepare(open_source([str(tmp_path / "texts.txt")]), tokenizer, tmp_path))
    found = model.score(texts)
    assert (found.unspelled_bytes, found.correction_bits) == (expected.unspelled_bytes, expected.correction_bits)
    assert found.unspelled_bytes > 15
    assert found.bits_per_byte == pytest.approx(expected.bits_per_byte, rel=1e-6)
    assert found.texts[0].correction_bits == 0 < found.texts[1].correction_bits


def test_a_text_goes_on_without_a_blank_put_before_it(tmp_path: Path) -> None:
    """A tokenizer that puts a blank before every text does not where a state goes on."""
    trained = train_tokenizer(["once upon a time there was a cat and a dog"] * 3, "unigram", 60)
    trained.save(tmp_path)
    definition = json.loads((tmp_path / "tokenizer.json").read_text())
    definition["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    definition["decoder"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    vocabulary = [[piece.replace(" ", "▁"), score] for piece, score in definition["model"]["vocab"]]
    definition["model"]["vocab"] = vocabulary
    tokenizer = Tokenizer(definition, {"eos_token": "</s>"})
    config = ModelConfig(tokenizer.vocab_size, embed_dim=5, hidden_dim=7, key_dim=3, value_dim=4)
    model = Model(build_model(config, seed=0), tokenizer)
    whole, cut = model.read("once upon a time"), model.read(" a time", model.read("once upon"))
    assert whole.ids is not None
    assert cut.ids is not None
    assert cut.ids.tolist() == whole.ids.tolist()
