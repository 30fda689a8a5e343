"""What is kept comes back bit for bit, or is refused by name."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cifar_ray.errors import BundleError
from cifar_ray.store import LabelRules, Manifest, ModelStore
from cifar_ray.store.bundle import encode

Weights = dict[str, torch.Tensor]


@pytest.fixture
def folder(store: ModelStore, manifest: Manifest, weights: Weights, tmp_path: Path) -> Path:
    """The only version of a model named `pets`."""
    store.save("pets", manifest, weights)
    return tmp_path / "models" / "pets" / "1"


@pytest.mark.parametrize("policy", ["pad", "crop", "squash"])
def test_the_resize_policy_comes_back(store: ModelStore, make_manifest: Callable[..., Manifest], weights: Weights, policy: str) -> None:
    store.save("pets", make_manifest(resize_policy=policy), weights)
    assert store.load("pets").manifest.resize_policy == policy


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
def test_every_dtype_comes_back_bit_for_bit(store: ModelStore, manifest: Manifest, dtype: torch.dtype) -> None:
    tensor = torch.randint(0, 256, (2, 3, 8), dtype=torch.uint8)
    tensor = tensor.bool() if dtype == torch.bool else tensor.view(dtype)
    store.save("pets", manifest, {"w": tensor})
    loaded = store.load("pets").weights["w"]
    assert (loaded.dtype, loaded.shape, bits(loaded)) == (dtype, tensor.shape, bits(tensor))


def test_strided_shared_scalar_and_empty_tensors_come_back_equal_and_apart(store: ModelStore, manifest: Manifest) -> None:
    base = torch.randn(4, 3, 5, 5)
    weights = {
        "tied": base,
        "tied_again": base,
        "view": base[1:, :, ::2],
        "channels_last": base.to(memory_format=torch.channels_last),
        "transposed": base[0, 0].t(),
        "parameter": torch.nn.Parameter(base[0]),
        "scalar": torch.tensor(3),
        "empty": torch.empty(0, 2),
    }
    kept = store.save("pets", manifest, weights)
    for loaded in (kept.weights, store.load("pets").weights):
        assert loaded.keys() == weights.keys()
        assert all(torch.equal(loaded[name], tensor) and not loaded[name].requires_grad for name, tensor in weights.items())
        loaded["tied"].zero_()
        assert torch.equal(loaded["tied_again"], base)


def test_what_save_returns_is_what_load_reads(store: ModelStore, manifest: Manifest, weights: Weights) -> None:
    kept, loaded = store.save("pets", manifest, weights), store.load("pets")
    assert kept.manifest == loaded.manifest
    assert kept.reference == loaded.reference == "pets@1"
    assert len(kept.manifest.weights_sha256) == 64
    assert kept.manifest.class_names == manifest.class_names


def refused(store: ModelStore, *words: str) -> None:
    """Both ways in name the bundle and say what is wrong, in one line."""
    with pytest.raises(BundleError) as error:
        store.load("pets")
    message = str(error.value)
    assert all(word in message for word in ("pets@1", *words)), message
    assert "\n" not in message
    with pytest.raises(BundleError):
        store.check("pets")


@pytest.mark.parametrize("position", [0, 8, 100, -1])
def test_a_flipped_bit_in_the_weights_is_refused(store: ModelStore, folder: Path, position: int) -> None:
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[position] ^= 1
    file.write_bytes(data)
    refused(store, "model.safetensors", "sha256")


@pytest.mark.parametrize("size", [0, 4, 150])
def test_truncated_weights_are_refused(store: ModelStore, folder: Path, size: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    refused(store, "model.safetensors", f"{size} bytes")


def test_missing_weights_are_refused_even_by_the_manifest(store: ModelStore, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    refused(store, "model.safetensors is missing")
    with pytest.raises(BundleError, match="is missing"):
        store.manifest("pets")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda values: values | {"format_version": 2, "new_key": 1}, ["format_version", "upgrade"]),
        (lambda values: values | {"surprise": 1}, ["surprise", "unknown key"]),
        (lambda values: values | {"temperature": 0}, ["temperature"]),
        (lambda values: values | {"weights_sha256": ""}, ["weights_sha256"]),
        (lambda values: values | {"weights_sha256": "0" * 64}, ["model.safetensors", "sha256"]),
        (lambda values: {key: value for key, value in values.items() if key != "class_names"}, ["class_names"]),
        (lambda values: [values], ["manifest.json"]),
    ],
)
def test_a_manifest_that_says_something_else_is_refused(
    store: ModelStore, folder: Path, change: Callable[[dict[str, object]], object], words: list[str]
) -> None:
    file = folder / "manifest.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    refused(store, *words)


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\xfe", b"null"])
def test_a_manifest_that_is_not_json_is_refused(store: ModelStore, folder: Path, damage: bytes) -> None:
    (folder / "manifest.json").write_bytes(damage)
    refused(store, "manifest.json")


class Bomb:
    """Unpickling one of these is seen."""

    went_off = False

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return (self.go_off, ())

    @classmethod
    def go_off(cls) -> None:
        cls.went_off = True


@pytest.mark.parametrize("as_torch", [True, False])
def test_a_pickle_named_safetensors_is_refused_and_not_run(store: ModelStore, folder: Path, as_torch: bool) -> None:
    file = folder / "model.safetensors"
    if as_torch:
        torch.save({"w": Bomb()}, file)
    else:
        file.write_bytes(pickle.dumps(Bomb()))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["weights_sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"pets@1.*not a safetensors file"):
        store.load("pets")
    assert not Bomb.went_off


def test_a_manifest_says_its_task_and_has_one_rule_for_each_class(make_manifest: Callable[..., Manifest]) -> None:
    names = make_manifest().class_names
    rules = LabelRules.plain(len(names))
    made = make_manifest(task="multi-label", label_rules=rules)
    assert Manifest.model_validate_json(made.model_dump_json()).label_rules == rules
    older = make_manifest().model_dump(mode="json", exclude={"task", "label_rules"})
    assert Manifest.model_validate(older).task == "single-label"
    for changes in ({"label_rules": rules}, {"task": "multi-label", "label_rules": LabelRules.plain(len(names) + 1)}):
        with pytest.raises(ValueError, match=r"label_rules need the task multi-label and one rule for each"):
            make_manifest(**changes)
    with pytest.raises(ValueError, match="one finite threshold"):
        LabelRules((0.5, 0.5), (1.0,), (0.0, 0.0))


def test_a_manifest_of_one_label_stays_readable_for_older_releases_and_one_of_several_does_not(
    make_manifest: Callable[..., Manifest], weights: Weights
) -> None:
    one, several = (json.loads(encode(made, weights, {})["manifest.json"]) for made in (make_manifest(), make_manifest(task="multi-label")))
    assert {"task", "label_rules"}.isdisjoint(one)
    assert several["task"] == "multi-label", "an older release would take its sigmoids for a softmax"
