"""A trained model in use: it writes, streams, scores, reads, continues from a state, and shows where it looks.

All of its numbers but the attention weights come from the decoding engine, as those of the server do: they are equal to
the bit, whatever is computed at once.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from rhapsode.decode import Alternative, Engine, SampleConfig, prompt_ids, read_ids, read_text, score_ids, write
from rhapsode.inspection import copy_map
from rhapsode.inspection import read as look
from rhapsode.machine import Capture
from rhapsode.model import LanguageModel
from rhapsode.recipe import Recipe
from rhapsode.results import AttentionMap, Completion, CopyMap, NextToken, Scores, TextScore, check_count
from rhapsode.run import Run
from rhapsode.state import State
from rhapsode.tokenizer import Tokenizer


class Model:
    """A trained model with its tokenizer, and the run directory that it came from.

    network: the PyTorch module. tokenizer: text to ids and back. recipe: what it was trained with, None where that is
    not known (a course model). metrics: the lines of metrics.jsonl. fingerprint: SHA-256 of weights and tokenizer.
    """

    def __init__(
        self, network: LanguageModel, tokenizer: Tokenizer, run: Run | None = None, capture: Capture | None = None
    ) -> None:
        self.network, self.tokenizer, self.run, self._capture = network.eval(), tokenizer, run, capture
        self._engine: Engine | None = None
        self._weights: list[tuple[int, int]] = []  # those that the engine has

    @property
    def path(self) -> Path | None:
        """The run directory."""
        return self.run.path if self.run else None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.network.parameters()).device

    @property
    def recipe(self) -> Recipe | None:
        """What it was trained with."""
        return self.run.recipe if self.run else None

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """What was written down while it trained: one object per report (`train`) or validation (`valid`)."""
        return self.run.metrics() if self.run else []

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the weights and the tokenizer: whose a state is."""
        digest = hashlib.sha256(self.tokenizer.fingerprint.encode())
        for name, tensor in self.network.state_dict().items():
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def __repr__(self) -> str:
        count = sum(parameter.numel() for parameter in self.network.parameters())
        return f"<rhapsode.Model {self.path or ''}: {self.network.config.kind}, {count:,} parameters, {self.device}>"

    def _decoding(self) -> Engine:
        """An engine with the weights that the network has now."""
        weights = [(parameter.data_ptr(), parameter._version) for parameter in self.network.parameters()]
        if self._engine is None or weights != self._weights:
            self._engine, self._weights = Engine(self.network, self.tokenizer, capture=self._capture), weights
        return self._engine

    # -- writing -------------------------------------------------------------------------------------------------

    def generate(
        self,
        prompt: str = "",
        *,
        n: int = 1,
        max_tokens: int = 256,
        temperature: float = 0.8,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        stop: Sequence[str] | str = (),
        seed: int = 0,
        state: State | None = None,
    ) -> list[Completion]:
        """Continues a prompt n times, side by side; sample i draws with seed + i, whatever the others are.

        temperature 0 always takes the likeliest token. top_k, top_p and min_p leave out unlikely tokens; 0, 1.0 and 0.0
        keep all. repetition_penalty above 1 makes tokens that are there already less likely. stop: texts at which
        writing ends; they are left out. state: what stands before the prompt, from `read`, `Completion.state` or
        `State.load`; the prompt then continues it as it is, nothing is put before it.
        Raises ValueError for a value that cannot be, and for a state of another model.
        """
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        config = SampleConfig(max_tokens, temperature, top_k, top_p, min_p, repetition_penalty, stops, seed)
        before = self._usable(state)
        tokens = write(self._decoding(), self._checked(prompt), config, n, before)  # n is right from here on
        texts, ids = [""] * n, [[] for _ in range(n)]  # type: list[str], list[list[int]]
        log_probabilities: list[list[float]] = [[] for _ in range(n)]
        reasons = ["length"] * n  # where there is no token at all
        for sample, token in tokens:
            texts[sample] += token.text
            ids[sample].append(token.id)
            log_probabilities[sample].append(token.log_probability)
            reasons[sample] = FINISH_REASONS.get(token.ended or "", "")
        return [
            Completion(prompt, *parts, *self._reader(prompt, parts[1], before))
            for parts in zip(texts, ids, log_probabilities, reasons, strict=True)
        ]

    def stream(
        self,
        prompt: str = "",
        *,
        max_tokens: int = 256,
        temperature: float = 0.8,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        stop: Sequence[str] | str = (),
        seed: int = 0,
        state: State | None = None,
    ) -> Iterator[str]:
        """As `generate` with n = 1, in pieces of text as they become certain; joined, they are its text."""
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        config = SampleConfig(max_tokens, temperature, top_k, top_p, min_p, repetition_penalty, stops, seed)
        prompt, before = self._checked(prompt), self._usable(state)
        return (token.text for _, token in write(self._decoding(), prompt, config, 1, before) if token.text)

    @staticmethod
    def _checked(text: str) -> str:
        if not isinstance(text, str):
            raise ValueError(f"a text must be a str, got {type(text).__name__}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"the text is not valid Unicode: half of a surrogate pair at {error.start}") from None
        return text

    def _usable(self, state: State | None) -> State | None:
        """The state; ValueError where it is another model's or nothing was read to it."""
        if state is None:
            return None
        if state.fingerprint != self.fingerprint:
            raise ValueError("this state belongs to another model; read the text with this one: model.read(text)")
        if state.ids is None or state.logits is None or len(state.ids) != 1:
            raise ValueError(
                "a state to continue from must hold exactly one text: take it from model.read or Completion.state"
            )
        return state

    def _own(self, state: State) -> State:
        """A state of the engine as this model's, beside its weights."""
        return replace(state.apply(lambda tensor: tensor.to(self.device)), fingerprint=self.fingerprint)

    def _reader(
        self, prompt: str, ids: list[int], before: State | None
    ) -> tuple[Callable[[], State], Callable[[int], list[list[NextToken]]]]:
        """What makes a completion's state, and the likeliest tokens in each of its places, when they are wanted."""

        def given() -> list[int]:
            return prompt_ids(self.tokenizer, prompt, before)

        def state() -> State:
            return self._own(read_ids(self._decoding(), [*given(), *ids], before))

        def top(k: int) -> list[list[NextToken]]:
            read = given()
            scores = score_ids(self._decoding(), [[*read, *ids]], before, top=k)[0][len(read) :]
            return [self._next(score.top) for score in scores]

        return state, top

    def _next(self, alternatives: Sequence[Alternative]) -> list[NextToken]:
        return [NextToken(id, self._piece(id), value) for id, value in alternatives]

    def _piece(self, id: int) -> str:
        """How tables show a token; an id that the vocabulary skips by its number."""
        try:
            return self.tokenizer.token_text(id)
        except ValueError:
            return f"<{id}>"

    # -- reading -------------------------------------------------------------------------------------------------

    def read(self, text: str = "", state: State | None = None) -> State:
        """The memory after a text, to continue from as often as one likes; state: what stands before the text."""
        return self._own(read_text(self._decoding(), self._checked(text), self._usable(state)))

    def next_tokens(self, text: str = "", k: int = 5, state: State | None = None) -> list[NextToken]:
        """The k likeliest next tokens after a text, the likeliest first; ValueError where k is below 1."""
        check_count(k)
        before = self._usable(state)
        ids = prompt_ids(self.tokenizer, self._checked(text), before)
        (scores,) = score_ids(self._decoding(), [[*ids, self.tokenizer.eos_id]], before, top=k)  # the last may be any
        return self._next(scores[-1].top)

    def score(self, texts: str | Sequence[str], *, per_token: bool = False, end: bool = True) -> Scores:
        """How well the model expects texts, each from a fresh state and with all of its own beginning in sight.

        `rhapsode evaluate` sees a little less of texts beyond 1,024 tokens, and sums in another order: equal otherwise.
        per_token: keep each token's log-probability. end: whether the end of the text is scored as a token after it.
        Raises ValueError where there is no text, or nothing in one to score.
        """
        texts = [self._checked(text) for text in ([texts] if isinstance(texts, str) else texts)]
        if not texts:
            raise ValueError("there is no text to score")
        spelled = self.tokenizer.encode_batch(texts)
        after = [self.tokenizer.eos_id] if end else []
        ids = [[*each.tolist(), *after] for each in spelled]
        for text, sequence in zip(texts, ids, strict=True):
            if not sequence:
                raise ValueError(f"nothing to score in the text {text!r}")
        found = score_ids(self._decoding(), [[self.tokenizer.eos_id, *each] for each in ids])
        log_probabilities = [
            [score.log_probability for score in each if score.log_probability is not None] for each in found
        ]
        lost = self.tokenizer.corrections(texts, spelled)
        return Scores(
            [
                TextScore(
                    -math.fsum(scores),
                    len(sequence),
                    len(text.encode()),
                    loss.num_bytes,
                    loss.bits + 1 if loss.bits else 0,
                    scores if per_token else None,
                )
                for text, sequence, scores, loss in zip(texts, ids, log_probabilities, lost, strict=True)
            ]
        )

    def attention(self, text: str) -> AttentionMap:
        """Where the model looks while it reads a text: every head of every part that attends."""
        reading = look(self.network, self.tokenizer, self._checked(text), 1)
        return AttentionMap(reading.tokens, {name: heads.numpy() for name, heads in reading.attention.items()})

    def copies(self, text: str) -> CopyMap:
        """What the model copied while it read a text, and from where.

        Raises ValueError for an empty text, and where the model has no copy head (`copy_dim` is 0).
        """
        return copy_map(self.network, self.tokenizer, self._checked(text))


FINISH_REASONS = {"end of text": "stop", "stop": "stop", "length": "length"}
