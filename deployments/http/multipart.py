"""Parse `multipart/form-data` (RFC 7578) from a complete body, several times as fast as parsing it while it arrives."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from python_multipart.multipart import parse_options_header

from cifar_ray.errors import CifarRayError

MAX_PARTS = 320

# The header as browsers, curl and common libraries write it; the slower `parse_options_header` parses all other forms.
_BOUNDARY = re.compile(r"multipart/form-data; ?boundary=([0-9A-Za-z'+_./:=?-]{1,70})", re.IGNORECASE)
_DISPOSITION = re.compile(rb'form-data; name="([^"\\%]*)"(?:; filename="([^"\\%]*)")?')
# RFC 8187: charset'language'percent-encoded
_EXTENDED_FILENAME = re.compile(rb";\s*filename\*\s*=\s*\"?([A-Za-z0-9_-]*)'[^']*'([^;\s\"]*)", re.IGNORECASE)
_ANY_FILENAME = re.compile(rb";\s*filename\*", re.IGNORECASE)
# Python's names of the supported charsets; its other codecs (idna, utf-7, unicode_escape …) raise errors or give lone surrogates.
_CHARSETS = re.compile(
    r"ascii|utf-8|utf-16(-[bl]e)?|iso8859-\d+|cp125\d|cp932|cp949|shift_jis|euc_(jp|kr)|gb2312|gbk|gb18030|big5|koi8-[ru]"
)
_AS_IT_IS = (b"", b"7bit", b"8bit", b"binary")
_FILE_TYPES = (b"image/", b"application/octet-stream")


class MultipartError(CifarRayError):
    """The body is not valid `multipart/form-data`."""


@dataclass(frozen=True)
class Part:
    """One field of a form.

    Attributes:
        name: name of the field.
        filename: file name from the client, which may be empty; `None` for text.
        content: the bytes as sent.
    """

    name: str
    filename: str | None
    content: bytes


def parse(content_type: str, body: bytes) -> list[Part]:
    """Return all fields of a form in the order sent.

    Args:
        content_type: the header Content-Type, which names the boundary.
        body: the complete body.

    Raises:
        MultipartError: for a malformed or incomplete body, an encoded file, and for more than 320 fields.
    """
    delimiter = b"\r\n--" + _boundary(content_type)
    # At the very start of the body, the first delimiter has no line break before it.
    first = -2 if body.startswith(delimiter[2:]) else body.find(delimiter)
    if first == -1:
        raise MultipartError("the multipart body does not contain the boundary from its Content-Type header")
    position = first + len(delimiter)
    parts: list[Part] = []
    while not body.startswith(b"--", position):
        if len(parts) == MAX_PARTS:
            raise MultipartError(f"the form has more than {MAX_PARTS} fields; send fewer")
        start = body.find(b"\r\n\r\n", position) + 4
        end = body.find(delimiter, start)
        if start < 4 or end < 0:
            raise MultipartError("the multipart body is incomplete: its last boundary is missing")
        parts.append(Part(*_names(body[position : start - 4]), body[start:end]))
        position = end + len(delimiter)
    return parts


def _boundary(content_type: str) -> bytes:
    if match := _BOUNDARY.fullmatch(content_type):
        return match[1].encode()
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise MultipartError("the Content-Type header has no boundary; let your HTTP client write this header")
    return boundary


def _names(head: bytes) -> tuple[str, str | None]:
    """Field name and file name from the headers of a part.

    A part is a file if it has a `filename`, a `filename*` (RFC 8187; urllib3 before 2.0 writes only this for names that are not ASCII), or
    the content type of a file. A file without a name gets an empty one.
    """
    name = filename = None
    is_file = False
    encoding = "utf-8"
    transfer_encoding = b""
    for line in head.split(b"\r\n"):
        key, _, value = line.partition(b":")
        if key.strip().lower() == b"content-type":
            is_file = is_file or value.strip().lower().startswith(_FILE_TYPES)
        if key.strip().lower() == b"content-transfer-encoding":
            transfer_encoding = value.strip().lower()
        if name is not None or key.strip().lower() != b"content-disposition":
            continue
        if match := _DISPOSITION.fullmatch(value.strip()):
            name, filename = match.groups()
        else:
            options = parse_options_header(value)[1]
            name, filename = options.get(b"name"), options.get(b"filename")
            is_file = is_file or _ANY_FILENAME.search(value) is not None
            if filename is None and (extended := _EXTENDED_FILENAME.search(value)) is not None:
                encoding, filename = extended[1].decode(), unquote_to_bytes(extended[2])
    if name is None:
        raise MultipartError("a part of the multipart body has no Content-Disposition header with a name")
    if filename is None and is_file:
        filename = b""
    if filename is not None and transfer_encoding not in _AS_IT_IS:
        shown = transfer_encoding[:50].decode(errors="replace")
        raise MultipartError(
            f"Content-Transfer-Encoding {shown!r} is not supported in a form (RFC 7578). Send the file's bytes as they are"
        )
    return name.decode(errors="replace"), None if filename is None else _text(filename, encoding)


def _text(filename: bytes, encoding: str) -> str:
    try:
        known = _CHARSETS.fullmatch(codecs.lookup(encoding).name)
    except LookupError:
        known = None
    return filename.decode(encoding if known else "utf-8", errors="replace")
