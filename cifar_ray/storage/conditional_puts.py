"""Conditional puts on an object store: a put succeeds only if nobody has changed the object since it was read.

pyarrow drops the headers `If-Match` and `If-None-Match`, so these requests go through obstore.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

from cifar_ray.errors import StoreError
from cifar_ray.storage.retry import Retry

if TYPE_CHECKING:
    from obstore.store import ObjectStore

_ATTEMPTS = 100
_PAGE = 1000
_TRANSIENT = re.compile(r"status code: (429|500|502|503|504)|error sending request|timed out|connection (closed|reset)", re.IGNORECASE)


class NoConditionalPutsError(Exception):
    """The object store, or our access to it, has no conditional puts. The message gives the reason."""


class ConditionalPuts:
    """Changes objects of a bucket so that concurrent changes do not overwrite each other.

    Args:
        storage: URI of the object store, as pyarrow takes it: `s3://…` or `gs://…` with its options.
        bucket: name of the bucket.
        region: region of the bucket; for S3 only.
        retry: retries transient errors.

    Raises:
        NoConditionalPutsError: from the constructor and from `update`.
    """

    def __init__(self, storage: str, bucket: str, region: str | None, retry: Retry) -> None:
        self._store = _open(storage, bucket, region)
        self._retry = retry

    def update(self, path: str, change: Callable[[bytes | None], bytes]) -> bytes:
        """Replace the content of an object by `change(content)`, and return the new content.

        Args:
            path: path in the bucket.
            change: receives the content, or `None` if there is no object. It is called again after a concurrent change. If it raises,
                nothing is written.

        Raises:
            StoreError: if the store cannot be reached, or if other processes change the object during each of 100 attempts.
        """
        lost: bytes | None = None  # content of a put that got no response
        for _ in range(_ATTEMPTS):
            content, mode = self._retry.attempt(f"read {path}", partial(self._read, path))
            if lost is not None and content == lost:  # that put succeeded
                return lost
            new = change(content)
            if content == new:
                return new
            put = _Put(partial(self._put, path, new, mode))
            if self._retry.attempt(f"write {path}", put):
                return new
            lost = new if put.failures else None
        raise StoreError(f"cannot write {path}: other processes changed it {_ATTEMPTS} times meanwhile; try again later")

    def _read(self, path: str) -> tuple[bytes | None, Any]:
        """The content, and the mode of a put that replaces exactly this content."""
        try:
            with _converted_errors(FileNotFoundError):
                found = self._store.get(path)
        except FileNotFoundError:
            return None, "create"
        version = {name: found.meta[name] for name in ("e_tag", "version") if found.meta[name] is not None}
        return bytes(found.bytes()), version

    def _put(self, path: str, content: bytes, mode: Any) -> bool:
        """Whether the put succeeded; `False` if the object has changed."""
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        gone = () if mode == "create" else (FileNotFoundError,)
        try:
            with _converted_errors(AlreadyExistsError, PreconditionError, *gone):
                self._store.put(path, content, mode=mode, use_multipart=False)
        except (AlreadyExistsError, PreconditionError, *gone):
            return False
        return True


def list_bucket(storage: str, bucket: str, region: str | None, prefix: str) -> Iterator[list[str]]:
    """Paths of all objects below a folder of a bucket, page by page.

    Raises:
        NoConditionalPutsError: if obstore cannot reach the store; before the first page only.
        OSError: if a later page cannot be read.
    """
    store = _open(storage, bucket, region)
    with _converted_errors():
        pages = iter(store.list(prefix or None, chunk_size=_PAGE))
        page = next(pages, None)
    while page is not None:
        yield [one["path"] for one in page]
        try:
            with _converted_errors():
                page = next(pages, None)
        except NoConditionalPutsError as error:
            raise OSError(errno.EIO, str(error)) from None


@dataclass
class _Put:
    """A put that counts its attempts without a response."""

    put: Callable[[], bool]
    failures: int = 0

    def __call__(self) -> bool:
        try:
            return self.put()
        except OSError:
            self.failures += 1
            raise


@contextmanager
def _converted_errors(*expected: type[Exception]) -> Iterator[None]:
    """Convert errors of obstore: transient ones to errors that `Retry` retries, others to `NoConditionalPutsError`."""
    from obstore.exceptions import BaseError

    try:
        yield
    except expected:
        raise
    except (BaseError, OSError, ValueError) as error:
        reason = " ".join(str(error).partition("\n\nDebug")[0].split())
        if _TRANSIENT.search(reason):
            raise OSError(errno.ECONNRESET, reason) from error
        raise NoConditionalPutsError(reason) from error


def _open(storage: str, bucket: str, region: str | None) -> ObjectStore:
    from obstore.store import GCSStore, S3Store

    uri = urlsplit(storage)
    options = dict(parse_qsl(uri.query))
    endpoint = options.get("endpoint_override")
    retry: Any = {"max_retries": 0}  # `Retry` retries
    if uri.scheme != "s3" and (uri.scheme != "gs" or endpoint):
        raise NoConditionalPutsError(f"{uri.scheme}:// with these options is not supported")
    with _converted_errors():
        if uri.scheme == "gs":
            return GCSStore(bucket, retry_config=retry)
        config: Any = {"region": region} if region else {}
        if endpoint:
            config["endpoint"] = endpoint if "://" in endpoint else f"{options.get('scheme', 'https')}://{endpoint}"
        if uri.username and uri.password:
            config |= {"access_key_id": unquote(uri.username), "secret_access_key": unquote(uri.password)}
        credentials = None if uri.username else _credentials()
        http: Any = {"allow_http": options.get("scheme") == "http"}
        return S3Store(bucket, config=config, client_options=http, retry_config=retry, credential_provider=credentials)


def _credentials() -> Any:
    """Find credentials in the same places as pyarrow. obstore reads all of them except `~/.aws`, so boto3 reads `~/.aws`."""
    if os.environ.get("AWS_ACCESS_KEY_ID"):
        return None
    if find_spec("boto3") is not None:
        from obstore.auth.boto3 import Boto3CredentialProvider

        try:
            return Boto3CredentialProvider()
        except ValueError:  # no credentials there
            return None
    file = Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials").expanduser()
    if os.environ.get("AWS_PROFILE") or file.exists():
        raise NoConditionalPutsError("reading credentials from ~/.aws needs: pip install 'cifar-ray[aws]'")
    return None
