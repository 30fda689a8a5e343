import pytest
import torch
from torch import nn

from cifar_ray.errors import ConfigError
from cifar_ray.models import count_parameters, create_model, list_models
from cifar_ray.models.airnet import AirNet
from cifar_ray.models.precision import Precision

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", list_models())
@pytest.mark.parametrize("image_size", [16, 32, 65])
def test_every_architecture_maps_images_to_logits(name: str, image_size: int, narrow: dict) -> None:
    model = create_model(name, num_classes=7, image_size=image_size, **narrow.get(name, {})).eval()
    assert model(torch.randn(2, 3, image_size, image_size)).shape == (2, 7)


@pytest.mark.parametrize("name", list_models())
def test_weights_follow_from_torchs_seed(name: str, narrow: dict) -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(5)
        states.append(create_model(name, 3, 32, **narrow.get(name, {})).state_dict())
    assert all(torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values(), strict=True))


def test_an_unknown_name_is_refused_with_the_list() -> None:
    with pytest.raises(ConfigError, match=r"'resnet19'\. Available: airnet, .*, resnet18, .*, small_cnn"):
        create_model("resnet19", 10, 32)


@pytest.mark.parametrize("name", ["airnet", "airnet96", "cnn3", "cnn6", "resnet9", "small_cnn", "vgg3", "wide_resnet28_10"])
def test_an_image_too_small_for_the_network_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"image_size: .* at least (8|9) px"):
        create_model(name, 10, 7)


def test_one_class_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 2"):
        create_model("airnet", 1, 32)


def test_airnet_is_as_large_as_published() -> None:
    """Six 3×3 convolutions of 64, 64, 256, 256, 256, 256 filters on 24 whitened channels, biases and head."""
    model = create_model("airnet", 10, 32)
    filters = 9 * (24 * 64 + 64 * 64 + 64 * 256 + 3 * 256 * 256)
    assert count_parameters(model) == filters + 24 + 2 * 64 + 4 * 256 + 10 * 256
    assert [tuple(group.conv2.weight.shape) for group in model.groups] == [(64, 64, 3, 3), (256, 256, 3, 3), (256, 256, 3, 3)]


@pytest.mark.parametrize(
    ("name", "published"), [("resnet9", 6.6e6), ("resnet18", 11.2e6), ("wide_resnet28_10", 36.5e6), ("resnet50", 25.6e6 - 990 * 2049)]
)
def test_networks_are_as_large_as_published(name: str, published: float) -> None:
    with torch.device("meta"):
        assert count_parameters(create_model(name, 10, 32)) == pytest.approx(published, rel=0.005)


def test_residual_groups_of_airnet_add_what_entered_the_second_convolution() -> None:
    group = AirNet(10, 32, (8, 8, 8), convolutions=3).groups[0].eval()
    with torch.no_grad():
        group.norm3.running_var.fill_(1e12)  # silences the third convolution
        x = torch.randn(1, 24, 6, 6)
        entered = nn.functional.gelu(group.norm1(nn.functional.max_pool2d(group.conv1(x), 2)))
        torch.testing.assert_close(group(x), nn.functional.gelu(entered), atol=1e-4, rtol=0)


def test_a_plain_network_leaves_out_some_of_its_features_in_training_only() -> None:
    model = create_model("cnn3", 10, 16)
    images = torch.randn(4, 3, 16, 16)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


def test_small_images_are_enlarged_for_resnet50_without_another_name_for_its_weights() -> None:
    small, large = (create_model("resnet50", 10, size, least_px=64) for size in (16, 64))
    assert list(small.state_dict()) == list(large.state_dict())
    large.load_state_dict(small.state_dict())
    images = torch.randn(1, 3, 16, 16)
    enlarged = nn.functional.interpolate(images, size=(64, 64), mode="bilinear")
    torch.testing.assert_close(small.eval()(images), large.eval()(enlarged))


def test_whitening_makes_patches_uncorrelated_with_unit_variance() -> None:
    model = AirNet(10, 32)
    smooth = nn.functional.avg_pool2d(torch.randn(500, 3, 34, 34, generator=torch.Generator().manual_seed(0)), 3, stride=1)
    model.initialize_from(smooth)
    responses = nn.functional.conv2d(smooth, model.whitening.weight)[:, :12].transpose(0, 1).flatten(1)
    covariance = responses @ responses.T / responses.shape[1]
    torch.testing.assert_close(covariance - torch.diag(covariance.diag()), torch.zeros(12, 12), atol=1e-3, rtol=0)
    assert (covariance.diag() > 0.9).all()
    assert torch.equal(model.whitening.weight[:12], -model.whitening.weight[12:])


def test_airnets_first_filters_pass_their_input_on() -> None:
    convolution = AirNet(10, 32).groups[0].conv1
    x = torch.randn(1, 24, 5, 5)
    torch.testing.assert_close(convolution(x)[:, :24], x)


def test_a_frozen_stem_gets_no_gradient() -> None:
    model = AirNet(3, 16)
    model.freeze_stem()
    model(torch.randn(2, 3, 16, 16)).sum().backward()
    assert model.whitening.bias.grad is None
    assert model.head.weight.grad is not None


def test_resnet_keeps_small_images_large_in_its_stem() -> None:
    features = nn.Sequential(*list(create_model("resnet18", 10, 32).children())[:4])
    assert features(torch.randn(1, 3, 32, 32)).shape[2:] == (32, 32)


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)])
def test_a_precision_computes_in_its_format(name: str, dtype: torch.dtype) -> None:
    precision = Precision.resolve(name, CPU)
    with precision.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
    assert precision.grad_scaler().is_enabled() == (name == "fp16")


def test_auto_takes_bf16_only_where_the_cpu_computes_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    for has, name in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=has: has)
        assert Precision.resolve("auto", CPU).name == name
