"""What subcommands on a storage have in common."""

from __future__ import annotations

from pydantic import Field

from cifar_ray.config import STORAGE_VARIABLE, Config, default_storage, storage_flag


class StorageCommand(Config):
    """A subcommand on what is in a storage."""

    storage: str = Field(default_factory=default_storage, description=f"path or URI; default: ${STORAGE_VARIABLE} or ./storage")

    @property
    def storage_flag(self) -> str:
        """` --storage …` for a command to type next; empty for the default."""
        return storage_flag(self.storage)
