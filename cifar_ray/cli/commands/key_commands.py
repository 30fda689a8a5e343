"""The subcommands of `keys`."""

from __future__ import annotations

import os
import sys
from abc import abstractmethod
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator
from tyro.conf import Positional, subcommand

from cifar_ray.config import NAME_PATTERN, STORAGE_VARIABLE, Config, default_storage, local_path, resolve_storage
from cifar_ray.config.api_keys import KEYS_VARIABLE, Scope, add_key, read_keys, revoke_key


class KeyCommand(Config):
    """A subcommand on a file of API keys."""

    file: Path = Field(
        default_factory=lambda: Path(os.environ.get(KEYS_VARIABLE) or "api_keys.txt"),
        description=f"file of names and hashes; default: ${KEYS_VARIABLE} or ./api_keys.txt",
    )

    @field_validator("file")
    @classmethod
    def _at_home(cls, path: Path) -> Path:
        return local_path(str(path))

    @abstractmethod
    def run(self) -> None:
        """Runs the subcommand and prints its result."""


class KeyChange(KeyCommand):
    """A subcommand that changes a key; the change goes into the log of the storage, as `cifar-ray store log` shows it."""

    storage: str = Field(
        default_factory=default_storage, description=f"where the change is logged; default: ${STORAGE_VARIABLE} or ./storage"
    )

    def log(self, action: Literal["add key", "revoke key"], name: str, why: str = "") -> None:
        """Write a change of a key to the log of the storage."""
        from cifar_ray.store.log import Log, Reason  # imports pyarrow

        Log(resolve_storage(self.storage)).add(f"{name} in {self.file.name}", Reason(action, why))


class Add(KeyChange):
    """Create a key and print it. It is shown only now, because the file holds its hash. Servers accept it within two seconds."""

    name: Positional[Annotated[str, Field(pattern=NAME_PATTERN)]] = Field(description="name of the key's holder")
    requests_per_minute: int | None = Field(
        None, ge=1, le=999_999_999, description="rate limit; the server answers further requests with 429; default: unlimited"
    )

    scope: Scope = Field(
        "predict",
        description="predict; review: also label captured pictures; jobs: also run jobs; admin: everything, also delete captured pictures",
    )

    def run(self) -> None:
        """Create the key; print only the key on stdout, and everything else on stderr."""
        key = add_key(self.file, self.name, self.requests_per_minute, self.scope)
        self.log("add key", self.name, f"scope {self.scope}")
        use = f"serve run deployments:app api_keys={self.file.absolute()}"
        print(f"the key of {self.name}, shown only now. Servers: {use}. Clients send the header X-API-Key", file=sys.stderr)
        print(key)


class List(KeyCommand):
    """List the holders of keys with their rate limits."""

    def run(self) -> None:
        """Prints a line per key."""
        from cifar_ray.cli.output.terminal import print_table

        keys = read_keys(self.file)
        rows = [(key.name, f"{key.limit} requests/min" if key.requests_per_minute else key.limit, key.scope) for key in keys]
        print_table(rows, styles=["dim" if key.is_revoked else "" for key in keys])


class Revoke(KeyChange):
    """Revoke a key. Servers reject it within two seconds."""

    name: Positional[str] = Field(description="name of the key's holder")

    def run(self) -> None:
        """Prints what was done."""
        revoke_key(self.file, self.name)
        self.log("revoke key", self.name)
        print(f"the key of {self.name} is revoked")


KeyCommands = Annotated[Add, subcommand("add")] | Annotated[List, subcommand("list")] | Annotated[Revoke, subcommand("revoke")]
