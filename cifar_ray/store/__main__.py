"""`python -m cifar_ray.store`: see what is kept, and say which version serves."""

from __future__ import annotations

import json
import sys
from abc import abstractmethod
from collections.abc import Sequence
from datetime import UTC
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
import yaml
from pydantic import Field
from tyro.conf import FlagCreatePairsOff, Positional, subcommand

from cifar_ray import cli
from cifar_ray.config import STORAGE_VARIABLE, Config, ResizePolicy, default_storage
from cifar_ray.errors import BundleError
from cifar_ray.store.ensembling import save_ensemble
from cifar_ray.store.locate import load_model
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


class Export(_Command):
    """Write a model as one file for other programs, once that file was seen to give the same logits."""

    reference: Positional[str] = Field(description="NAME, NAME@3, a run or a path")
    format: Literal["onnx", "torchscript", "pt2", "safetensors"] = Field(
        "onnx", description="all but safetensors take uint8 [N, S, S, 3] pixels and normalise them inside"
    )
    output: str | None = Field(None, description="path or URI of the file to write; default: NAME-VERSION and the format's suffix, here")

    def run(self, store: ModelStore) -> None:
        """Prints what was written and how it was checked."""
        from cifar_ray.inference.export import SUFFIXES, export  # brings torch, which the other commands do without

        bundle = load_model(self.reference, self.storage)
        target = self.output or f"{bundle.name}-{bundle.version}{SUFFIXES[self.format]}"
        written = export(bundle, self.format, target)
        print(f"wrote  {written.target}: {bundle.reference} as {self.format}, {written.size_bytes:,} bytes")
        print(f"check  logits differ from the model's by at most {written.deviation:.5%} of the largest ({written.checked_by})")


class Import(_Command):
    """Keep weights that were trained elsewhere as a model; the architecture is told from their shapes."""

    file: Positional[Path] = Field(description="torch state dict (.pt, .pth) or .safetensors; an exported .safetensors needs no more flags")
    name: Positional[str] = Field(description="of the model")
    like: str | None = Field(None, description="model whose classes, normalisation and image size are these too")
    classes: str | None = Field(None, description="names in the order of the logits, separated by commas")
    mean: tuple[float, float, float] | None = Field(None, description="that training subtracted, R G B in 0…1; default 0.5 0.5 0.5")
    std: tuple[float, float, float] | None = Field(None, description="that training divided by; default 0.5 0.5 0.5")
    image_size: int | None = Field(None, ge=8, le=1024, description="side of the images, px; default 32, or 224 for a ResNet's large stem")
    resize_policy: ResizePolicy | None = Field(None, description="how other shapes become square; default pad")

    def run(self, store: ModelStore) -> None:
        """Prints what was kept."""
        from cifar_ray.inference.import_weights import Meaning, import_weights

        meaning = Meaning(
            class_names=tuple(name.strip() for name in self.classes.split(",")) if self.classes else None,
            channel_mean=self.mean,
            channel_std=self.std,
            image_size_px=self.image_size,
            resize_policy=self.resize_policy,
            like=load_model(self.like, self.storage).manifest if self.like else None,
        )
        bundle = import_weights(store, self.file, self.name, meaning)
        manifest = bundle.manifest
        print(f"kept   {bundle.reference}: {manifest.architecture.name}, {len(manifest.class_names)} classes, {manifest.image_size_px} px")
        print(f"serve  serve run deployments:app model={bundle.reference} storage={store.storage}")


_Commands = (
    Annotated[List, subcommand("list")]
    | Annotated[Show, subcommand("show")]
    | Annotated[Promote, subcommand("promote")]
    | Annotated[Rollback, subcommand("rollback")]
    | Annotated[Ensemble, subcommand("ensemble")]
    | Annotated[Delete, subcommand("delete")]
    | Annotated[Export, subcommand("export")]
    | Annotated[Import, subcommand("import")]
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
