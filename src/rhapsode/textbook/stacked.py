"""The stacked model, which most of this project's numbers come from, composed of tape modules.

Tokens w_1 … w_T go in; a vector x_t (E,) for each passes L blocks, and each block adds to it three times. The norm n,
the sums and the elementwise functions are those of the chapter on residual blocks, the rows of pairs those of the
chapter on pairs, the heads those of the chapter on attention:

    x_t = E[w_t] + P[row(w_{t-1}, w_t)]                               embeddings, pair_embeddings (may be left out)

    in block l = 0 … L-1, all with weights of its own (blocks.l):
        u_t = n(x_t)                                                  rnn_norm
        h_t = ψ(W_i2h u_t + b_i2h + W_h2h h_{t-1} + b_h2h)            rnn.cell; ψ is relu or tanh; or, gated,
        h_t = a_t ∘ h_{t-1} + (1 - a_t) ∘ (W_c u_t + b_c)             rnn.cell.candidate
              a_t = σ(W_a u_t + b_a)                                  rnn.cell.keep
        x_t ← x_t + W_out (h_t ∘ silu(W_g u_t + b_g)) + b_out         rnn.gate, rnn.out; with no gate: W_out h_t + b_out

        u_t = n(x_t)                                                  attention_norm (where the block attends)
        q_t, k_t, v_t = W_q u_t + b_q,  W_k u_t + b_k,  W_v u_t + b_v (N d_k,), (N d_k,), (N d_v,)
        c_t = for each of N heads, on its own d_k (d_v) entries of them, the heads one after the other:
                  Σ_{n≤t} softmax_n(k_n · q_t / √d_k) v_n
        x_t ← x_t + W_o c_t + b_o                                     attention.output_transform

        u_t = n(x_t)                                                  feed_forward.0 (where there is one)
        x_t ← x_t + W_2 relu(W_1 u_t + b_1)² + b_2                    feed_forward.1, feed_forward.3

    s_t = W_lm n(x_t) + b_lm                                          norm, lm_head

Where there is a copy head, of the chapter on copying, the logits are log p_t, made of s_t, the features n(x_t) and the
tokens so far: copy_head.query_transform, copy_head.key_transform, copy_head.gate.

A tied head has no weights of its own: W_lm is E, and there is no bias. E is then used twice, and the tape adds up the
gradients of both uses.

The state after token T is h_T of each block, the keys and values so far of each block that attends, w_T where pairs
are embedded, and what the copy head keeps. A sequence that is cut and continued from the state gives what the whole
gives; and, as a state is made of modules, gradients flow back through it, if both parts are on one tape.
"""

from dataclasses import dataclass

import numpy as np

from rhapsode.textbook.copying import one_hot
from rhapsode.textbook.pairs import pair_rows
from rhapsode.textbook.tape import (
    Add,
    Attention,
    Bias,
    Concatenate,
    Embedding,
    Leaf,
    Linear,
    Log,
    Mean,
    Mix,
    Module,
    Multiply,
    ReLU,
    RMSNorm,
    Sigmoid,
    SiLU,
    Slice,
    Softmax,
    SoftmaxCrossEntropy,
    SquaredReLU,
    Tanh,
    Tape,
)


@dataclass(frozen=True)
class BlockState:
    """Modules: h (B, 1, H), the last hidden state; keys (B, S, N d_k) and values (B, S, N d_v) of S tokens, or None."""

    h: Module
    keys: Module | None = None
    values: Module | None = None


@dataclass(frozen=True)
class CopyState:
    """What a copy head keeps: keys (B, S, d) and next_key (B, 1, d), modules, and the tokens (B, S) of the keys."""

    keys: Module
    next_key: Module
    tokens: np.ndarray


@dataclass(frozen=True)
class State:
    """The memory of the tokens so far: one entry for each block, the last tokens (B,) where pairs are embedded, and
    what a copy head keeps."""

    blocks: tuple[BlockState, ...]
    token: np.ndarray | None = None
    copies: CopyState | None = None

    def detached(self, tokens: int | None = None) -> "State":
        """The same numbers as constants, on no tape: gradients end here. Of keys and values, the last `tokens`."""

        def constant(part: Module | None) -> Leaf | None:
            return None if part is None else Leaf(part.output[:, -tokens:] if tokens else part.output)

        blocks = (BlockState(Leaf(b.h.output), constant(b.keys), constant(b.values)) for b in self.blocks)
        copies = None
        if self.copies is not None:
            keys = self.copies.keys.output[:, -tokens:] if tokens else self.copies.keys.output
            kept = self.copies.tokens[:, -tokens:] if tokens else self.copies.tokens
            copies = CopyState(Leaf(keys), Leaf(self.copies.next_key.output), kept)
        return State(tuple(blocks), self.token, copies)


