"""The id of a request and its client."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from functools import cached_property

_ID = re.compile(r"[A-Za-z0-9._-]{1,100}")


class Sender:
    """The id of a request and the name of its client, read only when they are needed, because most requests need neither.

    Args:
        headers: headers of the request, case-insensitive.
        client_header: name of the header that names the client.
        key_holder: holder of the API key; the client if the header is missing.
    """

    def __init__(self, headers: Mapping[str, str], client_header: str, key_holder: str | None) -> None:
        self._headers = headers
        self._client_header = client_header
        self._key_holder = key_holder

    @cached_property
    def request_id(self) -> str:
        """The id of the request from the header `X-Request-Id`; a new one if it is missing or not safe in a file name."""
        sent = self._headers.get("X-Request-Id")
        return sent if sent and _ID.fullmatch(sent) else uuid.uuid4().hex

    @property
    def client(self) -> str | None:
        """Name of the client; `None` if neither header nor API key gives one."""
        return self._headers.get(self._client_header) or self._key_holder
