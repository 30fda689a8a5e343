"""The subcommands of `store`."""

from __future__ import annotations

import json
from datetime import UTC
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
import yaml
from pydantic import Field
from tyro.conf import FlagCreatePairsOff, Positional, subcommand

from cifar_ray.cli.commands.publish_commands import Card, Push
from cifar_ray.cli.commands.stage_commands import ShowLog, Stage, Stages, StoreCommand, Unstage
from cifar_ray.cli.output import liveness
from cifar_ray.config import ResizePolicy
from cifar_ray.errors import BundleError, ConfigError
from cifar_ray.store.aliases import PREVIOUS, PRODUCTION
from cifar_ray.store.ensembling import save_ensemble
from cifar_ray.store.locate import load_model
from cifar_ray.store.registry import TEST_ACCURACY, ModelStore

_ABSENT = "–"
_HEADINGS = ("name", "version", "aliases", "architecture", "test accuracy", "data set", "created")


class List(StoreCommand):
    """List all models and versions. This reads manifests and not weights; `show` checks the weights."""

    as_json: Annotated[FlagCreatePairsOff[bool], tyro.conf.arg(name="json")] = Field(False, description="print JSON")

    def run(self, store: ModelStore) -> None:
        """Prints the table."""
        rows = [row for name in store.names() for row in _describe_versions(store, name)]
        if self.as_json:
            print(json.dumps(rows, indent=2))
        elif rows:
            _print_rows(rows)
        else:
            print(f"no model in {store.location} yet; train one with: cifar-ray train")


class Show(StoreCommand):
    """Check a model, weights included, and print its manifest."""

    reference: Positional[str] = Field(description="NAME, NAME@3 or NAME@production")
    as_json: Annotated[FlagCreatePairsOff[bool], tyro.conf.arg(name="json")] = Field(False, description="print JSON")

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


class Promote(StoreCommand):
    """Make a version the production version; running servers load it by themselves."""

    reference: Positional[str] = Field(description="NAME@3 or NAME@latest")

    def run(self, store: ModelStore) -> None:
        """Promote the version; print the production version, and its accuracy and the accuracy of the version before."""
        name, version = store.resolve_exact(self.reference)
        seen = store.pointers(name)
        _print_production(store, name, store.promote(name, version, replacing=seen), seen.production)


class Rollback(StoreCommand):
    """Return to the previous production version; a second rollback undoes the first."""

    name: Positional[str] = Field(description="name of the model")

    def run(self, store: ModelStore) -> None:
        """Roll back; print the production version, and its accuracy and the accuracy of the version before."""
        aliases = store.rollback(self.name)
        _print_production(store, self.name, aliases, aliases[PREVIOUS])


class Ensemble(StoreCommand):
    """Save a model that averages the probabilities of other models. It is not promoted if a version of it is in production."""

    name: Positional[str] = Field(description="name of the new model")
    members: Positional[tuple[str, ...]] = Field(description="NAME, NAME@3 …, at least two")

    def run(self, store: ModelStore) -> None:
        """Prints what was saved."""
        bundle = save_ensemble(store, self.name, self.members)
        print(f"saved {bundle.reference}: the mean of {', '.join(self.members)}")
        print(f"serve  serve run deployments:app model={bundle.reference} storage={self.storage}")


class Delete(StoreCommand):
    """Delete a version. This cannot be undone."""

    reference: Positional[str] = Field(description="NAME@3")
    force: FlagCreatePairsOff[bool] = Field(False, description="delete it even if an alias points to it")

    def run(self, store: ModelStore) -> None:
        """Prints what was deleted."""
        name, version = store.delete(self.reference, force=self.force)
        print(f"deleted {name}@{version}")


class Export(StoreCommand):
    """Write a model as one file for other programs, or as a page for browsers, and check that it gives the same answers."""

    reference: Positional[str] = Field(description="NAME, NAME@3, a run or a path")
    format: Literal["onnx", "pt2", "web", "torchscript", "safetensors"] = Field(
        "onnx",
        description="onnx and pt2: from uint8 [N, H, W, 3] pictures of any size to the answers of the server; web: a folder with a page "
        "that runs the model in the browser; torchscript: from uint8 [N, S, S, 3]; safetensors: weights only",
    )
    output: str | None = Field(
        None, description="path or URI of the file or folder; default: NAME-VERSION with the suffix of the format, here"
    )
    runtime: Path | None = Field(None, description="web: packed onnxruntime-web (.tgz); default: npm fetches it")

    def run(self, store: ModelStore) -> None:
        """Export the model; print what was written, how it was checked, and how fast it is."""
        from cifar_ray.inference.exporting.export import export  # imports torch, which other subcommands do not need
        from cifar_ray.inference.exporting.file_formats import FORMATS
        from cifar_ray.inference.exporting.web_folder import export_web

        if self.runtime and self.format != "web":
            raise ConfigError(f"runtime: {self.format} needs none; add --format web")
        bundle = load_model(self.reference, self.storage)
        suffix = "-web" if self.format == "web" else FORMATS[self.format].suffix
        target = self.output or f"{bundle.name}-{bundle.version}{suffix}"
        liveness.begin(f"exporting {bundle.reference}")
        if self.format == "web":
            written, size_bytes = export_web(bundle, target, self.runtime)
        else:
            written = export(bundle, self.format, target)
            size_bytes = len(written.data)
        print(f"wrote  {written.target}: {bundle.reference} as {self.format}, {size_bytes:,} bytes")
        print(
            f"check  logits of {written.pictures} picture{'s' * (written.pictures > 1)} differ from the model's by at most "
            f"{100 * written.deviation:.5f} % of the largest ({written.checked_by})"
        )
        height, width = written.timed_px
        print(f"speed  {written.latency_ms:.1f} ms for a picture of {width} × {height} px ({written.checked_by}, this machine)")
        if bundle.manifest.quantization:
            print("note   the file computes in fp32: the int8 form of the model is for OpenVINO only")
        if self.format == "web":
            print(f"open   python -m http.server --directory {target}")


