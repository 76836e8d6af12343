"""The model that makes the numbers, held against its equations in NumPy."""

import itertools
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from differences import BOUND, array, largest_difference
from stacked_against_textbook import SIZES, B, T, both, compare, tokens_of

from rhapsode.model import ModelConfig, build_model
from rhapsode.recipe import OptimizerConfig, TrainConfig
from rhapsode.run import Run, below
from rhapsode.textbook import tape
from rhapsode.textbook.optimizer import Optimizer, Rates
from rhapsode.textbook.stacked import StackedModel
from rhapsode.tokens import BatchConfig, Batcher
from rhapsode.training import train_run

SHAPES = {
    "whole": {},
    "in three pieces": {"cuts": (4, 5)},
    "token by token": {"cuts": tuple(range(1, T))},
    "one token": {"length": 1},
    "one row": {"rows": 1},
    "one token of one row": {"rows": 1, "length": 1},
    "from a state": {"from_state": True},
    "one token from a state": {"from_state": True, "rows": 1, "length": 1},
    "in two pieces from a state": {"from_state": True, "cuts": (2,)},
}
# gate, feed_forward, activation, cell and copy_dim take turns: their settings meet each shape and each attention.
EXTRAS = itertools.cycle(
    [{"gate": gate, "feed_forward": wide, "activation": psi, "cell": cell, "copy_dim": d}
     for gate, wide, psi, cell, d in (
        (True, 2, "relu", "elman", 0), (True, 0, "relu", "gated", 3), (False, 3, "tanh", "elman", 2),
        (True, 0, "tanh", "elman", 8), (False, 1, "relu", "gated", 0), (False, 0, "relu", "elman", 0),
        (True, 1, "relu", "gated", 3),
    )]
)  # fmt: skip
SETTINGS = [
    {"attention": attention, "pair_embeddings": pairs, "tie_embeddings": tied, **next(EXTRAS)}
    for attention, pairs, tied in itertools.product(("none", "last", "all"), (0, 13), (False, True))
]


def name_of(fields: dict[str, Any]) -> str:
    return " ".join(str(value) for value in fields.values())


@pytest.mark.parametrize("fields", SETTINGS, ids=name_of)
@pytest.mark.parametrize("shape", SHAPES)
def test_model_and_textbook_agree(shape: str, fields: dict[str, Any]) -> None:
    """Values and gradients. Would catch whatever is left out of, or added to, any term of the equations."""
    values, gradients = compare(**SHAPES[shape], **fields)
    # The key of the very first token is 0.
    assert min(np.abs(own).max() for _, own in values if own.any()) > 0.1
    assert largest_difference(values) < BOUND
    assert largest_difference(gradients) < BOUND


@pytest.mark.parametrize("copying", [False, True])
def test_the_textbooks_gradients_against_finite_differences(copying: bool, rng, numerical_gradient) -> None:
    """Of every parameter, through a cut and a tied head: the textbook by itself, without the model that it judges."""
    E, H, keys, values, wide, rows = 3, 4, 2, 6, 5, 7
    cell = {"candidate": (H, E), "keep": (H, E)} if copying else {"i2h": (H, E), "h2h": (H, H)}
    linear = {f"rnn.cell.{name}": shape for name, shape in cell.items()}
    linear |= {"rnn.gate": (H, E), "rnn.out": (E, H)}
    linear |= {"attention.query_transform": (keys, E), "attention.key_transform": (keys, E)}
    linear |= {"attention.value_transform": (values, E), "attention.output_transform": (E, values)}
    linear |= {"feed_forward.1": (wide, E), "feed_forward.3": (E, wide)}
    shapes: dict[str, tuple[int, ...]] = {"embeddings.weight": (6, E), "pair_embeddings.weight": (rows, E)}
    shapes |= {f"blocks.0.{name}.weight": shape for name, shape in linear.items()}
    shapes |= {f"blocks.0.{name}.bias": shape[:1] for name, shape in linear.items()}
    shapes |= {f"blocks.0.{name}.weight": (E,) for name in ("rnn_norm", "attention_norm", "feed_forward.0")}
    if copying:
        parts = {"query_transform": (2, E), "key_transform": (2, E), "gate": (1, E)}
        shapes |= {f"copy_head.{name}.weight": shape for name, shape in parts.items()}
        shapes |= {f"copy_head.{name}.bias": shape[:1] for name, shape in parts.items()}
    model = StackedModel(
        {name: rng.standard_normal(shape) for name, shape in {**shapes, "norm.weight": (E,)}.items()}, 2
    )
    tokens, targets = np.array([[5, 0, 2], [3, 3, 1]]), np.array([[0, 2, 4], [3, 1, 1]])

    def loss(on_tape: tape.Tape) -> tape.Module:
        _, state = model.forward(on_tape, tokens[:, :2])
        return model.loss(on_tape, tokens[:, 2:], targets[:, 2:], state)[0]

    on_tape = tape.Tape()
    loss(on_tape)
    on_tape.backward()
    for name, p in model.parameters.items():
        expected = numerical_gradient(lambda: float(loss(tape.Tape()).output), p.output)
        np.testing.assert_allclose(p.output_gradient, expected, atol=1e-8, err_msg=name)


