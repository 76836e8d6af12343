"""The fields of a request one by one: what they do, what is refused by name, what a header names."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from serve.conftest import Served, serving

import rhapsode

PROMPT = "Once upon a time there was"


def text(served: Served, **fields: Any) -> str:
    return served.complete(**{"prompt": PROMPT, "max_tokens": 12, "seed": 3, **fields})["choices"][0]["text"]


def test_sampling_is_that_of_the_python_api(served: Served, model: rhapsode.Model) -> None:
    """Would catch a field that is dropped, or means another thing than in `Model.generate`."""
    found = set()
    for options in (
        {"temperature": 0.0},
        {"temperature": 1.4},
        {"temperature": 1.4, "top_k": 3},
        {"temperature": 1.4, "top_p": 0.3},
        {"temperature": 1.4, "min_p": 0.4},
        {"temperature": 0.6, "repetition_penalty": 3.0},
        {"temperature": 1.4, "seed": 2**64 - 1},
    ):
        expected = model.generate(PROMPT, **{"max_tokens": 12, "seed": 3, **options})[0].text  # type: ignore[arg-type]
        assert text(served, **options) == expected, options
        found.add(expected)
    assert len(found) == 7
    assert text(served, temperature=1.4, top_k=-1) == text(served, temperature=1.4)
    assert text(served, temperature=1.4, top_p=0) == text(served, temperature=0)


def test_defaults_are_those_of_openai(served: Served, model: rhapsode.Model) -> None:
    """16 tokens at temperature 1; and without a seed each answer is another one."""
    answer = served.complete(prompt=PROMPT, seed=3)
    expected = model.generate(PROMPT, max_tokens=16, temperature=1.0, seed=3)[0]
    assert answer["choices"][0]["text"] == expected.text
    assert answer["usage"] == {
        "prompt_tokens": len(model.tokenizer.encode(PROMPT)),
        "completion_tokens": len(expected.tokens),
        "total_tokens": len(model.tokenizer.encode(PROMPT)) + len(expected.tokens),
        "prompt_tokens_details": answer["usage"]["prompt_tokens_details"],
    }
    texts = {served.complete(prompt=PROMPT)["choices"][0]["text"] for _ in range(5)}
    assert len(texts) == 5
    fields = dict.fromkeys(
        ("best_of", "echo", "frequency_penalty", "logit_bias", "logprobs", "max_tokens", "n", "presence_penalty"), None
    ) | dict.fromkeys(("stop", "stream", "stream_options", "suffix", "temperature", "top_p", "user"), None)
    assert served.complete(prompt=PROMPT, seed=3, **fields)["choices"] == answer["choices"]


def test_a_negative_seed_is_a_seed(served: Served) -> None:
    """OpenAI's seeds are signed."""
    assert text(served, seed=-1) == text(served, seed=2**63 - 1)


def test_penalties_and_bias(served: Served, model: rhapsode.Model) -> None:
    """Would catch penalties that are read and not applied: with them no token comes twice, with a bias one alone."""
    id = model.tokenizer.encode(" dog")[-1]
    biased = served.complete(
        prompt=PROMPT, max_tokens=8, temperature=0, logit_bias={str(id): 100}, return_token_ids=True
    )
    assert biased["choices"][0]["token_ids"] == [id] * 8
    for field in ("frequency_penalty", "presence_penalty"):
        bias = {str(id): 1.0 for id in range(model.tokenizer.vocab_size)}  # any: it must not change the choice
        fields: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 30, "temperature": 0, "return_token_ids": True}
        plain = served.complete(**fields)["choices"][0]["token_ids"]
        penalised = served.complete(**fields, **{field: 2.0}, logit_bias=bias)["choices"][0]["token_ids"]
        assert len(set(plain)) < len(set(penalised)), field


