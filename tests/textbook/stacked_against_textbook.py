"""The stacked model against its chapter of the textbook, in float64: what `test_stacked.py` bounds.

Every weight is drawn anew: fresh scales are 1 and fresh pair embeddings 0, under which much could hide.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from differences import Pairs, array

from rhapsode.model import LanguageModel, ModelConfig, build_model
from rhapsode.state import BlockState, Cache, CopyState, State
from rhapsode.textbook import stacked, tape

# All different, products of them too: H hidden, K and D key and value sizes, of N heads.
SIZES: dict[str, Any] = {
    "vocab_size": 17,
    "embed_dim": 6,
    "hidden_dim": 7,
    "key_dim": 5,
    "value_dim": 4,
    "num_layers": 3,
    "num_heads": 2,
}
B, T = 3, 9
SEEN = 5  # tokens in the cache of a state that is made up


def both(seed: int = 1, **fields: Any) -> tuple[LanguageModel, stacked.StackedModel, ModelConfig]:
    """The model twice, with the same weights, all of them random."""
    config = ModelConfig(kind="stacked", **{**SIZES, **fields})
    fast = build_model(config, seed).double()
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, p in fast.named_parameters():
            wide = p.shape[-1] if p.ndim == 2 and "embeddings" not in name else 1
            p.copy_(torch.tensor(rng.standard_normal(p.shape) / np.sqrt(wide) + (p.ndim == 1 and "norm" in name)))
    weights = {name: array(p).copy() for name, p in fast.named_parameters()}
    return fast, stacked.StackedModel(weights, config.num_heads, config.activation), config


def tokens_of(config: ModelConfig, rows: int = B, length: int = T, seed: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, config.vocab_size, (rows, length))


def made_up_state(config: ModelConfig, rows: int) -> tuple[State, stacked.State]:
    """A state of random numbers, after SEEN tokens that nobody read, twice: leaves that take a gradient."""
    rng = np.random.default_rng(3)
    fast, own = [], []
    for i in range(config.num_layers):
        attends = config.attention == "all" or (config.attention == "last" and i == config.num_layers - 1)
        h = rng.standard_normal((rows, config.hidden_dim))
        k = rng.standard_normal((rows, SEEN, config.num_heads * config.key_dim))
        v = rng.standard_normal((rows, SEEN, config.num_heads * config.value_dim))
        cache = None
        if attends:
            cache = Cache(*(split(torch.tensor(part), config.num_heads).requires_grad_() for part in (k, v)))
        fast.append(BlockState(torch.tensor(h, requires_grad=True), cache))
        leaves = (tape.Leaf(k), tape.Leaf(v)) if attends else ()
        own.append(stacked.BlockState(tape.Leaf(h[:, None]), *leaves))
    token = rng.integers(1, config.vocab_size, rows) if config.pair_embeddings else None
    copies, own_copies = made_up_copies(config, rows) if config.copy_dim else (None, None)
    fast_token = None if token is None else torch.tensor(token)
    return State(tuple(fast), fast_token, copies), stacked.State(tuple(own), token, own_copies)


def made_up_copies(config: ModelConfig, rows: int) -> tuple[CopyState, stacked.CopyState]:
    """What a copy head keeps after SEEN tokens that nobody read, twice."""
    rng = np.random.default_rng(5)
    keys, next_key = rng.standard_normal((rows, SEEN, config.copy_dim)), rng.standard_normal((rows, config.copy_dim))
    ids = rng.integers(0, config.vocab_size, (rows, SEEN))
    cache = Cache(torch.tensor(keys[:, None], requires_grad=True), torch.tensor(ids[:, None, :, None]))
    own = stacked.CopyState(tape.Leaf(keys), tape.Leaf(next_key[:, None]), ids)
    return CopyState(cache, torch.tensor(next_key, requires_grad=True)), own


def split(side_by_side: torch.Tensor, num_heads: int) -> torch.Tensor:
    """(B, S, N d) -> (B, N, S, d), head by head."""
    return torch.stack(side_by_side.chunk(num_heads, dim=-1), dim=1)


def joined(heads: torch.Tensor | None) -> np.ndarray:
    """(B, N, S, d) -> (B, S, N d), head by head."""
    assert heads is not None
    return np.concatenate([array(heads[:, n]) for n in range(heads.shape[1])], axis=-1)


def compare(
    cuts: Sequence[int] = (), rows: int = B, length: int = T, from_state: bool = False, **fields: Any
) -> tuple[Pairs, Pairs]:
    """Logits and state after tokens that are read in pieces; gradients of a weighted sum of all of them.

    from_state: the first piece goes on from a made-up state, and its gradients are compared, too.
    """
    fast, own, config = both(**fields)
    tokens = tokens_of(config, rows, length)
    first, own_first = made_up_state(config, rows) if from_state else (None, None)
    state, own_state, logits, own_logits, on_tape = first, own_first, [], [], tape.Tape()
    for begin, end in zip((0, *cuts), (*cuts, length), strict=True):
        piece, state = fast(torch.tensor(tokens[:, begin:end]), state)
        logits.append(piece)
        own_piece, own_state = own.forward(on_tape, tokens[:, begin:end], own_state)
        own_logits.append(own_piece)

    ends = [(torch.cat(logits, dim=1), tape.Concatenate(*own_logits, axis=1).apply_forward(on_tape))]
    for block, own_block in zip(state.blocks, own_state.blocks, strict=True):
        ends.append((block.hidden[:, None], own_block.h))
        assert (block.cache is None) == (own_block.keys is None)
        if block.cache is not None:
            for heads, side_by_side in zip(
                (block.cache.keys, block.cache.values), (own_block.keys, own_block.values), strict=True
            ):
                ends.append((torch.cat(heads.unbind(1), dim=-1), side_by_side))
    assert (state.token is None) == (own_state.token is None)
    assert (state.copies is None) == (own_state.copies is None)
    if state.copies is not None:
        ends.append((state.copies.cache.keys[:, 0], own_state.copies.keys))
        ends.append((state.copies.next_key[:, None], own_state.copies.next_key))
    values = [(array(ours), theirs.output) for ours, theirs in ends]
    if state.token is not None:
        values.append((state.token.numpy(), own_state.token))
    if state.copies is not None:
        values.append((state.copies.ids.numpy(), own_state.copies.tokens))

    rng, total, own_total = np.random.default_rng(4), torch.zeros((), dtype=torch.float64), tape.Leaf(0.0)
    for ours, theirs in ends:
        upstream = rng.standard_normal(theirs.output.shape)
        total = total + (ours * torch.tensor(upstream)).sum()
        weighted = tape.Multiply(theirs, tape.Leaf(upstream * upstream.size)).apply_forward(on_tape)
        own_total = tape.Add(own_total, tape.Mean(weighted).apply_forward(on_tape)).apply_forward(on_tape)
    total.backward()
    on_tape.backward()
    gradients = [(array(p.grad), own.parameters[name].output_gradient) for name, p in fast.named_parameters()]
    if from_state:
        for block, own_block in zip(first.blocks, own_first.blocks, strict=True):
            gradients.append((array(block.hidden.grad)[:, None], own_block.h.output_gradient))
            if block.cache is not None:
                gradients.append((joined(block.cache.keys.grad), own_block.keys.output_gradient))
                gradients.append((joined(block.cache.values.grad), own_block.values.output_gradient))
        if first.copies is not None:
            gradients.append((array(first.copies.cache.keys.grad)[:, 0], own_first.copies.keys.output_gradient))
            gradients.append((array(first.copies.next_key.grad)[:, None], own_first.copies.next_key.output_gradient))
    return values, gradients
