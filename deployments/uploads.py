"""Pictures out of request bodies. The limits hold while reading: more than allowed is never kept, whatever the headers promise."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace

from pydantic import TypeAdapter, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request

from cifar_ray.errors import ImageTooLargeError
from cifar_ray.inference.preprocess import MAX_IMAGE_BYTES, decode_base64
from deployments import multipart
from deployments.schemas import PictureInJson

MAX_BATCH_IMAGES = 256
MAX_BATCH_BYTES = 100_000_000

_MAX_BASE64_BYTES = -(-MAX_IMAGE_BYTES // 3) * 4
# boundaries, part headers, field names and JSON around the picture
_WRAPPING_BYTES = 65_536
_SINGLE_FIELDS = ("image", "file")
_BATCH_FIELDS = ("images", "images[]", "image", "file")
_JSON_BODY = TypeAdapter(PictureInJson)


@dataclass(frozen=True)
class Picture:
    """One picture as sent.

    Attributes:
        data: an image file, unchecked.
        filename: what the client calls it; only ever shown back.
        model: the one asked for, unchecked; `None` for the server's own.
    """

    data: bytes
    filename: str | None = None
    model: str | None = None


@dataclass(frozen=True)
class Pictures:
    """Several pictures for one model."""

    pictures: list[Picture]
    model: str | None = None


def model_in_query(request: Request) -> str | None:
    """The model asked for in the address, which wins over the body."""
    return _model(request.query_params.get)


async def read_picture(request: Request) -> Picture:
    """The one picture of a request: a multipart field, the raw body, or JSON.

    Raises:
        HTTPException: 400 for a malformed body or a missing field, 415 for another content type.
        ImageTooLargeError: over 10 MB.
        ImageError: for JSON that holds no base64.
    """
    content_type = _content_type(request)
    if content_type == "multipart/form-data":
        sent = await _read_form(request, _SINGLE_FIELDS, max_bytes=MAX_IMAGE_BYTES + _WRAPPING_BYTES)
        if len(sent.pictures) > 1:
            raise HTTPException(400, f"{len(sent.pictures)} pictures in one request; send them to /predict_batch")
        return replace(sent.pictures[0], model=sent.model)
    if content_type == "application/json":
        return await read_json_picture(request)
    if content_type.startswith("image/") or content_type in ("", "application/octet-stream"):
        return Picture(await _read_body(request, MAX_IMAGE_BYTES), model=model_in_query(request))
    raise HTTPException(
        415,
        f"content type {content_type[:100]!r} is not accepted; send multipart/form-data with a field 'image', "
        "the picture itself as image/* or application/octet-stream, or application/json",
    )


async def read_json_picture(request: Request) -> Picture:
    """The picture in `{"image": "<base64 or data URI>"}`.

    Raises:
        HTTPException: 400 for malformed JSON or a missing field, 415 for another content type.
        ImageTooLargeError: over 10 MB.
        ImageError: for text that is not base64.
    """
    if _content_type(request) != "application/json":
        raise HTTPException(415, 'send application/json: {"image": "<base64 or data URI>"}')
    body = await _read_body(request, _MAX_BASE64_BYTES + _WRAPPING_BYTES)
    picture = await asyncio.to_thread(_parse_json, body)
    return replace(picture, model=model_in_query(request) or picture.model)


async def read_pictures(request: Request) -> Pictures:
    """All pictures of a multipart request, in the order sent.

    Raises:
        HTTPException: 400 for a malformed body, no picture or too many, 415 for another content type.
        ImageTooLargeError: over 100 MB altogether.
    """
    if _content_type(request) != "multipart/form-data":
        raise HTTPException(415, "send multipart/form-data with one field 'images' for each picture")
    return await _read_form(request, _BATCH_FIELDS, max_bytes=MAX_BATCH_BYTES)


async def _read_form(request: Request, fields: tuple[str, ...], max_bytes: int) -> Pictures:
    body = await _read_body(request, max_bytes)
    try:
        parts = multipart.parse(request.headers["content-type"], body)
    except multipart.MultipartError as error:
        raise HTTPException(400, str(error)) from None
    return Pictures(_pictures(parts, fields), model_in_query(request) or _model_in_form(parts))


def _pictures(parts: list[multipart.Part], fields: tuple[str, ...]) -> list[Picture]:
    pictures = []
    for part in parts:
        if part.name not in fields:
            continue
        if part.filename is None:
            raise HTTPException(400, f"field {part.name!r} holds text, not a file; with curl: -F {part.name}=@picture.jpg")
        pictures.append(Picture(part.content, part.filename))
    if not pictures:
        sent = ", ".join(repr(part.name) for part in parts) or "none"
        raise HTTPException(400, f"no picture: send a file in the field {fields[0]!r} (fields sent: {sent[:200]})")
    if len(pictures) > MAX_BATCH_IMAGES:
        raise HTTPException(400, f"{len(pictures)} pictures in one request; at most {MAX_BATCH_IMAGES} are accepted")
    return pictures


async def _read_body(request: Request, max_bytes: int) -> bytes:
    async with aclosing(_limited(request, max_bytes)) as stream:
        return b"".join([chunk async for chunk in stream])


def _model(get: Callable[[str], str | None]) -> str | None:
    return get("model") or get("model_type")


def _model_in_form(parts: list[multipart.Part]) -> str | None:
    texts = {part.name: part.content.decode(errors="replace") for part in parts if part.filename is None}
    return _model(texts.get)


def _parse_json(body: bytes) -> Picture:
    try:
        fields = _JSON_BODY.validate_json(body)
        return Picture(decode_base64(fields["image"]), model=fields.get("model") or fields.get("model_type"))
    except ValidationError as error:
        mistake = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in mistake["loc"])
        raise HTTPException(400, f"{field}: {mistake['msg']}" if field else mistake["msg"]) from None


async def _limited(request: Request, max_bytes: int) -> AsyncGenerator[bytes, None]:
    too_large = ImageTooLargeError(f"the request has more than {max_bytes:,} bytes; a picture may have {MAX_IMAGE_BYTES:,}")
    promised = request.headers.get("content-length", "")
    if promised.isdecimal() and int(promised[:19]) > max_bytes:
        raise too_large
    received = 0
    async with aclosing(request.stream()) as stream:
        async for chunk in stream:
            received += len(chunk)
            if received > max_bytes:
                raise too_large
            yield chunk


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()
