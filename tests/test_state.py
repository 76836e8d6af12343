"""States as values: room for more tokens that no one sees, rows put together, files."""

from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from rhapsode.model import LanguageModel, ModelConfig, build_model
from rhapsode.state import Cache, State

STACKED = ModelConfig(
    vocab_size=23, kind="stacked", embed_dim=6, hidden_dim=7, key_dim=3, value_dim=5, num_layers=2, num_heads=2,
    attention="last", pair_embeddings=31, copy_dim=2,
)  # fmt: skip


@pytest.fixture
def model() -> LanguageModel:
    return build_model(STACKED, seed=1).double()


def tokens(rows: int, length: int, seed: int = 2) -> torch.Tensor:
    return torch.randint(23, (rows, length), generator=torch.Generator().manual_seed(seed))


def equal(ours: State, theirs: State) -> bool:
    a, b = ours.tensors(), theirs.tensors()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_cache_grows_without_copies_and_is_still_a_value() -> None:
    """Would catch two continuations of one cache that write over each other, and a copy for every token."""
    first = Cache(torch.zeros(2, 3, 5, 4), torch.zeros(2, 3, 5, 2))

    def more(value: float) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.full((2, 3, 1, 4), value), torch.full((2, 3, 1, 2), value)

    with torch.no_grad():
        one = first.extended(*more(1))
        places = set()
        caches = [one]
        for value in range(2, 40):
            caches.append(caches[-1].extended(*more(value)))
            places.add(caches[-1].keys.data_ptr())
        assert len(places) == 1  # one piece of memory for 39 tokens
        branch = caches[3].extended(*more(-1))
    assert branch.keys[0, 0, :, 0].tolist() == [0, 0, 0, 0, 0, 1, 2, 3, 4, -1]
    for n, cache in enumerate(caches):
        expected = [0.0] * 5 + list(range(1, n + 2))
        assert cache.keys[1, 2, :, 3].tolist() == cache.values[1, 2, :, 1].tolist() == expected
    assert first.keys.shape[2] == 5


def test_a_cache_grows_past_its_room_and_in_any_mode() -> None:
    """Would catch memory of inference mode that PyTorch refuses outside of it, and gradients lost in the room."""
    cache = Cache(torch.rand(1, 1, 2, 3), torch.rand(1, 1, 2, 3))
    expected = cache.keys.clone()
    for n in range(300):
        piece = torch.full((1, 1, 1, 3), float(n))
        with torch.inference_mode() if n % 3 else torch.no_grad():
            cache = cache.extended(piece, piece)
            expected = torch.cat((expected, piece), dim=2)
        assert torch.equal(cache.keys, expected)
    piece = torch.zeros(1, 1, 1, 3, requires_grad=True)
    grown = Cache(torch.rand(1, 1, 2, 3), torch.rand(1, 1, 2, 3)).extended(piece, piece)
    grown.keys.sum().backward()
    assert piece.grad is not None
    assert grown.room is None


def test_join_puts_rows_of_states_in_one_batch(model: LanguageModel) -> None:
    """Would catch rows in another order, and rows of another length that are put side by side."""
    both = tokens(2, 6)
    with torch.no_grad():
        _, whole = model(both)
        states = [model(both[i : i + 1])[1] for i in range(2)]
        joined = State.join(states)
        assert all(
            torch.allclose(joined.tensors()[name], tensor, rtol=0, atol=1e-12)
            for name, tensor in whole.tensors().items()
        )
        assert equal(joined.rows([1]), states[1])
        _, longer = model(both[:1, :3], states[0])
    with pytest.raises(ValueError, match="cannot be joined"):
        State.join([states[0], longer])
    with pytest.raises(ValueError, match="cannot be joined"):
        State.join([states[0], replace(states[1], fingerprint="another")])
    with pytest.raises(ValueError, match="at least one"):
        State.join([])


def test_a_state_comes_back_from_its_file(model: LanguageModel, tmp_path: Path) -> None:
    """Bits, and what the model writes on from it; a lost cache, token or fingerprint would show."""
    file = tmp_path / "state.safetensors"
    with torch.no_grad():
        logits, state = model(tokens(1, 9))
        state = replace(state, logits=logits[:, -1], ids=tokens(1, 9), fingerprint="abc")
        state.save(file)
        again = State.load(file)
        assert equal(again, state)
        assert again.fingerprint == "abc"
        assert torch.equal(model(tokens(1, 4, seed=3), again)[0], model(tokens(1, 4, seed=3), state)[0])
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]


def test_what_is_no_state_is_refused(tmp_path: Path) -> None:
    """One line that names the file: missing, empty, no safetensors, safetensors of something else, parts missing."""
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors: no such file"):
        State.load(tmp_path / "none.safetensors")
    good = {"rhapsode_state": "1", "fingerprint": ""}
    contents = {
        "empty": b"",
        "text": b"Once upon a time",
        "other": safetensors.torch.save({"0/hidden": torch.zeros(1, 2)}),
        "newer": safetensors.torch.save({"0/hidden": torch.zeros(1, 2)}, {"rhapsode_state": "2"}),
        "half a cache": safetensors.torch.save({"0/hidden": torch.zeros(1), "0/keys": torch.zeros(1)}, good),
        "no block": safetensors.torch.save({"ids": torch.zeros(1)}, good),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}: not a saved state") as caught:
            State.load(tmp_path / name)
        assert len(str(caught.value).splitlines()) == 1
