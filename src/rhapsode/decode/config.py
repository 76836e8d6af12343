"""How text is drawn, as a value."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from rhapsode.seeds import check_seed

MOST_BIAS = 100.0  # of a logit; the largest that OpenAI's interface has
MOST_PENALTY = 2.0


@dataclass(frozen=True)
class SampleConfig:
    """How text is drawn.

    max_tokens 0 writes nothing. temperature 0 is greedy. top_k, top_p, min_p: 0, 1.0 and 0.0 leave all tokens in.
    repetition_penalty: above 1 makes tokens that are there already less likely. stop: texts at which writing ends, left
    out themselves. seed: sample i of a call is drawn with seed + i, whatever the others are. frequency_penalty,
    presence_penalty: taken off a token's logit for each time, and once, that it was written (not: in the prompt).
    logit_bias: id -> what is added to its logit, before anything else.
    """

    max_tokens: int = 256
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.max_tokens < 0:
            raise ValueError(f"max_tokens must be >= 0, got {self.max_tokens}")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be >= 0, got {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be >= 0 (0 for all), got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p must be in [0, 1], got {self.min_p}")
        if not 0 < self.repetition_penalty < math.inf:
            raise ValueError(f"repetition_penalty must be > 0, got {self.repetition_penalty}")
        for name in ("frequency_penalty", "presence_penalty"):
            if not abs(getattr(self, name)) <= MOST_PENALTY:
                raise ValueError(f"{name} must be from -2 to 2, got {getattr(self, name)}")
        for id, bias in self.logit_bias.items():
            if id < 0 or not abs(bias) <= MOST_BIAS:
                raise ValueError(f"logit_bias must give token ids numbers from -100 to 100, got {bias} for {id}")
        check_seed(self.seed)
        if "" in self.stop:
            raise ValueError("stop must not be an empty text")
