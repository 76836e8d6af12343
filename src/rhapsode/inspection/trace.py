"""A text as a model read it, kept so that any place of it can be looked at: what was seen, felt and expected there."""

from dataclasses import dataclass

import torch
from torch import Tensor

from rhapsode.kernels.attention import attention_weights
from rhapsode.model import RNN, LanguageModel, SelfAttention

PLACES_AT_ONCE = 512  # that get logits


@dataclass(frozen=True, eq=False)
class Trace:
    """What a model did with T tokens, the begin token first.

    model: that read them. ids: (T,). features: (T, width), what the head reads. hidden: of each recurrent part the
    states (T, H). looks: of each attending part the queries and keys (N, T, key_dim).
    """

    model: LanguageModel
    ids: tuple[int, ...]
    features: Tensor
    hidden: dict[str, Tensor]
    looks: dict[str, tuple[Tensor, Tensor]]

    @torch.inference_mode()
    def expected(self, place: int) -> Tensor:
        """The log-probabilities (V,), float64, of what comes after the tokens up to `place`, this one included."""
        return self.model.logits(self.features[place]).double().log_softmax(-1).cpu()

    @torch.inference_mode()
    def log_probabilities(self) -> list[float]:
        """Of each token but the first, after those before it, in nats: T - 1 of them."""
        found: list[float] = []
        for begin in range(0, len(self.ids) - 1, PLACES_AT_ONCE):
            came = torch.tensor(self.ids[begin + 1 : begin + 1 + PLACES_AT_ONCE], device=self.features.device)
            logits = self.model.logits(self.features[begin : begin + len(came)])
            found += logits.double().log_softmax(-1).gather(1, came[:, None])[:, 0].tolist()
        return found

    @torch.inference_mode()
    def attention(self, place: int) -> dict[str, Tensor]:
        """How much of its look the token at `place` gave to each token up to it: by part, (N, place + 1)."""
        return {
            name: attention_weights(q[:, place : place + 1], k[:, : place + 1])[:, 0].cpu()
            for name, (q, k) in self.looks.items()
        }


@torch.inference_mode()
def trace(model: LanguageModel, ids: list[int]) -> Trace:
    """Reads tokens, the begin token first, from a fresh state. The model must not be used by another thread meanwhile."""
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
        features, _ = model.features(torch.tensor([ids], device=next(model.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    return Trace(model, tuple(ids), features[0], hidden, looks)
