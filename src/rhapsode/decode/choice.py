"""How the next token is chosen by its logits: the plain form of what the C kernel does for many texts at once."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rhapsode.decode.config import SampleConfig
from rhapsode.decode.filters import keep_min_p, keep_top_k, keep_top_p, penalise_repetition

SPOILT = "the model's logits are not finite numbers, so its training failed"


class Scored(NamedTuple):
    """What is known of some tokens: ids, -1 where the logits were no numbers; natural log-probabilities; of the most
    likely tokens in their places (ids, log-probabilities), empty where none were wanted."""

    ids: list[int]
    log_probabilities: list[float]
    likeliest: list[tuple[list[int], list[float]]]


class Chooser:
    """Chooses the tokens of one text.

    Number n that it draws is number n of NumPy's Philox generator with the seed as its key (Salmon et al. 2011): where
    a text was drawn alone or among others, on which backend, and what was drawn before, is nothing to it.
    """

    def __init__(self, config: SampleConfig, vocab_size: int, seen: Tensor) -> None:
        """seen: the ids (n,) in the text that a repetition penalty counts."""
        self.config = config
        self.random = np.random.Generator(np.random.Philox(key=config.seed))
        self.seen = torch.zeros(vocab_size, dtype=torch.bool)
        self.seen[seen] = True
        self.written = torch.zeros(vocab_size, dtype=torch.float64)
        self.bias = torch.zeros(vocab_size, dtype=torch.float64)
        for id, bias in config.logit_bias.items():
            self.bias[id] = bias

    def probabilities(self, logits: Tensor) -> Tensor:
        """What is drawn from, (V,) in float64; at temperature 0 all of it is on the likeliest token."""
        config, logits = self.config, logits.double().cpu() + self.bias
        if config.repetition_penalty != 1:
            logits = penalise_repetition(logits, self.seen.nonzero()[:, 0], config.repetition_penalty)
        written = config.frequency_penalty * self.written + config.presence_penalty * (self.written > 0)
        logits = logits - written
        if config.temperature == 0:
            return torch.zeros_like(logits).index_fill_(0, logits.argmax(), 1.0)
        # Less the largest, which changes no probability: divided by a tiny temperature it stays a number.
        logits = keep_top_k((logits - logits.max()) / config.temperature, config.top_k)
        return keep_min_p(keep_top_p(logits, config.top_p), config.min_p).softmax(0)

    def take(self, logits: Tensor) -> int:
        """The next token after logits (V,): the first whose probability, with those before it, passes a drawn number.

        Raises FloatingPointError for logits that are not numbers: the model that made them is spoilt.
        """
        if not logits.isfinite().all():
            raise FloatingPointError(SPOILT)
        probabilities = self.probabilities(logits)
        passed = 0.0 if self.config.temperature == 0 else self.random.random()
        reached = probabilities.cumsum(0)
        id = int(torch.searchsorted(reached, passed * float(reached[-1]), right=True))
        id = min(id, int(probabilities.nonzero()[-1]))  # rounding may leave nothing that passes
        self.seen[id] = True
        self.written[id] += 1
        return id


def score_tokens(ids: list[int], logits: Tensor, alternatives: int) -> Scored:
    """What logits (n, V) say of n tokens."""
    spoilt = ~logits.isfinite().all(-1)
    log_probabilities = logits.double().log_softmax(-1).cpu()
    values = log_probabilities.gather(1, torch.tensor(ids)[:, None])[:, 0].tolist()
    found = [-1 if is_spoilt else id for id, is_spoilt in zip(ids, spoilt.tolist(), strict=True)]
    # Of equal ones the first: a stable sort, where topk takes any.
    order = log_probabilities.sort(dim=-1, descending=True, stable=True) if alternatives else None
    if order is None:
        return Scored(found, values, [])
    some = order.indices[:, :alternatives].tolist(), order.values[:, :alternatives].tolist()
    return Scored(found, values, list(zip(*some, strict=True)))