def test_the_textbook_refuses_another_activation() -> None:
    with pytest.raises(ValueError, match="activation must be one of relu, tanh, got 'gelu'"):
        StackedModel({}, activation="gelu")


@pytest.mark.parametrize("fields", SETTINGS, ids=name_of)
def test_the_model_has_the_parameters_that_its_config_says(fields: dict[str, Any]) -> None:
    """The textbook reads from the names what the model has, so they must be right. Would catch a head that is not tied
    and a block that attends though it must not.
    """
    config = ModelConfig(kind="stacked", **{**SIZES, **fields})
    E, H, wide = config.embed_dim, config.hidden_dim, config.feed_forward * config.embed_dim
    keys, values = config.num_heads * config.key_dim, config.num_heads * config.value_dim
    linear = {}
    shapes = {"embeddings.weight": (config.vocab_size, E), "norm.weight": (E,)}
    if config.pair_embeddings:
        shapes["pair_embeddings.weight"] = (config.pair_embeddings, E)
    if not config.tie_embeddings:
        linear["lm_head"] = (config.vocab_size, E)
    if config.copy_dim:
        linear |= {f"copy_head.{name}_transform": (config.copy_dim, E) for name in ("query", "key")}
        linear["copy_head.gate"] = (1, E)
    for i in range(config.num_layers):
        at = f"blocks.{i}."
        cell = {"i2h": (H, E), "h2h": (H, H)} if config.cell == "elman" else {"candidate": (H, E), "keep": (H, E)}
        linear |= {at + f"rnn.cell.{name}": shape for name, shape in cell.items()}
        linear[at + "rnn.out"] = (E, H)
        shapes[at + "rnn_norm.weight"] = (E,)
        if config.gate:
            linear[at + "rnn.gate"] = (H, E)
        if config.attention == "all" or (config.attention == "last" and i == config.num_layers - 1):
            shapes[at + "attention_norm.weight"] = (E,)
            linear |= {at + f"attention.{name}_transform": (keys, E) for name in ("query", "key")}
            linear[at + "attention.value_transform"] = (values, E)
            linear[at + "attention.output_transform"] = (E, values)
        if wide:
            shapes[at + "feed_forward.0.weight"] = (E,)
            linear |= {at + "feed_forward.1": (wide, E), at + "feed_forward.3": (E, wide)}
    for name, (outputs, inputs) in linear.items():
        shapes |= {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}
    assert {name: tuple(p.shape) for name, p in build_model(config, seed=0).named_parameters()} == shapes


@pytest.mark.parametrize("cut", [0, 4])
def test_decoding_and_scoring_agree_with_the_textbook(cut: int) -> None:
    """Would catch a term that only the paths without gradients lack, and dropout that outlives training."""
    fast, own, config = both(gate=True, feed_forward=2, pair_embeddings=13, dropout=0.3, copy_dim=3)
    tokens = tokens_of(config)
    expected, own_state = own.forward(tape.Tape(), tokens)
    with torch.inference_mode():
        fast.eval()
        _, state = fast(torch.tensor(tokens[:, :cut])) if cut else (None, None)
        rest, state = fast(torch.tensor(tokens[:, cut:]), state)
    np.testing.assert_allclose(rest.numpy(), expected.output[:, cut:], rtol=0, atol=BOUND)
    np.testing.assert_allclose(state.blocks[1].hidden.numpy(), own_state.blocks[1].h.output[:, 0], atol=BOUND)
    fast.train()
    assert np.abs(fast(torch.tensor(tokens))[0].detach().numpy() - expected.output).max() > 0.1, (
        "no dropout to turn off"
    )


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("fields", [{"feed_forward": 2}, {"cell": "gated", "copy_dim": 3}], ids=["elman", "gated"])
def test_loss_and_its_gradient_agree_with_the_textbook(fields: dict[str, Any], tied: bool) -> None:
    """Would catch a fused loss that reads another head, or other features, than the logits do."""
    fast, own, config = both(gate=True, pair_embeddings=13, tie_embeddings=tied, **fields)
    tokens = tokens_of(config, length=T + 1)
    nats, _ = fast.loss(torch.tensor(tokens[:, :-1]), torch.tensor(tokens[:, 1:]))
    nats.backward()
    own_nats, own_gradients, _ = own.gradients(tokens[:, :-1], tokens[:, 1:])
    assert nats.item() == pytest.approx(own_nats, abs=BOUND)
    assert largest_difference([(array(p.grad), own_gradients[name]) for name, p in fast.named_parameters()]) < BOUND


