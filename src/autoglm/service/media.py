"""Images and sound out of a chat request, bounded before they are decoded.

What it guarantees: only bytes that came in the request are looked at, or that were fetched before by the
rules of :mod:`autoglm.service.fetching`; all images of one request together stay within the pixel limit and
all recordings within the length limit, counted from their headers before anything is decoded.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Sequence

from autoglm.errors import RequestError
from autoglm.model.audio import SAMPLE_RATE, decode_audio
from autoglm.model.image import decode_image
from autoglm.model.prompt import AudioPart, ImagePart, Message, Part, TextPart
from autoglm.model.tools import call_text
from autoglm.service.fetching import Fetched, is_remote
from autoglm.service.pictures import DecodedImages
from autoglm.service.schemas import AudioContent, ChatMessage, ImageContent, RefusalContent, TextContent
from autoglm.service.settings import LimitSettings

_DATA_URI = re.compile(r"data:image/[a-zA-Z0-9.+-]{1,40}(;[a-zA-Z0-9=.-]{1,40}){0,4};base64,", re.IGNORECASE)
_MEGA = 1_000_000
_NOT_FETCHED = RequestError("images are not fetched from addresses: send a data:image/...;base64, URI")


class MediaReader:
    """Turn the messages of one request into what the model takes, spending one budget for all media.

    Args:
        limits: the budgets.
        images: pictures that earlier requests held.
        fetched: what lies behind the addresses that the request names, or why it is not had.
    """

    def __init__(self, limits: LimitSettings, images: DecodedImages, fetched: Fetched | None = None) -> None:
        self._images, self._fetched = images, fetched or {}
        self._pixels = int(limits.image_mp * _MEGA)
        self._seconds = float(limits.audio_seconds)

    def messages(self, messages: Sequence[ChatMessage]) -> list[Message]:
        """Decode a conversation.

        Raises:
            RequestError: media that cannot be used; the message and ``param`` say which.
        """
        return [_with_calls(self._message(i, message), message) for i, message in enumerate(messages)]

    def _message(self, index: int, message: ChatMessage) -> Message:
        if message.content is None or isinstance(message.content, str):
            return Message(message.role, message.content or message.refusal or "")
        parts: list[Part] = []
        for place, content in enumerate(message.content):
            param = f"messages[{index}].content[{place}]"
            try:
                parts.append(self.part(content))
            except RequestError as error:
                raise RequestError(f"{param}: {error}", param=param) from error
        return Message(message.role, parts)

    def part(self, content: TextContent | ImageContent | AudioContent | RefusalContent) -> Part:
        """Decode one part.

        Raises:
            RequestError: media that cannot be used.
        """
        if isinstance(content, TextContent):
            return TextPart(content.text)
        if isinstance(content, RefusalContent):
            return TextPart(content.refusal)
        if isinstance(content, ImageContent):
            return self._image(content.image_url.url)
        return self._audio(content.input_audio.data)

    def _image(self, url: str) -> ImagePart:
        content = self._content(url)
        image = self._images.get(content, self._pixels, decode_image)
        self._pixels -= image.width * image.height
        return ImagePart(image, content)

    def _content(self, url: str) -> bytes:
        if is_remote(url):
            content = self._fetched.get(url, _NOT_FETCHED)
            if isinstance(content, RequestError):
                raise content
            return content
        found = _DATA_URI.match(url)
        if found is None:
            raise RequestError("the image must be a data:image/...;base64, URI")
        return _from_base64(url[found.end() :], "image")

    def _audio(self, data: str) -> AudioPart:
        samples = decode_audio(_from_base64(data, "audio"), self._seconds)
        self._seconds -= len(samples) / SAMPLE_RATE
        return AudioPart((samples, SAMPLE_RATE))


def image_urls(contents: Iterable[object]) -> list[str]:
    """Return the addresses of all images among parts of messages."""
    return [part.image_url.url for part in contents if isinstance(part, ImageContent)]


def parts_of(messages: Iterable[ChatMessage]) -> list[object]:
    """Return the parts of all messages."""
    return [part for message in messages if isinstance(message.content, list) for part in message.content]


def _with_calls(message: Message, given: ChatMessage) -> Message:
    """Add the tool calls of an earlier answer, as the model writes them."""
    calls = "".join(call_text(c.function.name, c.function.arguments) for c in given.tool_calls or ())
    return Message(message.role, [*message.parts, TextPart(calls)]) if calls else message


def _from_base64(text: str, what: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(f"the {what} is not valid base64") from error
