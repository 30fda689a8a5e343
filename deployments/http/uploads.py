"""Read pictures from request bodies. The size limits apply while reading; the headers are not trusted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from contextlib import aclosing
from dataclasses import dataclass, replace
from urllib.parse import parse_qs

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json
from starlette.exceptions import HTTPException
from starlette.requests import Request

from cifar_ray.errors import ImageError, ImageTooLargeError
from cifar_ray.inference.preprocess import MAX_IMAGE_BYTES, decode_base64
from deployments.http import multipart
from deployments.predicting import schemas

MAX_BATCH_IMAGES = 256
MAX_BATCH_BYTES = 100_000_000

_MAX_BASE64_BYTES = -(-MAX_IMAGE_BYTES // 3) * 4
# Maximum size of boundaries, part headers, field names and JSON around the picture
_WRAPPING_BYTES = 65_536
# Maximum size of a body with a picture as base64
MAX_TEXT_BYTES = _MAX_BASE64_BYTES + _WRAPPING_BYTES
# URL encoding turns "+", "/" and "=" into three bytes each, but base64 has few of them.
_MAX_URLENCODED_BYTES = _MAX_BASE64_BYTES * 9 // 8
_MAX_URLENCODED_FIELDS = 32
_SINGLE_FIELDS = ("image", "file", "data")
_BATCH_FIELDS = ("images", "images[]", "image", "file")
_BASE64_FIELD = "image_base64"
_PATH_FIELDS = frozenset({"image_path", "model_path"})
_JSON_BODY = TypeAdapter(schemas.PictureInJson)


class BodyTooLargeError(ImageTooLargeError):
    """The body is too large; the rest of it was not read."""


@dataclass(frozen=True)
class Picture:
    """One picture as sent.

    Attributes:
        data: an image file, unchecked.
        filename: file name from the client; only used in the response.
        model: requested model, unchecked; `None` for the default model.
        error: why the client's base64 could not be decoded; `data` is then empty.
    """

    data: bytes
    filename: str | None = None
    model: str | None = None
    error: ImageError | None = None


@dataclass(frozen=True)
class Pictures:
    """Several pictures for one model."""

    pictures: list[Picture]
    model: str | None = None


def model_in_query(request: Request) -> str | None:
    """The model named in the query; it takes precedence over one in the body.

    Raises:
        HTTPException: 400 if the query contains a file path.
    """
    if not request.scope["query_string"]:
        return None
    _refuse_paths(request.query_params)
    return _model(request.query_params.get)


async def read_picture(request: Request) -> Picture:
    """Read the picture of a request: a form field with a file or base64, a raw body, or JSON.

    Raises:
        HTTPException: 400 for a malformed body, a missing field or a path, 415 for another content type.
        BodyTooLargeError: over 10 MB.
        ImageError: if the text is not base64.
    """
    content_type = _content_type(request)
    requested_model = model_in_query(request)
    if content_type == "multipart/form-data":
        sent = await _read_form(request, _SINGLE_FIELDS, MAX_TEXT_BYTES)
        if len(sent.pictures) > 1:
            raise HTTPException(400, f"expected one picture, got {len(sent.pictures)}; send them to /predict_batch")
        [picture] = sent.pictures
        if picture.error:
            raise picture.error
        return replace(picture, model=sent.model)
    if content_type.startswith("image/") or content_type in ("", "application/octet-stream"):
        return Picture(await read_body(request, MAX_IMAGE_BYTES), model=requested_model)
    if content_type == "application/json":
        body = await read_body(request, MAX_TEXT_BYTES)
        data, model = await asyncio.to_thread(_parse_json, body)
        return Picture(data, model=requested_model or model)
    if content_type == "application/x-www-form-urlencoded":
        body = await read_body(request, _MAX_URLENCODED_BYTES + _WRAPPING_BYTES)
        data, model = await asyncio.to_thread(_parse_urlencoded, body)
        return Picture(data, model=requested_model or model)
    raise HTTPException(
        415,
        f"content type {content_type[:100]!r} is not supported. Send multipart/form-data with a field 'image', "
        "the picture as image/* or application/octet-stream, or application/json",
    )


async def read_pictures(request: Request) -> Pictures:
    """Read all pictures of a multipart request, in the order sent.

    Raises:
        HTTPException: 400 for a malformed body, a path, no picture or too many, 415 for another content type.
        BodyTooLargeError: over 100 MB altogether.
    """
    if _content_type(request) != "multipart/form-data":
        raise HTTPException(415, "expected multipart/form-data with one field 'images' per picture")
    return await _read_form(request, _BATCH_FIELDS, max_bytes=MAX_BATCH_BYTES)


async def _read_form(request: Request, fields: tuple[str, ...], max_bytes: int) -> Pictures:
    requested_model = model_in_query(request)
    body = await read_body(request, max_bytes)
    try:
        parts = multipart.parse(request.headers["content-type"], body)
    except multipart.MultipartError as error:
        raise HTTPException(400, str(error)) from None
    sent = {part.name: part for part in parts if part.filename is None}
    _refuse_paths({part.name for part in parts})
    has_base64 = _BASE64_FIELD in sent  # decoding megabytes would block the event loop
    pictures = await asyncio.to_thread(_pictures, parts, fields) if has_base64 else _pictures(parts, fields)
    return Pictures(pictures, requested_model or _model(lambda name: sent[name].content.decode(errors="replace") if name in sent else None))


def _pictures(parts: list[multipart.Part], fields: tuple[str, ...]) -> list[Picture]:
    pictures = []
    for part in parts:
        if part.name == _BASE64_FIELD:
            pictures.append(_decoded(part.content))
        elif part.name in fields:
            if part.filename is None:
                raise HTTPException(400, f"field {part.name!r} contains text; send a file (with curl: -F {part.name}=@picture.jpg)")
            pictures.append(Picture(part.content, part.filename))
    if not pictures:
        sent = ", ".join(repr(part.name) for part in parts) or "none"
        raise HTTPException(400, f"no picture found. Send a file in the field {fields[0]!r} (fields received: {sent[:200]})")
    if len(pictures) > MAX_BATCH_IMAGES:
        raise HTTPException(400, f"the request has {len(pictures)} pictures; the maximum is {MAX_BATCH_IMAGES}")
    return pictures


def _decoded(base64: bytes) -> Picture:
    try:
        return Picture(decode_base64(base64.decode(errors="replace").strip()))
    except ImageError as error:  # in a batch, the other pictures are still predicted
        return Picture(b"", error=error)


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Read a whole body.

    Raises:
        HTTPException: 415 if it is compressed.
        BodyTooLargeError: if it is longer than `max_bytes`.
    """
    coding = request.headers.get("content-encoding", "").strip().lower()
    if coding not in ("", "identity"):
        raise HTTPException(
            415,
            f"Content-Encoding {coding[:50]!r} is not supported: pictures are compressed already. Send the body as it is",
            {"Accept-Encoding": "identity"},
        )
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:19]) > max_bytes:
        raise _too_large(max_bytes)
    chunks, received = [], 0
    async with aclosing(request.stream()) as stream:
        async for chunk in stream:
            received += len(chunk)
            if received > max_bytes:
                raise _too_large(max_bytes)
            chunks.append(chunk)
    return b"".join(chunks)


