"""The subcommands of `cache`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from tyro.conf import subcommand

from cifar_ray.config import Config


class List(Config):
    """List decoded data sets, features and downloads with their sizes."""

    def run(self) -> None:
        """Prints a line per entry and the total."""
        from cifar_ray.cli.output.terminal import print_table
        from cifar_ray.data.reading.local_cache import CACHE_VARIABLE, cache_folder, list_cache

        entries = list_cache()
        print_table([(f"{entry.num_bytes / 1e6:,.1f} MB", entry.name, entry.about) for entry in entries], justify=["right", "left", "left"])
        total = sum(entry.num_bytes for entry in entries) / 1e9
        print(f"{total:,.2f} GB in {cache_folder()} (${CACHE_VARIABLE}); features take at most 10 GB, the least recently used go first")


class Clear(Config):
    """Delete everything that can be made again: decoded data sets and features. Downloads stay."""

    downloads: bool = Field(False, description="also delete downloaded archives")

    def run(self) -> None:
        """Delete the entries, and print how much was deleted."""
        from cifar_ray.data.reading.local_cache import cache_folder, clear_cache

        print(f"{clear_cache(downloads=self.downloads) / 1e9:,.2f} GB deleted from {cache_folder()}")


CacheCommands = Annotated[List, subcommand("list", default=List())] | Annotated[Clear, subcommand("clear")]
