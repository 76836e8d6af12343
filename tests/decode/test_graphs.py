"""Decoding as on a GPU: rows of fixed size, a captured step for each size of batch; the texts of the other backends."""

from collections.abc import Callable
from typing import Any

import pytest
import replayed
import torch
from test_engine import MODELS, TEXT, network

from rhapsode.decode import Engine, GenerationRequest, PromptRead, SampleConfig, Written, graphs, read_ids, score_ids
from rhapsode.kernels import form
from rhapsode.machine import Capture, eager
from rhapsode.tokenizer import Tokenizer, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([TEXT] * 3, "bpe", 300)


def answers(engine: Engine, requests: list[tuple[int, GenerationRequest]]) -> dict[int, list[Any]]:
    """What each request gets, in its order; each is submitted at its step."""
    found: dict[int, list[Any]] = {number: [] for number in range(len(requests))}
    tickets: dict[int, int] = {}
    step, waiting = 0, dict(enumerate(requests))
    while waiting or engine.busy:
        for number, (when, request) in list(waiting.items()):
            if when <= step:
                tickets[engine.submit(request)] = number
                del waiting[number]
        for event in engine.step():
            if isinstance(event, Written):
                found[tickets[event.ticket]].append((event.id, event.log_probability, event.ended))
            elif isinstance(event, PromptRead):
                found[tickets[event.ticket]] += [(score.id, score.log_probability, None) for score in event.scores]
        step += 1
    return found


def traffic() -> list[tuple[int, GenerationRequest]]:
    random = torch.Generator().manual_seed(0)
    made = []
    for number, (when, length, count) in enumerate(
        [(0, 3, 9), (0, 0, 20), (2, 1, 4), (3, 17, 30), (12, 45, 6), (13, 0, 9)]
    ):
        ids = torch.randint(3, 250, (length,), generator=random).tolist()
        config = SampleConfig(count, temperature=0.0 if number % 2 else 0.7, seed=number, top_k=0 if number < 4 else 20)
        made.append((when, GenerationRequest([1, *ids], config, score_prompt=number == 3)))
    return made


@pytest.mark.parametrize("capture", [eager, replayed.capture], ids=["eager", "replayed"])
@pytest.mark.parametrize("name", MODELS)
def test_rows_write_what_modules_write(
    tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    capture: Capture,
) -> None:
    """Would catch a row that reads its neighbour's memory or places nobody wrote, a length baked into a capture, a text
    that is lost where the batch grows, shrinks, or gets more room."""
    monkeypatch.setattr(graphs, "FEWEST_PLACES", 8)
    monkeypatch.setattr("rhapsode.decode.engine.usable_kernel", lambda: None)
    model = network(tokenizer, name)
    expected = answers(Engine(model, tokenizer, max_rows=3), traffic())
    engine = Engine(model, tokenizer, max_rows=3, capture=capture)
    found = answers(engine, traffic())
    assert engine.backend == "graph"
    for number, wanted in expected.items():
        assert [each[0] for each in found[number]] == [each[0] for each in wanted], number
        assert [each[2] for each in found[number]] == [each[2] for each in wanted]
        got, logs = ([each[1] or 0.0 for each in part] for part in (found[number], wanted))
        assert got == pytest.approx(logs, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_no_number_of_the_host_is_in_a_step(tokenizer: Tokenizer, name: str) -> None:
    """Would catch what a CPU hides and a GPU cannot capture: a tensor made of a Python number, one that is moved."""
    texts = graphs.GraphTexts(network(tokenizer, name).to("meta").eval(), 4, eager)
    with torch.inference_mode(), form("fast"):
        texts._make()
        with replayed.DeviceOnly("meta") as operations:
            texts._step(4)
    assert operations.count > 20


def test_a_long_prompt_is_one_block(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a prompt that a GPU reads page by page, as the CPU's kernel does, hundreds of launches each."""
    blocks: list[int] = []
    read = graphs.GraphTexts._read

    def counted(texts: graphs.GraphTexts, slot: int, ids: list[int]) -> torch.Tensor:
        blocks.append(len(ids))
        return read(texts, slot, ids)

    monkeypatch.setattr(graphs.GraphTexts, "_read", counted)
    engine = Engine(network(tokenizer, "all attend"), tokenizer, capture=eager)
    engine.submit(GenerationRequest([1, *[5] * 700], SampleConfig(2, 0.0)))
    while engine.busy:
        engine.step()
    assert blocks == [700]  # the last token is read by the first step


def test_states_leave_rows_and_come_back(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a state that is cut at the room of a row, or taken from the row of another text."""
    monkeypatch.setattr("rhapsode.decode.engine.usable_kernel", lambda: None)
    model = network(tokenizer, "copies")
    one, other = Engine(model, tokenizer), Engine(model, tokenizer, max_rows=2, capture=replayed.capture)
    states: list[list[Any]] = [[], []]
    for engine, kept in zip((one, other), states, strict=True):
        asked = [GenerationRequest([1, 5 + n], SampleConfig(7, 0.0), keep_state=True) for n in range(4)]
        tickets = [engine.submit(request) for request in asked]  # more than there are rows, all kept to the end
        while engine.busy:
            engine.step()
        kept += [engine.state(ticket) for ticket in tickets]
        kept.append(read_ids(engine, [9, 8], kept[2]))
    for wanted, found in zip(*states, strict=True):
        for key, tensor in wanted.tensors().items():
            torch.testing.assert_close(found.tensors()[key], tensor, rtol=1e-4, atol=1e-4)
    scores = [score_ids(engine, [[5, 6, 7]], states[0][0])[0] for engine in (one, other)]
    assert [each.log_probability for each in scores[1]] == pytest.approx(
        [each.log_probability for each in scores[0]], rel=1e-4
    )


def test_a_capture_that_fails_or_lies_is_told(tokenizer: Tokenizer) -> None:
    """Would catch texts written by a graph that is another step, and an engine that ends where none can be captured."""
    model = network(tokenizer, "all attend")
    expected = answers(Engine(model, tokenizer, capture=eager), traffic())

    def fails(function: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("not permitted")

    def lies(function: Callable[[], None]) -> Callable[[], None]:
        return lambda: None

    for capture, reason in ((fails, "is not captured: not permitted"), (lies, "is not captured: its logits differ")):
        with pytest.warns(RuntimeWarning, match=reason):
            found = answers(Engine(model, tokenizer, capture=capture), traffic())
        assert found == expected


def test_where_one_size_is_not_captured_none_is(tokenizer: Tokenizer) -> None:
    """Would catch a graph that is replayed after another one failed: its generator is not the one in use any more."""
    model = network(tokenizer, "all attend")
    alone_again = [
        (0 if n == 0 else 3, GenerationRequest([1], SampleConfig(20 if n == 0 else 3, seed=n))) for n in (0, 1)
    ]
    expected = answers(Engine(model, tokenizer, capture=eager), alone_again)
    second_fails = replayed.SecondFails()
    with pytest.warns(RuntimeWarning, match="is not captured: not this one"):
        found = answers(Engine(model, tokenizer, capture=second_fails), alone_again)
    assert found == expected
    assert second_fails.asked == 2