class StackedModel:
    """The model over its parameters, `Leaf` modules by name, made of `weights`, arrays with those names.

    Which blocks attend, what has a gate, which cells are gated and whether the head is tied or copies can be read from
    the names; the number of heads
    and ψ, `relu` or `tanh`, cannot. Raises ValueError for another ψ.
    """

    def __init__(self, weights: dict[str, np.ndarray], num_heads: int = 1, activation: str = "relu") -> None:
        if activation not in ("relu", "tanh"):
            raise ValueError(f"activation must be one of relu, tanh, got {activation!r}")
        self.parameters = {name: Leaf(value) for name, value in weights.items()}
        self.num_heads = num_heads
        self.psi: type[Module] = ReLU if activation == "relu" else Tanh
        self.num_blocks = sum(name.endswith(".rnn_norm.weight") for name in weights)

    def forward(self, tape: Tape, tokens: np.ndarray, state: State | None = None) -> tuple[Module, State]:
        """Reads tokens (B, T) after the state, and pushes all modules on the tape: logits (B, T, V), the state then."""
        x: Module = Embedding(self.parameters["embeddings.weight"], tokens).apply_forward(tape)
        token = None
        if "pair_embeddings.weight" in self.parameters:
            P = self.parameters["pair_embeddings.weight"]
            rows = pair_rows(tokens, len(P.output), None if state is None else state.token)
            x = Add(x, Embedding(P, rows).apply_forward(tape)).apply_forward(tape)
            token = tokens[:, -1]
        blocks = []
        for i in range(self.num_blocks):
            x, block = self._block(tape, f"blocks.{i}.", x, None if state is None else state.blocks[i])
            blocks.append(block)
        top = self._norm(tape, "norm", x)
        tied = "lm_head.weight" not in self.parameters
        head = self.parameters["embeddings.weight" if tied else "lm_head.weight"]
        logits = Linear(top, head).apply_forward(tape)
        if not tied:
            logits = Bias(logits, self.parameters["lm_head.bias"]).apply_forward(tape)
        copies = None
        if "copy_head.gate.weight" in self.parameters:
            logits, copies = self._copy(tape, logits, top, tokens, None if state is None else state.copies)
        return logits, State(tuple(blocks), token, copies)

    def loss(
        self, tape: Tape, tokens: np.ndarray, targets: np.ndarray, state: State | None = None
    ) -> tuple[Module, State]:
        """The mean cross-entropy of targets (B, T) given tokens (B, T), in nats, pushed last; the state after them."""
        logits, state = self.forward(tape, tokens, state)
        return Mean(SoftmaxCrossEntropy(logits, targets).apply_forward(tape)).apply_forward(tape), state

    def gradients(
        self, tokens: np.ndarray, targets: np.ndarray, state: State | None = None
    ) -> tuple[float, dict[str, np.ndarray], State]:
        """The loss, its gradient for every parameter by name, and the state after the tokens."""
        for p in self.parameters.values():
            p.zero_gradient()
        tape = Tape()
        loss, after = self.loss(tape, tokens, targets, state)
        tape.backward()
        return float(loss.output), {name: p.output_gradient for name, p in self.parameters.items()}, after

    def _block(self, tape: Tape, at: str, x: Module, state: BlockState | None) -> tuple[Module, BlockState]:
        y, h = self._rnn(tape, at + "rnn", self._norm(tape, at + "rnn_norm", x), state)
        x = Add(x, y).apply_forward(tape)
        keys, values = None, None
        if f"{at}attention_norm.weight" in self.parameters:
            u = self._norm(tape, at + "attention_norm", x)
            a, keys, values = self._attention(tape, at + "attention", u, state)
            x = Add(x, a).apply_forward(tape)
        if f"{at}feed_forward.0.weight" in self.parameters:
            u = self._norm(tape, at + "feed_forward.0", x)
            inner = SquaredReLU(self._linear(tape, at + "feed_forward.1", u)).apply_forward(tape)
            x = Add(x, self._linear(tape, at + "feed_forward.3", inner)).apply_forward(tape)
        return x, BlockState(h, keys, values)

    def _rnn(self, tape: Tape, at: str, u: Module, state: BlockState | None) -> tuple[Module, Module]:
        """The outputs (B, T, E), and the last hidden state (B, 1, H)."""
        B, T, _ = u.output.shape
        H = self.parameters[f"{at}.out.weight"].output.shape[1]
        h: Module = Leaf(np.zeros((B, 1, H))) if state is None else state.h
        states = []
        for t in range(T):
            u_t = Slice(u, t, t + 1, axis=1).apply_forward(tape)
            h = self._cell(tape, f"{at}.cell", u_t, h)
            states.append(h)
        outputs = Concatenate(*states, axis=1).apply_forward(tape)
        if f"{at}.gate.weight" in self.parameters:
            gate = SiLU(self._linear(tape, f"{at}.gate", u)).apply_forward(tape)
            outputs = Multiply(outputs, gate).apply_forward(tape)
        return self._linear(tape, f"{at}.out", outputs), h

    def _cell(self, tape: Tape, at: str, u_t: Module, h: Module) -> Module:
        """The next hidden state (B, 1, H)."""
        if f"{at}.keep.weight" in self.parameters:
            keep = Sigmoid(self._linear(tape, f"{at}.keep", u_t)).apply_forward(tape)
            return Mix(keep, self._linear(tape, f"{at}.candidate", u_t), h).apply_forward(tape)
        here, before = self._linear(tape, f"{at}.i2h", u_t), self._linear(tape, f"{at}.h2h", h)
        return self.psi(Add(here, before).apply_forward(tape)).apply_forward(tape)

    def _copy(
        self, tape: Tape, logits: Module, x: Module, tokens: np.ndarray, before: CopyState | None
    ) -> tuple[Module, CopyState]:
        """log p (B, T, V) of the vocabulary's logits and the features x (B, T, E), and what the copy head keeps."""
        (B, T), V = tokens.shape, logits.output.shape[-1]
        q = self._linear(tape, "copy_head.query_transform", x)
        after = self._linear(tape, "copy_head.key_transform", x)  # of the tokens that come after these
        d = after.output.shape[-1]
        first = Leaf(np.zeros((B, 1, d))) if before is None else before.next_key
        keys = Concatenate(first, Slice(after, 0, T - 1, axis=1).apply_forward(tape), axis=1).apply_forward(tape)
        if before is not None:
            keys = Concatenate(before.keys, keys, axis=1).apply_forward(tape)
            tokens = np.concatenate([before.tokens, tokens], axis=1)
        copied = Attention(q, keys, Leaf(one_hot(tokens, V)), causal=True).apply_forward(tape)
        gate = Sigmoid(self._linear(tape, "copy_head.gate", x)).apply_forward(tape)
        p = Mix(gate, Softmax(logits).apply_forward(tape), copied).apply_forward(tape)
        return Log(p).apply_forward(tape), CopyState(keys, Slice(after, T - 1, T, axis=1).apply_forward(tape), tokens)

    def _attention(self, tape: Tape, at: str, u: Module, state: BlockState | None) -> tuple[Module, Module, Module]:
        """The outputs (B, T, E), and the keys and values so far, those of the state first."""
        q = self._linear(tape, f"{at}.query_transform", u)
        k = self._linear(tape, f"{at}.key_transform", u)
        v = self._linear(tape, f"{at}.value_transform", u)
        if state is not None and state.keys is not None and state.values is not None:
            k = Concatenate(state.keys, k, axis=1).apply_forward(tape)
            v = Concatenate(state.values, v, axis=1).apply_forward(tape)
        heads = []
        for n in range(self.num_heads):
            q_n, k_n, v_n = (self._head(tape, part, n) for part in (q, k, v))
            heads.append(Attention(q_n, k_n, v_n, causal=True).apply_forward(tape))
        joined = Concatenate(*heads, axis=-1).apply_forward(tape)
        return self._linear(tape, f"{at}.output_transform", joined), k, v

    def _head(self, tape: Tape, part: Module, n: int) -> Module:
        """The entries of head n: d of the N d on the last axis."""
        d = part.output.shape[-1] // self.num_heads
        return Slice(part, n * d, (n + 1) * d).apply_forward(tape)

    def _linear(self, tape: Tape, name: str, x: Module) -> Module:
        product = Linear(x, self.parameters[f"{name}.weight"]).apply_forward(tape)
        return Bias(product, self.parameters[f"{name}.bias"]).apply_forward(tape)

    def _norm(self, tape: Tape, name: str, x: Module) -> Module:
        return RMSNorm(x, self.parameters[f"{name}.weight"]).apply_forward(tape)