def test_stop_texts(served: Served, model: rhapsode.Model) -> None:
    """Would catch a stop text that leaks, one that cuts too much, and tokens that are lost with it."""
    whole = text(served, temperature=0, max_tokens=30)
    stop = whole[9:12]
    fields: dict[str, Any] = {"max_tokens": 30, "temperature": 0, "return_token_ids": True}
    answer = served.complete(prompt=PROMPT, stop=[stop, "never"], **fields)
    choice = answer["choices"][0]
    assert choice["text"] == whole[: whole.index(stop)]
    assert choice["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == len(choice["token_ids"])
    spelled = model.tokenizer.decode(choice["token_ids"])
    assert stop in spelled
    assert stop not in model.tokenizer.decode(choice["token_ids"][:-1])
    assert text(served, temperature=0, max_tokens=30, stop=stop) == choice["text"]
    for nothing in (None, [], ""):
        assert text(served, temperature=0, max_tokens=30, stop=nothing) == whole


def test_best_of(served: Served) -> None:
    """The n likeliest per token of so many texts, the likeliest first; all that was written counts."""
    many = served.complete(prompt=[PROMPT, "The"], n=6, max_tokens=5, seed=1, logprobs=0)
    best = served.complete(prompt=[PROMPT, "The"], n=2, best_of=6, max_tokens=5, seed=1, logprobs=0)

    def mean(choice: dict[str, Any]) -> float:
        values = choice["logprobs"]["token_logprobs"]
        return sum(values) / len(values)

    for prompt in range(2):
        ranked = sorted(many["choices"][6 * prompt : 6 * prompt + 6], key=mean, reverse=True)[:2]
        chosen = best["choices"][2 * prompt : 2 * prompt + 2]
        assert [choice["text"] for choice in chosen] == [choice["text"] for choice in ranked]
    assert [choice["index"] for choice in best["choices"]] == [0, 1, 2, 3]
    assert best["usage"] == many["usage"]


def test_what_is_not_supported_is_refused_by_name(served: Served) -> None:
    """Would catch an option that is dropped without a word although it changes what the answer means."""
    assert served.refused(400, prompt="a", suffix="b") == {
        "message": "suffix is not supported by this server",
        "type": "invalid_request_error",
        "param": "suffix",
        "code": "unsupported_parameter",
    }
    chat: dict[str, Any] = {"path": "/v1/chat/completions", "messages": [{"role": "user", "content": "a"}]}
    for name, value in {
        "tools": [{"type": "function"}],
        "response_format": {"type": "json_object"},
        "audio": {},
        "functions": [{}],
    }.items():
        assert served.refused(400, **chat, **{name: value})["param"] == name
    picture = [{"type": "image_url", "image_url": {"url": "x"}}]
    assert "must be a text" in served.refused(400, chat["path"], messages=[{"content": picture}])["message"]


def test_a_header_names_what_has_no_effect(served: Served) -> None:
    """Also names that no header could hold as they are."""
    body = {"prompt": "a", "max_tokens": 1, "user": "x", "best_guess": 1, "ü\r\nSet-Cookie: a": 2}
    answer = served.api.post("/v1/completions", json=body)
    assert answer.headers["X-Rhapsode-Ignored"] == "best_guess, user, \\xfc\\r\\nSet-Cookie: a"
    assert "set-cookie" not in answer.headers
    assert "X-Rhapsode-Ignored" not in served.api.post("/v1/completions", json={"prompt": "a"}).headers


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"max_tokens": -1}, "max_tokens", ["greater than or equal to 0", "-1"]),
        ({"max_tokens": "5"}, "max_tokens", ["integer", "'5'"]),
        ({"temperature": -0.5}, "temperature", ["-0.5"]),
        ({"top_p": 1.5}, "top_p", ["1.5"]),
        ({"n": 0}, "n", ["0"]),
        ({"logprobs": 21}, "logprobs", ["20", "21"]),
        ({"best_of": 1, "n": 2}, "best_of", ["1 and 2"]),
        ({"best_of": 2, "stream": True}, "best_of", ["streamed"]),
        ({"stop": ["a"] * 17}, "stop", ["16"]),
        ({"stop": [1]}, "stop", ["text"]),
        ({"stop": {}}, "stop", ["text"]),
        ({"stop": [""]}, "stop", ["empty"]),
        ({"prompt": {"a": 1}}, "prompt", ["a text, a list of texts"]),
        ({"prompt": ["a", 1]}, "prompt", ["a text, a list of texts"]),
        ({"prompt": [True]}, "prompt", ["a text, a list of texts"]),
        ({"prompt": [10**9]}, "prompt", ["from 0 to 299", "1000000000"]),
        ({"prompt": [[0, -1]]}, "prompt", ["-1"]),
        ({"logit_bias": {"x": 1}}, "logit_bias", ["'x'", "299"]),
        ({"logit_bias": {"1": 101}}, "logit_bias.1", ["100"]),
        ({"stream_options": {"include_usage": True}}, "stream_options", ["stream: true"]),
        ({"prompt": "a", "n": 128, "max_tokens": 8192}, "max_tokens", ["8,192"]),
        ({"prompt": ["a"] * 400}, "n", ["400", "320"]),
    ],
    ids=str,
)
def test_a_wrong_value_is_named(served: Served, fields: dict[str, Any], param: str, words: Sequence[str]) -> None:
    """400 with the field and the value, never the framework's own 422."""
    error = served.refused(400, **{"prompt": PROMPT, **fields})
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    for word in words:
        assert word in error["message"]
    assert "\n" not in error["message"]


