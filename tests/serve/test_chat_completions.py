"""/v1/chat/completions: raw continuation in the shapes that chat clients know."""

import json
from typing import Any

from serve.conftest import Served

import rhapsode

PATH = "/v1/chat/completions"


def chat(served: Served, *texts: Any, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text} for text in texts]
    answer = served.api.post(PATH, json={"messages": messages, "seed": 3, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_the_messages_joined_are_continued(served: Served, model: rhapsode.Model) -> None:
    """Would catch a template, a role that makes a difference, and a line end too many."""
    expected = model.generate("Once upon\na time", max_tokens=9, temperature=1.0, seed=3)[0]
    answer = chat(served, "Once upon", "a time", max_tokens=9)
    assert answer["object"] == "chat.completion"
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": expected.text},
            "logprobs": None,
            "finish_reason": expected.finish_reason,
        }
    ]
    assert answer["usage"]["total_tokens"] == len(model.tokenizer.encode("Once upon\na time")) + len(expected.tokens)
    parts = [{"type": "text", "text": "Once "}, {"type": "text", "text": "upon"}]
    assert chat(served, parts, "a time", max_completion_tokens=9)["choices"] == answer["choices"]
    roles = [{"role": "system", "content": "Once upon"}, {"role": "assistant", "content": "a time"}]
    body = {"messages": roles, "seed": 3, "max_tokens": 9}
    assert served.api.post(PATH, json=body).json()["choices"] == answer["choices"]


def test_stream_and_whole_are_the_same(served: Served, model: rhapsode.Model) -> None:
    """The first chunk has the role; the deltas joined are the text; log-probabilities in chat's own shape."""
    fields: dict[str, Any] = {"max_tokens": 9, "n": 2, "logprobs": True, "top_logprobs": 2}
    whole = chat(served, "The cat", **fields)
    body = {"messages": [{"content": "The cat"}], "seed": 3, **fields, "stream": True}
    body["stream_options"] = {"include_usage": True}
    lines = served.api.post(PATH, json=body).text.split("\n\n")
    chunks = [json.loads(line[6:]) for line in lines[:-2]]
    assert chunks[-1]["usage"] == {**whole["usage"], "prompt_tokens_details": {"cached_tokens": 0}}
    for index in range(2):
        parts = [part for chunk in chunks for part in chunk["choices"] if part["index"] == index]
        assert parts[0]["delta"]["role"] == "assistant"
        assert all("role" not in part["delta"] for part in parts[1:])
        content = "".join(part["delta"].get("content", "") for part in parts)
        choice = whole["choices"][index]
        assert content == choice["message"]["content"]
        assert parts[-1]["finish_reason"] == choice["finish_reason"]
        told = [token for part in parts for token in part["logprobs"]["content"]]
        assert told == choice["logprobs"]["content"]
        expected = model.generate("The cat", max_tokens=9, temperature=1.0, seed=3 + index)[0]
        assert [token["logprob"] for token in told] == expected.log_probabilities
        assert all(chunk["object"] == "chat.completion.chunk" for chunk in chunks)
        spelled = b"".join(bytes(token["bytes"]) for token in told)
        assert spelled.decode(errors="replace") == choice["message"]["content"]
        assert all(len(token["top_logprobs"]) in (2, 3) for token in told)


def test_an_empty_message_and_none(served: Served) -> None:
    assert chat(served, None, max_tokens=2)["choices"][0]["message"]["content"] is not None
    assert served.refused(400, PATH, messages=[])["param"] == "messages"
    assert served.refused(400, PATH)["message"] == "messages is missing"
    assert served.refused(400, PATH, messages=[{"content": "a"}], top_logprobs=2)["param"] == "top_logprobs"


def test_without_a_limit_the_text_ends_by_itself(served: Served) -> None:
    """Would catch a chat that stops after OpenAI's 16 tokens of completions; a bias makes the text end at once."""
    answer = chat(served, "The cat", logit_bias={"1": 100})
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == 1
