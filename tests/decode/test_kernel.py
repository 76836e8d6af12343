"""The C kernel against the model in float64, at odd sizes and for every width of vector; and what stands in for it."""

import ctypes
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from rhapsode.decode import Engine, SampleConfig, compiled, read_ids
from rhapsode.decode.compiled import kernel_library
from rhapsode.decode.kernel import PAGE, Layout, Packed, _rows_stand_alone, layout_of
from rhapsode.decode.texts import Texts
from rhapsode.model import LanguageModel, ModelConfig, build_model
from rhapsode.tokenizer import train_tokenizer

V = 113
STACKED: dict[str, Any] = {"kind": "stacked", "embed_dim": 21, "hidden_dim": 35, "key_dim": 7, "value_dim": 11}
MODELS: dict[str, dict[str, Any]] = {
    "plain": {"embed_dim": 12, "hidden_dim": 14, "key_dim": 6, "value_dim": 10},
    "plain, two maps": {"embed_dim": 5, "hidden_dim": 7, "key_dim": 33, "value_dim": 67, "activation": "tanh"},
    "plain, wide": {"embed_dim": 70, "hidden_dim": 130, "key_dim": 16, "value_dim": 64},
    "one block": STACKED,
    "three heads": {**STACKED, "num_heads": 3, "num_layers": 2, "attention": "last", "gate": True, "feed_forward": 2},
    "no attention": {**STACKED, "attention": "none", "num_layers": 3, "feed_forward": 3, "activation": "tanh"},
    "tied, pairs": {**STACKED, "tie_embeddings": True, "pair_embeddings": 50},
    "gated": {**STACKED, "cell": "gated", "gate": True, "num_layers": 2, "pair_embeddings": 70},
    "copies": {**STACKED, "copy_dim": 9, "num_layers": 2, "num_heads": 2, "pair_embeddings": 50},
    "copies alone": {**STACKED, "copy_dim": 4, "attention": "none", "cell": "gated", "tie_embeddings": True},
    "attention alone": {**STACKED, "cell": "none"},
}
TUNINGS = {
    "sse": ["-msse2"],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx512f", "-mfma"],
    "native": ["-march=native"],
}


@pytest.fixture(scope="module", params=TUNINGS)
def kernel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[ctypes.CDLL, Layout]:
    """The kernel for vectors of 4, 8 and 16 floats, where this processor has them."""
    command = next(compiled._commands(), None)
    if command is None or kernel_library() is None:
        pytest.skip("there is no compiler")
    if request.param != "native":
        wanted = {"sse": "sse2", "avx2": "avx2", "avx512": "avx512f"}[request.param]
        if platform.machine() != "x86_64" or f" {wanted} " not in compiled.processor_features():
            pytest.skip("the processor has no such vectors")
        command = [*command[:-1], *TUNINGS[request.param]]
    path = tmp_path_factory.mktemp("kernel") / "kernel.so"
    compiled._compile(command, path)
    library = compiled._declared(ctypes.CDLL(str(path)))
    layout = layout_of(library)
    assert layout is not None
    assert layout.lanes == {"sse": 4, "avx2": 8, "avx512": 16}.get(request.param, layout.lanes)
    return library, layout


def network(name: str) -> LanguageModel:
    """Random weights, norms and gates included; a recurrence that does not explode."""
    made = build_model(ModelConfig(V, **MODELS[name]), seed=1)
    noise = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for key, p in made.named_parameters():
            p.add_(torch.randn(p.shape, generator=noise) * (0.03 if "h2h" in key else 0.2))
    return made.eval()


