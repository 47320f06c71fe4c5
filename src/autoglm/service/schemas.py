"""What a chat request may hold, checked strictly, with the names and meanings of OpenAI's API.

What it guarantees: wrong types are refused, never coerced; a parameter that would change the answer and
that this service does not have is refused by name; fields that only label a request (``user``,
``metadata``, ``store``) are accepted and ignored.

    >>> ChatRequest.model_validate_json('{"model": "m", "messages": [{"role": "user", "content": "Hi"}]}').n
    1
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from autoglm.engine import Structure
from autoglm.model.tools import Tool
from autoglm.service.tool_schemas import (
    AnswerFormat,
    ToolCall,
    ToolChoice,
    ToolSpecs,
    structure_of,
    tools_of,
)

MAX_MESSAGES = 1000
MAX_CHOICES = 8
Text = Annotated[str, Field(max_length=1 << 20)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class TextContent(_Part):
    """A piece of text."""

    type: Literal["text"]
    text: Text


class ImageAddress(_Part):
    """Where the image is: a ``data:image/...;base64,`` URI."""

    url: str
    detail: str | None = None


class ImageContent(_Part):
    """An image."""

    type: Literal["image_url"]
    image_url: ImageAddress


class Recording(_Part):
    """Sound as base64."""

    data: str
    format: Literal["wav", "mp3"]


class AudioContent(_Part):
    """A recording."""

    type: Literal["input_audio"]
    input_audio: Recording


class RefusalContent(_Part):
    """What an earlier answer said instead of an answer; it is text like any other."""

    type: Literal["refusal"]
    refusal: Text


Content = Annotated[TextContent | ImageContent | AudioContent, Field(discriminator="type")]
MessageContent = Annotated[
    TextContent | ImageContent | AudioContent | RefusalContent, Field(discriminator="type")
]


class ChatMessage(_Part):
    """One turn of the conversation; one of the assistant's may be empty, null or left out."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[
        Text | Annotated[list[MessageContent], Field(min_length=1, max_length=1000)] | None,
        Field(validate_default=True),
    ] = None
    refusal: Text | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=128)] | None = None
    tool_call_id: str | None = None

    @field_validator("content")
    @classmethod
    def _only_answers_are_empty(cls, value: object, info: ValidationInfo) -> object:
        if value is None and info.data.get("role", "assistant") != "assistant":
            raise ValueError("only a message of the assistant may be null or have none")
        return value


class StreamOptions(_Part):
    """What a stream also carries."""

    include_usage: bool | None = None


class TemplateOptions(_Part):
    """Options that some clients nest instead of sending them at the top."""

    enable_thinking: bool | None = None
    return_reasoning: bool | None = None


class SampledRequest(_Part):
    """What chats and completions share: the model, and how the tokens of its answers are drawn.

    Attributes:
        unsupported: parameters that would change the answer, with the values that ask for nothing.
    """

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {}

    model: Annotated[str, Field(min_length=1, max_length=256)]
    temperature: Annotated[Finite, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Finite, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=1 << 20)] | None = None
    stop: Text | Annotated[list[Text], Field(max_length=16)] | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    presence_penalty: Annotated[Finite, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[Finite, Field(ge=-2, le=2)] | None = None
    min_p: Annotated[Finite, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[Finite, Field(gt=0, le=10)] | None = None
    logit_bias: dict[str, Annotated[Finite, Field(ge=-100, le=100)]] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 1

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, values: Any) -> Any:
        if isinstance(values, dict):
            for name, fine in cls.unsupported.items():
                if name in values and values[name] not in fine:
                    message = "{param} is not supported by this version: leave it out"
                    raise PydanticCustomError("unsupported", message, {"param": name})
        return values

    # Both requests bound their tokens, each with a default of its own.
    @field_validator("n", "max_tokens", mode="before", check_fields=False)
    @classmethod
    def _null_is_the_default(cls, value: object, info: ValidationInfo) -> object:
        return cls.model_fields[info.field_name or ""].default if value is None else value


class ChatRequest(SampledRequest):
    """``POST /v1/chat/completions``.

    ``enable_thinking`` lets the model think before it answers; ``return_reasoning`` returns the thought in
    ``reasoning_content`` and ``reasoning``. Without a ``temperature`` the answer is greedy.
    """

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {
        "functions": (None, []),
        "function_call": (None, "none", "auto"),
        "modalities": (None, [], ["text"]),
        "audio": (None,),
        "prediction": (None,),
        "moderation": (None,),
        "web_search_options": (None,),
        "guided_json": (None,),
        "guided_regex": (None,),
        "guided_choice": (None,),
        "guided_grammar": (None,),
        "structured_outputs": (None,),
        "best_of": (None, 1),
        "echo": (None, False),
    }

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: Annotated[int, Field(ge=1, le=1 << 31)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=1 << 31)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: AnswerFormat | None = None
    tools: ToolSpecs | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    enable_thinking: bool | None = None
    return_reasoning: bool | None = None
    extra_body: TemplateOptions | None = None
    chat_template_kwargs: TemplateOptions | None = None

    @model_validator(mode="after")
    def _check_together(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs to be true")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options may only be given when stream is true")
        return self

    @property
    def wants_thinking(self) -> bool:
        """Whether the client asks for a thought, wherever it says so."""
        return any(place.enable_thinking for place in self._places())

    @property
    def wants_reasoning(self) -> bool:
        """Whether the client wants to read the thought."""
        return any(place.return_reasoning for place in self._places())

    @property
    def callable_tools(self) -> tuple[Tool, ...]:
        """The tools that the model may call.

        Raises:
            RequestError: they contradict each other or ``tool_choice``.
        """
        return tools_of(self.tools, self.tool_choice)

    @property
    def structure(self) -> Structure | None:
        """The form that the answer must have.

        Raises:
            RequestError: the tools or the format contradict themselves.
        """
        parallel = self.parallel_tool_calls is not False
        return structure_of(self.callable_tools, self.tool_choice, self.response_format, parallel)

    @property
    def token_limit(self) -> int | None:
        """The bound on generated tokens."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings, without empty ones, which mean nothing."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(text for text in given if text)

    def _places(self) -> list[ChatRequest | TemplateOptions]:
        nested = [place for place in (self.extra_body, self.chat_template_kwargs) if place is not None]
        return [self, *nested]
