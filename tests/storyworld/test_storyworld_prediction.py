"""The exact next token: against all stories of a small grammar, against the probability of stories, and samples."""

import ast
import json
import math
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from small_world import SIMPLE, SKELETONS, probabilities, small_grammar

from rhapsode import storyworld
from rhapsode.storyworld.corpus import load_grammar
from rhapsode.storyworld.distribution import Distribution
from rhapsode.storyworld.prediction import TokenDistribution, TokenPredictor
from rhapsode.tokenizer import Tokenizer, train_tokenizer

# Facts told before those that they depend on, a plot that lacks these, an opening of several plots, a form that
# does not tell the fact yet, an ending with letters of two bytes.
SCENES = (
    SIMPLE.replace("The end.", "À bientôt, thé!\n2* À là.")
    .replace("[both|all two] of them [glad|so very sad|sad]", "[both|all two] sad")
    .replace("[saw|ate]", "saw")
    + """
scene ^find
Here is {a z}.
Here is {a z}, [red|redder] as a rose.

scene ^meet
There was {a y}.
"""
)
PLOTS = f"""{SKELETONS}
lone 2: find stop
found 3: find middle end
late 1: meet middle stop
"""
# The same words in two wordings: a text of several derivations.
TWICE = SCENES.replace("[red|blue].", "[red|blue|red].")

KINDS = ("bpe", "bytes", "unigram", "characters", "poor")


def tokenizer_of(kind: str, texts: list[str]) -> Tokenizer:
    """bytes: a byte-pair encoding without pairs. poor: characters, of which it lacks four, so that texts collide."""
    if kind == "poor":
        lacking = str.maketrans("", "", "dbtp")
        return train_tokenizer([text.translate(lacking) for text in texts], "characters", 200)
    size = {"bpe": 330, "bytes": 258, "unigram": 120, "characters": 200}[kind]
    return train_tokenizer(texts, "bpe" if kind == "bytes" else kind, size)


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def world() -> dict[str, float]:
    return probabilities(small_grammar(SCENES, PLOTS))


@pytest.fixture(scope="module")
def small(kind: str, world: dict[str, float]) -> TokenPredictor:
    distribution = Distribution(small_grammar(SCENES, PLOTS), "train")
    return TokenPredictor(distribution, tokenizer_of(kind, sorted(world)))


def shares(masses: dict[int, float]) -> dict[int, float]:
    total = math.fsum(masses.values())
    return {id: mass / total for id, mass in masses.items()}


def assert_same(found: TokenDistribution, expected: dict[int, float], where: object) -> None:
    assert set(found.ids.tolist()) == set(expected), where
    assert found.probabilities.tolist() == pytest.approx([expected[id] for id in found.ids.tolist()], rel=1e-12), where
    assert abs(found.probabilities.sum() - 1) < 1e-12, where
    assert (np.diff(found.probabilities) <= 0).all(), where