class Import(StoreCommand):
    """Save weights that were trained elsewhere as a model; their shapes decide the architecture."""

    file: Positional[Path] = Field(
        description="torch state dict (.pt, .pth) or .safetensors; a .safetensors file from `export` needs no further flags"
    )
    name: Positional[str] = Field(description="name of the model")
    like: str | None = Field(None, description="model with the same classes, normalization and image size")
    classes: str | None = Field(None, description="class names in the order of the logits, separated by commas")
    mean: tuple[float, float, float] | None = Field(
        None, description="mean of the channels R G B, 0–1, that training subtracted; default: 0.5 0.5 0.5"
    )
    std: tuple[float, float, float] | None = Field(
        None, description="standard deviation of the channels that training divided by; default: 0.5 0.5 0.5"
    )
    image_size: int | None = Field(
        None, ge=8, le=1024, description="side of the square images, px; default: 32, or 224 for a ResNet with the large stem"
    )
    resize_policy: ResizePolicy | None = Field(None, description="how other shapes become square: pad, crop or squash; default: pad")

    def run(self, store: ModelStore) -> None:
        """Prints what was saved."""
        from cifar_ray.inference.exporting.import_weights import WeightsMetadata, import_weights

        meaning = WeightsMetadata(
            class_names=tuple(name.strip() for name in self.classes.split(",")) if self.classes else None,
            channel_mean=self.mean,
            channel_std=self.std,
            image_size_px=self.image_size,
            resize_policy=self.resize_policy,
            like=load_model(self.like, self.storage).manifest if self.like else None,
        )
        bundle = import_weights(store, self.file, self.name, meaning)
        manifest = bundle.manifest
        print(f"saved  {bundle.reference}: {manifest.architecture.name}, {len(manifest.class_names)} classes, {manifest.image_size_px} px")
        print(f"serve  serve run deployments:app model={bundle.reference} storage={store.storage}")


StoreCommands = (
    Annotated[List, subcommand("list")]
    | Annotated[Show, subcommand("show")]
    | Annotated[Promote, subcommand("promote")]
    | Annotated[Rollback, subcommand("rollback")]
    | Annotated[Stage, subcommand("stage")]
    | Annotated[Unstage, subcommand("unstage")]
    | Annotated[Stages, subcommand("stages")]
    | Annotated[ShowLog, subcommand("log")]
    | Annotated[Card, subcommand("card")]
    | Annotated[Push, subcommand("push")]
    | Annotated[Ensemble, subcommand("ensemble")]
    | Annotated[Delete, subcommand("delete")]
    | Annotated[Export, subcommand("export")]
    | Annotated[Import, subcommand("import")]
)


def _aliases_of(store: ModelStore, name: str, version: int) -> list[str]:
    return [alias for alias, target in store.aliases(name).items() if target == version]


def _describe_versions(store: ModelStore, name: str) -> list[dict[str, Any]]:
    """A row per version, for the table and for JSON; a damaged bundle has a reason in `damaged`."""
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
        **({"test_map": manifest.metrics.get("test_map")} if manifest.task == "multi-label" else {}),
        "dataset": manifest.dataset_name,
        "created_at": manifest.created_at.astimezone(UTC).isoformat(timespec="seconds"),
        "damaged": None,
    }


def _print_rows(rows: list[dict[str, Any]]) -> None:
    """Print a table, then a line for each damaged bundle."""
    from cifar_ray.cli.output.terminal import print_table  # imports rich

    styles = ["red" if row["damaged"] else "green" if PRODUCTION in row["aliases"] else "" for row in rows]
    print_table([_cells(row) for row in rows], _HEADINGS, styles=styles, cut_last=True)
    for row in rows:
        if row["damaged"]:
            print(f"damaged: {row['damaged']}")


def _figure(row: dict[str, Any]) -> str:
    """The test accuracy, or the mAP with its name."""
    if row.get("test_map") is not None:
        return f"mAP {100 * row['test_map']:.2f} %"
    return _ABSENT if row["test_accuracy"] is None else f"{100 * row['test_accuracy']:.2f} %"


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["name"],
        str(row["version"]),
        ", ".join(row["aliases"]) or _ABSENT,
        "damaged" if row["damaged"] else row["architecture"],
        _figure(row),
        row["dataset"] or _ABSENT,
        row["created_at"] or _ABSENT,
    )


def _print_production(store: ModelStore, name: str, aliases: dict[str, int], before: int | None) -> None:
    from cifar_ray.store.promotion import describe_production  # imports numpy

    previous = f", previous version: {name}@{aliases[PREVIOUS]}" if PREVIOUS in aliases else ""
    print(f"{name}@{aliases[PRODUCTION]} is in production{previous}")
    if figures := describe_production(store, name, aliases[PRODUCTION], before):
        print(figures)