def test_rows_stand_alone(kernel: tuple[ctypes.CDLL, Layout]) -> None:
    """Would catch a tile that adds up in another order than the others."""
    assert _rows_stand_alone(*kernel)


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_memory_are_the_models(kernel: tuple[ctypes.CDLL, Layout], name: str) -> None:
    """Oracle: the model in float64, each text in one call. Texts of unequal lengths are read at once, in two pieces.

    Would catch a swapped size, a map packed wrongly, a position or a page that is missed, a copied token of another
    text, a state from which another text goes on.
    """
    model = network(name)
    texts, dice = Texts(Packed(model, *kernel)), torch.Generator().manual_seed(3)
    ids = [torch.randint(V, (length,), generator=dice).tolist() for length in (2, PAGE, PAGE + 1, 3 * PAGE + 5, 41)]
    slots = [texts.open(SampleConfig()) for _ in ids]
    texts.read([(slot, each[: len(each) // 2]) for slot, each in zip(slots, ids, strict=True)])
    texts.read([(slot, each[len(each) // 2 :]) for slot, each in zip(slots, ids, strict=True)])
    exact, last = model.double(), -1
    for slot, each in zip(slots, ids, strict=True):
        last += len(each) - len(each) // 2
        texts._last = last
        state = texts.state(slot, each)
        logits, expected = exact(torch.tensor([each]))
        assert state.logits is not None
        found, wanted = (part.double().log_softmax(-1) for part in (state.logits, logits[:, -1]))
        assert (found - wanted).abs().max() < 1e-5 * (1 + logits.abs().max())
        tensors = state.tensors()
        assert tensors.keys() == {*expected.tensors(), "ids", "logits"}
        for key, tensor in expected.tensors().items():
            torch.testing.assert_close(tensors[key].to(tensor.dtype), tensor, rtol=2e-5, atol=2e-5)
            assert tensors[key].dtype in (torch.float32, torch.int64)
        copy = texts.open(SampleConfig())
        texts.restore(copy, state)
        texts.read([(copy, [5]), (slot, [5])])
        one, other = (texts.state(each, [0]).tensors() for each in (copy, slot))
        for key in set(one) - {"logits"}:
            assert torch.equal(one[key], other[key])


def test_pieces_change_no_bit(kernel: tuple[ctypes.CDLL, Layout]) -> None:
    """Would catch a sum that depends on how many tokens are read in a call."""
    ids = torch.randint(V, (70,), generator=torch.Generator().manual_seed(4)).tolist()
    for name in ("plain", "copies"):
        texts = Texts(Packed(network(name), *kernel))
        found = []
        for sizes in ([70], [1] * 70, [3, 29, 1, 37]):
            slot, begin = texts.open(SampleConfig()), 0
            for size in sizes:
                texts.read([(slot, ids[begin : begin + size])])
                begin += size
            found.append(texts.state(slot, ids).tensors())
        for other in found[1:]:
            assert all(torch.equal(found[0][key], tensor) for key, tensor in other.items())


def test_kernel_and_modules_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a text that reads on with the other backend as another text."""
    tokenizer = train_tokenizer(["once upon a time there was a dog"] * 3, "bpe", 280)
    model = build_model(ModelConfig(tokenizer.vocab_size, **STACKED, copy_dim=5), seed=0)
    fast = Engine(model, tokenizer)
    monkeypatch.setattr("rhapsode.decode.engine.usable_kernel", lambda: None)
    slow = Engine(model, tokenizer)
    assert (fast.backend, slow.backend) == ("kernel", "modules")
    one, other = (read_ids(b, [7, 8], read_ids(a, [1, 5, 6])) for a, b in ((fast, slow), (slow, fast)))
    for key, tensor in one.tensors().items():
        torch.testing.assert_close(tensor, other.tensors()[key], rtol=1e-5, atol=1e-5)


SCRIPT = """
from rhapsode.decode import Engine, SampleConfig, write_texts
from rhapsode.model import ModelConfig, build_model
from rhapsode.tokenizer import train_tokenizer

tokenizer = train_tokenizer(["once upon a time"] * 3, "bpe", 265)
engine = Engine(build_model(ModelConfig(tokenizer.vocab_size), seed=0), tokenizer)
print(engine.backend, len(write_texts(engine, "once", SampleConfig(max_tokens=4))))
"""


@pytest.mark.parametrize("missing", ["compiler", "folder", "wish"])
def test_without_a_compiler_texts_are_written_too(tmp_path: Path, missing: str) -> None:
    """Would catch an import, a traceback or a word on stderr where nothing can be compiled, or kept."""
    (tmp_path / "file").write_text("")
    changes = {
        "compiler": {"CC": "false", "RHAPSODE_CACHE": str(tmp_path)},
        "folder": {"RHAPSODE_CACHE": str(tmp_path / "file" / "cache")},
        "wish": {"RHAPSODE_KERNEL": "none"},
    }[missing]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **changes}
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("modules 1\n", "")
