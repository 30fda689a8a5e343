"""Whether hosts see the same storage, or each a disk of its own under the same name."""

from __future__ import annotations

import platform
import uuid
from dataclasses import dataclass
from typing import Self

import tenacity

from cifar_ray.errors import StoreError
from cifar_ray.storage.tree import FileTree

_FILE = "mark"  # the name that runs of all releases have
VISIBLE_WITHIN_S = 5.0  # NFS may show a new file late
_POLL_S = 0.2


@dataclass(frozen=True)
class StorageProbe:
    """What one host left in a folder of the storage, for others to find.

    Attributes:
        text: what it is.
        host: where that was.
    """

    text: str
    host: str

    @classmethod
    def place(cls, files: FileTree) -> Self:
        """Writes it into a folder; where there is one already, that stays.

        Raises:
            StoreError: if the storage cannot be used.
        """
        data = files.read(_FILE) or uuid.uuid4().hex.encode()
        files.replace(_FILE, data)
        return cls(data.decode(errors="replace"), platform.node())

    def check(self, storage: str, folder: str) -> None:
        """Makes sure that this host finds it.

        Args:
            storage: as the one that left it names it.
            folder: below.

        Raises:
            StoreError: if it does not, some seconds later either: NFS may show a new file late.
        """
        files = FileTree(storage, folder)
        look = tenacity.Retrying(
            retry=tenacity.retry_if_result(lambda text: text != self.text),
            stop=tenacity.stop_after_delay(VISIBLE_WITHIN_S),
            wait=tenacity.wait_fixed(_POLL_S),
        )
        try:
            look(lambda: (files.read(_FILE) or b"").decode(errors="replace"))
        except tenacity.RetryError:
            raise StoreError(
                f"--storage {storage}: host {platform.node()} does not see what {self.host} wrote there; "
                "name a folder that all hosts share, such as NFS, or a URI, such as s3://bucket/path"
            ) from None
