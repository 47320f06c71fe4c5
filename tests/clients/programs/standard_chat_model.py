"""LangChain's own integration tests of a chat model, on the service at ``$AUTOGLM_URL``.

Run by pytest in an environment of its own. The tests' one need of the internet, a picture and a birdsong to
send, is met by the files that ``$AUTOGLM_PICTURE`` and ``$AUTOGLM_SOUND`` name; what is sent is real.
"""

import base64
import os
from pathlib import Path

import httpx
import pytest
from langchain_core.messages import AIMessage, SystemMessage
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests, chat_models

# In these a tool's argument is a text, in which the small model repeats itself unless that is punished.
WORDY = ("test_bind_runnables_as_tools", "test_tool_choice", "test_structured_output_pydantic_2_v1")
PICTURE = Path(os.environ["AUTOGLM_PICTURE"])
SOUND = Path(os.environ["AUTOGLM_SOUND"])


@pytest.fixture(autouse=True)
def _local_files(monkeypatch):
    """Give the files where a test would download one."""
    fetch = httpx.get

    def get(url, **options):
        if url.endswith(".png"):
            return httpx.Response(200, content=PICTURE.read_bytes())
        return fetch(url, **options)

    monkeypatch.setattr(httpx, "get", get)
    encoded = base64.b64encode(SOUND.read_bytes()).decode()
    monkeypatch.setattr(chat_models, "_get_base64_from_url", lambda url: encoded)


class TestService(ChatModelIntegrationTests):
    @property
    def chat_model_class(self):
        return ChatOpenAI

    @property
    def chat_model_params(self):
        return {
            "model": "autoglm-phone-9b",
            "base_url": os.environ["AUTOGLM_URL"] + "/v1",
            "api_key": "EMPTY",
            "temperature": 0,
            "max_completion_tokens": 300,
            # The small model was never taught to call tools: made to, it calls again and again.
            "model_kwargs": {"parallel_tool_calls": False},
            # ChatOpenAI asks for the usage of a stream by itself only where it knows the address.
            "stream_usage": True,
        }

    @pytest.fixture
    def model(self, request):
        wordy = {"frequency_penalty": 1.0, "max_completion_tokens": 1000}
        more = wordy if request.node.originalname in WORDY else {}
        return ChatOpenAI(**self.chat_model_params | getattr(request, "param", {}) | more)

    @property
    def model_override_value(self):
        return "autoglm-phone-nano"

    @property
    def supports_image_inputs(self):
        return True

    @property
    def supports_image_tool_message(self):
        return True

    @property
    def supports_audio_inputs(self):
        return True

    @property
    def supports_json_mode(self):
        return True

    @property
    def supported_usage_metadata_details(self):
        details = ["reasoning_output", "cache_read_input"]
        return {"invoke": details, "stream": details}

    def invoke_with_reasoning_output(self, *, stream=False):
        thinking = {"enable_thinking": True, "return_reasoning": True}
        return self._ask("你是谁?", stream=stream, extra_body=thinking)

    def invoke_with_cache_read_input(self, *, stream=False):
        self._ask("Hello", stream=False)
        return self._ask("Hello", stream=stream)

    def _ask(self, text, *, stream, **more):
        model = ChatOpenAI(**self.chat_model_params, **more)
        long_enough_for_a_page = SystemMessage("You are the assistant on a phone. " * 20)
        messages = [long_enough_for_a_page, ("user", text)]
        if not stream:
            return model.invoke(messages)
        whole = None
        for chunk in model.stream(messages):
            whole = chunk if whole is None else whole + chunk
        assert isinstance(whole, AIMessage)
        return whole
