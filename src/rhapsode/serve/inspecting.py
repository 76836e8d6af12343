"""/api/inspect: what a model did with a text at any place, and what it should have thought where that is known."""

import asyncio
import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor

from rhapsode import storyworld
from rhapsode.inspection.trace import Trace, trace
from rhapsode.serve.driver import Driver
from rhapsode.serve.failures import Refusal
from rhapsode.serve.models import LoadedModel, ServedModels, ServedRun
from rhapsode.serve.schemas import InspectQuestion
from rhapsode.serve.wanted import checked_ids, encoded
from rhapsode.storyworld import TokenDistributions
from rhapsode.tokenizer import Tokenizer

MOST_TOKENS_INSPECTED = 2_048
MOST_POSITIONS = 64
MOST_NEXT = 200_000  # tokens that may come next, of all positions together: 80 MB until they are told
TEXTS_KEPT = 8  # with what was found out about them
MOST_TRUE_NEXT = 20


@dataclass(eq=False)
class InspectedText:
    """A text and what is known of it so far. texts: what each token adds to it; joined, they are the text."""

    tokenizer: Tokenizer
    ids: Sequence[int]
    trace: Trace
    split: str | None
    texts: list[str] = field(init=False)

    def __post_init__(self) -> None:
        stream = self.tokenizer.stream()
        self.texts = [stream.push(id) for id in self.ids]
        if rest := stream.flush():
            self.texts[-1] += rest

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @cached_property
    def log_probabilities(self) -> list[float]:
        """Of each token, in nats."""
        return self.trace.log_probabilities()

    @cached_property
    def truth(self) -> TokenDistributions | None:
        """The corpus's own distribution at each place; None where it is not known."""
        if self.split is None:
            return None
        try:
            return storyworld.next_tokens_along(self.ids, self.tokenizer, self.split)
        except ValueError:  # a tokenizer whose tokens may span two words
            return None

    @cached_property
    def references(self) -> tuple[storyworld.Reference, ...]:
        """The labelled references in the text, as far as it is a story."""
        return () if self.split is None else storyworld.beginning_labels(self.text, self.split)


class Inspector:
    """Answers /api/inspect; keeps the last texts, so that a further look at one of them costs next to nothing."""

    def __init__(self, driver: Driver, models: ServedModels) -> None:
        self.driver, self.models = driver, models
        self._kept: OrderedDict[tuple[LoadedModel, tuple[int, ...]], InspectedText] = OrderedDict()

    async def inspect(self, asked: InspectQuestion, served: ServedRun, loaded: LoadedModel) -> dict[str, Any]:
        """The body of the answer; raises Refusal for what cannot be looked at."""
        ids = inspected_ids(asked, loaded.model.tokenizer)
        split = served.storyworld_split if asked.truth is not False else None
        found = await self._read(loaded, ids, split)
        about, positions, expected = await self.driver.call(lambda: of_the_model(found, asked))
        if found.split is not None:  # tens of milliseconds without the model: beside the engine's thread
            await asyncio.to_thread(lambda: (found.truth, found.references))
            add_truth(found, about, positions, expected)
        return {"model": served.name, **about, "positions": positions}

    async def _read(self, loaded: LoadedModel, ids: list[int], split: str | None) -> InspectedText:
        key = loaded, tuple(ids)
        found = self._kept.pop(key, None)
        if found is None or found.split != split:
            tokenizer = loaded.model.tokenizer
            read = await self.driver.call(lambda: trace(loaded.model.network, [tokenizer.eos_id, *ids]))
            found = InspectedText(tokenizer, ids, read, split)
        current = [run.loaded for run in self.models.runs.values()]
        for other in [each for each in self._kept if each[0] not in current]:  # their memory may be wanted
            del self._kept[other]
        self._kept[key] = found
        while len(self._kept) > TEXTS_KEPT:
            self._kept.popitem(last=False)
        return found


def inspected_ids(asked: InspectQuestion, tokenizer: Tokenizer) -> list[int]:
    """The tokens to look at; raises Refusal where there are too many, or it is not said which."""
    if (asked.text is None) == (asked.tokens is None):
        raise Refusal(400, "give the text or its tokens, one of the two", "text")
    if asked.text is not None:
        ids = encoded(asked.text, tokenizer, MOST_TOKENS_INSPECTED, "text")
    else:
        ids = list(checked_ids(asked.tokens or [], tokenizer.vocab_size, "tokens"))
    if len(ids) > MOST_TOKENS_INSPECTED:
        message = f"the text has {len(ids):,} tokens, the most that are looked at are {MOST_TOKENS_INSPECTED:,}"
        raise Refusal(400, message, "text" if asked.tokens is None else "tokens", "context_length_exceeded")
    if len(asked.positions) > MOST_POSITIONS:
        raise Refusal(400, f"at most {MOST_POSITIONS} positions at once, got {len(asked.positions)}", "positions")
    count = len(asked.positions) * min(asked.top or tokenizer.vocab_size, tokenizer.vocab_size)
    if count > MOST_NEXT:
        message = f"positions times top are {count:,} tokens, the most that are told at once are {MOST_NEXT:,}"
        raise Refusal(400, message, "top")
    wrong = next((position for position in asked.positions if position > len(ids)), None)
    if wrong is not None:
        raise Refusal(400, f"positions go from 0 to {len(ids):,}, the number of tokens, got {wrong}", "positions")
    return ids


