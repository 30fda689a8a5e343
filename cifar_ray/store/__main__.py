"""`python -m cifar_ray.store`: see what is kept, and say which version serves."""

from __future__ import annotations

import json
import sys
from abc import abstractmethod
from collections.abc import Sequence
from datetime import UTC
from typing import Annotated, Any

import tyro
import yaml
from pydantic import Field
from tyro.conf import FlagCreatePairsOff, Positional, subcommand

from cifar_ray import cli
from cifar_ray.config import STORAGE_VARIABLE, Config, default_storage
from cifar_ray.errors import BundleError
from cifar_ray.store.ensemble import save_ensemble
from cifar_ray.store.registry import PREVIOUS, PRODUCTION, TEST_ACCURACY, ModelStore

_ABSENT = "–"


class _Command(Config):
    storage: str = Field(default_factory=default_storage, description=f"path or URI; default ${STORAGE_VARIABLE} or ./storage")

    @abstractmethod
    def run(self, store: ModelStore) -> None: ...


class List(_Command):
    """Show every model and version. Manifests are read, weights are not: `show` checks those."""

    as_json: Annotated[FlagCreatePairsOff[bool], tyro.conf.arg(name="json")] = Field(False, description="for programs")

    def run(self, store: ModelStore) -> None:
        """Prints the table."""
        rows = [row for name in store.names() for row in _describe_versions(store, name)]
        if self.as_json:
            print(json.dumps(rows, indent=2))
        elif rows:
            print(_table(rows))
        else:
            print(f"no model in {store.location} yet; train one with: python -m cifar_ray.train")


class Show(_Command):
    """Check one bundle, weights included, and print its manifest."""

    reference: Positional[str] = Field(description="NAME, NAME@3 or NAME@production")
    as_json: Annotated[FlagCreatePairsOff[bool], tyro.conf.arg(name="json")] = Field(False, description="for programs")

    def run(self, store: ModelStore) -> None:
        """Prints the manifest."""
        name, version = store.resolve(self.reference)
        about = {
            "name": name,
            "version": version,
            "aliases": _aliases_of(store, name, version),
            "location": f"{store.location}/{name}/{version}",
            "manifest": store.check(f"{name}@{version}").model_dump(mode="json"),
        }
        if self.as_json:
            print(json.dumps(about, indent=2))
        else:
            print(yaml.safe_dump(about, sort_keys=False, default_flow_style=None, allow_unicode=True, width=120), end="")


class Promote(_Command):
    """Make a version the production one; servers take it up by themselves."""

    reference: Positional[str] = Field(description="NAME@3 or NAME@latest")

    def run(self, store: ModelStore) -> None:
        """Prints what is in production now."""
        name, version = store.resolve_exact(self.reference)
        _print_production(name, store.promote(name, version))


class Rollback(_Command):
    """Go back to the production version before; again to undo."""

    name: Positional[str] = Field(description="of the model")

    def run(self, store: ModelStore) -> None:
        """Prints what is in production now."""
        _print_production(self.name, store.rollback(self.name))


class Ensemble(_Command):
    """Make a model that averages the probabilities of others. It is not promoted where a version of it is in production."""

    name: Positional[str] = Field(description="of the new model")
    members: Positional[tuple[str, ...]] = Field(description="NAME, NAME@3 …, at least two")

    def run(self, store: ModelStore) -> None:
        """Prints what was made."""
        bundle = save_ensemble(store, self.name, self.members)
        print(f"saved {bundle.reference}: the mean of {', '.join(self.members)}")
        print(f"serve  serve run deployments:app model={bundle.reference} storage={self.storage}")


class Delete(_Command):
    """Delete one version for good."""

    reference: Positional[str] = Field(description="NAME@3")
    force: FlagCreatePairsOff[bool] = Field(False, description="even if an alias points to it")

    def run(self, store: ModelStore) -> None:
        """Prints what was deleted."""
        name, version = store.delete(self.reference, force=self.force)
        print(f"deleted {name}@{version}")


_Commands = (
    Annotated[List, subcommand("list")]
    | Annotated[Show, subcommand("show")]
    | Annotated[Promote, subcommand("promote")]
    | Annotated[Rollback, subcommand("rollback")]
    | Annotated[Ensemble, subcommand("ensemble")]
    | Annotated[Delete, subcommand("delete")]
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand; the command line's own arguments where `argv` is `None`."""
    command: _Command = cli.parse(_Commands, argv, prog="python -m cifar_ray.store")
    command.run(ModelStore(command.storage))
    return 0


def _aliases_of(store: ModelStore, name: str, version: int) -> list[str]:
    return [alias for alias, target in store.aliases(name).items() if target == version]


def _describe_versions(store: ModelStore, name: str) -> list[dict[str, Any]]:
    """One row a version, for the table and for programs; a damaged bundle says so in its own row."""
    return [
        {"name": name, "version": version, "aliases": _aliases_of(store, name, version)} | _describe(store, f"{name}@{version}")
        for version in store.versions(name)
    ]


def _describe(store: ModelStore, reference: str) -> dict[str, Any]:
    try:
        manifest = store.manifest(reference)
    except BundleError as error:
        return {"architecture": None, "test_accuracy": None, "dataset": None, "created_at": None, "damaged": str(error)}
    return {
        "architecture": manifest.architecture.name,
        "test_accuracy": manifest.metrics.get(TEST_ACCURACY),
        "dataset": manifest.dataset_name,
        "created_at": manifest.created_at.astimezone(UTC).isoformat(timespec="seconds"),
        "damaged": None,
    }


def _table(rows: list[dict[str, Any]]) -> str:
    """Aligned columns, then a line for each damaged bundle."""
    cells = [("name", "version", "aliases", "architecture", "test accuracy", "data set", "created"), *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    return "\n".join([*lines, *(f"damaged: {row['damaged']}" for row in rows if row["damaged"])])


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["name"],
        str(row["version"]),
        ", ".join(row["aliases"]) or _ABSENT,
        "damaged" if row["damaged"] else row["architecture"],
        _ABSENT if row["test_accuracy"] is None else f"{row['test_accuracy']:.2%}",
        row["dataset"] or _ABSENT,
        row["created_at"] or _ABSENT,
    )


def _print_production(name: str, aliases: dict[str, int]) -> None:
    previous = f"; before it {name}@{aliases[PREVIOUS]}" if PREVIOUS in aliases else ""
    print(f"{name}@{aliases[PRODUCTION]} is in production{previous}")


if __name__ == "__main__":
    sys.exit(cli.run(main))
