"""Training in one process, without Ray."""

import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cifar_ray.cluster import need
from cifar_ray.config import TrainConfig, parse_config
from cifar_ray.data.dataset import DatasetSplits
from cifar_ray.data.streamed import StreamedImages
from cifar_ray.errors import ConfigError, Interrupted, TrainingError
from cifar_ray.training import place
from cifar_ray.training.in_process import train_in_process
from cifar_ray.training.loop import worker
from cifar_ray.training.loop.trainer import Trainer
from cifar_ray.training.records.results import EpochReport, TrainedRun
from cifar_ray.training.records.run_folder import Run
from tests.training.command import TIMELESS

SETTINGS = {
    "dataset": "digits",
    "model": "cnn3",
    "epochs": 4,
    "batch_size": 18,
    "precision": "fp32",
    "optimizer": {"name": "adamw", "lr": 0.01},
}


class Recorder:
    """A progress listener that remembers, and acts after an epoch."""

    def __init__(self, after_epoch: Callable[[int], None] = lambda epoch: None) -> None:
        self.messages: list[str] = []
        self.epochs: list[int] = []
        self._after_epoch = after_epoch

    def on_message(self, text: str) -> None:
        self.messages.append(text)

    def on_step(self, epoch: int, steps_done: int, steps_per_epoch: int) -> None:
        pass

    def on_epoch(self, report: EpochReport) -> None:
        self.epochs.append(report.epoch)
        self._after_epoch(report.epoch)


def config(storage: Path, name: str, **changes: object) -> TrainConfig:
    return parse_config(TrainConfig, SETTINGS | {"storage": str(storage), "name": name} | changes)


def train(storage: Path, name: str, splits: DatasetSplits, recorder: Recorder, **changes: object) -> TrainedRun:
    return train_in_process(Run(config(storage, name, **changes)), splits, recorder)


def figures(run: TrainedRun) -> list[dict[str, object]]:
    """Of each epoch, without times."""
    return [{key: value for key, value in report.figures().items() if key not in TIMELESS} for report in run.history]


def is_same(one: TrainedRun, two: TrainedRun) -> bool:
    return figures(one) == figures(two) and all(torch.equal(one.weights[name], two.weights[name]) for name in one.weights)


@pytest.fixture
def whole(tmp_path: Path, few_stripes: DatasetSplits) -> TrainedRun:
    return train(tmp_path, "whole", few_stripes, Recorder())


def fail_after(monkeypatch: pytest.MonkeyPatch, steps: int, error: Exception) -> None:
    """The step after `steps` steps fails, whenever as many have been taken."""
    taken, step = [0], Trainer.train_step

    def counted(trainer: Trainer, batch: object) -> object:
        if taken[0] == steps:
            taken[0] = 0
            raise error
        taken[0] += 1
        return step(trainer, batch)

    monkeypatch.setattr(Trainer, "train_step", counted)


def test_a_transient_error_costs_the_steps_since_the_checkpoint_and_nothing_else(
    tmp_path: Path, few_stripes: DatasetSplits, whole: TrainedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_STEP_INTERVAL_S", 0.0)
    fail_after(monkeypatch, 10, RuntimeError("the device went away\nand more"))
    recorder = Recorder()
    run = train(tmp_path, "failing", few_stripes, recorder)
    assert is_same(run, whole)
    assert (run.restarts, run.repeated_steps) == (1, 2)
    assert recorder.messages == ["RuntimeError: the device went away: resuming from step 1 of epoch 3, 2 steps repeated"]


def test_an_error_that_stays_ends_the_run_with_one_line_and_the_same_command_resumes(
    tmp_path: Path, few_stripes: DatasetSplits, whole: TrainedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        fail_after(patch, 1, RuntimeError("the device went away"))
        recorder = Recorder()
        with pytest.raises(TrainingError, match=r"^training failed: RuntimeError: the device went away$"):
            train(tmp_path, "failing", few_stripes, recorder, max_failures=2)
        assert len([text for text in recorder.messages if "resuming" in text]) == 2
    run = train(tmp_path, "failing", few_stripes, Recorder())
    assert is_same(run, whole)


def test_an_error_of_ours_is_not_tried_again(tmp_path: Path, few_stripes: DatasetSplits, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_after(monkeypatch, 1, ConfigError("model: does not fit"))
    recorder = Recorder()
    with pytest.raises(ConfigError, match="does not fit"):
        train(tmp_path, "failing", few_stripes, recorder)
    assert recorder.messages == []


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("Expected more than 1 value per channel\nmore"), "training failed: ValueError: Expected more than 1 value per channel"),
        (ImportError("no such module"), "training failed: ImportError: no such module"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), "out of memory: pass a --micro-batch-size below 18; .*CUDA out of memory"),
        (MemoryError(), "out of memory: pass a --micro-batch-size below 18"),
        (RuntimeError("CUDA error: device-side assert triggered"), "training failed: RuntimeError: CUDA error: device-side assert"),
    ],
)
def test_a_permanent_error_ends_the_run_at_once(
    tmp_path: Path, few_stripes: DatasetSplits, error: Exception, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_after(monkeypatch, 1, error)
    recorder = Recorder()
    with pytest.raises(TrainingError, match=f"^{line}") as ended:
        train(tmp_path, "failing", few_stripes, recorder)
    assert "\n" not in str(ended.value)
    assert recorder.messages == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_saves_and_the_run_resumes_bit_for_bit(tmp_path: Path, few_stripes: DatasetSplits, number: signal.Signals) -> None:
    long = {"epochs": 16}
    recorder = Recorder(lambda epoch: signal.raise_signal(number) if epoch == 2 else None)
    with pytest.raises(Interrupted, match=r"run cut is saved; resume it with: .*--resume cut") as stopped:
        train(tmp_path, "cut", few_stripes, recorder, **long)
    assert stopped.value.signal_number == number
    assert recorder.messages == ["saving and stopping (press Ctrl-C again to stop immediately)"]
    assert 2 <= recorder.epochs[-1] < 16
    resumed = train(tmp_path, "cut", few_stripes, Recorder(), **long)
    assert is_same(resumed, train(tmp_path, "never", few_stripes, Recorder(), **long))


def test_the_second_signal_stops_at_once(tmp_path: Path, few_stripes: DatasetSplits) -> None:
    def twice(epoch: int) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted, match="stopped without saving"):
        train(tmp_path, "cut", few_stripes, Recorder(twice))
    assert (tmp_path / "runs" / "cut" / "history.json").exists()


