"""Whether a run begins, goes on, or is refused."""

import os
from pathlib import Path

import pytest

from cifar_ray.cli import training_flags
from cifar_ray.config import TrainConfig, parse_config
from cifar_ray.data.dataset import DatasetSplits
from cifar_ray.errors import ConfigError, DataError
from cifar_ray.training import job
from cifar_ray.training.records.checkpoint import CheckpointPosition
from cifar_ray.training.records.results import EpochReport
from cifar_ray.training.records.run_folder import Run, unfinished_twin


def config(storage: Path, **changes: object) -> TrainConfig:
    return parse_config(TrainConfig, {"dataset": "digits", "name": "run", "storage": str(storage)} | changes)


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A storage with an unfinished run."""
    run = Run(config(tmp_path))
    run.begin()
    run.checkpoints.begin_attempt({})
    return tmp_path


def test_the_same_command_goes_on_with_an_unfinished_run(begun: Path) -> None:
    assert Run(config(begun)).is_resumed
    assert Run(config(begun, checkpoint_every="10m", max_failures=9, num_workers="2:8")).is_resumed
    assert not Run(config(begun, name="other")).is_resumed


def test_a_new_run_tells_of_the_unfinished_one_with_the_same_settings(begun: Path) -> None:
    twin = unfinished_twin(config(begun, name="second"), "")
    assert twin is not None
    assert twin.command() == f"cifar-ray train --resume run --storage {begun}"
    assert unfinished_twin(config(begun, name="second", epochs=9), "") is None, "other settings"
    assert unfinished_twin(config(begun), "") is None, "it is the same run"
    assert unfinished_twin(config(begun / "empty"), "") is None
    Run(config(begun)).finish()
    assert unfinished_twin(config(begun, name="second"), "") is None, "it is finished"


def test_another_config_under_the_same_name_is_refused_with_what_differs(begun: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"run 'run' exists in .*/runs with another config; it has epochs 8 \(now 9\), optimizer.lr 0.24"
    ) as caught:
        Run(config(begun, epochs=9, optimizer={"lr": 0.5}))
    assert "\n" not in str(caught.value)
    assert "seed" not in str(caught.value)


def test_of_two_runs_of_one_name_at_the_same_time_the_first_decides(tmp_path: Path) -> None:
    first, same, other = Run(config(tmp_path)), Run(config(tmp_path)), Run(config(tmp_path, epochs=9))
    first.begin()
    same.begin()
    with pytest.raises(ConfigError, match=r"run 'run' in .* was started just now with another config; it has epochs 8 \(now 9\); choose"):
        other.begin()
    assert Run(config(tmp_path)).is_resumed, "the config is still that of the first"


def test_default_names_of_runs_that_start_in_the_same_second_differ(tmp_path: Path, stripes: DatasetSplits) -> None:
    names = {job.with_name(config(tmp_path, name=None), stripes).name for _ in range(3)}
    assert len(names) == 3


def test_never_refuses_any_run_that_exists(begun: Path) -> None:
    with pytest.raises(ConfigError, match=r"exists .* choose another --name"):
        Run(config(begun), "never")
    assert not Run(config(begun, name="other"), "never").is_resumed


def test_a_finished_run_is_refused(begun: Path) -> None:
    Run(config(begun)).finish(model="digits@1")
    for resume in ("auto", "never", "run"):
        with pytest.raises(
            ConfigError,
            match=r"exists in .* and is finished; choose another --name, or train it for longer: .* --epochs N, with N above \d+$",
        ):
            Run(config(begun), resume)


def test_a_run_of_an_earlier_release_counts_as_finished(tmp_path: Path) -> None:
    run = Run(config(tmp_path))
    run.begin()
    run.write_history([EpochReport(1, 1.0, 0.5, None, None, 0.1, 1.0, 10.0, improved=True)])
    with pytest.raises(ConfigError, match="is finished"):
        Run(config(tmp_path))


def test_data_that_changed_meanwhile_are_noticed(tmp_path: Path) -> None:
    Run(config(tmp_path), fingerprint="one").begin()
    assert Run(config(tmp_path), fingerprint="one").is_resumed
    assert Run(config(tmp_path)).is_resumed
    with pytest.raises(DataError, match=r"images or labels have changed since; restore them, or choose another --name") as refused:
        Run(config(tmp_path), fingerprint="two")
    assert "\n" not in str(refused.value)
    Run(config(tmp_path, name="reviewed", with_reviews=True), fingerprint="one").begin()
    with pytest.raises(
        DataError, match=r"a deleted review does not come back: repeat the run with --config .*/runs/reviewed/config\.yaml$"
    ):
        Run(config(tmp_path, name="reviewed", with_reviews=True), fingerprint="two")


def test_resume_with_a_name_brings_the_settings_of_that_run(tmp_path: Path) -> None:
    run = Run(config(tmp_path, epochs=3, optimizer={"name": "adamw", "lr": 0.01}, model="small_cnn", recipe="small_cnn"))
    run.begin()
    command = training_flags.parse_train_command(["--resume", "run", "--storage", str(tmp_path)], "train")
    values = command.model_dump(include=set(TrainConfig.model_fields))
    assert parse_config(TrainConfig, values) == run.config
    assert Run(parse_config(TrainConfig, values), command.resume).is_resumed
    assert run.command() == f"cifar-ray train --resume run --storage {tmp_path}"


def test_resume_with_an_unknown_name_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--resume nothing: run not found in"):
        training_flags.parse_train_command(["--resume", "nothing", "--storage", str(tmp_path)], "train")


def test_resume_with_a_name_and_more_epochs_extends_a_finished_run(begun: Path) -> None:
    finished = Run(config(begun, epochs=3, name="done"))
    finished.begin()
    finished.checkpoints.write(CheckpointPosition(finished.checkpoints.begin_attempt({}), 3, 0), b"state", {})
    finished.finish(model="digits@1")
    for changes, resume in (({"epochs": 5}, "auto"), ({"epochs": 2}, "done"), ({"epochs": 3}, "done"), ({"epochs": 5, "seed": 1}, "done")):
        with pytest.raises(ConfigError, match="is finished"):
            Run(config(begun, name="done", **changes), resume)
    longer = training_flags.parse_train_command(["--resume", "done", "--epochs", "5", "--storage", str(begun)], "train")
    values = parse_config(TrainConfig, longer.model_dump(include=set(TrainConfig.model_fields)))
    run = Run(values, longer.resume)
    assert Run(values, longer.resume).is_resumed, "nothing is written before training begins"
    run.begin()
    assert Run(values).is_resumed, "the same command resumes an extension that was interrupted"
    newest = run.checkpoints.newest()
    assert newest is not None
    assert newest[0].epoch == 3
    run.finish(model="digits@2")
    with pytest.raises(ConfigError, match="is finished"):
        Run(values)


def test_a_finished_run_of_an_earlier_release_is_extended_and_resumed(begun: Path) -> None:
    finished = Run(config(begun, epochs=3, name="done"))
    finished.begin()
    finished.checkpoints.write(CheckpointPosition(finished.checkpoints.begin_attempt({}), 3, 0), b"state", {})
    finished.files.replace("finished.json", b'{"model": "digits@1"}')
    longer = config(begun, epochs=5, name="done")
    Run(longer, "done").begin()
    assert Run(longer).is_resumed


def test_resume_alone_takes_the_run_that_began_last(begun: Path) -> None:
    for number, name in enumerate(("second", "first")):
        run = Run(config(begun, name=name, epochs=3 + number))
        run.begin()
        os.utime(begun / "runs" / name / "config.yaml", (number + 4e9, number + 4e9))
    for flags in (["--resume", "--storage", str(begun)], ["--storage", str(begun), "--resume"]):
        command = training_flags.parse_train_command(flags, "train")
        assert (command.name, command.resume, command.epochs) == ("first", "first", 4)
    with pytest.raises(ConfigError, match=r"--resume: no run in .* yet"):
        training_flags.parse_train_command(["--resume", "--storage", str(begun / "empty")], "train")
