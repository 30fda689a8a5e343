"""Settings of a training job by topic: optimizer, schedule, averaging, augmentation, start."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from cifar_ray.config.base import Config, Fraction, FrozenPart, NonNegative, Positive, ShareOfRate, UpToOne


class OptimizerConfig(Config):
    """Settings of the optimizer."""

    name: Literal["sgd", "adamw", "muon"] = Field(
        "muon", description="optimizer; muon: Muon for convolution filters, SGD for head, norms and biases"
    )
    lr: Positive = Field(0.24, description="peak learning rate (muon: of the convolution filters)")
    momentum: Fraction = Field(0.6, description="momentum (sgd, muon)")
    nesterov: bool = Field(True, description="Nesterov momentum (sgd, muon)")
    lr_scaling: Literal["none", "linear", "sqrt"] = Field(
        "none",
        description="scaling of lr by batch_size / reference_batch_size, or by its square root (muon: filters only)",
    )
    reference_batch_size: int = Field(256, ge=1, description="batch size for which lr is given, unless lr_scaling is none")
    head_factor: Positive = Field(1.0, description="learning-rate factor for the head (sgd, adamw)")
    bias_factor: Positive = Field(1.0, description="learning-rate factor for norms and biases (sgd, adamw)")
    weight_decay: NonNegative = Field(
        0.0, description="weight decay; sgd: L2; adamw: decoupled; not used by muon, which normalises its filters"
    )
    decoupled_decay: bool = Field(False, description="subtract lr × weight_decay from the weights instead of changing gradients (sgd)")
    decay_biases: bool = Field(True, description="apply weight decay to norms and biases too (sgd, adamw)")
    betas: tuple[Fraction, Fraction] = Field((0.9, 0.999), description="decay rates of the two running averages (adamw)")
    head_lr: Positive = Field(0.67, description="SGD learning rate of the head per example, multiplied by the batch size (muon)")
    bias_lr: Positive = Field(0.053, description="SGD learning rate of norms and biases per example, multiplied by the batch size (muon)")
    sgd_momentum: Fraction = Field(0.85, description="SGD momentum of head, norms and biases (muon)")
    sgd_decay: NonNegative = Field(2e-6, description="SGD weight decay of head, norms and biases per example at the peak rate (muon)")
    clip_norm: Positive | None = Field(None, description="maximum norm of all gradients together; default: no clipping")

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.name != "adamw" and self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs momentum > 0; add --optimizer.no-nesterov or a momentum")
        return self


class ScheduleConfig(Config):
    """Learning rate of each step, as a factor of the peak learning rate."""

    name: Literal["linear", "cosine", "one_cycle", "step", "constant"] = Field("linear", description="shape of the schedule")
    warmup_epochs: NonNegative = Field(0.0, description="epochs of linear warm-up from 0 (one_cycle: the rising part)")
    final_factor: Fraction = Field(0.0, description="factor at the last step (linear, cosine, one_cycle)")
    step_epochs: Positive = Field(30.0, description="epochs between drops (step)")
    milestones: tuple[Positive, ...] = Field((), description="epochs of the drops, instead of step_epochs (step)")
    step_factor: Positive = Field(0.1, description="factor of each drop (step)")


class AveragingConfig(Config):
    """A running average of weights and batch-norm statistics, which is then evaluated, saved and served."""

    name: Literal["none", "ema", "lookahead"] = Field(
        "none", description="which average; lookahead: training also continues from the average"
    )
    decay: Fraction = Field(0.998, description="weight of the old average in an update; usual for lookahead: 0.5")
    every_steps: int = Field(1, ge=1, description="steps between updates; usual for lookahead: 5")


class AugmentationConfig(Config):
    """Random changes of training images, drawn anew in each epoch."""

    flip: Literal["none", "random", "alternating"] = Field(
        "alternating", description="mirroring; alternating: random in the first epoch, then each image is mirrored in every other epoch"
    )
    crop_scale: ShareOfRate = Field(
        1,
        description="random resized crop, for photographs: smallest area of the crop, as a fraction of the image, for example 0.35; 1: off",
    )
    translate_px: int = Field(2, ge=0, description="maximum shift along each axis, in pixels; the border is filled by reflection")
    cutout_px: int = Field(0, ge=0, description="side of a square set to the mean colour, in pixels; 0: off")
    rotate_deg: float = Field(
        0, ge=0, le=180, description="maximum rotation to either side, in degrees; the border is filled by reflection"
    )
    brightness: UpToOne = Field(0, description="brightness jitter: multiply by a factor in 1 ± value")
    contrast: UpToOne = Field(0, description="contrast jitter: multiply the distance from the image's mean grey by a factor in 1 ± value")
    saturation: UpToOne = Field(0, description="saturation jitter: multiply the distance from grey by a factor in 1 ± value")
    hue: float = Field(0, ge=0, le=0.5, description="maximum hue shift, as a fraction of a full rotation")
    noise_std: UpToOne = Field(0, description="standard deviation of Gaussian noise, for pixel values in 0–1")
    erase: UpToOne = Field(0, description="probability of random erasing: a rectangle is set to the mean colour")
    mixup: float = Field(
        0, ge=0, le=100, description="mixup: alpha of the Beta distribution that two images and their labels are blended with; 0: off"
    )
    cutmix: float = Field(
        0,
        ge=0,
        le=100,
        description="cutmix: alpha of the Beta distribution for a rectangle of another image; with mixup, a coin decides per image; 0: off",
    )
    policy: Literal["none", "randaugment", "autoaugment"] = Field(
        "none", description="policy of further changes; autoaugment: the policy found for CIFAR-10"
    )
    policy_ops: int = Field(2, ge=1, le=10, description="number of changes per image (randaugment)")
    policy_magnitude: int = Field(9, ge=0, le=30, description="strength of all changes (randaugment)")

    @property
    def mixes(self) -> bool:
        """Whether images are mixed with other images; labels are then fractions of classes."""
        return self.mixup > 0 or self.cutmix > 0


class StartConfig(Config):
    """The model that fine-tuning starts from, and the parts of the model that it changes."""

    model: str = Field(description="reference or path of a model bundle")
    freeze: FrozenPart = Field("none", description="stages to freeze: none, backbone (all but the head), or the first N stages")
    stage_decay: ShareOfRate = Field(
        1.0, description="learning-rate factor of each stage relative to the stage above it; 1: the same rate for all stages"
    )
