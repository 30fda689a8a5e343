"""Read pictures and lists from web servers: without redirects, with limits on size and time."""

from __future__ import annotations

import http.client
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote

from cifar_ray.errors import DataError, ImageError, ImageTooLargeError, StoreError

MAX_PICTURE_BYTES = 10_000_000

_TIMEOUT_S = 30.0
_ATTEMPTS = 3
_PAUSE_S = 1.0
_RETRIED = (429, 500, 502, 503, 504)
_UNQUOTED = "%:/[]@!$&'()*+,;=~"  # characters with a meaning in an address, and `%`, which starts a quoted character


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Refuses redirects: they could lead anywhere, for example into the operator's own network."""

    def redirect_request(self, *_: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


def read_picture(url: str) -> bytes:
    """Read a picture, in up to 3 attempts.

    Raises:
        ImageError: if the server answers with an error or a redirect.
        ImageTooLargeError: if the picture has over 10 MB.
        StoreError: if the server cannot be reached.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            with _reaching(url), _OPENER.open(quote(url, _UNQUOTED), timeout=_TIMEOUT_S) as answer:
                content: bytes = answer.read(MAX_PICTURE_BYTES + 1)
                break
        except HTTPError as error:
            error.close()
            if error.code not in _RETRIED or attempt == _ATTEMPTS:
                raise ImageError(f"{url[:200]}: the server answers {error.code}") from None
        except StoreError:
            if attempt == _ATTEMPTS:
                raise
        time.sleep(_PAUSE_S * attempt)
    if len(content) > MAX_PICTURE_BYTES:
        raise ImageTooLargeError(f"{url[:200]}: over {MAX_PICTURE_BYTES // 10**6} MB")
    return content


def read_lines(url: str, max_bytes: int) -> Iterator[bytes]:
    """Read the lines of a text, one by one.

    Args:
        url: address of the text.
        max_bytes: maximum length of a line.

    Raises:
        DataError: if the server answers with an error or a redirect, or if a line is too long.
        StoreError: if the server cannot be reached.
    """
    try:
        with _reaching(url), _OPENER.open(quote(url, _UNQUOTED), timeout=_TIMEOUT_S) as answer:
            while line := answer.readline(max_bytes + 1):
                if len(line) > max_bytes:
                    raise DataError(f"{url[:200]}: a line has over {max_bytes:,} bytes; expected a picture in each line")
                yield line
    except HTTPError as error:
        error.close()
        raise DataError(f"{url[:200]}: the server answers {error.code}") from None


@contextmanager
def _reaching(url: str) -> Iterator[None]:
    try:
        yield
    except HTTPError:
        raise
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        raise StoreError(f"{url[:200]}: no answer ({' '.join(str(getattr(error, 'reason', error)).split())[:100]})") from None
