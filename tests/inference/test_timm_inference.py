"""Networks of timm, and means over views, do all that the project's own networks do: engines, exports, explanations, embeddings."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from cifar_ray.config import EngineName
from cifar_ray.data.dataset import ImageDataset
from cifar_ray.errors import BundleError, ConfigError
from cifar_ray.inference.explain import grad_cam
from cifar_ray.inference.exporting.export import ExportFormat, export
from cifar_ray.inference.exporting.import_weights import WeightsMetadata, import_weights
from cifar_ray.inference.int8 import with_int8
from cifar_ray.inference.predictor import Predictor
from cifar_ray.models import count_flops, create_model
from cifar_ray.models.stages import head_name
from cifar_ray.models.views import Views, unview, view
from cifar_ray.store import Bundle, ModelStore, PretrainedOrigin
from cifar_ray.store.ensembling import save_ensemble

MakeBundle = Callable[..., Bundle]
Pixels = npt.NDArray[np.uint8]

SIZE = 64
NETWORKS = ["timm:test_resnet", "timm:test_efficientnet", "timm:test_convnext", "timm:test_mambaout", "timm:test_vit"]
CASES = [(name, 1) for name in NETWORKS] + [("timm:test_efficientnet", 4), ("timm:test_vit", 4), ("small_cnn", 4)]


@pytest.fixture
def timm_bundle(make_bundle: MakeBundle) -> MakeBundle:
    def make(name: str, views: int = 1, **changes: object) -> Bundle:
        arguments = {"num_classes": 3, "image_size": SIZE} | ({"views": views} if views > 1 else {})
        torch.manual_seed(2)
        network = create_model(name, **arguments)
        with torch.no_grad():
            nn.init.normal_(network.get_submodule(head_name(network)).weight)  # some begin with zeros
        return make_bundle(name, network.state_dict(), arguments=arguments, image_size_px=SIZE, **changes)

    return make


@pytest.fixture
def pictures() -> Pixels:
    """Smooth pictures, as photographs are."""
    corners = np.random.default_rng(3).integers(0, 256, (5, 2, 2, 3))
    weights = np.stack([np.linspace(1, 0, SIZE), np.linspace(0, 1, SIZE)])
    smooth: Pixels = np.einsum("nijc,iy,jx->nyxc", corners, weights, weights).astype(np.uint8)
    return smooth


def exact(bundle: Bundle) -> Predictor:
    return Predictor(bundle, precision="fp32", engine="torch")


@pytest.mark.parametrize(("name", "views"), CASES)
@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_every_engine_gives_the_logits_of_torch(
    timm_bundle: MakeBundle, pictures: Pixels, name: str, views: int, engine: EngineName
) -> None:
    if engine == "openvino":
        pytest.importorskip("openvino")
    bundle = timm_bundle(name, views)
    expected = exact(bundle).predict(pictures).logits
    found = Predictor(bundle, precision="fp32", engine=engine).predict(pictures)
    assert found.probabilities.shape == (5, 3)
    allowed = 1e-3 * np.abs(expected - expected.mean(1, keepdims=True)).max()
    assert np.abs(found.logits - expected).max() <= allowed


def test_four_views_average_the_logits_of_the_image_its_mirror_image_and_their_centres(timm_bundle: MakeBundle, pictures: Pixels) -> None:
    bundle = timm_bundle("timm:test_efficientnet", 4)
    network = exact(bundle).network
    assert isinstance(network, Views)
    images = torch.randn(2, 3, SIZE, SIZE)
    centre = nn.functional.interpolate(images[:, :, 4:60, 4:60], size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    with torch.no_grad():
        seen = [network.network(shown) for shown in (images, images.flip(3), centre, centre.flip(3))]
        torch.testing.assert_close(network(images), torch.stack(seen).mean(0), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("mirror", [True, False])
def test_what_a_view_shows_is_brought_back_to_its_place(mirror: bool) -> None:
    image = torch.zeros(1, 1, SIZE, SIZE)
    image[0, 0, 30:34, 20:24] = 1
    for number in range(12 if mirror else 6):
        back = unview(view(image, number, mirror)[:, 0], number, mirror)
        assert back.shape == (1, SIZE, SIZE)
        assert (back[0, 30:34, 20:24] > 0.4).all()
        assert back.sum() == pytest.approx(16, rel=0.05)


def test_more_views_than_there_are_is_an_error() -> None:
    with pytest.raises(ConfigError, match="views: expected 1 to 12, got 13"):
        create_model("small_cnn", 3, 16, views=13)
    with pytest.raises(ConfigError, match="views: expected 1 to 6 without mirror images, got 7"):
        create_model("small_cnn", 3, 16, views=7, mirror_views=False)


@pytest.mark.parametrize(("name", "views"), CASES)
def test_every_network_is_explained_and_left_as_it_was(timm_bundle: MakeBundle, pictures: Pixels, name: str, views: int) -> None:
    predictor = exact(timm_bundle(name, views))
    before = predictor.predict(pictures).logits
    heat = np.stack([grad_cam(predictor.network, predictor.manifest, pictures, [number] * 5) for number in range(3)])
    assert heat.shape == (3, 5, SIZE, SIZE)
    assert heat.min() >= 0
    assert heat.max() == 1
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in predictor.network.modules())
    np.testing.assert_array_equal(predictor.predict(pictures).logits, before)


class _Bright(nn.Module):
    """One block of a transformer that marks the tokens of bright patches for class 0."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.Identity()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        shown = self.norm1(tokens)
        return torch.cat((shown.mean(1, keepdim=True), tokens[:, 1:]), 1)


