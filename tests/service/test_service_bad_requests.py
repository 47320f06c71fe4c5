"""Hostile and mistaken input: a clear OpenAI-shaped error each, and the service goes on."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import socket
import struct
import zlib
from typing import Any

import pytest
from openai import BadRequestError, NotFoundError, OpenAI
from PIL import Image

HI = [{"role": "user", "content": "hi"}]


def message_with(part: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [part]}]


def image(url: str) -> dict[str, Any]:
    return {"messages": message_with({"type": "image_url", "image_url": {"url": url}})}


def audio(data: str, form: str = "wav") -> dict[str, Any]:
    return {"messages": message_with({"type": "input_audio", "input_audio": {"data": data, "format": form}})}


def data_uri(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def bomb() -> bytes:
    """A PNG of a few hundred bytes that promises 60,000 x 60,000 pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        crc = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(10_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def small_png(size: tuple[int, int] = (8, 8)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size).save(file, "PNG")
    return file.getvalue()


def tool(name: str, parameters: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters or {}}}


def json_schema(schema: dict[str, Any]) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}}


WRONG_FIELDS = [
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "king", "content": "hi"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
    ({"messages": message_with({"type": "video"})}, "messages[0].content[0]"),
    ({"messages": message_with({"type": "text"})}, "messages[0].content[0].text"),
    ({"model": ""}, "model"),
    ({"model": None}, "model"),
    ({"temperature": "0.5"}, "temperature"),
    ({"temperature": 3}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"n": 0}, "n"),
    ({"n": 1000}, "n"),
    ({"seed": 1 << 70}, "seed"),
    ({"stop": 5}, "stop"),
    ({"stop": ["a"] * 17}, "stop"),
    ({"stop": "x" * 1000}, "stop"),
    ({"presence_penalty": 9}, "presence_penalty"),
    ({"logit_bias": {"a": 1}}, "logit_bias"),
    ({"logit_bias": {"1": 1000}}, "logit_bias"),
    ({"stream": "yes"}, "stream"),
    ({"enable_thinking": 1}, "enable_thinking"),
    ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"tools": [tool("a"), tool("a")]}, "tools"),
    ({"tools": [tool("a b")]}, "tools[0].function.name"),
    ({"tools": [tool("a", {"type": "array"})]}, "tools[0].function.parameters"),
    ({"tools": [tool("a", {"properties": {"x": {"type": "nonsense"}}})]}, "tools"),
    ({"tools": [tool("a")] * 65}, "tools"),
    ({"tools": [tool("a")], "tool_choice": {"type": "function", "function": {"name": "b"}}}, "tool_choice"),
    ({"tools": [tool("a")], "tool_choice": "maybe"}, "tool_choice"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"functions": [{"name": "a"}]}, "functions"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format"),
    (json_schema({"type": "nonsense"}), "response_format"),
    (json_schema({"$ref": "#/nowhere"}), "response_format"),
    (json_schema({"not": {"type": "null"}}), "response_format"),
    (json_schema({"pattern": "(" * 50, "type": "string"}), "response_format"),
    (json_schema({"enum": ["x" * 300_000]}), "response_format"),
    ({"min_p": 2}, "min_p"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"messages": [{"role": "tool", "content": None}]}, "messages[0].content"),
    ({"modalities": ["audio"]}, "modalities"),
    (image("https://127.0.0.1/secret.png"), "messages[0].content[0]"),
    (image("file:///etc/passwd"), "messages[0].content[0]"),
    (image("data:text/plain;base64,aGk="), "messages[0].content[0]"),
    (image("data:image/png;base64,%%%"), "messages[0].content[0]"),
    (image(data_uri(b"no image")), "messages[0].content[0]"),
    (image(data_uri(small_png((64, 64))[:60])), "messages[0].content[0]"),
    (image(data_uri(bomb())), "messages[0].content[0]"),
    (audio("!!"), "messages[0].content[0]"),
    (audio(base64.b64encode(b"RIFFxxxxWAVE").decode()), "messages[0].content[0]"),
    (audio("", "ogg"), "messages[0].content[0].input_audio.format"),
]


@pytest.mark.parametrize(("fields", "param"), WRONG_FIELDS)
def test_a_wrong_field_is_a_400_that_names_it(service: Any, fields: dict[str, Any], param: str) -> None:
    """Each mistake is answered with the field at fault in ``param``, in OpenAI's shape."""
    response = service.chat(**fields)
    error = response.json()["error"]
    assert response.status_code == 400, error
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert (error["param"] or "").startswith(param), error


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"\xff\xfe",
        b"[" * 60_000,
        b'{"model": NaN}',
        b'{"a": "\\ud800"}',
        b"null",
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/model/update", "/v1/model/events"])
def test_a_body_that_is_no_request_is_a_400(service: Any, path: str, body: bytes) -> None:
    """Malformed JSON and JSON of another kind are refused alike on every open route."""
    response = service.post(path, data=body)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_a_body_over_the_limit_is_a_413(service: Any) -> None:
    """Too large a body is refused by its announced length, and also when it announces none."""
    large = b" " * ((32 << 20) + 1)
    assert service.post("/v1/chat/completions", data=large).status_code == 413
    assert service.post("/v1/chat/completions", data=iter([large])).status_code == 413
    assert service.post("/v1/model/update", data=b" " * 70_000).status_code == 413
    assert service.chat().status_code == 200


