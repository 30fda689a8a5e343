"""MLflow's model registry: push models from the store to it, and load models from it with the reference `models:/NAME/VERSION`."""

from __future__ import annotations

import logging
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifar_ray.config import NAME_PATTERN
from cifar_ray.config.version import VERSION
from cifar_ray.errors import ConfigError, MissingDependencyError, StoreError, UnknownModelError
from cifar_ray.storage import FileTree
from cifar_ray.store.bundle import MANIFEST_FILE, Bundle, decode, decode_manifest
from cifar_ray.store.publishing import write_folder
from cifar_ray.store.registry import ModelStore

if TYPE_CHECKING:
    from mlflow import MlflowClient

SCHEME = "models:/"
ADDRESS_VARIABLE = "MLFLOW_TRACKING_URI"

_FLAVOUR = "cifar_ray.inference.mlflow_flavour"
_DATA = "bundle"
_REFERENCE = re.compile(r"models:/(?P<name>[^/@]+)(/(?P<version>[1-9][0-9]{0,8}|latest)|@(?P<alias>[^/@]+))")


def is_registered(reference: str) -> bool:
    """Whether a reference names a model in MLflow's registry."""
    return reference.startswith(SCHEME)


def push_to_mlflow(bundle: Bundle, name: str) -> str:
    """Add a model to MLflow's registry, as a `pyfunc` that gives the same answers as a server.

    Args:
        bundle: the model.
        name: name in the registry; the model becomes its next version.

    Returns:
        `models:/NAME/VERSION`.

    Raises:
        ConfigError: if `$MLFLOW_TRACKING_URI` is not set.
        MissingDependencyError: if mlflow is not installed.
        StoreError: if MLflow refuses.
    """
    with _client() as client, tempfile.TemporaryDirectory() as folder:
        import mlflow.pyfunc
        from mlflow.models import ModelSignature
        from mlflow.types import ColSpec, Schema

        write_folder(bundle, f"{folder}/{_DATA}")
        mlflow.pyfunc.save_model(
            f"{folder}/model",
            loader_module=_FLAVOUR,
            data_path=f"{folder}/{_DATA}",
            signature=ModelSignature(inputs=Schema([ColSpec("binary", "image")])),
            pip_requirements=[f"cifar-ray=={VERSION}"],
        )
        experiment = client.get_experiment_by_name(name)
        identity = experiment.experiment_id if experiment else client.create_experiment(name)
        run = client.create_run(identity, run_name=bundle.reference, tags={"model": bundle.reference})
        client.log_artifacts(run.info.run_id, f"{folder}/model", "model")
        for key, value in bundle.manifest.metrics.items():
            client.log_metric(run.info.run_id, key, value)
        client.set_terminated(run.info.run_id)
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        tags = {"model": bundle.reference, "weights_sha256": bundle.manifest.weights_sha256}
        version = client.create_model_version(name, f"{run.info.artifact_uri}/model", run.info.run_id, tags=tags)
        return f"{SCHEME}{name}/{version.version}"


def pull_from_mlflow(reference: str) -> Bundle:
    """Read a model of MLflow's registry; only weights and manifest are read, no code of the model is run.

    Args:
        reference: `models:/NAME/VERSION`, `models:/NAME/latest` or `models:/NAME@ALIAS`.

    Raises:
        UnknownModelError: if there is no such model, or if it is not a model of cifar_ray.
        BundleError: if the model is damaged.
        ConfigError: if `$MLFLOW_TRACKING_URI` is not set.
        MissingDependencyError: if mlflow is not installed.
        StoreError: if MLflow cannot be reached.
    """
    found = _REFERENCE.fullmatch(reference)
    if found is None:
        raise UnknownModelError(f"{reference}: expected models:/NAME/VERSION, models:/NAME/latest or models:/NAME@ALIAS")
    with _client() as client, tempfile.TemporaryDirectory() as folder:
        import mlflow.artifacts

        name, version = found["name"], _version(client, found)
        source = client.get_model_version_download_uri(name, version)
        local = Path(mlflow.artifacts.download_artifacts(artifact_uri=source, dst_path=folder, tracking_uri=os.environ[ADDRESS_VARIABLE]))
        where = f"{SCHEME}{name}/{version}"
        files = FileTree(str(local / "data" / _DATA), "")
        data = files.read(MANIFEST_FILE)
        if data is None:
            raise UnknownModelError(f"{where} is not a model of cifar_ray; `cifar-ray store push MODEL mlflow:NAME` adds one")
        return replace(decode(decode_manifest(data, where), files.read, where, name, int(version)), name=name)


def stored_reference(reference: str, storage: str) -> str:
    """Reference in the store of a model to serve; a model of MLflow's registry is first copied to the store, unless it is already there.

    Raises:
        CifarRayError: as `pull_from_mlflow`; or if the store does not allow the name or cannot be written.
    """
    if not is_registered(reference):
        return reference
    bundle, store = pull_from_mlflow(reference), ModelStore(storage)
    if not re.fullmatch(NAME_PATTERN, bundle.name):
        raise ConfigError(f"{reference}: a model to serve needs a name of letters, digits, '.', '_' and '-'")
    for version in reversed(store.versions(bundle.name) if bundle.name in store.names() else []):
        if store.manifest(f"{bundle.name}@{version}").weights_sha256 == bundle.manifest.weights_sha256:
            return f"{bundle.name}@{version}"
    return store.save(bundle.name, bundle.manifest, bundle.weights, bundle.attachments).reference


def _version(client: MlflowClient, found: re.Match[str]) -> str:
    if found["alias"]:
        return str(client.get_model_version_by_alias(found["name"], found["alias"]).version)
    if found["version"] != "latest":
        return found["version"]
    versions = client.search_model_versions(f"name = '{found['name']}'")
    if not versions:
        raise UnknownModelError(f"{found[0]}: no such model in {os.environ[ADDRESS_VARIABLE]}")
    return str(max(int(one.version) for one in versions))


@contextmanager
def _client() -> Iterator[Any]:
    """Open an MLflow client; turn MLflow's errors into errors of this project."""
    address = os.environ.get(ADDRESS_VARIABLE, "")
    if not address:
        raise ConfigError(f"set {ADDRESS_VARIABLE} to the address of your MLflow server, for example http://localhost:5000")
    try:
        import mlflow
        from mlflow.exceptions import MlflowException
    except ImportError:
        raise MissingDependencyError("mlflow is not installed: pip install 'cifar-ray[tracking]'") from None
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    try:
        yield mlflow.MlflowClient(address)
    except (MlflowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        if getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST":
            raise UnknownModelError(f"MLflow at {_shown(address)}: {reason}") from None
        raise StoreError(f"MLflow at {_shown(address)}: {reason}") from None


def _shown(address: str) -> str:
    """An address without user and password, for messages."""
    return re.sub(r"//[^/@]*@", "//", address)
