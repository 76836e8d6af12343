"""The model in JavaScript beside the one in PyTorch: the same numbers from the same packed bytes."""

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from modules import run_module

from rhapsode.decode.filters import keep_min_p, keep_top_k, keep_top_p, penalise_repetition
from rhapsode.export.network import packed_network, unpacked_network
from rhapsode.export.packed import unpack
from rhapsode.model import ModelConfig, build_model
from rhapsode.packaged.teller import Stepper

OPEN = """
import { Network, Reader, unpack } from "./runtime.js";
import { inflateSync } from "node:zlib";
const network = new Network(unpack(new Uint8Array(inflateSync(readFileSync(given.packed)))));
"""
SIZES: dict[str, Any] = {"embed_dim": 12, "hidden_dim": 10, "key_dim": 6, "value_dim": 7}
STACKED: dict[str, Any] = {"kind": "stacked", "num_layers": 2, "num_heads": 2, **SIZES}
MODELS: dict[str, dict[str, Any]] = {
    "plain": SIZES,
    "plain tanh": {**SIZES, "activation": "tanh"},
    "stacked": {**STACKED, "pair_embeddings": 97, "feed_forward": 2},
    "tied, gate, last": {**STACKED, "tie_embeddings": True, "gate": True, "attention": "last"},
    "no attention": {**STACKED, "attention": "none"},
    "gated with copies": {**STACKED, "cell": "gated", "gate": True, "copy_dim": 5, "pair_embeddings": 97},
}


def shaken(config: dict[str, Any], vocab_size: int = 50) -> Any:
    """A network whose weights are all different from 0, also those that begin with 0."""
    network = build_model(ModelConfig(vocab_size=vocab_size, **config), seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return network


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("float16", [False, True], ids=["int8", "float16"])
def test_logits_of_200_tokens(name: str, float16: bool, tmp_path: Path) -> None:
    """Would catch a transposed weight, a head's wrong columns, a pair's wrong row, a key one token off."""
    packed = packed_network(shaken(MODELS[name]), float16)
    (tmp_path / "packed").write_bytes(packed)
    ids = np.random.default_rng(3).integers(0, 50, 200).tolist()
    found = run_module(
        tmp_path,
        OPEN
        + "const reader = new Reader(network); reader.read(given.ids);"
        + "answer(given.ids.map((_, i) => reader.logits(i)));",
        {"packed": "packed", "ids": ids},
    )
    with torch.inference_mode():
        logits, _ = unpacked_network(packed).double()(torch.tensor([ids]))
    expected = logits[0].numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * max(1, float(np.abs(expected).max())))


def test_going_back_and_forking(tmp_path: Path) -> None:
    """Would catch a reader that keeps something of the tokens it went back over, and forks that share memory."""
    (tmp_path / "packed").write_bytes(packed_network(shaken(MODELS["gated with copies"])))
    found = run_module(
        tmp_path,
        OPEN
        + """
        const fresh = (ids) => { const reader = new Reader(network); reader.read(ids); return reader.logits(); };
        const reader = new Reader(network);
        reader.read([1, 2, 3, 4, 5, 6]);
        const fork = reader.fork();
        reader.read([1, 2, 3, 9]);
        fork.push(7);
        answer([reader.logits(), fresh([1, 2, 3, 9]), fork.logits(), fresh([1, 2, 3, 4, 5, 6, 7])]);
        """,
        {"packed": "packed"},
    )
    assert found[0] == found[1]
    assert found[2] == found[3]


def test_attention_copies_and_memory(tmp_path: Path) -> None:
    """Would catch lines that point to other tokens than the model looked at, and a hidden state of another step."""
    network = shaken(MODELS["gated with copies"])
    packed = packed_network(network)
    (tmp_path / "packed").write_bytes(packed)
    ids = list(range(3, 23))
    found = run_module(
        tmp_path,
        OPEN
        + "const reader = new Reader(network); reader.read(given.ids);"
        + "answer([reader.attention(11), reader.hidden(11), reader.copied(11)]);",
        {"packed": "packed", "ids": ids},
    )
    attention, hidden, copied = found
    network = unpacked_network(packed)
    with torch.inference_mode():
        x, state = network.features(torch.tensor([ids[:12]]))
        assert network.copy_head is not None
        assert state.copies is not None
        places = network.copy_head.places(x, state.copies)[0, -1]
        gate = network.copy_head.gate(x)[0, -1].sigmoid()
    np.testing.assert_allclose(hidden, [block.hidden[0].tolist() for block in state.blocks], atol=1e-5)
    np.testing.assert_allclose(copied["weights"], places, atol=1e-5)
    np.testing.assert_allclose(copied["gate"], float(gate), atol=1e-6)
    assert [(each["part"], each["head"]) for each in attention] == [(f"block {b}", h) for b in (1, 2) for h in (0, 1)]
    assert all(len(each["weights"]) == 12 and abs(sum(each["weights"]) - 1) < 1e-9 for each in attention)


