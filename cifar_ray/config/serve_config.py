"""`ServeConfig`: the settings that `serve run deployments:app key=value …` accepts."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from cifar_ray.config.api_keys import KEYS_VARIABLE, read_keys
from cifar_ray.config.base import REFERENCE_PATTERN, Config, EngineName, Positive, PrecisionName, PriorityName
from cifar_ray.config.locations import STORAGE_VARIABLE, default_storage, local_path, resolve_storage, split_address
from cifar_ray.errors import ConfigError

_PENDING_BATCHES = 4
_ONGOING_BATCHES = 2
_QUEUED_BATCHES = 2
_ORIGIN = re.compile(r"\*|https?://([A-Za-z0-9.-]+|\[[0-9a-fA-F:.]+\])(:[0-9]{1,5})?")
_BUILT_IN = ("cifar10", "cifar100", "digits")


class ServeConfig(Config):
    """Settings of a server. By default, it reserves so little CPU in Ray's scheduler that everything fits on one core."""

    model: str | None = Field(
        None, pattern=REFERENCE_PATTERN, description="NAME or NAME@VERSION; default: the model that was promoted last"
    )
    storage: str = Field(
        default_factory=default_storage,
        validate_default=True,
        description=f"path or URI of the models; default ${STORAGE_VARIABLE} or ./storage",
    )
    model_aliases: dict[str, str] = Field(
        default_factory=dict,
        description="other names by which requests may call models, for example original=cifar10,regrouped=animals@production",
    )
    top_k: int = Field(5, ge=1, description="number of most likely classes in an answer, unless the request has ?top_k=")
    abstain: bool = Field(True, description='answer "abstain": true for pictures unlike those that the model was validated on')
    precision: PrecisionName = Field("auto", description="number format; auto: bf16 if the hardware has it, else fp16 on a GPU, else fp32")
    engine: EngineName = Field(
        "auto", description="inference engine; auto: the fastest on this machine that gives the answers of plain torch"
    )

    num_replicas: int = Field(1, ge=1, description="number of model replicas")
    max_replicas: int | None = Field(
        None, ge=1, description="maximum number of replicas: more are started while requests queue; default: num_replicas"
    )
    downscale_delay_s: Positive = Field(60.0, description="seconds that extra replicas stay after the load has dropped")
    max_batch_size: int = Field(64, ge=1, le=4096, description="maximum number of images in one forward pass")
    model_memory_bytes: int = Field(
        2_000_000_000,
        ge=0,
        description="bytes of weights that a replica keeps of models that requests name; the default model always stays",
    )
    cpus_per_replica: Positive = Field(0.5, description="CPU cores that Ray reserves for each replica")
    gpus_per_replica: Annotated[float, Field(ge=0)] | None = Field(
        None, description="GPUs per replica; default: one, or an equal share if there are fewer; 0: use the CPU"
    )
    torch_threads: int | None = Field(None, ge=1, description="compute threads per replica; default: the node's cores, shared equally")

    num_ingress_replicas: int = Field(1, ge=1, description="number of processes that read requests and decode pictures")
    cpus_per_ingress: Positive = Field(0.25, description="CPU cores that Ray reserves for each ingress replica")
    request_timeout_s: Positive = Field(30.0, description="timeout in seconds for receiving a request, and again for answering it")
    max_pending_images: int | None = Field(
        None,
        ge=1,
        description="maximum number of pictures in progress per ingress replica; more are refused; default: four batches per model replica",
    )
    max_body_bytes: int = Field(
        512_000_000,
        ge=100_000_000,
        description="bytes of all request bodies that an ingress replica holds at once; more are refused; at least one batch of 100 MB",
    )
    api_keys: Path | None = Field(
        default_factory=lambda: Path(os.environ[KEYS_VARIABLE]) if os.environ.get(KEYS_VARIABLE) else None,
        validate_default=True,
        description=f"file of cifar-ray keys: requests need one of its keys; default ${KEYS_VARIABLE}, else no key is needed",
    )
    client_header: str = Field(
        "X-Client-Id",
        pattern=r"[A-Za-z0-9-]{1,100}",
        description="request header that names the client: while a version is on trial, a client stays with one version",
    )
    cors_origins: tuple[str, ...] = Field(
        (),
        description="origins whose pages may call the server, for example https://a.example,https://b.example; default: none",
    )
    gallery: bool = Field(True, description="show at /gallery which test pictures a model gets wrong")
    drift: bool = Field(True, description="count answers by class and confidence in the storage, for cifar-ray drift; no pictures")
    capture: float = Field(0.0, ge=0, le=1, description="fraction of the requests whose pictures are saved in the storage; default: none")
    capture_only: Literal["all", "unsure"] = Field(
        "all", description="unsure: of these, only pictures of which the model is unsure, or on which versions on trial disagree"
    )
    capture_max_bytes: int = Field(1_000_000_000, ge=1_000_000, description="bytes of captured pictures; beyond it the oldest are deleted")
    capture_max_days: Positive = Field(30.0, description="days after which captured pictures are deleted")
    jobs: bool = Field(False, description="let API keys with the scope jobs predict many pictures beside the server: POST /jobs")
    job_sources: tuple[str, ...] = Field(
        (),
        description="addresses below which jobs may read, beside the storage's folder inputs: s3://bucket/photos,https://a.example/photos",
    )
    job_workers: int = Field(1, ge=1, description="number of workers of a job; one job runs at a time")
    cpus_per_job_worker: Positive = Field(
        0.5,
        description="CPU cores that Ray reserves for each worker of a job; it has one thread for each whole core",
    )
    job_priority: PriorityName = Field(
        "idle",
        description="of the workers of a job; idle: a core that nothing else wants; low: niceness 19, Ray gives a server 15; normal: 15",
    )
    job_gpu: bool = Field(False, description="give each worker of a job a GPU of its own; default: they use the CPU")
    access_log: bool = Field(False, description="log one line per request")
    json_logs: bool = Field(False, description="log in JSON, with the id of the request in each line")

    _resolve_storage = field_validator("storage")(staticmethod(resolve_storage))

    @field_validator("api_keys")
    @classmethod
    def _readable_keys(cls, path: Path | None) -> Path | None:
        if path is None:
            return None
        try:
            path = local_path(str(path)).absolute()
            read_keys(path)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return path

    @field_validator("model_aliases", mode="before")
    @classmethod
    def _split_aliases(cls, value: Any) -> Any:
        return dict(pair.strip().partition("=")[::2] for pair in value.split(",")) if isinstance(value, str) else value

    @field_validator("model_aliases")
    @classmethod
    def _refer_to_models(cls, aliases: dict[str, str]) -> dict[str, str]:
        for alias, reference in aliases.items():
            if not alias or not re.fullmatch(REFERENCE_PATTERN, reference):
                raise ValueError("expected ALIAS=NAME or ALIAS=NAME@VERSION, with commas between them")
        return aliases

    @field_validator("cors_origins", "job_sources", mode="before")
    @classmethod
    def _split_list(cls, value: Any) -> Any:
        return tuple(origin.strip() for origin in value.split(",")) if isinstance(value, str) else value

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError("expected scheme, host and port, for example https://a.example or http://localhost:3000, or * for all")
        return origins

    @field_validator("job_sources")
    @classmethod
    def _are_addresses(cls, addresses: tuple[str, ...]) -> tuple[str, ...]:
        for address in addresses:
            split_address(address)
        return addresses

    @model_validator(mode="after")
    def _more_means_more(self) -> Self:
        if self.max_replicas is not None and self.max_replicas < self.num_replicas:
            raise ValueError(f"max_replicas ({self.max_replicas}) is below num_replicas ({self.num_replicas})")
        return self

    @property
    def replica_limit(self) -> int:
        """Maximum number of model replicas."""
        return self.max_replicas or self.num_replicas

    @property
    def pending_image_limit(self) -> int:
        """Maximum number of pictures in progress per ingress replica.

        By default, all ingress replicas together hold four batches per model replica; a picture waits about as long as these take.
        """
        return self.max_pending_images or max(int(_PENDING_BATCHES * self._share), self.max_batch_size)

    @property
    def ongoing_request_limit(self) -> int:
        """Maximum number of ongoing requests per ingress replica: the present and the next batch of each model replica.

        With fewer, the next batch forms late, which makes the server a fifth slower.
        """
        return min(self.pending_image_limit, max(int(_ONGOING_BATCHES * self._share), 1))

    @property
    def queued_request_limit(self) -> int:
        """Maximum number of queued requests per ingress replica, in addition to the ongoing ones.

        A burst of requests is queued before the requests start, so the queue must hold a burst.
        """
        return min(self.pending_image_limit, max(int(_QUEUED_BATCHES * self._share), 1))

    @property
    def _share(self) -> float:
        """Number of images in one batch of each model replica, divided by the number of ingress replicas."""
        return self.max_batch_size * self.replica_limit / self.num_ingress_replicas

    @property
    def train_command(self) -> str:
        """The command that trains a model for this server."""
        words = ["cifar-ray train"]
        name = (self.model or "").partition("@")[0]
        if name in _BUILT_IN:
            words.append(f"--dataset {name}")
        elif name:
            words.append(f"--dataset folder --data-dir DIR --save-as {shlex.quote(name)}")
        return " ".join([*words, f"--storage {shlex.quote(self.storage)}"])
