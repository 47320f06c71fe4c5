"""Pictures in: bounded decoding of untrusted bytes, and the resize that the model expects."""

from __future__ import annotations

import io
import math
import warnings

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from autoglm.errors import RequestError
from autoglm.model.config import ImageConfig

MAX_PIXELS = 20_000_000
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")


def decode_image(content: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a PNG, JPEG, WebP, GIF (first frame) or BMP file into RGB.

    Args:
        content: the file's bytes.
        max_pixels: more are refused before they are decoded.

    Raises:
        RequestError: not such a file, damaged, cut off, or too large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own bound is stricter
            image = Image.open(io.BytesIO(content), formats=_FORMATS)
            if image.width * image.height > max_pixels:
                raise RequestError(
                    f"the image has {image.width} x {image.height} pixels, more than {max_pixels}",
                    param="messages",
                )
            image.load()
            return _opaque(image)
    except RequestError:
        raise
    except UnidentifiedImageError as error:
        message = "the image cannot be decoded: it is no PNG, JPEG, WebP, GIF or BMP file"
        raise RequestError(message, param="messages") from error
    except Image.DecompressionBombError as error:
        raise RequestError(f"the image has more than {max_pixels} pixels", param="messages") from error
    except Exception as error:
        raise RequestError(f"the image cannot be decoded: {str(error)[:200]}", param="messages") from error


def _opaque(image: Image.Image) -> Image.Image:
    """Return RGB; what is transparent becomes white."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        coloured = image.convert("RGBA")
        white = Image.new("RGBA", coloured.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, coloured).convert("RGB")
    return image.convert("RGB")


def target_size(width: int, height: int, config: ImageConfig) -> tuple[int, int]:
    """Return the size in pixels, whole patches, that an image is resized to."""
    if config.width:
        return config.width, config.height
    patch = config.patch
    columns, rows = max(1, round(width / patch)), max(1, round(height / patch))
    if columns * rows > config.max_patches:
        shrink = math.sqrt(config.max_patches / (columns * rows))
        columns = min(max(1, int(columns * shrink)), config.max_patches)
        rows = max(1, min(int(rows * shrink) or 1, config.max_patches // columns))
    return columns * patch, rows * patch


def image_tensor(image: Image.Image, config: ImageConfig) -> Tensor:
    """Return an image as the model takes it: (H, W, 3) uint8, H and W whole patches."""
    size = target_size(image.width, image.height, config)
    rgb = _opaque(image)
    if rgb.size != size:
        rgb = rgb.resize(size, Image.Resampling.BOX if rgb.width > size[0] else Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(rgb, dtype=np.uint8))
