"""Transcriptions over HTTP: the forms that clients send, what comes back, what is refused."""

from __future__ import annotations

import io
import json
import math
from typing import Any

import numpy as np
import pytest
import requests
import soundfile
from openai import BadRequestError, OpenAI

from autoglm.model.transcription import TRANSCRIBE, transcription_messages

MODEL = "autoglm-phone-9b"
PATH = "/v1/audio/transcriptions"


def clip(seconds: float = 0.5, rate: int = 16_000, form: str = "WAV", channels: int = 1) -> bytes:
    times = np.arange(int(seconds * rate)) / rate
    wave = np.sin(times * 440 * math.tau) / 2
    file = io.BytesIO()
    soundfile.write(file, np.stack([wave] * channels, 1), rate, format=form)
    return file.getvalue()


def ask(service: Any, content: bytes | None = None, name: str = "a.wav", **fields: Any) -> requests.Response:
    files = {"file": (name, clip() if content is None else content)}
    url = service.url + PATH
    return requests.post(url, files=files, data={"model": MODEL} | fields, timeout=60)


def test_a_recording_is_written_down(service: Any) -> None:
    """JSON with the text and the tokens that it took; the answer names its release."""
    answer = ask(service)
    body = answer.json()
    assert answer.status_code == 200, answer.text
    assert set(body) == {"text", "usage"}
    assert body["usage"]["total_tokens"] == body["usage"]["input_tokens"] + body["usage"]["output_tokens"]
    assert answer.headers["x-autoglm-version"] == "v1.2"


def test_it_is_the_models_answer_to_the_one_instruction(service: Any) -> None:
    """The text is what the model answers to the conversation that training knows."""
    from autoglm.engine import GenerationRequest

    wanted = GenerationRequest(transcription_messages(clip()), max_tokens=42)
    assert TRANSCRIBE in wanted.messages[-1].text
    answer = service.state.engine.submit(wanted).result(60).answer
    assert ask(service).json()["text"] == answer.strip()


@pytest.mark.parametrize("form", ["WAV", "FLAC", "OGG", "MP3", "AIFF"])
@pytest.mark.parametrize(("rate", "channels"), [(8_000, 1), (44_100, 2)])
def test_the_usual_files_are_read(service: Any, form: str, rate: int, channels: int) -> None:
    """Whatever soundfile reads, by its bytes, not by its name; any usual rate, one channel or two."""
    assert ask(service, clip(0.5, rate, form, channels), name="speech.bin").status_code == 200


def test_text_and_verbose_json(service: Any) -> None:
    """``text`` is plain; ``verbose_json`` adds length and language, and has no times."""
    plain = ask(service, response_format="text")
    assert plain.headers["content-type"].startswith("text/plain")
    assert plain.text.strip() == ask(service).json()["text"]
    verbose = ask(service, response_format="verbose_json", language="zh").json()
    assert verbose["duration"] == 0.5
    assert verbose["language"] == "chinese"
    assert verbose["text"] == plain.text.strip()


def test_a_stream_gives_the_same_text_in_pieces(service: Any) -> None:
    """Deltas, then one event with the whole, then the end mark."""
    lines = [line for line in ask(service, stream="true").iter_lines() if line]
    assert lines[-1] == b"data: [DONE]"
    events = [json.loads(line[6:]) for line in lines[:-1]]
    assert {event["type"] for event in events[:-1]} == {"transcript.text.delta"}
    assert events[-1]["type"] == "transcript.text.done"
    assert "".join(event["delta"] for event in events[:-1]).strip() == events[-1]["text"]
    assert events[-1]["text"] == ask(service).json()["text"]


