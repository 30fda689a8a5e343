import pytest
import torch

from cifar_ray.errors import ConfigError
from cifar_ray.models import create_model, list_models
from cifar_ray.models.detect import canonical, detect


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("airnet", {"num_classes": 7, "image_size": 32, "widths": (16, 24, 32)}),
        ("small_cnn", {"num_classes": 3, "image_size": 32, "widths": (8, 16, 24)}),
        ("airnet96", {"num_classes": 7, "image_size": 32, "widths": (16, 24, 32)}),
        ("cnn3", {"num_classes": 7, "image_size": 32, "widths": ((8,), (8,), (16,))}),
        ("cnn6", {"num_classes": 7, "image_size": 32, "widths": ((8, 16), (16, 16), (16, 16))}),
        ("vgg3", {"num_classes": 7, "image_size": 32, "widths": ((8, 8), (8, 8), (16, 16))}),
        ("resnet9", {"num_classes": 7, "image_size": 32, "widths": (8, 16, 16, 24)}),
        ("wide_resnet28_10", {"num_classes": 7, "image_size": 32, "widen": 2}),
        ("resnet18", {"num_classes": 100, "image_size": 32}),
        ("resnet18", {"num_classes": 5, "image_size": 224}),
    ],
)
def test_name_and_arguments_follow_from_the_shapes(name: str, arguments: dict) -> None:
    assert detect(create_model(name, **arguments).state_dict()) == (name, arguments)


def test_every_architecture_is_known() -> None:
    for name in list_models():
        with torch.device("meta"):
            model = create_model(name, num_classes=2, image_size=48)
        assert detect(model.state_dict(), image_size_px=48)[0] == name


def test_prefixes_of_wrappers_and_other_names_for_the_same_parts_are_understood() -> None:
    ours = create_model("resnet18", num_classes=10, image_size=32).state_dict()
    theirs = {"module." + name.replace("fc.", "linear.").replace(".downsample.", ".shortcut."): tensor for name, tensor in ours.items()}
    assert set(canonical(theirs)) == set(ours)
    assert detect(canonical(theirs))[0] == "resnet18"


def test_an_unknown_network_is_refused_with_the_list_of_those_known() -> None:
    with pytest.raises(ConfigError, match=r"conv\.weight.*airnet, .*, resnet18, .*, small_cnn"):
        detect({"conv.weight": torch.zeros(3, 3)})
