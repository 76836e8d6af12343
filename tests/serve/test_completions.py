"""/v1/completions against the Python API: values, texts, places, in every combination of what can be asked."""

import json
import math
from collections.abc import Sequence
from typing import Any

import pytest
from serve.conftest import Served

import rhapsode

PROMPTS = ["Once upon a time there was", "The 🎉 cat é"]
FORMS = {"text": 1, "texts": 2, "ids": 1, "lists of ids": 2}  # how many prompts they make


def streamed(served: Served, **fields: Any) -> list[dict[str, Any]]:
    """The chunks of a stream, which ends as it must."""
    answer = served.api.post("/v1/completions", json={**fields, "stream": True})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in answer.text.split("\n\n") if line and not line.startswith(":")]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def joined(chunks: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The choices that the chunks of a stream make together."""
    choices: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        for part in chunk["choices"]:
            whole = choices.setdefault(part["index"], {**part, "text": "", "logprobs": None, "token_ids": []})
            assert whole["finish_reason"] is None or whole is part or not whole["text"]
            whole["text"] += part["text"]
            whole["token_ids"] += part["token_ids"]
            whole["finish_reason"] = part["finish_reason"]
            if part["logprobs"] is not None:
                if whole["logprobs"] is None:
                    whole["logprobs"] = {name: [] for name in part["logprobs"]}
                for name, values in part["logprobs"].items():
                    whole["logprobs"][name] += values
    return [choices[index] for index in sorted(choices)]


def asked(form: str, model: rhapsode.Model) -> Any:
    ids = [model.tokenizer.encode(text) for text in PROMPTS]
    return {"text": PROMPTS[0], "texts": PROMPTS, "ids": ids[0], "lists of ids": ids}[form]


@pytest.mark.parametrize("max_tokens", [0, 1, 7])
@pytest.mark.parametrize("form", FORMS.keys())
@pytest.mark.parametrize("logprobs", [None, 0, 3])
@pytest.mark.parametrize("echo", [False, True])
def test_every_combination(
    served: Served, model: rhapsode.Model, echo: bool, logprobs: int | None, form: str, max_tokens: int
) -> None:
    """echo x logprobs x form of the prompt x max_tokens x n x stream: chunks joined are the whole answer byte for byte,
    and all of it is what the Python API says. Would catch log-probabilities that are stubs or of another token, places
    that count from the wrong beginning, and an option that is dropped in one of the combinations."""
    prompt = asked(form, model)
    texts = PROMPTS[: FORMS[form]]
    for n in (1, 2):
        fields = {
            **{"prompt": prompt, "echo": echo, "logprobs": logprobs, "max_tokens": max_tokens, "n": n, "seed": 5},
            **{"temperature": 0.9, "return_token_ids": True},
        }
        whole = served.complete(**fields)
        assert joined(streamed(served, **fields)) == whole["choices"]
        assert [choice["index"] for choice in whole["choices"]] == list(range(n * len(texts)))
        for number, text in enumerate(texts):
            for i in range(n):
                check(whole["choices"][number * n + i], model, text, echo, logprobs, max_tokens, i)


def check(
    choice: dict[str, Any],
    model: rhapsode.Model,
    prompt: str,
    echo: bool,
    logprobs: int | None,
    max_tokens: int,
    i: int,
) -> None:
    """A choice against `Model.generate` and `Model.score`."""
    ids = model.tokenizer.encode(prompt)
    before = prompt if echo else ""
    if max_tokens:
        expected = model.generate(prompt, max_tokens=max_tokens, temperature=0.9, seed=5 + i)[0]
        assert choice["text"] == before + expected.text
        assert choice["finish_reason"] == expected.finish_reason
        new, values = expected.tokens, expected.log_probabilities
    else:
        assert (choice["text"], choice["finish_reason"]) == (before, "length")
        new, values = [], []
    assert choice["token_ids"] == (ids if echo else []) + new
    if logprobs is None:
        assert choice["logprobs"] is None
        return
    told = choice["logprobs"]
    names = model.tokenizer.names
    assert told["tokens"] == [names[id] for id in choice["token_ids"]]
    assert {len(values) for values in told.values()} == {len(choice["token_ids"])}
    assert told["token_logprobs"][len(told["tokens"]) - len(new) :] == values
    if echo:
        scored = model.score(prompt, per_token=True, end=False).texts[0].token_log_probabilities
        assert scored is not None
        assert (told["token_logprobs"][0], told["top_logprobs"][0]) == (None, None)
        assert told["token_logprobs"][1 : len(ids)] == scored[1:]
    check_tops(told, logprobs)
    check_places(told["text_offset"], choice, model)


def check_tops(told: dict[str, list[Any]], count: int) -> None:
    """The likeliest tokens: in order, as many as asked for, the token itself among them with the same number."""
    for name, value, top in zip(told["tokens"], told["token_logprobs"], told["top_logprobs"], strict=True):
        if value is None:
            continue
        assert top[name] == value
        assert count <= len(top) <= count + 1
        best = list(top.values())[:count]
        assert best == sorted(best, reverse=True)
        assert all(other <= min(best, default=0.0) for other in list(top.values())[count:])
        assert sum(map(math.exp, top.values())) < 1 + 1e-9


def check_places(places: list[int], choice: dict[str, Any], model: rhapsode.Model) -> None:
    """Each token begins where the text of those before it ends; bytes of one character all at the character."""
    stream, begin = model.tokenizer.stream(), 0
    for id, place in zip(choice["token_ids"], places, strict=True):
        assert place == begin
        begin += len(stream.push(id))


def test_first_entry_of_an_empty_prompt(served: Served, model: rhapsode.Model) -> None:
    """Would catch a null in the place of the first written token's log-probability, which is known."""
    choice = served.complete(prompt="", max_tokens=2, echo=True, logprobs=1, temperature=0)["choices"][0]
    expected = model.generate("", max_tokens=2, temperature=0)[0]
    assert choice["logprobs"]["token_logprobs"] == expected.log_probabilities
    assert choice["text"] == expected.text
    for empty in (None, [], [[]], [""]):
        assert served.complete(prompt=empty, max_tokens=2, temperature=0)["choices"][0]["text"] == expected.text


def test_the_begin_token_is_read_once(served: Served, model: rhapsode.Model) -> None:
    """Would catch arrays shifted by the token that the server itself puts before a text, and two of them in a row."""
    ids = model.tokenizer.encode(PROMPTS[0])
    fields: dict[str, Any] = {"echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0}
    plain = served.complete(prompt=ids, **fields)["choices"][0]
    begun = served.complete(prompt=[model.tokenizer.eos_id, *ids], **fields)["choices"][0]
    assert plain["text"] == begun["text"]
    first = model.score(PROMPTS[0], per_token=True, end=False).texts[0].token_log_probabilities
    assert first is not None
    assert begun["logprobs"]["token_logprobs"][1] == first[0]
    assert begun["logprobs"]["token_logprobs"][2:] == plain["logprobs"]["token_logprobs"][1:]
    alone = served.complete(prompt=[model.tokenizer.eos_id], **fields)["choices"][0]
    assert len(alone["logprobs"]["tokens"]) == 2
    assert alone["logprobs"]["tokens"][0] == "</s>"
    assert alone["logprobs"]["text_offset"] == [0, 0]
