"""Training steps as CUDA graphs: a GPU replays forward pass, backward pass and update without waiting for Python."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from cifar_ray.cluster.private import copy_each
from cifar_ray.config import TrainConfig
from cifar_ray.data.batches.loader import Pieces, Share, Step, TrainLoader
from cifar_ray.data.batches.shares import Shard

_EAGER_STEPS = 3  # before the capture of each shape: in these, libraries choose kernels, and optimizers create their state

Replay = Callable[[], Tensor]


def why_not_captured(config: TrainConfig, device: torch.device, shard: Shard) -> str:
    """Why steps cannot be captured; empty if they can."""
    reasons = {
        "there is no GPU": device.type != "cuda",
        "several workers exchange gradients in each step": shard.world_size > 1,
        "on_nan skip reads the loss in each step": config.on_nan == "skip",
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def is_augmented_in_graph(config: TrainConfig, loader: TrainLoader) -> bool:
    """Whether the graph of a step contains its augmentation; otherwise the images are augmented before the graph runs.

    Policies divide images into groups of unknown size, draws 1 come from the CPU, and streamed images arrive in new memory.
    """
    return loader.is_resident and config.draws != 1 and config.augmentation.policy == "none"


def captured_steps(
    config: TrainConfig,
    device: torch.device,
    shard: Shard,
    loader: TrainLoader,
    train_step: Callable[[Step], Tensor],
    on_refused: Callable[[str], None],
    on_message: Callable[[str], None],
) -> CapturedSteps | None:
    """Run the steps of a training as CUDA graphs, if configured and possible.

    Returns:
        `None` if steps cannot be captured; `on_message` then gets the reason if `cuda_graph` is `on`, or if there is a GPU.
    """
    if config.cuda_graph == "off":
        return None
    if reason := why_not_captured(config, device, shard):
        if config.cuda_graph == "on" or device.type == "cuda":
            on_message(f"cuda_graph: off, because {reason}")
        return None
    return CapturedSteps(train_step, loader.pieces if is_augmented_in_graph(config, loader) else None, on_refused)


class StepInput(Protocol):
    """What a graph reads in a step."""

    @property
    def shape(self) -> Hashable:
        """Equal for inputs that one graph can read."""

    def tensors(self) -> list[Tensor]:
        """All tensors, in a fixed order."""

    def clone(self) -> StepInput:
        """A copy of all tensors: the memory that the graph reads."""

    def pieces(self) -> Pieces:
        """As `Step.pieces`."""


@dataclass(frozen=True)
class DrawnInput:
    """Indices and draws; the graph gathers and augments the images.

    Attributes:
        share: what was drawn for the step.
        augment: `TrainLoader.pieces`.
    """

    share: Share
    augment: Callable[[Share], Pieces]

    @property
    def shape(self) -> Hashable:
        """Implements `StepInput`."""
        return self.share.indices.shape

    def tensors(self) -> list[Tensor]:
        """Implements `StepInput`."""
        return self.share.tensors()

    def clone(self) -> DrawnInput:
        """Implements `StepInput`."""
        return DrawnInput(self.share.clone(), self.augment)

    def pieces(self) -> Pieces:
        """Implements `StepInput`."""
        return self.augment(self.share)


@dataclass(frozen=True)
class AugmentedInput:
    """Augmented images and their labels, as in `Step.pieces`."""

    augmented: tuple[tuple[Tensor, Tensor], ...]

    @property
    def shape(self) -> Hashable:
        """Implements `StepInput`."""
        return tuple(one.shape for one in self.tensors())

    def tensors(self) -> list[Tensor]:
        """Implements `StepInput`."""
        return [tensor for piece in self.augmented for tensor in piece]

    def clone(self) -> AugmentedInput:
        """Implements `StepInput`."""
        return AugmentedInput(tuple((inputs.clone(), labels.clone()) for inputs, labels in self.augmented))

    def pieces(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Implements `StepInput`."""
        return iter(self.augmented)


class CapturedSteps:
    """Runs training steps: the first ones of each shape eagerly, the others by replaying a CUDA graph.

    Args:
        train_step: runs a step without copies from or to the host; its result is on the device.
        augment: `TrainLoader.pieces`, if the graph contains the augmentation.
        on_refused: receives the reason if a step cannot be captured, and undoes the changes of the attempt; all further steps run eagerly.
    """

    def __init__(
        self, train_step: Callable[[Step], Tensor], augment: Callable[[Share], Pieces] | None, on_refused: Callable[[str], None]
    ) -> None:
        self._train_step, self._augment, self._on_refused = train_step, augment, on_refused
        self._forms: dict[Hashable, _CapturedShape] = {}
        self.is_refused = False

    def clear(self) -> None:
        """Discard all graphs; necessary when the set of trained weights changes."""
        self._forms.clear()

    def run(self, step: Step) -> Tensor:
        """Run one training step, and return the result of `train_step`."""
        if self.is_refused:
            return self._train_step(step)
        given = DrawnInput(step.share, self._augment) if self._augment and step.share else AugmentedInput(tuple(step.pieces))
        key = (step.global_size, given.shape)
        if key not in self._forms:
            self._forms[key] = _CapturedShape(given.clone())
        form = self._forms[key]
        copy_each(form.memory.tensors(), given.tensors())

        def work() -> Tensor:
            return self._train_step(Step(step.global_size, step.num_pieces, form.memory.pieces()))

        if form.eager_steps < _EAGER_STEPS:
            form.eager_steps += 1
            return run_on_side_stream(work)
        if form.replay is None:
            try:
                form.replay = capture(work)
            except RuntimeError as error:
                self.is_refused = True
                self._on_refused(f"cuda_graph: a step cannot be captured ({str(error).strip().partition(chr(10))[0]}); training without")
                return work()
        return form.replay()


@dataclass
class _CapturedShape:
    """Steps of one shape: memory for their input, and the function that replays their graph."""

    memory: StepInput
    eager_steps: int = 0
    replay: Replay | None = None


def run_on_side_stream(work: Replay) -> Tensor:
    """Run the work on another stream, which torch requires before a capture."""
    present, side = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(present)
    with torch.cuda.stream(side):
        result = work()
    present.wait_stream(side)
    result.record_stream(present)
    return result


def capture(work: Replay) -> Replay:
    """Capture the work without running it.

    Returns:
        A function that runs it and returns a copy of its result.

    Raises:
        RuntimeError: if something in it cannot be captured.
    """
    graph = torch.cuda.CUDAGraph()
    # during the capture, other threads may wait for copies; the stricter modes forbid this
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = work()

    def replay() -> Tensor:
        graph.replay()
        return result.clone()

    return replay
