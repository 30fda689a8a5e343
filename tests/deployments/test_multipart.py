"""The quick multipart parser agrees with the one it replaces."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from encodings.aliases import aliases

import httpx
import pytest
from pydantic_core import to_json
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartParser

from deployments.http.multipart import MAX_PARTS, MultipartError, Part, parse

CONTENT_TYPE = "multipart/form-data; boundary=xyz"


def form(*parts: tuple[str, bytes]) -> bytes:
    return b"".join(b"--xyz\r\n" + head.encode() + b"\r\n\r\n" + content + b"\r\n" for head, content in parts) + b"--xyz--\r\n"


def by_starlette(content_type: str, body: bytes) -> list[tuple[str, str | None, bytes]]:
    async def stream() -> AsyncIterator[bytes]:
        yield body

    async def parts() -> list[tuple[str, str | None, bytes]]:
        sent = await MultiPartParser(Headers({"content-type": content_type}), stream()).parse()  # type: ignore[arg-type]
        found = [
            (name, value.filename, await value.read()) if isinstance(value, UploadFile) else (name, None, value.encode())
            for name, value in sent.multi_items()
        ]
        await sent.close()
        return found

    return asyncio.run(parts())


BODIES = [
    form(('Content-Disposition: form-data; name="image"; filename="frog.jpg"\r\nContent-Type: image/jpeg', b"\xff\xd8\r\n--xy\r\n\r\n\0")),
    form(('content-disposition:form-data; name="model"', b"cifar10@2"), ('Content-Disposition: form-data; name="image"; filename=""', b"")),
    form(('Content-Type: image/png\r\nContent-Disposition: form-data; name="images[]"; filename="a\\"b.png"', b"1")),
    form(("Content-Disposition: form-data; name=image; filename=frog.jpg", b"2")),
    form(('Content-Disposition: form-data; name="image"; filename="für.jpg"', b"3")),
    form(('Content-Disposition: form-data; filename="frog.jpg"; name="image"', b"4")),
    form(),
]


@pytest.mark.parametrize("body", BODIES)
def test_it_reads_what_starlette_reads(body: bytes) -> None:
    found = [(part.name, part.filename, part.content) for part in parse(CONTENT_TYPE, body)]
    assert found == by_starlette(CONTENT_TYPE, body)


@pytest.mark.parametrize(
    "content_type",
    ['multipart/form-data; boundary="xyz"', "Multipart/Form-Data;boundary=xyz", "multipart/form-data; charset=utf-8; boundary=xyz"],
)
def test_the_boundary_may_be_written_in_several_ways(content_type: str) -> None:
    assert parse(content_type, BODIES[0])[0].name == "image"


@pytest.mark.parametrize(
    ("head", "filename"),
    [
        ("Content-Disposition: form-data; name=\"image\"; filename*=UTF-8''%e2%82%ac.jpg", "€.jpg"),
        ("Content-Disposition: form-data; name=\"image\"; filename*=utf-8'de'%D1%84.jpg", "ф.jpg"),
        ('Content-Disposition: form-data; name="image"; filename="a.jpg"; filename*=UTF-8\'\'b.jpg', "a.jpg"),  # RFC 7578, section 4.2
        ("Content-Disposition: form-data; filename*=iso-8859-1''%e9.jpg; name=image", "é.jpg"),
        ("Content-Disposition: form-data; name=\"image\"; filename*=x-unknown''a%2Bb.jpg", "a+b.jpg"),
        ('Content-Disposition: form-data; name="image"; filename*=damaged', ""),
        ('Content-Disposition: form-data; name="image"; filename*0="long"; filename*1=".jpg"', ""),
        ('Content-Disposition: form-data; name="image"\r\nContent-Type: image/jpeg', ""),
        ('Content-Type: Application/Octet-Stream\r\nContent-Disposition: form-data; name="image"', ""),
        ('Content-Disposition: form-data; name="image"\r\nContent-Type: text/plain', None),
        ('Content-Disposition: form-data; name="image"', None),
    ],
)
def test_a_part_is_a_file_by_either_name_or_by_its_type(head: str, filename: str | None) -> None:
    assert parse(CONTENT_TYPE, form((head, b"\xff\xd8"))) == [Part("image", filename, b"\xff\xd8")]


@pytest.mark.parametrize(
    ("extended", "filename"),
    [
        ("shift_jis''%83t.jpg", "フ.jpg"),
        ("windows-1252''%80.jpg", "€.jpg"),
        ("GB18030''%84%30.jpg", None),
        ("utf-16''%00%d8.jpg", None),
        ("idna''abc.jpg", "abc.jpg"),
        ("undefined''a", "a"),
        ("punycode''%e9%82%9d%00.jpg", "邝\0.jpg"),
        ("utf-7''+2AA-.jpg", "+2AA-.jpg"),
        ("unicode_escape''%5Cud800.jpg", "\\ud800.jpg"),
        ("raw_unicode_escape''%5Cud800.jpg", "\\ud800.jpg"),
        ("hex''00", "00"),
    ],
)
def test_a_file_name_in_any_charset_is_text_that_an_answer_can_hold(extended: str, filename: str | None) -> None:
    [part] = parse(CONTENT_TYPE, form((f'Content-Disposition: form-data; name="image"; filename*={extended}', b"1")))
    assert part.filename is not None
    assert filename in (None, part.filename)
    to_json(part.filename)


@pytest.mark.parametrize("encoding", sorted({*aliases.values(), "idna", "punycode", "undefined", "unicode_escape", "raw_unicode_escape"}))
def test_no_charset_of_python_gives_a_file_name_that_cannot_be_sent(encoding: str) -> None:
    for raw in ("%ff%fe%00%d8", "%d8%00%00", "%ed%a0%80", "%84%31%a4%37", "%82%35%8f%33"):
        [part] = parse(CONTENT_TYPE, form((f"Content-Disposition: form-data; name=a; filename*={encoding}''{raw}", b"1")))
        to_json(part.filename)


@pytest.mark.parametrize("encoding", ["base64", "Quoted-Printable"])
def test_an_encoded_file_is_refused_by_the_name_of_its_encoding(encoding: str) -> None:
    header = f"Content-Transfer-Encoding: {encoding}\r\n"
    with pytest.raises(MultipartError, match=f"Content-Transfer-Encoding '{encoding.lower()}' is not supported"):
        parse(CONTENT_TYPE, form((header + 'Content-Disposition: form-data; name="image"; filename="a.jpg"', b"1")))
    assert parse(CONTENT_TYPE, form((header + 'Content-Disposition: form-data; name="image_base64"', b"eA==")))[0].content == b"eA=="
    plain = 'Content-Transfer-Encoding: binary\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"'
    assert parse(CONTENT_TYPE, form((plain, b"1")))[0].content == b"1"


def test_it_reads_what_httpx_writes() -> None:
    request = httpx.Request("POST", "http://x", data={"model": "a"}, files=[("images", ("ü.png", b"1")), ("images", ("b.png", b"2"))])
    parts = parse(request.headers["content-type"], request.read())
    assert parts == [Part("model", None, b"a"), Part("images", "ü.png", b"1"), Part("images", "b.png", b"2")]


@pytest.mark.parametrize("end", range(1, len(BODIES[0]) - 2))
def test_a_body_cut_anywhere_is_refused(end: int) -> None:
    with pytest.raises(MultipartError):
        parse(CONTENT_TYPE, BODIES[0][:end])


@pytest.mark.parametrize(
    ("content_type", "body", "message"),
    [
        ("multipart/form-data", BODIES[0], "no boundary"),
        ("multipart/form-data; boundary=other", BODIES[0], "does not contain the boundary"),
        (CONTENT_TYPE, b"", "does not contain the boundary"),
        (CONTENT_TYPE, form(("Content-Type: image/jpeg", b"1")), "no Content-Disposition"),
        (CONTENT_TYPE, form(*[('Content-Disposition: form-data; name="a"', b"1")] * (MAX_PARTS + 1)), "more than 320"),
    ],
)
def test_a_malformed_body_is_refused_in_words(content_type: str, body: bytes, message: str) -> None:
    with pytest.raises(MultipartError, match=message):
        parse(content_type, body)
