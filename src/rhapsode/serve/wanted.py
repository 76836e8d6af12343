"""What a body of /v1/completions or /v1/chat/completions asks for: read, checked, and made into work for an engine."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rhapsode.decode import GenerationRequest, SampleConfig, samples
from rhapsode.serve.answers import PromptTokens
from rhapsode.serve.failures import Refusal
from rhapsode.serve.schemas import MOST_STOPS, ChatQuestion, CompletionQuestion, Sampled
from rhapsode.tokenizer import Tokenizer

DEFAULT_TOKENS = 16  # as OpenAI's
SMALLEST_TOP_P = 1e-9  # stands for 0, which leaves the likeliest token
CHARACTERS_PER_TOKEN = 16  # at least, before a text is too long at first sight: blanks may take no token at all


@dataclass(frozen=True)
class Wanted:
    """A request, read and checked. top: see `Telling`; chat: which shape the answer has; best_of: texts to a prompt."""

    chat: bool
    prompts: list[PromptTokens]
    config: SampleConfig
    n: int
    best_of: int
    stream: bool
    include_usage: bool
    echo: bool
    top: int | None
    with_ids: bool
    ignored: list[str]

    def requests(self, eos_id: int) -> list[GenerationRequest]:
        """What the engine is to do: best_of texts to each prompt."""
        scored = self.echo and self.top is not None
        return [
            request
            for prompt in self.prompts
            for request in samples(
                GenerationRequest(prompt.read(eos_id), self.config, top=self.top or 0, score_prompt=scored),
                self.best_of,
            )
        ]


def completion_wanted(asked: CompletionQuestion, tokenizer: Tokenizer, max_context: int, most_texts: int) -> Wanted:
    """What a body of /v1/completions asks for; raises Refusal where it cannot be had."""
    ignored = asked.ignored()
    n = asked.n or 1
    best_of = asked.best_of or n
    if best_of < n:
        raise Refusal(400, f"best_of must be at least n, got {best_of} and {n}", "best_of")
    if asked.stream and best_of > n:
        raise Refusal(400, "the best of several texts cannot be streamed: leave out best_of or stream", "best_of")
    check_text_count(asked.prompt, best_of, most_texts)
    prompts = prompts_in(asked.prompt, tokenizer, max_context)
    max_tokens = DEFAULT_TOKENS if asked.max_tokens is None else asked.max_tokens
    check_length(prompts, max_tokens, max_context, "max_tokens")
    return Wanted(
        chat=False,
        prompts=prompts,
        config=sample_config(asked, max_tokens, tokenizer.vocab_size),
        n=n,
        best_of=best_of,
        echo=bool(asked.echo),
        top=asked.logprobs,
        ignored=ignored,
        **stream_options(asked),
    )


def chat_wanted(asked: ChatQuestion, tokenizer: Tokenizer, max_context: int, most_texts: int) -> Wanted:
    """What a body of /v1/chat/completions asks for; raises Refusal where it cannot be had."""
    ignored = asked.ignored()
    if asked.top_logprobs is not None and not asked.logprobs:
        raise Refusal(400, "top_logprobs needs logprobs: true", "top_logprobs")
    text = "\n".join(text_of(message.content, number) for number, message in enumerate(asked.messages))
    check_text_count(text, asked.n or 1, most_texts)
    prompt = PromptTokens(encoded(text, tokenizer, max_context, "messages"), text)
    name = "max_tokens" if asked.max_completion_tokens is None else "max_completion_tokens"
    max_tokens = asked.max_tokens if asked.max_completion_tokens is None else asked.max_completion_tokens
    check_length([prompt], 1 if max_tokens is None else max_tokens, max_context, name)
    n = asked.n or 1
    return Wanted(
        chat=True,
        prompts=[prompt],
        config=sample_config(
            asked, max_context - len(prompt.ids) if max_tokens is None else max_tokens, tokenizer.vocab_size
        ),
        n=n,
        best_of=n,
        echo=False,
        top=(asked.top_logprobs or 0) if asked.logprobs else None,
        ignored=ignored,
        **stream_options(asked),
    )


def text_of(content: Any, number: int) -> str:
    """The text of a message; raises Refusal for pictures and the like."""
    if content is None:
        return ""
    if isinstance(content, str):
        return checked_text(content, "messages")
    where = f"messages[{number}].content must be a text, or a list of parts of type text"
    if not isinstance(content, list):
        raise Refusal(400, where, "messages")
    texts = []
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise Refusal(400, where, "messages")
        texts.append(checked_text(part["text"], "messages"))
    return "".join(texts)


def checked_text(text: str, param: str) -> str:
    """The text; raises Refusal where it is not valid Unicode."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Refusal(400, f"{param} is not valid Unicode: half of a surrogate pair at {error.start}", param) from None
    return text


def encoded(text: str, tokenizer: Tokenizer, most: int, param: str) -> list[int]:
    """The ids of a text; raises Refusal where it is not valid Unicode, or too long for `most` tokens at first sight:
    to encode megabytes takes seconds, in which nobody else is served."""
    if len(text) > most * max(CHARACTERS_PER_TOKEN, tokenizer.longest_piece):
        message = f"the text has {len(text):,} characters, more than {most:,} tokens can spell"
        raise Refusal(400, message, param, "context_length_exceeded")
    return tokenizer.encode(checked_text(text, param))


