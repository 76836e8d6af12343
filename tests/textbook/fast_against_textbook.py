"""The fast kernels against the textbook, in float64: the differences that `test_oracle.py` bounds.

`python tests/textbook/fast_against_textbook.py` prints them as the last section of `docs/textbook.md`.
"""

import sys
from collections.abc import Callable

import numpy as np
import torch
from differences import BOUND, Pairs, array, largest_difference, tensor
from stacked_against_textbook import compare

from rhapsode.fold import Affine
from rhapsode.kernels.attention import attend
from rhapsode.kernels.gated import gated_recurrence
from rhapsode.kernels.recurrence import recurrence
from rhapsode.model import LanguageModel, ModelConfig, SelfAttention, build_model
from rhapsode.textbook import attention, gated, recurrent, softmax, tape
from rhapsode.textbook import language_model as textbook
from rhapsode.textbook.explain.page import agreement

B, T, E, H, D_K, D_V, V = 3, 7, 5, 6, 4, 2, 11


def the_recurrence(activation: str) -> tuple[Pairs, Pairs]:
    """`recurrence` from a state other than zero, against the closed form, one sequence after the other."""
    rng = np.random.default_rng(1)
    x, h_0, upstream = (
        rng.standard_normal((T, B, H)),
        rng.standard_normal((B, H)),
        rng.standard_normal((T, B, H)),
    )
    W = rng.standard_normal((H, H)) / np.sqrt(H)
    fast_x, fast_W, fast_h_0 = tensor(x), tensor(W), tensor(h_0)
    h = recurrence(fast_x, fast_W, fast_h_0, activation)
    h.backward(torch.tensor(upstream))

    values, gradients, dW = [], [], np.zeros_like(W)
    for b in range(B):
        z, own = recurrent.hidden_states(W, x[:, b], h_0[b], activation)
        dz = recurrent.psi_prime(z, activation) * recurrent.gradient_h(W, z, upstream[:, b], activation)
        dW += dz.T @ np.vstack([h_0[b], own[:-1]])
        values.append((array(h)[:, b], own))
        gradients += [(array(fast_x.grad)[:, b], dz), (array(fast_h_0.grad)[b], W.T @ dz[0])]
    return values, [*gradients, (array(fast_W.grad), dW)]


def the_gated_recurrence() -> tuple[Pairs, Pairs]:
    """`gated_recurrence` from a state other than zero, against the closed form, one sequence after the other."""
    rng = np.random.default_rng(7)
    s, c, upstream = (rng.standard_normal((T, B, H)) for _ in range(3))
    h_0 = rng.standard_normal((B, H))
    x, fast_h_0 = tensor(np.concatenate([s, c], axis=-1)), tensor(h_0)
    h = gated_recurrence(x, fast_h_0)
    h.backward(torch.tensor(upstream))
    values, gradients = [], []
    for b in range(B):
        whole = np.vstack([h_0[b][None], c[:, b]])
        values.append((array(h)[:, b], (gated.kept_shares(s[:, b]) * whole).sum(axis=1)))
        ds, dc, dh_0 = gated.gated_gradients(s[:, b], c[:, b], upstream[:, b], h_0[b])
        gradients += [(array(x.grad)[:, b], np.hstack([ds, dc])), (array(fast_h_0.grad)[b], dh_0)]
    return values, gradients


def dot_product_attention(queries: int) -> tuple[Pairs, Pairs]:
    """`attend` with the last `queries` of T positions asking, as after a cut of the sequence."""
    rng = np.random.default_rng(2)
    shapes = ((B, 2, queries, D_K), (B, 2, T, D_K), (B, 2, T, D_V))
    QKV, upstream = (
        [rng.standard_normal(shape) for shape in shapes],
        rng.standard_normal((B, 2, queries, D_V)),
    )
    fast = [tensor(a) for a in QKV]
    O = attend(*fast)
    O.backward(torch.tensor(upstream))
    own = attention.attend(*QKV)
    gradients = attention.attend_gradients(own, upstream)
    return [(array(O), own.O)], [(array(f.grad), g) for f, g in zip(fast, gradients, strict=True)]


