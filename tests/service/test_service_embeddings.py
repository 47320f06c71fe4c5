"""Embeddings over HTTP: OpenAI's shape, every kind of input, one space, one release."""

from __future__ import annotations

import array
import base64
import io
import math
import threading
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from openai import OpenAI
from PIL import Image

from autoglm.model.embedding import content_prompt, embed
from autoglm.model.prompt import ImagePart, TextPart

MODEL = "autoglm-phone-9b"


def png(colour: str, size: tuple[int, int] = (40, 30)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def picture(colour: str) -> dict[str, Any]:
    uri = "data:image/png;base64," + base64.b64encode(png(colour)).decode()
    return {"type": "image_url", "image_url": {"url": uri}}


def sound(hertz: float) -> dict[str, Any]:
    file = io.BytesIO()
    times = np.arange(4000) / 16_000
    soundfile.write(file, np.sin(times * hertz * math.tau) / 2, 16_000, format="WAV")
    data = base64.b64encode(file.getvalue()).decode()
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}


def vectors(service: Any, given: object, **fields: object) -> list[list[float]]:
    answer = service.post("/v1/embeddings", {"model": MODEL, "input": given} | fields)
    assert answer.status_code == 200, answer.text
    assert [entry["index"] for entry in answer.json()["data"]] == list(range(len(answer.json()["data"])))
    return [entry["embedding"] for entry in answer.json()["data"]]


def test_a_text_has_one_vector_of_length_one(service: Any) -> None:
    """The shape is OpenAI's, and the answer names the release that computed it."""
    answer = service.post("/v1/embeddings", {"model": MODEL, "input": "open maps"})
    body = answer.json()
    assert body["object"] == "list"
    assert body["model"] == MODEL
    assert body["data"][0]["object"] == "embedding"
    assert body["usage"]["prompt_tokens"] == body["usage"]["total_tokens"] > 0
    assert answer.headers["x-autoglm-version"] == "v1.2"
    assert math.isclose(math.hypot(*body["data"][0]["embedding"]), 1, rel_tol=1e-5)


def test_every_kind_of_input_has_a_vector_of_its_own(service: Any) -> None:
    """Text, tokens, a picture, a clip and a mixture, all in one list, each unlike the others."""
    given = ["hi", [40, 41, 42], picture("red"), sound(440), [{"type": "text", "text": "hi"}, picture("red")]]
    found = vectors(service, given)
    assert len(found) == len(given)
    assert len({tuple(vector) for vector in found}) == len(given)
    assert len({len(vector) for vector in found}) == 1


def test_a_vector_depends_on_its_own_input_only(service: Any) -> None:
    """Alone, in a list, or behind others: the same numbers."""
    alone = vectors(service, "hello")
    assert vectors(service, ["something long " * 40, picture("blue"), "hello"])[2] == alone[0]
    assert vectors(service, ["hello", "hello"]) == alone * 2


def test_tokens_are_the_text_that_they_stand_for(service: Any) -> None:
    """A list of token ids is embedded as the text is, in both shapes that the API has."""
    tokenizer = service.state.engine.active.tokenizer
    ids = tokenizer.encode("hello")
    assert vectors(service, ids) == vectors(service, [ids]) == vectors(service, "hello")


def test_the_engine_computes_what_the_model_does_at_once(service: Any) -> None:
    """Read in pieces through the paged cache, or in one pass: the same vector but for rounding."""
    release = service.state.engine.active
    text = "a longer text that is read in more than one piece, " * 12
    with torch.inference_mode():
        for part, given in (
            (TextPart(text), text),
            (ImagePart(png("green")), picture("green")),
        ):
            whole = embed(release.model, *content_prompt(release.processor, [part]))
            assert torch.allclose(torch.tensor(vectors(service, given)[0]), whole, atol=1e-4)


