"""The engine under random traffic: to the bit what each request gets alone; and its queue, limits, states, counters."""

import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from rhapsode.decode import (
    Engine,
    Failed,
    GenerationRequest,
    Happening,
    PromptRead,
    SampleConfig,
    Written,
    prompt_ids,
    read_ids,
    samples,
    score_ids,
)
from rhapsode.decode.kernel import PAGE, usable_kernel
from rhapsode.model import LanguageModel, ModelConfig, build_model
from rhapsode.state import State
from rhapsode.tokenizer import Tokenizer, train_tokenizer

TEXT = "once upon a time there was a dog. the dog was 🎉 happy and it ran to the cat by the sea."
STACKED: dict[str, Any] = {"kind": "stacked", "embed_dim": 13, "hidden_dim": 19, "key_dim": 5, "value_dim": 7}
MODELS: dict[str, dict[str, Any]] = {
    "plain": {"embed_dim": 12, "hidden_dim": 14, "key_dim": 6, "value_dim": 10},
    "plain, maps in a row": {"embed_dim": 5, "hidden_dim": 6, "key_dim": 9, "value_dim": 17, "activation": "tanh"},
    "all attend": {**STACKED, "num_layers": 2, "num_heads": 3, "pair_embeddings": 60, "feed_forward": 2},
    "last attends": {**STACKED, "num_layers": 2, "attention": "last", "gate": True, "tie_embeddings": True},
    "none attends": {**STACKED, "attention": "none", "activation": "tanh", "pair_embeddings": 50},
    "copies": {**STACKED, "num_layers": 2, "num_heads": 2, "copy_dim": 9, "cell": "gated", "gate": True},
    "copies alone": {**STACKED, "attention": "none", "copy_dim": 4, "pair_embeddings": 60},
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([TEXT] * 3, "bpe", 300)


def network(tokenizer: Tokenizer, name: str) -> LanguageModel:
    """Random weights that make lively texts."""
    made = build_model(ModelConfig(tokenizer.vocab_size, **MODELS[name]), seed=1)
    noise = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for key, p in made.named_parameters():
            p.add_(torch.randn(p.shape, generator=noise) * (0.05 if "h2h" in key else 0.3))
    return made.eval()


@pytest.fixture(params=["kernel", "modules"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "kernel" and usable_kernel() is None:
        pytest.skip("there is no compiler")
    if request.param == "modules":
        monkeypatch.setattr("rhapsode.decode.engine.usable_kernel", lambda: None)
    return request.param


def run(engine: Engine, requests: list[GenerationRequest]) -> list[list[Happening]]:
    """What each of them gets, all submitted at once; tickets as if each were the first."""
    tickets = [engine.submit(request) for request in requests]
    found: dict[int, list[Happening]] = {ticket: [] for ticket in tickets}
    while engine.busy:
        for event in engine.step():
            found[event.ticket].append(event._replace(ticket=0))
    return [found[ticket] for ticket in tickets]


def without_cached(events: list[Happening]) -> list[Happening]:
    return [event._replace(cached=0) if isinstance(event, PromptRead) else event for event in events]


def random_config(dice: random.Random, vocab_size: int) -> SampleConfig:
    def sometimes(value: Any, otherwise: Any) -> Any:
        return value if dice.random() < 0.3 else otherwise

    return SampleConfig(
        max_tokens=sometimes(0, dice.randint(1, 50)),
        temperature=dice.choice([0.0, 0.7, 1.0, 1.5]),
        top_k=sometimes(dice.randint(1, 20), 0),
        top_p=sometimes(0.9, 1.0),
        min_p=sometimes(0.05, 0.0),
        repetition_penalty=sometimes(1.3, 1.0),
        stop=sometimes(("a", "the d"), ()),
        seed=dice.randrange(2**64 - 9),
        frequency_penalty=sometimes(0.5, 0.0),
        presence_penalty=sometimes(-0.3, 0.0),
        logit_bias=sometimes({dice.randrange(vocab_size): 4.0, 1: -100.0}, {}),
    )


def random_requests(dice: random.Random, engine: Engine) -> list[GenerationRequest]:
    """Prompts with common beginnings, of all lengths about pages; texts that go on from states; several samples."""
    vocab_size, eos_id = engine.config.vocab_size, engine.tokenizer.eos_id
    stem = [eos_id, *(dice.randrange(vocab_size) for _ in range(3 * PAGE))]
    states = [read_ids(engine, stem[:n]) for n in (1, 7, PAGE, PAGE + 3)]
    requests: list[GenerationRequest] = []
    while len(requests) < 22:
        ids = stem[: dice.choice([1, 5, PAGE, PAGE + 1, PAGE + 2, 2 * PAGE + 1, 3 * PAGE])]
        ids = ids + [dice.randrange(vocab_size) for _ in range(dice.choice([0, 0, 1, 4]))]
        state = dice.choice(states) if dice.random() < 0.25 else None
        if state is not None:
            ids = ids[1 : dice.choice([1, 2, 5, len(ids)])]
        request = GenerationRequest(
            ids,
            random_config(dice, vocab_size),
            state,
            top=dice.choice([0, 0, 1, 4]),
            score_prompt=dice.random() < 0.3,
            keep_state=dice.random() < 0.5,
        )
        requests += samples(request, dice.choice([1, 1, 3]))
    dice.shuffle(requests)
    return requests


def bits(state: State) -> dict[str, list[Any]]:
    """The numbers of a state, which are equal only where all bits are."""
    return {name: tensor.tolist() for name, tensor in state.tensors().items()}


@pytest.mark.parametrize("name", MODELS)
def test_what_a_request_gets_depends_on_nothing_else(backend: str, tokenizer: Tokenizer, name: str) -> None:
    """Random traffic: requests come at any time, wait, are cancelled, share beginnings, go on from states.

    Would catch a product whose sums depend on the number of rows, a row's memory that another one has written to, a prefix
    of another text, a generator that two share, a prompt that is read in other pieces, a state that lacks something.
    """
    dice = random.Random(name)
    engine = Engine(network(tokenizer, name), tokenizer, max_rows=1, prefix_bytes=0)
    assert engine.backend == backend
    requests = random_requests(dice, engine)
    alone, states = [], []
    for request in requests:
        one = engine.another()
        (events,) = run(one, [request])
        alone.append(events)
        states.append(bits(one.state(0)) if request.keep_state else None)

    for max_rows, prefix_bytes in ((7, 1 << 20), (30, 12_000), (3, 0)):
        busy = Engine(network(tokenizer, name), tokenizer, max_rows=max_rows, prefix_bytes=prefix_bytes)
        waiting = list(enumerate(requests)) if max_rows == 7 else [(i, requests[i]) for i in dice.sample(range(20), 12)]
        numbers: dict[int, int] = {}
        found: dict[int, list[Happening]] = {}
        cancelled = set()
        while waiting or busy.busy:
            while waiting and dice.random() < 0.5:
                number, request = waiting.pop()
                ticket = busy.submit(request)
                numbers[ticket], found[ticket] = number, []
            for event in busy.step():
                assert event.ticket not in cancelled
                found[event.ticket].append(event._replace(ticket=0))
            if numbers and dice.random() < 0.05:
                ticket = dice.choice(list(numbers))
                busy.cancel(ticket)
                cancelled.add(ticket)
        for ticket, number in numbers.items():
            events, expected = without_cached(found[ticket]), alone[number]
            if ticket in cancelled:
                assert events == expected[: len(events)]
            else:
                assert events == expected, requests[number]
                if requests[number].keep_state:
                    assert bits(busy.state(ticket)) == states[number]
        assert busy.counters.prefix_bytes <= prefix_bytes
        assert (busy.counters.prefix_hits > 0) == (max_rows == 7) or prefix_bytes
