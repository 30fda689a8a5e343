"""Checkpoints on disk: which one is gone on from, whatever happened to the others."""

import hashlib
import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from cifar_ray.errors import StoreError, TrainingError
from cifar_ray.training.loop.command import CheckpointSchedule, Command
from cifar_ray.training.records.checkpoint import COMMIT_FILE, STATE_FILE, BackgroundWriter, CheckpointPosition, Checkpoints


class Written:
    """A run with checkpoints after epochs 1 and 2 and two steps of epoch 3."""

    def __init__(self, storage: Path) -> None:
        self.folder = storage / "runs" / "run"
        self.messages: list[str] = []
        self.checkpoints = Checkpoints(str(storage), "run", self.messages.append)
        self.attempt = self.checkpoints.begin_attempt({})
        self.places = [CheckpointPosition(self.attempt, epoch, step) for epoch, step in ((1, 0), (2, 0), (2, 2))]
        for place in self.places:
            self.checkpoints.write(place, str(place).encode(), {})

    def path(self, place: CheckpointPosition, file: str) -> Path:
        return self.folder / place.folder / file

    def folders(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("epoch-*"))


@pytest.fixture
def run(tmp_path: Path) -> Written:
    return Written(tmp_path)


def test_the_newest_is_gone_on_from_and_one_is_kept_to_fall_back_to(run: Written) -> None:
    assert run.checkpoints.newest() == (run.places[2], b"step 2 of epoch 3")
    assert run.folders() == ["epoch-0002-step-00002-try-0001", "epoch-0002-try-0001"]


def test_the_commit_names_the_state_and_the_figures_of_its_epoch(run: Written) -> None:
    state = b"some state"
    run.checkpoints.write(CheckpointPosition(run.attempt, 3, 7), state, {"epoch": 2, "val_accuracy": 0.5})
    commit = json.loads(run.path(CheckpointPosition(run.attempt, 3, 7), COMMIT_FILE).read_bytes())
    sha256 = hashlib.sha256(state).hexdigest()
    assert commit == {"format_version": 1, "epoch": 3, "step": 7, "val_accuracy": 0.5, "sha256": sha256, "bytes": len(state)}


def test_attempts_are_numbered_and_keep_what_is_known_about_them(run: Written) -> None:
    assert run.checkpoints.begin_attempt({"host": "here"}) == run.checkpoints.attempts() == 2
    assert json.loads((run.folder / "tries" / "2" / "try.json").read_bytes()) == {"host": "here"}