def test_base64_holds_the_same_numbers(service: Any) -> None:
    """``encoding_format: base64`` is little-endian float32."""
    plain = vectors(service, "hi")[0]
    packed = array.array("f", base64.b64decode(str(vectors(service, "hi", encoding_format="base64")[0])))
    assert packed.tolist() == pytest.approx(plain, abs=1e-7)


def test_fewer_dimensions_are_the_first_ones_scaled(service: Any) -> None:
    """``dimensions`` cuts and scales to length one; more than there are is refused."""
    whole, short = vectors(service, "hi")[0], vectors(service, "hi", dimensions=8)[0]
    assert math.isclose(math.hypot(*short), 1, rel_tol=1e-5)
    assert short == pytest.approx([number / math.hypot(*whole[:8]) for number in whole[:8]])
    refused = service.post("/v1/embeddings", {"model": MODEL, "input": "hi", "dimensions": 9999})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "dimensions"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input[0]"),
        ({"input": []}, "input"),
        ({"input": ["hi", ""]}, "input[1]"),
        ({"input": [[]]}, "input"),
        ({"input": None}, "input"),
        ({"input": 5}, "input"),
        ({"input": [1.5]}, "input"),
        ({"input": [True]}, "input"),
        ({"input": [-1]}, "input"),
        ({"input": [1]}, "input[0]"),  # a control token
        ({"input": [100_000]}, "input[0]"),
        ({"input": "x" * 5000}, "input[0]"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": [{"type": "video"}]}, "input"),
        ({"input": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}]}, "input[0]"),
        ({"input": ["hi", [{"type": "text", "text": "a"}, sound(1) | {"type": "image_url"}]]}, "input"),
        ({"input": "hi", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "hi", "dimensions": 0}, "dimensions"),
        ({"input": "hi", "model": 7}, "model"),
    ],
)
def test_a_wrong_field_is_named(service: Any, fields: dict[str, Any], param: str) -> None:
    """Each mistake is a 400 in OpenAI's shape with the field at fault."""
    answer = service.post("/v1/embeddings", {"model": MODEL} | fields)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"].startswith(param), answer.text


def test_an_input_that_is_too_long_is_named_with_its_limit(service: Any) -> None:
    """The refusal speaks of the input, not of a conversation."""
    error = service.post("/v1/embeddings", {"model": MODEL, "input": ["a", "x" * 5000]}).json()["error"]
    assert error["param"] == "input[1]"
    assert error["message"].startswith("input[1]: it is longer than the 1023 tokens of an input")


def test_a_version_is_pinned_or_refused(service: Any) -> None:
    """``model@version`` is followed; a version that is not loaded is a 404."""
    assert service.post("/v1/embeddings", {"model": f"{MODEL}@v1.2", "input": "a"}).status_code == 200
    missing = service.post("/v1/embeddings", {"model": f"{MODEL}@v9", "input": "a"})
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "model_not_found"


def test_a_list_does_not_hold_up_a_stream(service: Any) -> None:
    """While a long list is embedded, a chat that came later is answered before the list is through."""
    done = threading.Event()

    def work() -> None:
        vectors(service, ["a text of some length " * 30] * 80)
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    service.chat("hi", max_tokens=2)
    was_first = not done.is_set()
    thread.join()
    assert was_first
    assert service.state.engine.stats().running == 0


def test_an_embedding_confirms_no_release(service: Any) -> None:
    """A release on trial is judged by answers: embeddings are none."""
    heard: list[str] = []
    service.state.engine.on_answer(lambda version, ok, finished: heard.append(version))
    vectors(service, ["a", "b", "c"])
    assert not heard


def test_the_official_client_reads_them(service: Any) -> None:
    """The openai package asks for base64 and gives back floats."""
    client = OpenAI(base_url=f"{service.url}/v1", api_key="EMPTY", max_retries=0)
    answer = client.embeddings.create(model=MODEL, input=["hi", "ho"])
    assert answer.data[0].embedding == pytest.approx(vectors(service, "hi")[0], abs=1e-7)
    assert answer.usage.prompt_tokens > 0
