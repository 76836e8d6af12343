"""Real clients of OpenAI's API, as their users run them."""

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serve.conftest import LONGEST_SECONDS, Served, serving
from serve.test_streams import Reader, eventually

import rhapsode

PROMPT = "Once upon a time there was"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Clients keep what they write to themselves, and have no key of their user's."""
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("LANGSMITH_TRACING", raising=False)


def test_openai(served: Served, model: rhapsode.Model) -> None:
    """The official client, sync: models, completions whole and streamed, chat, errors as its own exceptions."""
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="unused", max_retries=0) as client:
        assert [entry.id for entry in client.models.list()] == ["tiny"]
        assert client.models.retrieve("tiny").id == "tiny"
        expected = model.generate(PROMPT, n=2, max_tokens=20, temperature=0.7, seed=4)
        fields: dict[str, Any] = {"model": "tiny", "prompt": PROMPT, "max_tokens": 20, "temperature": 0.7, "seed": 4}
        answer = client.completions.create(**fields, n=2, logprobs=3, extra_body={"min_p": 0.0, "top_k": 0})
        assert [choice.text for choice in answer.choices] == [each.text for each in expected]
        assert answer.choices[1].logprobs.token_logprobs == expected[1].log_probabilities
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
        assert answer.usage.prompt_tokens_details.cached_tokens >= 0
        chunks = list(client.completions.create(**fields, stream=True, stream_options={"include_usage": True}))
        assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == expected[0].text
        assert chunks[-1].usage.completion_tokens == len(expected[0].tokens)
        chat = client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": PROMPT}], max_tokens=20, temperature=0.7, seed=4
        )
        assert chat.choices[0].message.content == expected[0].text
        with client.chat.completions.stream(
            model="tiny", messages=[{"role": "user", "content": PROMPT}], max_tokens=20, temperature=0.7, seed=4
        ) as stream:
            deltas = [event.delta for event in stream if event.type == "content.delta"]
            assert "".join(deltas) == expected[0].text
        with pytest.raises(openai.NotFoundError, match="no model 'other'"):
            client.completions.create(**{**fields, "model": "other"})
        with pytest.raises(openai.BadRequestError, match="suffix is not supported"):
            client.completions.create(**fields, suffix="x")
        raw = client.completions.with_raw_response.create(**fields, user="somebody")
        assert raw.headers["X-Rhapsode-Ignored"] == "user"


def test_openai_async(served: Served, model: rhapsode.Model) -> None:
    """The async client, several at once."""
    openai = pytest.importorskip("openai")

    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="unused") as client:

            async def one(seed: int) -> str:
                stream = await client.completions.create(
                    model="tiny", prompt=PROMPT, max_tokens=15, temperature=1.0, seed=seed, stream=True
                )
                return "".join([chunk.choices[0].text async for chunk in stream])

            return await asyncio.gather(*(one(seed) for seed in range(6)))

    expected = model.generate(PROMPT, n=6, max_tokens=15, temperature=1.0, seed=0)
    assert asyncio.run(ask()) == [each.text for each in expected]


def test_openai_retries_while_the_queue_is_full(tiny_run: Path) -> None:
    """The client waits as long as it is told to, and then gets its answer; without retries it gets RateLimitError."""
    openai = pytest.importorskip("openai")
    with serving(tiny_run, max_rows=1, max_queue=0, max_context=2_000_000) as narrow:
        narrow.complete(prompt="a")
        reader = Reader(narrow)
        reader.until(b"data: ")
        client = openai.OpenAI(base_url=f"{narrow.url}/v1", api_key="unused", max_retries=0)
        with pytest.raises(openai.RateLimitError, match="the queue is full"):
            client.completions.create(model="tiny", prompt="a", max_tokens=1)

        refused = narrow.server.meters.requests.labels("/v1/completions", "429")._value

        def later() -> None:
            eventually(lambda: refused.get() == 2)
            reader.leave()

        thread = threading.Thread(target=later)
        thread.start()
        patient = client.with_options(max_retries=100)
        begun = time.monotonic()
        raw = patient.completions.with_raw_response.create(model="tiny", prompt="a", max_tokens=1)
        assert raw.retries_taken >= 1  # more, where the server is slow to notice that the reader has left
        assert time.monotonic() - begun > 0.9  # Retry-After: 1
        thread.join()
        client.close()
        eventually(lambda: not narrow.server.driver.jobs)