def test_wrong_bodies(served: Served) -> None:
    """Not JSON, not an object, not declared as JSON: each is told, and what would help."""
    json_type = {"content-type": "application/json"}
    for body, headers, words in (
        (b'{"prompt": "a"', json_type, "not valid JSON: Expecting ',' delimiter at character 14"),
        (b"[1]", json_type, "Content-Type: application/json"),
        (b'{"prompt": "a"}', {"content-type": "application/x-www-form-urlencoded"}, "Content-Type: application/json"),
        (b'{"prompt": "a"}', {}, "Content-Type: application/json"),
        (b"", json_type, "Content-Type: application/json"),
        (b"\xff\xfe", json_type, "body"),
        (b'{"a":' * 100_000, json_type, "body"),
        (b'{"prompt": "\\ud800"}', json_type, "surrogate"),
        (b'{"temperature": NaN, "prompt": "a"}', json_type, "temperature"),
    ):
        answer = served.api.post("/v1/completions", content=body, headers=headers)
        assert answer.status_code == 400, body[:20]
        assert words in answer.json()["error"]["message"], body[:20]


def test_more_than_can_be_read(served: Served) -> None:
    """Would catch a body of four megabytes that takes gigabytes and minutes before it is refused: lists of a million
    errors, a billion texts to write, texts that are tokenized only to be too long; and names that come back whole."""
    for path, fields, words in (
        ("/v1/completions", {"prompt": [""] * 20_000, "n": 128}, "2,560,000 texts at once, the most that fit are 320"),
        ("/v1/completions", {"prompt": "a" * 1_000_000}, "1,000,000 characters, more than 8,192 tokens can spell"),
        ("/v1/completions", {"logit_bias": {"9" * 5_000: 1}}, f"'{'9' * 40}' is no token id"),
        ("/v1/completions", {"logit_bias": {str(id): "" for id in range(200)}}, "logit_bias.0 must be a number"),
        ("/v1/completions", {"logit_bias": [1]}, "logit_bias must be an object"),
        ("/v1/chat/completions", {"messages": [{}] * 10_001}, "at most 10000 items"),
        ("/v1/chat/completions", {"messages": [{"content": "a" * 1_000_000}]}, "1,000,000 characters"),
        ("/detokenize", {"tokens": [[]] * 100_000}, "tokens.0"),
        ("/tokenize", {"prompt": "a" * 2_000_000}, "more than 65,536 tokens"),
        ("/api/inspect", {"text": "a" * 1_000_000}, "more than 2,048 tokens"),
    ):
        error = served.refused(400, path, **fields)
        assert words in error["message"], error
        assert len(error["message"]) < 300
    assert len(served.refused(404, model="a" * 100_000)["message"]) < 300
    assert served.api.get("/page/" + "a" * 1_000 + ".js").status_code == 404


def test_both_numbers_of_a_prompt_that_is_too_long(tiny_run: Path, model: rhapsode.Model) -> None:
    """At the limit it fits; one token more is refused with both numbers; the begin token does not count."""
    with serving(tiny_run, max_context=10) as short:
        ids = model.tokenizer.encode("the dog and the cat and the bird")[:10]
        assert len(ids) == 10
        assert (
            len(short.complete(prompt=ids, max_tokens=0, echo=True, logprobs=1)["choices"][0]["logprobs"]["tokens"])
            == 10
        )
        assert short.complete(prompt=ids[:4], max_tokens=6)["usage"]["total_tokens"] <= 10
        error = short.refused(400, prompt=[*ids, 5], max_tokens=0)
        assert error["code"] == "context_length_exceeded"
        assert error["message"] == "the prompt has 11 tokens, the most that fit are 10"
        error = short.refused(400, prompt=ids[:4], max_tokens=7)
        assert error["message"] == "the prompt has 4 tokens and 7 are to be written, the most that fit are 10"
        chat = short.api.post("/v1/chat/completions", json={"messages": [{"content": "the dog"}]}).json()
        assert chat["usage"]["total_tokens"] <= 10
        assert chat["choices"][0]["finish_reason"] in ("length", "stop")


def test_models_by_name(served: Served) -> None:
    """A model that is not there is 404 as clients know it; where one run is served its name may be left out."""
    error = served.refused(404, prompt="a", model="gpt-4")
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "tiny" in error["message"]
    assert served.complete(prompt="a", model="tiny")["model"] == served.complete(prompt="a")["model"] == "tiny"


def test_paths_that_are_not_there(served: Served) -> None:
    for method, path, status in (("GET", "/v1/nothing", 404), ("GET", "/v1/completions", 405), ("PUT", "/", 405)):
        answer = httpx.request(method, served.url + path)
        assert answer.status_code == status
        assert path in answer.json()["error"]["message"]
