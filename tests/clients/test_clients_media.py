"""Embeddings and transcriptions by their usual clients."""

from __future__ import annotations

import wave
from pathlib import Path

import pytest
from langchain_openai import OpenAIEmbeddings
from openai import OpenAI

MODEL = "autoglm-phone-9b"
TEXTS = ["打开地图", "open maps", "who are you?"]


@pytest.fixture(scope="module")
def client(url: str) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key="EMPTY", max_retries=0)


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """A second of silence."""
    with wave.open(str(path := tmp_path / "command.wav"), "wb") as clip:
        clip.setnchannels(1)
        clip.setsampwidth(2)
        clip.setframerate(16_000)
        clip.writeframes(bytes(32_000))
    return path


def test_vectors_are_the_same_in_both_encodings(client: OpenAI) -> None:
    """The client asks for base64 by itself and decodes it; numbers in JSON say the same."""
    packed = client.embeddings.create(model=MODEL, input=TEXTS)
    plain = client.embeddings.create(model=MODEL, input=TEXTS, encoding_format="float")
    assert [entry.index for entry in packed.data] == [0, 1, 2]
    for one, other in zip(packed.data, plain.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6)
    assert packed.usage.prompt_tokens > 0


def test_fewer_dimensions_are_the_first_ones_at_length_one(client: OpenAI) -> None:
    """``dimensions`` cuts and scales."""
    whole = client.embeddings.create(model=MODEL, input=TEXTS[0]).data[0].embedding
    short = client.embeddings.create(model=MODEL, input=TEXTS[0], dimensions=8).data[0].embedding
    assert len(short) == 8 < len(whole)
    assert sum(part * part for part in short) == pytest.approx(1, abs=1e-4)


def test_langchains_embeddings_agree_with_the_clients(url: str, client: OpenAI) -> None:
    """Texts, not the token ids of another model, are what LangChain sends when told so."""
    embeddings = OpenAIEmbeddings(
        model=MODEL,
        base_url=f"{url}/v1",
        api_key="EMPTY",  # type: ignore[arg-type]
        check_embedding_ctx_length=False,
    )
    wanted = [entry.embedding for entry in client.embeddings.create(model=MODEL, input=TEXTS).data]
    for vector, other in zip(embeddings.embed_documents(TEXTS), wanted, strict=True):
        assert vector == pytest.approx(other, abs=1e-5)


def test_a_recording_is_transcribed_whole_and_streamed(client: OpenAI, recording: Path) -> None:
    """The deltas of a stream join to the text of the whole answer."""
    whole = client.audio.transcriptions.create(model=MODEL, file=recording)
    events = list(client.audio.transcriptions.create(model=MODEL, file=recording, stream=True))
    deltas = "".join(event.delta for event in events if event.type == "transcript.text.delta")
    assert events[-1].type == "transcript.text.done"
    assert deltas.strip() == events[-1].text.strip() == whole.text.strip()


def test_a_transcription_may_come_as_plain_text(client: OpenAI, recording: Path) -> None:
    """``response_format="text"`` is a string to the client."""
    text = client.audio.transcriptions.create(model=MODEL, file=recording, response_format="text")
    assert isinstance(text, str)
