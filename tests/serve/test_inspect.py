"""/api/inspect against the Python API and against storyworld's own numbers."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from serve.conftest import Served, serving

import rhapsode
from rhapsode import storyworld
from rhapsode.inspection.trace import trace
from rhapsode.model import ModelConfig, build_model

TEXT = "Once upon a time there was a 🎉 cat"


@pytest.fixture(scope="module")
def teller(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on storyworld, with two attending blocks and a copy head."""
    path = tmp_path_factory.mktemp("teller") / "teller"
    shape = {"embed_dim": 12, "hidden_dim": 10, "key_dim": 4, "value_dim": 6, "num_layers": 2, "num_heads": 2}
    rhapsode.train(
        "storyworld:300",
        preset="minute",
        tokens=2_000,
        vocab_size=400,
        model={**shape, "attention": "all", "pair_embeddings": 0, "copy_dim": 5},
        out=path,
        threads=1,
    )
    return path


@pytest.fixture(scope="module")
def telling(teller: Path) -> Iterator[Served]:
    with serving(teller) as server:
        yield server


def inspect(served: Served, **fields: Any) -> dict[str, Any]:
    answer = served.api.post("/api/inspect", json=fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_tokens_and_surprise(served: Served, model: rhapsode.Model) -> None:
    """Texts of tokens joined are the text, emoji and all; log-probabilities are those of `Model.score`."""
    for given in ({"text": TEXT}, {"tokens": model.tokenizer.encode(TEXT)}):
        found = inspect(served, **given)
        assert "".join(token["text"] for token in found["tokens"]) == TEXT
        assert [token["id"] for token in found["tokens"]] == model.tokenizer.encode(TEXT)
        assert [token["piece"] for token in found["tokens"]] == [
            model.tokenizer.token_text(id) for id in model.tokenizer.encode(TEXT)
        ]
        scored = model.score(TEXT, per_token=True, end=False).texts[0].token_log_probabilities
        assert found["log_probabilities"] == pytest.approx(scored, abs=1e-5)
        assert (found["truth_log_probabilities"], found["departure"], found["references"]) == (None, None, [])
        assert found["positions"] == []
    assert inspect(served, text="", positions=[0])["tokens"] == []


def test_what_was_expected_and_looked_at(served: Served, model: rhapsode.Model) -> None:
    """Position i is the prediction of token i: what `next_tokens` and `attention` say after the first i tokens."""
    ids = model.tokenizer.encode(TEXT)
    seen = model.attention(TEXT)
    found = inspect(served, text=TEXT, positions=[0, 3, len(ids)], top=4)["positions"]
    for position in found:
        i = position["position"]
        expected = model.next_tokens(model.tokenizer.decode(ids[:i]), k=4)
        assert [token["id"] for token in position["next"]] == [token.id for token in expected]
        assert [token["probability"] for token in position["next"]] == pytest.approx(
            [token.probability for token in expected], rel=1e-4
        )
        assert [token["piece"] for token in position["next"]] == [token.text for token in expected]
        heads = {(part, head): w[i, : i + 1] for part, all_ in seen.weights.items() for head, w in enumerate(all_)}
        assert {(look["part"], look["head"]) for look in position["attention"]} == set(heads)
        for look in position["attention"]:
            assert look["weights"] == pytest.approx(heads[look["part"], look["head"]].tolist(), abs=1e-6)
        state = model.read(model.tokenizer.decode(ids[:i]))
        assert len(position["hidden"]) == len(state.blocks)
        for hidden, block in zip(position["hidden"], state.blocks, strict=True):
            assert hidden == pytest.approx(block.hidden[0].tolist(), abs=1e-5)
        assert (position["copy"] is None) is (model.network.copy_head is None)
        assert position["truth"] is None
    whole = inspect(served, text=TEXT, positions=[2], top=0)["positions"][0]["next"]
    assert len(whole) == model.tokenizer.vocab_size
    assert sum(token["probability"] for token in whole) == pytest.approx(1)


def test_the_truth_of_storyworld(telling: Served, teller: Path) -> None:
    """The exact distribution, the excess in bits, and references with antecedents, in a beginning that is no whole
    story. Would catch a truth that is one token off, and a divergence the wrong way round."""
    model = rhapsode.load(teller)
    story = storyworld.sample(11)
    text = story.text[: len(story.text) * 2 // 3]
    ids = model.tokenizer.encode(text)
    places = [0, 7, len(ids) - 3, len(ids)]
    found = inspect(telling, text=text, positions=places, top=0)
    truth = storyworld.next_tokens_along(ids, model.tokenizer)
    assert found["departure"] is None
    assert found["truth_log_probabilities"] == pytest.approx(truth.log_probabilities.tolist())
    for position in found["positions"]:
        row = truth.rows[position["position"]]
        assert [token["id"] for token in position["truth"]["next"]] == row.ids[:20].tolist()
        mine = {token["id"]: token["probability"] for token in position["next"]}
        excess = sum(
            p * math.log2(p / mine[id]) for id, p in zip(row.ids.tolist(), row.probabilities.tolist(), strict=True)
        )
        assert position["truth"]["excess_bits"] == pytest.approx(excess, rel=1e-6)
    expected = [label for label in story.labels if label.end <= len(text)]
    assert len(expected) > 3
    begins = np.cumsum([0, *(len(token["text"]) for token in found["tokens"])])
    for reference, label in zip(found["references"], expected, strict=True):
        assert (reference["start"], reference["end"]) == (label.start, label.end)
        assert reference["right"] == text[label.start : label.end]
        assert reference["antecedent"] == list(label.antecedent)
        covering = [i for i in range(len(ids)) if begins[i] < label.end and begins[i + 1] > label.start]
        nats = sum(found["log_probabilities"][i] for i in covering)
        assert reference["probability"] == pytest.approx(math.exp(nats))
    assert inspect(telling, text=text, truth=False)["truth_log_probabilities"] is None


def test_a_text_that_leaves_the_grammar(telling: Served, teller: Path) -> None:
    """What is true as far as it is a story, and where it stops being one."""
    tokenizer = rhapsode.load(teller).tokenizer
    story = storyworld.sample(3).text
    text = story[: len(story) // 2] + " zebra quark"
    ids = tokenizer.encode(text)
    found = inspect(telling, text=text, positions=[1, len(ids)])
    assert "no train story continues like this" in found["departure"]
    assert found["truth_log_probabilities"][-1] is None
    assert found["truth_log_probabilities"][1] is not None
    assert found["positions"][0]["truth"] is not None
    assert found["positions"][1]["truth"] is None
    assert all(reference["end"] <= len(story) // 2 for reference in found["references"])


def test_copies(telling: Served, teller: Path) -> None:
    """The mixture's parts: g c + (1 - g) p is the distribution that was told. Would catch weights of another place."""
    model = rhapsode.load(teller)
    text = "Once upon a time there was a cat. The cat was a cat."
    ids = model.tokenizer.encode(text)
    read = [model.tokenizer.eos_id, *ids]
    found = inspect(telling, text=text, positions=list(range(len(ids) + 1)), top=0)
    head = model.network.copy_head
    assert head is not None
    x, _ = model.network.features(torch.tensor([read]))
    own = model.network.lm_head(x)[0].double().softmax(-1)
    for position in found["positions"]:
        i, copy = position["position"], position["copy"]
        assert sum(copy["weights"]) == pytest.approx(1, abs=1e-6)
        assert len(copy["weights"]) == i + 1
        mixed = (1 - copy["gate"]) * own[i].clone()
        for id, weight in zip(read[: i + 1], copy["weights"], strict=True):
            mixed[id] += copy["gate"] * weight
        told = {token["id"]: token["probability"] for token in position["next"]}
        assert [told[id] for id in range(len(told))] == pytest.approx(mixed.tolist(), abs=1e-6)
        if i == len(ids):
            assert copy["probability"] is None
        else:
            copied = copy["gate"] * sum(w for id, w in zip(read, copy["weights"], strict=False) if id == ids[i])
            assert copy["probability"] == pytest.approx(copied / told[ids[i]], abs=1e-5)


@pytest.mark.parametrize("kind", ["plain", "stacked"])
def test_a_trace_is_what_the_model_says(kind: str) -> None:
    """Places beyond one block of logits, both kinds of model, in float64. Would catch a block that is off by one."""
    shape = {"embed_dim": 6, "hidden_dim": 7, "key_dim": 3, "value_dim": 4}
    options = {"num_layers": 2, "pair_embeddings": 50, "copy_dim": 3} if kind == "stacked" else {}
    network = build_model(ModelConfig(23, kind, **shape, **options), seed=1).double().eval()
    ids = torch.randint(23, (700,), generator=torch.Generator().manual_seed(2)).tolist()
    with torch.inference_mode():
        logits, state = network(torch.tensor([ids]))
    expected = logits[0].log_softmax(-1)
    looked = trace(network, ids)
    chosen = expected[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    assert looked.log_probabilities() == pytest.approx(chosen.tolist(), abs=1e-12)
    for place in (0, 511, 512, 699):
        torch.testing.assert_close(looked.expected(place), expected[place], rtol=1e-10, atol=1e-12)
        for weights in looked.attention(place).values():
            assert weights.shape == (1, place + 1)
            torch.testing.assert_close(weights.sum(-1), torch.ones(1, dtype=torch.float64))
    for hidden, block in zip(looked.hidden.values(), state.blocks, strict=True):
        torch.testing.assert_close(hidden[-1], block.hidden[0])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_limits_of_looking(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clear answers instead of a server that computes for minutes."""
    path = "/api/inspect"
    assert "2,048" in served.refused(400, path, text="a b " * 3_000)["message"]
    assert "64 positions" in served.refused(400, path, text="a", positions=[0] * 65)["message"]
    assert "from 0 to 1" in served.refused(400, path, tokens=[5], positions=[2])["message"]
    assert "one of the two" in served.refused(400, path)["message"]
    assert "one of the two" in served.refused(400, path, text="a", tokens=[5])["message"]
    assert "299" in served.refused(400, path, tokens=[300])["message"]
    monkeypatch.setattr("rhapsode.serve.inspecting.MOST_NEXT", 600)
    assert served.refused(400, path, text="a", positions=[0, 0, 0], top=0)["param"] == "top"
    assert served.api.post(path, json={"text": "a", "positions": [0, 0], "top": 0}).status_code == 200


def test_beginnings_of_stories(teller: Path) -> None:
    """`beginning_labels` at every cut of a story: those of the whole story that end before it, one by one. Would catch
    a story that is finished with other facts than it was begun with."""
    story = storyworld.sample(5)
    assert storyworld.beginning_labels(story.text) == story.labels
    assert storyworld.beginning_labels("") == ()
    for cut in range(40, len(story.text), 37):
        found = storyworld.beginning_labels(story.text[:cut])
        assert found == tuple(label for label in story.labels if label.end <= cut)
        broken = storyworld.beginning_labels(story.text[:cut] + "x¤")
        assert broken == tuple(label for label in story.labels if label.end < cut) or broken == found
