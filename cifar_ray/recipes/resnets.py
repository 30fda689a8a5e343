"""Recipes of residual networks, for a GPU."""

from __future__ import annotations

from cifar_ray.config import AugmentationConfig, OptimizerConfig, ScheduleConfig, TrainConfig
from cifar_ray.recipes.recipe import AUGMENTATION_SPACE, SearchSpace, around, recipe

_CUTOUT_SPACE: SearchSpace = {"augmentation.cutout_px": {"choice": [0, 4, 8, 12, 16]}} | AUGMENTATION_SPACE


@recipe(
    parameters=11_173_962,
    flops=1_110_845_440,
    accuracy="95 % expected; not run to the end here",
    space=around(lr=0.4, weight_decay=5e-4) | _CUTOUT_SPACE,
)
def resnet18() -> TrainConfig:
    """ResNet-18 with SGD and a cosine schedule in 30 epochs, the usual baseline.

    pytorch-cifar (kuangliu) reports 93.0 % with its first schedule, and 95.5 % after 200 epochs of a cosine schedule.
    """
    return TrainConfig(
        recipe="resnet18",
        model="resnet18",
        epochs=30,
        batch_size=512,
        label_smoothing=0.1,
        optimizer=OptimizerConfig(name="sgd", lr=0.4, momentum=0.9, weight_decay=5e-4, lr_scaling="linear", reference_batch_size=512),
        schedule=ScheduleConfig(name="cosine", warmup_epochs=2),
        augmentation=AugmentationConfig(flip="random", translate_px=4, cutout_px=8),
    )


@recipe(
    parameters=36_479_194,
    flops=10_486_657_536,
    accuracy="97.4 % published; not run to the end here",
    space=around(lr=0.1, weight_decay=5e-4) | _CUTOUT_SPACE,
)
def wide_resnet28_10() -> TrainConfig:
    """WRN-28-10 with AutoAugment and cutout in 200 epochs.

    Published: 96.0 % with flips and crops (Zagoruyko & Komodakis 2016, table 5), 97.4 % with AutoAugment (Cubuk et al. 2019,
    arXiv 1805.09501, table 2).
    """
    return TrainConfig(
        recipe="wide_resnet28_10",
        model="wide_resnet28_10",
        epochs=200,
        batch_size=128,
        label_smoothing=0.0,
        optimizer=OptimizerConfig(name="sgd", lr=0.1, momentum=0.9, weight_decay=5e-4, lr_scaling="linear", reference_batch_size=128),
        schedule=ScheduleConfig(name="cosine", warmup_epochs=0.5),
        augmentation=AugmentationConfig(flip="random", translate_px=4, cutout_px=16, policy="autoaugment"),
    )


@recipe(
    parameters=6_573_120,
    flops=758_523_904,
    accuracy="94.1 % published by Page, 87.6 % by others; not run to the end here",
    space=around(lr=0.4, weight_decay=5e-4) | _CUTOUT_SPACE,
)
def resnet9_onecycle() -> TrainConfig:
    """ResNet-9 with SGD, one cycle and cutout in 24 epochs.

    Page (2018, "How to Train Your ResNet"): 94.1 %. The same 6.6 M parameters with Adam and one cycle, as in tutorials: 87.6 %.
    """
    return TrainConfig(
        recipe="resnet9_onecycle",
        model="resnet9",
        epochs=24,
        batch_size=512,
        label_smoothing=0.1,
        optimizer=OptimizerConfig(name="sgd", lr=0.4, momentum=0.9, weight_decay=5e-4, lr_scaling="linear", reference_batch_size=512),
        schedule=ScheduleConfig(name="one_cycle"),
        augmentation=AugmentationConfig(flip="random", translate_px=4, cutout_px=8),
    )


@recipe(
    parameters=23_528_522,
    flops=2_669_191_168,
    accuracy="78.0 % published; not run here, the weights need internet access",
    space=around(lr=0.02, weight_decay=1e-4) | {"optimizer.head_factor": {"choice": [1.0, 3.0, 10.0]}} | AUGMENTATION_SPACE,
)
def resnet50_finetune() -> TrainConfig:
    """ResNet-50 from ImageNet weights in 5 epochs, images enlarged to 128 px.

    Published for such a fine-tuning at 32 px: 78.0 %. Enlarged images suit the pretrained features.
    """
    return TrainConfig(
        recipe="resnet50_finetune",
        model="resnet50",
        pretrained="hub",
        epochs=5,
        batch_size=128,
        micro_batch_size=64,  # because images are enlarged to 128 px
        label_smoothing=0.1,
        optimizer=OptimizerConfig(
            name="sgd",
            lr=0.02,
            momentum=0.9,
            weight_decay=1e-4,
            decay_biases=False,
            head_factor=10.0,
            lr_scaling="linear",
            reference_batch_size=128,
        ),
        schedule=ScheduleConfig(name="cosine", warmup_epochs=0.5),
        augmentation=AugmentationConfig(flip="random", translate_px=4),
    )
