"""One training that is killed thirty times, in whatever way comes next and whenever that is: `make test-chaos`."""

import os
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from cifar_ray.training.records.checkpoint import COMMIT_FILE, STATE_FILE, Checkpoints
from tests.training.command import Command, outcome

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(2 * 3600)]

SEED = int(os.environ.get("CHAOS_SEED", "0"))
WHOLE_S = 3600
EPOCHS = 300  # more than thirty lives of some epochs come to
FLAGS = f"""--dataset digits --image-size 8 --batch-size 512 --precision fp32 --num-workers 1 --epochs {EPOCHS}
    --optimizer.name adamw --averaging.name ema --augmentation.mixup 0.2 --checkpoint-every 2s --worker-timeout-s 20 --max-failures 30
    --name run --save-as run""".split()
BORNE = {"worker killed", "worker hung"}  # while the command goes on
KINDS = {
    "worker killed": 8,
    "worker hung": 3,
    "driver killed": 4,
    "SIGINT": 3,
    "SIGTERM": 3,
    "SIGTERM to all processes": 3,
    "newest checkpoint cut short": 2,
    "a bit of it flipped": 2,
    "it deleted": 2,
}


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: random.randrange(path.stat().st_size)])  # noqa: S311


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[random.randrange(len(data))] ^= 1 << random.randrange(8)  # noqa: S311
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "newest checkpoint cut short": cut_short,
    "a bit of it flipped": flip_a_bit,
    "it deleted": Path.unlink,
}


class Training:
    """The command, typed again whenever it has ended."""

    def __init__(self, storage: Path, flags: list[str]) -> None:
        self.storage, self.flags, self.command = storage, flags, Command(storage, *flags)
        self.starts = 1
        self.said: list[str] = []
        self.memory: set[Path] = set()

    def harm(self, kind: str) -> None:
        """Waits for some epochs, or not even for the first, then does what `kind` says and sees that it is borne."""
        epochs = random.randrange(-1, 4)  # noqa: S311
        if epochs < 0 and kind not in BORNE:
            time.sleep(random.uniform(0, 12 if "start" in self.flags else 6))  # noqa: S311  somewhere between Python's start and the first step
        else:
            for _ in range(max(1, epochs)):
                self.command.wait_for("epoch")
            time.sleep(random.uniform(0, 0.6))  # noqa: S311
        self.memory |= self.command.shared_memory()
        if kind in BORNE:
            (worker,) = self.command.pids("ray::RayTrainWorker")
            os.kill(worker, signal.SIGKILL if kind == "worker killed" else signal.SIGSTOP)
            self.command.wait_for("worker failure: resuming with new workers from ")
            return
        number = {"SIGINT": signal.SIGINT, "SIGTERM": signal.SIGTERM, "SIGTERM to all processes": signal.SIGTERM}.get(kind, signal.SIGKILL)
        for pid in self.command.pids() if kind == "SIGTERM to all processes" else [self.command.process.pid]:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        # before there is anything to save, Python itself ends by the signal
        assert self.command.wait() in {-number} | ({128 + number} if number != signal.SIGKILL else set()), self.command.lines
        self._type_again(kind)

    def _type_again(self, kind: str) -> None:
        assert self.command.gone(), self.command.pids()
        self.said += self.command.lines
        self.command.end()
        if kind in DAMAGE:
            folders = [self.storage / "runs" / "run" / place.folder for place in Checkpoints(str(self.storage), "run").places()]
            whole = [folder for folder in folders if (folder / STATE_FILE).exists()]
            if whole:
                DAMAGE[kind](whole[0] / random.choice((STATE_FILE, STATE_FILE, COMMIT_FILE)))  # noqa: S311
        self.command = Command(self.storage, *self.flags)
        self.starts += 1


def files(storage: Path) -> set[str]:
    """All that a storage has, without the numbers of tries and the times in the names of the log."""
    found = {str(path.relative_to(storage)) for path in storage.rglob("*")}
    return {re.sub(r"(/tries/|/epoch-|^log/)[^/]+", r"\1", name) if ".staging-" not in name else name for name in found}


@pytest.mark.parametrize("place", ["start", "local"])
def test_a_training_that_is_killed_thirty_times_ends_as_one_that_never_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """On a cluster, and in one process, which has no worker to lose: there the command itself is killed as often."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait leave the cores to processes that start
    random.seed(SEED)
    flags = [*FLAGS, "--cluster", place]
    whole = Command(tmp_path / "whole", *flags)
    try:
        assert whole.wait(WHOLE_S) == 0, whole.lines
    finally:
        whole.end()
    kinds = [kind if place == "start" or kind not in BORNE else "driver killed" for kind, count in KINDS.items() for _ in range(count)]
    random.shuffle(kinds)
    training, began = Training(tmp_path / "chaos", flags), time.monotonic()
    try:
        for number, kind in enumerate(kinds, 1):
            training.harm(kind)
            print(f"{time.monotonic() - began:6.0f} s  {number:2}  {kind}", flush=True)
        assert training.command.wait(WHOLE_S) == 0, training.command.lines
        assert training.command.gone()
    finally:
        training.command.end()
    said = [*training.said, *training.command.lines]
    kinds_of_lines = ("worker failure", "resuming", "checkpoint", "saving and stopping")
    told = Counter(what for what in kinds_of_lines for line in said if line.startswith(what))
    print(f"{time.monotonic() - began:.0f} s, {len(kinds)} times harmed, {training.starts} times typed; told: {dict(told)}")
    print(f"{len([line for line in said if line.startswith('epoch')])} epochs were told of, tracebacks: {'Traceback' in str(said)}")
    assert outcome(tmp_path / "chaos", "run") == outcome(tmp_path / "whole", "run")
    history, _ = outcome(tmp_path / "chaos", "run")
    assert [epoch["epoch"] for epoch in history] == list(range(1, EPOCHS + 1))
    assert files(tmp_path / "chaos") == files(tmp_path / "whole")
    assert not [path for path in training.memory if path.exists()]
