"""The manifest of a model bundle: everything except the weights that serving, prediction and evaluation need."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self

from pydantic import AwareDatetime, Field, model_validator

from cifar_ray.config import MAX_DESCRIPTION_LENGTH, NAME_PATTERN, Config, ResizePolicy, TaskName
from cifar_ray.metrics.label_rules import LabelRules

FORMAT_VERSION: Final = 1
MANIFEST_KEY: Final = "cifar_ray.manifest"  # key of the manifest in the metadata of exported files

Description = Annotated[str, Field(min_length=1, max_length=MAX_DESCRIPTION_LENGTH)]
Channel = Annotated[float, Field(allow_inf_nan=False)]


class Architecture(Config):
    """Name and arguments from which `models.create_model` builds the network."""

    name: str
    arguments: dict[str, Any] = Field(default_factory=dict, description="other keyword arguments of create_model")


class PretrainedOrigin(Config):
    """Origin of the pretrained weights from which training started.

    Attributes:
        source: repository of the hub, address, file name, or package and version.
        sha256: sha256 of the file; empty if unknown.
        license: licence of the weights; empty if unknown.
        timm_version: version of timm that built the network.
    """

    source: str
    sha256: str = ""
    license: str = ""
    timm_version: str = ""


class Quantization(Config):
    """Accuracy of the int8 form of a network, measured when it was made.

    Attributes:
        calibration_images: number of training images that set the quantization ranges.
        measured_on: split and number of images of the measurement.
        accuracy: accuracy of the int8 network, or its mAP with several labels per image, 0–1.
        reference_accuracy: the same figure for the network in plain torch and fp32, on the same images.
        tolerance: maximum loss of accuracy that was allowed.
        deviation: largest difference of its logits from those of torch in fp32, as a fraction of the largest logit, on synthetic images.
    """

    calibration_images: int = Field(ge=1)
    measured_on: str
    accuracy: float = Field(ge=0, le=1)
    reference_accuracy: float = Field(ge=0, le=1)
    tolerance: float = Field(ge=0, le=1)
    deviation: float = Field(gt=0)


class Manifest(Config):
    """Manifest of one bundle; `manifest.json` is written last and commits the bundle.

    Attributes:
        architecture: name and arguments of the network.
        class_names: one name per class, in the order of the logits.
        class_descriptions: description by class name, without classes that have none.
        task: whether a picture has exactly one class, or any number of labels.
        label_rules: multi-label: calibration and threshold of each class; `None` without validation images, which means
            the logit's sigmoid and 0.5.
        image_size_px: height and width of the network's input.
        channel_mean: mean of the training images per channel R, G, B, 0–1.
        channel_std: standard deviation of the training images per channel R, G, B, 0–1.
        resize_policy: policy for other aspect ratios, `pad`, `crop` or `squash`.
        temperature: single-label: divisor of the logits before softmax (calibration).
        abstain_threshold: the model abstains from images with a lower `familiarity.energy`; `None` never abstains. It is used only if the
            bundle has no features of known pictures (see `store.trust_file`).
        metrics: figures by name, for example `test_accuracy`, 0–1.
        image_counts: number of images by split (`train`, `val`, `test`, or `cv` for cross-validation); empty in bundles of release 0.1.
        dataset_name: name of the training data set.
        dataset_fingerprint: sha256 of all its splits, without reviewed pictures that the training added; release 1.0 included these.
        test_fingerprint: sha256 of the test split alone, which does not change with the seed of the validation split;
            empty if unknown.
        parent: the bundle from which training started, as `name@version` or path; `None` for fresh weights.
        parent_weights_sha256: sha256 of the parent's weights, which identifies copies of the parent.
        train_config: the full config of the run.
        library_versions: versions of Python, torch, ray and this project.
        weights_sha256: sha256 of `model.safetensors`.
        attachments: sha256 of additional files by name, for example the int8 form of the network.
        quantization: accuracy of the int8 form, if there is one.
        pretrained: origin of the pretrained weights; `None` if training started from fresh weights.
        interpolation: resampling method for resizing pictures.
        created_at: time of writing, with time zone.
    """

    format_version: Literal[1] = FORMAT_VERSION
    architecture: Architecture
    class_names: tuple[str, ...] = Field(min_length=2)
    class_descriptions: dict[str, Description] = Field(default_factory=dict)
    task: TaskName = "single-label"
    label_rules: LabelRules | None = None
    image_size_px: int = Field(ge=1)
    channel_mean: tuple[Channel, Channel, Channel]
    channel_std: tuple[Channel, Channel, Channel]
    resize_policy: ResizePolicy
    temperature: float = Field(1.0, gt=0)
    abstain_threshold: float | None = None
    metrics: dict[str, float] = Field(default_factory=dict)
    image_counts: dict[str, Annotated[int, Field(ge=0)]] = Field(default_factory=dict)
    dataset_name: str
    dataset_fingerprint: str
    test_fingerprint: str = ""
    parent: str | None = None
    parent_weights_sha256: str | None = None
    train_config: dict[str, Any] = Field(default_factory=dict)
    library_versions: dict[str, str] = Field(default_factory=dict)
    weights_sha256: str = Field("", pattern="^([0-9a-f]{64})?$", description="set by the writer")
    attachments: dict[Annotated[str, Field(pattern=NAME_PATTERN)], Annotated[str, Field(pattern="^[0-9a-f]{64}$")]] = Field(
        default_factory=dict, description="set by the writer"
    )
    quantization: Quantization | None = None
    pretrained: PretrainedOrigin | None = None
    interpolation: Literal["bicubic"] = "bicubic"
    created_at: AwareDatetime

    @model_validator(mode="after")
    def _one_rule_per_class(self) -> Self:
        if self.label_rules is not None and (self.task != "multi-label" or len(self.label_rules.thresholds) != len(self.class_names)):
            raise ValueError(f"label_rules need the task multi-label and one rule for each of the {len(self.class_names)} classes")
        return self

    @model_validator(mode="after")
    def _describes_its_classes(self) -> Self:
        if unknown := set(self.class_descriptions) - set(self.class_names):
            raise ValueError(f"class_descriptions: no class is called {min(unknown)!r}")
        return self

    @property
    def rules(self) -> LabelRules | None:
        """The rules in use: those of the manifest, or sigmoid and 0.5; `None` for one class per picture."""
        if self.task == "single-label":
            return None
        return self.label_rules or LabelRules.plain(len(self.class_names))

    @property
    def tested_on(self) -> str:
        """Fingerprint of the test images; if it is equal, the test metrics of two models are comparable."""
        return self.test_fingerprint or self.dataset_fingerprint

    def was_trained_on(self, dataset_fingerprint: str, test_fingerprint: str) -> bool:
        """Whether a data set is that of the training, with the same splits.

        Release 1.0 included reviewed pictures in the fingerprint. For such a bundle, the same test images are enough.

        Args:
            dataset_fingerprint: fingerprint of the data set, without reviewed pictures.
            test_fingerprint: fingerprint of its test images; empty if there are none.
        """
        of_release_1_0 = self.train_config.get("with_reviews") and "reviews_until" not in self.train_config
        if of_release_1_0 and test_fingerprint and test_fingerprint == self.test_fingerprint:
            return True
        return dataset_fingerprint == self.dataset_fingerprint
