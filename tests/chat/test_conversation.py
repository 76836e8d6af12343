"""The text that a person and a model write in turns, and the likeliest next words."""

import itertools
import math
from pathlib import Path

import pytest
import torch

import rhapsode
from rhapsode.chat.conversation import Conversation
from rhapsode.chat.words import NextWord, goes_on, likeliest_words
from rhapsode.decode import Engine, SampleConfig, prompt_ids
from rhapsode.inspection.copying import copied_words
from rhapsode.model import LanguageModel, ModelConfig, build_model
from rhapsode.tokenizer import Tokenizer, train_tokenizer


@pytest.fixture(scope="module")
def model(tiny_run: Path) -> rhapsode.Model:
    return rhapsode.load(tiny_run, device="cpu")


def test_turns_are_what_generate_writes(model: rhapsode.Model) -> None:
    """Turn i continues all of the text so far with seed + i. Would catch a turn that begins anew, one that loses what
    the person wrote, and two turns that draw the same numbers."""
    told = Conversation(model, SampleConfig(max_tokens=12, temperature=0.9, seed=7))
    assert told.add("Once upon") == "Once upon"
    first = "".join(told.go_on())
    assert first == model.generate("Once upon", max_tokens=12, temperature=0.9, seed=7)[0].text
    assert told.add("a time") == "\na time"
    so_far = f"Once upon{first}\na time"
    assert told.text == so_far
    second = "".join(told.go_on())
    assert second == model.generate(so_far, max_tokens=12, temperature=0.9, seed=8)[0].text
    assert told.text == so_far + second


def test_a_turn_that_is_stopped_keeps_what_was_shown(model: rhapsode.Model) -> None:
    """Ctrl-C in the middle: what was seen is in the text, and the next turn goes on after it."""
    told = Conversation(model, SampleConfig(max_tokens=50, temperature=0.9))
    told.add("Once")
    pieces = told.go_on()
    seen = "".join(itertools.islice(pieces, 5))
    pieces.close()
    assert told.text == f"Once{seen}"
    assert not told._engine.busy
    assert "".join(told.go_on())


def test_the_last_line_and_undo(model: rhapsode.Model) -> None:
    told = Conversation(model, SampleConfig(max_tokens=3))
    assert not told.undo()
    told.add("one")
    told.add("two")
    assert (told.text, told.last_line) == ("one\ntwo", "two")
    told.replace_last_line("three")
    assert told.text == "one\nthree"
    list(told.go_on())
    assert told.undo()
    assert told.text == "one\ntwo"
    told.undo()
    told.undo()
    assert told.text == ""
    told.replace_last_line("x")
    assert told.text == "x"
    told.append(" y\n\n")
    assert told.last_line == "x y"
    assert told.add("z") == "z"


def test_the_end_is_known(model: rhapsode.Model) -> None:
    told = Conversation(model, SampleConfig(max_tokens=3, logit_bias={model.tokenizer.eos_id: 100.0}))
    told.add("one")
    assert "".join(told.go_on()) == ""
    assert told.ended
    told.add("two")
    assert not told.ended


def exhaustive(network: LanguageModel, tokenizer: Tokenizer, before: list[int], depth: int) -> dict[str, float]:
    """The probabilities of words of at most `depth` tokens, by listing all that are not very improbable."""
    found: dict[str, float] = {}

    def walk(ids: list[int], probability: float) -> None:
        begun, ends = tokenizer.decode(ids), 0.0
        with torch.inference_mode():
            logits, _ = network(torch.tensor([before + ids]))
        for id, share in enumerate(logits[0, -1].double().softmax(-1).tolist()):
            piece = tokenizer.decode([id])
            if id == tokenizer.eos_id and not ids:
                found[""] = share
            elif ids and (not piece or not goes_on(begun, piece[0])):
                ends += share
            elif not piece:
                continue
            elif len(ids) < depth and probability * share > 1e-3:
                walk([*ids, id], probability * share)
        if ids:
            found[begun] = probability * ends

    walk([], 1.0)
    return found


def test_likeliest_words_are_those_of_all_words() -> None:
    """Against a list of all words of few tokens. Would catch tokens that are shown as words, a probability that
    forgets that the word must end, and a likelier word that is not found."""
    tokenizer = train_tokenizer(["ab c. d'a"] * 3, "characters", 20)
    network = build_model(ModelConfig(tokenizer.vocab_size, "stacked", 8, 9, 3, 4, num_layers=1), seed=3).eval()
    with torch.no_grad():
        network.lm_head.weight.mul_(3)  # surer, so that words of several tokens are among the likeliest
    engine = Engine(network, tokenizer)
    lengths = set()
    for text in ("", "a b", "d. "):
        ids = prompt_ids(tokenizer, text)
        words = likeliest_words(engine, ids, 5)
        expected = exhaustive(network, tokenizer, ids, depth=8)
        ranked = sorted(expected.items(), key=lambda pair: -pair[1])[:5]
        assert [word.text for word in words] == [word for word, _ in ranked]
        assert [word.probability for word in words] == pytest.approx([p for _, p in ranked], rel=1e-4)
        lengths |= {len(word.text) for word in words}
    assert {0, 1, 2} <= lengths or {1, 2, 3} <= lengths


def test_what_a_word_is() -> None:
    """A blank, a stop and the end are no part of a word; letters, digits, apostrophes and parts of characters are."""
    for spelled, following, expected in (
        ("", " the", True),
        (" th", "e", True),
        (" the", " cat", False),
        (" the", ".", False),
        (".", '"', False),
        (".", "a", False),
        (" don", "'t", True),
        (" ", "the", True),
        ("\n", "The", True),
        (" caf", "\ufffd", True),
        (" ", "t", True),
    ):
        assert goes_on(spelled, following[0]) is expected, (spelled, following)
    assert math.isclose(NextWord("a", 0.5).probability, 0.5)


def test_copied_copied_words_the_last_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only words of the last turn; a model without a copy head says so."""
    path = tmp_path / "copier"
    shape = {"embed_dim": 8, "hidden_dim": 8, "key_dim": 4, "value_dim": 4, "num_layers": 1, "copy_dim": 4}
    made = rhapsode.train(
        ["the cat and the dog"] * 40, tokens=800, vocab_size=270, model={**shape, "pair_embeddings": 0}, out=path
    )
    told = Conversation(made, SampleConfig(max_tokens=12, seed=1))
    told.add("the cat and the")
    list(told.go_on())
    words, first = told.words()
    assert words == copied_words(made.copies(told.text))
    shown = "".join(word.text for word in words[1:first])
    assert shown.replace("▁", " ").startswith("the cat and")
    assert len(shown) <= len("the cat and the")
    plain = Conversation(rhapsode.load(path), SampleConfig())
    plain.model.network.copy_head = None
    plain.add("the")
    with pytest.raises(ValueError, match="no copy head"):
        plain.words()
