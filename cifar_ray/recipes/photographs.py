"""Recipes that start from ImageNet weights: for folders of photographs, and for small images."""

from __future__ import annotations

from cifar_ray.config import (
    PRETRAINED_MODEL,
    PRETRAINED_PACKAGE,
    AugmentationConfig,
    AveragingConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)
from cifar_ray.recipes.recipe import AUGMENTATION_SPACE, around, recipe


@recipe(
    parameters=3_383_818,
    flops=15_695_296,
    accuracy="ants and bees 94.8 %, five flowers 91 % with the probe alone",
    space=around(lr=3e-4, weight_decay=0.02) | AUGMENTATION_SPACE,
)
def photos() -> TrainConfig:
    """EfficientNet-Lite0 from ImageNet weights that are installed: a probe, then fine-tuning where it pays.

    Optimizer, schedule and augmentation are the settings of the fine-tuning.
    """
    return TrainConfig(
        recipe="photos",
        model=PRETRAINED_MODEL,
        pretrained=f"package:{PRETRAINED_PACKAGE}",
        method="auto",
        image_size=224,
        resize_policy="squash",
        epochs=15,
        batch_size=32,
        micro_batch_size=32,
        label_smoothing=0.1,
        test_time_augmentation="none",
        optimizer=OptimizerConfig(name="adamw", lr=3e-4, weight_decay=0.02, decay_biases=False, clip_norm=1.0),
        schedule=ScheduleConfig(name="cosine", warmup_epochs=0.5),
        augmentation=AugmentationConfig(flip="random", translate_px=0, crop_scale=0.5, policy="randaugment", policy_magnitude=7, mixup=0.2),
        averaging=AveragingConfig(name="ema", decay=0.99),
    )


@recipe(
    parameters=3_383_818,
    flops=15_695_296,
    accuracy="95.4 % here, 95.7 % with mirror images averaged",
    space=around(lr=1e-3, weight_decay=0.02) | AUGMENTATION_SPACE | {"augmentation.translate_px": {"randint": [0, 16]}},
)
def lite0_finetune() -> TrainConfig:
    """EfficientNet-Lite0 from ImageNet weights that are installed, in 3 epochs, small images enlarged to 128 px.

    All weights are trained from the first step, without a probe.
    """
    return TrainConfig(
        recipe="lite0_finetune",
        model=PRETRAINED_MODEL,
        pretrained=f"package:{PRETRAINED_PACKAGE}",
        method="scratch",
        image_size=128,
        epochs=3,
        batch_size=128,
        micro_batch_size=32,
        label_smoothing=0.1,
        test_time_augmentation="mirror",
        optimizer=OptimizerConfig(name="adamw", lr=1e-3, weight_decay=0.02, decay_biases=False, clip_norm=1.0),
        schedule=ScheduleConfig(name="cosine", warmup_epochs=0.25),
        augmentation=AugmentationConfig(flip="random", translate_px=8, cutout_px=32),
    )
