"""Find a model by its name in the store, by the folder of its bundle, or by its run."""

from __future__ import annotations

from cifar_ray.config import resolve_storage
from cifar_ray.errors import BundleError, UnknownModelError
from cifar_ray.storage import NUMBER, FileTree, split_location
from cifar_ray.store.bundle import MANIFEST_FILE, WEIGHTS_FILE, Bundle, decode, decode_manifest
from cifar_ray.store.mlflow_models import is_registered, pull_from_mlflow
from cifar_ray.store.registry import ModelStore

_RUN_FILE = "config.yaml"


def load_model(reference: str, storage: str) -> Bundle:
    """Read the bundle of a reference; all verbs load models with this function.

    Args:
        reference: `name`, `name@3` or `name@production` in the store; the name of a run; or a path or URI of a bundle's folder
            (`…/models/cifar10/3`, or a copy of it anywhere) or of a run's folder (`…/runs/NAME`); or `models:/NAME/3` in MLflow's
            registry. If a model and a run have the same name, the model is loaded.
        storage: path or URI of the storage with the store and the runs.

    Raises:
        UnknownModelError: if no model or run has this name, or the run has no model.
        BundleError: if the bundle is damaged.
        StoreError: if the storage cannot be read.
    """
    if is_registered(reference):
        return pull_from_mlflow(reference)
    if "/" in reference or reference in (".", ".."):
        return _from_folder(resolve_storage(reference))
    store = ModelStore(storage)
    try:
        return store.load(reference)
    except UnknownModelError:
        runs = FileTree(store.storage, "runs")
        if runs.have_files([f"{reference}/{_RUN_FILE}"]) == [True]:
            return _of_run(store, reference)
        raise


def _from_folder(location: str) -> Bundle:
    folder = FileTree(location, "")
    is_bundle, is_run = folder.have_files([MANIFEST_FILE, _RUN_FILE])
    if is_bundle:
        return _read(folder, location)
    runs, run = split_location(location)
    storage, own = split_location(runs)
    if is_run and own == "runs":
        return _of_run(ModelStore(storage), run)
    raise UnknownModelError(f"{location} is not a model ({MANIFEST_FILE} and {WEIGHTS_FILE}) and not a run (…/runs/NAME)")


def _read(folder: FileTree, location: str) -> Bundle:
    parent, own = split_location(location)
    name, version = (split_location(parent)[1], int(own)) if NUMBER.fullmatch(own) else (own, 1)
    where = f"bundle {location}"
    data = folder.read(MANIFEST_FILE)
    if data is None:
        raise BundleError(f"{where} was deleted during reading")
    manifest = decode_manifest(data, where)
    return decode(manifest, folder.read, where, name, version)


def _of_run(store: ModelStore, run: str) -> Bundle:
    """The newest bundle that this run made, according to its manifest."""
    for name in store.names():
        for version in reversed(store.versions(name)):
            reference = f"{name}@{version}"
            try:
                made_by = store.manifest(reference).train_config.get("name")
            except BundleError:  # a damaged bundle, possibly of another run, must not hide an intact one
                continue
            if made_by == run:
                return store.load(reference)
    raise UnknownModelError(
        f"run {run} has no model in {store.location}: it is unfinished, or its model was deleted. "
        f"Resume it with: cifar-ray train --resume {run}"
    )
