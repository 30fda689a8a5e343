"""Status lines, and output that fails."""

import io
import os
import pty
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from PIL import Image

from cifar_ray.cli import exits
from cifar_ray.cli.output import liveness
from cifar_ray.cli.output.liveness import Activity, Liveness, begin, format_seconds
from cifar_ray.cli.output.terminal import ProgressDisplay
from cifar_ray.errors import ConfigError


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FIRST_S", "TERMINAL_S", "LOG_S"):
        monkeypatch.setattr(liveness, name, 0.01)


class Spoken(io.StringIO):
    """A stream on which a test can wait for a text."""

    def __init__(self, terminal: bool = False) -> None:
        super().__init__()
        self.terminal = terminal
        self._changed = threading.Condition()

    def isatty(self) -> bool:
        return self.terminal

    def write(self, text: str) -> int:
        with self._changed:
            self._changed.notify_all()
            return super().write(text)

    def wait_for(self, pattern: str) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: re.search(pattern, self.getvalue()), timeout=60), self.getvalue()


def test_a_log_gets_a_plain_line_of_what_is_done_how_far_and_how_long(impatient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    error = Spoken()
    monkeypatch.setattr(sys, "stderr", error)
    with Liveness():
        error.wait_for(r"^loading libraries, 0 s\n")
        done = ProgressDisplay().start("decoding", 100)
        done(40)
        error.wait_for(r"\ndecoding: 40 of 100 images, 0 s, about 0 s left\n")
    assert sys.stderr is error
    assert "\x1b" not in error.getvalue()


def test_a_terminal_gets_one_line_that_goes_when_something_is_printed(impatient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    error = Spoken(terminal=True)
    monkeypatch.setattr(sys, "stderr", error)
    with Liveness():
        begin("saving the model")
        error.wait_for(r"\r\x1b\[Ksaving the model, 0 s$")
        print("saved", file=sys.stderr)
        assert re.search(r"saving the model, 0 s\r\x1b\[Ksaved\n", error.getvalue())
    assert not error.getvalue().endswith(" s"), "nothing of it stays"


def test_an_error_is_printed_after_it(impatient: None, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise ConfigError("no such thing")

    stdout, stderr = sys.stdout, sys.stderr
    assert exits.run(fail) == 2
    assert capsys.readouterr().err.endswith("error: no such thing\n")
    assert (sys.stdout, sys.stderr) == (stdout, stderr)


@pytest.mark.parametrize(("seconds", "text"), [(3.4, "3 s"), (99, "99 s"), (240, "4 min"), (5400, "1.5 h")])
def test_durations_are_told_as_people_do(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
    assert Activity("decoding", 0, "images", 1, 2).describe(seconds).endswith(f"{text}, about {text} left")


def test_the_estimate_leaves_out_the_time_before_the_first_units() -> None:
    activity = Activity("evaluating", 0, "images", 0, 100)
    assert activity.describe(60).endswith("0 of 100 images, 60 s")
    activity.done = 10
    assert activity.describe(60).endswith("about 9 min left"), "nothing better is known yet"
    activity.done = 30
    assert activity.describe(64).endswith("about 14 s left")


IMPATIENT = """
import importlib
import sys
from cifar_ray.cli.output import liveness

liveness.FIRST_S, liveness.TERMINAL_S, liveness.LOG_S = 0.05, 0.05, 0.05
from cifar_ray import cli

verb = importlib.import_module(f"cifar_ray.{sys.argv[1]}")
sys.exit(cli.run(lambda: verb.main(sys.argv[2:])))
"""


def seen_on_terminal(verb: str, arguments: list[str]) -> str:
    """What a verb writes to a terminal, with status lines after 0.05 s of silence."""
    ours, theirs = pty.openpty()
    surroundings = os.environ | {"TERM": "xterm"}
    with subprocess.Popen(
        [sys.executable, "-c", IMPATIENT, verb, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=surroundings
    ) as process:
        os.close(theirs)
        seen = b""
        while True:
            try:
                seen += os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
        os.close(ours)
    assert process.returncode == 0, seen
    return seen.decode()


def assert_in_order(seen: str, *expected: str) -> None:
    places = [seen.find(text) for text in expected]
    assert -1 not in places, f"{expected[places.index(-1)]!r} is missing in {seen}"
    assert places == sorted(places), seen


def test_train_tells_on_a_terminal_what_it_does_from_its_start_to_its_end(tmp_path: Path) -> None:
    flags = f"--dataset digits --image-size 8 --epochs 1 --cluster local --storage {tmp_path}".split()
    assert_in_order(
        seen_on_terminal("train", flags),
        "loading libraries, ",
        "run digits-",
        "in this process",
        "epoch 1/1",
        "evaluating the best weights",
        "serve  serve run deployments:app",
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage with a model of digits, and one of them as a file."""
    storage = tmp_path_factory.mktemp("trained")
    flags = ["--dataset", "digits", "--image-size", "8", "--epochs", "1", "--storage", str(storage)]
    seen_on_terminal("train", flags)
    Image.new("RGB", (8, 8), "white").save(storage / "one.png")
    return storage


@pytest.mark.slow
@pytest.mark.parametrize(
    ("verb", "arguments", "expected"),
    [
        ("evaluate", "digits", ["robustness", "report"]),
        ("compare", "digits digits", ["accuracy"]),
        ("stats", "--dataset digits", ["duplicates"]),
        ("find_lr", "--dataset digits", ["learning rate", "cifar-ray train"]),
        ("calibrate", "digits", ["temperature"]),
        ("predict", "digits ONE", ["%"]),
        ("finetune", "digits --dataset digits --epochs 1", ["epoch 1/1", "serve run deployments:app"]),
        ("tune", "--dataset digits --image-size 8 --epochs 2 --num-samples 1 --confirm 0", ["starting Ray and the first trial", "best"]),
    ],
)
def test_no_verb_is_silent_while_it_works(trained: Path, verb: str, arguments: str, expected: list[str]) -> None:
    words = [str(trained / "one.png") if word == "ONE" else word for word in arguments.split()]
    assert_in_order(seen_on_terminal(verb, [*words, "--storage", str(trained)]), "loading libraries, ", *expected)


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_reader_that_goes_away_costs_its_lines_and_not_the_work(name: str, tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from cifar_ray.cli import exits

def work():
    for number in range(3):
        print("line", number, file=sys.{name}, flush=True)
    Path({str(tmp_path / "done")!r}).touch()
    return 7

sys.exit(exits.run(work))
"""
    reader, writer = os.pipe()
    os.close(reader)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, name: writer}
    done = subprocess.run([sys.executable, "-c", code], **streams, check=False)  # type: ignore[call-overload]
    os.close(writer)
    assert (done.returncode, (tmp_path / "done").exists()) == (7, True)
    assert not done.stdout
    assert not done.stderr


def test_a_name_that_the_terminal_cannot_show_is_written_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    with Liveness():
        print("caf\udce9", "漢")
    assert out.buffer.getvalue() == b"caf\\udce9 \\u6f22\n"


def test_closed_streams_are_borne() -> None:
    code = "import sys; from cifar_ray.cli import exits; sys.exit(exits.run(lambda: print(1) or 7))"
    for closed in (">&-", "2>&-"):
        assert subprocess.run(["/bin/sh", "-c", f'"$0" -c "$1" {closed}', sys.executable, code], check=False).returncode == 7
