"""Images and sound out of a chat request, bounded before they are decoded.

What it guarantees: only bytes that came in the request are looked at (an ``http`` address is refused, so a
request can make the service fetch nothing); all images of one request together stay within the pixel
limit and all recordings within the length limit, counted from their headers before anything is decoded.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence

from autoglm.errors import RequestError
from autoglm.model.audio import SAMPLE_RATE, decode_audio
from autoglm.model.image import decode_image
from autoglm.model.prompt import AudioPart, ImagePart, Message, Part, TextPart
from autoglm.model.tools import call_text
from autoglm.service.pictures import DecodedImages
from autoglm.service.schemas import AudioContent, ChatMessage, ImageContent, TextContent
from autoglm.service.settings import LimitSettings

_DATA_URI = re.compile(r"data:image/[a-zA-Z0-9.+-]{1,40}(;[a-zA-Z0-9=.-]{1,40}){0,4};base64,", re.IGNORECASE)
_MEGA = 1_000_000


class MediaReader:
    """Turn the messages of one request into what the model takes, spending one budget for all media.

    Args:
        limits: the budgets.
        images: pictures that earlier requests held.
    """

    def __init__(self, limits: LimitSettings, images: DecodedImages) -> None:
        self._images = images
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
            return Message(message.role, message.content or "")
        parts: list[Part] = []
        for place, content in enumerate(message.content):
            param = f"messages[{index}].content[{place}]"
            try:
                parts.append(self._part(content))
            except RequestError as error:
                raise RequestError(f"{param}: {error}", param=param) from error
        return Message(message.role, parts)

    def _part(self, content: TextContent | ImageContent | AudioContent) -> Part:
        if isinstance(content, TextContent):
            return TextPart(content.text)
        if isinstance(content, ImageContent):
            return self._image(content.image_url.url)
        return self._audio(content.input_audio.data)

    def _image(self, url: str) -> ImagePart:
        if url[:5].lower() in ("http:", "https"):
            raise RequestError("images are not fetched from addresses: send a data:image/...;base64, URI")
        found = _DATA_URI.match(url)
        if found is None:
            raise RequestError("the image must be a data:image/...;base64, URI")
        content = _from_base64(url[found.end() :], "image")
        image = self._images.get(content, self._pixels, decode_image)
        self._pixels -= image.width * image.height
        return ImagePart(image)

    def _audio(self, data: str) -> AudioPart:
        samples = decode_audio(_from_base64(data, "audio"), self._seconds)
        self._seconds -= len(samples) / SAMPLE_RATE
        return AudioPart((samples, SAMPLE_RATE))


def _with_calls(message: Message, given: ChatMessage) -> Message:
    """Add the tool calls of an earlier answer, as the model writes them."""
    calls = "".join(call_text(c.function.name, c.function.arguments) for c in given.tool_calls or ())
    return Message(message.role, [*message.parts, TextPart(calls)]) if calls else message


def _from_base64(text: str, what: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(f"the {what} is not valid base64") from error
