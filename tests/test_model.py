"""The models: causality, rows, cuts, the loss; all sizes different, so that swapped arguments cannot hide."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rhapsode.cells import RNN
from rhapsode.kernels import attention, form
from rhapsode.kernels.attention import attend
from rhapsode.kernels.loss import chunk_rows, linear_cross_entropy
from rhapsode.model import LanguageModel, ModelConfig, SelfAttention, build_model
from rhapsode.tokens import IGNORED

PLAIN = ModelConfig(vocab_size=23, embed_dim=5, hidden_dim=7, key_dim=3, value_dim=4)
STACKED = ModelConfig(
    vocab_size=23, kind="stacked", embed_dim=6, hidden_dim=7, key_dim=3, value_dim=5, num_layers=2, num_heads=2,
    activation="tanh", gate=True, feed_forward=2, pair_embeddings=31,
)  # fmt: skip
LAST = ModelConfig(
    vocab_size=23, kind="stacked", embed_dim=6, hidden_dim=7, num_layers=3, attention="last", tie_embeddings=True
)
COPYING = ModelConfig(
    vocab_size=23, kind="stacked", embed_dim=6, hidden_dim=7, key_dim=3, value_dim=5, num_layers=2, cell="gated",
    gate=True, pair_embeddings=31, copy_dim=4,
)  # fmt: skip
ALONE = ModelConfig(
    vocab_size=23, kind="stacked", embed_dim=6, hidden_dim=7, key_dim=3, value_dim=5, num_layers=2, num_heads=2,
    cell="none", feed_forward=2, pair_embeddings=31,
)  # fmt: skip
CONFIGS = pytest.mark.parametrize(
    "config", [PLAIN, STACKED, LAST, COPYING, ALONE], ids=["plain", "stacked", "last", "copying", "alone"]
)


def made(config: ModelConfig, B: int = 3, T: int = 9) -> tuple[LanguageModel, torch.Tensor]:
    model = build_model(config, seed=1).double()
    return model, torch.randint(config.vocab_size, (B, T), generator=torch.Generator().manual_seed(2))


@CONFIGS
@pytest.mark.parametrize("cut", [1, 4, 8])
def test_a_cut_changes_nothing(config: ModelConfig, cut: int) -> None:
    """Logits, final state and gradients: a wrong cache mask or a lost hidden state shows in one of them."""
    model, tokens = made(config)
    whole, after_whole = model(tokens)
    first, state = model(tokens[:, :cut])
    second, after_cut = model(tokens[:, cut:], state)
    pieces = torch.cat((first, second), dim=1)
    torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(after_cut.tensors(), after_whole.tensors(), rtol=0, atol=1e-12)
    upstream = torch.randn_like(whole)
    parameters = list(model.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(pieces, parameters, upstream), torch.autograd.grad(whole, parameters, upstream), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-11)


def test_attention_alone_is_a_model_whose_recurrence_puts_out_nothing() -> None:
    """Would catch a block that leaves out more than its recurrence, or goes on keeping a hidden state."""
    alone, tokens = made(ALONE)
    elman, _ = made(replace(ALONE, cell="elman"))
    silent = {name: torch.zeros_like(tensor) for name, tensor in elman.state_dict().items() if ".rnn.out." in name}
    elman.load_state_dict({**elman.state_dict(), **alone.state_dict(), **silent})
    (logits, state), (expected, _) = alone(tokens), elman(tokens)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)
    assert [block.hidden.shape for block in state.blocks] == [(3, 0)] * 2
    with pytest.raises(ValueError, match="cell = 'none' needs attention"):
        replace(ALONE, attention="none")


@CONFIGS
def test_step_by_step_equals_at_once(config: ModelConfig) -> None:
    """What decoding relies on."""
    model, tokens = made(config)
    whole, _ = model(tokens)
    state = None
    for t in range(tokens.shape[1]):
        logits, state = model.step(tokens[:, t], state)
        torch.testing.assert_close(logits, whole[:, t], rtol=0, atol=1e-12)


@CONFIGS
def test_no_look_ahead_and_no_look_aside(config: ModelConfig) -> None:
    """A changed token changes its own row from its own position on, and nothing else."""
    model, tokens = made(config)
    changed = tokens.clone()
    changed[1, 5] = (changed[1, 5] + 1) % config.vocab_size
    difference = (model(tokens)[0] - model(changed)[0]).abs().amax(-1)
    assert difference[[0, 2]].max() < 1e-12
    assert difference[1, :5].max() < 1e-12
    assert difference[1, 5:].min() > 1e-9


@CONFIGS
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("rows", [5, 9, 1000], ids=["chunks and a rest", "chunks", "at once"])
def test_the_loss_is_cross_entropy(
    config: ModelConfig, reduction: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Value and gradients, with targets that are left out, and chunks that are left out or counted twice."""
    monkeypatch.setattr("rhapsode.kernels.loss.CHUNK_LOGITS", rows * config.vocab_size)
    monkeypatch.setattr("rhapsode.kernels.loss.FEWEST_CHUNK_ROWS", 1)
    model, tokens = made(config, T=10)
    targets = tokens[:, 1:].clone()
    targets[0, :4] = IGNORED
    loss, _ = model.loss(tokens[:, :-1], targets, reduction=reduction)
    plain = F.cross_entropy(
        model(tokens[:, :-1])[0].flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction=reduction
    )
    torch.testing.assert_close(loss, plain, rtol=1e-12, atol=0)
    with torch.inference_mode():  # as it is scored
        scored, _ = model.loss(tokens[:, :-1], targets, reduction=reduction)
    torch.testing.assert_close(scored, plain, rtol=1e-12, atol=0)
    parameters = list(model.parameters())
    ours, theirs = torch.autograd.grad(loss, parameters), torch.autograd.grad(plain, parameters)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_attention_equals_pytorch_multihead_attention() -> None:
    """Independent oracle, two heads, the same weights put into nn.MultiheadAttention."""
    torch.manual_seed(0)
    ours = SelfAttention(6, 3, 3, num_heads=2).double()
    theirs = torch.nn.MultiheadAttention(6, 2, batch_first=True).double()
    transforms = (ours.query_transform, ours.key_transform, ours.value_transform)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([transform.weight for transform in transforms]))
        theirs.in_proj_bias.copy_(torch.cat([transform.bias for transform in transforms]))
        theirs.out_proj.load_state_dict(ours.output_transform.state_dict())
    y = torch.randn(4, 5, 6, dtype=torch.float64)
    mask = torch.nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64)
    expected, _ = theirs(y, y, y, attn_mask=mask, need_weights=False)
    torch.testing.assert_close(ours(y)[0], expected, rtol=0, atol=1e-12)


