"""What is done with an engine from beginning to end: continue a prompt, read a text, score texts.

Each takes an engine and works with another one of the same weights and prefixes, so that it may be called at any time.
"""

from collections.abc import Callable, Iterator, Sequence

from rhapsode.decode.config import SampleConfig
from rhapsode.decode.engine import Engine
from rhapsode.decode.requests import Failed, GenerationRequest, PromptRead, TokenScore, Written, prompt_ids, samples
from rhapsode.state import State

DEFAULT = SampleConfig()
NOTHING = SampleConfig(max_tokens=0)


def write(
    engine: Engine, prompt: str, config: SampleConfig = DEFAULT, count: int = 1, state: State | None = None
) -> Iterator[tuple[int, Written]]:
    """Continues the prompt `count` times, as many at once as the engine has rows; yields the number of a sample and a
    token of it, all samples in turns.

    Text begins after </s>, as in training, or after what `state` has read (as `read_text` gives it, one row).
    Raises ValueError for a state without ids or logits, for a count below 1 or above MOST_SAMPLES, and where the last
    sample's seed is beyond 2^64 - 1; FloatingPointError where the model's logits are not numbers.
    """
    request = GenerationRequest(prompt_ids(engine.tokenizer, prompt, state), config, state)
    return _written(engine.another(), samples(request, count))


def _written(engine: Engine, requests: Sequence[GenerationRequest]) -> Iterator[tuple[int, Written]]:
    for request in requests:
        engine.submit(request)  # a new engine's tickets are 0, 1, 2, ...
    while engine.busy:
        for event in engine.step():
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Written):
                yield event.ticket, event


def write_texts(
    engine: Engine,
    prompt: str,
    config: SampleConfig = DEFAULT,
    count: int = 1,
    on_tokens: Callable[[int], None] | None = None,
) -> list[str]:
    """The texts that `write` writes after the prompt; on_tokens hears of progress."""
    pieces = write(engine, prompt, config, count)  # which checks the count before anything is made of it
    texts = [""] * count
    for sample, written in pieces:
        texts[sample] += written.text
        if on_tokens:
            on_tokens(1)
    return texts


def read_text(engine: Engine, text: str, state: State | None = None) -> State:
    """The state after a text: with its ids (1, S) and the logits (1, V) of what comes next, on the CPU.

    state: None where the text begins, after </s> as in training; else what `read_text` gave for what stands before it.
    """
    return read_ids(engine, prompt_ids(engine.tokenizer, text, state), state)


def read_ids(engine: Engine, ids: Sequence[int], state: State | None = None) -> State:
    """The state after ids, and after what `state` has read before them; as `read_text`."""
    engine = engine.another()
    ticket = engine.submit(GenerationRequest(ids, NOTHING, state, keep_state=True))
    while engine.busy:
        engine.step()
    return engine.state(ticket)


def score_ids(
    engine: Engine, sequences: Sequence[Sequence[int]], state: State | None = None, top: int = 0
) -> list[tuple[TokenScore, ...]]:
    """What the model thinks of each id of the sequences, each of them a text's beginning, </s> first, or the
    continuation of `state`; top: how many of the likeliest tokens come with each.

    Raises FloatingPointError where the model's logits are not numbers.
    """
    engine = engine.another()
    for ids in sequences:
        engine.submit(GenerationRequest(ids, NOTHING, state, top, score_prompt=True))
    found: dict[int, tuple[TokenScore, ...]] = {}
    while engine.busy:
        for event in engine.step():
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, PromptRead):
                found[event.ticket] = event.scores
    return [found[i] for i in range(len(sequences))]