def test_the_official_client_reads_all_of_it(service: Any) -> None:
    """The openai package: whole, verbose, streamed and with log-probabilities; its own error for ours."""
    client = OpenAI(base_url=f"{service.url}/v1", api_key="EMPTY", max_retries=0).audio.transcriptions
    text = ask(service).json()["text"]
    assert client.create(model=MODEL, file=("a.wav", clip())).text == text
    verbose = client.create(model=MODEL, file=("a.wav", clip()), response_format="verbose_json")
    assert (verbose.text, verbose.duration) == (text, 0.5)
    events = list(client.create(model=MODEL, file=("a.wav", clip()), stream=True))
    assert getattr(events[-1], "text", None) == text
    detailed = client.create(model=MODEL, file=("a.wav", clip()), include=["logprobs"])
    assert detailed.logprobs
    assert all(entry.logprob is not None and entry.logprob <= 0 for entry in detailed.logprobs)
    with pytest.raises(BadRequestError, match="response_format"):
        client.create(model=MODEL, file=("a.wav", clip()), response_format="srt")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": "srt"}, "response_format"),
        ({"response_format": "vtt"}, "response_format"),
        ({"response_format": "xml"}, "response_format"),
        ({"timestamp_granularities[]": "word"}, "timestamp_granularities"),
        ({"chunking_strategy": "auto"}, "chunking_strategy"),
        ({"language": "xx"}, "language"),
        ({"temperature": "2"}, "temperature"),
        ({"temperature": "nan"}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"stream": "perhaps"}, "stream"),
        ({"stream": "true", "response_format": "verbose_json"}, None),
        ({"include[]": "words"}, "include"),
        ({"prompt": "x" * 5000}, "prompt"),
        ({"model": ""}, "model"),
    ],
)
def test_a_wrong_field_is_named(service: Any, fields: dict[str, str], param: str | None) -> None:
    """Each mistake is a 400 in OpenAI's shape with the field at fault."""
    answer = ask(service, **fields)
    assert answer.status_code == 400, answer.text
    assert (answer.json()["error"]["param"] or "").startswith(param or ""), answer.text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"RIFF",
        b"no sound",
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        clip()[:30],
        clip(0),
        clip(70.0, 8_000),
        clip(10.0),
    ],
    ids=["empty", "head", "text", "png", "cut", "no samples", "over the limit", "over the model's"],
)
def test_a_file_that_cannot_be_used_is_a_400(service: Any, content: bytes) -> None:
    """No sound, cut off, empty or too long: ``file`` is named."""
    answer = ask(service, content)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == "file"


def post(service: Any, body: bytes, kind: str) -> requests.Response:
    return requests.post(service.url + PATH, data=body, headers={"content-type": kind}, timeout=60)


def part(name: str, content: bytes, more: str = "") -> bytes:
    head = f'--b\r\ncontent-disposition: form-data; name="{name}"{more}\r\n\r\n'
    return head.encode() + content + b"\r\n"


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"{}", "application/json"),
        (b"", "multipart/form-data"),
        (b"--b", "multipart/form-data; boundary=b"),
        (b"nothing of the kind", "multipart/form-data; boundary=b"),
        (part("model", MODEL.encode()) + b"--b--\r\n", "multipart/form-data; boundary=b"),
        (part("file", clip()) + b"--b--\r\n", "multipart/form-data; boundary=b"),
        (b"--b\r\ncontent-disposition: form-data\r\n\r\nx\r\n--b--\r\n", "multipart/form-data; boundary=b"),
        (part("x", b"1") * 100 + b"--b--\r\n", "multipart/form-data; boundary=b"),
        (part("model", b"m" * 100_000) + b"--b--\r\n", "multipart/form-data; boundary=b"),
        (
            part("file", clip(), '; filename="a"') * 3 + b"--b--\r\n",
            "multipart/form-data; boundary=b",
        ),
        (part("model", b"\xff\xfe\xfd") + b"--b--\r\n", "multipart/form-data; boundary=b; charset=utf-16"),
        (b"--b\r\n" + b"x" * 50_000 + b": y\r\n\r\n", "multipart/form-data; boundary=b"),
    ],
)
def test_a_body_that_is_no_such_form_is_a_400(service: Any, body: bytes, kind: str) -> None:
    """Other types, cut off, without a file, with too many or too large fields: refused, and all goes on."""
    answer = post(service, body, kind)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert service.get("/health").status_code == 200


def test_a_version_is_pinned_or_refused(service: Any) -> None:
    """``model@version`` is followed; a version or a name that is not there is a 404."""
    assert ask(service, model=f"{MODEL}@v1.2").status_code == 200
    assert ask(service, model=f"{MODEL}@v9").status_code == 404
    assert ask(service, model="whisper-1").status_code == 404
