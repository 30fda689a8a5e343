"""`python -m cifar_ray.keys`: who may use a server that asks for keys."""

from __future__ import annotations

import os
import sys
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from pydantic import Field
from tyro.conf import Positional, subcommand

from cifar_ray import cli
from cifar_ray.config import NAME_PATTERN, Config
from cifar_ray.config.api_keys import KEYS_VARIABLE, REVOKED, UNLIMITED, ApiKey, new_key, read_keys, sha256_of, write_keys
from cifar_ray.errors import ConfigError

PROG = "python -m cifar_ray.keys"


class _Command(Config):
    file: Path = Field(
        default_factory=lambda: Path(os.environ.get(KEYS_VARIABLE) or "api_keys.txt"),
        description=f"names and hashes; default ${KEYS_VARIABLE} or ./api_keys.txt",
    )

    @abstractmethod
    def run(self) -> None: ...


class Add(_Command):
    """Make a key and print it, this once: only its hash is kept. Servers know it within two seconds."""

    name: Positional[Annotated[str, Field(pattern=NAME_PATTERN)]] = Field(description="of whoever will hold it")
    requests_per_minute: int | None = Field(None, ge=1, le=999_999_999, description="more are answered with 429; default: unlimited")

    def run(self) -> None:
        """Prints the key alone on stdout, the rest on stderr."""
        keys = read_keys(self.file) if self.file.exists() else []
        if any(key.name == self.name for key in keys):
            raise ConfigError(f"{self.file} has a key of {self.name} already; take another name, also after a revocation")
        key = new_key()
        write_keys(self.file, [*keys, ApiKey(self.name, sha256_of(key.encode()), str(self.requests_per_minute or UNLIMITED))])
        print(f"the key of {self.name}, shown this once; serve run deployments:app api_keys={self.file.absolute()}", file=sys.stderr)
        print(key)


class List(_Command):
    """Show who has a key, and how many requests a minute each may send."""

    def run(self) -> None:
        """Prints a line a key."""
        keys = read_keys(self.file)
        width = max((len(key.name) for key in keys), default=0)
        for key in keys:
            print(f"{key.name:{width}}  {f'{key.limit} requests/min' if key.requests_per_minute else key.limit}")


class Revoke(_Command):
    """End a key. Servers refuse it within two seconds."""

    name: Positional[str] = Field(description="of whoever holds it")

    def run(self) -> None:
        """Prints what was done."""
        keys = read_keys(self.file)
        if all(key.name != self.name for key in keys):
            raise ConfigError(f"{self.file} has no key of {self.name}; there are {', '.join(key.name for key in keys) or 'none'}")
        write_keys(self.file, [replace(key, limit=REVOKED) if key.name == self.name else key for key in keys])
        print(f"the key of {self.name} is revoked")


_Commands = Annotated[Add, subcommand("add")] | Annotated[List, subcommand("list")] | Annotated[Revoke, subcommand("revoke")]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand; the command line's own arguments where `argv` is `None`."""
    command: _Command = cli.parse(_Commands, argv, PROG)
    command.run()
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