def test_without_a_limit_two_checkpoints_stay_and_at_the_end_one(run: Written) -> None:
    run.checkpoints.sweep()
    assert run.folders() == ["epoch-0002-step-00002-try-0001", "epoch-0002-try-0001"]
    run.checkpoints.sweep(keep=1)
    assert run.folders() == ["epoch-0002-step-00002-try-0001"]


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def _flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("harm", [_truncate, _flip_a_bit, Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_damaged_state_is_told_of_and_the_one_before_taken(run: Written, harm: Callable[[Path], None]) -> None:
    harm(run.path(run.places[2], STATE_FILE))
    assert run.checkpoints.newest() == (run.places[1], b"the end of epoch 2")
    problem = "missing" if harm is Path.unlink else "damaged"
    assert run.messages == [f"checkpoint epoch-0002-step-00002-try-0001: state.pt is {problem}; trying an older checkpoint"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"sha256": 5}'])
def test_a_damaged_commit_is_told_of_and_the_one_before_taken(run: Written, content: bytes) -> None:
    run.path(run.places[2], COMMIT_FILE).write_bytes(content)
    assert run.checkpoints.newest() == (run.places[1], b"the end of epoch 2")
    assert len(run.messages) == 1


def test_one_that_was_never_committed_is_passed_over_in_silence_and_swept_at_the_next_start(run: Written) -> None:
    run.path(run.places[2], COMMIT_FILE).unlink()
    assert run.checkpoints.newest() == (run.places[1], b"the end of epoch 2")
    assert run.messages == []
    run.checkpoints.sweep()
    assert run.folders() == ["epoch-0002-try-0001"]


def test_a_writer_that_was_cut_off_writes_nothing_once_a_later_try_began(run: Written) -> None:
    later = run.checkpoints.begin_attempt({})
    with pytest.raises(TrainingError, match="taken over"):
        run.checkpoints.write(CheckpointPosition(run.attempt, 9, 0), b"stale", {})
    assert run.checkpoints.newest() == (run.places[2], b"step 2 of epoch 3")
    run.checkpoints.write(CheckpointPosition(later, 2, 1), b"new", {})
    assert run.checkpoints.newest() == (CheckpointPosition(later, 2, 1), b"new")


def test_what_fails_in_the_background_is_raised_by_the_next_write_or_at_the_end(run: Written) -> None:
    run.checkpoints.begin_attempt({})
    stale = CheckpointPosition(run.attempt, 9, 0)
    with pytest.raises(TrainingError, match="taken over"), BackgroundWriter(run.checkpoints) as writer:
        writer.write(stale, lambda: b"stale", {})
    writer = BackgroundWriter(run.checkpoints)
    writer.write(stale, lambda: b"stale", {})
    with pytest.raises(TrainingError, match="taken over"):
        writer.write(stale, lambda: b"stale", {})


def test_a_storage_that_refuses_ends_in_one_line_and_harms_no_earlier_checkpoint(run: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise StoreError("cannot write: no space left on device")

    monkeypatch.setattr("cifar_ray.storage.FileTree.replace", refuse)
    with pytest.raises(StoreError, match="no space"), BackgroundWriter(run.checkpoints) as writer:
        writer.write(CheckpointPosition(run.attempt, 3, 0), lambda: b"more", {})
    assert run.checkpoints.newest() == (run.places[2], b"step 2 of epoch 3")


def test_it_is_time_after_so_many_epochs() -> None:
    schedule = CheckpointSchedule("2")
    assert [schedule(epoch, step) for epoch, step in ((1, 0), (1, 5), (2, 0), (2, 3), (3, 0))] == [0, 0, Command.SAVE, 0, 0]


def test_it_is_time_after_so_many_seconds_also_within_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("cifar_ray.training.loop.command.time.monotonic", lambda: now)
    schedule = CheckpointSchedule("0.5m")
    assert schedule(0, 1) == Command.CONTINUE
    now += 30
    assert schedule(0, 2) == Command.SAVE
    schedule.fulfil()
    assert schedule(0, 3) == Command.CONTINUE


def test_a_stop_comes_before_all_else_and_is_never_forgotten() -> None:
    schedule = CheckpointSchedule("1")
    schedule.request(Command.STOP, 0)
    schedule.fulfil()
    assert schedule(0, 1) == Command.STOP
    schedule.request(Command.SAVE, 1)
    assert schedule(0, 2) == Command.STOP


def test_a_request_for_a_checkpoint_is_fulfilled_by_the_next_one() -> None:
    schedule = CheckpointSchedule("9")
    schedule.request(Command.SAVE, 1)
    assert schedule(0, 1) == Command.SAVE
    assert schedule.fulfil() == 1
    assert schedule(0, 2) == Command.CONTINUE


def test_requests_that_come_together_are_fulfilled_together_and_one_that_comes_later_is_not_lost() -> None:
    schedule = CheckpointSchedule("9")
    schedule.request(Command.SAVE, 1)
    schedule.request(Command.SAVE, 2)
    assert schedule.fulfil() == 2
    assert schedule(0, 1) == Command.CONTINUE
    schedule.request(Command.SAVE, 3)  # while the checkpoint before is being written
    assert schedule(0, 2) == Command.SAVE
    assert schedule.fulfil() == 3


def test_a_stop_that_arrives_at_any_moment_of_a_save_is_obeyed() -> None:
    """From another thread, between any two steps of rank 0: many times over, so that each place is hit."""
    for number in range(1, 300):
        schedule = CheckpointSchedule("9")
        schedule.request(Command.SAVE, number)
        stopping = threading.Thread(target=schedule.request, args=(Command.STOP, number))
        stopping.start()
        schedule.fulfil()
        stopping.join()
        assert schedule(0, 1) == Command.STOP
