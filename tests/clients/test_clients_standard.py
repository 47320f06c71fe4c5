"""langchain-tests: LangChain's own integration tests of a chat model, each as one test here."""

from __future__ import annotations

import wave
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from clients.running import PROGRAMS, run_client

PASSES = (
    "test_no_overrides_DO_NOT_OVERRIDE",
    "test_invoke",
    "test_ainvoke",
    "test_stream[model0]",
    "test_stream[model1]",
    "test_astream[model0]",
    "test_astream[model1]",
    "test_stream_events_v3",
    "test_astream_events_v3",
    "test_invoke_with_model_override",
    "test_ainvoke_with_model_override",
    "test_stream_with_model_override",
    "test_astream_with_model_override",
    "test_batch",
    "test_abatch",
    "test_conversation",
    "test_double_messages_conversation",
    "test_usage_metadata",
    "test_usage_metadata_streaming",
    "test_stop_sequence",
    "test_bind_runnables_as_tools",
    "test_tool_message_histories_string_content",
    "test_tool_message_histories_list_content",
    "test_tool_calling[model0]",
    "test_tool_calling[model1]",
    "test_tool_calling_async",
    "test_agent_loop[model0]",
    "test_agent_loop[model1]",
    "test_tool_choice",
    "test_tool_calling_with_no_arguments",
    "test_tool_message_error_status",
    "test_structured_few_shot_examples",
    "test_audio_inputs",
    "test_image_inputs",
    "test_image_tool_message",
    "test_message_with_name",
)
_ENDLESS = "the form is kept, but where any text is allowed the small model may write on up to the limit"
BEYOND_THE_MODEL = {
    "test_structured_output[pydantic]": _ENDLESS,
    "test_structured_output[typeddict]": _ENDLESS,
    "test_structured_output[json_schema]": _ENDLESS,
    "test_structured_output_async[pydantic]": _ENDLESS,
    "test_structured_output_async[typeddict]": _ENDLESS,
    "test_structured_output_async[json_schema]": _ENDLESS,
    "test_structured_output_pydantic_2_v1": _ENDLESS,
    "test_structured_output_optional_param": _ENDLESS,
    "test_json_mode": "any object is allowed, and the small model does not choose the keys that it is told",
    "test_unicode_tool_call_integration": "the small model does not copy a name out of the question",
}
NOT_OFFERED = {
    "test_pdf_inputs": "the service takes no PDF files",
    "test_pdf_tool_message": "the service takes no PDF files",
    "test_anthropic_inputs": "the service speaks OpenAI's API, not Anthropic's",
    "test_stream_time": "it compares recorded traffic with itself, and nothing is recorded",
}


@pytest.fixture(scope="module")
def outcomes(url: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    """What came of each test: (failure, error, skipped or passed; the message)."""
    directory = tmp_path_factory.mktemp("standard")
    report = directory / "report.xml"
    command = [
        "-m",
        "pytest",
        PROGRAMS / "standard_chat_model.py",
        "--confcutdir",
        PROGRAMS,
        "--junit-xml",
        report,
    ]
    media = {"AUTOGLM_PICTURE": str(_picture(directory)), "AUTOGLM_SOUND": str(_sound(directory))}
    run_client("langchain-tests", *command, AUTOGLM_URL=url, **media)
    found: dict[str, tuple[str, str]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        ends = [part for part in case if part.tag in ("failure", "error", "skipped")]
        said = (ends[0].tag, ends[0].get("message") or "") if ends else ("passed", "")
        found[case.get("name") or ""] = said
    return found


def _picture(directory: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path := directory / "picture.png")
    return path


def _sound(directory: Path) -> Path:
    with wave.open(str(path := directory / "sound.wav"), "wb") as clip:
        clip.setnchannels(1)
        clip.setsampwidth(2)
        clip.setframerate(16_000)
        clip.writeframes((8000 * np.sin(np.arange(24_000) / 8)).astype("<i2").tobytes())
    return path


def test_every_standard_test_is_accounted_for(outcomes: dict[str, tuple[str, str]]) -> None:
    """No test of the package is left out of the lists in this file."""
    assert set(outcomes) == {*PASSES, *BEYOND_THE_MODEL, *NOT_OFFERED}


@pytest.mark.parametrize("name", PASSES)
def test_a_standard_test_passes(outcomes: dict[str, tuple[str, str]], name: str) -> None:
    """The service does what LangChain expects of a chat model."""
    ending, message = outcomes[name]
    assert ending == "passed", message


@pytest.mark.parametrize("name", BEYOND_THE_MODEL)
def test_what_needs_a_larger_model(outcomes: dict[str, tuple[str, str]], name: str) -> None:
    """The service does its part; what the small model answers is not what the test asks for."""
    ending, message = outcomes[name]
    assert "Error code" not in message
    if ending != "passed":
        pytest.xfail(BEYOND_THE_MODEL[name])


@pytest.mark.parametrize("name", NOT_OFFERED)
def test_what_the_service_does_not_offer_is_skipped(outcomes: dict[str, tuple[str, str]], name: str) -> None:
    """The reason stands in this file."""
    assert outcomes[name][0] == "skipped"
    pytest.skip(NOT_OFFERED[name])
