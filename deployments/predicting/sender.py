"""The id of a request and its client."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from functools import cached_property

_ID = re.compile(r"[A-Za-z0-9._-]{1,100}")


class Sender:
    """The id of a request and the name of its client. Most requests need neither, so they are read when they are needed.

    Args:
        headers: of the request, found in any case.
        client_header: the header that names the client.
        key_holder: of its API key; names the client if the header does not.
    """

    def __init__(self, headers: Mapping[str, str], client_header: str, key_holder: str | None) -> None:
        self._headers = headers
        self._client_header = client_header
        self._key_holder = key_holder

    @cached_property
    def request_id(self) -> str:
        """The id of the request from its header, or a new one if that is not fit for a file."""
        sent = self._headers.get("X-Request-Id")
        return sent if sent and _ID.fullmatch(sent) else uuid.uuid4().hex

    @property
    def client(self) -> str | None:
        """The client; `None` if the request does not name it."""
        return self._headers.get(self._client_header) or self._key_holder