def self_attention(num_heads: int) -> tuple[Pairs, Pairs]:
    """The module `SelfAttention` with its transforms, against the multi-head attention of the chapter."""
    rng = np.random.default_rng(3)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        module = SelfAttention(H, D_K, D_V, num_heads).double()
    y, upstream = rng.standard_normal((B, T, H)), rng.standard_normal((B, T, H))
    fast_y = tensor(y)
    output = module(fast_y)[0]
    output.backward(torch.tensor(upstream))

    def per_head(name: str, of: Callable[[torch.Tensor], torch.Tensor | None]) -> dict[str, np.ndarray]:
        transform = getattr(module, f"{name}_transform")
        W, b = array(of(transform.weight)), array(of(transform.bias))
        if name != "output":
            W, b = W.reshape(num_heads, -1, H), b.reshape(num_heads, -1)
        return {f"W_{name[0]}": W, f"b_{name[0]}": b}

    def all_weights(of: Callable[[torch.Tensor], torch.Tensor | None]) -> attention.MultiHeadWeights:
        names = ("query", "key", "value", "output")
        return attention.MultiHeadWeights(**{k: v for name in names for k, v in per_head(name, of).items()})

    weights = all_weights(lambda p: p)
    values, gradients = [], []
    total = {name: np.zeros_like(w) for name, w in vars(weights).items()}
    for b in range(B):
        own = attention.multi_head_attention(y[b], weights)
        dX, d = attention.multi_head_gradients(own, weights, upstream[b])
        values.append((array(output)[b], own.output))
        gradients.append((array(fast_y.grad)[b], dX))
        for name, gradient in vars(d).items():
            total[name] += gradient
    fast = vars(all_weights(lambda p: p.grad))
    return values, gradients + [(fast[name], total[name]) for name in total]


def plain_model(scale: float = 1.0) -> tuple[LanguageModel, textbook.LanguageModel, np.ndarray]:
    """The course's model twice with the same weights, initial ones times `scale`, and tokens (B, T)."""
    config = ModelConfig(vocab_size=V, embed_dim=E, hidden_dim=H, key_dim=D_K, value_dim=D_V)
    fast = build_model(config, seed=4).double()
    with torch.no_grad():
        for p in fast.parameters():
            p.mul_(scale)
    weights = {name: array(p).copy() for name, p in fast.named_parameters()}
    return fast, textbook.LanguageModel(weights), np.random.default_rng(4).integers(0, V, (B, T))


def whole_model() -> tuple[Pairs, Pairs]:
    """Logits and last hidden state; the gradient of a weighted sum of all logits in every parameter."""
    fast, own, tokens = plain_model()
    upstream = np.random.default_rng(5).standard_normal((B, T, V))
    logits, state = fast(torch.tensor(tokens))
    logits.backward(torch.tensor(upstream))

    on_tape = tape.Tape()
    output = own.forward(on_tape, tokens)
    weighted = tape.Multiply(output.logits, tape.Leaf(upstream * upstream.size)).apply_forward(on_tape)
    tape.Mean(weighted).apply_forward(on_tape)
    on_tape.backward()
    values = [(array(logits), output.logits.output), (array(state.blocks[0].hidden), output.h.output[:, -1])]
    return values, [(array(p.grad), own.parameters[name].output_gradient) for name, p in fast.named_parameters()]


def loss() -> tuple[Pairs, Pairs]:
    """The fused loss on the last layer alone: its value, and the gradients of head and features."""
    fast, _, tokens = plain_model()
    features = fast.features(torch.tensor(tokens))[0].detach().requires_grad_()
    head = Affine(fast.lm_head.weight, fast.lm_head.bias)
    fast.before_logits = lambda *_: (
        features,
        head,
        None,
    )  # the loss then starts from a leaf, and reads it with the head
    targets = np.random.default_rng(6).integers(0, V, (B, T))
    nats = fast.loss(torch.tensor(tokens), torch.tensor(targets))[0]
    nats.backward()

    x, W, b = array(features), array(fast.lm_head.weight), array(fast.lm_head.bias)
    logits = x @ W.T + b
    ds = softmax.cross_entropy_gradient(logits, targets) / targets.size
    gradients = [
        (array(features.grad), ds @ W),
        (array(fast.lm_head.weight.grad), np.einsum("btv,bth->vh", ds, x)),
        (array(fast.lm_head.bias.grad), ds.sum(axis=(0, 1))),
    ]
    return [(array(nats), softmax.cross_entropy(logits, targets).mean())], gradients


