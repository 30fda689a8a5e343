"""The manifest of a model bundle: all that serving, predicting and evaluating need to know beside the weights."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import AwareDatetime, Field

from cifar_ray.config import NAME_PATTERN, Config, ResizePolicy

FORMAT_VERSION: Final = 1

Channel = Annotated[float, Field(allow_inf_nan=False)]


class Architecture(Config):
    """What `models.create_model` needs to build the network again."""

    name: str
    arguments: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of create_model beside the name")


class Quantization(Config):
    """What the int8 form of a network costs in accuracy, measured when it was made.

    Attributes:
        calibration_images: training images that ranges were taken from.
        measured_on: split, and how many images of it.
        accuracy: of the int8 network, in 0…1.
        reference_accuracy: of plain torch in fp32, on the same images.
        tolerance: by how much it was allowed to be lower.
        deviation: largest difference of its logits from torch in fp32, as a share of the largest, on pictures made up for checking.
    """

    calibration_images: int = Field(ge=1)
    measured_on: str
    accuracy: float = Field(ge=0, le=1)
    reference_accuracy: float = Field(ge=0, le=1)
    tolerance: float = Field(ge=0, le=1)
    deviation: float = Field(gt=0)


class Manifest(Config):
    """Describes one bundle; written last, as `manifest.json`, it commits the bundle.

    Attributes:
        architecture: name and arguments of the network.
        class_names: one name a class, in the order of the logits.
        image_size_px: height and width that the network takes.
        channel_mean: of the training images, per channel R, G, B, in 0…1.
        channel_std: the same for the standard deviation.
        resize_policy: how other aspect ratios become square: `pad` or `crop`.
        temperature: logits are divided by it before softmax (calibration).
        abstain_threshold: images of less `trust.familiarity` are not to be believed; `None` never abstains.
        metrics: figures by name, e.g. `test_accuracy` in 0…1.
        dataset_name: name of the data set trained on.
        dataset_fingerprint: sha256 over all its splits.
        test_fingerprint: sha256 of the test split alone, which does not change with the seed of the validation split;
            empty when not known.
        parent: the bundle whose weights training began with, as `name@version` or path; `None` for fresh weights.
        parent_weights_sha256: of those weights, which finds the parent wherever it was copied to.
        train_config: the full config of the run.
        library_versions: versions of Python, torch, ray and this project.
        weights_sha256: of `model.safetensors`.
        attachments: sha256 of further files of the bundle, by name, e.g. the int8 form of the network.
        quantization: of that form, if there is one.
        created_at: time of writing, with zone.
    """

    format_version: Literal[1] = FORMAT_VERSION
    architecture: Architecture
    class_names: tuple[str, ...] = Field(min_length=2)
    image_size_px: int = Field(ge=1)
    channel_mean: tuple[Channel, Channel, Channel]
    channel_std: tuple[Channel, Channel, Channel]
    resize_policy: ResizePolicy
    temperature: float = Field(1.0, gt=0)
    abstain_threshold: float | None = None
    metrics: dict[str, float] = Field(default_factory=dict)
    dataset_name: str
    dataset_fingerprint: str
    test_fingerprint: str = ""
    parent: str | None = None
    parent_weights_sha256: str | None = None
    train_config: dict[str, Any] = Field(default_factory=dict)
    library_versions: dict[str, str] = Field(default_factory=dict)
    weights_sha256: str = Field("", pattern="^([0-9a-f]{64})?$", description="filled in by the writer")
    attachments: dict[Annotated[str, Field(pattern=NAME_PATTERN)], Annotated[str, Field(pattern="^[0-9a-f]{64}$")]] = Field(
        default_factory=dict, description="filled in by the writer"
    )
    quantization: Quantization | None = None
    created_at: AwareDatetime

    @property
    def tested_on(self) -> str:
        """Fingerprint of what the test figures were measured on; those of two models compare where it is equal."""
        return self.test_fingerprint or self.dataset_fingerprint