@pytest.mark.parametrize(
    ("length", "fields"),
    [
        (0.8, {"gate": True, "feed_forward": 2, "pair_embeddings": 13, "attention": "last"}),
        (1.3, {"gate": True, "pair_embeddings": 13, "attention": "none", "tie_embeddings": True, "activation": "tanh"}),
        (0.6, {"gate": True, "attention": "last", "cell": "gated", "copy_dim": 3}),
    ],
    ids=["last", "none, tied", "gated, copying"],
)
@pytest.mark.parametrize("carry", [False, True], ids=["anew", "carried"])
def test_a_whole_training_run_is_the_textbooks(
    length: float, fields: dict[str, Any], carry: bool, small: Any, tmp_path: Path
) -> None:
    """Eight steps of `rhapsode train`, in float64: losses, norms of the gradient, and how far each weight has moved.

    Would catch a clip, a decay or a rate that is lost or reaches the wrong weights, and momentum of another form. Left
    out are the biases of the keys: their gradient is 0 but for rounding, and Adam divides the rounding by itself.
    """
    steps, rates = 8, Rates(adamw=0.01, muon=0.02, decay=0.4, length=length)
    sizes = {**SIZES, "vocab_size": small.tokenizer.vocab_size, "kind": "stacked", **fields}
    settings = OptimizerConfig(
        learning_rate=0.01, matrix_learning_rate=0.02, weight_decay=0.4, warmup_steps=3, clip_norm=length
    )
    batch = BatchConfig(window=T, batch_size=B, carry_state=carry)
    training = TrainConfig(sequences=steps * B, validations=1, seed=5, prompt="")
    configs = {"model": ModelConfig(**sizes), "optimizer": settings, "train": training, "batch": batch}
    run = Run.create(tmp_path / "run", {name: asdict(config) for name, config in configs.items()}, None)
    torch.set_default_dtype(torch.float64)
    try:
        before = {name: array(p).copy() for name, p in build_model(configs["model"], training.seed).named_parameters()}
        train_run(run, small.train, small.valid, show=False)
    finally:
        torch.set_default_dtype(torch.float32)

    batcher, weights, state = Batcher(small.train, batch, training.seed), before, None
    losses, norms = [], []
    optimizer = Optimizer(weights, rates)
    for step in range(steps):
        inputs, targets, restart, _ = batcher.next()
        model = StackedModel(weights, configs["model"].num_heads, configs["model"].activation)
        loss, gradients, state = model.gradients(inputs.numpy(), targets.numpy(), None if restart else state)
        state = state.detached(T)
        share = (step + 1) / 3 if step < 3 else 1 - (step - 3) / (steps - 3)
        weights, norm = optimizer.step(weights, gradients, share)
        losses.append(loss)
        norms.append(norm)
    assert min(norms) < rates.length < max(norms), "some of the gradients must be cut, and some not"

    reports = [entry for entry in run.metrics() if entry["event"] == "train"]
    np.testing.assert_allclose([entry["train_loss"] for entry in reports], losses, rtol=0, atol=BOUND)
    np.testing.assert_allclose([entry["gradient_norm"] for entry in reports], norms, rtol=0, atol=BOUND)
    after = below("model/", run.load("last").tensors)
    assert after.keys() == weights.keys()
    for name in weights.keys() - {name for name in weights if name.endswith("key_transform.bias")}:
        assert np.abs(after[name].numpy() - before[name]).max() > 1e-3, name
        np.testing.assert_allclose(after[name].numpy(), weights[name], rtol=0, atol=BOUND, err_msg=name)