def next_token_loss() -> tuple[Pairs, Pairs]:
    """The training loss, from tokens to nats, and its gradient in every parameter."""
    fast, own, tokens = plain_model()
    nats = fast.loss(torch.tensor(tokens[:, :-1]), torch.tensor(tokens[:, 1:]))[0]
    nats.backward()
    own_loss, own_gradients = own.gradients(tokens)
    return [(array(nats), np.array(own_loss))], [
        (array(p.grad), own_gradients[name]) for name, p in fast.named_parameters()
    ]


def training() -> tuple[Pairs, Pairs]:
    """Five steps of PyTorch's Adam on clipped gradients: the losses, and how far each weight has moved.

    The key's bias is left out: it adds the same to all scores of a query, so its gradient is 0 but for
    rounding, and Adam divides that rounding by itself.
    """
    fast, own, tokens = plain_model(scale=2)
    optimizer = torch.optim.Adam(fast.parameters(), lr=0.01)
    before = {name: array(p).copy() for name, p in fast.named_parameters()}
    losses, own_losses = [], []
    for _ in range(5):
        nats = fast.loss(torch.tensor(tokens[:, :-1]), torch.tensor(tokens[:, 1:]))[0]
        optimizer.zero_grad()
        nats.backward()
        gradients = [p.grad for p in fast.parameters()]
        norm = torch.nn.utils.get_total_norm(gradients)
        assert norm > 1, "the clipping is not in use"
        for gradient in gradients:
            gradient /= norm  # clip_grad_norm_ divides by norm + 1e-6: that alone would be a difference of 1e-6
        optimizer.step()
        losses.append(nats.item())
        own_losses.append(own.train_step(tokens, learning_rate=0.01))
    moved = [
        (array(p) - before[name], own.parameters[name].output - before[name])
        for name, p in fast.named_parameters()
        if name != "attention.key_transform.bias"
    ]
    return [(np.array(losses), np.array(own_losses))], moved


COMPARISONS: dict[str, Callable[[], tuple[Pairs, Pairs]]] = {
    "recurrence, relu": lambda: the_recurrence("relu"),
    "recurrence, tanh": lambda: the_recurrence("tanh"),
    "gated recurrence": the_gated_recurrence,
    "attention, all positions": lambda: dot_product_attention(T),
    "attention, the last 3 positions over a cache": lambda: dot_product_attention(3),
    "self-attention, one head": lambda: self_attention(1),
    "self-attention, three heads": lambda: self_attention(3),
    "loss from features": loss,
    "plain model, logits": whole_model,
    "plain model, loss": next_token_loss,
    "plain model, five steps of Adam (losses; moves)": training,
    "stacked model, every part": lambda: compare(gate=True, feed_forward=2, pair_embeddings=13),
    "stacked model, tied, read in three pieces": lambda: compare(
        (4, 5), gate=True, feed_forward=2, pair_embeddings=13, attention="last", tie_embeddings=True
    ),
    "stacked model, gated, with a copy head, in three pieces": lambda: compare(
        (4, 5), gate=True, pair_embeddings=13, cell="gated", copy_dim=3
    ),
    "stacked model, from a state, one token": lambda: compare(
        length=1, from_state=True, gate=True, feed_forward=2, pair_embeddings=13
    ),
}


def section() -> str:
    """The table as Markdown, in orders of magnitude, which do not depend on the machine."""
    lines = [
        "",
        "## What the tests measured",
        "",
        "The largest absolute difference between the fast kernels and the textbook, in float64, at sizes",
        f"that are all different. The tests fail at {BOUND:.0e}.",
        "",
        "| compared | values | gradients |",
        "|---|---|---|",
    ]
    for name, computed in COMPARISONS.items():
        bounds = [agreement(largest_difference(pairs), 1e-12) for pairs in computed()]
        lines.append(f"| {name} | {bounds[0]} | {bounds[1]} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.buffer.write(section().encode("utf-8"))
