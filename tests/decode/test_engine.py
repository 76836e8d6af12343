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
from rhapsode.decode.compiled import kernel_library
from rhapsode.decode.kernel import PAGE
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
    "attention alone": {**STACKED, "cell": "none"},
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
    if request.param == "kernel" and kernel_library() is None:
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
    other = [eos_id, *(dice.randrange(vocab_size) for _ in range(PAGE - 1)), *stem[PAGE:]]  # the same later on
    states = [read_ids(engine, stem[:n]) for n in (1, 7, PAGE, PAGE + 3)]
    requests: list[GenerationRequest] = []
    while len(requests) < 22:
        ids = dice.choice([stem, stem, other])[: dice.choice([1, 5, PAGE, PAGE + 1, PAGE + 2, 2 * PAGE + 1, 3 * PAGE])]
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


BACKENDS = [*(("kernel", name) for name in MODELS), ("modules", "plain"), ("modules", "copies")]


@pytest.mark.parametrize(("backend", "name"), BACKENDS, indirect=["backend"])
def test_what_a_request_gets_depends_on_nothing_else(backend: str, tokenizer: Tokenizer, name: str) -> None:
    """Random traffic: requests come at any time, wait, are cancelled, share beginnings, go on from states.

    Would catch a product whose sums depend on the number of rows, a row's memory that another one has written to, a
    prefix of another text, a generator that two share, a prompt that is read in other pieces, a state that lacks
    something.
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


@pytest.fixture(scope="module")
def engine(tokenizer: Tokenizer) -> Engine:
    return Engine(network(tokenizer, "copies"), tokenizer, max_rows=3)


def written(events: list[Happening]) -> list[Written]:
    return [event for event in events if isinstance(event, Written)]


def test_requests_wait_for_a_row_and_come_in_order(engine: Engine) -> None:
    """Would catch more rows than allowed, and a request that overtakes another."""
    busy = engine.another()
    ids = prompt_ids(engine.tokenizer, "the dog")
    for _ in range(5):
        busy.submit(GenerationRequest(ids, SampleConfig(max_tokens=4, logit_bias={1: -100.0})))
    assert (busy.waiting, busy.running) == (5, 0)
    first = []
    while busy.busy:
        events = busy.step()
        assert busy.running <= 3
        first += [event.ticket for event in events if isinstance(event, PromptRead)]
    assert first == [0, 1, 2, 3, 4]
    assert busy.counters.ended == {"length": 5}
    assert busy.counters.written_tokens == 20
    assert busy.step() == []


def test_a_text_ends_where_the_context_does(tokenizer: Tokenizer) -> None:
    """Would catch a cache that grows beyond what was promised, and a last token that is lost."""
    limited = Engine(network(tokenizer, "copies"), tokenizer, max_context=10)
    config = SampleConfig(max_tokens=50, logit_bias={1: -100.0})
    for length in (1, 9, 10):
        (events,) = run(limited.another(), [GenerationRequest([1] * length, config)])
        assert len(written(events)) == 10 - length + 1  # the last that is written is not read
        assert written(events)[-1].ended == "length"
    with pytest.raises(ValueError, match="the text has 11 tokens, the most that are read are 10"):
        limited.submit(GenerationRequest([1] * 11))
    assert not limited.busy


def test_a_cancelled_request_costs_nothing_more(engine: Engine) -> None:
    """Would catch a request that goes on after its client has left: waiting, reading, writing, or ended."""
    busy = engine.another()
    long = [1, *(i % 300 for i in range(5000))]
    config = SampleConfig(max_tokens=50, logit_bias={1: -100.0})
    requests = [GenerationRequest(ids, config) for ids in (long, [1, 5], [1, 6], [1, 7])]
    tickets = [busy.submit(request) for request in requests]
    events = busy.step()
    assert {event.ticket for event in events} == {1, 2}
    assert (busy.running, busy.waiting) == (3, 1)
    for ticket in tickets:
        busy.cancel(ticket)
    assert not busy.busy
    assert busy.step() == []
    ticket = busy.submit(replace(requests[1], keep_state=True, config=SampleConfig(max_tokens=1)))
    busy.step()
    busy.cancel(ticket)
    with pytest.raises(KeyError):
        busy.state(ticket)
    assert sum(busy.counters.ended.values()) == 1


def test_a_long_prompt_lets_the_others_go_on(engine: Engine) -> None:
    """Would catch a prompt that is read in one step while all who are being written to wait."""
    busy = engine.another()
    writer = busy.submit(GenerationRequest([1, 5], SampleConfig(max_tokens=100, logit_bias={1: -100.0})))
    busy.step()
    reader = busy.submit(GenerationRequest([1, *(i % 299 for i in range(2000))], SampleConfig(max_tokens=1)))
    seen = [{event.ticket for event in busy.step()} for _ in range(5)]
    assert seen[:3] == [{writer}] * 3
    assert {reader, writer} in seen


def test_what_was_written_is_scored_as_it_was_drawn(engine: Engine) -> None:
    """To the bit: a text's tokens one by one, and the same text read at once, as clients compare them."""
    config = SampleConfig(max_tokens=80, seed=3, logit_bias={1: -9.0})
    request = GenerationRequest(prompt_ids(engine.tokenizer, "the dog"), config, top=3)
    (events,) = run(engine.another(), [request])
    tokens = written(events)
    assert len(tokens) > PAGE
    ids = [*request.ids, *(token.id for token in tokens)]
    (scores,) = score_ids(engine, [ids], top=3)
    assert scores[0] == (1, None, ())
    assert [each.id for each in scores] == ids
    for token, score in zip(tokens, scores[len(request.ids) :], strict=True):
        assert (token.log_probability, token.top) == (score.log_probability, score.top)
    after = read_ids(engine, ids[:40])
    (rest,) = score_ids(engine, [ids[40:]], after, top=3)
    assert rest == scores[40:]


