"""Base class of the subcommands on a storage."""

from __future__ import annotations

from pydantic import Field

from cifar_ray.config import STORAGE_VARIABLE, Config, default_storage, storage_flag


class StorageCommand(Config):
    """Base of the subcommands that work on a storage."""

    storage: str = Field(default_factory=default_storage, description=f"path or URI; default: ${STORAGE_VARIABLE} or ./storage")

    @property
    def storage_flag(self) -> str:
        """` --storage …` for the next command that is printed; empty for the default storage."""
        return storage_flag(self.storage)
