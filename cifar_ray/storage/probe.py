"""Check that all hosts see the same storage, and not a local folder with the same path."""

from __future__ import annotations

import platform
import uuid
from dataclasses import dataclass
from typing import Self

import tenacity

from cifar_ray.errors import StoreError
from cifar_ray.storage.tree import FileTree

_FILE = "mark"  # all releases use this file name
VISIBLE_WITHIN_S = 5.0  # NFS may show a new file late
_POLL_S = 0.2


@dataclass(frozen=True)
class StorageProbe:
    """A random text in a file of the storage, by which other hosts check that they see the same storage.

    Attributes:
        text: content of the file.
        host: host that wrote it.
    """

    text: str
    host: str

    @classmethod
    def place(cls, files: FileTree) -> Self:
        """Write the probe to a folder; keep the text of an existing probe.

        Raises:
            StoreError: if the storage cannot be used.
        """
        data = files.read(_FILE) or uuid.uuid4().hex.encode()
        files.replace(_FILE, data)
        return cls(data.decode(errors="replace"), platform.node())

    def check(self, storage: str, folder: str) -> None:
        """Check that this host sees the probe.

        Args:
            storage: path or URI of the storage, as the writing host uses it.
            folder: folder in the storage.

        Raises:
            StoreError: if this host does not see the probe within 5 s; NFS may show a new file late.
        """
        files = FileTree(storage, folder)
        read = tenacity.Retrying(
            retry=tenacity.retry_if_result(lambda text: text != self.text),
            stop=tenacity.stop_after_delay(VISIBLE_WITHIN_S),
            wait=tenacity.wait_fixed(_POLL_S),
        )
        try:
            read(lambda: (files.read(_FILE) or b"").decode(errors="replace"))
        except tenacity.RetryError:
            raise StoreError(
                f"--storage {storage}: host {platform.node()} does not see the files that host {self.host} wrote. "
                "Pass a folder that all hosts share, such as NFS, or a URI, such as s3://bucket/path"
            ) from None
