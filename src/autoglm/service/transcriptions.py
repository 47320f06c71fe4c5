"""``POST /v1/audio/transcriptions``: what is said in a recording, in OpenAI's shape.

The model is asked in a conversation, by the one instruction it was trained with, so a transcription is an
answer like any other: pinned to a release, streamed, cancelled when the client goes away. It knows no times
of words, so the formats that are made of times are refused.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Annotated, Any, Literal

import anyio.to_thread
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from autoglm.engine import Finished, Generation, GenerationRequest, Sampling, TextDelta, TokenLogprob, Usage
from autoglm.errors import AutoGLMError, RequestError
from autoglm.model.audio import SAMPLE_RATE, Samples, decode_audio
from autoglm.model.transcription import transcription_messages
from autoglm.service.bodies import component_schemas
from autoglm.service.chat import FAILURES, VERSION_HEADER
from autoglm.service.forms import read_form
from autoglm.service.problems import APIError, problem_of_fields
from autoglm.service.state import OpenState, ServiceState
from autoglm.service.streaming import ChunkStream, Metered, all_begun, broken, collect, server_event
from autoglm.service.turns import let_in

# Nobody says more than this: what goes on is babble.
_TOKENS_PER_SECOND, _TOKENS_ANYWAY = 20, 32
_LANGUAGES = {"zh": "chinese", "en": "english"}
_LISTS = ("include", "timestamp_granularities")
_UNSUPPORTED = ("chunking_strategy", "keywords", "known_speaker_names", "known_speaker_references")

router = APIRouter(tags=["inference"], responses=FAILURES)


class TranscriptionRequest(BaseModel):
    """The fields of ``POST /v1/audio/transcriptions`` beside ``file``; a form has texts only."""

    model_config = ConfigDict(extra="ignore")

    model: Annotated[str, Field(min_length=1, max_length=256)]
    language: Literal["zh", "en"] | None = None
    prompt: Annotated[str, Field(max_length=4096)] = ""
    response_format: Literal["json", "text", "verbose_json"] = "json"
    temperature: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.0
    stream: bool = False
    include: list[Literal["logprobs"]] = Field(default_factory=list[Literal["logprobs"]])

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, values: Any) -> Any:
        names = [name for name in _UNSUPPORTED if values.get(name)]
        if values.get("timestamp_granularities"):
            names.append("timestamp_granularities")
        if values.get("response_format") in ("srt", "vtt", "diarized_json"):
            names.append("response_format")
        if names:
            message = "{param}: this model knows no times and no speakers: leave it out, or ask for json"
            raise PydanticCustomError("unsupported", message, {"param": names[0]})
        return values

    @model_validator(mode="after")
    def _check_together(self) -> TranscriptionRequest:
        if self.stream and self.response_format == "verbose_json":
            raise ValueError("verbose_json cannot be streamed")
        return self

    @property
    def wants_logprobs(self) -> bool:
        """Whether the tokens' log-probabilities are wanted."""
        return "logprobs" in self.include


def _form_schema() -> dict[str, Any]:
    schema = component_schemas(TranscriptionRequest)["TranscriptionRequest"]
    properties = {"file": {"type": "string", "format": "binary"}} | schema["properties"]
    described = {"type": "object", "properties": properties, "required": ["file", "model"]}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": described}}}}


@router.post("/v1/audio/transcriptions", openapi_extra=_form_schema(), response_class=Response)
async def transcribe(request: Request, state: OpenState) -> Response:
    """Write down what is said in a recording; as text, as JSON, or as server-sent events."""
    form = await read_form(request, state.settings.max_body_bytes)
    wanted = _wanted(form.fields)
    if "file" not in form.files:
        raise APIError(400, "file: the recording is missing", param="file", code="invalid_value")
    version = state.version_of(wanted.model)
    state.require_own_model("transcriptions")
    await let_in(state)
    samples, generation = await anyio.to_thread.run_sync(
        _submit, state, wanted, form.files["file"], version, limiter=state.decoding, abandon_on_cancel=False
    )
    await all_begun([generation])
    if spend := state.access.quota.spender(request):
        generation = Metered(generation, spend)
    headers = {VERSION_HEADER: generation.release}
    seconds = len(samples) / SAMPLE_RATE
    if wanted.stream:
        return ChunkStream(_stream(generation, wanted, seconds), [generation], headers)
    [events] = await collect(request, [generation])
    if wanted.response_format == "text":
        return PlainTextResponse(_text(events) + "\n", headers=headers)
    return JSONResponse(_body(events, wanted, seconds), headers=headers)


