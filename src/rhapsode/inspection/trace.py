"""A text as a model read it, kept so that any place of it can be looked at: what was seen, felt and expected there."""

from dataclasses import dataclass

import torch
from torch import Tensor

from rhapsode.cells import RNN
from rhapsode.kernels.attention import attention_weights
from rhapsode.model import LanguageModel, SelfAttention
from rhapsode.state import CopyState

PLACES_AT_ONCE = 512  # that get logits


@dataclass(frozen=True, eq=False)
class CopyLook:
    """Where a copy head looked after some tokens, to copy one of them.

    gate: the probability that the next token is a copy; weights: (place + 1,), of which token; probability: that the
    token which came was copied and not chosen from the vocabulary, None where none came.
    """

    gate: float
    weights: Tensor
    probability: float | None


@dataclass(frozen=True, eq=False)
class Trace:
    """What a model did with T tokens, the begin token first.

    model: that read them. ids: (T,). features: (1, T, width), what the head reads. hidden: of each recurrent part the
    states (T, H). looks: of each attending part the queries and keys (N, T, key_dim). copies: what a copy head keeps.
    """

    model: LanguageModel
    ids: tuple[int, ...]
    features: Tensor
    hidden: dict[str, Tensor]
    looks: dict[str, tuple[Tensor, Tensor]]
    copies: CopyState | None

    @torch.inference_mode()
    def expected(self, place: int) -> Tensor:
        """The log-probabilities (V,), float64, of what comes after the tokens up to `place`, this one included."""
        return self._log_probabilities(place, place + 1)[0].cpu()

    @torch.inference_mode()
    def log_probabilities(self) -> list[float]:
        """Of each token but the first, after those before it, in nats: T - 1 of them."""
        found: list[float] = []
        for begin in range(0, len(self.ids) - 1, PLACES_AT_ONCE):
            end = min(begin + PLACES_AT_ONCE, len(self.ids) - 1)
            came = torch.tensor(self.ids[begin + 1 : end + 1], device=self.features.device)
            found += self._log_probabilities(begin, end).gather(1, came[:, None])[:, 0].tolist()
        return found

    def _log_probabilities(self, begin: int, end: int) -> Tensor:
        copies = self.copies and self.copies.until(end)
        return self.model.logits(self.features[:, begin:end], copies)[0].double().log_softmax(-1)

    @torch.inference_mode()
    def copy(self, place: int) -> CopyLook | None:
        """What the copy head did after the tokens up to `place`; None where the model has none."""
        head, copies = self.model.copy_head, self.copies
        if head is None or copies is None:
            return None
        x = self.features[:, place : place + 1]
        weights = head.places(x, copies.until(place + 1))[0, 0].cpu()
        gate, probability = float(head.gate(x).sigmoid()), None
        if place + 1 < len(self.ids):
            came = self.ids[place + 1]
            here = torch.tensor(self.ids[: place + 1]) == came
            copied = gate * float(weights[here].sum())
            probability = min(1.0, copied / float(self.expected(place)[came].exp())) if copied else 0.0
        return CopyLook(gate, weights, probability)

    @torch.inference_mode()
    def attention(self, place: int) -> dict[str, Tensor]:
        """How much of its look the token at `place` gave to each token up to it: by part, (N, place + 1)."""
        return {
            name: attention_weights(q[:, place : place + 1], k[:, : place + 1])[:, 0].cpu()
            for name, (q, k) in self.looks.items()
        }


@torch.inference_mode()
def trace(model: LanguageModel, ids: list[int]) -> Trace:
    """Reads tokens, the begin token first, from a fresh state; no other thread may use the model meanwhile."""
    hidden: dict[str, Tensor] = {}
    looks: dict[str, tuple[Tensor, Tensor]] = {}

    def keep_hidden(name: str):  # type: ignore[no-untyped-def]
        return lambda part, read, made: hidden.update({name: made[0][0]})

    def keep_look(name: str):  # type: ignore[no-untyped-def]
        def before_it_attends(part: SelfAttention, read: tuple[Tensor, ...]) -> None:
            q, k, _ = part.project(read[0])
            looks[name] = q[0], k[0]

        return before_it_attends

    hooks = []
    for name, part in model.named_modules():
        if isinstance(part, RNN):
            hooks.append(part.register_forward_hook(keep_hidden(name)))
        elif isinstance(part, SelfAttention):
            hooks.append(part.register_forward_pre_hook(keep_look(name)))
    try:
        features, state = model.features(torch.tensor([ids], device=next(model.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    return Trace(model, tuple(ids), features, hidden, looks, state.copies)