def test_attend_with_more_keys_than_queries() -> None:
    """SDPA's own is_causal would hide the cache from the queries here."""
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(2, 1, n, d, generator=generator) for n, d in ((3, 4), (8, 4), (8, 5)))
    for t in range(3):
        visible = 8 - 3 + t + 1
        weights = torch.softmax(k[:, :, :visible] @ q[:, :, t, :, None] / 4**0.5, dim=2)
        torch.testing.assert_close(attend(q, k, v)[:, :, t], (weights * v[:, :, :visible]).sum(2))


def test_where_the_fused_gradient_has_no_order_it_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a GPU on which a resumed run is not the run: the gradient of the fused kernel adds up as its parts
    finish. Without a gradient, or where the scores would fill the memory, it is used there too."""
    fused = []
    whole = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *a, **k: fused.append(0) or whole(*a, **k)
    )
    q, k, v = torch.randn(2, 3, 5, 4, requires_grad=True), torch.randn(2, 3, 7, 4), torch.randn(2, 3, 7, 6)
    expected = attend(q, k, v)
    assert len(fused) == 1
    monkeypatch.setattr(attention, "UNORDERED", ("cpu",))
    torch.testing.assert_close(attend(q, k, v), expected)
    assert len(fused) == 1
    attend(q.detach(), k, v)
    monkeypatch.setattr(attention, "MOST_SCORES", 2 * 3 * 5 * 7 - 1)
    attend(q, k, v)
    assert len(fused) == 3


def test_recent_keeps_the_last_tokens_and_the_hidden_state() -> None:
    model, tokens = made(PLAIN)
    _, state = model(tokens)
    short = state.recent(4)
    cache, whole = short.blocks[0].cache, state.blocks[0].cache
    assert cache is not None
    assert whole is not None
    torch.testing.assert_close(cache.keys, whole.keys[:, :, -4:])
    torch.testing.assert_close(short.blocks[0].hidden, state.blocks[0].hidden)


def test_recent_keeps_what_may_be_copied_of_the_last_tokens() -> None:
    """Would catch keys of other tokens than the ids, and a lost key of the token to come."""
    model, tokens = made(COPYING)
    _, state = model(tokens)
    assert state.copies is not None
    short = state.recent(4).copies
    assert short is not None
    torch.testing.assert_close(short.keys, state.copies.keys[:, -4:])
    torch.testing.assert_close(short.ids, tokens[:, -4:])
    torch.testing.assert_close(short.next_key, state.copies.next_key)
    p = model(tokens[:, :1], state.recent(4))[0][:, 0].exp()
    longer = model(tokens[:, :1], state)[0][:, 0].exp()
    torch.testing.assert_close(p.sum(-1), longer.sum(-1))
    assert (p - longer).abs().max() > 1e-6


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_dim": 0}, "hidden_dim must be at least 1, got 0"),
        ({"activation": "gelu"}, "activation must be one of relu, tanh, got 'gelu'"),
        ({"dropout": 1.0, "kind": "stacked"}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"gate": True}, "gate = True needs kind = 'stacked'"),
        ({"copy_dim": 8}, "copy_dim = 8 needs kind = 'stacked'"),
        ({"copy_dim": -1, "kind": "stacked"}, "copy_dim must be at least 0, got -1"),
        ({"cell": "gru", "kind": "stacked"}, "cell must be one of elman, gated, none, got 'gru'"),
    ],
)
def test_a_bad_config_names_the_field(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig(vocab_size=10, **fields)


def test_an_activation_that_the_kernel_does_not_know_is_an_error() -> None:
    """Would catch a Sigmoid that computes relu without a word."""
    model, tokens = made(PLAIN)
    for activation, refused in ((nn.Tanh(), False), (nn.Sigmoid(), True), (nn.LeakyReLU(), True)):
        model.rnn.cell.activation = activation  # type: ignore[union-attr, assignment]
        for call in (lambda: model(tokens), lambda: model.loss(tokens, tokens)):
            if refused:
                with pytest.raises(ValueError, match=f"must be ReLU or Tanh, got {type(activation).__name__}"):
                    call()
            else:
                call()


@CONFIGS
def test_plain_kernels_compute_the_same(config: ModelConfig) -> None:
    """Loss, state and gradients of the plain form of all kernels; would catch one that is left fast."""
    model, tokens = made(config)
    results = []
    for kind in ("fast", "plain"):
        with form(kind):
            loss, state = model.loss(tokens[:, :-1], tokens[:, 1:])
            gradients = torch.autograd.grad(loss, list(model.parameters()), create_graph=kind == "plain")
        results.append([loss, *state.tensors().values(), *gradients])
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-11)


@CONFIGS
def test_plain_kernels_can_be_exported(config: ModelConfig) -> None:
    """What export and graph capture need: no hand-written gradient in the way."""
    model, tokens = made(config)

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.model(tokens)[0]

    with form("plain"), torch.no_grad():
        program = torch.export.export(Logits().eval(), (tokens,), strict=False)
        torch.testing.assert_close(program.module()(tokens), model.eval()(tokens)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_loss_where_pytorch_has_none_of_its_own(reduction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and gradients with `linear_cross_entropy` taken away, as in PyTorch before 2.13."""
    monkeypatch.setattr("rhapsode.kernels.loss.CHUNK_LOGITS", 5 * PLAIN.vocab_size)
    monkeypatch.setattr("rhapsode.kernels.loss.FEWEST_CHUNK_ROWS", 1)
    model, tokens = made(PLAIN, T=10)
    targets = tokens[:, 1:].clone()
    targets[0, :4] = IGNORED
    logits = model(tokens[:, :-1])[0].flatten(0, 1)
    plain = F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED, reduction=reduction)
    monkeypatch.delattr(F, "linear_cross_entropy", raising=False)
    monkeypatch.delattr(nn, "LinearCrossEntropyOptions", raising=False)
    loss, _ = model.loss(tokens[:, :-1], targets, reduction=reduction)
    torch.testing.assert_close(loss.flatten(), plain.flatten(), rtol=1e-12, atol=0)
    parameters = list(model.parameters())
    ours, theirs = (torch.autograd.grad(each.sum(), parameters) for each in (loss, plain))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_unknown_form_of_kernels() -> None:
    with pytest.raises(ValueError, match="one of fast, plain, triton, vmap, got 'quick'"), form("quick"):
        pass