def _wanted(fields: dict[str, list[str]]) -> TranscriptionRequest:
    values = {name: given if name in _LISTS else given[-1] for name, given in fields.items()}
    try:
        return TranscriptionRequest.model_validate(values)
    except ValidationError as error:
        raise problem_of_fields(error) from error


def _submit(
    state: ServiceState, wanted: TranscriptionRequest, content: bytes, version: str | None
) -> tuple[Samples, Generation]:
    """Decode the recording and hand the question to the engine."""
    try:
        samples = decode_audio(content, state.settings.limits.audio_seconds)
        request = GenerationRequest(
            transcription_messages((samples, SAMPLE_RATE), wanted.prompt.strip()),
            sampling=Sampling(temperature=wanted.temperature, logprobs=wanted.wants_logprobs),
            max_tokens=_TOKENS_ANYWAY + int(_TOKENS_PER_SECOND * len(samples) / SAMPLE_RATE),
            release=version,
        )
        return samples, state.some_engine.submit(request)
    except RequestError as error:
        if error.param == "model":
            raise
        raise RequestError(f"file: {error}", param="file") from error


def _text(events: Sequence[TextDelta | Finished]) -> str:
    return "".join(e.text for e in events if isinstance(e, TextDelta) and e.kind == "answer").strip()


def _body(events: list[TextDelta | Finished], wanted: TranscriptionRequest, seconds: float) -> dict[str, Any]:
    text = _text(events)
    if wanted.response_format == "verbose_json":
        return {
            "task": "transcribe",
            "language": _LANGUAGES[wanted.language or language_of(text)],
            "duration": round(seconds, 3),
            "text": text,
            "usage": {"type": "duration", "seconds": round(seconds, 3)},
        }
    body: dict[str, Any] = {"text": text, "usage": _usage(events[-1])}
    if wanted.wants_logprobs:
        deltas = [event for event in events if isinstance(event, TextDelta) and event.kind == "answer"]
        body["logprobs"] = [_logprob(entry) for delta in deltas for entry in delta.logprobs]
    return body


def language_of(text: str) -> Literal["zh", "en"]:
    """Guess the language of a transcript by its letters."""
    return "zh" if any("\u4e00" <= letter <= "\u9fff" for letter in text) else "en"


def _usage(ending: TextDelta | Finished) -> dict[str, Any]:
    usage = ending.usage if isinstance(ending, Finished) else Usage(0, 0)
    return {
        "type": "tokens",
        "input_tokens": usage.prompt_tokens,
        "output_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _logprob(entry: TokenLogprob) -> dict[str, Any]:
    text = entry.text
    return {"token": text, "logprob": max(entry.logprob, -9999.0), "bytes": list(text.encode())}


async def _stream(
    generation: Generation, wanted: TranscriptionRequest, seconds: float
) -> AsyncGenerator[bytes]:
    """Yield ``transcript.text.delta`` events, then ``transcript.text.done``; or an error as the last."""
    events: list[TextDelta | Finished] = []
    try:
        async for event in generation:
            events.append(event)
            if isinstance(event, TextDelta) and event.kind == "answer":
                body: dict[str, Any] = {"type": "transcript.text.delta", "delta": event.text}
                if wanted.wants_logprobs:
                    body["logprobs"] = [_logprob(entry) for entry in event.logprobs]
                yield server_event(body)
    except AutoGLMError as error:
        yield broken(error)
        return
    yield server_event({"type": "transcript.text.done"} | _body(events, wanted, seconds))
    yield b"data: [DONE]\n\n"
