"""Between the engine's requests and vLLM's chat API: the body that is sent, and what a chunk says.

The body holds only fields of vLLM's own API. Every request is streamed, with usage in each chunk, so that an
answer that is cut off here, at ``</answer>`` or at a stop string, still knows its tokens.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import soundfile  # pyright: ignore[reportMissingTypeStubs]

from autoglm.engine import GenerationRequest, Sampling, TokenLogprob, ToolAnswer, Usage
from autoglm.errors import BackendError, OverloadedError, RequestError
from autoglm.model.prompt import AudioPart, ImagePart, Message, Part, TextPart

_MAX_REASON_CHARS = 500
_PICTURES = ((b"\x89PNG", "png"), (b"\xff\xd8\xff", "jpeg"), (b"RIFF", "webp"), (b"GIF8", "gif"))


def body_of(request: GenerationRequest, served_name: str) -> dict[str, Any]:
    """Return the JSON of a chat completion.

    Args:
        request: what to generate; stop strings and tags are the caller's business.
        served_name: under which the server serves its model.

    Raises:
        RequestError: it asks for what vLLM does not do in this way.
    """
    limit = {} if request.max_tokens is None else {"max_tokens": request.max_tokens}
    return {
        "model": served_name,
        "messages": [_message(message) for message in request.messages],
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        "chat_template_kwargs": {"enable_thinking": request.enable_thinking},
        **limit,
        **_sampling(request.sampling),
        **_format(request),
    }


def _sampling(sampling: Sampling) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or -1,
        "min_p": sampling.min_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "repetition_penalty": sampling.repetition_penalty,
    }
    if sampling.logit_bias:
        fields["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
    if sampling.seed is not None:
        fields["seed"] = sampling.seed
    if sampling.logprobs:
        fields |= {"logprobs": True, "top_logprobs": sampling.top_logprobs}
    return fields


def _format(request: GenerationRequest) -> dict[str, Any]:
    structure = request.structure
    if isinstance(structure, ToolAnswer):
        if structure.required:
            message = "with the vLLM backend a call of a tool cannot be required: leave tool_choice to auto"
            raise RequestError(message, param="tool_choice")
        structure = None
    if structure is None:
        return {}
    schema = dict(structure.schema)
    return {
        "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}},
    }


def _message(message: Message) -> dict[str, Any]:
    role = {"developer": "system", "tool": "user"}.get(message.role, message.role)
    if isinstance(message.content, str):
        return {"role": role, "content": message.content}
    return {"role": role, "content": [_part(part) for part in message.content]}


def _part(part: Part) -> dict[str, Any]:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    if isinstance(part, ImagePart):
        kind, content = _picture(part)
        text = base64.b64encode(content).decode()
        return {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{text}"}}
    data = base64.b64encode(_recording(part)).decode()
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}


def _picture(part: ImagePart) -> tuple[str, bytes]:
    """Return the file that the client sent, which was decoded and so is what it says, or a new PNG."""
    content = part.image if isinstance(part.image, bytes) else part.file
    if content is None:
        buffer = io.BytesIO()
        cast("Any", part.image).save(buffer, "PNG", compress_level=1)
        content = buffer.getvalue()
    return next((kind for head, kind in _PICTURES if content.startswith(head)), "png"), content


def _recording(part: AudioPart) -> bytes:
    if isinstance(part.audio, bytes):
        return part.audio
    samples, rate = part.audio
    buffer = io.BytesIO()
    cast("Any", soundfile).write(buffer, samples, rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


@dataclass(frozen=True)
class Chunk:
    """What one event of the stream says of its only choice.

    Attributes:
        thought: more of the thought, as the server's reasoning parser found it.
        text: more of the text.
        reason: how it ended, None before the end.
        usage: tokens so far, when the event says so.
        logprobs: of the tokens in this event.
    """

    thought: str = ""
    text: str = ""
    reason: str | None = None
    usage: Usage | None = None
    logprobs: tuple[TokenLogprob, ...] = ()


def chunk_of(data: bytes) -> Chunk:
    """Read one event.

    Raises:
        BackendError: it is an error of the server, or no chunk.
    """
    try:
        body = cast("dict[str, Any]", json.loads(data))
        if "error" in body:
            raise BackendError(f"vLLM broke off: {reason_of(body)}")
        choices = body.get("choices") or [{}]
        delta = choices[0].get("delta") or {}
        return Chunk(
            # vLLM's name was reasoning_content until 0.11, and is reasoning since.
            thought=delta.get("reasoning") or delta.get("reasoning_content") or "",
            text=delta.get("content") or "",
            reason=choices[0].get("finish_reason"),
            usage=_usage(body.get("usage")),
            logprobs=_logprobs(choices[0].get("logprobs")),
        )
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise BackendError(f"vLLM sent what is no chunk: {data[:80]!r}") from error


def _usage(body: Mapping[str, Any] | None) -> Usage | None:
    if not body:
        return None
    prompt, completion = (
        body.get(name) or {} for name in ("prompt_tokens_details", "completion_tokens_details")
    )
    return Usage(
        prompt_tokens=int(body.get("prompt_tokens") or 0),
        completion_tokens=int(body.get("completion_tokens") or 0),
        thought_tokens=int(completion.get("reasoning_tokens") or 0),
        cached_tokens=int(prompt.get("cached_tokens") or 0),
    )


def _logprobs(body: Mapping[str, Any] | None) -> tuple[TokenLogprob, ...]:
    entries: list[Any] = (body or {}).get("content") or []
    # vLLM names tokens by their text alone here.
    return tuple(
        TokenLogprob(
            token_id=-1,
            text=str(entry["token"]),
            logprob=float(entry["logprob"]),
            top=tuple(
                (-1, str(top["token"]), float(top["logprob"])) for top in entry.get("top_logprobs") or ()
            ),
        )
        for entry in entries
    )


def refusal_of(status: int, content: bytes, retry_after: str | None) -> Exception:
    """Return the error for an answer of the server that is no success."""
    try:
        reason = reason_of(cast("dict[str, Any]", json.loads(content)))
    except (ValueError, RecursionError, AttributeError):
        reason = content[:_MAX_REASON_CHARS].decode(errors="replace")
    if status in (400, 413, 422):
        return RequestError(f"vLLM refuses the request: {reason}")
    if status in (429, 503):
        seconds = int(retry_after) if retry_after and retry_after.isdigit() else 2
        return OverloadedError(f"vLLM takes no more requests now: {reason}", retry_after_s=seconds)
    return BackendError(f"vLLM answered {status}: {reason}")


def reason_of(body: Mapping[str, Any]) -> str:
    """Return what an error body of vLLM says, bounded."""
    error = body.get("error") or body.get("detail") or body
    text = cast("dict[str, Any]", error).get("message") if isinstance(error, dict) else error
    return " ".join(str(text or error).split())[:_MAX_REASON_CHARS]
