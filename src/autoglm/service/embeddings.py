"""``POST /v1/embeddings``: texts, pictures and recordings as vectors of one space, in OpenAI's shape.

What it guarantees: all inputs of a request are embedded by one release, which the answer names; vectors have
length one; a client that goes away ends the work.
"""

from __future__ import annotations

import array
import base64
import math
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Literal, cast

import anyio.to_thread
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from autoglm.engine import EmbeddingBatch
from autoglm.errors import RequestError
from autoglm.model.embedding import TokenPart
from autoglm.model.prompt import Part, TextPart
from autoglm.service.bodies import body_schema, read_model
from autoglm.service.chat import FAILURES, VERSION_HEADER
from autoglm.service.fetching import Fetched
from autoglm.service.media import MediaReader, image_urls
from autoglm.service.schemas import Content, Text
from autoglm.service.state import OpenState, ServiceState
from autoglm.service.streaming import unless_gone
from autoglm.service.turns import let_in

MAX_INPUTS = 2048
MAX_PARTS = 64
TokenId = Annotated[int, Field(ge=0, le=1 << 31)]
TokenIds = Annotated[list[TokenId], Field(min_length=1, max_length=1 << 17)]
Parts = Annotated[list[Content], Field(min_length=1, max_length=MAX_PARTS)]
# One input: a text, tokens, a part of a message, or several parts that make one vector.
Item = Text | TokenIds | Content | Parts

router = APIRouter(tags=["inference"], responses=FAILURES)


class EmbeddingsRequest(BaseModel):
    """``POST /v1/embeddings``.

    ``input`` is a text, a list of tokens, a content part as in a chat message, or a list of inputs: each of
    these a text, a list of tokens, a content part, or a list of parts that make one vector.
    """

    model_config = ConfigDict(strict=True, extra="ignore")

    model: Annotated[str, Field(min_length=1, max_length=256)]
    input: Text | TokenIds | Content | Annotated[list[Item], Field(min_length=1, max_length=MAX_INPUTS)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    user: str | None = None

    @property
    def items(self) -> Sequence[Item]:
        """The inputs, one a vector."""
        if not isinstance(self.input, list):
            return [self.input]
        if isinstance(self.input[0], int):
            return [cast("list[int]", self.input)]
        return cast("list[Item]", self.input)


@router.post("/v1/embeddings", openapi_extra=body_schema(EmbeddingsRequest))
async def embeddings(request: Request, state: OpenState) -> Response:
    """Turn texts, images and recordings into vectors of one space."""
    wanted = await read_model(request, EmbeddingsRequest, state.settings.max_body_bytes)
    version = state.version_of(wanted.model)
    state.require_own_model("embeddings")
    items = [part for item in wanted.items for part in (item if isinstance(item, list) else [item])]
    fetched = await state.fetcher.fetch_all(image_urls(items))
    await let_in(state)
    batch = await anyio.to_thread.run_sync(
        _prepare, state, wanted, version, fetched, limiter=state.decoding, abandon_on_cancel=False
    )
    try:
        vectors = await unless_gone(request, batch.vectors())
    finally:
        batch.close()
    if spend := state.access.quota.spender(request):
        spend(batch.num_tokens)
    body = await anyio.to_thread.run_sync(_body, wanted, batch, vectors)
    return JSONResponse(body, headers={VERSION_HEADER: batch.release})


def _prepare(
    state: ServiceState, wanted: EmbeddingsRequest, version: str | None, fetched: Fetched
) -> EmbeddingBatch:
    engine, reader = state.some_engine, MediaReader(state.settings.limits, state.images, fetched)
    contents = [_content(reader, item, index) for index, item in enumerate(wanted.items)]
    batch = engine.embed(contents, release=version)
    if wanted.dimensions is not None and wanted.dimensions > batch.width:
        batch.close()
        raise RequestError(f"dimensions: this model's vectors have {batch.width} numbers", param="dimensions")
    return batch


def _content(reader: MediaReader, item: Item, index: int) -> list[Part | TokenPart]:
    if isinstance(item, str):
        return [TextPart(item)]
    if isinstance(item, list) and isinstance(item[0], int):
        return [TokenPart(tuple(cast("list[int]", item)))]
    found: list[Part | TokenPart] = []
    for place, part in enumerate(cast("list[Content]", item if isinstance(item, list) else [item])):
        param = f"input[{index}][{place}]" if isinstance(item, list) else f"input[{index}]"
        try:
            found.append(reader.part(part))
        except RequestError as error:
            raise RequestError(f"{param}: {error}", param=param) from error
    return found


def _body(wanted: EmbeddingsRequest, batch: EmbeddingBatch, vectors: list[list[float]]) -> dict[str, Any]:
    encode = _packed if wanted.encoding_format == "base64" else list[float]
    data = [
        {"object": "embedding", "index": index, "embedding": encode(_shortened(vector, wanted.dimensions))}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": batch.num_tokens, "total_tokens": batch.num_tokens}
    return {
        "object": "list",
        "data": data,
        "model": wanted.model,
        "system_fingerprint": batch.fingerprint,
        "usage": usage,
    }


def _shortened(vector: list[float], dimensions: int | None) -> list[float]:
    """Return the first numbers of a vector, scaled to length one again."""
    if dimensions is None or dimensions == len(vector):
        return vector
    kept = vector[:dimensions]
    length = math.hypot(*kept) or 1.0
    return [number / length for number in kept]


def _packed(vector: list[float]) -> str:
    """Return float32 in little-endian order as base64."""
    numbers = array.array("f", vector)
    if sys.byteorder == "big":
        numbers.byteswap()
    return base64.b64encode(numbers.tobytes()).decode()
