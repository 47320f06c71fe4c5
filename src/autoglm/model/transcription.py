"""How the model is asked to write down what is said in a clip: one form, for training and for the service.

>>> [type(part).__name__ for part in transcription_messages(b"RIFF...")[-1].parts]
['AudioPart', 'TextPart']
"""

from __future__ import annotations

from autoglm.model.audio import Samples
from autoglm.model.prompt import AudioPart, Message, TextPart

TRANSCRIBE = "写下这段语音 / Transcribe the audio."


def transcription_messages(audio: bytes | tuple[Samples, int], context: str = "") -> list[Message]:
    """Return the conversation whose answer is what is said.

    Args:
        audio: the clip; see :class:`~autoglm.model.prompt.AudioPart`.
        context: what a caller says of the recording, such as names that occur in it.
    """
    about = [Message("system", context)] if context else []
    return [*about, Message("user", [AudioPart(audio), TextPart(TRANSCRIBE)])]
