"""Publish a model: its model card, and a folder to upload to Hugging Face's hub."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import yaml

from cifar_ray.config.version import VERSION
from cifar_ray.metrics.score import Score
from cifar_ray.storage import FileTree
from cifar_ray.store.bundle import Bundle, encode
from cifar_ray.store.gallery import GALLERY_FILE
from cifar_ray.store.manifest import Manifest

if TYPE_CHECKING:
    import torch

CARD = "README.md"
# Files of the card in each saved bundle. They are not attachments, so the manifest has no checksum of them.
CARD_FILES = ("card.md", "card.html")

_logger = logging.getLogger(__name__)

_SPLITS = {"test": "test", "val": "validation", "cv": "cross-validation"}
_LISTED_CLASSES = 100
_UNKNOWN = 0  # version of a model that is not saved yet


def model_card(bundle: Bundle) -> str:
    """Model card (Mitchell et al. 2019, arXiv 1810.03993): Markdown with metadata for Hugging Face's hub."""
    head = yaml.safe_dump(_metadata(bundle), sort_keys=False, allow_unicode=True)
    return f"---\n{head}---\n\n{_body(bundle)}"


def model_card_html(bundle: Bundle) -> str:
    """Model card as an HTML page that opens offline; text from the manifest is escaped."""
    from jinja2 import Environment, PackageLoader
    from markdown_it import MarkdownIt
    from markupsafe import Markup

    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(_body(bundle))
    page = Environment(loader=PackageLoader("cifar_ray.store"), autoescape=True).get_template("card.html.j2")
    return page.render(title=_title(bundle), body=Markup(body))  # noqa: S704  (markdown-it escapes HTML)


def cards_of_new(name: str, manifest: Manifest, weights: Mapping[str, torch.Tensor]) -> dict[str, bytes]:
    """The card of a model that is about to be saved, as files by name; its version is not known yet.

    An error is logged, and the model is saved without its card.
    """
    try:
        bundle = Bundle(manifest, dict(weights), name, _UNKNOWN)
        contents = (model_card(bundle), model_card_html(bundle))
        return {file: content.encode() for file, content in zip(CARD_FILES, contents, strict=True)}
    except Exception as error:
        _logger.warning("the model is saved without its card: %s: %s", type(error).__name__, error)
        return {}


def _title(bundle: Bundle) -> str:
    return bundle.name if bundle.version == _UNKNOWN else bundle.reference


def _body(bundle: Bundle) -> str:
    manifest = bundle.manifest
    sections = {
        "": _introduction(bundle),
        "Use it": _use(bundle),
        "How good it is": _figures(manifest),
        "Where it fails": _limits(manifest),
        "What it was trained on": _data(manifest),
        "How it was trained": _training(manifest),
        "Licence and origin": _origin(manifest),
        "Cite": f"`{_title(bundle)}`, weights sha256 `{manifest.weights_sha256[:16]}`, cifar_ray, {manifest.created_at:%Y-%m-%d}.",
    }
    body = "\n\n".join(f"## {title}\n\n{text}" if title else text for title, text in sections.items())
    return f"# {bundle.name}\n\n{body}\n"


def write_folder(bundle: Bundle, target: str) -> list[str]:
    """Write a model as a folder with its card, ready to upload; `load_model` reads it by its path.

    The gallery of mistakes is left out, because it holds test pictures, which may be private.

    Args:
        bundle: the model.
        target: path or URI of the folder.

    Returns:
        Names of the files.

    Raises:
        StoreError: if the folder cannot be written.
    """
    attachments = {name: content for name, content in bundle.attachments.items() if name != GALLERY_FILE}
    files: Mapping[str, bytes] = {CARD: model_card(bundle).encode()} | dict(encode(bundle.manifest, bundle.weights, attachments))
    tree = FileTree(target, "")
    for name, content in files.items():  # the manifest comes last and commits the model
        tree.replace(name, content)
    return list(files)


def _metadata(bundle: Bundle) -> dict[str, object]:
    manifest = bundle.manifest
    results = []
    for split, name in _SPLITS.items():
        if score := Score.find(manifest.metrics, split, manifest.image_counts.get(split)):
            dataset = {"name": manifest.dataset_name, "type": manifest.dataset_name, "split": name}
            metric = {"type": "accuracy" if score.key == "accuracy" else "mean_average_precision", "value": round(score.value, 4)}
            results.append({"task": {"type": "image-classification"}, "dataset": dataset, "metrics": [metric]})
    return {
        "library_name": "cifar_ray",
        "pipeline_tag": "image-classification",
        "license": (manifest.pretrained.license.lower() if manifest.pretrained else "") or "other",
        "tags": ["image-classification", "cifar_ray", manifest.architecture.name],
        "model-index": [{"name": bundle.name, "results": results}],
    }


