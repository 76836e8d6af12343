"""What is said to be copied must be what the model's probabilities say, whichever way they are computed."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from rhapsode.inspection import copy_map, copy_table, draw_copies
from rhapsode.model import LanguageModel, ModelConfig, build_model
from rhapsode.results import CopyMap
from rhapsode.tokenizer import Tokenizer, train_tokenizer

TEXT = "Pia saw Bruno. Bruno saw Pia, and Pia saw <Bruno>."


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([TEXT], "characters", 99)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> LanguageModel:
    """Untrained, with a gate that is half open and queries that look for something."""
    config = ModelConfig(tokenizer.vocab_size, "stacked", embed_dim=8, hidden_dim=9, key_dim=4, value_dim=3, copy_dim=5)
    model = build_model(config, seed=1).double()
    assert model.copy_head is not None
    with torch.no_grad():
        model.copy_head.gate.bias.zero_()
        model.copy_head.query_transform.weight.mul_(5)
    return model


@pytest.mark.parametrize("at_once", [7, 512])
def test_the_share_that_was_copied(
    model: LanguageModel, tokenizer: Tokenizer, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the vocabulary alone leaves over of the probability; would catch places that are off by one."""
    monkeypatch.setattr("rhapsode.inspection.copying.PLACES_AT_ONCE", at_once)
    monkeypatch.setattr("rhapsode.inspection.copying.LEAST_SHOWN", 0.0)
    found = copy_map(model, tokenizer, TEXT)
    ids = [tokenizer.eos_id, *tokenizer.encode(TEXT)]
    tokens = torch.tensor([ids])
    with torch.inference_mode():
        x, _ = model.features(tokens)
        gates = model.copy_head.gate(x)[0, :, 0].sigmoid()  # type: ignore[union-attr]
        p = model(tokens)[0][0].softmax(-1)
        vocabulary = model.lm_head(x)[0].softmax(-1)
    assert len(found.tokens) == len(found.gates) == len(found.probabilities) == len(found.sources) == len(ids)
    for place in range(1, len(ids)):
        before, id = place - 1, ids[place]
        share = 1 - (1 - gates[before]) * vocabulary[before, id] / p[before, id]
        assert found.gates[place] == pytest.approx(gates[before].item())
        assert found.probabilities[place] == pytest.approx(share.item(), abs=1e-12)
        places = [source for source, _ in found.sources[place]]
        assert sorted(places) == [n for n in range(place) if ids[n] == id]
        shares = [value for _, value in found.sources[place]]
        assert sum(shares) == pytest.approx(found.probabilities[place])
        assert shares == sorted(shares, reverse=True)
    assert found.probabilities[0] == 0
    assert max(found.probabilities) > 0.5


def test_what_cannot_be_told(tokenizer: Tokenizer, model: LanguageModel) -> None:
    with pytest.raises(ValueError, match="no copy head: it was trained with copy_dim = 0"):
        copy_map(build_model(ModelConfig(tokenizer.vocab_size)), tokenizer, TEXT)
    with pytest.raises(ValueError, match="must not be empty"):
        copy_map(model, tokenizer, "")


def made_up() -> CopyMap:
    """Mia, of two tokens, is copied from the first Mia, once in part and once altogether; `sat` is not."""
    tokens = ["</s>", "M", "ia", "▁&", "▁M", "ia", "▁sat", ".", "▁M", "ia", "▁sat"]
    sources: list[list[tuple[int, float]]] = [[] for _ in tokens]
    sources[4], sources[8], sources[9], sources[10] = [(1, 0.6)], [(1, 0.5), (4, 0.4)], [(2, 0.9)], [(6, 0.2)]
    return CopyMap(tokens, [0.5] * 11, [sum(p for _, p in each) for each in sources], sources)


def test_the_picture_points_from_copies_to_what_they_copy(tmp_path: Path) -> None:
    """Two arrows from two words to one; text that is XML stays text."""
    file = draw_copies(made_up(), tmp_path / "copies.svg")
    page = ElementTree.fromstring(file.read_text(encoding="utf-8"))
    name = "{http://www.w3.org/2000/svg}"
    texts = [(text.text, float(text.get("x", ""))) for text in page.iter(f"{name}text")]
    assert [text for text, _ in texts] == ["Mia", "&", "Mia", "sat", ".", "Mia", "sat"]
    middles = [x + 8.4 * len(text or "") / 2 for text, x in texts]
    curves = [path.get("d", "") for path in page.iter(f"{name}path") if path.get("fill") == "none"]
    ends = [[float(number) for number in re.findall(r"-?[\d.]+", curve)] for curve in curves]
    assert [(end[0], end[-2]) for end in ends] == [
        (pytest.approx(middles[2], abs=0.06), pytest.approx(middles[0], abs=0.06)),
        (pytest.approx(middles[5], abs=0.06), pytest.approx(middles[0], abs=0.06)),
    ]
    assert [title.text for title in page.iter(f"{name}title")] == ["Mia: copied, 60%", "Mia: copied, 99%"]


def test_a_long_text_has_lines(tmp_path: Path) -> None:
    """Nothing leaves the picture, and a word that is copied from an earlier line points up."""
    tokens = ["</s>"] + [f"▁word{n}" for n in range(99)] + ["▁word3"]
    sources: list[list[tuple[int, float]]] = [[] for _ in tokens]
    sources[-1] = [(4, 0.9)]
    copies = CopyMap(tokens, [0.5] * 101, [sum(p for _, p in each) for each in sources], sources)
    page = ElementTree.fromstring(draw_copies(copies, tmp_path / "copies.svg").read_text(encoding="utf-8"))
    name, (_, _, width, height) = "{http://www.w3.org/2000/svg}", map(float, page.get("viewBox", "").split())
    for text in page.iter(f"{name}text"):
        assert float(text.get("x", "")) + float(text.get("textLength", "")) < width
        assert float(text.get("y", "")) < height
    (curve,) = [path.get("d", "") for path in page.iter(f"{name}path") if path.get("fill") == "none"]
    numbers = [float(number) for number in re.findall(r"-?[\d.]+", curve)]
    assert numbers[-1] < numbers[1] - 40


def test_the_table_names_tokens_and_places() -> None:
    (table,) = copy_table(made_up())
    columns = [list(column.cells) for column in table.columns]
    assert columns[1] == made_up().tokens[1:]
    assert columns[2][7] == "90%"
    assert columns[3][7] == "1 M 50%, 4 ▁M 40%"
    html = made_up()._repr_html_()
    assert "90% copied, 50% from token 1: M" in html
    assert "&amp;" in html
