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
def test_every_architecture_maps_images_to_logits(name: str, image_size: int) -> None:
    model = create_model(name, num_classes=7, image_size=image_size).eval()
    assert model(torch.randn(2, 3, image_size, image_size)).shape == (2, 7)


@pytest.mark.parametrize("name", list_models())
def test_weights_follow_from_torchs_seed(name: str) -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(5)
        states.append(create_model(name, 3, 32).state_dict())
    assert all(torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values(), strict=True))


def test_an_unknown_name_is_refused_with_the_list() -> None:
    with pytest.raises(ConfigError, match=r"'resnet19'; there are airnet, resnet18, small_cnn"):
        create_model("resnet19", 10, 32)


@pytest.mark.parametrize("name", ["airnet", "small_cnn"])
def test_an_image_too_small_for_the_network_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"image_size: {name} needs at least"):
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