def assert_as_listed(predictor: TokenPredictor, texts: dict[str, float]) -> None:
    """Compares the rows of all stories' tables, each beginning once, with the sums over all stories."""
    end = predictor.tokenizer.eos_id
    spelled = {text: (*predictor.tokenizer.encode(text), end) for text in texts}
    masses: dict[tuple[int, ...], dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for text, ids in spelled.items():
        for place, id in enumerate(ids):
            masses[ids[:place]][id] += texts[text]
    seen: set[tuple[int, ...]] = set()
    for ids in spelled.values():
        table = predictor.along(ids)
        assert table.departure is None
        assert len(table.rows) == len(ids)
        for place, row in enumerate(table.rows):
            if ids[:place] not in seen:
                seen.add(ids[:place])
                assert_same(row, shares(masses[ids[:place]]), ids[:place])
    assert seen == set(masses)


def test_every_beginning_in_ids_is_as_listed(small: TokenPredictor, world: dict[str, float]) -> None:
    """Would catch plots weighed by their prior, parents not summed out, a token shared by two words counted for one,
    an end token left out, and any mass lost on the way."""
    assert len(world) > 400
    assert_as_listed(small, world)


def test_a_text_of_several_derivations_has_their_sum() -> None:
    """Would catch a filter that follows one derivation only."""
    grammar = small_grammar(TWICE, PLOTS)
    texts = probabilities(grammar)
    assert_as_listed(TokenPredictor(Distribution(grammar, "train"), tokenizer_of("bpe", sorted(texts))), texts)


def test_every_beginning_in_text_is_as_listed(small: TokenPredictor, world: dict[str, float], kind: str) -> None:
    """Beginnings cut at every character: within tokens, within words, in white space, at the end.

    Would catch stories counted whose token runs over the cut, and a cut that no token has at its edge being refused.
    """
    tokenizer = small.tokenizer
    at_edge: dict[str, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    inside: dict[str, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    spellings = set()
    for text, mass in world.items():
        ids, spans = tokenizer.encode(text), tokenizer.spans(text)
        assert len(ids) == len(spans)
        for place in range(1, len(ids) + 1) if kind != "poor" else ():
            said = tokenizer.decode(ids[:place])
            assert said == text[: spans[place - 1][1]] or said.endswith("\ufffd")  # half a letter
        spellings |= {tuple(ids[:place]) for place in range(len(ids) + 1)}
        tokens = iter([*zip(ids, spans, strict=True), (tokenizer.eos_id, (len(text), len(text) + 1))])
        id, (start, end) = next(tokens)
        for cut in range(len(text) + 1):
            while end <= cut:
                id, (start, end) = next(tokens)
            (at_edge if start >= cut else inside)[text[:cut]][id] += mass
    assert at_edge.keys() & inside.keys() or kind in ("characters", "poor", "bytes")
    for prefix in sorted(at_edge.keys() | inside.keys())[:: 11 if kind == "bpe" else 31]:
        found = small.next_tokens(prefix)
        assert_same(found, shares(at_edge.get(prefix) or inside[prefix]), prefix)
        edge = math.fsum(at_edge[prefix].values()) if prefix in at_edge else 0.0
        over = math.fsum(inside[prefix].values()) if prefix in inside else 0.0
        assert found.boundary == pytest.approx(edge / (edge + over), rel=1e-12), prefix
        ids = tokenizer.encode(prefix)
        if kind != "poor" and tuple(ids) in spellings:
            assert_same(small.next_tokens(ids), shares(at_edge[prefix]), prefix)


def test_a_fact_given_any_others_is_the_joint_over_its_sum() -> None:
    """Would catch a parent told after its child, or two facts joined through a third, taken as independent."""
    for split in ("train", "held_out_combinations"):
        distribution = Distribution(load_grammar(), split)
        rng = np.random.default_rng(0)
        related = {"k1", "k2", "trouble", "t1", "b1", "n1", "n2", "c1", "c2"}
        for skeleton in distribution.skeletons[::4]:
            names = [variable.name for variable in skeleton.variables if variable.name in related]
            for name in names:
                others = [other for other in names if other != name and rng.random() < 0.5][:2]
                joint = distribution.joint(skeleton, (*others, name))
                index = np.unravel_index(rng.choice(joint.size, p=joint.ravel() / joint.sum()), joint.shape)[:-1]
                known = {other: int(value) for other, value in zip(others, index, strict=True)}
                np.testing.assert_allclose(
                    distribution.conditional(skeleton, name, known), joint[index] / joint[index].sum(), rtol=1e-12
                )


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Tokenizer]:
    texts = storyworld.sample_batch(0, 300)
    return {kind: train_tokenizer(texts, kind, 800) for kind in ("bpe", "unigram", "characters")}


@pytest.mark.parametrize("split", storyworld.SPLITS)
@pytest.mark.parametrize("name", ["bpe", "unigram", "characters"])
def test_tokens_of_a_story_multiply_to_its_probability(tokenizers: dict[str, Tokenizer], name: str, split: str) -> None:
    """The strongest test on the real grammar: every factor of every token, facts and plots hidden behind it."""
    tokenizer = tokenizers[name]
    for seed in range(700, 710):
        story = storyworld.sample(seed, split)
        ids = [*tokenizer.encode(story.text), tokenizer.eos_id]
        table = storyworld.next_tokens_along(ids, tokenizer, split)
        assert table.departure is None
        assert table.ids == tuple(ids)
        bits = -table.log_probabilities.sum() / math.log(2)
        assert abs(bits + story.log_probability / math.log(2)) < 1e-9
        assert max(abs(row.probabilities.sum() - 1) for row in table.rows) < 1e-12
        assert table.rows[-1].ids.tolist() == [tokenizer.eos_id]
        open_ended = storyworld.next_tokens_along(story.text, tokenizer, split)
        assert open_ended.departure is None
        assert len(open_ended.rows) == len(open_ended.ids) + 1
        place = seed % len(ids)
        alone = storyworld.next_tokens(ids[:place], tokenizer, split)
        assert alone.ids.tolist() == table.rows[place].ids.tolist()
        assert alone.probabilities.tolist() == table.rows[place].probabilities.tolist()


def test_samples_of_the_real_grammar_have_the_frequencies(tokenizers: dict[str, Tokenizer]) -> None:
    """Chi-square over all beginnings that 200 of 40,000 samples share; catches what a product cannot: tokens that
    the samples have and the grammar's distribution lacks, or mass on tokens that never come."""
    tokenizer = tokenizers["bpe"]
    table = storyworld.fragment_tokens(tokenizer.encode, tokenizer.eos_id)
    ids, offsets = table.tokens(*storyworld.sample_fragments(5_000_000, 40_000, "valid"))
    groups: list[tuple[tuple[int, ...], np.ndarray]] = [((), offsets[:-1])]  # beginnings, where each sample goes on
    statistic, freedom, compared = 0.0, 0, 0
    while groups:
        prefix, places = groups.pop()
        truth = storyworld.next_tokens(prefix, tokenizer, "valid")
        counts = np.bincount(ids[places], minlength=tokenizer.vocab_size)
        assert set(np.flatnonzero(counts).tolist()) <= set(truth.ids.tolist())
        expected = truth.probabilities * len(places)
        often = expected >= 5
        observed = counts[truth.ids]
        cells = [*zip(observed[often], expected[often], strict=True)]
        if not often.all():
            cells.append((observed[~often].sum(), expected[~often].sum()))
        statistic += sum((seen - hoped) ** 2 / hoped for seen, hoped in cells)
        freedom += len(cells) - 1
        compared += 1
        often_seen = np.flatnonzero(counts >= 200).tolist()
        groups += [((*prefix, id), places[ids[places] == id] + 1) for id in often_seen]
    assert compared > 400
    assert freedom > 600
    assert abs(statistic - freedom) < 4 * math.sqrt(2 * freedom)


def test_what_a_row_of_probabilities_tells(tokenizers: dict[str, Tokenizer]) -> None:
    """Entropy, one token's probability and the dense form against each other, at a place with a real choice."""
    row = storyworld.next_tokens("", tokenizers["bpe"])
    assert len(row.ids) > 5
    dense = row.dense(tokenizers["bpe"].vocab_size)
    assert dense.shape == (tokenizers["bpe"].vocab_size,)
    assert dense[row.ids].tolist() == row.probabilities.tolist()
    assert dense.sum() == pytest.approx(1, abs=1e-12)
    assert row.entropy == pytest.approx(-sum(p * math.log(p) for p in dense if p > 0), rel=1e-12)
    assert row.probability(int(row.ids[2])) == row.probabilities[2]
    assert row.probability(tokenizers["bpe"].eos_id) == 0
    assert row.boundary == 1


def test_a_prefix_that_begins_no_story_is_named(tokenizers: dict[str, Tokenizer]) -> None:
    """Each with the character where it departs; in a table the rows up to there stay."""
    tokenizer = tokenizers["bpe"]
    text = storyworld.sample(5).text
    cut = text.index(" every")
    cases = [
        (" Once", "character 0: found ' Once', expected 'Once' or"),
        ("Call me", r"no train story continues like this from character 2: found 'Call', expected '\w+'"),
        (text[: cut + 3] + "zzz", rf"character {cut + 3}: found 'evzzz', expected 'every'"),
        (text + " The end.", rf"character {len(text)}: found ' The', expected the end"),
        (text.replace("\n\n", " ", 1), rf"character {text.index(chr(10))}: found ' \S+', expected '\\n\\n"),
        ([*tokenizer.encode(text), tokenizer.eos_id], "has ended with token .*: nothing follows it"),
        ([*tokenizer.encode(text), tokenizer.eos_id, 7], "ends the story, but 1 more follow it"),
        ([*tokenizer.encode(text)[:20], 9_999], "from token 21 of 21, at character .*: found id 9999, which is not in"),
        ([tokenizer.eos_id], "from token 1 of 1, at character 0: found '</s>', expected 'Once'"),
    ]
    for prefix, message in cases:
        with pytest.raises(ValueError, match=message):
            storyworld.next_tokens(prefix, tokenizer)
    ids = tokenizer.encode(text)
    broken = [*ids[:30], *tokenizer.encode("!?")]
    table = storyworld.next_tokens_along(broken, tokenizer)
    assert table.departure is not None
    position = len(tokenizer.decode(ids[:30]))
    assert f"from token 31 of {len(broken)}, at character {position}: " in table.departure
    assert len(table.rows) == 31
    assert table.log_probabilities.tolist()[-1] == -math.inf
    assert table.rows[30].probability(ids[30]) > 0
    held_out = storyworld.sample(0, "held_out_skeletons").text
    assert storyworld.next_tokens(held_out, tokenizer, "held_out_skeletons").ids.tolist() == [tokenizer.eos_id]
    with pytest.raises(ValueError, match="no train story continues like this"):
        storyworld.next_tokens(held_out, tokenizer)
    with pytest.raises(ValueError, match="split must be one of"):
        storyworld.next_tokens("", tokenizer, "test")


def test_tokenizers_whose_truth_is_not_known_are_refused(tokenizers: dict[str, Tokenizer]) -> None:
    """Tokens that span two words, and characters that a tokenizer leaves out: an answer would be wrong."""
    definition = json.loads(tokenizers["unigram"]._tokenizer.to_str())
    definition["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    for ask in (storyworld.next_tokens, storyworld.next_tokens_along):
        with pytest.raises(ValueError, match="may join two words in one token"):
            ask("", Tokenizer(definition))
    definition = json.loads(tokenizers["characters"]._tokenizer.to_str())
    del definition["model"]["vocab"]["."]
    definition["model"]["unk_token"] = None
    deaf = Tokenizer(definition)
    text = storyworld.sample(5).text
    with pytest.raises(ValueError, match=r"leaves out the end of ' .+\.', which occurs in stories"):
        storyworld.next_tokens(text[: text.index(".")], deaf)


def imports_inside(folder: Path) -> dict[str, set[str]]:
    """module -> modules of the folder that it imports anywhere, in functions too."""
    found: dict[str, set[str]] = {}
    for file in folder.glob("*.py"):
        nodes = [node for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, ast.ImportFrom)]
        names = {f"{node.module}.{alias.name}" for node in nodes for alias in node.names}
        parts = [name.split(".") for name in names if name.startswith("rhapsode.storyworld.")]
        found[file.stem] = {part[2] for part in parts if (folder / f"{part[2]}.py").exists()}
    return found


def test_no_module_of_storyworld_knows_those_that_know_it() -> None:
    """Would catch the ring of facts and grammar coming back, hidden in a function or not."""
    imports = imports_inside(Path(storyworld.__file__).parent)
    assert {"facts", "grammar", "corpus", "prediction"} <= imports.keys()
    while imports:
        free = [module for module, known in imports.items() if not known & imports.keys()]
        assert free, f"a ring among {sorted(imports)}"
        for module in free:
            del imports[module]


def test_the_truth_needs_no_torch() -> None:
    """A server's page may ask for it without the second that PyTorch takes to load."""
    code = (
        "import sys\n"
        "from rhapsode import storyworld\n"
        "from rhapsode.tokenizer import train_tokenizer\n"
        "storyworld.next_tokens('Once', train_tokenizer(storyworld.sample_batch(0, 5), 'characters', 99))\n"
        "print('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