def exchange(service: Any, *pieces: bytes) -> bytes:
    """Send bytes as they are, a piece at a time, and return what comes back before the end."""
    host, port = service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        with contextlib.suppress(OSError):  # it may hang up before the last piece
            for piece in pieces:
                connection.sendall(piece)
        answer = b""
        with contextlib.suppress(ConnectionError):
            while piece := connection.recv(1 << 16):
                answer += piece
        return answer


@pytest.mark.parametrize(
    ("start", "status"),
    [
        (b"GET /health HTTP/1.1\r\nHost: x\r\nX: ", b"431"),
        (b"GET /", b"431"),
        (b"POST /v1/model/update HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: ", b"431"),
        (b"nonsense\r\n\r\n", b"400"),
    ],
)
def test_a_head_without_end_and_what_is_no_http_are_refused(
    service: Any, start: bytes, status: bytes
) -> None:
    """The connection ends with an error in the usual shape instead of filling the memory."""
    pieces = [b"a" * (1 << 16)] * 8 if status == b"431" else []
    answer = exchange(service, start, *pieces)
    if answer:  # bytes of ours that it had not read may have thrown its answer away
        head, body = answer.split(b"\r\n\r\n", 1)
        assert head.split()[1] == status
        assert json.loads(body)["error"]["type"] == "invalid_request_error"
    assert service.get("/health").status_code == 200


@pytest.mark.parametrize(("size", "status"), [(60_000, b"200"), (70_000, b"431"), (200_000, b"431")])
def test_a_whole_head_is_bounded_too(service: Any, size: int, status: bytes) -> None:
    """A head of more than 64 KiB is a 431 in however few pieces it comes, and the client reads it."""
    end = b"\r\nConnection: close\r\n\r\n"
    answer = exchange(service, b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"a" * size + end)
    assert answer.split()[1] == status


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET %s HTTP/1.1\r\nHost: a\r\nHost: b\r\n", b"400"),
        (b"GET %s HTTP/1.1\r\n", b"400"),
        (b"GET %s HTTP/1.1\r\nHost: a\r\n", b"200"),
        (b"GET %s HTTP/1.0\r\n", b"200"),
    ],
)
@pytest.mark.parametrize("path", [b"/health", b"/v1/models"])
def test_every_route_needs_one_host(service: Any, path: bytes, head: bytes, status: bytes) -> None:
    """Two Host headers, or none in HTTP/1.1, are refused before any route is looked for."""
    answer = exchange(service, head % path + b"Connection: close\r\n\r\n")
    assert answer.split()[1] == status
    assert (b"invalid_host" in answer) is (status == b"400")


def test_a_long_body_in_small_chunks_is_fine(service: Any) -> None:
    """The bound is on what comes before and after a body, however it is cut."""
    body = b'{"device_id": "d"}' + b" " * 30_000
    chunks = b"".join(b"1\r\n" + body[i : i + 1] + b"\r\n" for i in range(len(body)))
    head = b"POST /v1/model/update HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    head += b"Transfer-Encoding: chunked\r\n\r\n"
    answer = exchange(service, head, chunks, b"0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200")


def test_images_share_one_pixel_budget(service: Any) -> None:
    """Many images that fit alone do not fit together when their pixels pass the limit."""
    large = {"type": "image_url", "image_url": {"url": data_uri(small_png((6000, 4000)))}}
    one = service.chat(messages=[{"role": "user", "content": [large]}])
    two = service.chat(messages=[{"role": "user", "content": [large, large]}])
    assert one.status_code == 200
    assert two.status_code == 400
    assert two.json()["error"]["param"] == "messages[0].content[1]"


def test_a_conversation_beyond_the_context_is_refused_with_numbers(service: Any) -> None:
    """A prompt too long for the model is a 400 that says how long it is."""
    response = service.chat("x" * 5000)
    assert response.status_code == 400
    assert "1024" in response.json()["error"]["message"]


def test_unknown_paths_and_methods_have_the_same_shape(service: Any) -> None:
    """404 and 405 are OpenAI-shaped too."""
    for response, status in (
        (service.get("/v1/nothing"), 404),
        (service.get("/v1/chat/completions"), 405),
        (service.get("/v1/models/nothing"), 404),
    ):
        assert response.status_code == status
        assert response.json()["error"]["message"]


def test_the_openai_client_raises_its_own_errors(service: Any) -> None:
    """The official client turns the answers into its typed exceptions, with our message."""
    client = OpenAI(base_url=f"{service.url}/v1", api_key="EMPTY", max_retries=0)
    messages: Any = HI
    with pytest.raises(NotFoundError, match="does not exist"):
        client.chat.completions.create(model="gpt-4", messages=messages)
    with pytest.raises(BadRequestError, match="temperature"):
        client.chat.completions.create(model="autoglm-phone-9b", messages=messages, temperature=9)


def test_past_the_queue_limit_is_a_503_with_retry_after(start_service: Any) -> None:
    """What the queue cannot hold is refused at once and told when to come back; what it holds is answered."""
    from concurrent.futures import ThreadPoolExecutor

    service = start_service(limits={"queue": 1}, model={"max_batch": 1})
    with ThreadPoolExecutor(12) as pool:
        responses = list(pool.map(lambda _: service.chat(max_tokens=300), range(12)))
    statuses = {response.status_code for response in responses}
    assert statuses == {200, 503}
    refused = next(response for response in responses if response.status_code == 503)
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["type"] == "overloaded_error"
