"""Run the training loop in this process: one worker on one machine needs no cluster."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import Any

import torch

from cifar_ray.cluster.process import prepare_process, usable_cores
from cifar_ray.cluster.signals import Signals
from cifar_ray.data.batches.shares import Shard
from cifar_ray.data.streamed import TrainingSplits
from cifar_ray.errors import CifarRayError, TrainingError
from cifar_ray.training.loop.command import Command
from cifar_ray.training.loop.snapshot import best_weights
from cifar_ray.training.loop.worker import run_worker
from cifar_ray.training.records.progress import Progress
from cifar_ray.training.records.results import FitResult, TrainedRun
from cifar_ray.training.records.run_folder import Run
from cifar_ray.training.records.run_log import RunLog


class MemoryChannel:
    """Channel of a run whose driver and only worker share one process. It handles events immediately; its only command is `STOP`.

    Args:
        on_event: handles an event.
    """

    def __init__(self, on_event: Callable[[str, Any], None]) -> None:
        self.send = self.send_and_wait = on_event
        self._handle: Callable[[Command, int], None] = lambda command, number: None
        self._stops = False

    def on_command(self, handle: Callable[[Command, int], None]) -> None:
        """Pass the stop command to `handle`, even if the stop was requested before this call."""
        self._handle = handle
        if self._stops:
            handle(Command.STOP, 0)

    def confirm_saved(self, number: int) -> None:
        """Do nothing, because nobody waits for a checkpoint in one process."""

    def request_stop(self) -> None:
        """Command the worker to save and stop."""
        self._stops = True
        self._handle(Command.STOP, 0)


def train_in_process(run: Run, splits: TrainingSplits, progress: Progress) -> TrainedRun:
    """Train in this process, from the run's newest checkpoint if there is one; write config, history and checkpoints to its folder.

    After a transient error, such as a GPU driver failure, training resumes from the last checkpoint, at most `config.max_failures` times.

    Args:
        run: new or unfinished.
        splits: the data set.
        progress: receives the events of the run.

    Raises:
        TrainingError: if the run failed; the message gives the reason.
        Interrupted: after Ctrl-C or SIGTERM, once the state is saved.
    """
    log = RunLog(progress)
    channel = MemoryChannel(log.handle)
    prepare_process(usable_cores())
    run.begin()
    with Signals() as signals:

        def stop() -> None:
            progress.on_message("saving and stopping (press Ctrl-C again to stop immediately)")
            channel.request_stop()

        # in a thread, because the signal may have interrupted code that holds a lock that `stop` needs
        signals.ask_with(lambda number: threading.Thread(target=stop, name="stop").start())
        with log.recording(run):
            result = _train(run, splits, channel)
    return log.end(run, result, signals.received, best_weights)


def _train(run: Run, splits: TrainingSplits, channel: MemoryChannel) -> FitResult | None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for failures in range(run.config.max_failures + 1):
        try:
            return run_worker(run.config, splits, channel, device, Shard(), lambda place: place)
        except CifarRayError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            if failures == run.config.max_failures:
                raise TrainingError(f"training failed: {reason}") from error
            channel.send("failure", reason)
        gc.collect()  # free the tensors that the error's stack frames hold
        if device.type == "cuda":
            torch.cuda.empty_cache()
    raise AssertionError("the last failure ends the loop")
