"""What storyworld tells about a model: against slow oracles, a model that knows, and one that knows nothing."""

import io
import json
import math
from pathlib import Path

import pytest
import tokenizers as tokenizers_library
import torch
from rich.console import Console
from torch import Tensor, nn

from rhapsode import evaluation, storyworld
from rhapsode.model import LanguageModel, ModelConfig, build_model
from rhapsode.sources import open_source
from rhapsode.state import BlockState, Cache, CopyState, State
from rhapsode.storyworld import Accuracy, Story, judge, report
from rhapsode.tokenizer import Tokenizer, train_tokenizer
from rhapsode.tokens import prepare

STACKED = {"kind": "stacked", "num_layers": 3, "num_heads": 2, "attention": "last", "gate": True, "copy_dim": 3}


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Tokenizer]:
    texts = storyworld.sample_batch(0, 200)
    made = {kind: train_tokenizer(texts, kind, 400) for kind in ("bpe", "characters", "unigram")}
    # Without cutting at words, pieces run over the white space between them.
    crossing = tokenizers_library.Tokenizer(tokenizers_library.models.BPE())
    trainer = tokenizers_library.trainers.BpeTrainer(vocab_size=300, special_tokens=["</s>"], show_progress=False)
    crossing.train_from_iterator(texts[:50], trainer)
    made["foreign"] = Tokenizer(json.loads(crossing.to_str()))
    return made


def small_model(vocab_size: int, **options: object) -> LanguageModel:
    sizes = {"embed_dim": 12, "hidden_dim": 14, "key_dim": 5, "value_dim": 7}
    return build_model(ModelConfig(vocab_size=vocab_size, **sizes, **options), seed=3).double()  # type: ignore[arg-type]


def one_at_a_time(model: LanguageModel, tokenizer: Tokenizer, prefix: str, continuation: str) -> float:
    """The log-probability of a continuation, with the whole text read from its beginning."""
    before = tokenizer.encode(prefix)
    ids = torch.tensor([[tokenizer.eos_id, *before, *tokenizer.encode(continuation)]])
    log_probabilities = model(ids)[0].log_softmax(-1)
    return sum(log_probabilities[0, i - 1, ids[0, i]].item() for i in range(1 + len(before), ids.shape[1]))