def _introduction(bundle: Bundle) -> str:
    manifest = bundle.manifest
    names = ", ".join(manifest.class_names[:_LISTED_CLASSES]) + (" …" if len(manifest.class_names) > _LISTED_CLASSES else "")
    does = (
        "tells which one of these classes a picture shows"
        if manifest.task == "single-label"
        else "tells which of these labels a picture has"
    )
    count = sum(tensor.numel() for tensor in bundle.weights.values())
    return (
        f"`{_title(bundle)}` {does}: {names}.\n\n{_descriptions(manifest)}"
        f"Network: {manifest.architecture.name}, {count / 1e6:.2f} million parameters, "
        f"pictures of {manifest.image_size_px} × {manifest.image_size_px} px ({manifest.resize_policy})."
    )


def _descriptions(manifest: Manifest) -> str:
    """A table of the classes with descriptions, and an empty line; empty if no class has one."""
    described = [name for name in manifest.class_names if name in manifest.class_descriptions][:_LISTED_CLASSES]
    rows = [f"| {_plain(name)} | {_plain(manifest.class_descriptions[name])} |" for name in described]
    return "\n".join(["| class | description |", "|---|---|", *rows, "", ""]) if rows else ""


def _plain(text: str) -> str:
    """Escape the characters that mean something in Markdown or HTML."""
    return re.sub(r"([\\`*_\[\]<>&|~#])", r"\\\1", text)


def _use(bundle: Bundle) -> str:
    return (
        "    pip install cifar-ray\n"
        "    cifar-ray predict ./THIS_FOLDER a.jpg\n"
        '    python -c \'import cifar_ray as cr; print(cr.load("./THIS_FOLDER").predict("a.jpg").class_name)\'\n\n'
        "The weights are `model.safetensors`; `manifest.json` has classes, size, normalization and temperature."
    )


def _figures(manifest: Manifest) -> str:
    rows = []
    for split, name in _SPLITS.items():
        if score := Score.find(manifest.metrics, split, manifest.image_counts.get(split)):
            low, high = score.interval(manifest.image_counts.get(split, 0))
            rows.append(
                f"| {score.name}, {name} pictures | {100 * score.value:.2f} % | {100 * low:.2f}–{100 * high:.2f} % | "
                f"{manifest.image_counts.get(split, 0):,} |"
            )
    if not rows:
        return "It was not measured."
    table = "\n".join(["| figure | value | 95 % interval | pictures |", "|---|---|---|---|", *rows])
    notes = []
    if (error := manifest.metrics.get("test_ece", manifest.metrics.get("val_ece"))) is not None:
        notes.append(f"Its probabilities are off by {100 * error:.1f} points on average (expected calibration error).")
    if manifest.quantization:
        int8 = manifest.quantization
        notes.append(f"As int8: {100 * int8.accuracy:.2f} % beside {100 * int8.reference_accuracy:.2f} % ({int8.measured_on}).")
    return "\n\n".join([table, *notes])


def _limits(manifest: Manifest) -> str:
    chance = f" Guessing gives {100 / len(manifest.class_names):.3g} %." if manifest.task == "single-label" else ""
    abstains = manifest.abstain_threshold is not None or any("familiarity" in name for name in manifest.attachments)
    strange = (
        "It says so (`abstain`) when a picture is unlike those that it was validated on; some strange pictures pass."
        if abstains
        else "It does not notice pictures of other things: it gives each one of its classes."
    )
    return (
        f"It knows nothing but its classes.{chance} {strange} Figures hold for pictures like those it was measured on: another camera, "
        "place or season may give others. Measure it on your own pictures: `cifar-ray evaluate MODEL --data-dir DIR --split all`."
    )


def _data(manifest: Manifest) -> str:
    counts = ", ".join(f"{count:,} {name}" for name, count in manifest.image_counts.items() if name != "cv")
    groups = manifest.train_config.get("groups") or ()
    merged = f" Classes were merged: {'; '.join(map(str, groups))}." if groups else ""
    until = f" until {moment[:16]} UTC" if (moment := manifest.train_config.get("reviews_until")) else ""
    reviews = (
        f" The training pictures include those of requests that people labelled{until}."
        if manifest.train_config.get("with_reviews")
        else ""
    )
    facts = f"({counts or 'number of pictures unknown'}); fingerprint `{manifest.dataset_fingerprint[:16]}`"
    return f"{manifest.dataset_name} {facts}.{merged}{reviews}"


def _training(manifest: Manifest) -> str:
    config, versions = manifest.train_config, manifest.library_versions
    method = config.get("method", "scratch")
    parts = [f"recipe `{config['recipe']}`"] if config.get("recipe") else []
    parts += [
        f"method {method}",
        f"{config.get('epochs', '?')} epochs",
        f"batch size {config.get('batch_size', '?')}",
        f"seed {config.get('seed', '?')}",
    ]
    if manifest.parent:
        parts.append(f"from {manifest.parent}")
    software = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"{', '.join(parts)}. Software: {software or f'cifar-ray {VERSION}'}. `manifest.json` holds every setting."


def _origin(manifest: Manifest) -> str:
    if manifest.pretrained is None:
        return "The weights were trained from random ones. Their licence is for the owner of the training pictures to decide."
    licence = manifest.pretrained.license or "unknown"
    source = f"{manifest.pretrained.source} (licence: {licence}, sha256 `{manifest.pretrained.sha256[:16]}`)"
    return f"It started from {source}. The training pictures have their own licence."