@pytest.mark.parametrize("views", [1, 4])
def test_the_heat_of_a_transformer_lies_on_the_patch_that_speaks_for_the_class(make_bundle: MakeBundle, views: int) -> None:
    class Tokens(nn.Module):
        """Classifies by its class token, as a vision transformer."""

        def __init__(self) -> None:
            super().__init__()
            self.pretrained_cfg, self.global_pool, self.num_prefix_tokens = {"classifier": "head"}, "token", 1
            self.patch_embed = nn.AvgPool2d(16)
            self.patch_embed.grid_size = (4, 4)
            self.cls_token = nn.Parameter(torch.zeros(1, 1, 3))
            self.blocks = nn.ModuleList([_Bright()])
            self.head = nn.Linear(3, 2, bias=False)
            nn.init.constant_(self.head.weight, 0)
            with torch.no_grad():
                self.head.weight[0] = 1

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            tokens = self.patch_embed(images.clamp_min(0)).flatten(2).transpose(1, 2)
            tokens = torch.cat((self.cls_token.expand(len(images), 1, 3), tokens), 1)
            for block in self.blocks:
                tokens = block(tokens)
            logits: torch.Tensor = self.head(tokens[:, 0])
            return logits

    image = np.full((1, SIZE, SIZE, 3), 0, np.uint8)
    image[0, 16:32, 48:64] = 255
    network = Tokens() if views == 1 else Views(Tokens(), views)
    heat = grad_cam(network, make_bundle(channel_mean=(0.5, 0.5, 0.5)).manifest, image, [0])[0]
    y, x = np.unravel_index(heat.argmax(), heat.shape)
    assert 16 <= y < 32
    assert 44 <= x < 64
    assert heat[:, :32].max() < 0.05


def test_a_transformer_whose_tokens_form_no_grid_is_one_line(make_bundle: MakeBundle) -> None:
    network = create_model("timm:cait_xxs24_224", 3, SIZE).eval()
    with pytest.raises(ConfigError, match=r"explain: the tokens of this network form no grid, .*; choose another model"):
        grad_cam(network, make_bundle().manifest, np.zeros((1, SIZE, SIZE, 3), np.uint8), [0])


@pytest.mark.parametrize(("name", "views"), CASES)
def test_embeddings_are_the_mean_input_of_the_head_over_the_views(timm_bundle: MakeBundle, pictures: Pixels, name: str, views: int) -> None:
    predictor = exact(timm_bundle(name, views))
    found = predictor.embed(pictures)
    head = predictor.network.get_submodule(head_name(predictor.network))
    assert found.shape == (5, head.in_features)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    if views > 1:
        inner, seen = predictor.network.network, []
        hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        manifest = predictor.manifest
        pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255
        images = (pixels - torch.tensor(manifest.channel_mean).view(3, 1, 1)) / torch.tensor(manifest.channel_std).view(3, 1, 1)
        with torch.no_grad():
            for number in range(views):
                inner(view(images, number))
        hook.remove()
        mean = nn.functional.normalize(torch.stack(seen).mean(0))
        np.testing.assert_allclose(found, mean.numpy(), atol=1e-3)


@pytest.mark.usefixtures("without_resizing")
@pytest.mark.parametrize(
    ("name", "views", "file_format"),
    [
        ("timm:test_efficientnet", 4, "torchscript"),
        ("timm:test_efficientnet", 2, "onnx"),
        pytest.param("small_cnn", 4, "onnx", marks=pytest.mark.slow),
        ("small_cnn", 4, "pt2"),
        ("timm:test_vit", 1, "pt2"),
        pytest.param("timm:test_vit", 1, "onnx", marks=pytest.mark.slow),
        ("timm:test_convnext", 1, "torchscript"),
    ],
)
def test_every_format_is_written_and_gives_the_same_logits(
    timm_bundle: MakeBundle, tmp_path: Path, name: str, views: int, file_format: ExportFormat
) -> None:
    if file_format == "onnx":
        pytest.importorskip("onnxruntime")
    assert export(timm_bundle(name, views), file_format, str(tmp_path / "model")).deviation < 1e-3


