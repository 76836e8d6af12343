"""What a recurrence keeps track of, and what attention does: the parts of the study `tracking`, and how they are asked.

    parity, counter, boxes    a state that each step changes (tasks.py), trained on LENGTH steps, asked up to TESTED
    references                storyworld's, trained on windows, asked over any distance

An Elman network, a gated one and attention alone, of the same width, with as many parameters and as many steps. One
block: what a block cannot do shows.

What is expected. An entry of the gated recurrence meets no other, and keeps a share of itself between 0 and 1: after
the same steps, two pasts have only come nearer to each other, and never changed sides, as parity wants it. So such
entries, however many, count modulo nothing over any length (Grazzi et al. 2024), still less do they follow swaps, whose
order matters (Merrill et al. 2024). Attention averages over the past; one more step in a long one changes little (Hahn
2020). It has no positions here, which carries farther than most positions do (Kazemnejad et al. 2023). An Elman network
mixes its entries and bends the result: it can. What attention is for, the references show.
"""

from typing import Any

import torch

from rhapsode import storyworld
from rhapsode.model import LanguageModel
from rhapsode.recipe.changes import Sections
from rhapsode.storyworld import judge
from rhapsode.studies.tasks import TASKS, examples, labelled_store
from rhapsode.tokenizer import Tokenizer
from rhapsode.tokens import TokenStore

REFERENCES = "references"
TRACKED = (*TASKS, REFERENCES)
LENGTH, TESTED = 16, 256  # steps of a sequence: in training, and the most that are asked about
ENDS = (8, 16, 32, 64, 128, 256)  # of the stretches of steps over which answers are counted
TEST_SEQUENCES, VALID_SEQUENCES = 200, 256
REFERENCE_STORIES = 100  # stories of storyworld's split valid, about 21 references each
COMPARED = ("Elman", "gated", "attention alone")
# Inner sizes with which the matrices of the three have equally many entries: 2 E H + H^2, 4 E H, 4 E (heads K).
INNER_SIZES = {64: (96, 84, 21), 128: (192, 168, 42)}  # by width E: H, H, and K = V of four heads


def recipe_of(part: str) -> Sections:
    """What the models of a part have in common."""
    width = 128 if part == REFERENCES else 64
    model = {"kind": "stacked", "embed_dim": width, "num_layers": 1, "feed_forward": 2}
    if part == REFERENCES:
        return {
            "model": {**model, "pair_embeddings": 16384},
            "optimizer": {"learning_rate": 0.02, "weight_decay": 0.1},
            "train": {"sequences": 28_800, "validations": 10, "prompt": ""},
            "batch": {"form": "stream", "window": 128, "batch_size": 32},
        }
    return {
        "model": {**model, "activation": "tanh"},
        "optimizer": {"learning_rate": 0.01},
        "train": {"sequences": 96_000, "validations": 10, "prompt": ""},
        "batch": {"form": "first", "window": LENGTH, "batch_size": 64},
    }


def models_of(part: str) -> dict[str, dict[str, Any]]:
    """The three that are compared, by their names: the fields in which they differ."""
    elman, gated, head = INNER_SIZES[recipe_of(part)["model"]["embed_dim"]]
    fields: tuple[dict[str, Any], ...] = (
        {"cell": "elman", "attention": "none", "hidden_dim": elman},
        {"cell": "gated", "attention": "none", "hidden_dim": gated, "gate": True},
        {"cell": "none", "attention": "all", "num_heads": 4, "key_dim": head, "value_dim": head},
    )
    return dict(zip(COMPARED, fields, strict=True))


def task_stores(task: str, sections: Sections) -> tuple[TokenStore, TokenStore]:
    """What a cell trains on and is judged by while it trains: new sequences throughout, of its window's length."""
    length, count, seed = sections["batch"]["window"], sections["train"]["sequences"], sections["train"]["seed"]
    fewest = sections["batch"]["batch_size"]  # the last batch is a whole one
    train = labelled_store(task, "train", -(-count // fewest) * fewest, length, seed)
    return train, labelled_store(task, "valid", VALID_SEQUENCES, length, seed)


@torch.inference_mode()
def answers_right(model: LanguageModel, task: str, seed: int) -> dict[str, Any]:
    """How many of a task's answers are right, by the steps so far.

    stretches: the first and the last step of each, the share of right answers, and a guesser's.
    """
    steps, answers = examples(task, "test", TEST_SEQUENCES, TESTED, seed)
    device = next(model.parameters()).device
    logits, _ = model(torch.from_numpy(steps).to(device))
    right = (logits.argmax(-1).cpu().numpy() == answers).mean(axis=0)
    stretches = [
        {"first": begin + 1, "last": end, "right": float(right[begin:end].mean()), "chance": 1 / TASKS[task].outcomes}
        for begin, end in zip((0, *ENDS), ENDS, strict=False)
    ]
    return {"stretches": stretches}


def references_right(model: LanguageModel, tokenizer: Tokenizer, count: int, window: int) -> dict[str, Any]:
    """The same of storyworld's references, by the words since what they refer to.

    count: of how many stories; window: how many tokens training has at once; trained: how many words that is, about.
    """
    stories = [storyworld.sample(seed, "valid") for seed in range(count)]
    found = judge.reference_scores(model, tokenizer, stories).by_distance
    chance = storyworld.chance(stories).by_distance
    words = sum(len(story.text.split()) for story in stories)
    tokens = sum(map(len, tokenizer.encode_batch([story.text for story in stories])))
    stretches = []
    for name, (right, _) in found.items():
        first, last = map(int, name.split("-"))
        stretches.append({"first": first, "last": last, "right": right, "chance": chance[name][0]})
    return {"stretches": stretches, "trained": round(window * words / tokens)}
