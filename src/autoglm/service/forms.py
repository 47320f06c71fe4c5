"""Forms with a file (``multipart/form-data``), bounded and kept in memory.

What it guarantees: no file is written anywhere; one file, a few short fields, nothing larger than allowed.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import Request
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from autoglm.service.bodies import bounded_chunks
from autoglm.service.problems import APIError

MAX_FIELDS = 32
MAX_FIELD_BYTES = 64 << 10


@dataclass(frozen=True)
class Form:
    """What a form holds.

    Attributes:
        fields: the values of each field, in order; a name that ends in ``[]`` goes without it.
        files: the bytes of each file.
    """

    fields: dict[str, list[str]]
    files: dict[str, bytes]


async def read_form(request: Request, max_bytes: int) -> Form:
    """Return the form in a request's body.

    Raises:
        APIError: 400, it is no form, or one with more than it may hold; 413, larger than ``max_bytes``.
        ClientDisconnect: the client went away.
    """
    kind = request.headers.get("content-type", "")
    if not kind.lower().startswith("multipart/form-data"):
        raise _malformed("the body must be a form: multipart/form-data with the field 'file'")
    chunks = bounded_chunks(request, max_bytes)
    parser = MultiPartParser(
        request.headers, chunks, max_files=1, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES
    )
    parser.spool_max_size = max_bytes + 1  # in memory
    try:
        parsed = await parser.parse()
    except MultiPartException as error:
        raise _malformed(f"the form cannot be read: {error.message}") from error
    except (UnicodeDecodeError, LookupError, KeyError) as error:  # a charset or a name that is none
        raise _malformed("the form cannot be read: its encoding is wrong") from error
    try:
        return await _taken(parsed)
    finally:
        await parsed.close()


async def _taken(parsed: FormData) -> Form:
    fields: dict[str, list[str]] = {}
    files: dict[str, bytes] = {}
    for name, value in parsed.multi_items():
        if isinstance(value, UploadFile):
            files[name] = await value.read()
        else:
            fields.setdefault(name.removesuffix("[]"), []).append(value)
    return Form(fields, files)


def _malformed(message: str) -> APIError:
    return APIError(400, message, code="invalid_form")