def of_the_model(
    found: InspectedText, asked: InspectQuestion
) -> tuple[dict[str, Any], list[dict[str, Any]], list[Tensor]]:
    """What is told of the text and of each position, and the log-probabilities of all tokens at those."""
    about = {
        "tokens": [
            {"id": id, "text": text, "piece": piece_of(found.tokenizer, id)}
            for id, text in zip(found.ids, found.texts, strict=True)
        ],
        "log_probabilities": found.log_probabilities,
        "truth_log_probabilities": None,
        "departure": None,
        "references": [],
    }
    expected = [found.trace.expected(position) for position in asked.positions]
    positions = [
        position_of(found, position, thought, asked.top)
        for position, thought in zip(asked.positions, expected, strict=True)
    ]
    return about, positions, expected


def position_of(found: InspectedText, position: int, expected: Tensor, top: int) -> dict[str, Any]:
    """What the model saw, felt and expected before it got token number `position`."""
    likeliest = expected.topk(min(top or len(expected), len(expected)))
    copy = found.trace.copy(position)
    pairs = zip(likeliest.indices.tolist(), likeliest.values.exp().tolist(), strict=True)
    return {
        "position": position,
        "next": [next_token(found.tokenizer, id, probability) for id, probability in pairs],
        "attention": [
            {"part": part, "head": head, "weights": weights}
            for part, heads in found.trace.attention(position).items()
            for head, weights in enumerate(heads.tolist())
        ],
        "copy": copy and {"gate": copy.gate, "probability": copy.probability, "weights": copy.weights.tolist()},
        "hidden": [states[position].tolist() for states in found.trace.hidden.values()],
        "truth": None,
    }


def next_token(tokenizer: Tokenizer, id: int, probability: float) -> dict[str, Any]:
    """A token that may come next, for a table."""
    return {"id": id, "piece": piece_of(tokenizer, id), "text": tokenizer.decode([id]), "probability": probability}


def piece_of(tokenizer: Tokenizer, id: int) -> str:
    """How a table shows a token; an id that the vocabulary skips by its number."""
    return tokenizer.token_text(id) if id in tokenizer.names else f"<{id}>"


def add_truth(
    found: InspectedText, about: dict[str, Any], positions: list[dict[str, Any]], expected: Sequence[Tensor]
) -> None:
    """Adds what the corpus itself says to what the model did."""
    about["references"] = [reference_of(found, reference) for reference in found.references]
    truth = found.truth
    if truth is None:
        return
    known = [value if math.isfinite(value) else None for value in truth.log_probabilities.tolist()]
    about["truth_log_probabilities"] = known + [None] * (len(found.ids) - len(known))
    about["departure"] = truth.departure
    for position, thought in zip(positions, expected, strict=True):
        place = position["position"]
        if place >= len(truth.rows):
            continue
        row = truth.rows[place]
        pairs = zip(row.ids[:MOST_TRUE_NEXT].tolist(), row.probabilities[:MOST_TRUE_NEXT].tolist(), strict=True)
        divergence = float((row.probabilities * (np.log(row.probabilities) - thought.numpy()[row.ids])).sum())
        position["truth"] = {
            "next": [next_token(found.tokenizer, id, probability) for id, probability in pairs],
            "excess_bits": divergence / math.log(2),
        }


def reference_of(found: InspectedText, reference: storyworld.Reference) -> dict[str, Any]:
    """A reference with its antecedent, and how probable the model found the tokens that spell it."""
    begin, nats = 0, 0.0
    for text, log_probability in zip(found.texts, found.log_probabilities, strict=True):
        end = begin + len(text)
        if begin < reference.end and end > reference.start:
            nats += log_probability
        begin = end
    return {
        "kind": reference.kind,
        "start": reference.start,
        "end": reference.end,
        "right": reference.right,
        "wrong": list(reference.wrong),
        "antecedent": list(reference.antecedent),
        "introduced": list(reference.introduced),
        "distance": reference.distance,
        "probability": math.exp(nats),
    }
