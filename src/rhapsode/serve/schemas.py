"""What may be asked, field by field, and what the answers look like; from here the OpenAPI description is made.

Fields that would change an answer and are not supported are refused by name; others that are not known have no effect,
and the header X-Rhapsode-Ignored names them.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from rhapsode.serve.failures import Refusal

MOST_STOPS = 16
MOST_LOGPROBS = 20
MOST_CHOICES = 128
MOST_IDS = 2**31 - 1
MOST_MESSAGES = 10_000

_ID = {"type": "integer", "minimum": 0, "maximum": MOST_IDS}
# Unions are checked by hand: a message about each of their members says nothing.
Prompt = Annotated[
    Any,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}, "minItems": 1},
                {"type": "array", "items": _ID},
                {"type": "array", "items": {"type": "array", "items": _ID}, "minItems": 1},
                {"type": "null"},
            ],
            "description": "A text, texts, token ids, or lists of token ids; none is the empty text.",
        }
    ),
]
Stop = Annotated[
    Any,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string", "minLength": 1}, "maxItems": MOST_STOPS},
                {"type": "null"},
            ],
            "description": "Texts at which writing ends; they are left out.",
        }
    ),
]
LogitBias = Annotated[
    Any,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "object", "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100}},
                {"type": "null"},
            ],
            "description": "By token id, added to the logit.",
        }
    ),
]
# The first that is wrong is enough: a body can hold a million.
Ids = Annotated[list[Annotated[int, Field(ge=0, le=MOST_IDS)]], Field(fail_fast=True)]
Content = Annotated[
    Any,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
                        "required": ["type", "text"],
                    },
                },
                {"type": "null"},
            ]
        }
    ),
]


class Asked(BaseModel):
    """What every request has in common."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)
    # Fields of OpenAI's that are not supported, each with the values that ask for nothing.
    unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    model: str | None = Field(None, description="The name of a run; may be left out where one run is served.")

    def ignored(self) -> list[str]:
        """The names of fields without effect, in order; raises Refusal for a field that is not supported."""
        extra = self.model_extra or {}
        for name, values in self.unsupported.items():
            if name in extra and extra[name] not in values:
                raise Refusal(400, f"{name} is not supported by this server", name, "unsupported_parameter")
        return sorted(name for name in extra if name not in self.unsupported)


class StreamOptions(BaseModel):
    """How a stream ends."""

    model_config = ConfigDict(extra="allow", strict=True)
    include_usage: bool = Field(False, description="A last chunk without choices tells the counts.")


class Sampled(Asked):
    """How texts are drawn, and how the answer comes."""

    temperature: float | None = Field(None, ge=0, le=1e6, description="0 always takes the likeliest token; default 1.")
    top_p: float | None = Field(None, ge=0, le=1, description="From the fewest tokens that reach it together.")
    top_k: int | None = Field(None, ge=-1, le=MOST_IDS, description="From the k likeliest; 0 or -1 for all.")
    min_p: float | None = Field(None, ge=0, le=1, description="From tokens this likely, relative to the likeliest.")
    repetition_penalty: float | None = Field(None, gt=0, le=1e6, description="Above 1: what is there becomes rarer.")
    frequency_penalty: float | None = Field(None, ge=-2, le=2, description="Off a logit for each time it was written.")
    presence_penalty: float | None = Field(None, ge=-2, le=2, description="Off a logit once it was written.")
    logit_bias: LogitBias = None
    n: int | None = Field(None, ge=1, le=MOST_CHOICES, description="Texts to each prompt; text i draws with seed + i.")
    seed: int | None = Field(None, ge=-(2**63), lt=2**64, description="Without one, texts differ each time.")
    stop: Stop = None
    stream: bool | None = Field(None, description="Server-sent events, ended by [DONE].")
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = Field(None, description="Adds token_ids to each choice.")


class CompletionQuestion(Sampled):
    """The body of POST /v1/completions."""

    unsupported = {"suffix": (None, "")}

    prompt: Prompt = None
    max_tokens: int | None = Field(None, ge=0, le=MOST_IDS, description="Default 16; 0 only reads, and scores.")
    echo: bool | None = Field(None, description="The prompt, and its log-probabilities, come first.")
    logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS, description="How many of the likeliest tokens to tell.")
    best_of: int | None = Field(None, ge=1, le=MOST_CHOICES, description="The n likeliest of so many are the answer.")


class Message(BaseModel):
    """One message; roles make no difference."""

    model_config = ConfigDict(extra="allow", strict=True)
    role: str = "user"
    content: Content = None


class ChatQuestion(Sampled):
    """The body of POST /v1/chat/completions: the texts of the messages, joined by line ends, are continued."""

    unsupported = {
        **dict.fromkeys(("tools", "functions"), (None, [])),
        "tool_choice": (None, "none", "auto"),
        "function_call": (None, "none", "auto"),
        "response_format": (None, {"type": "text"}),
        "modalities": (None, ["text"]),
        **dict.fromkeys(("audio", "prediction", "web_search_options"), (None,)),
    }

    messages: Annotated[list[Message], Field(fail_fast=True)] = Field(min_length=1, max_length=MOST_MESSAGES)
    max_tokens: int | None = Field(None, ge=0, le=MOST_IDS, description="Default: until the text ends.")
    max_completion_tokens: int | None = Field(None, ge=0, le=MOST_IDS, description="The newer name of max_tokens.")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)


class TokenizeQuestion(Asked):
    """The body of POST /tokenize."""

    prompt: str
    add_special_tokens: bool | None = Field(None, description="No effect: the server reads a begin token by itself.")


class DetokenizeQuestion(Asked):
    """The body of POST /detokenize."""

    tokens: Ids


class InspectQuestion(Asked):
    """The body of POST /api/inspect: a text, or its tokens without the begin token."""

    text: str | None = None
    tokens: Ids | None = None
    positions: Ids = Field(
        default=[], description="Of the predictions to tell more of: i is what follows the first i tokens."
    )
    top: int = Field(5, ge=0, le=MOST_IDS, description="Likeliest next tokens of a position; 0 for all.")
    truth: bool | None = Field(None, description="The corpus's own distribution; default: where it is known.")


# Answers, for the description alone.


class Usage(BaseModel):
    """Counts of tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int]


class LogProbs(BaseModel):
    """One entry for each token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One text."""

    index: int
    text: str
    logprobs: LogProbs | None
    finish_reason: str | None
    token_ids: list[int] | None = None


class CompletionAnswer(BaseModel):
    """The answer of /v1/completions; a chunk of a stream has the same shape."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class ChatChoice(BaseModel):
    """One text: a message, or in a stream a delta."""

    index: int
    message: dict[str, Any] | None = None
    delta: dict[str, Any] | None = None
    logprobs: dict[str, Any] | None
    finish_reason: str | None


class ChatAnswer(BaseModel):
    """The answer of /v1/chat/completions."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage | None = None


class Fault(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class FailureAnswer(BaseModel):
    """The answer to a request that gets none."""

    error: Fault
