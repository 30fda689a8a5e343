"""One class for each topic of a training job."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from cifar_ray.config.base import Config, Fraction, FrozenPart, NonNegative, Positive, ShareOfRate, UpToOne


class OptimizerConfig(Config):
    """How weights are updated."""

    name: Literal["sgd", "adamw", "muon"] = Field("muon", description="muon: Muon for convolution filters, SGD for head, norms and biases")
    lr: Positive = Field(0.24, description="peak learning rate (muon: of the filters)")
    momentum: Fraction = Field(0.6, description="sgd, muon")
    nesterov: bool = Field(True, description="sgd, muon")
    lr_scaling: Literal["none", "linear", "sqrt"] = Field(
        "none",
        description="how lr grows with the global batch: times (batch_size / reference_batch_size), or its root (muon: filters only)",
    )
    reference_batch_size: int = Field(256, ge=1, description="the global batch that lr is for, unless lr_scaling is none")
    head_factor: Positive = Field(1.0, description="sgd, adamw: learning rate of the head as a multiple of lr")
    bias_factor: Positive = Field(1.0, description="sgd, adamw: the same for norms and biases")
    weight_decay: NonNegative = Field(0.0, description="sgd: L2; adamw: decoupled; unused by muon, which normalises its filters")
    decoupled_decay: bool = Field(False, description="sgd: takes lr × weight_decay off the weights instead of changing gradients")
    decay_biases: bool = Field(True, description="sgd, adamw: whether norms and biases decay too")
    betas: tuple[Fraction, Fraction] = Field((0.9, 0.999), description="adamw")
    head_lr: Positive = Field(0.67, description="muon: SGD rate of the head for each example; the step uses it times the global batch")
    bias_lr: Positive = Field(0.053, description="muon: the same for norms and biases")
    sgd_momentum: Fraction = Field(0.85, description="muon: momentum of head, norms and biases")
    sgd_decay: NonNegative = Field(2e-6, description="muon: fraction of head, norms and biases that one example takes off at the peak rate")
    clip_norm: Positive | None = Field(None, description="largest norm of all gradients together")

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.name != "adamw" and self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs momentum > 0; pass --optimizer.no-nesterov or a momentum")
        return self


class ScheduleConfig(Config):
    """How the learning rate moves, step by step, as a factor of its peak."""

    name: Literal["linear", "cosine", "one_cycle", "step", "constant"] = "linear"
    warmup_epochs: NonNegative = Field(0.0, description="linear rise from 0 (one_cycle: the rising part)")
    final_factor: Fraction = Field(0.0, description="factor at the last step (linear, cosine, one_cycle)")
    step_epochs: Positive = Field(30.0, description="step: epochs between drops")
    milestones: tuple[Positive, ...] = Field((), description="step: the epochs of the drops, instead of step_epochs")
    step_factor: Positive = Field(0.1, description="step: factor of each drop")


class AveragingConfig(Config):
    """A running average of the weights and batch-norm statistics: that is then evaluated, kept and served."""

    name: Literal["none", "ema", "lookahead"] = Field("none", description="lookahead: training goes on from the average, too")
    decay: Fraction = Field(0.998, description="share that an update keeps of the average; for lookahead 0.5 is usual")
    every_steps: int = Field(1, ge=1, description="steps between updates; for lookahead 5 is usual")


class AugmentationConfig(Config):
    """Random changes of training images, drawn anew each epoch."""

    flip: Literal["none", "random", "alternating"] = Field(
        "alternating", description="alternating: random in the first epoch, then each image turns every epoch"
    )
    translate_px: int = Field(2, ge=0, description="largest shift along each axis, border filled by reflection")
    cutout_px: int = Field(0, ge=0, description="side of the square set to the mean colour")
    rotate_deg: float = Field(0, ge=0, le=180, description="largest angle to either side, border filled by reflection")
    brightness: UpToOne = Field(0, description="colours are multiplied by a factor drawn from 1 ± this")
    contrast: UpToOne = Field(0, description="the same for the distance of colours from the image's mean grey")
    saturation: UpToOne = Field(0, description="the same for the distance of colours from their grey")
    hue: float = Field(0, ge=0, le=0.5, description="largest turn of colours around the grey axis, as a share of a full one")
    noise_std: UpToOne = Field(0, description="Gaussian noise, of values in 0…1")
    erase: UpToOne = Field(0, description="probability that a rectangle is set to the mean colour (random erasing)")
    mixup: float = Field(0, ge=0, le=100, description="alpha of the Beta that two images and their labels are blended with; 0: off")
    cutmix: float = Field(
        0, ge=0, le=100, description="the same for a rectangle of another image; with mixup a coin decides for each image"
    )
    policy: Literal["none", "randaugment", "autoaugment"] = Field("none", description="autoaugment: the policy found for CIFAR-10")
    policy_ops: int = Field(2, ge=1, le=10, description="randaugment: changes one after the other")
    policy_magnitude: int = Field(9, ge=0, le=30, description="randaugment: strength of all changes")

    @property
    def mixes(self) -> bool:
        """Whether images are mixed with others; labels are then shares of classes."""
        return self.mixup > 0 or self.cutmix > 0


class StartConfig(Config):
    """The model that fine-tuning begins with, and what of it may change."""

    model: str = Field(description="reference or path of a bundle")
    freeze: FrozenPart = Field("none", description="what stays as it is: none, backbone (all but the head), or the first N stages")
    stage_decay: ShareOfRate = Field(
        1.0, description="learning rate of each stage as a share of that of the stage above it; 1 treats all alike"
    )
