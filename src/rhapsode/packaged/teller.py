"""A packed model that tells a story token by token, in NumPy: what model.py says, for one text and a step at a time.

It is here because PyTorch takes 1.7 seconds to be imported, and the story is to begin before that.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from rhapsode.export.packed import unpack
from rhapsode.packaged import MODEL, TOKENIZER
from rhapsode.tokenizer import Tokenizer

NORM_EPSILON = np.finfo(np.float32).eps  # of RMSNorm
MOST_PROMPT_TOKENS = 8_192  # some ten seconds; the time grows with the square of the length
Weights = dict[str, np.ndarray]


def tell_story(
    prompt: str = "", max_tokens: int = 400, temperature: float = 0.7, top_p: float = 0.95, seed: int | None = None
) -> Iterator[str]:
    """A story in pieces of text as they become certain, the prompt first; the same seed tells the same story.

    Raises ValueError for max_tokens below 1, a temperature below 0, a top_p outside of (0, 1], or a prompt of more than
    MOST_PROMPT_TOKENS.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be >= 1, got {max_tokens}")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature must be >= 0, got {temperature}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be in (0, 1], got {top_p}")
    tokenizer, network = Tokenizer.load(TOKENIZER), Stepper(*unpack(MODEL.read_bytes()))
    ids = tokenizer.encode(prompt)
    if len(ids) > MOST_PROMPT_TOKENS:
        raise ValueError(
            f"the prompt has {len(ids):,} tokens, tell reads {MOST_PROMPT_TOKENS:,} at most; rhapsode generate RUN"
            " reads more"
        )
    random, stream = np.random.default_rng(seed), tokenizer.stream()
    logits = network.step(tokenizer.eos_id)
    for id in ids:
        logits = network.step(id)
        stream.push(id)
    yield prompt
    for _ in range(max_tokens):
        id = _drawn(logits, temperature, top_p, random)
        if id == tokenizer.eos_id:
            break
        yield stream.push(id)
        logits = network.step(id)
    yield stream.flush()


def _drawn(logits: np.ndarray, temperature: float, top_p: float, random: np.random.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    p = _softmax((logits - logits.max()) / temperature)
    order = np.argsort(-p)
    kept = order[: int(np.searchsorted(p[order].cumsum(), top_p)) + 1]
    return int(random.choice(kept, p=p[kept] / p[kept].sum()))


def _softmax(scores: np.ndarray) -> np.ndarray:
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * np.tanh(0.5 * x)


class Stepper:
    """A network that reads one text; its letters are those of model.py and copying.py."""

    def __init__(self, config: dict[str, Any], weights: Weights) -> None:
        self.config, self.weights = config, weights
        self.ids: np.ndarray = np.empty(0, np.int64)
        self.hidden: dict[str, np.ndarray] = {}
        self.kept: dict[str, tuple[np.ndarray, int]] = {}  # rows so far, by name, with room for more; and how many

    def step(self, id: int) -> np.ndarray:
        """Reads a token; the logits (V,) of the next one, which are log-probabilities with a copy head."""
        w, config = self.weights, self.config
        x = w["embeddings.weight"][id]
        if "pair_embeddings.weight" in w:
            before = int(self.ids[-1]) if len(self.ids) else 0
            x = x + w["pair_embeddings.weight"][(before * 1_000_003 + id * 7_919) % config["pair_embeddings"]]
        self.ids = self._remember("ids", np.asarray(id))
        if config["kind"] == "plain":
            x = self._attention("attention", self._recurrence("rnn", x))
        else:
            for i in range(config["num_layers"]):
                x = self._block(f"blocks.{i}.", x)
            x = self._norm("norm", x)
        head = w.get("lm_head.weight", w["embeddings.weight"])
        logits = (head @ x + w.get("lm_head.bias", 0)).astype(np.float64)
        return self._mixed(logits, x) if "copy_head.gate.weight" in w else logits

    def _block(self, at: str, x: np.ndarray) -> np.ndarray:
        x = x + self._recurrence(f"{at}rnn", self._norm(f"{at}rnn_norm", x))
        if f"{at}attention_norm.weight" in self.weights:
            x = x + self._attention(f"{at}attention", self._norm(f"{at}attention_norm", x))
        if f"{at}feed_forward.0.weight" in self.weights:
            inner = self._linear(f"{at}feed_forward.1", self._norm(f"{at}feed_forward.0", x))
            x = x + self._linear(f"{at}feed_forward.3", np.square(np.maximum(inner, 0)))
        return x

    def _linear(self, name: str, x: np.ndarray) -> np.ndarray:
        return self.weights[f"{name}.weight"] @ x + self.weights[f"{name}.bias"]

    def _norm(self, name: str, x: np.ndarray) -> np.ndarray:
        return x / np.sqrt(np.square(x).mean() + NORM_EPSILON) * self.weights[f"{name}.weight"]

    def _recurrence(self, at: str, i: np.ndarray) -> np.ndarray:
        before = self.hidden.get(at, np.zeros(self.config["hidden_dim"], np.float32))
        if f"{at}.cell.keep.weight" in self.weights:
            a = _sigmoid(self._linear(f"{at}.cell.keep", i))
            h = a * before + (1 - a) * self._linear(f"{at}.cell.candidate", i)
        else:
            z = self._linear(f"{at}.cell.i2h", i) + self._linear(f"{at}.cell.h2h", before)
            h = np.tanh(z) if self.config["activation"] == "tanh" else np.maximum(z, 0)
        self.hidden[at] = h
        if f"{at}.gate.weight" in self.weights:
            g = self._linear(f"{at}.gate", i)
            h = h * g * _sigmoid(g)
        return self._linear(f"{at}.out", h)

    def _attention(self, at: str, y: np.ndarray) -> np.ndarray:
        heads = self.config["num_heads"]
        q, k, v = (self._linear(f"{at}.{part}_transform", y).reshape(heads, -1) for part in ("query", "key", "value"))
        keys, values = self._remember(f"{at}.key", k), self._remember(f"{at}.value", v)  # (T, N, K), (T, N, V)
        weights = _softmax(np.einsum("nk,tnk->nt", q, keys) / np.sqrt(q.shape[1]))
        return self._linear(f"{at}.output_transform", np.einsum("nt,tnv->nv", weights, values).reshape(-1))

    def _remember(self, name: str, row: np.ndarray) -> np.ndarray:
        """The rows (T, ...) of this name, this one last."""
        rows, count = self.kept.get(name, (np.empty((64, *row.shape), row.dtype), 0))
        if count == len(rows):
            rows = np.concatenate([rows, np.empty_like(rows)])
        rows[count] = row
        self.kept[name] = rows, count + 1
        return rows[: count + 1]

    def _mixed(self, logits: np.ndarray, x: np.ndarray) -> np.ndarray:
        q = self._linear("copy_head.query_transform", x)
        keys = self._remember("copies", self.hidden.get("copies", np.zeros_like(q)))  # of the token before each token
        self.hidden["copies"] = self._linear("copy_head.key_transform", x)
        copied = np.zeros_like(logits)
        np.add.at(copied, self.ids, _softmax(keys @ q / np.sqrt(len(q))))
        g = float(_sigmoid(self._linear("copy_head.gate", x))[0])
        with np.errstate(divide="ignore"):
            return np.log((1 - g) * _softmax(logits) + g * copied)
