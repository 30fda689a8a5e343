"""Features come from the forward pass that gives the logits, the same from every engine, and decide whether the model abstains."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from cifar_ray.config import EngineName, PrecisionName
from cifar_ray.data.batches.transforms import normalize
from cifar_ray.errors import BundleError
from cifar_ray.inference.engines.features import with_features
from cifar_ray.inference.predictor import Predictor
from cifar_ray.metrics.familiarity import Familiarity, unit
from cifar_ray.metrics.trust import Trust
from cifar_ray.models.stages import head_name
from cifar_ray.store import Bundle, ModelStore
from cifar_ray.store.ensembling import save_ensemble
from cifar_ray.store.trust_file import FAMILIARITY_FILE, read_trust, with_trust

MakeBundle = Callable[..., Bundle]
Pixels = npt.NDArray[np.uint8]
VIEWS = {"num_classes": 3, "image_size": 16, "views": 4}


def noise(count: int = 200, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)


def smooth(count: int = 50) -> Pixels:
    """Gradients between four colours."""
    corners = np.random.default_rng(3).integers(0, 256, (count, 2, 2, 3))
    ramp = np.linspace(0, 1, 16)
    weights = np.stack([1 - ramp, ramp])
    return np.einsum("nijc,iy,jx->nyxc", corners, weights, weights).astype(np.uint8)


def head_inputs(predictor: Predictor, images: Pixels) -> list[torch.Tensor]:
    seen: list[torch.Tensor] = []
    head = predictor.network.get_submodule(head_name(predictor.network))
    hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        predictor.network(normalize(torch.from_numpy(images), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), torch.float32))
    hook.remove()
    return seen


@pytest.mark.parametrize(
    ("engine", "precision", "tolerance"), [("torch", "fp32", 1e-4), ("openvino", "fp32", 1e-3), ("openvino", "bf16", 0.05)]
)
@pytest.mark.parametrize("arguments", [None, VIEWS], ids=["one view", "four views"])
def test_every_engine_gives_the_mean_input_of_the_head(
    make_bundle: MakeBundle,
    images: Pixels,
    engine: EngineName,
    precision: PrecisionName,
    tolerance: float,
    arguments: dict[str, int] | None,
) -> None:
    pytest.importorskip("openvino") if engine == "openvino" else None
    bundle = make_bundle(**({"arguments": arguments} if arguments else {}))
    expected = torch.stack(head_inputs(Predictor(bundle, precision="fp32", engine="torch"), images)).mean(0).numpy()
    found = Predictor(bundle, precision=precision, engine=engine).predict(images).features
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max())


def test_threads_do_not_mix_features(make_bundle: MakeBundle, images: Pixels) -> None:
    predictor = Predictor(make_bundle(), precision="fp32", engine="torch")
    alone = [predictor.predict(images[[i]]).features for i in range(5)]
    with ThreadPoolExecutor(5) as pool:
        together = list(pool.map(lambda i: predictor.predict(images[[i % 5]]).features, range(100)))
    for i, features in enumerate(together):
        np.testing.assert_allclose(features, alone[i % 5], atol=1e-6)


def test_the_features_of_an_ensemble_are_those_of_its_members(make_bundle: MakeBundle, images: Pixels, tmp_path: Path) -> None:
    store = ModelStore(str(tmp_path))
    for name, architecture in {"a": "small_cnn", "b": "resnet18"}.items():
        bundle = make_bundle(architecture)
        store.save(name, bundle.manifest, bundle.weights)
    save_ensemble(store, "both", ["a", "b"])
    found, *parts = (Predictor(store.load(name), precision="fp32", engine="torch").predict(images).features for name in ("both", "a", "b"))
    np.testing.assert_allclose(found, np.concatenate([unit(part) for part in parts], axis=1), atol=1e-4)


class _NoHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.only = nn.Conv2d(3, 5, 16)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.only(images).flatten(1)


def test_a_network_without_a_linear_head_gives_logits_alone() -> None:
    network = _NoHead()
    assert with_features(network) is network


def fitted(make_bundle: MakeBundle) -> Bundle:
    """A bundle that knows noise; by the energy it would never abstain."""
    bundle = make_bundle()
    answer = Predictor(bundle, precision="fp32", engine="torch").predict(noise())
    trust = Trust.fit(answer.logits, answer.logits.argmax(1), answer.features)
    assert trust.familiarity is not None
    trust = dataclasses.replace(trust, abstain_threshold=-np.inf)
    return with_trust(bundle, trust)


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_a_saved_model_abstains_from_strange_features_with_every_engine(
    make_bundle: MakeBundle, tmp_path: Path, engine: EngineName
) -> None:
    pytest.importorskip("openvino") if engine == "openvino" else None
    bundle = fitted(make_bundle)
    store = ModelStore(str(tmp_path))
    store.save("pets", bundle.manifest, bundle.weights, bundle.attachments)
    predictor = Predictor(store.load("pets"), engine=engine)
    assert predictor.predict(smooth()).abstains.mean() > 0.9
    assert predictor.predict(noise(seed=1)).abstains.mean() < 0.2


def test_a_bundle_without_the_attachment_abstains_by_the_energy(make_bundle: MakeBundle) -> None:
    bundle = fitted(make_bundle)
    older = dataclasses.replace(bundle, attachments={})
    assert not Predictor(older).predict(smooth()).abstains.any()
    assert with_trust(bundle, Trust()).attachments == {}


def test_what_is_stored_decides_as_what_was_fitted(make_bundle: MakeBundle) -> None:
    bundle = fitted(make_bundle)
    familiarity = read_trust(bundle).familiarity
    assert isinstance(familiarity, Familiarity)
    answer = Predictor(bundle, precision="fp32", engine="torch").predict(np.concatenate([noise(seed=1), smooth()]))
    np.testing.assert_array_equal(answer.abstains, familiarity.abstains(answer.logits, answer.features))


@pytest.mark.parametrize("damage", ["garbage", "another network"])
def test_an_attachment_that_does_not_fit_is_one_line(make_bundle: MakeBundle, damage: str) -> None:
    bundle = fitted(make_bundle)
    attachments = {FAMILIARITY_FILE: b"garbage"}
    if damage != "garbage":
        rng = np.random.default_rng(0)
        wide = Trust(familiarity=Familiarity.fit(rng.normal(size=(20, 3)), rng.normal(size=(20, 7))))
        attachments = dict(with_trust(bundle, wide).attachments)
    with pytest.raises(BundleError, match=f"pets@7: {FAMILIARITY_FILE} .*calibrate the model again") as refusal:
        Predictor(dataclasses.replace(bundle, attachments=attachments))
    assert "\n" not in str(refusal.value)
