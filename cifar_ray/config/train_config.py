"""`TrainConfig`: all settings of one training job; the `config.yaml` of a run is enough to repeat the job."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from cifar_ray.config.base import (
    BUDGET_PATTERN,
    INTERVAL_PATTERN,
    MAX_IMAGE_SIZE_PX,
    MEMORY_PATTERN,
    NAME_PATTERN,
    PRETRAINED_PACKAGE,
    CompileMode,
    Config,
    DatasetName,
    Fraction,
    Method,
    Moment,
    NonNegative,
    Positive,
    PrecisionName,
    ResizePolicy,
    SamplingName,
    TaskChoice,
    TestTimeAugmentation,
)
from cifar_ray.config.locations import STORAGE_VARIABLE, default_storage, resolve_storage
from cifar_ray.config.topics import AugmentationConfig, AveragingConfig, OptimizerConfig, ScheduleConfig, StartConfig


class TrainConfig(Config):
    """Settings of one training job. The recipe supplies the defaults; `--recipe NAME` selects another recipe."""

    recipe: str = Field("airbench94", description="recipe that supplies the defaults; --list-recipes shows all")
    name: str | None = Field(None, pattern=NAME_PATTERN, description="name of the run; default: name of the data set and time")
    save_as: str | None = Field(None, pattern=NAME_PATTERN, description="name of the model in the store; default: name of the data set")
    storage: str = Field(
        default_factory=default_storage,
        validate_default=True,
        description=f"path or URI of runs and models; default ${STORAGE_VARIABLE} or ./storage",
    )
    promote: Literal["auto", "always", "never"] = Field(
        "auto",
        description="promote the model to production; auto: if it is not worse than the present one, or has other classes",
    )
    gallery: int = Field(
        1000, ge=0, le=1000, description="maximum number of test pictures in the model, for the mistakes on the server's page; 0: none"
    )

    dataset: DatasetName = Field("cifar10", description="data set to train on; folder reads --data-dir")
    data_dir: str | None = Field(
        None,
        description="folder: DIR/train/<class>/… with optional val/ and test/, or DIR/<class>/…; a table of paths and labels "
        "(.csv, .tsv, .jsonl, .json, .parquet), WebDataset tars, Hugging Face data sets, or a folder with one of them; "
        "also s3://bucket/folder; cifar10, cifar100: folder of the files",
    )
    columns: str | None = Field(
        None,
        description="columns of a table, as in image=path,label=species,split=part,weight=w,name=title,description=text; "
        "default: found by their names",
    )
    task: TaskChoice = Field(
        "auto",
        description="single-label: each picture has one class; multi-label: any number of labels, also none, from a table; "
        "auto: what the table holds",
    )
    image_size: int | None = Field(None, ge=8, le=MAX_IMAGE_SIZE_PX, description="side of the square images, in pixels; default 32")
    resize_policy: ResizePolicy | Literal["auto"] = Field(
        "pad",
        description="how other shapes become square. pad: add black borders; crop: keep the centre; squash: stretch; "
        "auto: the best of the three on the probe",
    )
    stream: Literal["auto", "always", "never"] = Field(
        "auto",
        description="folder: decode training images in each epoch instead of holding them in memory; auto: if they exceed data_memory",
    )
    data_memory: str = Field(
        "auto",
        pattern=MEMORY_PATTERN,
        description="memory for decoded images on each machine, for example 4GB; auto: a quarter of the machine's memory",
    )
    val_fraction: Annotated[float, Field(ge=0, le=0.9)] = Field(
        0.1, description="fraction of training images held out for validation; 0 trains on all images and saves the last weights"
    )
    test_fraction: Annotated[float, Field(ge=0, le=0.9)] = Field(
        0.1, description="fraction of all images held out for the test if the data set has no test split"
    )

    with_reviews: bool = Field(False, description="also train on the pictures of requests that people labelled; see cifar-ray review")
    reviews_until: Moment | None = Field(
        None, description="leave out labels after this local time, as in 2026-11-29T09:00; a date: from 0:00; default: the start of the run"
    )
    review_weight: Positive = Field(1.0, description="weight of each of these pictures in the loss; others have 1")
    groups: tuple[str, ...] = Field(
        (), description="NAME=CLASS,CLASS …: merge classes under new names; images of other classes are left out"
    )

    model: str = Field("airnet", description="network architecture; --list-models shows all")
    pretrained: str = Field(
        "none",
        description="weights to start from: none, hub (hub:TAG: timm's weights of that name), a .safetensors or .pth file, or package:NAME",
    )
    method: Method = Field(
        "scratch",
        description="probe: only a linear head on pretrained features; finetune: all weights, from the probe's head; "
        "auto: probe, then finetune where it pays, and keep the better; scratch: all weights, without a probe",
    )
    time_budget: str = Field(
        "auto", pattern=BUDGET_PATTERN, description="time for finetune after the probe, for example 15m; auto: 10m on a GPU, none on a CPU"
    )
    views: int = Field(
        1, ge=1, le=12, description="views of each image whose features are averaged (probe); a server also computes them all"
    )
    epochs: int = Field(8, ge=1, le=10_000, description="passes over the training images")
    batch_size: int = Field(2000, ge=1, description="images per step, over all workers")
    micro_batch_size: int | None = Field(
        None,
        ge=1,
        description="images per forward pass on a worker; gradients are summed over a step; default: 250 on a CPU, all on a GPU",
    )
    label_smoothing: Fraction = Field(0.2, description="probability taken from the true class and spread over all classes")
    loss: Literal["cross_entropy", "focal", "asymmetric"] = Field(
        "cross_entropy",
        description="loss; focal: weight images by (1 - p)^focal_gamma, p being the probability of the true class; "
        "multi-label: binary, summed over the classes; asymmetric: weight easy negatives less (multi-label)",
    )
    focal_gamma: NonNegative = Field(2.0, le=10, description="exponent of the focal loss; 0: cross-entropy")
    class_weights: Literal["none", "balanced"] = Field(
        "none",
        description="weights of the loss; balanced: images / (classes × images of the class), for uneven classes; "
        "multi-label: of positives, pictures without the label / pictures with it",
    )
    min_precision: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="multi-label: precision that each label must reach on validation, for example 0.9; default: the best F1 score"
    )
    sampling: SamplingName = Field(
        "natural", description="images of an epoch; natural: each image once; balanced: equally many of each class, for uneven classes"
    )
    stem_epochs: int = Field(
        3, ge=1, description="number of epochs in which the bias of the whitening layer is trained (airnet), independent of --epochs"
    )
    test_time_augmentation: TestTimeAugmentation = Field(
        "mirror_shift", description="views whose logits are averaged for a second test accuracy; none: no second accuracy"
    )
    precision: PrecisionName = Field("auto", description="number format; auto: bf16 if the hardware has it, else fp16 on a GPU, else fp32")
    compile: CompileMode = Field(
        "none",
        description="torch.compile mode, for GPUs; default: fuse operations; max-autotune: also search kernels",
    )
    cuda_graph: Literal["auto", "on", "off"] = Field(
        "auto",
        description="replay each training step as one CUDA graph, so that the GPU never waits for Python; auto: where it is possible",
    )
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of splits, order, augmentation and initial weights")
    draws: Literal[1, 2] = Field(
        2, description="version of the generator of order and augmentation; 1: as runs of earlier releases, which continue with it"
    )
    split_seed: int | None = Field(None, ge=0, le=2**31 - 1, description="seed of the splits; default: --seed")
    num_workers: int | str | None = Field(
        None,
        description="number of workers; default: one per GPU, or one with all CPU cores; 2:8 scales with the cluster",
    )
    cluster: str = Field(
        "auto",
        min_length=1,
        description="local: this process only; start: a Ray cluster of this machine's cores and GPUs; or the ADDRESS of a cluster; "
        "auto: $RAY_ADDRESS or the cluster that this machine is a part of, else local for one worker and start for more",
    )
    patience: int | None = Field(None, ge=1, description="stop after this many epochs without a better validation accuracy; default: never")
    on_nan: Literal["stop", "skip", "rewind"] = Field(
        "stop", description="if a loss is not finite: stop, skip the step, or rewind to the last checkpoint at half the learning rate"
    )
    checkpoint_every: str = Field(
        "1",
        pattern=INTERVAL_PATTERN,
        description="checkpoint interval: epochs, or a time such as 30s, 10m or 1h, also within an epoch",
    )
    max_failures: int = Field(
        3, ge=0, le=1000, description="maximum number of worker failures; after each, training resumes from the last checkpoint"
    )
    worker_timeout_s: float = Field(60, ge=1, description="seconds without a heartbeat before a worker counts as failed")

    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    averaging: AveragingConfig = AveragingConfig()
    start: StartConfig | None = Field(None, description="set by cifar-ray finetune")

    @property
    def worker_range(self) -> tuple[int, int] | None:
        """Minimum and maximum number of workers; `None` if the GPUs of the cluster determine the number."""
        if self.num_workers is None:
            return None
        fewest, _, most = str(self.num_workers).partition(":")
        return int(fewest), int(most or fewest)

    @property
    def seed_of_splits(self) -> int:
        """Seed for the division of the pictures into training, validation and test."""
        return self.seed if self.split_seed is None else self.split_seed

    @property
    def max_workers(self) -> int:
        """Maximum number of workers; 1 if the GPUs of the cluster determine the number, which is not known yet."""
        return self.worker_range[1] if self.worker_range else 1

    @property
    def square_policy(self) -> ResizePolicy:
        """Policy by which other shapes become square; `squash` if no probe has decided about `auto`."""
        return "squash" if self.resize_policy == "auto" else self.resize_policy

    @property
    def data_memory_bytes(self) -> int | None:
        """Memory for decoded images, bytes; `None` for `auto`."""
        return None if self.data_memory == "auto" else int(float(self.data_memory[:-2]) * {"MB": 1e6, "GB": 1e9}[self.data_memory[-2:]])

    @field_validator("pretrained", mode="before")
    @classmethod
    def _read_flag_of_earlier_releases(cls, value: object) -> object:
        return {True: "hub", False: "none"}.get(value, value) if isinstance(value, bool) else value

    _resolve_storage = field_validator("storage")(staticmethod(resolve_storage))

    @field_validator("data_dir")
    @classmethod
    def _resolve_data_dir(cls, value: str | None) -> str | None:
        return None if value is None else resolve_storage(value)

    @field_validator("num_workers")
    @classmethod
    def _check_workers(cls, value: int | str | None) -> int | str | None:
        if value is None:
            return None
        numbers = str(value).split(":")
        if not all(number.isdecimal() and 1 <= int(number) <= 4096 for number in numbers) or len(numbers) > 2:
            raise ValueError("expected a number from 1 to 4096, or two such as 2:8")
        if int(numbers[0]) > int(numbers[-1]):
            raise ValueError("the minimum comes first, for example 2:8")
        return int(numbers[0]) if numbers[0] == numbers[-1] else str(value)

    @field_validator("groups")
    @classmethod
    def _check_groups(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        groups = parse_groups(values)
        members = [member for group in groups.values() for member in group]
        if len(groups) < len(values) or len(set(members)) < len(members):
            raise ValueError("duplicate name or class")
        if values and (len(groups) < 2 or not all(all(group) and name for name, group in groups.items())):
            raise ValueError("expected at least two groups, each NAME=CLASS,CLASS…")
        return values

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        if self.method in ("probe", "finetune") and self.pretrained == "none":
            raise ValueError(
                f"method {self.method} needs pretrained weights; add --pretrained hub, a file, or package:{PRETRAINED_PACKAGE}"
            )
        if self.resize_policy == "auto" and self.method == "scratch":
            raise ValueError("resize_policy auto needs a probe; pass pad, crop or squash")
        if self.dataset == "folder" and self.data_dir is None:
            raise ValueError("--dataset folder needs --data-dir DIR")
        if self.dataset != "folder" and self.stream == "always":
            raise ValueError(f"stream: {self.dataset} fits in memory; only --dataset folder can be streamed")
        if self.dataset == "digits" and self.data_dir is not None:
            raise ValueError("data_dir is not used by --dataset digits; leave it out or pass --dataset folder")
        if self.patience is not None and self.val_fraction == 0:
            raise ValueError("patience needs validation images, but val_fraction is 0; remove one of the two")
        if self.class_weights == "balanced" and self.sampling == "balanced":
            raise ValueError("class_weights and sampling are both balanced, which would favour rare classes twice; choose one")
        if self.schedule.warmup_epochs >= self.epochs:
            raise ValueError(f"schedule.warmup_epochs ({self.schedule.warmup_epochs:g}) must be less than epochs ({self.epochs})")
        if self.test_time_augmentation != "none" and self.augmentation.flip == "none":
            raise ValueError("test_time_augmentation mirrors images, but augmentation.flip is none; add --test-time-augmentation none")
        size_px = self.image_size or 32
        if self.augmentation.translate_px >= size_px or self.augmentation.cutout_px > size_px:
            raise ValueError(f"augmentation.translate_px and cutout_px must fit an image of {size_px} px")
        if self.batch_size < self.max_workers:
            raise ValueError(f"batch_size ({self.batch_size}) is smaller than the number of workers ({self.max_workers}); increase it")
        return self

    @model_validator(mode="after")
    def _task_combinations(self) -> Self:
        if self.task == "multi-label" and self.dataset != "folder":
            raise ValueError(f"task: the pictures of {self.dataset} have one label each; multi-label needs a table (--data-dir TABLE)")
        if self.task == "multi-label" and self.sampling == "balanced":
            raise ValueError("sampling balanced needs one label per picture; use --class-weights balanced for several")
        if self.task == "multi-label" and self.groups:
            raise ValueError("groups need one label per picture; merge the labels in the table instead")
        if self.task == "single-label" and self.loss == "asymmetric":
            raise ValueError("loss asymmetric is for several labels per picture; use cross_entropy or focal")
        return self


def parse_groups(groups: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Member classes of each group, by its new name, from texts such as `NAME=CLASS,CLASS`."""
    return {name: tuple(members.split(",")) for name, _, members in (group.partition("=") for group in groups)}