def test_prefixes_are_found_counted_and_bounded(tokenizer: Tokenizer) -> None:
    """Would catch a prompt that is read again, samples that each read it, and memory beyond the bound."""
    made = Engine(network(tokenizer, "copies"), tokenizer, prefix_bytes=1 << 20)
    ids = [1, *(i % 300 for i in range(3 * PAGE + 5))]
    requests = samples(GenerationRequest(ids, SampleConfig(max_tokens=1)), 3)
    cached = [next(event.cached for event in events if isinstance(event, PromptRead)) for events in run(made, requests)]
    assert sorted(cached) == [0, 3 * PAGE, 3 * PAGE]
    assert (made.counters.prefix_hits, made.counters.cached_tokens) == (2, 6 * PAGE)
    assert made.counters.prompt_tokens == 3 * len(ids)
    (events,) = run(made.another(), [replace(requests[0], ids=[*ids[: 2 * PAGE], 7, 8])])
    assert isinstance(events[0], PromptRead)
    assert events[0].cached == 2 * PAGE
    for bound in (0, 10, 100_000, 500_000):
        small = Engine(network(tokenizer, "copies"), tokenizer, prefix_bytes=bound)
        for i in range(6):
            run(small, [replace(requests[0], ids=[1, i, *ids])])
            assert small.counters.prefix_bytes <= bound
        assert bool(small.counters.prefix_bytes) == (bound >= 100_000)


def test_one_spoilt_text_harms_no_other(backend: str, tokenizer: Tokenizer) -> None:
    """A token whose embedding is no number: would catch an error that ends all, and numbers that leak to others."""
    model = network(tokenizer, "all attend")
    with torch.no_grad():
        model.embeddings.weight[7] = torch.nan
    made = Engine(model, tokenizer)
    config = SampleConfig(max_tokens=9, seed=4, logit_bias={7: -100.0})
    fine = GenerationRequest([1, 5, 6], config, top=2, score_prompt=True)
    (alone,) = run(made.another(), [fine])
    spoilt = [replace(fine, ids=[1, 7, 6]), replace(fine, ids=[1, 5, 7], score_prompt=False)]
    requests = [fine, *spoilt, fine]
    found = run(made, requests)
    assert found[0] == found[3] == alone
    for events in found[1:3]:
        assert isinstance(events[-1], Failed)
        assert isinstance(events[-1].error, FloatingPointError)
        assert not written(events)
    assert made.counters.ended == {"failed": 2, alone[-1].ended: 2}
    again = run(made, [fine])  # in the memory that the spoilt ones had
    assert without_cached(again[0]) == alone


def test_what_cannot_be_done_is_refused_at_once(engine: Engine) -> None:
    state = read_ids(engine, [1, 5])
    wrong = [
        (GenerationRequest([]), "there is nothing to read"),
        (GenerationRequest([1, 300]), "token ids must be from 0 to 299, got 300"),
        (GenerationRequest([1], SampleConfig(logit_bias={300: 1.0})), "token ids must be from 0 to 299, got 300"),
        (GenerationRequest([1], top=-1), "top must be >= 0, got -1"),
        (GenerationRequest([1], state=replace(state, logits=None)), "must hold exactly one text"),
        (GenerationRequest([1], state=State.join([state, state])), "must hold exactly one text"),
    ]
    for request, message in wrong:
        with pytest.raises(ValueError, match=message):
            engine.submit(request)
    assert not engine.busy


def test_nothing_stays_behind(tokenizer: Tokenizer) -> None:
    """Would catch pages, rows or states that a server would collect for days."""
    made = Engine(network(tokenizer, "copies"), tokenizer, max_rows=4, prefix_bytes=0)
    for _ in range(3):
        run(made, samples(GenerationRequest([1, *range(2, 60)], SampleConfig(max_tokens=40)), 9))
        assert not any(made._texts._pages)
        assert not any(made._texts._options)
        assert len(made._texts._pages) == 4
        assert not any((made._rows, made._ended, made._writing, made._reading))
