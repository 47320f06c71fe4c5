"""Pictures that come again are not decoded again."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from autoglm.errors import RequestError
from autoglm.model.image import decode_image
from autoglm.service.pictures import DecodedImages


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (10, 10), (shade, 0, 0)).save(file, "PNG")
    return file.getvalue()


def test_a_picture_sent_again_is_the_one_decoded_before() -> None:
    """The bytes of the file decide; the oldest picture goes when the room is used up."""
    images = DecodedImages(max_bytes=2 * 300)
    first = images.get(png(1), 100, decode_image)
    assert images.get(png(1), 100, decode_image) is first
    for shade in (2, 3):
        images.get(png(shade), 100, decode_image)
    assert (images.hits, images.num_bytes) == (1, 600)
    again = images.get(png(1), 100, decode_image)
    assert again is not first and again.tobytes() == first.tobytes()


def test_a_known_picture_is_still_held_against_the_budget() -> None:
    """A request whose pixels are spent gets the same error whether the picture is known or not."""
    images = DecodedImages()
    images.get(png(1), 100, decode_image)
    with pytest.raises(RequestError, match="more than 99"):
        images.get(png(1), 99, decode_image)
    with pytest.raises(RequestError):
        images.get(b"no picture", 100, decode_image)
    assert images.num_bytes == 300