@pytest.mark.parametrize(("name", "views"), [("timm:test_vit", 1), ("timm:test_efficientnet", 4)])
def test_an_export_is_imported_as_the_same_model_and_renamed_classes_change_nothing_else(
    timm_bundle: MakeBundle, pictures: Pixels, tmp_path: Path, name: str, views: int
) -> None:
    origin = PretrainedOrigin(source="somewhere", license="MIT")
    bundle = timm_bundle(name, views, pretrained=origin)
    file, store = tmp_path / "model.safetensors", ModelStore(str(tmp_path))
    export(bundle, "safetensors", str(file))
    again = import_weights(store, file, "copy", WeightsMetadata())
    assert again.manifest.pretrained == origin
    renamed = import_weights(store, file, "renamed", WeightsMetadata(class_names=("a", "b", "c")))
    assert renamed.manifest.class_names == ("a", "b", "c")
    assert (renamed.manifest.architecture, renamed.manifest.channel_mean) == (bundle.manifest.architecture, bundle.manifest.channel_mean)
    for found in (again, renamed):
        np.testing.assert_array_equal(exact(found).predict(pictures).logits, exact(bundle).predict(pictures).logits)


@pytest.mark.skipif(importlib.util.find_spec("nncf") is None or importlib.util.find_spec("openvino") is None, reason="needs quantize")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(("name", "views"), [("timm:test_efficientnet", 4), pytest.param("timm:test_vit", 1, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_an_int8_form_is_made_and_run(timm_bundle: MakeBundle, pictures: Pixels, name: str, views: int) -> None:
    bundle = timm_bundle(name, views)
    labels = exact(bundle).predict(pictures).logits.argmax(1).astype(np.int64)
    made = with_int8(bundle, pictures, {"test": ImageDataset(pictures, labels, bundle.manifest.class_names)}, tolerance=1)
    predictor = Predictor(made, engine="openvino-int8")
    assert predictor.engine == "openvino-int8"
    assert predictor.predict(pictures).logits.shape == (5, 3)


def test_an_ensemble_of_a_network_of_timm_and_one_of_ours_with_views(timm_bundle: MakeBundle, pictures: Pixels, tmp_path: Path) -> None:
    store = ModelStore(str(tmp_path))
    for name, bundle in {"vit": timm_bundle("timm:test_vit"), "cnn": timm_bundle("small_cnn", 4)}.items():
        store.save(name, bundle.manifest, bundle.weights)
    save_ensemble(store, "both", ["vit", "cnn"])
    save_ensemble(store, "nested", ["both", "vit"])
    members = [exact(store.load(name)).predict(pictures).probabilities for name in ("vit", "cnn")]
    predictor = exact(store.load("both"))
    np.testing.assert_allclose(predictor.predict(pictures).probabilities, np.mean(members, axis=0), atol=1e-4)
    widths = [exact(store.load(name)).embed(pictures).shape[1] for name in ("vit", "cnn", "nested")]
    assert widths[2] == 2 * widths[0] + widths[1]
    for name in ("both", "nested"):
        predictor = exact(store.load(name))
        heat = np.stack([grad_cam(predictor.network, predictor.manifest, pictures, [number] * 5) for number in range(3)])
        assert heat.max() == 1


def test_views_cost_their_number_of_passes() -> None:
    one, four = (count_flops(create_model("timm:test_efficientnet", 3, SIZE, views=views).eval(), SIZE) for views in (1, 4))
    assert four == 4 * one


def test_a_stored_model_needs_neither_network_nor_cache_nor_the_package_of_its_weights(
    timm_bundle: MakeBundle, pictures: Pixels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ModelStore(str(tmp_path))
    bundle = timm_bundle("timm:tf_efficientnet_lite0", 2)
    store.save("pets", bundle.manifest, bundle.weights)
    expected = exact(bundle).predict(pictures).logits
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    monkeypatch.setattr("cifar_ray.training.weights.hub.download", lambda *_: pytest.fail("asked the hub"))

    def refuse(*_: object, **__: object) -> None:
        pytest.fail("asked the network or the package")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(importlib.metadata, "files", refuse)
    np.testing.assert_array_equal(exact(store.load("pets")).predict(pictures).logits, expected)


def test_a_bundle_of_a_network_that_this_timm_does_not_have_is_one_line(timm_bundle: MakeBundle) -> None:
    bundle = timm_bundle("timm:test_resnet")
    manifest = bundle.manifest.model_copy(
        update={"architecture": bundle.manifest.architecture.model_copy(update={"name": "timm:test_resnett"})}
    )
    with pytest.raises(
        BundleError, match=r"cannot create its network: model: timm has no network 'test_resnett'; did you mean timm:test_re"
    ):
        Predictor(Bundle(manifest, bundle.weights, "pets", 1))