@pytest.mark.parametrize("options", [{}, STACKED, {"kind": "stacked", "attention": "none"}])
@pytest.mark.parametrize("at_once", [2, 64])
def test_log_probabilities_are_those_of_one_at_a_time(
    tokenizers: dict[str, Tokenizer], options: dict, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a state of another row or place, padding that is read or scored, and answers given to others."""
    monkeypatch.setattr(judge, "STORIES_AT_ONCE", at_once)
    tokenizer = tokenizers["bpe"]
    model = small_model(tokenizer.vocab_size, **options).train()
    stories = [
        storyworld.sample(seed, split) for seed, split in ((1, "train"), (5, "valid"), (2, "held_out_skeletons"))
    ]
    asked = judge.branches(tokenizer, stories)
    heard: list[int] = []
    threads = torch.get_num_threads()
    answers = judge.continuation_log_probabilities(model, asked, tokenizer.eos_id, heard.append)
    assert (model.training, torch.get_num_threads()) == (True, threads)
    assert sum(heard) == 3
    for story, (_, branched), found in zip(stories, asked, answers, strict=True):
        assert [branch.question for branch in branched] == storyworld.clozes(story)
        for branch, scores in zip(branched[::3], found[::3], strict=True):
            question = branch.question
            expected = [
                one_at_a_time(model, tokenizer, question.prefix, each) for each in (question.right, *question.wrong)
            ]
            assert scores == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("kind", ["characters", "unigram", "foreign"])
def test_order_is_right_for_every_tokenizer(tokenizers: dict[str, Tokenizer], kind: str) -> None:
    """Would catch continuations encoded apart where a token runs over the cut: ids that no text has there."""
    tokenizer = tokenizers[kind]
    (ids, branched), (other_ids, _) = judge.branches(tokenizer, [storyworld.sample(4), storyworld.sample(6)])
    assert ids == tokenizer.encode(storyworld.sample(4).text)
    assert other_ids == tokenizer.encode(storyworld.sample(6).text)
    apart = 0
    for branch in branched:
        question = branch.question
        texts = (question.right, *question.wrong)
        for continuation, text in zip(branch.continuations, texts, strict=True):
            assert continuation
            assert ids[: branch.place] + continuation == tokenizer.encode(question.prefix + text)
        apart += branch.place == len(tokenizer.encode(question.prefix))
    assert (apart == len(branched)) == (kind != "foreign")
    model = small_model(tokenizer.vocab_size)
    scores = judge.continuation_log_probabilities(model, [(ids, branched)], tokenizer.eos_id)[0][-1]
    question = branched[-1].question
    expected = []
    for text in (question.right, *question.wrong):
        whole = [tokenizer.eos_id, *tokenizer.encode(question.prefix + text)]
        logits = model(torch.tensor([whole]))[0].log_softmax(-1)
        expected.append(sum(logits[0, i - 1, whole[i]].item() for i in range(1, len(whole))))
    differences = [score - scores[0] for score in scores]
    assert differences == pytest.approx([each - expected[0] for each in expected], abs=1e-9)


class Knowing(LanguageModel):
    """A model that knows some sequences by heart: all that they go on with is equally likely, the rest is not.

    The hidden state (B, 1) is the node of a tree of the sequences; the cache holds the tokens read, so that a test
    sees both put together.
    """

    def __init__(self, sequences: list[list[int]], vocab_size: int) -> None:
        super().__init__()
        self.tree: list[dict[int, int]] = [{}, {}]  # node 0 is the root, node 1 is nowhere
        for ids in sequences:
            node = 0
            for token in ids:
                if token not in self.tree[node]:
                    self.tree[node][token] = len(self.tree)
                    self.tree.append({})
                node = self.tree[node][token]
        self.vocab_size = vocab_size
        self.embeddings = nn.Embedding(1, 1)

    def logits(self, x: Tensor, copies: CopyState | None = None) -> Tensor:
        return x

    def features(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        B, T = tokens.shape
        seen = tokens if state is None else torch.cat((state.blocks[0].cache.keys[:, 0, :, 0].long(), tokens), 1)  # type: ignore[union-attr]
        x = torch.full((B, T, self.vocab_size), -50.0)
        last = torch.empty(B, 1)
        for row in range(B):
            node = 0 if state is None else int(state.blocks[0].hidden[row].item())
            for t, token in enumerate(tokens[row].tolist()):
                node = self.tree[node].get(token, 1)
                x[row, t, list(self.tree[node])] = 0.0
            last[row] = node
            again = 0
            for token in seen[row].tolist():
                again = self.tree[again].get(token, 1)
            assert again == node, "hidden state and cache are of different rows"
        cache = seen[:, None, :, None].float()
        return x, State((BlockState(last, Cache(cache, cache)),))


def test_a_model_that_knows_the_stories_is_always_right(tokenizers: dict[str, Tokenizer]) -> None:
    """Would catch a walk that loses a row, and right and wrong taken for each other."""
    tokenizer = tokenizers["bpe"]
    stories = [storyworld.sample(seed) for seed in range(6)]
    model = Knowing([[tokenizer.eos_id, *tokenizer.encode(s.text)] for s in stories], tokenizer.vocab_size)
    accuracy = judge.reference_scores(model, tokenizer, stories)
    assert accuracy.overall == (1.0, sum(len(story.labels) for story in stories))
    assert set(accuracy.by_kind) == {label.kind for story in stories for label in story.labels}
    others = [storyworld.sample(seed) for seed in range(100, 102)]
    assert judge.reference_scores(model, tokenizer, others).overall[0] < 0.5


def test_accuracy_is_the_one_of_storyworld(tokenizers: dict[str, Tokenizer]) -> None:
    """Would catch kinds and distances that are given to other questions, and ties counted as right."""
    tokenizer = tokenizers["bpe"]
    model = small_model(tokenizer.vocab_size)
    stories = [storyworld.sample(seed, "held_out_combinations") for seed in range(3)]

    def oracle(prefix: str, continuations: list[str]) -> list[float]:
        return [one_at_a_time(model, tokenizer, prefix, each) for each in continuations]

    with torch.inference_mode():
        expected = storyworld.reference_accuracy(stories, oracle)
    assert judge.reference_scores(model, tokenizer, stories) == expected
    one_token = train_tokenizer([story.text for story in stories], "characters", 90)
    blank = small_model(one_token.vocab_size)
    nn.init.zeros_(blank.lm_head.weight)
    nn.init.zeros_(blank.lm_head.bias)  # the shortest continuation is the likeliest; equally short ones tie
    shortest = [
        len(question.right) < min(map(len, question.wrong)) for s in stories for question in storyworld.clozes(s)
    ]
    assert judge.reference_scores(blank, one_token, stories).overall[0] == sum(shortest) / len(shortest)


def test_chance_and_an_untrained_model(tokenizers: dict[str, Tokenizer]) -> None:
    """Would catch labels that give the answer away, and a chance level that is not one over the continuations."""
    tokenizer = tokenizers["bpe"]
    stories = [storyworld.sample(seed) for seed in range(24)]
    guessed = storyworld.chance(stories)
    expected = [1 / (1 + len(label.wrong)) for story in stories for label in story.labels]
    assert guessed.overall == (pytest.approx(sum(expected) / len(expected)), len(expected))
    assert sum(share * number for share, number in guessed.by_kind.values()) == pytest.approx(sum(expected))
    model = build_model(ModelConfig(vocab_size=tokenizer.vocab_size, embed_dim=16, hidden_dim=16), seed=0)
    untrained = judge.reference_scores(model, tokenizer, stories)
    assert abs(untrained.overall[0] - guessed.overall[0]) < 0.12


def test_no_reference_is_an_error(tokenizers: dict[str, Tokenizer]) -> None:
    model = small_model(tokenizers["bpe"].vocab_size)
    with pytest.raises(ValueError, match="at least one story"):
        judge.reference_scores(model, tokenizers["bpe"], [])
    bare = Story("Once upon a time.", (), "", (), 0.0)
    assert judge.continuation_log_probabilities(model, judge.branches(tokenizers["bpe"], [bare]), 1) == [[]]


# The distance to the floor


@pytest.mark.parametrize("split", storyworld.SPLITS)
def test_the_true_distribution_has_no_excess(split: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch nats for bits, another split's floor, stories of other seeds, and a batch left out."""
    monkeypatch.setattr(judge, "SEEDS_AT_ONCE", 30)
    stories = [storyworld.sample(seed, split) for seed in range(1_000, 1_100)]
    nats = -sum(story.log_probability for story in stories)
    byte_count = sum(len(story.text.encode()) for story in stories)
    found = judge.excess(nats, byte_count, 100, split, 1_000)
    assert found.excess == pytest.approx(0, abs=1e-12)
    assert found.floor == storyworld.entropy(split).bits_per_byte
    assert found.sample_floor == pytest.approx(nats / math.log(2) / byte_count)
    assert found.floor == pytest.approx(found.sample_floor, rel=0.1)
    wasteful = judge.excess(nats + 100 * 7 * math.log(2), byte_count, 100, split, 1_000)
    assert wasteful.excess_bits_per_story == pytest.approx(7)
    with pytest.raises(ValueError, match=r"have [\d,]+ bytes, but the loss covers"):
        judge.excess(nats, byte_count, 100, split, 1_001)


def test_excess_of_a_model_on_a_store(tmp_path: Path, tokenizers: dict[str, Tokenizer]) -> None:
    """Would catch stories, ends or bytes counted by evaluate in another way than here."""
    tokenizer = tokenizers["bpe"]
    model = small_model(tokenizer.vocab_size)
    score = evaluation.score(model, prepare(open_source(["storyworld:9:valid"]), tokenizer, tmp_path))
    found = judge.excess(score.nats, score.num_bytes, score.num_stories)
    assert found.bits_per_byte == score.bits_per_byte
    assert found.excess > 1


def test_stories_of_its_own() -> None:
    """Would catch a report against other stories than those trained on."""
    known, new = storyworld.sample_batch(40, 2, "valid"), storyworld.sample_batch(0, 1)
    report = judge.check_stories([*known, *new, "Call me Ishmael."], 2, "valid", seed_start=40)
    assert (report.total, report.parsed, report.new, report.distinct) == (4, 3, 1, 3)
    assert judge.check_stories(known, 0).new == 2
    assert judge.check_stories(["x"], 10**15).parsed == 0  # nothing to look for, so nothing is made again


# For JSON and for people

RECALL = {
    "valid": Accuracy((0.8, 300), {"name": (0.9, 200), "sound": (0.6, 100)}, {"5-9": (0.9, 200), "200+": (0.6, 100)}),
    "held_out_skeletons": Accuracy((0.5, 10), {"name": (0.5, 10)}, {"5-9": (0.5, 6), "10-19": (0.5, 4)}),
}
CHANCE = {
    "valid": Accuracy((0.25, 300), {"name": (0.2, 200), "sound": (0.35, 100)}, {"5-9": (0.2, 200), "200+": (0.35, 100)})
}


def test_summary_and_tables() -> None:
    """Would catch numbers that JSON does not know, a number in another split's column, and parts that must be there."""
    stories = storyworld.sample_batch(0, 4, "valid")
    excess = judge.excess(900.0, sum(len(text.encode()) for text in stories), 4)
    generated = judge.check_stories([stories[0], stories[1][:200], "[bold]x"], 0)
    measured = judge.summary([excess], RECALL, CHANCE, generated)
    assert json.loads(json.dumps(measured, allow_nan=False)) == measured
    assert measured["excess"]["valid"]["excess_bits_per_byte"] == excess.excess
    assert measured["recall"]["valid"]["by_kind"]["sound"] == {"accuracy": 0.6, "references": 100, "chance": 0.35}
    assert measured["recall"]["held_out_skeletons"]["overall"] == {"accuracy": 0.5, "references": 10}
    assert measured["generated"]["parsed"] == 1

    console = Console(width=140, record=True, file=io.StringIO())
    for table in report.tables(measured):
        console.print(table)
    lines = [" ".join(line.replace("│", " ").split()) for line in console.export_text().splitlines()]
    assert "words since it was mentioned ┃ valid ┃ held_out_skeletons ┃ chance ┃ references" in " ".join(lines)
    assert "10-19 50.0% 4" in lines
    assert "5-9 90.0% 50.0% 206" in lines  # no chance level is known for all of them
    assert "sound 60.0% 35.0% 100" in lines
    assert "follow the grammar 1 (33%)" in lines
    order = [line.split()[0] for line in lines if line[:1].isdigit()]
    assert order == ["5-9", "10-19", "200+"]
    assert report.tables(judge.summary()) == []


def test_figure(tmp_path: Path) -> None:
    """Would catch a figure that lacks a line, a label or the chance level, and a file that changes from run to run."""
    for name in ("a.svg", "b.svg", "recall.png"):
        report.plot_recall(RECALL, tmp_path / name, CHANCE["valid"])
    assert (tmp_path / "recall.png").read_bytes().startswith(b"\x89PNG")
    drawn = (tmp_path / "a.svg").read_text()
    assert drawn == (tmp_path / "b.svg").read_text()
    comments = [line for line in drawn.splitlines() if "<!--" in line]
    for text in ("valid (300 references)", "chance", "10–19", "Recall of what the story said earlier", "60%"):
        assert any(text in line for line in comments), text
    with pytest.raises(ValueError, match="1 to 4 lines, got 0"):
        report.plot_recall({}, tmp_path / "none.png")
    assert len(list(tmp_path.iterdir())) == 3