def test_exponential_and_logarithm(tmp_path: Path) -> None:
    """Would catch a lost digit or power of two in the functions that make all browsers agree."""
    random.seed(5)
    xs = [
        -745.1,
        -708.4,
        -50.0,
        -1e-9,
        0.0,
        1e-9,
        0.34657,
        1.0,
        709.0,
        *(random.uniform(-700, 700) for _ in range(500)),
    ]
    ys = [5e-300, 1e-9, 0.5, math.sqrt(0.5), 1.0, math.sqrt(2), 3.0, 1e300, *(math.exp(x) for x in xs[9:])]
    found = run_module(
        tmp_path,
        'import { exp, log } from "./numbers.js"; answer([given.xs.map(exp), given.ys.map(log)]);',
        {"xs": xs, "ys": ys},
    )
    np.testing.assert_allclose(np.array(found[0], float), np.exp(xs), rtol=2e-15, atol=1e-320)
    np.testing.assert_allclose(found[1], np.log(ys), rtol=4e-16, atol=4e-16)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.7},
        {"temperature": 1.5, "top_k": 7},
        {"temperature": 0.9, "top_p": 0.6},
        {"temperature": 1.1, "min_p": 0.1},
        {"temperature": 0.8, "top_k": 12, "top_p": 0.8, "min_p": 0.05, "repetition_penalty": 1.3},
        {"temperature": 0, "repetition_penalty": 1.3},
    ],
)
def test_the_distribution_that_is_drawn_from(settings: dict[str, Any], tmp_path: Path) -> None:
    """Would catch filters in another order, and a temperature that is divided by twice."""
    logits = torch.randn(40, generator=torch.Generator().manual_seed(7), dtype=torch.float64) * 3
    seen = [int(logits.argmax()), 3, 3, 9]
    found = run_module(
        tmp_path,
        'import { distribution } from "./sampling.js"; answer(distribution(given.logits, given.settings, given.seen));',
        {"logits": logits.tolist(), "settings": settings, "seen": seen},
    )
    if "repetition_penalty" in settings:
        logits = penalise_repetition(logits, torch.tensor(sorted(set(seen))), settings["repetition_penalty"])
    if settings.get("temperature") == 0:
        expected = torch.nn.functional.one_hot(logits.argmax(), 40)
    else:
        logits = keep_top_k(logits / settings.get("temperature", 1), settings.get("top_k", 0))
        expected = keep_min_p(keep_top_p(logits, settings.get("top_p", 1)), settings.get("min_p", 0)).softmax(0)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_draws_follow_the_distribution(tmp_path: Path) -> None:
    """Would catch random numbers that are not uniform, seeds that are all the same, a drawn token of weight 0."""
    found = run_module(
        tmp_path,
        """
        import { draw, randomNumbers } from "./sampling.js";
        const counts = [0, 0, 0, 0], random = randomNumbers(given.seed), other = randomNumbers(given.seed + 1);
        for (let i = 0; i < 40000; i++) counts[draw([0.1, 0, 0.6, 0.3], random)]++;
        answer([counts, randomNumbers(given.seed)(), other()]);
        """,
        {"seed": 11},
    )
    counts, first, other = found
    assert counts[1] == 0
    np.testing.assert_allclose(np.array(counts) / 40000, [0.1, 0, 0.6, 0.3], atol=0.01)
    assert first != other


@pytest.mark.parametrize("name", MODELS)
def test_numpy_reads_the_same(name: str) -> None:
    """Would catch a story that `tell` tells with another model than the one that was packed."""
    packed = packed_network(shaken(MODELS[name]))
    ids = np.random.default_rng(3).integers(0, 50, 60).tolist()
    stepper = Stepper(*unpack(packed))
    found = [stepper.step(id) for id in ids]
    with torch.inference_mode():
        logits, _ = unpacked_network(packed).double()(torch.tensor([ids]))
    expected = logits[0].numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * max(1, float(np.abs(expected).max())))
