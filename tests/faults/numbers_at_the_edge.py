"""Numbers at the edge of what floats hold: training stops with one line that names the step, or the result is right.

And the same seed gives the same bits: in other processes, and, within a bound, with other numbers of threads.
"""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from harness import Tally, Unit
from material import material, using_cache

import rhapsode
from rhapsode.model import LanguageModel
from rhapsode.progress import silent
from rhapsode.run import Run
from rhapsode.training import loop

THREADS_BOUND = 1e-4  # nats of the validation loss at the end: sums in another order, in each step
DENORMAL = 1e-40  # as a float32; products of two of them are zero
DENORMAL_BOUND = 1e-4  # nats a token between weights of DENORMAL and of zero
TINY = {"embed_dim": 8, "hidden_dim": 8, "key_dim": 4, "value_dim": 4}
ENDS = """
import json, sys
from pathlib import Path
import torch
import rhapsode
from rhapsode.run import Run
from rhapsode.tensors import checksum
model = rhapsode.train(
    Path(sys.argv[1]), out=sys.argv[2], seed=7, threads=int(sys.argv[3]), vocab_size=280, sequences=int(sys.argv[4]),
    model={"embed_dim": 128, "hidden_dim": 128, "dropout": 0.1}, batch={"window": 16, "batch_size": 32},
    train={"validations": 2, "prompt": ""},
)
last = Run.open(Path(sys.argv[2])).load("last")
print(json.dumps([checksum(last.tensors, ""), model.metrics[-1]["valid_loss"]]))
"""


def units(small: bool) -> list[Unit]:
    repeated, steps = (2, 5) if small else (6, 60)
    return [
        ("training at the edge", at_the_edge),
        ("the same seed in other processes", partial(same_bits, repeated, steps)),
    ]


def _texts(folder: Path, texts: list[str]) -> Path:
    file = folder / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return file


def _train(folder: Path, data: Path, **more: Any) -> rhapsode.Model:
    given: dict[str, Any] = {"sequences": 80, "model": TINY, "batch": {"window": 8, "batch_size": 4}, "vocab_size": 280}
    given |= {"train": {"validations": 2, "prompt": ""}, "threads": 1, "out": folder / "run"}
    return rhapsode.train(data, **(given | more))


def _right_or_named(
    train: Callable[[], rhapsode.Model], folder: Path, loss: Callable[[float], bool] | None = None
) -> None:
    """The result is finite in every number, or the error names the step and nothing wrong was saved."""
    message = ""
    try:
        model = train()
    except FloatingPointError as error:
        message = str(error)
    if message:
        assert "step" in message, message
        run = Run.open(folder / "run")
        for name in ("last", "best"):
            checkpoint = run.load(name)
            for key, tensor in (checkpoint.tensors if checkpoint else {}).items():
                assert not tensor.is_floating_point() or bool(torch.isfinite(tensor).all()), f"{name}: {key}"
        return
    for name, parameter in model.network.named_parameters():
        assert bool(torch.isfinite(parameter).all()), name
    entries = model.metrics
    assert all(math.isfinite(value) for entry in entries for value in entry.values() if isinstance(value, float))
    assert loss is None or loss(entries[-1]["valid_loss"]), entries[-1]
    score = model.score("Once upon a time")
    assert math.isfinite(score.nats), score
    assert model.generate("Once", max_tokens=5, temperature=0)[0].tokens


def _overflowing(folder: Path, data: Path) -> None:
    """A hidden state that grows beyond all floats in a network of relu."""
    model = _train(folder, data, model=TINY | {"kind": "plain", "activation": "relu"})
    with torch.no_grad():
        for name, parameter in model.network.named_parameters():
            if "hidden" in name or "recurrent" in name or "rnn" in name:
                parameter.fill_(1e20)
    text = "Once upon a time there was a"
    for use in (model.score, model.generate, model.next_tokens):
        message = ""
        try:
            use(text)
        except FloatingPointError as error:
            message = str(error)
        assert "not finite numbers" in message, f"{use.__name__}: {message or 'no error'}"


