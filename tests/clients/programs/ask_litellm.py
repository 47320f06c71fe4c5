"""What LiteLLM makes of a service: ``python ask_litellm.py URL`` prints one JSON document."""

import asyncio
import base64
import json
import os
import struct
import sys
import zlib

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # the prices would be fetched from the internet
import litellm

litellm.suppress_debug_info = True
SERVICE = {"model": "openai/autoglm-phone-9b", "api_base": sys.argv[1] + "/v1", "api_key": "EMPTY"}
ASK = SERVICE | {"temperature": 0, "messages": [{"role": "user", "content": "你是谁?"}]}
THINK = {"extra_body": {"enable_thinking": True, "return_reasoning": True}}
POINT = {
    "type": "object",
    "properties": {
        "x": {"type": "integer", "minimum": 0, "maximum": 999},
        "kind": {"enum": ["tap", "swipe"]},
    },
    "required": ["x", "kind"],
    "additionalProperties": False,
}


def stream():
    chunks = list(litellm.completion(**ASK, stream=True, stream_options={"include_usage": True}, **THINK))
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    usage = [chunk.usage for chunk in chunks if getattr(chunk, "usage", None)]
    return {
        "content": "".join(delta.content or "" for delta in deltas),
        "reasoning": "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas),
        "finish_reason": [
            c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason
        ],
        "completion_tokens": usage[-1].completion_tokens,
    }


def whole():
    answer = litellm.completion(**ASK, **THINK)
    message = answer.choices[0].message
    return {
        "content": message.content,
        "reasoning": message.reasoning_content,
        "fingerprint": answer.system_fingerprint,
        "total_tokens": answer.usage.total_tokens,
    }


async def many():
    answers = await asyncio.gather(*(litellm.acompletion(**ASK) for _ in range(3)))
    return [answer.choices[0].message.content for answer in answers]


def schema():
    form = {"type": "json_schema", "json_schema": {"name": "point", "schema": POINT, "strict": True}}
    return litellm.completion(**ASK, response_format=form).choices[0].message.content


def tool():
    function = {"name": "tap", "description": "Tap a point", "parameters": POINT}
    answer = litellm.completion(
        **ASK,
        tools=[{"type": "function", "function": function}],
        tool_choice={"type": "function", "function": {"name": "tap"}},
    )
    call = answer.choices[0].message.tool_calls[0]
    return {"name": call.function.name, "arguments": call.function.arguments}


def picture():
    def chunk(name, content):
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    rows = zlib.compress(b"".join(b"\0" + bytes([row % 256] * 3 * 64) for row in range(64)))
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0))
    png += chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    url = "data:image/png;base64," + base64.b64encode(png).decode()
    content = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": "Describe the screen"},
    ]
    answer = litellm.completion(**SERVICE, messages=[{"role": "user", "content": content}], max_tokens=8)
    return answer.usage.prompt_tokens


def error(**wrong):
    try:
        litellm.completion(**ASK | wrong, num_retries=0)
    except Exception as problem:  # noqa: BLE001 - the class is what is asked for
        return [type(problem).__name__, str(problem)]
    return ["", ""]


print(
    json.dumps(
        {
            "version": litellm.__version__ if hasattr(litellm, "__version__") else "",
            "stream": stream(),
            "whole": whole(),
            "many": asyncio.run(many()),
            "schema": schema(),
            "tool": tool(),
            "picture": picture(),
            "no such model": error(model="openai/nothing"),
            "wrong temperature": error(temperature=9),
        }
    )
)