def test_a_fresh_stacked_model_remembers_and_a_plain_one_is_pytorchs() -> None:
    """Would catch an initialisation that is lost: a default one keeps next to nothing of its state after ten steps."""
    kept = {}
    for kind in ("plain", "stacked"):
        model = build_model(ModelConfig(50, kind=kind, hidden_dim=64), seed=1)
        rnn = next(module for module in model.modules() if isinstance(module, RNN))
        h = torch.rand(1, 64)
        after = rnn.cell.recur(torch.zeros(10, 1, 64), h)[-1]
        kept[kind] = (after.norm() / h.norm()).item()
    assert kept["stacked"] > 0.2 > 0.02 > kept["plain"]


def test_a_fresh_tied_model_is_undecided() -> None:
    """Would catch embeddings as large as PyTorch makes them, which as a head begin with a loss of some 100 nats."""
    model = build_model(ModelConfig(vocab_size=500, kind="stacked", embed_dim=200, tie_embeddings=True), seed=0)
    tokens = torch.randint(500, (4, 33), generator=torch.Generator().manual_seed(1))
    loss, _ = model.loss(tokens[:, :-1], tokens[:, 1:])
    assert loss.item() < math.log(500) + 1


def test_plain_has_the_seventeen_names_in_order() -> None:
    """The course's state dict."""
    parts = ["rnn.cell.i2h", "rnn.cell.h2h", "rnn.out"]
    parts += [f"attention.{name}_transform" for name in ("query", "key", "value", "output")] + ["lm_head"]
    names = ["embeddings.weight"] + [f"{part}.{kind}" for part in parts for kind in ("weight", "bias")]
    assert list(build_model(PLAIN, 0).state_dict()) == names


def test_a_gpu_is_given_the_loss_in_large_pieces() -> None:
    """Would catch hundreds of small launches for the loss of a batch: a CPU's cache is no measure of a GPU."""
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert [chunk_rows(1024, device) for device in (cpu, cuda)] == [512, 2**15]
    assert [chunk_rows(10**6, device) for device in (cpu, cuda)] == [128, 128]


def test_logits_of_one_piece_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a loss that, in PyTorch before 2.13, computes all logits a second time though they were kept."""
    monkeypatch.delattr(F, "linear_cross_entropy", raising=False)
    made, linear = [], F.linear
    monkeypatch.setattr(F, "linear", lambda *arguments: made.append(0) or linear(*arguments))
    x, weight, targets = torch.randn(9, 4, requires_grad=True), torch.randn(5, 4), torch.arange(9) % 5
    for most, times in ((9 * 5, 1), (3 * 5, 6)):
        monkeypatch.setattr("rhapsode.kernels.loss.CHUNK_LOGITS", most)
        monkeypatch.setattr("rhapsode.kernels.loss.FEWEST_CHUNK_ROWS", 1)
        made.clear()
        linear_cross_entropy(x, weight, None, targets).backward()
        assert len(made) == times