def _too_large(max_bytes: int) -> BodyTooLargeError:
    return BodyTooLargeError(f"the request exceeds {max_bytes:,} bytes; the maximum for a picture is {MAX_IMAGE_BYTES:,}")


def _model(get: Callable[[str], str | None]) -> str | None:
    return get("model") or get("model_type")


def _refuse_paths(names: Collection[str]) -> None:
    """Refuse file paths: some servers read local files for a client; this one does not."""
    for name in sorted(_PATH_FIELDS.intersection(names)):
        raise HTTPException(400, f"{name}: file paths are not supported. Send the picture itself, and choose a model with 'model'")


def _parse_json(body: bytes) -> tuple[bytes, str | None]:
    """The picture and the model in `{"image": "<base64 or data URI>"}`."""
    try:
        # GNU base64 in a shell's quotes breaks the text into lines, which JSON text must not have; elsewhere in JSON, they mean nothing.
        fields = from_json(body.translate(None, b"\r\n"))
    except ValueError as error:
        raise HTTPException(400, f"the body is not valid JSON: {error}") from None
    if isinstance(fields, dict):
        _refuse_paths(fields)
    try:
        sent = _JSON_BODY.validate_python(fields)
    except ValidationError as error:
        mistake = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in mistake["loc"])
        raise HTTPException(400, f"{field}: {mistake['msg']}" if field else "the body must be a JSON object") from None
    return decode_base64(sent["image"]), sent.get("model") or sent.get("model_type")


def _parse_urlencoded(body: bytes) -> tuple[bytes, str | None]:
    """The picture and the model in `image_base64=…`."""
    try:
        fields = parse_qs(body.decode("ascii"), keep_blank_values=True, max_num_fields=_MAX_URLENCODED_FIELDS)
    except ValueError:  # usually a picture, which curl --data-binary declares as a form
        fields = {}
    _refuse_paths(fields)
    if _BASE64_FIELD not in fields:
        raise HTTPException(
            415,
            f"content type 'application/x-www-form-urlencoded' needs {_BASE64_FIELD}=…. "
            "To send a picture file with curl --data-binary, add -H 'Content-Type: image/jpeg'",
        )
    # base64 has no spaces, so a space is a "+" that the client did not escape
    return decode_base64(fields[_BASE64_FIELD][0].replace(" ", "+")), _model(lambda name: fields[name][0] if name in fields else None)


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()