def test_a_stream_that_is_closed(served: Served) -> None:
    """What a program does that has read enough."""
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="unused") as client:
        stream = client.completions.create(
            model="tiny", prompt="a", max_tokens=8_000, stream=True, logit_bias={"1": -100}
        )
        next(iter(stream))
        stream.close()
    eventually(lambda: not served.server.driver.jobs)


def run_llm(*arguments: str) -> str:
    """The command line of `llm`."""
    cli = pytest.importorskip("llm.cli").cli
    from click.testing import CliRunner

    done = CliRunner().invoke(cli, list(arguments), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_llm(served: Served, model: rhapsode.Model, no_network: None, tmp_path: Path) -> None:
    """`llm openai endpoint`, and a model in its configuration file: chat and completion, streamed and whole."""
    pytest.importorskip("llm")
    expected = model.generate(PROMPT, max_tokens=20, temperature=0)[0].text
    options = ("-o", "max_tokens", "20", "-o", "temperature", "0")
    for extra in ((), ("--no-stream",)):
        told = run_llm("openai", "endpoint", f"{served.url}/v1", PROMPT, "-m", "tiny", *options, *extra)
        assert told.rstrip("\n") == expected.rstrip("\n")
    assert "tiny" in run_llm("openai", "endpoint", f"{served.url}/v1", "--models")
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: story\n  model_name: tiny\n  api_base: {served.url}/v1\n"
        f"- model_id: raw\n  model_name: tiny\n  api_base: {served.url}/v1\n  completion: true\n"
    )
    for name in ("story", "raw"):
        for extra in (("--usage",), ("--no-stream", "--usage")):
            told = run_llm("-m", name, PROMPT, *options, *extra)
            assert expected.strip() in told
            if name == "story":  # it asks completions for no counts
                assert "20 output" in told, told


def test_langchain(served: Served, model: rhapsode.Model, no_network: None) -> None:
    """LangChain's completion class: one prompt, several, streamed, with stop texts."""
    langchain = pytest.importorskip("langchain_openai")
    llm = langchain.OpenAI(
        base_url=f"{served.url}/v1", api_key="unused", model="tiny", temperature=0.7, max_tokens=20, seed=4
    )
    expected = model.generate(PROMPT, max_tokens=20, temperature=0.7, seed=4)[0].text
    assert llm.invoke(PROMPT) == expected
    assert "".join(llm.stream(PROMPT)) == expected
    other = model.generate("The", max_tokens=20, temperature=0.7, seed=4)[0].text
    assert [each[0].text for each in llm.generate([PROMPT, "The"]).generations] == [expected, other]
    stop = expected[5:8]
    assert llm.invoke(PROMPT, stop=[stop]) == expected[: expected.index(stop)]


@pytest.fixture(scope="module")
def small_context(tiny_run: Path) -> Iterator[Served]:
    with serving(tiny_run, max_context=24, max_rows=8, max_queue=1_024) as server:
        yield server


def test_what_the_description_says_is_so(small_context: Served) -> None:
    """schemathesis asks what the description allows, and what it forbids: no answer may be of another status, type or
    shape than described, none may be the server's own failure, and what is wrong must be refused."""
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis.specs.openapi import checks

    schema = schemathesis.openapi.from_url(f"{small_context.url}/openapi.json")
    wanted = [
        schemathesis.checks.not_a_server_error,
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_schema_conformance,
        checks.negative_data_rejection,
        checks.unsupported_method,
    ]
    relaxed = settings(
        max_examples=12,
        deadline=None,
        derandomize=True,
        database=None,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )
    asked = 0
    for operation in schema.get_all_operations():
        operation = operation.ok()
        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
            if mode is schemathesis.GenerationMode.NEGATIVE and not list(operation.body):
                continue

            @given(case=operation.as_strategy(generation_mode=mode))
            @relaxed
            def ask(case: Any) -> None:
                nonlocal asked
                asked += 1
                case.call_and_validate(checks=wanted, timeout=LONGEST_SECONDS)

            ask()
    assert asked > 100