def at_the_edge(seed: int, folder: Path) -> Tally:
    made = material(folder / "made")
    tally = Tally()
    one_word = ["a"] * 60

    def attempt(what: str, check: Callable[[Path], None]) -> None:
        place = folder / what.replace(" ", "-")
        place.mkdir()
        with silent(), using_cache(place / "cache"):
            tally.note_of(partial(check, place), what)

    def case(what: str, texts: list[str] | None, loss: Callable[[float], bool] | None = None, **more: Any) -> None:
        def check(place: Path) -> None:
            data = made.texts if texts is None else _texts(place, texts)
            _right_or_named(lambda: _train(place, data, **more), place, loss)

        attempt(what, check)

    def refused(what: str, texts: list[str], **more: Any) -> None:
        def check(place: Path) -> None:
            message = None
            try:
                _right_or_named(lambda: _train(place, _texts(place, texts), **more), place)
            except ValueError as error:
                message = str(error)
            assert message is None or (len(message.splitlines()) == 1 and not (place / "run").exists()), message

        attempt(what, check)

    for rate in (100.0, 1e10, 1e30, 1e-30):
        case(
            f"learning rate {rate:g}", None, optimizer={"optimizer": "adamw", "learning_rate": rate, "warmup_steps": 0}
        )
    case("learning rate 100 of Muon", None, optimizer={"learning_rate": 100.0, "matrix_learning_rate": 100.0})
    case("no clipping at rate 100", None, optimizer={"optimizer": "adam", "learning_rate": 100.0, "clip_norm": 0.0})
    case("all tokens the same", one_word, lambda loss: loss < 3, sequences=400)
    case("all stories one token long", [chr(97 + i % 20) for i in range(80)], tokenizer="characters", vocab_size=64)
    case("denormal steps", None, optimizer={"optimizer": "adamw", "learning_rate": 1e-44, "warmup_steps": 0})
    case("momentum without end", None, optimizer={"beta1": 0.999999, "beta2": 0.0, "momentum": 0.999999})
    refused("a vocabulary of one", one_word, tokenizer="characters", vocab_size=1)
    refused("a vocabulary of what must be there", one_word, tokenizer="characters", vocab_size=4)
    refused("one text of one letter", ["a"])
    refused("blank texts", ["", " "])
    attempt("a loss of zero", _zero)
    for part, cell in {
        "embeddings": "gated",
        "candidate": "gated",
        "norm": "gated",
        "h2h": "elman",
        "": "elman",
    }.items():
        attempt(f"denormal weights of {part or 'all'}", partial(_denormal, made.texts, cell, part))
    attempt("a hidden state that overflows", lambda place: _overflowing(place, made.texts))
    return tally


def _zero(place: Path) -> None:
    """A text that can be known wholly: the loss becomes zero to the last bit, and the model is right."""
    data = place / "a.txt"
    data.write_text("a" * 20_000)
    rates = {"optimizer": "adamw", "learning_rate": 0.1, "warmup_steps": 0}
    given = {"tokenizer": "characters", "vocab_size": 64, "sequences": 3600, "optimizer": rates, "cut": "file"}
    given["batch"] = {"window": 16, "batch_size": 8}
    model = _train(place, data, **given)
    losses = [entry["train_loss"] for entry in model.metrics]
    assert 0.0 in losses, losses
    assert losses[-1] < 0.01, losses
    assert model.generate("a", max_tokens=6, temperature=0)[0].text == "aaaaaa"
    score = model.score("aaaa", end=False)
    assert 0 <= score.nats < 20, score


def _denormal(data: Path, cell: str, part: str, place: Path) -> None:
    """Weights too small for a float's full precision: the model writes, scores and trains as if they were zero."""
    build, found = loop.build_model, {}

    def filled(value: float) -> Callable[..., LanguageModel]:
        def built(*given: Any) -> LanguageModel:
            network = build(*given)
            chosen = [parameter for name, parameter in network.named_parameters() if part in name]
            assert chosen, f"no weights of {part}"
            with torch.no_grad():
                for parameter in chosen:
                    parameter.fill_(value)
            return network

        return built

    for value in (DENORMAL, 0.0):
        folder = place / f"{value:g}"
        folder.mkdir()
        rates = {"optimizer": "adamw", "learning_rate": 0.01, "warmup_steps": 0}
        with patch.object(loop, "build_model", filled(value)):
            model = _train(folder, data, model=TINY | {"kind": "stacked", "cell": cell}, optimizer=rates)
        assert all(bool(torch.isfinite(parameter).all()) for parameter in model.network.parameters())
        trained = model.metrics[-1]["valid_loss"]
        fresh = rhapsode.Model(filled(value)(model.network.config, 0), model.tokenizer)
        (score,) = fresh.score("Once upon a time").texts
        assert fresh.generate("Once", max_tokens=5, temperature=0)[0].tokens
        found[value] = trained, score.nats / score.tokens
    for what, small, none in zip(("trained", "not trained"), found[DENORMAL], found[0.0], strict=True):
        assert math.isfinite(small), f"{part}, {what}: {small}"
        assert abs(small - none) < DENORMAL_BOUND, f"{part}, {what}: {small}, with zeros {none}"


def same_bits(repeated: int, steps: int, seed: int, folder: Path) -> Tally:
    made = material(folder / "made")
    tally = Tally()
    found = {}
    runs = [(1, i) for i in range(repeated)] + [(2, i) for i in range(repeated // 2)]
    for threads, number in runs:
        out = folder / f"run-{threads}-{number}"
        environment = {**os.environ, "RHAPSODE_CACHE": str(made.cache), "PYTHONHASHSEED": str(number)}
        environment.pop("OMP_NUM_THREADS", None)
        command = [sys.executable, "-c", ENDS, str(made.texts), str(out), str(threads), str(32 * steps)]
        result = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert result.returncode == 0, result.stderr[-500:]
        found[threads, number] = json.loads(result.stdout)
    for threads, number in runs:
        first = found[threads, 0]
        tally.note(None if found[threads, number] == first else f"{threads} threads, process {number + 1}: other bits")
    difference = abs(found[1, 0][1] - found[2, 0][1])
    tally.facts = {"steps": steps, "difference of the loss between 1 and 2 threads": difference, "bound": THREADS_BOUND}
    tally.note(None if difference <= THREADS_BOUND else f"1 and 2 threads: {difference} apart")
    used = found[1, 0][0] != found[2, 0][0]
    tally.note(None if used else "1 and 2 threads: the same weights, so nothing was divided among threads")
    return tally