@pytest.mark.parametrize(
    ("choice", "workers", "gpus", "expected"),
    [
        ("auto", None, 0, False),
        ("auto", None, 1, False),
        ("auto", None, 4, True),
        ("auto", 1, 4, False),
        ("auto", 2, 0, True),
        ("auto", "1:2", 0, True),
        ("local", None, 4, False),
        ("start", None, 0, True),
        ("10.0.0.1:6379", 1, 0, True),
    ],
)
def test_a_cluster_is_for_more_than_one_worker(
    tmp_path: Path,
    stripes: DatasetSplits,
    choice: str,
    workers: int | str | None,
    gpus: int,
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(need, "belongs_to_cluster", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    chosen = config(tmp_path, "run", cluster=choice, num_workers=workers)
    assert place.trains_on_ray(chosen, stripes) == expected
    assert place.describe_place(chosen, stripes).startswith("on a Ray cluster" if expected else "in this process")


def test_several_workers_in_one_process_are_refused(tmp_path: Path, stripes: DatasetSplits) -> None:
    with pytest.raises(ConfigError, match="one process has one worker, not --num-workers 2"):
        place.trains_on_ray(config(tmp_path, "run", cluster="local", num_workers=2), stripes)


def test_pictures_that_exceed_the_memory_need_a_cluster(tmp_path: Path) -> None:
    streamed = SimpleNamespace(train=object.__new__(StreamedImages))
    assert place.describe_place(config(tmp_path, "run"), streamed) == "on a Ray cluster, which decodes pictures that exceed the memory"
    with pytest.raises(ConfigError, match="the pictures exceed the memory"):
        place.trains_on_ray(config(tmp_path, "run", cluster="local"), streamed)


def test_a_cluster_of_this_machine_is_found_while_it_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(need, "sys", type("NoRay", (), {"modules": {}}))
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert not need.belongs_to_cluster()
    with socket.create_server(("127.0.0.1", 0)) as server:
        (tmp_path / "ray").mkdir()
        (tmp_path / "ray" / "ray_current_cluster").write_text(f"127.0.0.1:{server.getsockname()[1]}\n")
        assert need.belongs_to_cluster()
    assert not need.belongs_to_cluster()
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert need.belongs_to_cluster()
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert not need.belongs_to_cluster()


IMPORTS = """
import sys
before = set(sys.modules)  # with the interpreter's own sitecustomize, which Debian's Python has
from cifar_ray import train

code = train.main(sys.argv[1:])
packages = {name.partition(".")[0] for name in sys.modules.keys() - before} - set(sys.stdlib_module_names)
print(*sorted(name for name in packages if not name.startswith("_")))
sys.exit(code)
"""

# What training in one process may import beside the standard library, and why. A new name here costs every run its import.
REASONS = {
    "cifar_ray": "this project",
    "torch numpy": "the training itself",
    "torchgen sympy mpmath triton cuda cloudpickle pydot typing_extensions": "torch imports them for its optimizers",
    "scipy": "fits the temperature of the probabilities",
    "PIL": "decodes and encodes pictures",
    "matplotlib mpl_toolkits cycler kiwisolver pyparsing dateutil six packaging fontTools tornado": "draws curves.png, in a thread",
    "colorama": "of tornado, where it is installed",
    "jinja2 markupsafe markdown_it mdurl": "the card of the model, as HTML",
    "pyarrow tenacity filelock": "the storage: files, retries, locks",
    "pydantic pydantic_core annotated_types typing_inspection": "checks the settings",
    "yaml": "config.yaml",
    "tyro docstring_parser typeguard": "the flags",
    "rich tqdm": "progress",
    "safetensors": "the weights in the store",
    "charset_normalizer": "importlib.metadata",
    "cython_runtime": "scipy",
}


def test_train_needs_no_ray_for_one_worker_and_imports_only_what_has_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    flags = f"--dataset digits --image-size 8 --epochs 1 --storage {tmp_path}".split()
    done = subprocess.run([sys.executable, "-c", IMPORTS, *flags], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "in this process" in done.stderr
    imported = set(done.stdout.splitlines()[-1].split())
    assert not {"ray", "torchvision", "pandas", "sklearn", "tensorboard", "timm"} & imported
    assert imported - {name for names in REASONS for name in names.split()} == set()