def check_text_count(prompt: Any, best_of: int, most: int) -> None:
    """Raises Refusal where a request asks for more texts than there may ever be."""
    several = isinstance(prompt, list) and bool(prompt) and not all(type(each) is int for each in prompt)
    count = best_of * (len(prompt) if several else 1)
    if count > most:
        raise Refusal(400, f"this asks for {count:,} texts at once, the most that fit are {most:,}", "n")


def prompts_in(asked: Any, tokenizer: Tokenizer, max_context: int) -> list[PromptTokens]:
    """The prompts of a request: one text, several, ids of one, or ids of several; raises Refusal for anything else."""
    if asked is None:
        return [PromptTokens([], "")]
    if isinstance(asked, str):
        return [PromptTokens(encoded(asked, tokenizer, max_context, "prompt"), asked)]
    if isinstance(asked, list):
        if all(isinstance(each, str) for each in asked) and asked:
            return [PromptTokens(encoded(text, tokenizer, max_context, "prompt"), text) for text in asked]
        if all(type(each) is int for each in asked):
            return [PromptTokens(checked_ids(asked, tokenizer.vocab_size, "prompt"), None)]
        if all(isinstance(each, list) and all(type(id) is int for id in each) for each in asked):
            return [PromptTokens(checked_ids(ids, tokenizer.vocab_size, "prompt"), None) for ids in asked]
    raise Refusal(400, "prompt must be a text, a list of texts, a list of token ids, or a list of such lists", "prompt")


def checked_ids(ids: Sequence[int], vocab_size: int, param: str) -> Sequence[int]:
    """The ids; raises Refusal for one that the vocabulary has not."""
    wrong = next((id for id in ids if not 0 <= id < vocab_size), None)
    if wrong is not None:
        raise Refusal(400, f"{param}: token ids must be from 0 to {vocab_size - 1:,}, got {wrong}", param)
    return ids


def check_length(prompts: Sequence[PromptTokens], max_tokens: int, max_context: int, param: str) -> None:
    """Raises Refusal with both numbers where a prompt, or a prompt and what is to be written, is too long."""
    for prompt in prompts:
        count = len(prompt.ids)
        if count + max_tokens > max_context:
            what = f"the prompt has {count:,} tokens"
            too_long = count > max_context
            what += "" if too_long else f" and {max_tokens:,} are to be written"
            message = f"{what}, the most that fit are {max_context:,}"
            raise Refusal(400, message, "prompt" if too_long else param, "context_length_exceeded")


def sample_config(asked: Sampled, max_tokens: int, vocab_size: int) -> SampleConfig:
    """How the texts are drawn; raises Refusal for a value that cannot be."""
    stop = [] if asked.stop in (None, "") else [asked.stop] if isinstance(asked.stop, str) else asked.stop
    if not isinstance(stop, list) or not all(isinstance(each, str) for each in stop) or len(stop) > MOST_STOPS:
        raise Refusal(400, f"stop must be a text, or a list of at most {MOST_STOPS} texts", "stop")
    if not isinstance(asked.logit_bias, dict | None):
        raise Refusal(400, "logit_bias must be an object of token ids and numbers", "logit_bias")
    bias = {}
    for id, value in (asked.logit_bias or {}).items():
        if not (id.isascii() and id.isdecimal() and len(id) < 20 and int(id) < vocab_size):
            message = f"logit_bias: {id[:40]!r} is no token id, which go to {vocab_size - 1:,}"
            raise Refusal(400, message, "logit_bias")
        if type(value) not in (int, float) or not -100 <= value <= 100:
            raise Refusal(400, f"logit_bias.{id} must be a number from -100 to 100", f"logit_bias.{id}")
        bias[int(id)] = value
    seed = secrets.randbits(32) if asked.seed is None else asked.seed
    try:
        return SampleConfig(
            max_tokens=max_tokens,
            temperature=1.0 if asked.temperature is None else asked.temperature,
            top_k=max(0, asked.top_k or 0),
            top_p=1.0 if asked.top_p is None else asked.top_p or SMALLEST_TOP_P,
            min_p=asked.min_p or 0.0,
            repetition_penalty=asked.repetition_penalty or 1.0,
            frequency_penalty=asked.frequency_penalty or 0.0,
            presence_penalty=asked.presence_penalty or 0.0,
            logit_bias=bias,
            stop=tuple(checked_text(text, "stop") for text in stop),
            seed=seed if seed >= 0 else seed % 2**63,
        )
    except ValueError as error:
        raise Refusal(400, str(error), str(error).split()[0]) from None


def stream_options(asked: Sampled) -> dict[str, Any]:
    """Whether and how the answer is streamed; raises Refusal for options without a stream."""
    if asked.stream_options is not None and not asked.stream:
        raise Refusal(400, "stream_options needs stream: true", "stream_options")
    return {
        "stream": bool(asked.stream),
        "include_usage": asked.stream_options is not None and asked.stream_options.include_usage,
        "with_ids": bool(asked.return_token_ids),
    }
