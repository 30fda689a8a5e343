"""Nothing outside the store is read, listed, written or deleted, whatever a link, a name or a manifest says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from cifar_ray.errors import BundleError, CifarRayError, StoreError, UnknownModelError
from cifar_ray.storage import FileTree
from cifar_ray.store import Manifest, ModelStore


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A sound bundle beside the storage, which no reference may reach."""
    return tmp_path / "outside"


@pytest.fixture
def store(tmp_path: Path, outside: Path, manifest: Manifest, weights: dict[str, torch.Tensor]) -> ModelStore:
    """`pets@1` inside, and a copy of it in `outside`."""
    store = ModelStore(str(tmp_path / "storage"))
    store.save("pets", manifest, weights)
    shutil.copytree(Path(store.location) / "pets", outside / "pets")
    return store


@pytest.mark.parametrize(
    "reference",
    [
        "../outside/pets",
        "../../outside/pets@1",
        "pets@../../../outside/pets/1",
        "pets@1/../1",
        "/etc/passwd",
        "pets@/etc",
        "..",
        ".",
        "",
        "pets@..",
        "pets\n",
        "pets@1\n",
        "pets\x00",
        "~",
        "pets@-1",
        "pets@0",
        "pets@01",
        "file:///etc",
        "%2e%2e/outside",
    ],
)
def test_no_reference_leads_out_of_the_store(store: ModelStore, reference: str) -> None:
    for use in (store.load, store.manifest, store.check, store.resolve, store.delete):
        with pytest.raises(StoreError):
            use(reference)
    assert store.versions("pets") == [1]


def test_a_linked_model_or_version_outside_the_store_is_not_there(store: ModelStore, outside: Path) -> None:
    models = Path(store.location)
    (models / "linked").symlink_to(outside / "pets")
    (models / "pets" / "2").symlink_to(outside / "pets" / "1")
    assert store.names() == ["pets"]
    assert store.versions("pets") == [1]
    for reference in ("linked", "linked@1", "pets@2"):
        with pytest.raises(UnknownModelError):
            store.load(reference)
        with pytest.raises(UnknownModelError):
            store.delete(reference, force=True)
    assert (outside / "pets" / "1" / "manifest.json").exists()
    with pytest.raises(StoreError, match="is outside"):
        FileTree(store.storage, "models").clear_folder("pets/2", first="manifest.json")
    assert (outside / "pets" / "1" / "model.safetensors").exists()


@pytest.mark.parametrize("file", ["model.safetensors", "manifest.json"])
def test_a_linked_file_outside_the_store_is_not_read(store: ModelStore, outside: Path, file: str) -> None:
    target = outside / "file"
    inside = Path(store.location) / "pets" / "1" / file
    inside.rename(target)
    inside.symlink_to(target)
    with pytest.raises(CifarRayError):
        store.load("pets")


def test_linked_aliases_outside_the_store_are_none(store: ModelStore, outside: Path) -> None:
    (outside / "aliases.json").write_text('{"production": 1}')
    (Path(store.location) / "pets" / "aliases.json").symlink_to(outside / "aliases.json")
    assert store.aliases("pets") == {}


def test_links_within_the_store_and_a_linked_storage_are_followed(store: ModelStore, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").symlink_to(store.storage)
    (Path(store.location) / "pets" / "2").symlink_to("1")
    assert ModelStore(str(tmp_path / "elsewhere")).versions("pets") == [1, 2]
    assert ModelStore(str(tmp_path / "elsewhere")).load("pets@2").version == 2


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "..", ".", "a/b", "", "a\\b", "a\0b"])
def test_a_manifest_names_no_file_outside_its_bundle(store: ModelStore, name: str) -> None:
    path = Path(store.location) / "pets" / "1" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"attachments": {name: "0" * 64}}))
    with pytest.raises(BundleError, match="attachments"):
        store.load("pets")
    bundle_manifest = manifest | {"attachments": {}}
    path.write_text(json.dumps(bundle_manifest))
    bundle = store.load("pets")
    with pytest.raises(CifarRayError):
        store.save("pets", bundle.manifest, bundle.weights, {name: b"x"})
    assert store.versions("pets") == [1]


@pytest.mark.parametrize("path", ["../outside/file", "pets/../../outside/file", "linked/file"])
def test_a_tree_of_files_stays_in_its_root(tmp_path: Path, outside: Path, path: str) -> None:
    outside.mkdir()
    (outside / "file").write_bytes(b"secret")
    tree = FileTree(str(tmp_path), "root")
    tree.replace("pets/file", b"ours")
    (tmp_path / "root" / "linked").symlink_to(outside)
    folder = path.rpartition("/")[0]
    for use in (lambda: tree.replace(path, b"x"), lambda: tree.add_numbered(folder, {"a": b""}), lambda: tree.clear_folder(folder, "file")):
        with pytest.raises(StoreError, match="is outside"):
            use()
    assert tree.read(path) is None
    assert tree.have_files([path, "pets/file"]) == [False, True]
    assert tree.folders() == ["pets"]
    assert (outside / "file").read_bytes() == b"secret"


def test_a_link_in_the_place_of_a_file_is_replaced_and_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"kept")
    tree = FileTree(str(tmp_path), "root")
    tree.replace("a", b"")
    (tmp_path / "root" / "rows.csv").symlink_to(tmp_path / "precious")
    tree.replace("rows.csv", b"new")
    assert ((tmp_path / "precious").read_bytes(), tree.read("rows.csv")) == (b"kept", b"new")
